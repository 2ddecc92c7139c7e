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
from pytensor.tensor.shape import Reshape, SpecifyShape, specify_shape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor, indices_from_subtensor
from pytensor.tensor.type import TensorType

from pytensor_mvn_rewrites.config import is_active
from pytensor_mvn_rewrites.graph import Tensor
from pytensor_mvn_rewrites.pipeline import lower
from pytensor_mvn_rewrites.reroll.stacks import reroll_stacks

#: After PyTensor has merged what is there twice, before any other rewrite
AFTER_MERGE = 0.5


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
        """The variable; an error if the source is too short."""
        start, stop = int(self.positions[0]), int(self.positions[-1]) + 1
        is_run = np.array_equal(self.positions, np.arange(start, stop))
        if is_run:
            part = self.source[start:stop]
        elif self.source.type.shape[0] is None:
            # Numba gathers without asking whether the entries are there
            length = int(self.positions.max()) + 1
            part = specify_shape(self.source[:length], length)[self.positions]
        else:
            part = self.source[self.positions]
        if len(self.shape) > 1:
            return part.reshape(self.shape)
        return specify_shape(part, self.shape) if part.type.shape[0] is None else part


@lower("fast_run", tidies=True)
def join_slices(fgraph):
    """join(0, x[a:b], x[c:d], y) -> join(0, x[[a, ..., b - 1, c, ..., d - 1]], y).

    The same for reshaped slices and for a vector of scalars; where the slices lie one after the
    other, the gather is a slice. Cost: N slices of a raveled point and their join, which Numba
    compiles as a function of N arguments, become one node.
    Declines for slices that are not constant, shapes that are not known, and slices of which a
    shorter vector would have less.
    """
    if not any(isinstance(node.op, Join | MakeVector) for node in fgraph.apply_nodes):
        return
    lengths = sure_lengths(fgraph)
    for node in fgraph.toposort():
        match node.op:
            case Join(axis=0):
                parts = parts_of_join(node, lengths)
            case MakeVector():
                parts = [entry_of(inp) for inp in node.inputs]
                if not all(piece and is_there(piece, lengths) for piece in parts):
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


@lower("fast_run", position=AFTER_MERGE, tidies=True)
def join_at_once(fgraph):
    """join(0, x[a:b], x[b:c]) -> x[a:c], and what else `join_slices` and `reroll_stacks` find.

    They come again when the graph is canonical. Cost: PyTensor's first rewrites, which visit all
    nodes, find those of one batch and not the slices of N values and the parts of N gradients: two
    thirds of the compilation of 1000 latent vectors.
    """
    join_slices(fgraph)
    if is_active("reroll"):
        reroll_stacks(fgraph)


def parts_of_join(node, lengths: dict[Variable, int]) -> list[Piece | Variable]:
    """The inputs of a join along the first axis, and the pieces of those that are all there."""
    pieces = [piece_of(inp) for inp in node.inputs]
    # it is an error where the lengths of the other axes differ
    known = {inp.type.shape[1:] for inp in node.inputs}
    known |= {piece.shape[1:] for piece in pieces if piece and is_there(piece, lengths)}
    return [
        piece
        if piece
        and (
            is_there(piece, lengths)
            or (inp.type.shape[0] == piece.shape[0] and piece.shape[1:] in known)
        )
        else inp
        for inp, piece in zip(node.inputs, pieces, strict=True)
    ]


def sure_lengths(fgraph) -> dict[Variable, int]:
    """How many entries vectors of unknown length have if there is no error in a piece of them."""
    lengths: dict[Variable, int] = {}
    if all(getattr(var.type, "shape", ()) != (None,) for var in fgraph.variables):
        return lengths
    for node in fgraph.apply_nodes:
        read = [(out, piece_of_read(out)) for out in node.outputs]
        sure = [piece for out, piece in read if piece is not None and is_sure(out, piece)]
        if isinstance(node.op, SpecifyShape | Reshape) and None not in node.outputs[0].type.shape:
            sure += whole_parts(node.inputs[0], math.prod(node.outputs[0].type.shape))
        for piece in sure:
            lengths[piece.source] = max(lengths.get(piece.source, 0), last(piece))
    return lengths


