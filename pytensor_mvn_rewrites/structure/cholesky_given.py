"""Covariances that are given through their Cholesky factor."""

from pytensor.assumptions import LOWER_TRIANGULAR, UPPER_TRIANGULAR, check_assumption
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import Dot

from pytensor_mvn_rewrites.matching import (
    dimshuffled,
    is_cholesky_factor,
    matrix_view,
    without_leading_ones,
)
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.structure._assemble import outputs_like


@structure
@node_rewriter([MvNormalLogp, InvQuadLogdet])
def cholesky_factor_is_given(fgraph, node):
    r"""MvNormalLogp{cov}(x, mu, L @ L.T) -> MvNormalLogp{chol}(x, mu, L), L lower triangular.

    .. math:: \mathrm{chol}(L L^\top) = L

    The same for ``InvQuadLogdet``, and for ``U.T @ U`` with an upper triangular U. Cost:
    :math:`O(n^3) \to O(n^2)`. A negative diagonal counts as not positive definite, as it does in
    PyTensor's own rule ``cholesky_ldotlt``, which needs the same proof.
    Declines unless the factor is known to be triangular, by PyTensor's tag or assumption, or is
    proven to be one with a positive diagonal.
    """
    if node.op.param != "cov":
        return None
    *vectors, cov = node.inputs
    chol = given_cholesky_factor(fgraph, cov)
    if chol is None or chol.type.dtype != cov.type.dtype:
        return None
    outputs = type(node.op)(param="chol")(*vectors, chol, return_list=True)
    return outputs_like(node, outputs)


def given_cholesky_factor(fgraph, cov):
    """The lower triangular L of ``cov = L @ L.mT``, or None."""
    view = matrix_view(cov)
    match view.core.owner_op_and_inputs:
        case (Dot() | Blockwise(Dot()), left, right):
            pass
        case _:
            return None
    if is_transpose_of(right, left) and is_triangular(fgraph, left, lower=True):
        chol = left
    elif is_transpose_of(left, right) and is_triangular(fgraph, right, lower=False):
        chol = left
    else:
        return None
    n_batch = view.core.type.ndim - 2
    return without_leading_ones(dimshuffled(chol, (*view.batch_order, n_batch, n_batch + 1)), 2)


def is_transpose_of(var, other) -> bool:
    """Whether `var` is `other.mT`, seen through PyTensor's expansion of batch dimensions."""
    match var.owner_op_and_inputs:
        case (DimShuffle(is_left_expanded_matrix_transpose=True), inner):
            return inner is other
    return False


def is_triangular(fgraph, matrix, *, lower: bool) -> bool:
    """Whether PyTensor, or a tag that PyMC sets, says so, or a positive diagonal is proven."""
    name, assumption = (
        ("lower_triangular", LOWER_TRIANGULAR) if lower else ("upper_triangular", UPPER_TRIANGULAR)
    )
    if getattr(matrix.tag, name, False) or check_assumption(fgraph, matrix, assumption):
        return True
    return lower and is_cholesky_factor(matrix)
