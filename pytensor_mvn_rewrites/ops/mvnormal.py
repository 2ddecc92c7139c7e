"""``MvNormalLogp``: the log-density of a batch of multivariate normals as one op."""

import math

import pytensor.tensor as pt

from pytensor_mvn_rewrites.ops.gaussian import (
    DensityOp,
    GaussianPullbackOp,
    is_pullback_of,
    whiten,
    whitened_pullback,
)


class MvNormalLogp(DensityOp):
    r"""Log-density of multivariate normals, gufunc signature ``(n),(n),(n,n)->(),()``.

    .. math::

        \log N(x \mid \mu, \Sigma) = -\tfrac n2 \log 2\pi
            - \tfrac12 (x-\mu)^\top \Sigma^{-1} (x-\mu) - \tfrac12 \log|\Sigma|

    Inputs
        value, mu : float, shape (..., n); matrix : float, shape (..., n, n), in the
        parametrization `param` (``"cov"``, ``"chol"`` or ``"tau"``).

    Outputs
        logp : float, shape (...), NaN where the matrix is not positive definite, as PyMC's formula
        before its parameter check; posdef : bool, shape (...), the condition of that check.

    Source of the formula: PyMC's ``MvNormal.logp``.
    """

    signature = "(n),(n),(n,n)->(),()"

    def build_inner_graph(self, value, mu, matrix):
        """The formula, in plain PyTensor."""
        z, half_logdet, posdef = whiten(value - mu, matrix, self.param)
        quaddist = (z**2).sum(axis=-1)
        n = value.shape[-1].astype(quaddist.dtype)
        logp = -0.5 * math.log(2 * math.pi) * n - 0.5 * quaddist - half_logdet
        return [logp, pt.broadcast_to(posdef, logp.shape)]


@is_pullback_of(MvNormalLogp)
class MvNormalLogpPullback(GaussianPullbackOp):
    r"""Gradient of :class:`MvNormalLogp`: ``(n),(n),(n,n),()->(n),(n),(n,n)``.

    With :math:`a = \Sigma^{-1}(x-\mu)` and the cotangent :math:`g`,

    .. math:: \bar x = -g a, \qquad \bar\mu = g a, \qquad
              \bar\Sigma = \tfrac g2 (a a^\top - \Sigma^{-1})

    :math:`\bar\Sigma` folded into the lower triangle; for ``chol`` and ``tau`` see
    :func:`~pytensor_mvn_rewrites.ops.gaussian.whitened_pullback`.

    Outputs have the shapes of `value`, `mu` and the matrix: summed over the batch dimensions along
    which an input was broadcast.
    """

    signature = "(n),(n),(n,n),()->(n),(n),(n,n)"

    def build_inner_graph(self, value, mu, matrix, g_logp):
        """The formulas, in plain PyTensor."""
        d_delta, d_matrix = whitened_pullback(
            value - mu, matrix, -0.5 * g_logp, -g_logp, self.param
        )
        return self.sum_to_inputs([value, mu, matrix], [d_delta, -d_delta, d_matrix])


def mvnormal_logp(value, mu, matrix, param: str = "cov"):
    """Apply :class:`MvNormalLogp`.

    Parameters
    ----------
    value, mu : tensor_like of float, shape (..., n)
    matrix : tensor_like of float, shape (..., n, n)
    param : {"cov", "chol", "tau"}

    Returns
    -------
    logp : tensor of float, shape (...)
    posdef : tensor of bool, shape (...)

    Raises
    ------
    ValueError
        If `param` is unknown or an input has too few dimensions.

    Examples
    --------
    >>> import numpy as np
    >>> logp, posdef = mvnormal_logp(np.zeros(2), np.zeros(2), np.eye(2))
    >>> round(float(logp.eval()), 4)
    -1.8379
    """
    return MvNormalLogp(param=param)(value, mu, matrix, return_list=True)
