"""Covariances that are Kronecker products."""

import math
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import ClassVar, Self

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Constant
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.linalg.constructors import BlockDiagonal

from pytensor_mvn_rewrites.graph import Tensor, is_real_float, length, lengths_of
from pytensor_mvn_rewrites.ops import inv_quad_logdet, whiten_by
from pytensor_mvn_rewrites.ops.eigen import SharedRows
from pytensor_mvn_rewrites.ops.gaussian import of_one_batch
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.definiteness import Definiteness, definiteness
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from pytensor_mvn_rewrites.proofs.positivity import is_positive
from pytensor_mvn_rewrites.proofs.symmetry import is_symmetric
from pytensor_mvn_rewrites.proofs.triangularity import Triangularity, triangularity
from pytensor_mvn_rewrites.structure._kron import kron_factors, multiple_of_identity, sizes_of
from pytensor_mvn_rewrites.structure._structure import (
    DECLARE_SYMMETRIC,
    Structure,
    known_cholesky_factor,
)

NOT_SYMMETRIC = "a Kronecker factor is not proven symmetric"


#: With so many times more columns than rows, from this core size on, products with the inverse of
#: a Cholesky factor beat triangular solves (0.4 ms against 1.7 ms for 5000 columns of length 40),
#: and the kernel of the density (2.8 ms against 3.3 ms with gradients, for 100 rows of 40 x 50; for
#: one row, the kernel takes 124 us and the solves 148 us).
BLAS_MIN_N = 16
PRODUCT_RATIO = 8


