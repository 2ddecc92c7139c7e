"""``LowRankQuadLogdet``: quadratic form and log-determinant of a low rank plus a diagonal."""

import pytensor.tensor as pt

from pytensor_mvn_rewrites.graph import length
from pytensor_mvn_rewrites.ops.gaussian import (
    GaussianPullbackOp,
    KernelOp,
    QuadLogdetOp,
    is_pullback_of,
    nan_unless,
    of_one_batch,
)


class LowRankFactorization(KernelOp):
    r"""The QR factorization of :math:`[D^{-1/2} W; I_k]`, and the root of the diagonal.

    Signature ``(n,k),(n)->(n),(n,k),(k,k),(k)``. It is the Cholesky factorization :math:`R^\top R`
    of the capacitance matrix :math:`M = I_k + W^\top D^{-1} W` without forming M, whose condition
    number is the square.

    Inputs
        factor : float, shape (..., n, k); diag : float, shape (..., n).

    Outputs
        root : float, shape (..., n), :math:`D^{1/2}`, NaN where the diagonal is not positive;
        Q : float, shape (..., n, k), :math:`D^{-1/2} W R^{-1}`;
        inv_R : float, shape (..., k, k), :math:`R^{-1}`, the part of the orthogonal factor below Q;
        diag_R : float, shape (..., k), absolute values of the diagonal of R.
    """

    __props__ = ()
    signature = "(n,k),(n)->(n),(n,k),(k,k),(k)"

    def build_inner_graph(self, factor, diag):
        """The factorization, in plain PyTensor."""
        root = pt.sqrt(nan_unless(diag > 0, diag))
        V = factor / root[..., None]
        n, k = length(V, -2), length(V)
        eye = pt.eye(k, dtype=V.type.dtype)
        identity = pt.broadcast_to(eye, (*tuple(V.shape)[:-2], k, k)) if V.type.ndim > 2 else eye
        Q, R = pt.linalg.qr(pt.join(-2, V, identity), mode="economic")
        diag_R = pt.abs(pt.diagonal(R, axis1=-2, axis2=-1))
        return [root, Q[..., :n, :], Q[..., n:, :], diag_R]

    def infer_shape(self, node, shapes):
        """Batch shape by broadcasting, but for the root; core shapes from the factor."""
        batch = tuple(self.batch_shape(node, shapes))
        *_, n, k = shapes[0]
        return [shapes[1], (*batch, n, k), (*batch, k, k), (*batch, k)]


def times(matrix, vectors):
    """Matrix times vector, for each of a batch; one product for the rows that share a matrix."""
    if matrix.type.ndim == 2:
        return vectors @ matrix.T
    return (matrix @ vectors[..., None])[..., 0]


class LowRankQuadLogdet(KernelOp, QuadLogdetOp):
    r"""Quadratic form and half log-determinant of a low rank plus a diagonal.

    Signature ``(n),(n,k),(n),(n),(n,k),(k,k),(k)->(),(),()``,

    .. math:: q = \delta^\top \Sigma^{-1} \delta, \qquad h = \tfrac12 \log|\Sigma|, \qquad
              \Sigma = W W^\top + D

    By Woodbury's identity and the matrix determinant lemma, with :math:`z = D^{-1/2} \delta` and
    the factorization of :class:`LowRankFactorization`,

    .. math:: q = \|z - Q Q^\top z\|^2 + \|R^{-1} Q^\top z\|^2, \qquad
              h = \tfrac12 \sum_i \log d_i + \sum_j \log |R_{jj}|

    Sums of squares: nothing cancels when d is small. Cost: :math:`O(n k^2)`.

    Inputs
        delta : float, shape (..., n); factor : float, shape (..., n, k);
        diag : float, shape (..., n); root, Q, inv_R, diag_R : their factorization.

    Outputs
        quaddist, half_logdet : float, shape (...), NaN unless all entries of `diag` are positive;
        posdef : bool, shape (...).
    """

    signature = "(n),(n,k),(n),(n),(n,k),(k,k),(k)->(),(),()"
    is_inlined = True

    def build_inner_graph(self, delta, factor, diag, root, Q, inv_R, diag_R):
        """The formula, in plain PyTensor."""
        z = delta / root
        c = times(Q.mT, z)
        quaddist = ((z - times(Q, c)) ** 2).sum(axis=-1) + (times(inv_R, c) ** 2).sum(axis=-1)
        half_logdet = pt.log(root).sum(axis=-1) + pt.log(diag_R).sum(axis=-1)
        posdef = pt.all(root > 0, axis=-1) & pt.all(diag_R > 0, axis=-1)
        return of_one_batch(quaddist, half_logdet, posdef)


@is_pullback_of(LowRankQuadLogdet)
class LowRankQuadLogdetPullback(KernelOp, GaussianPullbackOp):
    r"""Gradient of :class:`LowRankQuadLogdet`.

    Signature ``(n),(n,k),(n),(n),(n,k),(k,k),(k),(),()->(n),(n,k),(n)``. With
    :math:`a = \Sigma^{-1} \delta = D^{-1/2} (z - Q Q^\top z)`, :math:`u = W^\top a =
    R^{-1} Q^\top z` and the cotangents :math:`\bar q, \bar h`,

    .. math::

        \bar\delta &= 2 \bar q\, a \\
        \bar W &= -2 \bar q\, a u^\top + \bar h\, \Sigma^{-1} W, \qquad
                  \Sigma^{-1} W = D^{-1/2} Q R^{-\top} \\
        \bar d_i &= -\bar q\, a_i^2 + \tfrac12 \bar h\, (\Sigma^{-1})_{ii}, \qquad
                    (\Sigma^{-1})_{ii} = (1 - \textstyle\sum_j Q_{ij}^2) / d_i
    """

    signature = "(n),(n,k),(n),(n),(n,k),(k,k),(k),(),()->(n),(n,k),(n)"
    is_inlined = True

    def build_inner_graph(self, *inputs):
        """The formulas, in plain PyTensor."""
        delta, factor, diag, root, Q, inv_R, _, g_quad, g_half_logdet = inputs
        z = delta / root
        c = times(Q.mT, z)
        a, u = (z - times(Q, c)) / root, times(inv_R, c)
        # one step of iterative refinement, for entries of d that are tiny beside the others
        rest = (delta - diag * a - times(factor, times(factor.mT, a))) / root
        a = a + (rest - times(Q, times(Q.mT, rest))) / root
        g_quad, g_half_logdet = g_quad[..., None], g_half_logdet[..., None]
        d_diag = -g_quad * a**2 + 0.5 * g_half_logdet * (1 - (Q**2).sum(axis=-1)) / diag
        inv_times_factor = (Q @ inv_R.mT) / root[..., None]
        d_factor = (
            -2 * (g_quad * a)[..., None] * u[..., None, :]
            + g_half_logdet[..., None] * inv_times_factor
        )
        return self.sum_to_inputs([delta, factor, diag], [2 * g_quad * a, d_factor, d_diag])


def low_rank_quad_logdet(delta, factor, diag):
    """Apply :class:`LowRankQuadLogdet`; returns (quaddist, half_logdet, posdef), each (...).

    Parameters
    ----------
    delta : tensor_like of float, shape (..., n)
    factor : tensor_like of float, shape (..., n, k)
    diag : tensor_like of float, shape (..., n)

    Raises
    ------
    ValueError
        If an input has too few dimensions.
    """
    factorization = LowRankFactorization()(factor, diag, return_list=True)
    return LowRankQuadLogdet()(delta, factor, diag, *factorization, return_list=True)
