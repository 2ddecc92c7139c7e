"""Rows whose covariance is one of a few."""

import pytensor.tensor as pt
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.tensor.subtensor import AdvancedSubtensor

from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.structure._assemble import outputs_like
from pytensor_mvn_rewrites.structure._gathers import gathered
from pytensor_mvn_rewrites.structure._structure import known_cholesky_factor


@structure
@node_rewriter([MvNormalLogp, InvQuadLogdet])
def matrix_is_gathered(fgraph, node):
    r"""MvNormalLogp{cov}(x, mu, S[index]) -> MvNormalLogp{chol}(x, mu, chol(S)[index]).

    .. math:: \mathrm{chol}(\Sigma_{g(r)}) = \mathrm{chol}(\Sigma)_{g(r)}, \qquad r = 1, \dots, R

    The same for ``InvQuadLogdet``. The gather may sit below elementwise and batched ops, as in
    ``L[index] @ L[index].mT``; there, it comes to the top of Cholesky factors and precisions as
    well. Cost: one factorization, and one element of whatever is above the gather, for each of the
    G matrices instead of one for each of the R rows; a kernel that takes an index then needs no
    gather at all. Matrices without rows do not matter, as before: their Cholesky factor, which may
    be NaN, is not gathered.
    Declines when no more rows than matrices are known to be there.
    """
    *vectors, matrix = node.inputs
    found = gathered(matrix)
    if found is None or found.batch.type.ndim != matrix.type.ndim:
        return None
    n_matrices, n_rows = found.batch.type.shape[0], matrix.type.shape[0]
    if n_matrices is None or (n_rows is not None and n_rows <= n_matrices):
        return None
    batch, param = found.batch, node.op.param
    if param == "cov":
        batch, param = known_cholesky_factor(fgraph, batch), "chol"
        if batch is None:
            batch = pt.linalg.cholesky(found.batch, lower=True)
    elif isinstance(matrix.owner.op, AdvancedSubtensor):
        return None
    if batch.type.ndim != matrix.type.ndim or batch.type.dtype != matrix.type.dtype:
        return None
    outputs = type(node.op)(param=param)(*vectors, batch[found.rows], return_list=True)
    return outputs_like(node, outputs)
