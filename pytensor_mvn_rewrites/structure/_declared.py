"""Markers of declared facts go before anything is matched: PyTensor remembers the facts."""

from pytensor.assumptions import SpecifyAssumptions
from pytensor.tensor.rewriting.assumptions import DrainSpecifyAssumptions

from pytensor_mvn_rewrites.graph import nodes_with
from pytensor_mvn_rewrites.pipeline import structure


@structure
def drain_declarations(fgraph):
    """assume(x, ...) -> x, for all of the graph at once.

    PyTensor's own canonicalization does it node by node, after the whole-graph rewrites of this
    package, in whose way the markers would be.
    """
    if nodes_with(fgraph, SpecifyAssumptions):
        DrainSpecifyAssumptions().apply(fgraph)
