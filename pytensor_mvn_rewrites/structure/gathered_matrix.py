"""Rows whose covariance is one of a few."""

import pytensor.tensor as pt
from pytensor.graph.rewriting.basic import node_rewriter

from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.structure._assemble import outputs_like
from pytensor_mvn_rewrites.structure._gathers import gathered
from pytensor_mvn_rewrites.structure.cholesky_given import given_cholesky_factor


@structure
@node_rewriter([MvNormalLogp, InvQuadLogdet])
def matrix_is_gathered(fgraph, node):
    r"""MvNormalLogp{cov}(x, mu, S[index]) -> MvNormalLogp{chol}(x, mu, chol(S)[index]).

    .. math:: \mathrm{chol}(\Sigma_{g(r)}) = \mathrm{chol}(\Sigma)_{g(r)}, \qquad r = 1, \dots, R

    The same for ``InvQuadLogdet``. The gather may sit below elementwise and batched ops, as in
    ``L[index] @ L[index].mT``. Cost: one factorization for each of the G matrices instead of one
    for each of the R rows. Matrices without rows do not matter, as before: their Cholesky factor,
    which may be NaN, is not gathered.
    Declines when no more rows than matrices are known to be there.
    """
    if node.op.param != "cov":
        return None
    *vectors, cov = node.inputs
    found = gathered(cov)
    if found is None or found.batch.type.ndim != cov.type.ndim:
        return None
    n_matrices, n_rows = found.batch.type.shape[0], cov.type.shape[0]
    if n_matrices is None or (n_rows is not None and n_rows <= n_matrices):
        return None
    chol = given_cholesky_factor(fgraph, found.batch)
    if chol is None:
        chol = pt.linalg.cholesky(found.batch, lower=True)
    if chol.type.ndim != cov.type.ndim or chol.type.dtype != cov.type.dtype:
        return None
    outputs = type(node.op)(param="chol")(*vectors, chol[found.rows], return_list=True)
    return outputs_like(node, outputs)
