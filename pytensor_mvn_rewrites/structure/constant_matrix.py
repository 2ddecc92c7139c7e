"""Constant covariances: factored, and constant data whitened, when the graph is compiled."""

from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Self

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.scalar.basic import Mul
from pytensor.tensor.elemwise import Elemwise

from pytensor_mvn_rewrites.graph import Tensor
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp, inv_quad_logdet
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.constants import constant_value
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from pytensor_mvn_rewrites.structure._assemble import from_parts, split_inputs
from pytensor_mvn_rewrites.structure._gathers import gathered
from pytensor_mvn_rewrites.structure._rowwise import NotRowwise, linear_in_rows, with_other_rows
from pytensor_mvn_rewrites.structure._structure import Structure


@structure
@dataclass(frozen=True)
class ConstantMatrix(Structure):
    r"""MvNormalLogp{cov}(x, mu, s * S), S constant -> MvNormalLogp{chol}(x, mu, sqrt(s) * chol(S)).

    .. math:: \mathrm{chol}(s \Sigma) = \sqrt s\, \mathrm{chol}(\Sigma)

    The same for ``InvQuadLogdet``, with or without scales s, one for each matrix. Cost:
    :math:`O(n^3) \to O(n^2)` in each evaluation. A scale that is negative makes the Cholesky factor
    NaN, one that is zero makes its diagonal zero: not positive definite, as before.
    Declines when a constant matrix has no Cholesky factorization, and for diagonal ones.
    """

    #: Shape (..., n, n).
    chol: Tensor

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Factor it now."""
        constants, scale = constant_and_scale(matrix)
        if constants is None or diagonal_of(matrix) is not None:
            return None
        try:
            chol: Tensor = pt.constant(np.linalg.cholesky(constants).astype(matrix.type.dtype))
        except np.linalg.LinAlgError:
            return None
        if not np.isfinite(chol.data).all():
            return None
        return cls(chol if scale is None else pt.sqrt(scale) * chol)

    def cholesky(self):
        """The scaled constant."""
        return self.chol


def constant_and_scale(matrix: Tensor) -> tuple[np.ndarray | None, Tensor | None]:
    """`matrix` as constant matrices and the number of each, if there is one, or (None, None).

    The constant comes in double precision and without leading dimensions of length 1. Of several
    numbers only the product is known to be positive where the matrix is positive definite.
    """
    scales: list[Tensor] = []
    match matrix.owner_op_and_inputs:
        case (Elemwise(scalar_op=Mul()), *inputs):
            scales = [inp for inp in inputs if all(inp.type.broadcastable[-2:])]
            matrices = [inp for inp in inputs if inp not in scales]
        case _:
            matrices = [matrix]
    data = constant_value(matrices[0]) if len(matrices) == 1 else None
    if data is None:
        return None, None
    data = np.asarray(data, dtype="float64")
    while data.ndim > 2 and len(data) == 1:
        [data] = data
    return data, reduce(mul, scales) if scales else None


@structure
@node_rewriter([MvNormalLogp, InvQuadLogdet])
def constant_matrix_is_unscaled(fgraph, node):
    r"""InvQuadLogdet{chol}(delta, s * L), L constant -> InvQuadLogdet{chol}(delta, L), scaled.

    .. math:: \|(s L)^{-1} \delta\|^2 = \|L^{-1} \delta\|^2 / s^2, \qquad
              \log|s L| = n \log s + \log|L|

    The same for ``MvNormalLogp``. Cost: no gradient of n**2 entries, of which only the sum with L
    is wanted, and no logarithms but those of s. A scale that is not positive: not positive
    definite, as before.
    Declines when L is no Cholesky factor, without scales, and for gathered ones: rows that share
    a matrix are compressed together with it.
    """
    chol = node.inputs[-1]
    factor, scale = constant_and_scale(chol)
    if node.op.param != "chol" or factor is None or scale is None or not is_cholesky_factor(factor):
        return None
    if gathered(chol) is not None:
        return None
    delta, _ = split_inputs(node)
    quaddist, _, _ = inv_quad_logdet(delta, factor.astype(chol.type.dtype), "chol")
    scale = scale[..., 0, 0]
    half_logdet = half_logdet_constant(factor, quaddist.type.dtype)
    half_logdet = half_logdet + factor.shape[-1] * pt.log(scale)
    return from_parts(node, quaddist / scale**2, half_logdet, scale > 0)


@structure
@node_rewriter([MvNormalLogp, InvQuadLogdet])
def constant_vector_is_whitened(fgraph, node):
    r"""InvQuadLogdet{chol}(y - X @ b, L), y, X, L constant -> sum((T_y - T_X @ b)**2).

    .. math:: \|L^{-1}(y - X b)\| = \|T_y - T_X b\|, \qquad L^{-1} [X, y] = Q T

    for any difference to the mean whose entries are linear in those of constant vectors. Where
    there are fewer of these vectors than entries, QR leaves as many entries as vectors; else Q is
    the identity. Cost: :math:`O(n^2) \to` that of the mean, or less. Scaled L: see above.
    Declines for a batch of matrices and when the difference is not linear in constant vectors.
    """
    delta, chol = split_inputs(node)
    factor, scale = constant_and_scale(chol)
    if node.op.param != "chol" or factor is None or scale is not None or factor.ndim != 2:
        return None
    n, axis = len(factor), delta.type.ndim - 1
    if delta.type.shape[axis] != n or not is_cholesky_factor(factor):
        return None
    try:
        columns, indices = linear_in_rows(delta, axis, n)
    except NotRowwise:
        return None
    if indices.size or not np.isfinite(columns).all():
        return None
    # SciPy takes 0.15 s to import: only with a matrix at hand
    from scipy.linalg import solve_triangular

    whitened = solve_triangular(np.tril(factor), columns, lower=True)
    if n > columns.shape[1]:
        whitened = np.linalg.qr(whitened, mode="r")
    quaddist = (with_other_rows(delta, axis, columns, whitened, []) ** 2).sum(axis=-1)
    half_logdet = half_logdet_constant(factor, delta.type.dtype)
    return from_parts(node, quaddist, half_logdet, pt.constant(np.True_))


def is_cholesky_factor(matrices: np.ndarray) -> bool:
    """Whether the lower triangles of `matrices`, shape (..., n, n), are Cholesky factors."""
    diagonals = np.diagonal(matrices, axis1=-2, axis2=-1)
    return bool((diagonals > 0).all() and np.isfinite(np.tril(matrices)).all())


def half_logdet_constant(factor: np.ndarray, dtype: str) -> Tensor:
    """Half the log-determinants of the covariances with these Cholesky factors."""
    logs = np.log(np.diagonal(factor, axis1=-2, axis2=-1))
    return pt.constant(logs.sum(axis=-1), dtype=dtype)
