"""Covariances and precisions of low rank plus a diagonal: factor models, random effects."""

from dataclasses import dataclass
from functools import reduce
from operator import add, matmul, mul
from typing import ClassVar, Self

import numpy as np
import pytensor.tensor as pt
from pytensor.assumptions import check_assumption
from pytensor.graph.basic import Constant
from pytensor.scalar.basic import Add, Mul
from pytensor.tensor.basic import Alloc
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import Dot
from pytensor.tensor.shape import SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pytensor_mvn_rewrites.graph import (
    Tensor,
    is_real_float,
    is_square_of,
    matrix_view,
    spans_matrix,
    takes_whole_matrices,
    transposed,
    without_leading_ones,
)
from pytensor_mvn_rewrites.ops import low_rank_quad_logdet
from pytensor_mvn_rewrites.ops.low_rank import times
from pytensor_mvn_rewrites.pipeline import FREEZE, structure
from pytensor_mvn_rewrites.proofs.constants import scalar_constant
from pytensor_mvn_rewrites.proofs.declared import NARROW, NARROW_RATIO
from pytensor_mvn_rewrites.proofs.definiteness import Definiteness, definiteness
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from pytensor_mvn_rewrites.proofs.positivity import is_positive
from pytensor_mvn_rewrites.proofs.symmetry import dot_chain, is_transpose
from pytensor_mvn_rewrites.structure._structure import Structure

#: Smaller dense matrices are factored faster: 1.3 times at n = 16, but 0.65 times at n = 32 (value
#: and gradient on Numba, rank n / 8).
MIN_SIZE = 24

#: The same for a batch of them, where the dense kernels were 2.1 times faster at n = 32.
MIN_SIZE_IN_BATCH = 64

#: Why a matrix is left alone, and the remedy.
NOT_POSITIVE = (
    "the diagonal is not proven positive: the sum may be positive definite all the same",
    "write it as exp(...) or as the square of a positive number",
)
RANK_UNKNOWN = (
    "the rank is not known",
    f"give the parameter a shape or dims of its own, or {FREEZE}",
)


