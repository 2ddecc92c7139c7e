"""What is declared, and not proven: by the user, or by the present lengths of ``dims``."""

from pytensor.assumptions import AssumptionKey, FactState, check_assumption
from pytensor.assumptions.core import infer_assumption_for_node
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.fg import FunctionGraph

#: A matrix with so many times more rows than columns is narrow.
NARROW_RATIO = 4

#: What :mod:`~pytensor_mvn_rewrites.logprob` notes of a parameter whose `dims` make it narrow when
#: the log-density is made. They may change later: only the cost may depend on it.
NARROW = AssumptionKey("mvn_rewrites_narrow", short_name="narrow")


def is_declared(fgraph: FunctionGraph, var: Variable, fact: AssumptionKey) -> bool:
    """Whether the user declared `fact` of `var`, which no rule of PyTensor's says of its op.

    PyTensor calls every ``X @ X.T`` positive definite. What the user declares it remembers with
    the graph, and drops the marker.
    """
    if not check_assumption(fgraph, var, fact):
        return False
    if var.owner is None:
        return not isinstance(var, Constant)
    feature = fgraph.assumption_feature
    states = [feature.get(inp, fact) for inp in var.owner.inputs]
    by_rule = infer_assumption_for_node(fact, var.owner.op, feature, fgraph, var.owner, states)
    return by_rule[var.owner.outputs.index(var)] is not FactState.TRUE
