"""Rows whose covariance is one of a few."""

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.tensor.subtensor import AdvancedSubtensor

from pytensor_mvn_rewrites.graph import Tensor
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.constants import constant_value
from pytensor_mvn_rewrites.structure._assemble import outputs_like
from pytensor_mvn_rewrites.structure._gathers import Gather, gathered
from pytensor_mvn_rewrites.structure._structure import (
    describe,
    is_large,
    known_cholesky_factor,
    length_of_vectors,
)

#: Groups that differ more in their numbers of rows than this cost more as a batch than apart.
MAX_PADDING = 3


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
    Declines when no more rows than matrices are known to be there, and for the next rule.
    """
    *vectors, matrix = node.inputs
    found = gathered(matrix)
    if found is None or found.batch.type.ndim != matrix.type.ndim:
        return None
    n_matrices, n_rows = found.batch.type.shape[0], matrix.type.shape[0]
    if n_matrices is None or (n_rows is not None and n_rows <= n_matrices):
        return None
    if of_structures(fgraph, node, found) is not None:
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


@structure
@node_rewriter([MvNormalLogp, InvQuadLogdet])
def gathered_structures_are_a_batch(fgraph, node):
    r"""MvNormalLogp(x, mu, S[g]) -> MvNormalLogp(x[P], mu[P], S[:, None])[g, k].

    The rows of group g are row g of P, padded to the number of rows of the largest group; row r is
    the :math:`k_r`-th of its group:

    .. math:: \log N(x_r \mid \mu_r, \Sigma_{g_r}) = \ell_{g_r k_r}, \qquad
              \ell_{gk} = \log N(x_{P_{gk}} \mid \mu_{P_{gk}}, \Sigma_g)

    The same for ``InvQuadLogdet``. Cost: a batch of G matrices is taken apart, where one dense
    Cholesky factor of each would be needed; up to `MAX_PADDING` times as many rows.
    Declines unless the matrices are large and made of something, the index is constant and every
    matrix has rows.
    """
    *vectors, matrix = node.inputs
    found = gathered(matrix)
    groups = None if found is None else of_structures(fgraph, node, found)
    if groups is None:
        return None
    n_groups = found.batch.type.shape[0]
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups, minlength=n_groups)
    place = np.empty_like(groups)
    place[order] = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.zeros((n_groups, counts.max()), dtype=int)
    rows[groups, place] = np.arange(len(groups))
    padded = [vector[rows] if varies_by_row(vector) else vector for vector in vectors]
    outputs = type(node.op)(param=node.op.param)(*padded, found.batch[:, None], return_list=True)
    return outputs_like(node, [out[groups, place] for out in outputs])


def varies_by_row(vector: Tensor) -> bool:
    """Whether `vector`, shape (n,), (1, n) or (R, n), has rows of its own."""
    return vector.type.ndim == 2 and not vector.type.broadcastable[0]


def of_structures(fgraph, density: Apply, found: Gather) -> np.ndarray | None:
    """The group of each row, where the matrices are taken apart more cheaply as a batch."""
    n, n_groups = length_of_vectors(density), found.batch.type.shape[0]
    index = constant_value(found.rows)
    if index is None or n_groups is None or not is_large(n):
        return None
    if found.batch.type.ndim != 3 or any(vector.type.ndim > 2 for vector in density.inputs[:-1]):
        return None
    if not len(index) or not np.isin(index, np.arange(-n_groups, n_groups)).all():
        return None
    groups = np.asarray(index, dtype=int) % n_groups
    counts = np.bincount(groups, minlength=n_groups)
    if not counts.all() or n_groups * counts.max() > MAX_PADDING * len(groups):
        return None
    made_of = describe(fgraph, found.batch, n, density.op.param)
    return None if made_of is None or made_of.cholesky() is not None else groups