@structure
@dataclass(frozen=True)
class LowRankPlusDiagonal(Structure):
    r"""InvQuadLogdet(delta, W @ W.T + diag(d)) -> LowRankQuadLogdet(delta, W, d).

    By the matrix determinant lemma and Woodbury's identity, with the capacitance matrix
    :math:`M = I_k + W^\top D^{-1} W`,

    .. math:: \log|W W^\top + D| = \log|D| + \log|M|, \qquad
              (W W^\top + D)^{-1} = D^{-1} - D^{-1} W M^{-1} W^\top D^{-1}

    For a precision the quadratic form is :math:`\|W^\top \delta\|^2 + \|D^{1/2} \delta\|^2`. The
    same for ``MvNormalLogp``, for sums of several products, and for ``W @ C @ W.T`` with a C that
    is proven positive definite. Cost: :math:`O(n^3) \to O(n k^2)`, without a matrix of size n.

    Declines unless n is known, by the vector or the matrix, and k is small against n; it may be the
    present length of a dimension of the model, on which no result depends. Declines too, as the sum
    may be positive definite although an entry of d is not positive, unless d is proven positive. A
    multiple of the identity needs no proof where k < n is known: that multiple is an eigenvalue.
    """

    params: ClassVar = ("cov", "tau")

    #: The W, shape (..., n, k), and d, shape (..., n).
    factor: Tensor
    diag: Tensor

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Take the sum apart, and prove it narrow and its diagonal positive."""
        n = n or matrix.type.shape[-1]
        found = low_rank_plus_diagonal(fgraph, matrix, n)
        if n is None or found is None or not is_real_float(matrix, *found):
            return None
        factor, diag = found
        sizes = (factor.type.shape[-2], *matrix.type.shape[-2:])
        if any(size not in (None, n) for size in sizes) or factor.type.dtype != matrix.type.dtype:
            return None
        if n < (MIN_SIZE if factor.type.ndim == 2 else MIN_SIZE_IN_BATCH):
            return None
        k = factor.type.shape[-1]
        if k is None and not is_narrow(fgraph, factor):
            return cls.declined(*RANK_UNKNOWN)
        if k is not None and n < NARROW_RATIO * k:
            return None
        # a matrix of another size is an error either way, and JAX wants to know
        batch = (None,) * (factor.type.ndim - 2)
        factor = pt.specify_shape(factor, (*batch, n, None)) if None in sizes else factor
        # with k >= n, as a dimension may become, the sum can be definite whatever the diagonal is
        if not is_positive(diag) and (k is None or not is_uniform(diag)):
            return cls.declined(*NOT_POSITIVE)
        return cls(factor, diag)

    def quad_logdet(self, delta, param):
        """The identity."""
        if delta.type.shape[-1] not in (None, self.factor.type.shape[-2]):
            return None
        quaddist, half_logdet, posdef = low_rank_quad_logdet(delta, self.factor, self.diag)
        if param == "cov":
            return quaddist, half_logdet, posdef
        projected = times(self.factor.mT, delta)
        quaddist = (projected**2).sum(axis=-1) + (delta**2 * self.diag).sum(axis=-1)
        # as in the dense graph, no number where there is no factorization
        return quaddist + 0 * half_logdet, -half_logdet, posdef


def is_narrow(fgraph, factor) -> bool:
    """Whether a factor has few columns with the present `dims` of the model."""
    if check_assumption(fgraph, factor, NARROW):
        return True
    match factor.owner_op_and_inputs:
        case (Elemwise(), *inputs):
            return any(is_narrow(fgraph, inp) for inp in inputs if spans_matrix(inp))
        case (Dot() | Blockwise(Dot()), _, right):
            k = right.type.shape[-1]
            return k is not None and k <= MIN_SIZE // NARROW_RATIO
        case (Subtensor() | AdvancedSubtensor(), stack, *_):
            return takes_whole_matrices(factor.owner) and is_narrow(fgraph, stack)
        case (SpecifyShape(), inner, *_):
            return is_narrow(fgraph, inner)
    view = matrix_view(factor)
    return view.core is not factor and not view.transposed and is_narrow(fgraph, view.core)


def low_rank_plus_diagonal(fgraph, matrix, n: int | None = None) -> tuple[Tensor, Tensor] | None:
    """The W and d of a sum of products ``W @ W.mT`` and of diagonal matrices."""
    matrix = without_leading_ones(matrix, 2)
    match matrix.owner_op_and_inputs:
        case (Elemwise(scalar_op=Add()), *terms):
            pass
        case _:
            return None
    factors, diags = [], []
    for term in terms:
        diag = diagonal_of(term) if spans_matrix(term) else None
        if diag is not None:
            diags.append(diag)
            continue
        factor = gram_factor(fgraph, term, n or matrix.type.shape[-1])
        if factor is None:
            return None
        factors.append(factor)
    if not factors or not diags:
        return None
    if len(factors) > 1 and any(factor.type.ndim > 2 for factor in factors):
        return None
    factor = factors[0] if len(factors) == 1 else pt.join(-1, *factors)
    return factor, reduce(add, diags)


def gram_factor(fgraph, term, n: int | None) -> Tensor | None:
    """The W, shape (..., n, k), of a term that is ``W @ W.mT``."""
    if isinstance(term, Constant) and spans_matrix(term):
        return gram_factor_of_constant(term)
    if all(term.type.broadcastable[-2:]):
        # one number in all entries
        root = square_root(term)
        return None if root is None or n is None else root * pt.ones((n, 1), dtype=term.type.dtype)
    weights, cores = split_weights(term)
    match cores:
        case [Constant() as core]:
            factor = gram_factor_of_constant(core)
        case [core]:
            factor = gram_factor_of_product(fgraph, core)
        case [column, row] if column.type.broadcastable[-2:] in ((False, True), (True, False)):
            if row.type.broadcastable[-1]:
                column, row = row, column
            factor = column if is_transpose(fgraph, column, row) else None
        case _:
            return None
    roots = [square_root(weight) for weight in weights]
    if factor is None or any(root is None for root in roots):
        return None
    return reduce(mul, roots, factor)


def gram_factor_of_product(fgraph, product) -> Tensor | None:
    """The same for ``W @ W.mT``, ``W @ C @ W.mT`` and ``(W * c) @ W.mT``."""
    chain = dot_chain(product)
    if len(chain) < 2:
        return None
    outer_left, outer_right = product.owner.inputs
    if is_transpose(fgraph, outer_left, outer_right):
        return outer_left
    half = len(chain) // 2
    left, middle, right = chain[:half], chain[half : len(chain) - half], chain[-half:][::-1]
    weights = []
    for i, (one, other) in enumerate(zip(left, right, strict=True)):
        if is_transpose(fgraph, one, other):
            continue
        # only what stands in the middle of the product may be on one side of it alone
        innermost = i == half - 1 and not middle
        sides = split_weights(one), split_weights(transposed(other))
        if not innermost or any(len(cores) != 1 for _, cores in sides):
            return None
        [(left_weights, [left[i]]), (right_weights, [core])] = sides
        if not is_transpose(fgraph, left[i], transposed(core)):
            return None
        weights = [*left_weights, *right_weights]
    roots = [square_root(weight) for weight in weights]
    if middle:
        if definiteness(fgraph, middle[0]) is not Definiteness.DEFINITE:
            return None
        left.append(pt.linalg.cholesky(middle[0]))
    if any(root is None for root in roots):
        return None
    return reduce(mul, roots, reduce(matmul, left))


def split_weights(term) -> tuple[list[Tensor], list[Tensor]]:
    """The scalars and rows that multiply a matrix, and all else that is multiplied."""
    match term.owner_op_and_inputs:
        case (Elemwise(scalar_op=Mul()), *inputs):
            matrices = [inp for inp in inputs if spans_matrix(inp)]
            limit = (True, False) if matrices else (True, True)
            weights = [
                inp for inp in inputs if inp.type.broadcastable[-2:] in ((True, True), limit)
            ]
            return weights, [inp for inp in inputs if inp not in weights]
    return [], [term]


def square_root(weight) -> Tensor | None:
    """A root of what is proven not to be negative; its derivative is finite."""
    match weight.owner_op_and_inputs:
        case (Elemwise(), base, *_) if is_square_of(weight.owner, base):
            return base
    return pt.sqrt(weight) if is_positive(weight) else None


def gram_factor_of_constant(matrix: Constant) -> Tensor | None:
    """The W of a constant of small rank, by a pivoted Cholesky factorization; kept."""
    known = getattr(matrix.tag, "gram_factor", None)
    if known is None:
        known = matrix.tag.gram_factor = (_numerical_gram_factor(np.asarray(matrix.data)),)
    return None if known[0] is None else pt.constant(known[0])


def _numerical_gram_factor(data: np.ndarray) -> np.ndarray | None:
    n = data.shape[-1]
    if data.shape != (n, n) or data.dtype != "float64" or n < MIN_SIZE:
        return None
    if not np.array_equal(data, data.T) or not np.isfinite(data).all():
        return None
    # SciPy takes 0.15 s to import: only with a matrix at hand
    from scipy.linalg.lapack import dpstrf

    chol, pivots, rank, _ = dpstrf(data, lower=1)
    if rank * NARROW_RATIO > n:
        return None
    factor = np.empty((n, rank))
    factor[pivots - 1] = np.tril(chol)[:, :rank]
    error = np.abs(factor @ factor.T - data).max()
    return factor if error <= 4 * np.finfo(data.dtype).eps * n * data.diagonal().max() else None


def is_uniform(diag) -> bool:
    """Whether all entries of each diagonal are equal by construction."""
    if diag.type.broadcastable[-1] or scalar_constant(diag) is not None:
        return True
    match diag.owner_op_and_inputs:
        case (Elemwise(), *inputs):
            return all(map(is_uniform, inputs))
        case (Alloc(), value, *_):
            return value.type.ndim == 0 or value.type.broadcastable[-1]
    return isinstance(diag, Constant) and bool(np.all(diag.data == diag.data[..., :1]))
