"""Gathers: batches that are rows of a smaller batch."""

from typing import NamedTuple

from pytensor.graph.basic import Constant, Variable
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.subtensor import AdvancedSubtensor

from pytensor_mvn_rewrites.matching import Tensor


class Gather(NamedTuple):
    """``batch[rows]``, `rows` a vector of indices."""

    batch: Tensor
    rows: Variable


def gathered(var: Tensor) -> Gather | None:
    """`var` as ``batch[index]``, or None.

    The gather may sit below elementwise and batched ops: f(batch[index]) = f(batch)[index].
    """
    match var.owner_op_and_inputs:
        case (AdvancedSubtensor() as op, batch, index) if op._take_axis() == 0:
            return Gather(batch, index) if index.type.ndim == 1 else None
        case (DimShuffle(new_order=(0, *_)) as op, inner):
            if (below := gathered(inner)) is not None:
                return Gather(op(below.batch), below.rows)
        case (Elemwise() | Blockwise() as op, *inputs) if len(var.owner.outputs) == 1:
            return _below(op, inputs, var.type.ndim)
    return None


def _below(op: Elemwise | Blockwise, inputs: list[Tensor], ndim: int) -> Gather | None:
    """The gather below an op that works on each entry of the batch by itself."""
    n_core = 0 if isinstance(op, Elemwise) else max(map(len, op.inputs_sig))
    if ndim <= n_core:
        return None
    batches: list[Tensor] = []
    index = None
    for inp in inputs:
        if inp.type.ndim < ndim or inp.type.broadcastable[0]:
            # the same for all rows
            batches.append(inp)
            continue
        gather = gathered(inp)
        if gather is None or (index is not None and not _same(index, gather.rows)):
            return None
        batches.append(gather.batch)
        index = gather.rows
    return None if index is None else Gather(op(*batches), index)


def _same(one: Variable, other: Variable) -> bool:
    return one is other or (isinstance(one, Constant) and one.equals(other))
