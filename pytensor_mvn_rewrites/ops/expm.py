"""``ExpmQuadLogdet``: a matrix exponential plus a multiple of the identity as one op."""

import numpy as np
import pytensor.tensor as pt

from pytensor_mvn_rewrites.ops.eigen import EigenPullbackOp, SharedRows, eigh
from pytensor_mvn_rewrites.ops.gaussian import (
    QuadLogdetOp,
    fold_lower,
    is_pullback_of,
    nan_unless,
    of_one_batch,
)
from pytensor_mvn_rewrites.ops.quadlogdet import inv_quad_logdet


class ExpmQuadLogdet(QuadLogdetOp):
    r"""Quadratic form and half log-determinant: ``(n),(),(n,n),(n),(n,n)->(),(),()``.

    .. math:: q = \delta^\top \Sigma^{-1} \delta = \sum_i r_i^2 / e_i, \qquad
              h = \tfrac12 \log|\Sigma| = \tfrac12 \sum_i \log e_i, \qquad
              \Sigma = e^X + s I

    with :math:`X = Q \Lambda Q^\top`, :math:`r = Q^\top \delta` and
    :math:`e_i = e^{\lambda_i} + s`.

    Inputs
        delta : float, shape (..., n); noise : float, shape (...), the variance s;
        matrix : float, shape (..., n, n), symmetric;
        eigenvalues : float, shape (..., n); eigenvectors : float, shape (..., n, n).

    Outputs
        quaddist, half_logdet : float, shape (...), NaN where :math:`\Sigma` is not positive
        definite or X not finite; posdef : bool, shape (...).
    """

    signature = "(n),(),(n,n),(n),(n,n)->(),(),()"
    is_inlined = True

    def __str__(self):
        return type(self).__name__

    def build_inner_graph(self, delta, noise, matrix, eigenvalues, eigenvectors):
        """The formula, in plain PyTensor."""
        delta = SharedRows(delta, max(noise.type.ndim, matrix.type.ndim - 2))
        spectrum = noisy_spectrum(noise, eigenvalues)
        rotated = delta.rows @ eigenvectors
        quaddist = delta.unfold((rotated**2 / spectrum[..., None, :]).sum(axis=-1), 0)
        half_logdet = 0.5 * pt.log(spectrum).sum(axis=-1)
        posdef = (spectrum > 0).all(axis=-1)
        return of_one_batch(quaddist, half_logdet, posdef)


@is_pullback_of(ExpmQuadLogdet)
class ExpmQuadLogdetPullback(EigenPullbackOp):
    r"""Gradient of :class:`ExpmQuadLogdet`: ``(n),(),(n,n),(n),(n,n),(),()->(n),(),(n,n)``.

    With :math:`t = r / e`,

    .. math::

        \bar\delta &= 2 \bar q\, Q t \\
        \bar s &= -\bar q\, t^\top t + \tfrac12 \bar h \sum_i 1 / e_i \\
        \bar X &= Q \big[ -\bar q\, \Phi \circ t t^\top
            + \tfrac12 \bar h\, \mathrm{diag}(e^\lambda / e) \big] Q^\top \\
        \Phi_{ij} &= \frac{e^{\lambda_i} - e^{\lambda_j}}{\lambda_i - \lambda_j}
            = e^{\max(\lambda_i, \lambda_j)} \frac{1 - e^{-d}}{d}, \quad
            d = |\lambda_i - \lambda_j|

    :math:`\Phi_{ij} = e^{\lambda_i}` where eigenvalues coincide. :math:`\bar X` is folded into the
    lower triangle. (Daleckii and Krein; Higham, Functions of Matrices, 2008, theorem 3.11.)

    Its own derivative is that of PyTensor's matrix exponential.
    """

    signature = "(n),(),(n,n),(n),(n,n),(),()->(n),(),(n,n)"
    is_inlined = True

    __str__ = ExpmQuadLogdet.__str__

    def build_inner_graph(self, *inputs):
        """The formulas, in plain PyTensor."""
        delta, noise, matrix, eigenvalues, eigenvectors, g_quad, g_half_logdet = inputs
        delta = SharedRows(delta, max(noise.type.ndim, matrix.type.ndim - 2))
        g_quad, g_half_logdet = delta.fold(g_quad, 0), delta.fold(g_half_logdet, 0).sum(axis=-1)
        spectrum = noisy_spectrum(noise, eigenvalues)
        t = (delta.rows @ eigenvectors) / spectrum[..., None, :]
        weighted = g_quad[..., None] * t
        d_rows = (2 * weighted) @ eigenvectors.mT
        d_noise = 0.5 * g_half_logdet * (1 / spectrum).sum(axis=-1) - (weighted * t).sum((-2, -1))
        inner = -divided_differences_of_exp(eigenvalues) * (weighted.mT @ t)
        half_inverse = 0.5 * g_half_logdet[..., None] * (pt.exp(eigenvalues) / spectrum)
        d_matrix = (eigenvectors @ inner + eigenvectors * half_inverse[..., None, :]) @ (
            eigenvectors.mT
        )
        grads = [delta.unfold(d_rows, 1), d_noise, fold_lower(d_matrix)]
        return self.sum_to_inputs(inputs[:3], grads)

    @staticmethod
    def formula(delta, noise, matrix):
        """By PyTensor's matrix exponential."""
        symmetric = pt.tril(matrix) + pt.tril(matrix, -1).mT
        eye = pt.eye(matrix.shape[-1], dtype=matrix.type.dtype)
        return inv_quad_logdet(delta, pt.linalg.expm(symmetric) + noise[..., None, None] * eye)


def noisy_spectrum(noise, eigenvalues):
    """Eigenvalues of the sum, NaN unless all are positive, given those of X."""
    spectrum = pt.exp(eigenvalues) + noise[..., None]
    return nan_unless((spectrum > 0).all(axis=-1, keepdims=True), spectrum)


def divided_differences_of_exp(x):
    """``(exp(x_i) - exp(x_j)) / (x_i - x_j)``, shape (..., n, n); its limit where they coincide."""
    one = np.asarray(1, dtype=x.type.dtype)
    rows, columns = x[..., :, None], x[..., None, :]
    distance = abs(rows - columns)
    ratio = -pt.expm1(-distance) / pt.switch(distance > 0, distance, one)
    return pt.exp(pt.maximum(rows, columns)) * pt.switch(distance > 0, ratio, one)


def expm_quad_logdet(delta, noise, matrix):
    """Apply :class:`ExpmQuadLogdet`; returns (quaddist, half_logdet, posdef), each of shape (...).

    Parameters
    ----------
    delta : tensor_like of float, shape (..., n)
    noise : tensor_like of float, shape (...)
        The variance that is added to the diagonal.
    matrix : tensor_like of float, shape (..., n, n)
        Symmetric; its lower triangle is read.

    Raises
    ------
    ValueError
        If an input has too few dimensions.
    """
    return ExpmQuadLogdet()(delta, noise, matrix, *eigh(matrix), return_list=True)
