"""Functions that SciPy calls, as PyTensor's ``minimize`` makes them, stay as they are written.

PyTensor rewrites their graphs for the backend of the whole, and runs them by Python's linker.
"""

from pytensor.link.numba.linker import NumbaLinker
from pytensor.tensor.optimize import rewrite_optimize_inner_graph
from pytensor.tensor.rewriting.optimize import jit_rewrite_optimize_inner_graph

from pytensor_mvn_rewrites.config import forced_here
from pytensor_mvn_rewrites.graph import nodes_with
from pytensor_mvn_rewrites.lower.numba_backend import inline
from pytensor_mvn_rewrites.ops.gaussian import FusedOp
from pytensor_mvn_rewrites.pipeline import GuardedGraphRewriter


@rewrite_optimize_inner_graph.register(NumbaLinker)
def rewrite_as_written(linker, op, node, inner, *, mode) -> None:
    """Rewrite the graph of a function of SciPy's as PyTensor does without this package.

    Kernels would be called from Python, or not at all. Fused densities become their formulas, which
    PyTensor simplifies.
    """
    GuardedGraphRewriter(formulas_of_fused_ops, "lower").apply(inner)
    with forced_here(active=False):
        jit_rewrite_optimize_inner_graph(linker, op, node, inner, mode=mode)


def formulas_of_fused_ops(fgraph) -> None:
    """The ops of this package, and those in their formulas, become formulas."""
    while fused := nodes_with(fgraph, FusedOp):
        inline(fgraph, fused)