def whole_parts(joined: Variable, size: int) -> list[Piece]:
    """The pieces of a join, if it has `size` entries only if they are all there."""
    if not isinstance(joined.owner_op, Join):
        return []
    pieces = [piece_of(part) for part in joined.owner.inputs]
    shapes = [
        piece.shape if piece else part.type.shape
        for part, piece in zip(joined.owner.inputs, pieces, strict=True)
    ]
    if any(None in shape for shape in shapes) or sum(map(math.prod, shapes)) != size:
        return []
    return [piece for piece in pieces if piece]


def is_there(piece: Piece, lengths: dict[Variable, int]) -> bool:
    """Whether the source has all entries of a piece."""
    return piece.source.type.shape[0] is not None or last(piece) <= lengths.get(piece.source, 0)


def last(piece: Piece) -> int:
    """How many entries the source must have."""
    return int(piece.positions.max()) + 1


def is_sure(var: Variable, piece: Piece) -> bool:
    """Whether it is an error where `var` is made if its source is shorter than the piece needs."""
    while var.owner is not None:
        [inner, *_] = var.owner.inputs
        match var.owner.op:
            case AdvancedSubtensor() | Subtensor(idx_list=(int(),)):
                return True
            case SpecifyShape() | Reshape() if None not in var.type.shape:
                if math.prod(var.type.shape) == len(piece.positions):
                    return True
            case DimShuffle(drop=drop) if any(inner.type.shape[axis] != 1 for axis in drop):
                return True
        var = inner
    return False


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


def piece_of_read(var: Variable) -> Piece | None:
    """The piece that an array of any dimensions is, with its own shape."""
    if not isinstance(var.type, TensorType):
        return None
    if var.type.ndim:
        return piece_of(var)
    piece = entry_of(var)
    return piece if piece is None else Piece(piece.source, piece.positions, ())


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
    """(x, index) for ``x[index]`` of a vector, with a constant vector of positions from 0 on.

    The same for ``piece[index]`` of a piece of x that is all there.
    """
    match var.owner_op_and_inputs:
        case (AdvancedSubtensor(idx_list=(0,)), source, Constant(data=index)) if (
            source.type.ndim == 1 and index.ndim == 1 and index.size
        ):
            if index.dtype.kind not in "iu" or index.min() < 0:
                return None
            index = index.astype("int64")
            inner = piece_of(source)
            if (
                inner is not None
                and index.max() < len(inner.positions)
                and (inner.source.type.shape[0] is not None or is_sure(source, inner))
            ):
                return inner.source, inner.positions[index]
            return source, index
    return None


def slice_of(var: Variable) -> tuple[Tensor, np.ndarray] | None:
    """(x, [a, a + c, ...]) for ``x[a:b:c]`` of a vector, with constants and c > 0.

    What a vector of unknown length has if it is long enough, for 0 <= a < b.
    """
    match var.owner_op_and_inputs:
        case (Subtensor(idx_list=(slice(),)) as op, source, *bounds) if source.type.ndim == 1:
            [index] = indices_from_subtensor(bounds, op.idx_list)
            assert isinstance(index, slice)
        case _:
            return None
    bounds = [index.start, index.stop, index.step]
    if not all(bound is None or isinstance(bound, Constant) for bound in bounds):
        return None
    start, stop, step = (
        int(bound.data) if isinstance(bound, Constant) else None for bound in bounds
    )
    if step is not None and step < 1:
        return None
    length = source.type.shape[0]
    if length is None:
        if stop is None or not 0 <= (start or 0) < stop:
            return None
        length = stop
    positions = np.arange(length)[start:stop:step]
    return (source, positions) if positions.size else None
