"""Covariances that are sums of two Kronecker products: separable signal plus separable noise."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import pytensor.tensor as pt
from pytensor.scalar.basic import Mul
from pytensor.tensor.basic import Alloc
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.shape import Reshape

from pytensor_mvn_rewrites.graph import (
    Tensor,
    dimshuffled,
    is_real_float,
    length,
    lengths_of,
    static_size,
)
from pytensor_mvn_rewrites.ops import noisy_kronecker_quad_logdet
from pytensor_mvn_rewrites.ops.eigen import SharedRows
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.definiteness import Definiteness, definiteness
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of, product, without_round_trip
from pytensor_mvn_rewrites.proofs.positivity import is_positive
from pytensor_mvn_rewrites.proofs.symmetry import is_symmetric
from pytensor_mvn_rewrites.structure._kron import (
    kron_factors,
    multiple_of_identity,
    without_batch_dims,
)
from pytensor_mvn_rewrites.structure._structure import Structure, known_cholesky_factor
from pytensor_mvn_rewrites.structure._sums import terms_of_sum

NOT_PROVEN = "neither of two Kronecker products has factors that are all proven positive definite"
DECLARE = "declare it by pytensor.assumptions.assume(matrix, positive_definite=True)"


class Root(NamedTuple):
    """The Cholesky factor of a stack of matrices."""

    #: None where the matrices are diagonal.
    chol: Tensor | None
    #: Its diagonal, shape (..., n).
    diag: Tensor

    def whiten(self, columns) -> Tensor:
        """The inverse of the Cholesky factor times `columns`."""
        if self.chol is None:
            return columns / self.diag[..., :, None]
        return pt.linalg.solve_triangular(self.chol, columns, lower=True, b_ndim=2)


class Term(NamedTuple):
    """A stack of ``scale * kron(*factors)``."""

    #: Shape (...).
    scale: Tensor
    factors: list[Tensor]


@structure
@dataclass(frozen=True)
class KroneckerSum(Structure):
    r"""InvQuadLogdet(delta, kron(A, B) + s * kron(C, D)) -> NoisyKroneckerQuadLogdet.

    With :math:`C = L_C L_C^\top`, :math:`D = L_D L_D^\top`, :math:`\tilde A = L_C^{-1} A
    L_C^{-\top}` and :math:`\tilde B = L_D^{-1} B L_D^{-\top}`,

    .. math:: A \otimes B + s\, C \otimes D = (L_C \otimes L_D)
              \big(\tilde A \otimes \tilde B + s I\big) (L_C \otimes L_D)^\top

    The same for ``MvNormalLogp``, and for products of more Kronecker factors of the same sizes.
    Cost: :math:`O(N^3) \to O(\sum_k n_k^3 + N \sum_k n_k)`, and no :math:`N \times N` matrix.
    NaN unless all eigenvalues are positive, as the Cholesky factorization of the dense matrix.

    Declines unless all sizes are known, one of the products has Kronecker factors that are all
    proven positive definite (diagonal ones are preferred), and those of the other are proven
    symmetric. Rounding errors grow with the condition number of the product that whitens.

    Source: Rakitsch, Lippert, Borgwardt and Stegle, It is all in the noise, 2013, section 3.
    """

    #: The term that whitens, and the Cholesky factors of its Kronecker factors.
    noise: Term
    roots: list[Root]
    signal: Term

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Find the term that is proven positive definite."""
        terms = kron_terms(matrix)
        if terms is None or n not in (None, matrix.type.shape[-1]):
            return None
        # the whitened matrix may have a larger condition number than the sum
        terms.sort(key=lambda term: sum(diagonal_of(factor) is None for factor in term.factors))
        for noise, signal in (terms, terms[::-1]):
            roots = [root for factor in noise.factors if (root := root_of(fgraph, factor))]
            if len(roots) == len(noise.factors) and all(
                is_symmetric(fgraph, factor) for factor in signal.factors
            ):
                return cls(noise, roots, signal)
        return cls.declined(NOT_PROVEN, DECLARE)

    def quad_logdet(self, delta, param):
        """The identity."""
        noise, roots, signal = self.noise, self.roots, self.signal
        if delta.type.broadcastable[-1]:
            return None
        pairs = list(zip(roots, signal.factors, strict=True))
        first, *others = (root.whiten(root.whiten(factor).mT) for root, factor in pairs)
        factors = [signal.scale[..., None, None] * first, *others]
        rows = SharedRows(delta, max(part.type.ndim - 2 for part in (*factors, *noise.factors)))
        whitened = rows.unfold(whiten_rows(rows.rows, roots), 1)
        quaddist, half_logdet, posdef = noisy_kronecker_quad_logdet(whitened, noise.scale, factors)
        sizes = [root.diag.type.shape[-1] for root in roots]
        for root, size in zip(roots, sizes, strict=True):
            half_logdet += (math.prod(sizes) // size) * pt.log(root.diag).sum(axis=-1)
            posdef &= (root.diag > 0).all(axis=-1)
        return quaddist, half_logdet, posdef


def kron_terms(matrix: Tensor) -> list[Term] | None:
    """The two terms of a sum of Kronecker products of matrices of the same sizes."""
    sums = terms_of_sum(without_batch_dims(matrix))
    if len(sums) != 2:
        return None
    scaled = [(sign, *kron_factors(term)) for sign, term in sums]
    # PyTensor makes diagonal matrices of Kronecker products of diagonal matrices
    known = max((factors for _, _, factors in scaled), key=len)
    sizes = [static_size(factor) for factor in known]
    if len(sizes) == 1 or None in sizes or 0 in sizes:
        return None
    terms: list[Term] = []
    dtype = matrix.type.dtype
    for sign, scale, factors in scaled:
        if len(factors) == 1:
            factors = diagonal_factors(factors[0], sizes) or factors
        if [static_size(factor) for factor in factors] != sizes or not is_real_float(*factors):
            return None
        scale = pt.ones((), dtype=dtype) if scale is None else scale[..., 0, 0].astype(dtype)
        terms.append(Term(sign * scale, [factor.astype(dtype) for factor in factors]))
    if all(multiple_of_identity(term.factors[0]) is not None for term in terms):
        # block-diagonal
        return None
    return terms


def diagonal_factors(matrix: Tensor, sizes: list[int | None]) -> list[Tensor] | None:
    """The Kronecker factors of ``diag(outer(c, d).ravel())``, diagonal matrices of given sizes."""
    diag = diagonal_of(matrix)
    if diag is None:
        return None
    match diag.owner_op_and_inputs:
        case (Reshape(), grid, _) if grid.type.shape == (*diag.type.shape[:-1], *sizes):
            pass
        case _:
            return None
    match grid.owner_op_and_inputs:
        case (Elemwise(scalar_op=Mul()), *parts):
            pass
        case (Alloc(), part, *_) if part.type.ndim == grid.type.ndim:
            parts = [part]
        case _:
            return None
    # parts vary along rows or columns, and a factor without a part is an identity
    n_batch = grid.type.ndim - 2
    diags: list[Tensor] = [pt.constant(np.ones(size), dtype=diag.type.dtype) for size in sizes]
    for part in parts:
        if all(length != 1 for length in part.type.shape[-2:]):
            return None
        axis = 0 if part.type.broadcastable[-1] else 1
        vector = without_round_trip(dimshuffled(part, (*range(n_batch), n_batch + axis)))
        diags[axis] = product([diags[axis], vector])
    return [diagonal_matrix(diag) for diag in diags]


def diagonal_matrix(diag: Tensor) -> Tensor:
    """``diag(diag)`` for each vector of a stack of known lengths."""
    return diag[..., None] * np.eye(diag.type.shape[-1], dtype=diag.type.dtype)


def root_of(fgraph, matrix: Tensor) -> Root | None:
    """The Cholesky factor of matrices that are proven positive definite."""
    diag = diagonal_of(matrix)
    if diag is not None:
        return Root(None, pt.sqrt(diag)) if is_positive(diag) else None
    chol = known_cholesky_factor(fgraph, matrix)
    if chol is None:
        if definiteness(fgraph, matrix) is not Definiteness.DEFINITE:
            return None
        chol = pt.linalg.cholesky(matrix, lower=True)
    return Root(chol, pt.diagonal(chol, axis1=-2, axis2=-1))


def whiten_rows(rows, roots: list[Root]) -> Tensor:
    """The inverse of a Kronecker product of Cholesky factors times each row: (..., r, n)."""
    n_rows, n = length(rows, -2), length(rows)
    # invariant: the axis of the next Cholesky factor comes last, those before it come first
    for root in reversed(roots):
        size = length(root.diag)
        rows = rows.reshape((*lengths_of(rows, 0, -2), n_rows * n // size, size))
        rows = root.whiten(rows.mT)
    return rows.reshape((*lengths_of(rows, 0, -2), n, n_rows)).mT