@structure
@dataclass(frozen=True)
class Kronecker(Structure):
    r"""InvQuadLogdet(delta, kron(A_1, ..., A_m)) -> one Cholesky per Kronecker factor.

    With :math:`A_i = L_i L_i^\top` of size :math:`n_i` and :math:`N = \prod_i n_i`,

    .. math:: \delta^\top \Big(\bigotimes_i A_i\Big)^{-1} \delta
              = \Big\| \Big(\bigotimes_i L_i^{-1}\Big) \delta \Big\|^2, \qquad
              \tfrac12 \log\Big|\bigotimes_i A_i\Big| = \sum_i \frac{N}{n_i} \sum_j \log (L_i)_{jj}

    Each triangular solve runs along one axis of `delta`, reshaped to :math:`(n_1, ..., n_m)`. The
    last axis is left to an ``InvQuadLogdet`` of :math:`A_m` with :math:`N / n_m` rows. The same for
    ``MvNormalLogp``, for precisions, and for Cholesky factors. Cost:
    :math:`O(N^3) \to O(\sum_i n_i^3 + N \sum_i n_i)`, and no :math:`N \times N` matrix.

    Positive definite exactly when the dense matrix is: the eigenvalues of
    :math:`c \bigotimes_i A_i` are all the products of c and one eigenvalue of each :math:`A_i`. If
    these are positive, then the eigenvalues of each :math:`A_i` have one sign, that of
    :math:`e_1^\top A_i e_1`, call it :math:`s_i`. So the matrix is positive definite if and only if
    :math:`s_i A_i` for i > 1 and :math:`c\, s_2 \cdots s_m A_1` are, and these are factored.

    The lower triangle of the dense matrix, which is all that counts, has the upper triangles of
    all Kronecker factors but the first in it. Declines unless these are proven symmetric, and for
    multiples of an identity among the Kronecker factors (they are block-diagonal). A size may be
    unknown if the Kronecker factor is proven symmetric, and so square, and N is known.
    """

    params: ClassVar = ("cov", "chol", "tau")

    fgraph: FunctionGraph | None
    #: Shape (..., n_i, n_i), all positive definite if the product is.
    factors: list[Tensor]
    #: Their n_i.
    sizes: list

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Take the product apart, and prove its factors symmetric."""
        scale, factors = kron_factors(matrix)
        if len(factors) == 1 or not is_real_float(matrix, *factors):
            return None
        sizes = sizes_of(fgraph, factors, n)
        if sizes is None:
            return None
        if any(multiple_of_identity(factor) is not None for factor in factors):
            return None
        if param == "chol" and not all(
            triangularity(fgraph, factor) is Triangularity.CHOLESKY for factor in factors
        ):
            return None
        if any(factor.type.dtype != matrix.type.dtype for factor in factors):
            return None
        if param != "chol" and not all(is_symmetric(fgraph, factor) for factor in factors[1:]):
            return cls.declined(NOT_SYMMETRIC, DECLARE_SYMMETRIC)
        return cls(fgraph, with_positive_signs(fgraph, scale, factors, param), sizes)

    def quad_logdet(self, delta, param):
        """The identity."""
        if delta.type.broadcastable[-1]:
            return None
        return whiten_along_axes(self.fgraph, delta, self.factors, self.sizes, param)


def with_positive_signs(fgraph, scale, factors: list[Tensor], param: str) -> list[Tensor]:
    """Kronecker factors of the same product that are all positive definite if the product is."""
    first, *others = factors
    signs: list[Tensor] = [] if scale is None else [scale]
    signed: list[Tensor] = []
    for factor in others:
        if has_positive_sign(fgraph, factor, param):
            signed.append(factor)
            continue
        sign = pt.sign(factor[..., 0, 0])[..., None, None]
        signs.append(sign)
        signed.append(sign * factor)
    return [reduce(mul, signs, first), *signed]


def has_positive_sign(fgraph, factor: Tensor, param: str) -> bool:
    """Whether `factor` is proven not to be negative definite, or to have a negative diagonal."""
    if param == "chol":
        return triangularity(fgraph, factor, trusting=False) is Triangularity.CHOLESKY
    # entries that are positive, as those of most covariance functions, are so on the diagonal
    return is_positive(factor) or definiteness(fgraph, factor) is not Definiteness.UNKNOWN


def whiten_along_axes(fgraph, delta, factors: list[Tensor], sizes: list, param: str):
    """quaddist, half_logdet and posdef of a Kronecker product."""
    *first, last = factors
    total = math.prod(sizes)
    half_logdets, posdefs = [], []
    # rows that share the matrix count as one more axis behind all the others
    shared = SharedRows(delta, max(factor.type.ndim - 2 for factor in factors))
    n_rows = length(shared.rows, -2) if shared.leading else 1
    columns = shared.rows.mT if shared.leading else delta
    batch = lengths_of(delta, len(shared.leading), -1)
    # invariant: the axis of the next Kronecker factor comes first, the others follow in a cycle
    columns = columns.reshape((*batch, sizes[0], n_rows * total // sizes[0]))
    for factor, size, next_size in zip(first, sizes[:-1], sizes[1:], strict=True):
        if param == "cov" and factor.type.ndim == 2 and is_plain(fgraph, factor):
            columns, half_logdet, posdef = whiten_by(factor, columns)
        else:
            chol = factor if param == "chol" else pt.linalg.cholesky(factor, lower=True)
            diag = pt.diagonal(chol, axis1=-2, axis2=-1)
            half_logdet, posdef = pt.log(diag).sum(axis=-1), pt.all(diag > 0, axis=-1)
            columns = whiten_columns(columns, chol, param)
        sign = -1 if param == "tau" else 1
        times = pt.as_tensor(sign * (total // size)).astype(half_logdet.type.dtype)
        half_logdets.append(times * half_logdet)
        posdefs.append(posdef)
        batch = lengths_of(columns, 0, -2)
        columns = columns.mT.reshape((*batch, next_size, n_rows * total // next_size))
    # one matrix for all rows
    last = last[..., None, :, :] if last.type.ndim > 2 else last
    outputs = whitened_sums(columns, last, param)
    if shared.leading:
        blocks = (out.reshape((*lengths_of(out, 0, -1), n_rows, -1)) for out in outputs)
        outputs = [shared.unfold(out, 1) for out in blocks]
    quaddist, half_logdet, posdef = outputs
    return (
        quaddist.sum(axis=-1),
        sum(half_logdets, start=half_logdet.sum(axis=-1)),
        reduce(pt.and_, posdefs, posdef.all(axis=-1)),
    )


def is_plain(fgraph, matrix: Tensor) -> bool:
    """Whether nothing is known of a matrix that makes its Cholesky factor cheaper."""
    match matrix.owner_op_and_inputs:
        case (BlockDiagonal() | Blockwise(BlockDiagonal()), *_):
            return False
    return (
        not isinstance(matrix, Constant)
        and diagonal_of(matrix) is None
        and known_cholesky_factor(fgraph, matrix) is None
    )


def whitened_sums(columns, matrix, param: str):
    """``inv_quad_logdet(columns.mT, matrix)``, by matrix products where these are large."""
    if not prefers_products(columns):
        return inv_quad_logdet(columns.mT, matrix, param)
    if matrix.type.ndim > 2:
        matrix = matrix[..., 0, :, :]
    chol = matrix if param == "chol" else pt.linalg.cholesky(matrix, lower=True)
    diag = pt.diagonal(chol, axis1=-2, axis2=-1)
    quaddist = (whiten_columns(columns, chol, param) ** 2).sum(axis=-2)
    half_logdet = (-1 if param == "tau" else 1) * pt.log(diag).sum(axis=-1)[..., None]
    posdef = pt.all(diag > 0, axis=-1)[..., None]
    return of_one_batch(quaddist, half_logdet, posdef)


def whiten_columns(columns, chol, param: str):
    """Whiten each column; `chol` is the Cholesky factor of its matrix."""
    if param == "tau":
        return pt.tril(chol).mT @ columns
    if prefers_products(columns):
        eye = pt.constant(np.eye(columns.type.shape[-2], dtype=chol.type.dtype))
        return pt.linalg.solve_triangular(chol, eye, lower=True, b_ndim=2) @ columns
    return pt.linalg.solve_triangular(chol, columns, lower=True, b_ndim=2)


def prefers_products(columns) -> bool:
    """Whether there are so many columns that products beat triangular solves."""
    n, n_columns = columns.type.shape[-2:]
    if n is None or n_columns is None:
        return False
    return n >= BLAS_MIN_N and n_columns >= PRODUCT_RATIO * n
