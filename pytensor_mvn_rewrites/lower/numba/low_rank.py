"""The kernels of low rank plus diagonal: the factorization, and all that follows from it.

Layout: tall matrices are copied once, row by row, and the rows that share the covariance stand one
after the other, so that all work beyond that of one pass over the entries is a product of matrices.
"""

import numpy as np

from pytensor_mvn_rewrites.lower.numba.jit import is_kernel, njit_exact
from pytensor_mvn_rewrites.lower.numba.lapack import AS_IS, TRANSPOSED, matmul, orthonormalize
from pytensor_mvn_rewrites.lower.numba.structured import (
    N_ROWS,
    SIZES,
    N,
    NodeFunction,
    compiled_by,
    copy_in,
    copy_out,
    is_wanted,
    number,
)
from pytensor_mvn_rewrites.lower.numba.vectors import load, store, store_bool
from pytensor_mvn_rewrites.ops import (
    LowRankFactorization,
    LowRankQuadLogdet,
    LowRankQuadLogdetPullback,
)

NAMES = (
    *("delta", "factor", "diag", "root", "Q", "inv_R", "diag_R", "g_quad", "g_half_logdet"),
    *("quaddist", "half_logdet", "posdef", "d_delta", "d_factor", "d_diag"),
)
DELTA, FACTOR, DIAG, ROOT, Q, INV_R, DIAG_R, G_QUAD, G_HALF_LOGDET = range(9)
QUADDIST, HALF_LOGDET, POSDEF, D_DELTA, D_FACTOR, D_DIAG = range(9, 15)
K = SIZES


@compiled_by(LowRankFactorization)
def factorization_function(op, node) -> NodeFunction:
    """The function that a node calls."""
    names = "factor diag -> root Q inv_R diag_R"
    return NodeFunction.of(op, node, "low_rank_factorization", names, NAMES)


@compiled_by(LowRankQuadLogdet, LowRankQuadLogdetPullback)
def low_rank_function(op, node) -> NodeFunction:
    """The function that a node calls, for the value or the gradient."""
    parts = "delta factor diag root Q inv_R diag_R"
    names = f"{parts} -> quaddist half_logdet posdef"
    if isinstance(op, LowRankQuadLogdetPullback):
        names = f"{parts} g_quad g_half_logdet -> d_delta d_factor d_diag"
    return NodeFunction.of(op, node, "low_rank", names, NAMES)


@is_kernel("low_rank_factorization")
def factorize_low_rank(table):
    """The QR factorization of the scaled factor above the identity."""
    n, k = table[N], table[K]
    factor, root, inv_R = np.empty(n * k), np.empty(n), np.empty(k * k)
    # LAPACK's columns are rows here
    columns, diag_R = np.zeros((k, n + k)), np.empty(k)
    copy_in(table, FACTOR, n, k, factor)
    copy_in(table, DIAG, 1, n, root)
    for i in range(n):
        root[i] = np.sqrt(root[i]) if root[i] > 0.0 else np.nan
        for j in range(k):
            columns[j, i] = factor[i * k + j] / root[i]
    for j in range(k):
        columns[j, n + j] = 1.0
    orthonormalize(columns, diag_R)
    for j in range(k):
        diag_R[j] = abs(diag_R[j])
        for i in range(n):
            factor[i * k + j] = columns[j, i]
        for i in range(k):
            inv_R[i * k + j] = columns[j, n + i]
    copy_out(table, ROOT, 1, n, root)
    copy_out(table, Q, n, k, factor)
    copy_out(table, INV_R, k, k, inv_R)
    copy_out(table, DIAG_R, 1, k, diag_R)


@is_kernel("low_rank")
def run_rows(table):
    """Whiten all rows, then the value, or the gradients."""
    n_rows, n, k = table[N_ROWS], table[N], table[K]
    q, inv_R, root = np.empty(n * k), np.empty(k * k), np.empty(n)
    copy_in(table, Q, n, k, q)
    copy_in(table, INV_R, k, k, inv_R)
    rows, rest = np.empty(n_rows * n), np.empty(n_rows * n)
    c, u = np.empty(n_rows * k), np.empty(n_rows * k)
    copy_in(table, ROOT, 1, n, root)
    copy_in(table, DELTA, n_rows, n, rows)
    for r in range(n_rows):
        for i in range(n):
            rows[r * n + i] /= root[i]
    take_away_projection(table, q, rows, c, rest)
    matmul(n_rows, k, k, AS_IS, c, TRANSPOSED, inv_R, 0.0, u)
    if is_wanted(table, QUADDIST):
        store_value(table, root, rows, u)
    else:
        refine(table, root, q, rows, c, rest)
        store_gradients(table, root, q, inv_R, rows, u, rest)


