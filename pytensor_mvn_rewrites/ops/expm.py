"""``ExpmQuaddist``: the quadratic form of a matrix exponential as one op."""

import numpy as np
import pytensor.tensor as pt

from pytensor_mvn_rewrites.ops.eigen import SharedRows, eigh, pullback_of_pullback
from pytensor_mvn_rewrites.ops.gaussian import GaussianOp, GaussianPullbackOp, fold_lower


class ExpmQuaddist(GaussianOp):
    r"""Quadratic form of the exponential of a symmetric matrix, signature ``(n),(n,n)->()``.

    .. math:: q = \delta^\top e^X \delta = \sum_i e^{\lambda_i} r_i^2, \qquad
              X = Q \Lambda Q^\top, \qquad r = Q^\top \delta

    Inputs
        delta : float, shape (..., n); matrix : float, shape (..., n, n), symmetric; its lower
        triangle is read.

    Outputs
        quaddist : float, shape (...), NaN where the matrix is not finite.
    """

    core_ndims = (1, 2)
    out_core_ndims = (0,)

    def __str__(self):
        return type(self).__name__

    def build_inner_graph(self, delta, matrix):
        """The formula, in plain PyTensor."""
        delta = SharedRows(delta, matrix.type.ndim - 2)
        eigenvalues, eigenvectors = eigh(matrix)
        rotated = delta.rows @ eigenvectors
        return [delta.unfold((pt.exp(eigenvalues)[..., None, :] * rotated**2).sum(axis=-1), 0)]

    def pullback(self, inputs, outputs, output_grads):
        """Closed form, as one op that is differentiable in turn."""
        return ExpmQuaddistPullback()(*inputs, *output_grads, return_list=True)


class ExpmQuaddistPullback(GaussianPullbackOp):
    r"""Gradient of :class:`ExpmQuaddist`: ``(n),(n,n),()->(n),(n,n)``.

    .. math::

        \bar\delta &= 2 \bar q\, Q (e^\lambda \circ r) \\
        \bar X &= \bar q\, Q \big[ \Phi \circ r r^\top \big] Q^\top, \qquad
        \Phi_{ij} = \frac{e^{\lambda_i} - e^{\lambda_j}}{\lambda_i - \lambda_j}
            = e^{\max(\lambda_i, \lambda_j)} \frac{1 - e^{-d}}{d}, \quad
            d = |\lambda_i - \lambda_j|

    :math:`\Phi_{ij} = e^{\lambda_i}` where eigenvalues coincide. :math:`\bar X` is folded into the
    lower triangle. (Daleckii and Krein; Higham, Functions of Matrices, 2008, theorem 3.11.)

    Its own derivative is that of PyTensor's matrix exponential.
    """

    core_ndims = (1, 2, 0)
    forward_core_ndims = (1, 2)
    out_core_ndims = (1, 2)

    __str__ = ExpmQuaddist.__str__

    def build_inner_graph(self, delta, matrix, g_quad):
        """The formulas, in plain PyTensor."""
        inputs = [delta, matrix]
        delta = SharedRows(delta, matrix.type.ndim - 2)
        eigenvalues, eigenvectors = eigh(matrix)
        rotated = delta.rows @ eigenvectors
        weighted = delta.fold(g_quad, 0)[..., None] * rotated
        d_rows = (2 * weighted * pt.exp(eigenvalues)[..., None, :]) @ eigenvectors.mT
        inner = divided_differences_of_exp(eigenvalues) * (weighted.mT @ rotated)
        d_matrix = fold_lower(eigenvectors @ inner @ eigenvectors.mT)
        return self.sum_to_inputs(inputs, [delta.unfold(d_rows, 1), d_matrix])

    def pullback(self, inputs, outputs, output_grads):
        """The derivative of PyTensor's matrix exponential: only Hessians need it."""
        return pullback_of_pullback(dense_quaddist, inputs, output_grads)


def divided_differences_of_exp(x):
    """``(exp(x_i) - exp(x_j)) / (x_i - x_j)``, shape (..., n, n); its limit where they coincide."""
    one = np.asarray(1, dtype=x.type.dtype)
    rows, columns = x[..., :, None], x[..., None, :]
    distance = abs(rows - columns)
    ratio = -pt.expm1(-distance) / pt.switch(distance > 0, distance, one)
    return pt.exp(pt.maximum(rows, columns)) * pt.switch(distance > 0, ratio, one)


def dense_quaddist(delta, matrix):
    """The same by PyTensor's matrix exponential."""
    symmetric = pt.tril(matrix) + pt.tril(matrix, -1).mT
    exponential = pt.linalg.expm(symmetric)
    return [(delta[..., None, :] @ exponential @ delta[..., :, None])[..., 0, 0]]


def expm_quaddist(delta, matrix):
    """Apply :class:`ExpmQuaddist`.

    Parameters
    ----------
    delta : tensor_like of float, shape (..., n)
    matrix : tensor_like of float, shape (..., n, n)
        Symmetric.

    Returns
    -------
    quaddist : tensor of float, shape (...)

    Raises
    ------
    ValueError
        If an input has too few dimensions.
    """
    [quaddist] = ExpmQuaddist()(delta, matrix, return_list=True)
    return quaddist
