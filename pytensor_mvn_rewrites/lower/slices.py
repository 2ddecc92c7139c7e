"""Joins of slices of one vector -> one slice or one gather.

A function of one raveled point, as PyMC and nutpie compile it, cuts the point into the value
variables of the model. What stage 1 has stacked is then put together again from these pieces.
"""

import math
from dataclasses import dataclass

import numpy as np
from pytensor.graph.basic import Constant, Variable
from pytensor.tensor.basic import Join, MakeVector, join
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.shape import Reshape, SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor, indices_from_subtensor

from pytensor_mvn_rewrites.matching import Tensor
from pytensor_mvn_rewrites.pipeline import lower


@dataclass(frozen=True)
class Piece:
    """``source[positions].reshape(shape)``, with increasing or any other constant positions."""

    source: Tensor
    positions: np.ndarray
    shape: tuple[int, ...]

    def can_join(self, other: "Piece") -> bool:
        """Whether the join of the two along the first axis is a piece."""
        return self.source is other.source and self.shape[1:] == other.shape[1:]

    def build(self) -> Tensor:
        """The variable."""
        start, stop = int(self.positions[0]), int(self.positions[-1]) + 1
        if np.array_equal(self.positions, np.arange(start, stop)):
            part = self.source[start:stop]
        else:
            part = self.source[self.positions]
        return part if len(self.shape) == 1 else part.reshape(self.shape)


@lower("fast_run", tidies=True)
def join_slices(fgraph):
    """join(0, x[a:b], x[c:d], y) -> join(0, x[[a, ..., b - 1, c, ..., d - 1]], y).

    The same for reshaped slices and for a vector of scalars; where the slices lie one after the
    other, the gather is a slice. Cost: N slices of a raveled point and their join, which Numba
    compiles as a function of N arguments, become one node.
    Declines for slices that are not constant and shapes that are not known.
    """
    if not any(isinstance(node.op, Join | MakeVector) for node in fgraph.apply_nodes):
        return
    for node in fgraph.toposort():
        match node.op:
            case Join(axis=0):
                parts = [piece_of(inp) or inp for inp in node.inputs]
            case MakeVector():
                parts = [entry_of(inp) for inp in node.inputs]
                if None in parts:
                    continue
            case _:
                continue
        runs = joined_runs(parts)
        if len(runs) == len(parts):
            continue
        [old] = node.outputs
        tensors = [run.build() if isinstance(run, Piece) else run for run in runs]
        new = join(0, *tensors) if len(tensors) > 1 else tensors[0]
        if new.type.dtype == old.type.dtype:
            new = old.type.filter_variable(new)
            fgraph.replace(old, new, reason="mvn_join_slices", import_missing=True)


def joined_runs(parts: list) -> list:
    """`parts` with neighbours that are pieces of one source joined."""
    runs: list[list] = []
    for part in parts:
        if runs and isinstance(part, Piece) and isinstance(runs[-1][0], Piece):
            if part.can_join(runs[-1][0]):
                runs[-1].append(part)
                continue
        runs.append([part])
    return [run[0] if len(run) == 1 else joined(run) for run in runs]


def joined(pieces: list[Piece]) -> Piece:
    """The join of pieces along the first axis."""
    first = pieces[0]
    length = sum(piece.shape[0] for piece in pieces)
    positions = np.concatenate([piece.positions for piece in pieces])
    return Piece(first.source, positions, (length, *first.shape[1:]))


def piece_of(var: Variable) -> Piece | None:
    """What `var`, of at least one dimension, is a reshaped slice of; None if that is not known."""
    shape, inner = var.type.shape, var
    while inner.owner is not None and keeps_order(inner.owner.op):
        inner = inner.owner.inputs[0]
    found = slice_of(inner) or gather_of(inner)
    if found is None:
        return None
    source, positions = found
    known = math.prod(length for length in shape if length is not None)
    if shape.count(None) > 1 or not known:
        return None
    # one unknown length follows from the number of entries
    shape = tuple(len(positions) // known if length is None else length for length in shape)
    return Piece(source, positions, shape) if math.prod(shape) == len(positions) else None


def entry_of(var: Variable) -> Piece | None:
    """The piece of one entry that a scalar is."""
    match var.owner_op_and_inputs:
        case (Subtensor(idx_list=(int(),)), source, index) if (
            source.type.ndim == 1 and isinstance(index, Constant) and index.data >= 0
        ):
            return Piece(source, np.array([index.data], dtype="int64"), (1,))
    piece = piece_of(var)
    return None if piece is None else Piece(piece.source, piece.positions, (1,))


def keeps_order(op) -> bool:
    """Whether an op only reshapes its input."""
    if isinstance(op, DimShuffle):
        # axes are added or dropped, and none is moved
        kept = [axis for axis in op.new_order if axis != "x"]
        return kept == sorted(kept)
    return isinstance(op, Reshape | SpecifyShape)


def gather_of(var: Variable) -> tuple[Tensor, np.ndarray] | None:
    """(x, index) for ``x[index]`` of a vector, with a constant vector of positions from 0 on."""
    match var.owner_op_and_inputs:
        case (AdvancedSubtensor(idx_list=(0,)), source, Constant(data=index)) if (
            source.type.ndim == 1 and index.ndim == 1 and index.size
        ):
            is_known = index.dtype.kind in "iu" and index.min() >= 0
            return (source, index.astype("int64")) if is_known else None
    return None


def slice_of(var: Variable) -> tuple[Tensor, np.ndarray] | None:
    """(x, [a, a + c, ...]) for ``x[a:b:c]`` of a vector, with constants 0 <= a < b and c > 0."""
    match var.owner_op_and_inputs:
        case (Subtensor(idx_list=(slice(),)) as op, source, *bounds) if source.type.ndim == 1:
            [index] = indices_from_subtensor(bounds, op.idx_list)
            assert isinstance(index, slice)
        case _:
            return None
    if not all(b is None or isinstance(b, Constant) for b in (index.start, index.stop, index.step)):
        return None
    start, step = (
        default if bound is None else int(bound.data)
        for bound, default in ((index.start, 0), (index.step, 1))
    )
    stop = source.type.shape[0] if index.stop is None else int(index.stop.data)
    if step < 1 or stop is None or not 0 <= start < stop:
        return None
    return source, np.arange(start, stop, step)
