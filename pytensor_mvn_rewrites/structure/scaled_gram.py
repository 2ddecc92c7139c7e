"""Covariances that are a number times one whose Cholesky factor is given."""

from dataclasses import dataclass
from typing import Self

import pytensor.tensor as pt

from pytensor_mvn_rewrites.graph import Tensor
from pytensor_mvn_rewrites.ops import inv_quad_logdet
from pytensor_mvn_rewrites.ops.gaussian import nan_unless
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.constants import constant_value
from pytensor_mvn_rewrites.structure._kron import split_scale
from pytensor_mvn_rewrites.structure._structure import Structure, known_cholesky_factor


@structure
@dataclass(frozen=True)
class ScaledGram(Structure):
    r"""MvNormalLogp{cov}(x, mu, c * (L @ L.T)) -> MvNormalLogp{chol}(x, mu, sqrt(c) * L).

    .. math:: \mathrm{chol}(c\, L L^\top) = \sqrt c\, L

    The same for ``InvQuadLogdet``, and for everything else whose Cholesky factor is known. Many
    scales of one L stay outside of it:

    .. math:: \delta^\top (c \Sigma)^{-1} \delta = \delta^\top \Sigma^{-1} \delta / c, \qquad
              \tfrac12 \log|c \Sigma| = \tfrac n2 \log c + \tfrac12 \log|\Sigma|

    Cost: :math:`O(n^3) \to O(n^2)`. Not positive definite unless c is positive.
    Declines unless the Cholesky factor takes no factorization.
    """

    #: Shape (..., 1, 1).
    scale: Tensor
    #: The Cholesky factor without the scale, shape (..., n, n).
    inner: Tensor

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Take the scale off."""
        scale, core = split_scale(matrix)
        if scale is None or constant_value(core) is not None:
            # of constants see constant_matrix.py
            return None
        inner = known_cholesky_factor(fgraph, core)
        return None if inner is None else cls(scale.astype(matrix.type.dtype), inner)

    def cholesky(self):
        """None where there are many scales of one Cholesky factor."""
        chol = pt.sqrt(self.scale) * self.inner
        return chol if chol.type.broadcastable == self.inner.type.broadcastable else None

    def quad_logdet(self, delta, param):
        """The second identity."""
        scale = self.scale[..., 0, 0]
        posdef = scale > 0
        scale = nan_unless(posdef, scale)
        quaddist, half_logdet, inner_posdef = inv_quad_logdet(delta, self.inner, "chol")
        half_n = 0.5 * self.inner.shape[-1].astype(scale.type.dtype)
        return quaddist / scale, half_logdet + half_n * pt.log(scale), posdef & inner_posdef
