"""``Whiten``: the inverse of a Cholesky factor times the columns of a matrix, as one op."""

import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType, pullback

from pytensor_mvn_rewrites.graph import length
from pytensor_mvn_rewrites.ops.gaussian import (
    KernelOp,
    PullbackOp,
    connected_cotangents,
    fold_lower,
)


class Whiten(KernelOp):
    r"""Whiten columns by a covariance, signature ``(n,n),(n,c)->(n,c),(),(),(n,n)``.

    .. math:: X = L^{-1} C, \qquad h = \tfrac12 \log|A|, \qquad A = L L^\top

    Inputs
        matrix : float, shape (..., n, n), of which the lower triangle is read;
        columns : float, shape (..., n, c).

    Outputs
        whitened : float, shape (..., n, c); half_logdet : float, shape (...);
        posdef : bool, shape (...); inv_chol : float, shape (..., n, n), :math:`L^{-1}`, which the
        gradient needs. NaN where the matrix is not positive definite.
    """

    __props__ = ()
    signature = "(n,n),(n,c)->(n,c),(),(),(n,n)"

    def build_inner_graph(self, matrix, columns):
        """The formulas, in plain PyTensor."""
        chol = pt.linalg.cholesky(matrix, lower=True)
        diag = pt.diagonal(chol, axis1=-2, axis2=-1)
        eye = pt.eye(length(matrix), dtype=matrix.type.dtype)
        return [
            pt.linalg.solve_triangular(chol, columns, lower=True, b_ndim=2),
            pt.log(diag).sum(axis=-1),
            pt.all(diag > 0, axis=-1),
            pt.linalg.solve_triangular(chol, eye, lower=True, b_ndim=2),
        ]

    def infer_shape(self, node, shapes):
        """Those of the columns and of the matrix."""
        matrix, columns = shapes
        batch = tuple(self.batch_shape(node, shapes))
        return [(*batch, *columns[-2:]), matrix[:-2], matrix[:-2], matrix]

    def pullback(self, inputs, outputs, output_grads):
        """Closed form; that of the formula where it does not hold.

        That is where inputs are broadcast, and where Hessians differentiate the inverse.
        """
        matrix, columns = inputs
        is_broadcast = matrix.type.broadcastable[:-2] != columns.type.broadcastable[:-2]
        if is_broadcast or not isinstance(output_grads[3].type, DisconnectedType):
            formula = self.build_inner_graph(*inputs)
            del formula[2]
            own = [outputs[0], outputs[1], outputs[3]]
            cotangents = connected_cotangents(own, [*output_grads[:2], output_grads[3]])
            return pullback(formula, inputs, cotangents)
        cotangents = connected_cotangents(outputs[:2], output_grads[:2])
        whitened, _, _, inv_chol = outputs
        return WhitenPullback()(inv_chol, whitened, *cotangents, return_list=True)

    def connection_pattern(self, node):
        """`posdef` is not differentiable, and only `whitened` depends on the columns."""
        return [[True, True, False, True], [True, False, False, False]]


class WhitenPullback(KernelOp, PullbackOp):
    r"""Gradient of :class:`Whiten`, signature ``(n,n),(n,c),(n,c),()->(n,n),(n,c)``.

    From its outputs :math:`L^{-1}` and X and their cotangents, with :math:`\Phi` the lower triangle
    of a matrix, its diagonal halved,

    .. math:: \bar C = L^{-\top} \bar X, \qquad
        \bar A = L^{-\top} \big[ \tfrac12 \bar h I - \Phi(\bar X X^\top) \big] L^{-1}

    :math:`\bar A` is made symmetric and folded into the lower triangle.
    (Murray, Differentiation of the Cholesky decomposition, 2016.)
    """

    __props__ = ()
    signature = "(n,n),(n,c),(n,c),()->(n,n),(n,c)"

    def build_inner_graph(self, inv_chol, whitened, g_whitened, g_half_logdet):
        """The formulas, in plain PyTensor."""
        n, dtype = length(inv_chol), inv_chol.type.dtype
        eye = pt.eye(n, dtype=dtype)
        half_lower = pt.tri(n, dtype=dtype) - 0.5 * eye
        inner = 0.5 * g_half_logdet[..., None, None] * eye
        inner = inner - half_lower * (g_whitened @ whitened.mT)
        d_matrix = inv_chol.mT @ inner @ inv_chol
        grads = [fold_lower(0.5 * (d_matrix + d_matrix.mT)), inv_chol.mT @ g_whitened]
        return [grad.astype(dtype) for grad in grads]

    def infer_shape(self, node, shapes):
        """The joint batch shape, and the core shapes of the forward op's inputs."""
        batch = tuple(self.batch_shape(node, shapes))
        return [(*batch, *shapes[0][-2:]), (*batch, *shapes[1][-2:])]


def whiten_by(matrix, columns):
    """Apply :class:`Whiten`; returns (whitened, half_logdet, posdef)."""
    return Whiten()(matrix, columns, return_list=True)[:3]
