"""The raveled point of a model, and its gradient -> one node each that cuts or joins the pieces.

PyMC and nutpie compile functions of one vector, which they cut into the variables of a model, and
join the gradients for them to one vector again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.rewriting.basic import copy_stack_trace
from pytensor.link.numba.linker import NumbaLinker
from pytensor.scalar.basic import ScalarType
from pytensor.tensor.basic import Join, scalar_from_tensor, tensor_from_scalar
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.math import Sum
from pytensor.tensor.shape import Reshape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor
from pytensor.tensor.type import TensorType

from pytensor_mvn_rewrites.graph import Tensor
from pytensor_mvn_rewrites.lower._lowered import BackendOp, compiles_for
from pytensor_mvn_rewrites.lower.numba_backend import NumbaGaussianOp
from pytensor_mvn_rewrites.lower.slices import (
    Piece,
    gather_of,
    is_there,
    keeps_order,
    piece_of_read,
    slice_of,
    sure_lengths,
)
from pytensor_mvn_rewrites.ops.gaussian import KernelOp
from pytensor_mvn_rewrites.pipeline import LOWER_POSITION, lower

#: After stage 4 has joined slices
AFTER_SLICES = LOWER_POSITION + 0.05

#: Longer slices stay views; shorter ones are copied, which costs no more than to describe them
MAX_COPIED = 256

#: With more numbers of entries that are not a run, machine code would be too large for the disk
#: cache: Numba stores arrays up to 1 MB
MAX_NUMBERS = 100_000

#: Pieces of a computed vector that are worth a node of their own
MIN_PIECES = 3


@dataclass(frozen=True)
class Place:
    """Where the entries of an array are in a vector.

    Attributes
    ----------
    positions : tuple of int
        Of the entries in row-major order.
    shape : tuple of int
    """

    positions: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def is_run(self) -> bool:
        """Whether the entries lie one after the other."""
        start = self.positions[0]
        return self.positions == tuple(range(start, start + len(self.positions)))


class RavelingOp(BackendOp):
    """Base of the ops between a vector and arrays.

    Parameters
    ----------
    places : tuple of Place
        Of each array. One of no dimensions is a scalar of ``ScalarType``.
    """

    __props__ = ("places",)
    backend = "pytensor_mvn_rewrites.lower.numba"

    def __init__(self, places: tuple[Place, ...]):
        self.places = places

    def __str__(self):
        return f"{type(self).__name__}{{{len(self.places)}}}"


class Unravel(RavelingOp):
    """Arrays of the entries of a vector; an error if the vector is too short."""

    @property
    def length(self) -> int:
        """How many entries the vector must have."""
        return 1 + max(max(place.positions) for place in self.places)

    @property
    def message(self) -> str:
        """The error."""
        return f"The input has fewer than {self.length} entries"

    def make_node(self, x):
        """Arrays of known shapes."""
        outputs = [
            TensorType(x.type.dtype, shape=place.shape)()
            if place.shape
            else ScalarType(x.type.dtype)()
            for place in self.places
        ]
        return Apply(self, [x], outputs)

    def infer_shape(self, node, shapes):
        """The shapes of the places."""
        return [
            tuple(pt.constant(length, dtype="int64") for length in place.shape) or None
            for place in self.places
        ]

    def perform(self, node, inputs, output_storage):
        """Copies of the entries."""
        [x] = inputs
        if len(x) < self.length:
            raise ValueError(self.message)
        for place, storage in zip(self.places, output_storage, strict=True):
            entries = x[list(place.positions)]
            storage[0] = entries.reshape(place.shape) if place.shape else entries[0]


class Ravel(RavelingOp):
    """A vector of the entries of arrays and scalars, the inverse of :class:`Unravel`."""

    @property
    def length(self) -> int:
        """Number of all entries."""
        return sum(len(place.positions) for place in self.places)

    def make_node(self, *parts):
        """A vector of known length."""
        dtype = parts[0].type.dtype
        return Apply(self, list(parts), [TensorType(dtype, shape=(self.length,))()])

    def infer_shape(self, node, shapes):
        """The number of all entries."""
        return [(pt.constant(self.length, dtype="int64"),)]

    def perform(self, node, inputs, output_storage):
        """A new vector."""
        out = np.empty(self.length, node.outputs[0].type.dtype)
        for place, part in zip(self.places, inputs, strict=True):
            out[list(place.positions)] = np.ravel(part)
        output_storage[0][0] = out


@lower("numba", position=AFTER_SLICES, tidies=True)
def unravel_at_once(fgraph):
    """x[[1, 3]], x[4:8].reshape((2, 2)), x[2:3].squeeze(), ... -> Unravel(x).

    Cost: one node instead of one to four for each of the pieces, that is less to compile, and one
    comparison of lengths. PyTensor's gather, to which stage 4 joins slices, compares nothing.
    Declines in graphs without a kernel of ours, unless something gathers from an input, and for
    computed vectors of unknown length or with fewer than `MIN_PIECES`. Long slices and slices that
    may be shorter stay what they are.
    """
    if not compiles_for(fgraph, NumbaLinker):
        return
    kernels = (NumbaGaussianOp, KernelOp)
    has_kernels = any(isinstance(node.op, kernels) for node in fgraph.apply_nodes)
    lengths = sure_lengths(fgraph)
    for x in [*fgraph.inputs, *(out for node in fgraph.toposort() for out in node.outputs)]:
        is_input = x.owner is None
        if not isinstance(x.type, TensorType) or x.type.ndim != 1:
            continue
        if not is_input and (x.type.shape == (None,) or not has_kernels):
            continue
        reads = [client for client, _ in fgraph.clients[x] if reads_pieces(client)]
        pieces = [found for node in reads for found in last_pieces(fgraph, node)]
        if not has_kernels and not any(is_gathered for _, _, is_gathered in pieces):
            continue
        places = places_read(pieces, lengths)
        if len(places) < (2 if is_input else MIN_PIECES):
            continue
        distinct = tuple(dict.fromkeys(places.values()))
        arrays = dict(zip(distinct, Unravel(distinct)(x, return_list=True), strict=True))
        replacements = []
        for var, place in places.items():
            new = arrays[place]
            if not place.shape:
                new = tensor_from_scalar(new).dimshuffle(*("x" * var.type.ndim))
            copy_stack_trace(var, new)
            replacements.append((var, new))
        fgraph.replace_all(replacements, reason="mvn_unravel_at_once", import_missing=True)


def places_read(
    pieces: list[tuple[Variable, Piece, bool]], lengths: dict[Variable, int]
) -> dict[Variable, Place]:
    """Where the pieces of a vector are, of those that are not too long and all there."""
    return {
        # one entry is a scalar, whatever its shape
        var: Place(tuple(piece.positions.tolist()), piece.shape if len(piece.positions) > 1 else ())
        for var, piece, is_gathered in pieces
        if len(piece.positions) <= (MAX_NUMBERS if is_gathered else MAX_COPIED)
        and is_there(piece, lengths)
    }


def reads_pieces(node) -> bool:
    """Whether a node indexes a vector by constants."""
    if not isinstance(node, Apply) or not isinstance(node.op, Subtensor | AdvancedSubtensor):
        return False
    return piece_of_read(node.outputs[0]) is not None


def last_pieces(fgraph, node: Apply) -> Iterator[tuple[Variable, Piece, bool]]:
    """The variables at which a piece is used for more than to reshape it or gather from it.

    With the piece, and whether it is gathered.
    """
    stack = [(node.outputs[0], isinstance(node.op, AdvancedSubtensor))]
    while stack:
        var, is_gathered = stack.pop()
        piece = piece_of_read(var)
        assert piece is not None, "only pieces are followed"
        is_used = False
        for client, position in fgraph.clients[var]:
            gathers = isinstance(client.op, AdvancedSubtensor)
            follows = position == 0 and (gathers or keeps_order(client.op))
            inner = piece_of_read(client.outputs[0]) if follows else None
            if inner is not None and inner.source is piece.source:
                stack.append((client.outputs[0], is_gathered or gathers))
            else:
                is_used = True
        if is_used:
            yield var, piece, is_gathered


@lower("numba", position=AFTER_SLICES, tidies=True)
def ravel_at_once(fgraph):
    """join(0, a.reshape(-1), [b], ...)[permutation] -> Ravel(a, b, ...).

    Cost: one node instead of one for each array that is reshaped, the join and the gather.
    Declines for joins of parts whose lengths are not known or whose dtypes differ.
    """
    if not compiles_for(fgraph, NumbaLinker):
        return
    for node in fgraph.toposort():
        if not isinstance(node.op, Join) or node.op.axis != 0 or node.outputs[0].type.ndim != 1:
            continue
        [old] = node.outputs
        parts = [before_ravel(part) for part in node.inputs]
        if any(None in p.type.shape or p.type.dtype != old.type.dtype for p in parts):
            continue
        lengths = [math.prod(part.type.shape) for part in parts]
        if not all(lengths):
            continue
        positions = np.arange(sum(lengths))
        found = permuted(fgraph, old, len(positions))
        if found is not None and len(positions) <= MAX_NUMBERS:
            old, permutation = found
            positions[permutation] = np.arange(len(permutation))
        parts = [
            as_scalar(fgraph, part) if length == 1 else part
            for part, length in zip(parts, lengths, strict=True)
        ]
        ends = np.cumsum(lengths)
        places = tuple(
            Place(tuple(positions[end - length : end].tolist()), part.type.shape)
            for part, length, end in zip(parts, lengths, ends, strict=True)
        )
        new = Ravel(places)(*(scalar_from_tensor(p) if not p.type.ndim else p for p in parts))
        copy_stack_trace(old, new)
        fgraph.replace(old, new, reason="mvn_ravel_at_once", import_missing=True)


def permuted(fgraph, joined: Variable, length: int) -> tuple[Variable, np.ndarray] | None:
    """(The result, the index) of the gather that permutes a vector, if nothing else reads it."""
    if len(fgraph.clients[joined]) != 1:
        return None
    [(client, _)] = fgraph.clients[joined]
    if not isinstance(client.op, AdvancedSubtensor):
        return None
    gather = gather_of(client.outputs[0])
    if gather is None:
        return None
    source, index = gather
    if source is not joined or not np.array_equal(np.sort(index), np.arange(length)):
        return None
    return client.outputs[0], index


def before_ravel(part: Variable) -> Variable:
    """The array of known shape that a vector ravels, or the vector itself."""
    inner = part
    while inner.owner is not None and keeps_order(inner.owner.op):
        inner = inner.owner.inputs[0]
        if None not in inner.type.shape:
            part = inner
    return part


def as_scalar(fgraph, var: Tensor) -> Tensor:
    """The only entry of an array, of no dimensions, computed without arrays where possible."""
    if not var.type.ndim:
        return var
    if isinstance(var, Constant):
        return pt.constant(var.data.reshape(()), dtype=var.type.dtype)
    match var.owner_op_and_inputs:
        case (DimShuffle() | Reshape(), inp, *_) if set(inp.type.shape) <= {1}:
            return as_scalar(fgraph, inp)
        case (Elemwise() as op, *inputs) if len(fgraph.clients[var]) == len(var.owner.outputs) == 1:
            return op.make_node(*(as_scalar(fgraph, inp) for inp in inputs)).outputs[0]
        case (Sum() as op, x) if len(fgraph.clients[var]) == 1:
            return Sum(dtype=op.dtype, acc_dtype=op.acc_dtype).make_node(x).outputs[0]
        case (Subtensor(idx_list=(slice(),)), x, *_) if (found := slice_of(var)) is not None:
            return x[int(found[1][0])]
    return var.squeeze()
