"""Pullbacks of one node for several cotangents -> one pullback."""

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.rewriting.basic import copy_stack_trace
from pytensor.scalar.basic import Add
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import add

from pytensor_mvn_rewrites.lower._groups import is_zero
from pytensor_mvn_rewrites.ops import PackedCholeskyPullback
from pytensor_mvn_rewrites.pipeline import LOWER_POSITION, lower

#: The first inputs of the pullback are outputs of the forward op, the others cotangents
N_FORWARD = 3


@lower("numba", position=LOWER_POSITION - 0.1)
def merge_pullbacks(fgraph):
    """P(L, s, r, g) + P(L, s, r, h) -> P(L, s, r, g + h) for P = PackedCholeskyPullback.

    A pullback is linear in the cotangents. They come apart when prior and likelihood of a loop are
    made batches of by themselves. Cost: one node instead of three, or more where cotangents are
    zero. Declines for pullbacks that something else needs as well.
    """
    for node in fgraph.toposort():
        if not (isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, Add)):
            continue
        groups: dict[tuple, list[Apply]] = {}
        others = []
        for inp in node.inputs:
            owner = inp.owner
            if (
                owner is not None
                and isinstance(owner.op, PackedCholeskyPullback)
                and len(fgraph.clients[inp]) == 1
            ):
                groups.setdefault((owner.op, *owner.inputs[:N_FORWARD]), []).append(owner)
            else:
                others.append(inp)
        if all(len(group) == 1 for group in groups.values()):
            continue
        terms = [*others, *(merged(group) for group in groups.values())]
        [old] = node.outputs
        new = add(*terms) if len(terms) > 1 else terms[0]
        if new.type.dtype != old.type.dtype or new.type.broadcastable != old.type.broadcastable:
            continue
        copy_stack_trace(old, new)
        fgraph.replace(old, new, reason="mvn_merge_pullbacks", import_missing=True)


def merged(pullbacks: list[Apply]) -> Variable:
    """One pullback for the sums of the cotangents of all."""
    first = pullbacks[0]
    cotangents = zip(*(node.inputs[N_FORWARD:] for node in pullbacks), strict=True)
    return first.op(*first.inputs[:N_FORWARD], *(total(terms) for terms in cotangents))


def total(terms: tuple[Variable, ...]) -> Variable:
    """The sum of cotangents of one output, which are often constant, or zero."""
    needed = [term for term in terms if not is_zero(term)]
    if len(needed) > 1:
        return add(*needed)
    return needed[0] if needed else terms[0]
