"""The hook into PyMC: each MvNormal of a model gets a log-density that is one node.

``pm.Model.logp`` first rewrites the random variables of the model into an intermediate
representation. There, every ``MvNormalRV`` becomes a :class:`FusedMvNormalRV`, whose
log-density is ``Check(MvNormalLogp(value, mu, matrix))`` instead of PyMC's 17 nodes: a loop of
5000 of them is built in a third of the time, and needs no recognition afterwards.
"""

import inspect
import math
from copy import copy
from functools import cache

import pymc
import pytensor.tensor as pt
from pymc.distributions import multivariate
from pymc.distributions.multivariate import KroneckerNormalRV, PrecisionMvNormalRV
from pymc.logprob.basic import logp as logp_of
from pymc.logprob.utils import CheckParameterValue
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.tensor.random.basic import MvNormalRV

from pytensor_mvn_rewrites._upstream import _lkj_normalizing_constant, _LKJCholeskyCovRV, _logprob
from pytensor_mvn_rewrites.ops import mvnormal_logp, noisy_kronecker_quad_logdet, packed_cholesky
from pytensor_mvn_rewrites.pipeline import logprob
from pytensor_mvn_rewrites.proofs.symmetry import is_symmetric

#: PyMC 6.3 knows the normalizing constant of a constant `eta` only, and wants it as a number
ETA_MAY_VARY = tuple(map(int, pymc.__version__.split(".")[:2])) >= (6, 4)


@cache
def _is_of_pymc(function) -> bool:
    """Whether PyMC wrote what it registered: for a ``Distribution``, a wrapper of its ``logp``."""
    own = inspect.getclosurevars(function).nonlocals.get("class_logp", function)
    return own.__module__ == multivariate.__name__


class FusedMvNormalRV(MvNormalRV):
    """A multivariate normal whose log-density is :class:`~.ops.MvNormalLogp`."""


class FusedPrecisionMvNormalRV(PrecisionMvNormalRV):
    """The same for ``MvNormal(tau=...)``, of which PyMC makes a ``PrecisionMvNormalRV``."""


class FusedKroneckerNormalRV(KroneckerNormalRV):
    """A ``pm.KroneckerNormal`` of the log-density :func:`fused_kronecker_normal_logp`."""


class FusedLKJCholeskyCovRV(_LKJCholeskyCovRV):
    """A ``pm.LKJCholeskyCov`` of the log-density :func:`fused_lkj_cholesky_cov_logp`."""


class BatchedLKJCholeskyCovRV(_LKJCholeskyCovRV):
    """Several of them, of one size and one eta, along the first dimension.

    PyMC draws such batches, and has no density of them.
    """


#: A random variable of PyMC -> the same with a log-density of this package.
FUSED: dict[type, type] = {
    MvNormalRV: FusedMvNormalRV,
    PrecisionMvNormalRV: FusedPrecisionMvNormalRV,
    KroneckerNormalRV: FusedKroneckerNormalRV,
    _LKJCholeskyCovRV: FusedLKJCholeskyCovRV,
}


def has_density_of_pymc(op) -> bool:
    """Whether the log-density of `op` is the one that PyMC defines for a type of `FUSED`.

    A subclass may have one of its own, and a user may have registered another one for the type.
    """
    return type(op) in FUSED and _is_of_pymc(_logprob.dispatch(type(op)))


@logprob
@node_rewriter([*FUSED])
def fuse_random_variable(fgraph, node):
    """MvNormalRV(mu, cov) -> FusedMvNormalRV(mu, cov), and the same for all of `FUSED`.

    The draws are the same; only the log-density that PyMC derives from the node differs in form.
    Declines where that is not PyMC's own, and for an ``LKJCholeskyCov`` when n is not constant, or
    eta is not where PyMC wants it to be.
    """
    if not has_density_of_pymc(node.op):
        return None
    if isinstance(node.op, _LKJCholeskyCovRV):
        _, n, eta, _ = node.inputs
        if not isinstance(n, Constant) or not (ETA_MAY_VARY or isinstance(eta, Constant)):
            return None
    # the inputs were checked when `node` was made: making it again would infer its shape anew,
    # the larger part of what PyMC needs to build the log-density of a loop, or its inner graph
    op = copy(node.op)
    op.__class__ = FUSED[type(op)]
    return Apply(op, node.inputs, [out.type() for out in node.outputs]).outputs


@_logprob.register(FusedMvNormalRV)
def fused_mvnormal_logp(op, values, rng, size, mu, cov, **kwargs):
    """PyMC's ``MvNormal.logp`` as one node under PyMC's own parameter check."""
    [value] = values
    logp, posdef = mvnormal_logp(value, mu, cov)
    return check_posdef(logp, posdef, "posdef covariance")


