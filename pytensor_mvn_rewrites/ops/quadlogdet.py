"""``InvQuadLogdet``: the two expensive halves of every Gaussian-like log-density."""

from pytensor_mvn_rewrites.ops.gaussian import (
    GaussianPullbackOp,
    QuadLogdetOp,
    is_pullback_of,
    of_one_batch,
    whiten,
    whitened_pullback,
)


class InvQuadLogdet(QuadLogdetOp):
    r"""Quadratic form and half log-determinant, signature ``(n),(n,n)->(),(),()``.

    .. math:: q = \delta^\top \Sigma^{-1} \delta, \qquad h = \tfrac12 \log|\Sigma|

    Student's t, GP marginals and every density that is a function of `q` and `h` lowers through
    this op; :class:`MvNormalLogp` is the special case :math:`-\tfrac n2\log 2\pi - q/2 - h`.

    Inputs
        delta : float, shape (..., n); matrix : float, shape (..., n, n), parametrized as `param`.

    Outputs
        quaddist, half_logdet : float, shape (...), NaN where the matrix is not positive definite;
        posdef : bool, shape (...).
    """

    signature = "(n),(n,n)->(),(),()"

    def build_inner_graph(self, delta, matrix):
        """The formula, in plain PyTensor."""
        z, half_logdet, posdef = whiten(delta, matrix, self.param)
        quaddist = (z**2).sum(axis=-1)
        return of_one_batch(quaddist, half_logdet, posdef)


@is_pullback_of(InvQuadLogdet)
class InvQuadLogdetPullback(GaussianPullbackOp):
    """Gradient of :class:`InvQuadLogdet`: ``(n),(n,n),(),()->(n),(n,n)``.

    The formulas are those of :func:`~pytensor_mvn_rewrites.ops.gaussian.whitened_pullback`.
    """

    signature = "(n),(n,n),(),()->(n),(n,n)"

    def build_inner_graph(self, delta, matrix, g_quad, g_half_logdet):
        """The formulas, in plain PyTensor."""
        grads = whitened_pullback(delta, matrix, g_quad, g_half_logdet, self.param)
        return self.sum_to_inputs([delta, matrix], grads)


def inv_quad_logdet(delta, matrix, param: str = "cov"):
    """Apply :class:`InvQuadLogdet`; returns (quaddist, half_logdet, posdef), each of shape (...).

    Parameters
    ----------
    delta : tensor_like of float, shape (..., n)
    matrix : tensor_like of float, shape (..., n, n)
    param : {"cov", "chol", "tau"}

    Raises
    ------
    ValueError
        If `param` is unknown or an input has too few dimensions.
    """
    return InvQuadLogdet(param=param)(delta, matrix, return_list=True)
