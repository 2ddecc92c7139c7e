"""Covariances and precisions that are exponentials of symmetric matrices."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.linalg.products import Expm

from pytensor_mvn_rewrites.graph import Tensor, is_real_float, static_size
from pytensor_mvn_rewrites.ops import expm_quad_logdet
from pytensor_mvn_rewrites.ops.gaussian import nan_unless
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.positivity import is_positive
from pytensor_mvn_rewrites.proofs.symmetry import is_symmetric
from pytensor_mvn_rewrites.structure._kron import split_scale, without_batch_dims
from pytensor_mvn_rewrites.structure._structure import DECLARE_SYMMETRIC, Structure
from pytensor_mvn_rewrites.structure._sums import split_noise


@structure
@dataclass(frozen=True)
class Exponential(Structure):
    r"""InvQuadLogdet(delta, c * expm(X) + s * eye) -> ExpmQuadLogdet(delta, s / c, X).

    With the eigendecomposition :math:`X = Q \Lambda Q^\top`,

    .. math:: c\, e^X + s I = c\, Q \big(e^\Lambda + \tfrac sc I\big) Q^\top

    The same for ``MvNormalLogp``, and for precisions :math:`c\, e^X`, whose inverse is
    :math:`e^{-X} / c`. Cost: one eigendecomposition instead of a matrix exponential, one of twice
    the size for its gradient, and a Cholesky factorization.
    Without noise positive definite whenever X is finite; the dense graph's exponential may be too
    ill-conditioned to be factored. Declines unless X is provably symmetric, for precisions with
    noise, and, with noise, unless c is provably positive.
    """

    params: ClassVar = ("cov", "tau")

    #: The X, shape (..., n, n).
    exponent: Tensor
    #: The c and s, shape (...), or None.
    scale: Tensor | None
    noise: Tensor | None

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Take noise and scale off."""
        noise, product = split_noise(matrix) or (None, matrix)
        scale, core = split_scale(product)
        match without_batch_dims(core).owner_op_and_inputs:
            case (Expm() | Blockwise(Expm()), exponent):
                pass
            case _:
                return None
        if not is_real_float(exponent) or exponent.type.dtype != matrix.type.dtype:
            return None
        if not is_symmetric(fgraph, exponent):
            return cls.declined("the exponent is not proven symmetric", DECLARE_SYMMETRIC)
        if noise is not None:
            # of unknown sizes, an identity of the wrong one would go unnoticed
            if param == "tau" or static_size(exponent) is None:
                return None
            if scale is not None and not is_positive(scale):
                return None
            noise = noise.astype(matrix.type.dtype)
        scale = None if scale is None else scale[..., 0, 0].astype(matrix.type.dtype)
        return cls(exponent, scale, noise)

    def quad_logdet(self, delta, param):
        """The identity."""
        exponent, scale, dtype = self.exponent, self.scale, self.exponent.type.dtype
        noise = pt.constant(np.asarray(0, dtype=dtype)) if self.noise is None else self.noise
        if param == "tau":
            exponent, scale = -exponent, None if scale is None else 1 / scale
        if scale is None:
            return expm_quad_logdet(delta, noise, exponent)
        scale = nan_unless(scale > 0, scale)
        quaddist, half_logdet, posdef = expm_quad_logdet(delta, noise / scale, exponent)
        half_n = np.asarray(0.5, dtype=dtype) * exponent.shape[-1].astype(dtype)
        half_logdet = half_logdet + half_n * pt.log(scale)
        return quaddist / scale, half_logdet, posdef & (scale > 0)
