"""What a model declares of its variables, and its `dims`, kept for its log-density.

``pytensor.assumptions.assume`` marks variables. PyMC canonicalizes the graph of random variables
before it makes log-densities, and PyTensor drops the markers there.
"""

from collections.abc import Iterator

from pymc.logprob.abstract import ValuedRV
from pytensor.assumptions import AssumptionKey, FactState, SpecifyAssumptions
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.fg import Output
from pytensor.scalar.basic import Cast
from pytensor.tensor.basic import MakeVector, ScalarFromTensor, TensorFromScalar
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.random.op import RandomVariable

from pytensor_mvn_rewrites.graph import nodes_with
from pytensor_mvn_rewrites.logprob import FusedMvNormalRV, FusedPrecisionMvNormalRV
from pytensor_mvn_rewrites.pipeline import IR_END, IR_START, logprob_graph
from pytensor_mvn_rewrites.proofs.declared import NARROW, NARROW_RATIO, is_declared


@logprob_graph(IR_START)
def note_declarations(fgraph):
    """assume(x, ...) in a model -> the same, and a note of what kinds of facts are declared.

    PyTensor drops the markers.
    """
    markers = nodes_with(fgraph, SpecifyAssumptions)
    fgraph.mvn_declared = {key for node in markers for key, _ in node.op.assumptions}


@logprob_graph(IR_END)
def keep_declarations(fgraph):
    """Variable x that a model declares something of -> assume(x, ...), in its log-density.

    PyTensor drops the markers from the graph of random variables, and remembers the facts with that
    graph alone. The lengths of `dims` may change, so no type knows them.
    """
    facts = declared_facts(fgraph)
    for var in narrow_parameters(fgraph):
        facts.setdefault(var, {})[NARROW] = FactState.TRUE
    for var, declared in facts.items():
        marker = SpecifyAssumptions(declared)(var)
        for client, i in list(fgraph.clients[var]):
            # PyMC looks for its own variables there, without a marker
            if not isinstance(client.op, Output | ValuedRV):
                fgraph.change_node_input(client, i, marker, reason="keep_declarations")


def declared_facts(fgraph) -> dict[Variable, dict[AssumptionKey, FactState]]:
    """What the user declared of the variables of a graph."""
    facts: dict[Variable, dict[AssumptionKey, FactState]] = {}
    if not getattr(fgraph, "mvn_declared", ()) or not hasattr(fgraph, "assumption_feature"):
        return facts
    for (var, key), state in list(fgraph.assumption_feature.cache.items()):
        if state is not FactState.TRUE or key not in fgraph.mvn_declared:
            continue
        if var in fgraph.variables and is_declared(fgraph, var, key):
            facts.setdefault(var, {})[key] = state
    return facts


def narrow_parameters(fgraph) -> Iterator[Variable]:
    """Matrices of parameters that have few columns with the present lengths of the `dims`."""
    if not nodes_with(fgraph, FusedMvNormalRV, FusedPrecisionMvNormalRV):
        return
    for node in list(fgraph.apply_nodes):
        match node.op, node.inputs[0].owner_op_and_inputs if node.inputs else ():
            case ValuedRV(), (RandomVariable(ndim_supp=0) as op, *_) if None in node.out.type.shape:
                pass
            case _:
                continue
        size = op.size_param(node.inputs[0].owner)
        match size.owner_op_and_inputs:
            case (MakeVector(), *_, rows, columns):
                n, k = present_value(rows), present_value(columns)
                if n is not None and k is not None and n >= NARROW_RATIO * k:
                    yield node.out


def present_value(length: Variable) -> int | None:
    """The length of a dimension of a model, seen through conversions."""
    match length.owner_op_and_inputs:
        case (ScalarFromTensor() | TensorFromScalar() | DimShuffle(), inner):
            return present_value(inner)
        case (Elemwise(scalar_op=Cast()), inner):
            return present_value(inner)
    if isinstance(length, SharedVariable):
        return int(length.get_value(borrow=True))
    return int(length.data) if isinstance(length, Constant) else None