@njit_exact
def take_away_projection(table, q, rows, c, scratch):
    """Write ``c = rows @ Q``, and take ``c @ Q.T`` away from the rows."""
    n_rows, n, k = table[N_ROWS], table[N], table[K]
    matmul(n_rows, k, n, AS_IS, rows, AS_IS, q, 0.0, c)
    matmul(n_rows, n, k, AS_IS, c, TRANSPOSED, q, 0.0, scratch)
    for i in range(rows.size):
        rows[i] -= scratch[i]


@njit_exact
def store_value(table, root, rows, u):
    """Quadratic forms as sums of squares, and half the log-determinant."""
    n_rows, n, k = table[N_ROWS], table[N], table[K]
    half_logdet = 0.0
    posdef = True
    for i in range(n):
        half_logdet += np.log(root[i])
        posdef &= root[i] > 0.0
    diag_R = np.empty(k)
    copy_in(table, DIAG_R, 1, k, diag_R)
    for j in range(k):
        half_logdet += np.log(diag_R[j])
        posdef &= diag_R[j] > 0.0
    for r in range(n_rows):
        quad = 0.0
        for i in range(n):
            quad += rows[r * n + i] * rows[r * n + i]
        for j in range(k):
            quad += u[r * k + j] * u[r * k + j]
        store(number(table, QUADDIST, r), quad)
        store(number(table, HALF_LOGDET, r), half_logdet)
        store_bool(number(table, POSDEF, r), posdef)


@njit_exact
def refine(table, root, q, a, c, rest):
    """Whitened rows -> the inverse of the covariance times the rows, refined by one iteration."""
    n_rows, n, k = table[N_ROWS], table[N], table[K]
    factor, scratch = np.empty(n * k), np.empty(a.size)
    delta, diag = np.empty(a.size), np.empty(n)
    copy_in(table, FACTOR, n, k, factor)
    copy_in(table, DELTA, n_rows, n, delta)
    copy_in(table, DIAG, 1, n, diag)
    for r in range(n_rows):
        for i in range(n):
            a[r * n + i] /= root[i]
    matmul(n_rows, k, n, AS_IS, a, AS_IS, factor, 0.0, c)
    matmul(n_rows, n, k, AS_IS, c, TRANSPOSED, factor, 0.0, rest)
    for r in range(n_rows):
        for i in range(n):
            place = r * n + i
            rest[place] = (delta[place] - diag[i] * a[place] - rest[place]) / root[i]
    take_away_projection(table, q, rest, c, scratch)
    for r in range(n_rows):
        for i in range(n):
            a[r * n + i] += rest[r * n + i] / root[i]


@njit_exact
def store_gradients(table, root, q, inv_R, a, u, weighted):
    """The gradients, in the order of the formulas of the op; `weighted` is scratch."""
    n_rows, n, k = table[N_ROWS], table[N], table[K]
    g_sum = 0.0
    diag, d_diag = np.empty(n), np.zeros(n)
    copy_in(table, DIAG, 1, n, diag)
    for r in range(n_rows):
        g_sum += load(number(table, G_HALF_LOGDET, r))
        g = load(number(table, G_QUAD, r))
        for i in range(n):
            weighted[r * n + i] = 2.0 * g * a[r * n + i]
            d_diag[i] -= g * a[r * n + i] * a[r * n + i]
    copy_out(table, D_DELTA, n_rows, n, weighted)
    of_quad, d_factor = np.empty(n * k), np.empty(n * k)
    matmul(n, k, n_rows, TRANSPOSED, weighted, AS_IS, u, 0.0, of_quad)
    # the inverse times the factor, first without the root
    matmul(n, k, k, AS_IS, q, TRANSPOSED, inv_R, 0.0, d_factor)
    for i in range(n):
        rest = 1.0
        for j in range(k):
            place = i * k + j
            rest -= q[place] * q[place]
            d_factor[place] = g_sum * d_factor[place] / root[i] - of_quad[place]
        d_diag[i] += 0.5 * g_sum * rest / diag[i]
    copy_out(table, D_FACTOR, n, k, d_factor)
    copy_out(table, D_DIAG, 1, n, d_diag)
