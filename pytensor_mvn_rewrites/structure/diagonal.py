"""Diagonal covariances."""

from dataclasses import dataclass
from typing import ClassVar, Self

import pytensor.tensor as pt

from pytensor_mvn_rewrites.graph import Tensor, is_real_float
from pytensor_mvn_rewrites.ops.gaussian import nan_unless
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from pytensor_mvn_rewrites.structure._structure import Structure


@structure
@dataclass(frozen=True)
class Diagonal(Structure):
    r"""InvQuadLogdet(delta, diag(d)) -> sum(delta**2 / d), sum(log(d)) / 2, all(d > 0).

    .. math:: \delta^\top \mathrm{diag}(d)^{-1} \delta = \sum_i \delta_i^2 / d_i, \qquad
              \tfrac12 \log|\mathrm{diag}(d)| = \tfrac12 \sum_i \log d_i

    The same for ``MvNormalLogp``, and for a diagonal Cholesky factor or precision. Cost:
    :math:`O(n^3) \to O(n)`, all of it elementwise. NaN unless all entries are positive, as the
    Cholesky factorization of the dense matrix.
    Declines for matrices whose off-diagonal entries are not zero by construction, and when the
    lengths of vector and diagonal may differ.
    """

    params: ClassVar = ("cov", "chol", "tau")

    #: Shape (..., n).
    diag: Tensor

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """By construction."""
        diag = diagonal_of(matrix)
        return cls(diag) if diag is not None and is_real_float(diag) else None

    def quad_logdet(self, delta, param):
        """The identity."""
        diag = self.diag
        if diag.type.broadcastable[-1] or delta.type.broadcastable[-1]:
            # a single entry would broadcast against a vector that it does not belong to
            if not (diag.type.shape[-1] == delta.type.shape[-1] == 1):
                return None
        posdef = pt.all(diag > 0, axis=-1)
        if param == "chol":
            # as in the triangular solve, signs do not matter here
            return ((delta / diag) ** 2).sum(axis=-1), pt.log(diag).sum(axis=-1), posdef
        diag = nan_unless(diag > 0, diag)
        half_logdet = 0.5 * pt.log(diag).sum(axis=-1)
        if param == "tau":
            return (delta**2 * diag).sum(axis=-1), -half_logdet, posdef
        return (delta**2 / diag).sum(axis=-1), half_logdet, posdef