@_logprob.register(FusedPrecisionMvNormalRV)
def fused_precision_mvnormal_logp(op, values, rng, size, mu, tau, **kwargs):
    """The log-density of PyMC's ``PrecisionMvNormalRV``, also for several rows.

    The factorization reads the lower triangle of `tau`, PyMC's quadratic form both. What the upper
    one adds to it is 0 for a precision, but only what is proven symmetric is known to be one.
    """
    [value] = values
    logp, posdef = mvnormal_logp(value, mu, tau, "tau")
    if not is_symmetric(None, tau):
        upper, delta = pt.triu(tau, 1) - pt.tril(tau, -1).mT, value - mu
        logp = logp - 0.5 * ((upper @ delta[..., None])[..., 0] * delta).sum(axis=-1)
    return check_posdef(logp, posdef, "posdef precision")


@_logprob.register(FusedKroneckerNormalRV)
def fused_kronecker_normal_logp(op, values, rng, size, mu, sigma, *covs, **kwargs):
    """The density of PyMC's ``KroneckerNormal`` without the derivative of an eigendecomposition.

    That derivative, which PyMC takes, is NaN or wrong where eigenvalues of one of the `covs`
    coincide. As in PyMC there is no parameter check: NaN where the covariance is not positive
    definite.
    """
    [value] = values
    if value.type.ndim not in (1, 2):
        raise ValueError(f"Invalid dimension for value: {value.type.ndim}")
    quaddist, half_logdet, _ = noisy_kronecker_quad_logdet(value - mu, sigma**2, covs)
    n = math.prod(cov.shape[-1] for cov in covs).astype("float64")
    # PyMC's constant is of double precision, see check_posdef
    return -0.5 * math.log(2 * math.pi) * n - 0.5 * quaddist - half_logdet


@_logprob.register(FusedLKJCholeskyCovRV)
def fused_lkj_cholesky_cov_logp(op, values, rng, n, eta, sd_dist, **kwargs):
    """PyMC's density of a packed Cholesky factor, of standard deviations that one op computes."""
    [value] = values
    if value.ndim > 1:
        raise ValueError("_LKJCholeskyCov logp is only implemented for vector values (ndim=1)")
    return lkj_cholesky_cov_logp(value, n, eta, sd_dist)


@_logprob.register(BatchedLKJCholeskyCovRV)
def batched_lkj_cholesky_cov_logp(op, values, rng, n, eta, sd_dist, **kwargs):
    """The same for each of several packed factors."""
    [value] = values
    return lkj_cholesky_cov_logp(value, n, eta, sd_dist)


def lkj_cholesky_cov_logp(value, n, eta, sd_dist):
    """The log-densities of packed factors, one or several, and of their standard deviations."""
    # n and eta with the dtypes that PyMC gives them: small integers would wrap around
    row = pt.arange(n)
    _, sd, corr_diag, _ = packed_cholesky(value, int(n.data))
    log_corr_diag = pt.log(corr_diag)
    logp_lkj = ((2 * eta - 3 + n - row) * log_corr_diag).sum(axis=-1)
    # from the entries of the packed factor to correlations and standard deviations
    log_jacobian = (log_corr_diag - row * pt.log(sd)).sum(axis=-1)
    logp_sd = logp_of(sd_dist, sd)
    logp_sd = logp_sd.sum(axis=tuple(range(value.type.ndim - 1, logp_sd.type.ndim)))
    constants = (eta, n) if ETA_MAY_VARY else (float(eta.data), int(n.data))
    return _lkj_normalizing_constant(*constants) + logp_lkj + logp_sd + log_jacobian


def batched_lkj_cholesky_cov(n, eta, sd_dist, count: int, rng):
    """A random variable of `count` packed Cholesky factors.

    Parameters
    ----------
    n, eta : tensor, shape ()
        As ``pm.LKJCholeskyCov`` takes them; n is constant.
    sd_dist : tensor, shape (count, n)
        A draw of the standard deviations.
    count : int
    rng : random generator variable
    """
    node = _LKJCholeskyCovRV.rv_op(n, eta, sd_dist, size=(count,), rng=rng).owner
    op = copy(node.op)
    op.__class__ = BatchedLKJCholeskyCovRV
    return op(*node.inputs)


def check_posdef(logp, posdef, msg: str):
    """PyMC's parameter check: ``-inf`` in a compiled model, ``ParameterValueError`` elsewhere."""
    condition = posdef.all() if posdef.type.ndim else posdef
    # PyMC's constant log(2 pi) is of double precision, and so is its log-density under float32
    logp = logp.astype("float64")
    return CheckParameterValue(msg, can_be_replaced_by_ninf=True)(logp, condition)
