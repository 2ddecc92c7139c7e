"""What the ops that work by eigendecompositions share.

None of them differentiates an eigendecomposition: its derivative divides by differences of
eigenvalues and is not defined where these coincide, as they do in every exchangeable covariance.
The functions of the matrix that the ops compute are smooth there, and so are their closed-form
pullbacks. Op and pullback take the matrix, of which there is a derivative, and its decomposition,
of which there are the numbers.
"""

from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType, disconnected_type, pullback

from pytensor_mvn_rewrites.graph import lengths_of, substituted
from pytensor_mvn_rewrites.ops.gaussian import GaussianPullbackOp, KernelOp, nan_unless


class FiniteEigh(KernelOp):
    r"""Eigenvalues and eigenvectors of symmetric matrices, signature ``(n,n)->(n),(n,n)``.

    Inputs
        matrix : float, shape (..., n, n). Its lower triangle is read.

    Outputs
        eigenvalues : float, shape (..., n), NaN where an entry of the matrix is not finite, of
        which LAPACK knows nothing; eigenvectors : float, shape (..., n, n).
    """

    __props__ = ()
    signature = "(n,n)->(n),(n,n)"

    def build_inner_graph(self, matrix):
        """LAPACK on the finite ones."""
        finite = pt.isfinite(matrix).all(axis=(-2, -1))
        zero = np.asarray(0, dtype=matrix.type.dtype)
        eigenvalues, eigenvectors = pt.linalg.eigh(
            pt.switch(finite[..., None, None], matrix, zero), driver="evd"
        )
        return [nan_unless(finite[..., None], eigenvalues), eigenvectors]


def eigh(matrix):
    """Apply :class:`FiniteEigh`; returns (eigenvalues, eigenvectors)."""
    return FiniteEigh()(matrix, return_list=True)


class SharedRows:
    """Vectors that share a matrix as the rows of one: all the work on them is matrix products.

    The leading batch dimensions that only the vectors have become one axis before the core axes.

    Parameters
    ----------
    vectors : tensor, shape (..., n)
    batch_ndim : int
        Number of batch dimensions of the matrices, aligned from the right with those of `vectors`.
    """

    def __init__(self, vectors, batch_ndim: int):
        self.batch_ndim = batch_ndim
        self.leading = lengths_of(vectors, 0, max(0, vectors.type.ndim - 1 - batch_ndim))
        self.rows = self.fold(vectors, 1)

    def fold(self, var, core_ndim: int):
        """Shape (*leading, *batch, *core) -> (*batch, rows, *core)."""
        if not self.leading:
            return pt.expand_dims(var, axis=var.type.ndim - core_ndim)
        n_leading = len(self.leading)
        if n_leading > 1:
            var = var.reshape((pt.prod(var.shape[:n_leading]), *lengths_of(var, n_leading)))
        return pt.moveaxis(var, 0, -1 - core_ndim)

    def unfold(self, var, core_ndim: int):
        """Shape (*batch, rows, *core) -> (*leading, *batch, *core)."""
        if not self.leading:
            return var.squeeze(axis=-1 - core_ndim)
        var = pt.moveaxis(var, -1 - core_ndim, 0)
        if len(self.leading) > 1:
            var = var.reshape((*self.leading, *lengths_of(var, 1)))
        return var


class EigenPullbackOp(GaussianPullbackOp):
    """Base of the pullbacks by eigendecompositions; their own derivatives are those of a formula.

    Inputs are those of the function that is differentiated, of which there are gradients, its
    eigendecompositions, and two cotangents.
    """

    @staticmethod
    def formula(*inputs) -> list:
        """The function by operations that PyTensor differentiates: only Hessians need it."""
        raise NotImplementedError

    def pullback(self, inputs, outputs, output_grads):
        """Derivative of the pullback of `formula`."""
        n_parts = len(outputs)
        inputs, eigen = [*inputs[:n_parts], *inputs[-2:]], inputs[n_parts:-2]
        # of fresh variables: the cotangents may depend on the inputs
        fresh: list[Any] = [inp.type() for inp in inputs]
        points, cotangents = fresh[:n_parts], fresh[n_parts:]
        grads: Any = pullback(self.formula(*points)[:2], points, cotangents)
        connected = [
            (grad, grad.type(), weight)
            for grad, weight in zip(grads, output_grads, strict=True)
            if not isinstance(weight.type, DisconnectedType)
        ]
        weighted, fresh_weights, weights = map(list, zip(*connected, strict=True))
        second: Any = pullback(
            weighted,
            fresh,
            fresh_weights,
            disconnected_inputs="ignore",
            return_disconnected="disconnected",
        )
        by_input = dict(zip([*fresh, *fresh_weights], [*inputs, *weights], strict=True))
        # the cotangents themselves, not copies: a pushforward is a derivative by them
        second = substituted(second, by_input, ())
        return [*second[:n_parts], *(disconnected_type() for _ in eigen), *second[n_parts:]]

    def connection_pattern(self, node):
        """The gradient for delta does not depend on the cotangent of half the log-determinant."""
        n_parts = len(node.outputs)
        connected, disconnected = [True] * n_parts, [False] * n_parts
        n_eigen = len(node.inputs) - n_parts - 2
        of_half_logdet = [False, *connected[1:]]
        return [*[connected] * n_parts, *[disconnected] * n_eigen, connected, of_half_logdet]
