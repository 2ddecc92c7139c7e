"""What the ops that work by eigendecompositions share.

None of them differentiates an eigendecomposition: its derivative divides by differences of
eigenvalues and is not defined where these coincide, as they do in every exchangeable covariance.
The functions of the matrix that the ops compute are smooth there, and so are their closed-form
pullbacks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType, pullback
from pytensor.graph.basic import Variable
from pytensor.graph.replace import clone_replace

from pytensor_mvn_rewrites.ops.gaussian import KernelOp


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
        nan = np.asarray(np.nan, dtype=matrix.type.dtype)
        zero = np.asarray(0, dtype=matrix.type.dtype)
        eigenvalues, eigenvectors = pt.linalg.eigh(
            pt.switch(finite[..., None, None], matrix, zero), driver="evd"
        )
        return [pt.switch(finite[..., None], eigenvalues, nan), eigenvectors]


def eigh(matrix):
    """Apply :class:`FiniteEigh`; returns (eigenvalues, eigenvectors)."""
    return FiniteEigh()(matrix, return_list=True)


def length(var, axis: int = -1):
    """The length of an axis, a number where the type tells it."""
    static = var.type.shape[axis]
    return var.shape[axis] if static is None else static


def lengths(var, start: int | None = None, stop: int | None = None) -> tuple:
    """`length` of the axes `start` to `stop`."""
    return tuple(length(var, axis) for axis in range(var.type.ndim)[start:stop])


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
        self.leading = lengths(vectors, 0, max(0, vectors.type.ndim - 1 - batch_ndim))
        self.rows = self.fold(vectors, 1)

    def fold(self, var, core_ndim: int):
        """Shape (*leading, *batch, *core) -> (*batch, rows, *core)."""
        if not self.leading:
            return pt.expand_dims(var, axis=var.type.ndim - core_ndim)
        n_leading = len(self.leading)
        if n_leading > 1:
            var = var.reshape((pt.prod(var.shape[:n_leading]), *lengths(var, n_leading)))
        return pt.moveaxis(var, 0, -1 - core_ndim)

    def unfold(self, var, core_ndim: int):
        """Shape (*batch, rows, *core) -> (*leading, *batch, *core)."""
        if not self.leading:
            return var.squeeze(axis=-1 - core_ndim)
        var = pt.moveaxis(var, -1 - core_ndim, 0)
        if len(self.leading) > 1:
            var = var.reshape((*self.leading, *lengths(var, 1)))
        return var


def pullback_of_pullback(
    formula: Callable[..., list], inputs: Sequence[Variable], output_grads: Sequence[Variable]
) -> list[Variable]:
    """Derivative of the pullback of a function, by a formula for it that PyTensor differentiates.

    Parameters
    ----------
    formula : callable
        From the n inputs of the function to its outputs, the differentiable ones first.
    inputs : sequence of variables
        The n inputs, and a cotangent for each differentiable output.
    output_grads : sequence of variables
        One for each of the n gradients.
    """
    # of fresh variables: the cotangents may depend on the inputs
    fresh: list[Any] = [inp.type() for inp in inputs]
    points, cotangents = fresh[: len(output_grads)], fresh[len(output_grads) :]
    grads: Any = pullback(formula(*points)[: len(cotangents)], points, cotangents)
    connected = [
        (grad, grad.type(), weight)
        for grad, weight in zip(grads, output_grads, strict=True)
        if not isinstance(weight.type, DisconnectedType)
    ]
    weighted, fresh_weights, weights = map(list, zip(*connected, strict=True))
    second: Any = pullback(weighted, fresh, fresh_weights)
    return clone_replace(
        second, dict(zip([*fresh, *fresh_weights], [*inputs, *weights], strict=True))
    )
