"""Covariances that are Kronecker products plus a multiple of the identity."""

from dataclasses import dataclass
from typing import Self

from pytensor_mvn_rewrites.graph import Tensor, is_real_float, static_size
from pytensor_mvn_rewrites.ops import noisy_kronecker_quad_logdet
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.symmetry import is_symmetric
from pytensor_mvn_rewrites.structure._kron import kron_factors, sizes_of
from pytensor_mvn_rewrites.structure._structure import DECLARE_SYMMETRIC, Structure
from pytensor_mvn_rewrites.structure._sums import split_noise
from pytensor_mvn_rewrites.structure.kronecker import NOT_SYMMETRIC


@structure
@dataclass(frozen=True)
class KroneckerPlusNoise(Structure):
    r"""InvQuadLogdet(delta, kron(A_1, ..., A_m) + s * eye) -> NoisyKroneckerQuadLogdet.

    With eigendecompositions :math:`A_k = Q_k \Lambda_k Q_k^\top`,

    .. math:: \bigotimes_k A_k + s I = \Big(\bigotimes_k Q_k\Big)
              \Big(\bigotimes_k \Lambda_k + s I\Big) \Big(\bigotimes_k Q_k\Big)^\top

    The same for ``MvNormalLogp``. Cost: :math:`O(N^3) \to O(\sum_k n_k^3 + N \sum_k n_k)`, and no
    :math:`N \times N` matrix. The noise may be any multiple of the identity, in any form in which
    it is added, and of any sign. NaN unless all eigenvalues are positive, as the Cholesky
    factorization of the dense matrix.

    Declines unless all Kronecker factors but the first are provably symmetric: of the first the
    dense graph reads the lower triangle only, of the others more. N must be known; the size of a
    Kronecker factor may be unknown if it is provably symmetric.
    Declines too for noise whose variances differ, or are not provably the same.
    """

    #: The variance s, shape (...).
    noise: Tensor
    #: Shape (..., n_k, n_k).
    factors: list[Tensor]

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Take the noise off and the product apart, and prove its factors symmetric."""
        parts = split_noise(matrix)
        if parts is None:
            return None
        noise, product = parts
        scale, factors = kron_factors(product)
        if len(factors) == 1 or not is_real_float(noise, matrix, *factors):
            return None
        if sizes_of(fgraph, factors, n) is None or static_size(matrix) is None:
            return None
        if not all(is_symmetric(fgraph, factor) for factor in factors[1:]):
            return cls.declined(NOT_SYMMETRIC, DECLARE_SYMMETRIC)
        if scale is not None:
            factors[0] = scale * factors[0]
        dtype = matrix.type.dtype
        return cls(noise.astype(dtype), [factor.astype(dtype) for factor in factors])

    def quad_logdet(self, delta, param):
        """One op."""
        if delta.type.broadcastable[-1]:
            return None
        return noisy_kronecker_quad_logdet(delta, self.noise, self.factors)
