"""Covariances whose rows and columns are in another order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Constant
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.math import Dot
from pytensor.tensor.shape import specify_shape
from pytensor.tensor.subtensor import AdvancedSubtensor, indices_from_subtensor

from pytensor_mvn_rewrites.graph import (
    Tensor,
    is_full_slice,
    is_mask,
    is_real_float,
    static_size,
)
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.constants import constant_value
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from pytensor_mvn_rewrites.proofs.symmetry import is_symmetric
from pytensor_mvn_rewrites.structure._assemble import outputs_like
from pytensor_mvn_rewrites.structure._structure import DECLARE_SYMMETRIC, Structure


@structure
@dataclass(frozen=True)
class Permuted(Structure):
    r"""MvNormalLogp(x, mu, S[p][:, p]) -> MvNormalLogp(x[q], mu[q], S), q the inverse of p.

    .. math:: \delta^\top (P \Sigma P^\top)^{-1} \delta
              = (P^\top \delta)^\top \Sigma^{-1} (P^\top \delta), \qquad
              |P \Sigma P^\top| = |\Sigma|

    The same for ``InvQuadLogdet`` and for precisions. The gather may sit below elementwise ops and
    products, where PyTensor moves it, beside constants, diagonals, and scales of rows and columns,
    which are taken back to the order of S. Cost: n entries are moved, not n^2, and the rules for
    what S is made of apply.
    Declines unless p is a constant permutation of known length, the same for rows and columns, and
    S is proven symmetric: a factorization reads one triangle, and p moves entries to the other.
    """

    params: ClassVar = ("cov", "tau")

    #: The q for which ``S = matrix[q][:, q]``.
    inverse: np.ndarray
    #: The S, shape (..., n, n).
    inner: Tensor

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Take all permutations off, however many there are on top of each other."""
        size = static_size(matrix)
        if size in (None, 1) or not is_real_float(matrix):
            return None
        found = first_permutation(matrix)
        if found is None or len(found) != size:
            return None
        inverse = np.argsort(found)
        inner = InOrder(inverse).of(matrix)
        if inner is None:
            return None
        if not is_symmetric(fgraph, inner):
            return cls.declined(
                "the matrix that is permuted is not proven symmetric", DECLARE_SYMMETRIC
            )
        return cls(inverse, inner)

    def outputs(self, node):
        """The same op, with the entries of the vectors in the order of S."""
        n = len(self.inverse)
        if any(vector.type.shape[-1] not in (None, n) for vector in node.inputs[:-1]):
            return None
        vectors = []
        for vector in node.inputs[:-1]:
            if vector.type.shape[-1] is None:
                # a gather would accept a vector that is too long
                vector = specify_shape(vector, (*(None,) * (vector.type.ndim - 1), n))
            vectors.append(vector[..., self.inverse])
        new = type(node.op)(param=node.op.param)(*vectors, self.inner, return_list=True)
        return outputs_like(node, new)


def first_permutation(matrix: Tensor) -> np.ndarray | None:
    """The first p by which rows or columns are permuted at `matrix` or below it."""
    todo, seen = [matrix], {matrix}
    for var in todo:
        for _, *found in permuted(var):
            return next(p for p in found if p is not None)
        match var.owner_op_and_inputs:
            case (Elemwise() | Dot() | Blockwise(Dot()) | DimShuffle(is_matrix_transpose=True), *_):
                todo += [inp for inp in dict.fromkeys(var.owner.inputs) if inp not in seen]
                seen.update(var.owner.inputs)
    return None


