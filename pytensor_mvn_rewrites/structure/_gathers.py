"""Gathers: batches that are rows of a smaller batch."""

from typing import NamedTuple

from pytensor.graph.basic import Constant, Variable
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.subtensor import AdvancedSubtensor

from pytensor_mvn_rewrites.graph import Tensor, is_mask
from pytensor_mvn_rewrites.proofs.constants import constant_value


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
            return Gather(batch, index) if index.type.ndim == 1 and not is_mask(index) else None
        case (DimShuffle(new_order=(0, *_)) as op, inner):
            if (below := gathered(inner)) is not None:
                return Gather(op(below.batch), below.rows)
        case (Elemwise() | Blockwise() as op, *inputs) if len(var.owner.outputs) == 1:
            return _below(op, inputs, var.type.ndim)
    return None


def _below(op: Elemwise | Blockwise, inputs: list[Tensor], ndim: int) -> Gather | None:
    """The gather below an op that works on each entry of the batch by itself."""
    if isinstance(op, Blockwise):
        ndim -= len(op.outputs_sig[0])
    if ndim < 1:
        return None
    # inputs that broadcast along the batch are the same for all rows
    positions = [k for k, inp in enumerate(inputs) if not inp.type.broadcastable[0]]
    gathers = [gather for k in positions if (gather := gathered(inputs[k])) is not None]
    if not gathers or len(gathers) < len(positions):
        return None
    index = gathers[0].rows
    if not all(_same(index, gather.rows) for gather in gathers):
        return None
    batches = _of_equal_length([gather.batch for gather in gathers], index)
    if batches is None:
        return None
    below = dict(zip(positions, batches, strict=True))
    return Gather(op(*[below.get(k, inp) for k, inp in enumerate(inputs)]), index)


def _same(one: Variable, other: Variable) -> bool:
    return one is other or (isinstance(one, Constant) and one.equals(other))


def _of_equal_length(batches: list[Tensor], index: Variable) -> list[Tensor] | None:
    """The batches without rows that `index` cannot reach, where that makes their lengths equal."""
    lengths = {batch.type.shape[0] for batch in batches}
    if len(batches) == 1 or (len(lengths) == 1 and None not in lengths):
        return batches
    rows = constant_value(index)
    if rows is None or rows.size == 0 or rows.min() < 0:
        return None
    return [batch[: rows.max() + 1] for batch in batches]
