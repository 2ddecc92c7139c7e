"""Covariances that are given through an upper triangular factor on the left, ``U @ U.T``."""

import pytensor.tensor as pt
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.math import Dot

from pytensor_mvn_rewrites.matching import Tensor, matrix_view, without_leading_ones
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.structure._assemble import outputs_like
from pytensor_mvn_rewrites.structure._symmetry import is_transpose
from pytensor_mvn_rewrites.structure._triangular import Triangularity, triangularity
from pytensor_mvn_rewrites.structure.cholesky_given import is_upper_triangular


@structure
@node_rewriter([MvNormalLogp, InvQuadLogdet])
def upper_factor_is_given(fgraph, node):
    r"""MvNormalLogp{cov}(x, mu, U @ U.T) -> MvNormalLogp{chol}(J x, J mu, J U J), J reversing.

    With the order of the variables reversed, an upper triangular U is lower triangular, and

    .. math:: J U U^\top J = (J U J)(J U J)^\top, \qquad
              \mathrm{chol}(J \Sigma J) = J U J\, \mathrm{sign}(\mathrm{diag}\, J U J)

    The same for ``InvQuadLogdet``, and for ``L.T @ L`` with a lower triangular L. Cost:
    :math:`O(n^3) \to O(n^2)`.

    Declines for ``A @ A.T`` with a full A. An LU factorization of A would do instead of the product
    and its Cholesky factorization, but saves little of the gradient, and it would give a number
    where the product of a nearly singular A is not positive definite in floating point.
    """
    if node.op.param != "cov":
        return None
    *vectors, cov = node.inputs
    upper = given_upper_factor(fgraph, without_leading_ones(cov, 2))
    if upper is None or upper.type.dtype != cov.type.dtype:
        return None
    chol = upper[..., ::-1, ::-1]
    chol = chol * pt.sign(pt.diagonal(chol, axis1=-2, axis2=-1))[..., None, :]
    reversed_vectors = [vector[..., ::-1] for vector in vectors]
    outputs = type(node.op)(param="chol")(*reversed_vectors, chol, return_list=True)
    return outputs_like(node, outputs)


def given_upper_factor(fgraph, cov) -> Tensor | None:
    """The upper triangular U of ``cov = U @ U.mT``, or None."""
    match cov.owner_op_and_inputs:
        case (Dot() | Blockwise(Dot()), upper, right) if is_transpose(fgraph, upper, right):
            pass
        case _:
            return None
    view = matrix_view(upper)
    if view.transposed and triangularity(fgraph, view.core) is not Triangularity.UNKNOWN:
        return upper
    return upper if is_upper_triangular(fgraph, upper) else None
