"""The fused ops: each carries its reference graph and a closed-form, differentiable pullback."""

from pytensor_mvn_rewrites.ops.eigen import FiniteEigh
from pytensor_mvn_rewrites.ops.expm import ExpmQuadLogdet, ExpmQuadLogdetPullback, expm_quad_logdet
from pytensor_mvn_rewrites.ops.kronecker import (
    NoisyKroneckerQuadLogdet,
    NoisyKroneckerQuadLogdetPullback,
    noisy_kronecker_quad_logdet,
)
from pytensor_mvn_rewrites.ops.low_rank import (
    LowRankFactorization,
    LowRankQuadLogdet,
    LowRankQuadLogdetPullback,
    low_rank_quad_logdet,
)
from pytensor_mvn_rewrites.ops.mvnormal import MvNormalLogp, MvNormalLogpPullback, mvnormal_logp
from pytensor_mvn_rewrites.ops.packed_cholesky import (
    PackedCholesky,
    PackedCholeskyPullback,
    packed_cholesky,
)
from pytensor_mvn_rewrites.ops.quadlogdet import (
    InvQuadLogdet,
    InvQuadLogdetPullback,
    inv_quad_logdet,
)
from pytensor_mvn_rewrites.ops.whiten import Whiten, WhitenPullback, whiten_by

__all__ = [
    "ExpmQuadLogdet",
    "ExpmQuadLogdetPullback",
    "FiniteEigh",
    "InvQuadLogdet",
    "InvQuadLogdetPullback",
    "LowRankFactorization",
    "LowRankQuadLogdet",
    "LowRankQuadLogdetPullback",
    "MvNormalLogp",
    "MvNormalLogpPullback",
    "NoisyKroneckerQuadLogdet",
    "NoisyKroneckerQuadLogdetPullback",
    "PackedCholesky",
    "PackedCholeskyPullback",
    "Whiten",
    "WhitenPullback",
    "expm_quad_logdet",
    "inv_quad_logdet",
    "low_rank_quad_logdet",
    "mvnormal_logp",
    "noisy_kronecker_quad_logdet",
    "packed_cholesky",
    "whiten_by",
]
