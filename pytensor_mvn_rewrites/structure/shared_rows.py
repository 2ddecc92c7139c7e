"""Groups of rows: a batch of structured matrices, each shared by several rows."""

import pytensor.tensor as pt
from pytensor.graph.rewriting.basic import node_rewriter

from pytensor_mvn_rewrites.graph import shared_axes, without_leading_ones, without_shared_axes
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.structure._assemble import outputs_like
from pytensor_mvn_rewrites.structure._structure import describe, large_structure


@structure
@node_rewriter([MvNormalLogp, InvQuadLogdet])
def shared_rows_come_first(fgraph, node):
    r"""MvNormalLogp(x, mu, S[:, None]) -> MvNormalLogp(x.T, mu.T, S).T, T of the batch axes.

    .. math:: \log N(x_{gr} \mid \mu_{gr}, \Sigma_g), \qquad
              x_{gr} \to x_{rg}, \quad \Sigma_{g1} \to \Sigma_g

    The axis of the rows that share a matrix stands between those of the batch of matrices and those
    of the matrix, where it hides what the matrices are made of: in front, it broadcasts. The same
    for ``InvQuadLogdet``. Cost: the vectors in another order; the matrices are taken apart once for
    all rows. Declines unless the matrices are large and made of something.
    """
    *vectors, matrix = node.inputs
    matrix = without_leading_ones(matrix, 2)
    core = without_shared_axes(matrix)
    if core is matrix or large_structure(fgraph, node) is None:
        return None
    if describe(fgraph, matrix, core.type.shape[-1], node.op.param) is not None:
        return None
    n_batch = node.outputs[0].type.ndim
    before = n_batch - (matrix.type.ndim - 2)
    shared = [before + axis for axis in shared_axes(matrix)]
    order = [*shared, *(axis for axis in range(n_batch) if axis not in shared)]
    moved = [pt.atleast_Nd(vector, n=n_batch + 1).transpose(*order, n_batch) for vector in vectors]
    outputs = type(node.op)(param=node.op.param)(*moved, core, return_list=True)
    back = [order.index(axis) for axis in range(n_batch)]
    return outputs_like(node, [out.transpose(*back) for out in outputs])
