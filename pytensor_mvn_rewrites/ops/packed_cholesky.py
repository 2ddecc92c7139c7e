"""``PackedCholesky``: the Cholesky factor of ``pm.LKJCholeskyCov``, and what its prior looks at."""

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import disconnected_type

from pytensor_mvn_rewrites.ops.gaussian import KernelOp, PullbackOp, connected_cotangents


def packed_length(n: int) -> int:
    """The number of entries on and below the diagonal of an n x n matrix."""
    return n * (n + 1) // 2


def diagonal_positions(n: int) -> np.ndarray:
    """Where the diagonal of a lower triangle of n rows is, packed row by row."""
    return np.arange(1, n + 1).cumsum() - 1


class PackedCholesky(KernelOp):
    r"""Unpack a lower triangle, signature ``(p)->(n,n),(n),(n),(n)`` with p = n (n + 1) / 2.

    .. math:: s_i = \sqrt{\textstyle\sum_{j \le i} L_{ij}^2}, \qquad r_i = L_{ii} / s_i

    L is a Cholesky factor of a covariance, s its standard deviations, and r the diagonal of the
    Cholesky factor of its correlations: all that the prior of ``pm.LKJCholeskyCov`` looks at, whose
    variables are packed. With `log_diagonal` the packed vector has the logarithms of the diagonal,
    as PyMC's transform ``CholeskyCovPacked`` leaves it.

    Each row is summed by itself; PyMC takes differences of cumulative sums over all rows, which
    cancel where rows differ by orders of magnitude.

    Parameters
    ----------
    n : int
        Number of rows.
    log_diagonal : bool

    Inputs
        packed : float, shape (..., p), row by row.

    Outputs
        chol : float, shape (..., n, n);
        sd, corr_diag : float, shape (..., n);
        diag : float, shape (..., n): the diagonal as it is packed.
    """

    __props__ = ("n", "log_diagonal")
    n: int
    log_diagonal: bool
    signature = "(p)->(n,n),(n),(n),(n)"

    def __str__(self):
        return f"{type(self).__name__}{{n={self.n}{', log_diagonal' * self.log_diagonal}}}"

    def build_inner_graph(self, packed):
        """The formulas, in plain PyTensor."""
        n, positions = self.n, diagonal_positions(self.n)
        diag = packed[..., positions]
        entries = pt.set_subtensor(packed[..., positions], pt.exp(diag))
        entries = entries if self.log_diagonal else packed
        zeros = pt.zeros((*tuple(packed.shape)[:-1], n, n), dtype=packed.type.dtype)
        rows, columns = np.tril_indices(n)
        chol = pt.set_subtensor(zeros[..., rows, columns], entries)
        sd = pt.sqrt((chol**2).sum(axis=-1))
        corr_diag = entries[..., positions] / sd
        return [chol, sd, corr_diag, diag]

    def infer_shape(self, node, shapes):
        """Batch shape of the input, core shapes from `n`."""
        batch = self.batch_shape(node, shapes)
        n = pt.constant(self.n, dtype="int64")
        return [(*batch, *((n,) * core)) for core in self.out_core_ndims]

    def pullback(self, inputs, outputs, output_grads):
        """Closed form; a disconnected output counts as zero."""
        cotangents = connected_cotangents(outputs, output_grads)
        if cotangents is None:
            return [disconnected_type()]
        pullback = PackedCholeskyPullback(n=self.n, log_diagonal=self.log_diagonal)
        return [pullback(*outputs[:3], *cotangents)]


class PackedCholeskyPullback(KernelOp, PullbackOp):
    r"""Gradient of :class:`PackedCholesky` from its outputs and their cotangents.

    Signature ``(n,n),(n),(n),(n,n),(n),(n),(n)->(p)``. For the entries of L, i >= j,

    .. math:: \bar L_{ij} \mathrel{+}= \frac{L_{ij}}{s_i} \bigl(\bar s_i - \bar r_i r_i / s_i\bigr)
              + [i = j]\, \bar r_i / s_i

    and, where the diagonal is packed by its logarithms :math:`d_i`, :math:`\bar d_i =
    \bar L_{ii} L_{ii}`, to which the cotangent of the output `diag` is added.
    """

    __props__ = ("n", "log_diagonal")
    n: int
    log_diagonal: bool
    signature = "(n,n),(n),(n),(n,n),(n),(n),(n)->(p)"

    __str__ = PackedCholesky.__str__

    def build_inner_graph(self, chol, sd, corr_diag, g_chol, g_sd, g_corr_diag, g_diag):
        """The formulas, in plain PyTensor."""
        n = self.n
        per_row = (g_sd - g_corr_diag * corr_diag / sd) / sd
        g_entries = g_chol + chol * per_row[..., None]
        g_packed = g_entries[(..., *np.tril_indices(n))]
        positions = diagonal_positions(n)
        on_diagonal = g_packed[..., positions] + g_corr_diag / sd
        if self.log_diagonal:
            on_diagonal = on_diagonal * pt.diagonal(chol, axis1=-2, axis2=-1)
        return [pt.set_subtensor(g_packed[..., positions], on_diagonal + g_diag)]

    def infer_shape(self, node, shapes):
        """Batch shape of the inputs, core shape from `n`."""
        p = packed_length(self.n)
        return [(*self.batch_shape(node, shapes), pt.constant(p, dtype="int64"))]


def packed_cholesky(packed, n: int, *, log_diagonal: bool = False):
    """Apply :class:`PackedCholesky`; returns (chol, sd, corr_diag, diag).

    Parameters
    ----------
    packed : tensor_like of float, shape (..., n (n + 1) / 2)
    n : int
    log_diagonal : bool

    Raises
    ------
    ValueError
        If `packed` has no dimension.
    """
    return PackedCholesky(n=n, log_diagonal=log_diagonal)(packed, return_list=True)
