"""The terms of the sums of a graph."""

from pytensor.graph.basic import Apply, Variable
from pytensor.scalar.basic import Add
from pytensor.tensor.elemwise import Elemwise

from pytensor_mvn_rewrites.matching import in_graph_order


def outer_sums(fgraph) -> list[tuple[Apply, list[Variable]]]:
    """The sums of several terms that are no part of larger ones, with their terms."""
    sums = [node for node in fgraph.apply_nodes if is_add(node) and not _is_inner(fgraph, node)]
    sums = in_graph_order(fgraph, sums)
    return [(node, terms) for node in sums if len(terms := flatten(fgraph, node)) > 1]


def is_add(node: Apply) -> bool:
    """Whether `node` is an elementwise addition of numbers; that of bools is a logical or."""
    return (
        isinstance(node.op, Elemwise)
        and isinstance(node.op.scalar_op, Add)
        and node.outputs[0].type.dtype != "bool"
    )


def _is_inner(fgraph, node) -> bool:
    """Whether the sum is only a part of a larger sum."""
    clients = fgraph.clients[node.outputs[0]]
    return len(clients) == 1 and is_add(clients[0][0]) and _same_type(clients[0][0], node)


def _same_type(outer: Apply, inner: Apply) -> bool:
    return outer.outputs[0].type == inner.outputs[0].type


def flatten(fgraph, node: Apply) -> list[Variable]:
    """The terms of a sum, through nested sums that have no other use."""
    terms = []
    pending = list(reversed(node.inputs))
    while pending:
        term = pending.pop()
        inner = term.owner
        if inner is not None and is_add(inner) and _is_inner(fgraph, inner):
            pending.extend(reversed(inner.inputs))
        else:
            terms.append(term)
    return terms
