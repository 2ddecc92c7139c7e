"""Covariances that are given as the inverse of a precision matrix."""

from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.linalg.inverse import MatrixInverse

from pytensor_mvn_rewrites.matching import dimshuffled, matrix_view, without_leading_ones
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp
from pytensor_mvn_rewrites.pipeline import Declined, record, structure
from pytensor_mvn_rewrites.structure._assemble import outputs_like
from pytensor_mvn_rewrites.structure._symmetry import is_symmetric

NOT_SYMMETRIC = (
    "the precision is not proven symmetric: declare it with "
    "pytensor.assumptions.assume(matrix, symmetric=True)"
)


@structure
@node_rewriter([MvNormalLogp, InvQuadLogdet])
def covariance_is_inverse_precision(fgraph, node):
    r"""MvNormalLogp{cov}(x, mu, inv(T)) -> MvNormalLogp{tau}(x, mu, T), and back.

    .. math:: d^\top (T^{-1})^{-1} d = \|L^\top d\|^2, \qquad
              \log|T^{-1}| = -2 \sum_i \log L_{ii}, \qquad T = L L^\top

    The same for ``InvQuadLogdet``. Cost: an inverse, a factorization and a solve become a
    factorization and a product. Declines unless T is proven symmetric: the dense graph reads the
    lower triangle of the inverse, which depends on both triangles of T. Declines for
    pseudo-inverses, whose T may be singular, and for products of inverses.
    """
    other = {"cov": "tau", "tau": "cov"}.get(node.op.param)
    if other is None:
        return None
    *vectors, matrix = node.inputs
    view = matrix_view(matrix)
    match view.core.owner_op_and_inputs:
        case (Blockwise(MatrixInverse()), inverted):
            pass
        case _:
            return None
    if inverted.type.dtype != matrix.type.dtype:
        return None
    if not is_symmetric(fgraph, inverted):
        record(Declined("structure", "covariance_is_inverse_precision", NOT_SYMMETRIC))
        return None
    n_batch = inverted.type.ndim - 2
    last_two = (n_batch, n_batch + 1)
    core_order = tuple(reversed(last_two)) if view.transposed else last_two
    inverted = dimshuffled(inverted, (*view.batch_order, *core_order))
    outputs = type(node.op)(param=other)(
        *vectors, without_leading_ones(inverted, 2), return_list=True
    )
    return outputs_like(node, outputs)