class InOrder:
    """The S of ``S[p][:, p]``, where that takes no gather of a matrix; q is the inverse of p."""

    def __init__(self, inverse: np.ndarray):
        self.inverse = inverse
        self.known: dict[tuple[Tensor, bool, bool], Tensor | None] = {}

    def of(self, var: Tensor, rows: bool = True, columns: bool = True) -> Tensor | None:
        """``var[q][:, q]``, or of the rows or the columns alone; None if that takes a gather."""
        one_row, one_column = var.type.broadcastable[-2:]
        key = var, rows and not one_row, columns and not one_column
        if key not in self.known:
            self.known[key] = self._of(*key)
        return self.known[key]

    def _of(self, var, rows, columns) -> Tensor | None:
        if not rows and not columns:
            return var
        if isinstance(var, Constant):
            data = np.asarray(var.data)
            data = data[..., self.inverse, :] if rows else data
            return pt.constant(data[..., self.inverse] if columns else data)
        wanted = [np.argsort(self.inverse) if axis else None for axis in (rows, columns)]
        for source, *found in permuted(var):
            if all(map(_same, found, wanted)):
                return source
        match var.owner_op_and_inputs:
            case (Elemwise() as op, *inputs) if len(var.owner.outputs) == 1:
                return self._apply(op, [self.of(inp, rows, columns) for inp in inputs], var, rows)
            case (Dot() | Blockwise(Dot()) as op, left, right):
                parts = [self.of(left, rows, False), self.of(right, False, columns)]
                return self._apply(op, parts, var, rows)
            case (DimShuffle(is_matrix_transpose=True), inner):
                below = self.of(inner, columns, rows)
                return None if below is None else below.mT
        return self._last_resort(var, rows)

    def _apply(self, op, inputs, var, rows) -> Tensor | None:
        return self._last_resort(var, rows) if None in inputs else op(*inputs)

    def _last_resort(self, var, rows) -> Tensor | None:
        """A gather of scales or of a diagonal."""
        n = len(self.inverse)
        if n not in var.type.shape[-2:]:
            # a gather would accept scales that are too many
            return None
        match var.owner_op_and_inputs:
            case (DimShuffle() as op, vector) if vector.type.ndim == 1:
                key = vector, False, False
                if key not in self.known:
                    self.known[key] = vector[self.inverse]
                return op(self.known[key])
        if var.type.broadcastable[-1]:
            return var[..., self.inverse, :]
        if var.type.broadcastable[-2]:
            return var[..., self.inverse]
        diag = diagonal_of(var) if var.type.ndim == 2 else None
        if diag is None or diag.type.shape[-1] != n:
            return None
        return pt.diag(diag[self.inverse])


def permuted(
    matrix: Tensor,
) -> Iterator[tuple[Tensor, np.ndarray | None, np.ndarray | None]]:
    """Each S, r, c with ``matrix == S[r][:, c]``, permutations; None for what is not indexed."""
    rows = columns = None
    deepest = []
    while isinstance(matrix.owner_op, AdvancedSubtensor):
        taken = positions(matrix)
        if taken is None:
            break
        matrix = matrix.owner.inputs[0]
        rows, columns = _after(taken[0], rows), _after(taken[1], columns)
        deepest.append((matrix, rows, columns))
    yield from reversed(deepest)


def _after(first, then):
    """One permutation after the other."""
    return then if first is None else first if then is None else first[then]


def _same(one, other) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)


def positions(gather: Tensor) -> tuple[np.ndarray | None, np.ndarray | None] | None:
    """The rows and the columns that `gather` takes, if each are all of them in some order."""
    source, *variables = gather.owner.inputs
    if source.type.ndim != gather.type.ndim or source.type.ndim < 2:
        return None
    index = list(indices_from_subtensor(variables, gather.owner.op.idx_list))
    index += [slice(None)] * (source.type.ndim - len(index))
    *batch, rows, columns = index
    if not all(map(is_full_slice, batch)):
        return None
    m, n = source.type.shape[-2:]
    if is_full_slice(rows):
        taken = permutation(columns, n, (n,))
        return None if taken is None else (None, taken)
    if is_full_slice(columns):
        taken = permutation(rows, m, (m,))
        return None if taken is None else (taken, None)
    taken, also_taken = permutation(rows, m, (m, 1)), permutation(columns, n, (n,), (1, n))
    return None if taken is None or also_taken is None else (taken, also_taken)


def permutation(index, n: int | None, *shapes: tuple[int | None, ...]) -> np.ndarray | None:
    """An index of an axis of length n, of one of the `shapes`, if it is a permutation."""
    if n is None or isinstance(index, slice) or is_mask(index) or index.type.ndim > 2:
        return None
    value = constant_value(index)
    if value is None or value.shape not in shapes:
        return None
    value = value.ravel().astype("int64")
    value = np.where(value < 0, value + n, value)
    return value if np.array_equal(np.sort(value), np.arange(n)) else None
