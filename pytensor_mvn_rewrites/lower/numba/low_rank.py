"""The kernels of low rank plus diagonal: the factorization, and all that follows from it.

Layout: tall matrices are copied once, row by row, and the rows that share the covariance stand one
after the other, so that all work beyond that of one pass over the entries is a product of matrices.
"""

from collections.abc import Callable

import numpy as np
from pytensor.link.numba.dispatch.basic import register_funcify_and_cache_key

from pytensor_mvn_rewrites.lower.numba.jit import njit_exact
from pytensor_mvn_rewrites.lower.numba.lapack import AS_IS, TRANSPOSED, matmul, orthonormalize
from pytensor_mvn_rewrites.lower.numba.structured import (
    N_ROWS,
    SIZES,
    N,
    NodeFunction,
    Operand,
    entry,
    funcify,
    is_wanted,
    rows_of,
)
from pytensor_mvn_rewrites.lower.numba.vectors import load, store, store_bool
from pytensor_mvn_rewrites.ops import (
    DecomposedLowRankQuadLogdet,
    DecomposedLowRankQuadLogdetPullback,
    LowRankFactorization,
)

NAMES = (
    *("delta", "factor", "diag", "root", "Q", "inv_R", "diag_R", "g_quad", "g_half_logdet"),
    *("quaddist", "half_logdet", "posdef", "d_delta", "d_factor", "d_diag"),
)
DELTA, FACTOR, DIAG, ROOT, Q, INV_R, DIAG_R, G_QUAD, G_HALF_LOGDET = range(9)
QUADDIST, HALF_LOGDET, POSDEF, D_DELTA, D_FACTOR, D_DIAG = range(9, 15)
#: Axes of those that have no rows
CORE = {
    **{"factor": ("n", "k"), "diag": ("n",), "root": ("n",), "Q": ("n", "k")},
    **{"inv_R": ("k", "k"), "diag_R": ("k",), "d_factor": ("n", "k"), "d_diag": ("n",)},
}
K = SIZES


@register_funcify_and_cache_key(LowRankFactorization)
def numba_funcify_factorization(op, node, **kwargs):
    """The function of a node, and its key."""
    return funcify(op, node, factorization_function, **kwargs)


@register_funcify_and_cache_key(DecomposedLowRankQuadLogdet)
def numba_funcify_low_rank(op, node, **kwargs):
    """The function of a node, and its key."""
    return funcify(op, node, low_rank_function, **kwargs)


@register_funcify_and_cache_key(DecomposedLowRankQuadLogdetPullback)
def numba_funcify_low_rank_pullback(op, node, **kwargs):
    """The function of a node, and its key."""
    return funcify(op, node, low_rank_function, **kwargs)


def matrices(*names: str) -> list[Operand]:
    """The operands of these names."""
    return [Operand(name, "", CORE[name]) for name in names]


def factorization_function(op, node) -> NodeFunction:
    """The function that a node calls."""
    outputs = matrices("root", "Q", "inv_R", "diag_R")
    inputs = matrices("factor", "diag")
    return NodeFunction("low_rank_factorization", inputs, outputs, NAMES, ["k"])


def low_rank_function(op, node) -> NodeFunction:
    """The function that a node calls, for the value or the gradient."""
    rows = rows_of(node.inputs[0], 1)
    delta = Operand("delta", rows, ("n",))
    if isinstance(op, DecomposedLowRankQuadLogdetPullback):
        g_quad, g_half_logdet = node.inputs[-2:]
        inputs = [delta, *matrices("factor", "diag", "root", "Q", "inv_R")]
        inputs.append(Operand("g_quad", rows_of(g_quad, 0)))
        inputs.append(Operand("g_half_logdet", rows_of(g_half_logdet, 0)))
        outputs = [Operand("d_delta", rows, ("n",)), *matrices("d_factor", "d_diag")]
    else:
        inputs = [delta, *matrices("root", "Q", "inv_R", "diag_R")]
        outputs = [Operand("quaddist", rows), Operand("half_logdet", rows)]
        outputs.append(Operand("posdef", rows, dtype="bool_"))
    return NodeFunction("low_rank", inputs, outputs, NAMES, ["k"])


def factorization_kernel() -> Callable:
    """The kernel of the factorization, to be compiled."""
    return factorize


def factorize(table):
    """The QR factorization of the scaled factor above the identity."""
    n, k = table[N], table[K]
    columns, diagonal = np.zeros((k, n + k)), np.empty(k)
    for i in range(n):
        variance = load(entry(table, DIAG, 0, 0, i))
        root = np.sqrt(variance) if variance > 0.0 else np.nan
        store(entry(table, ROOT, 0, 0, i), root)
        for j in range(k):
            columns[j, i] = load(entry(table, FACTOR, 0, i, j)) / root
    for j in range(k):
        columns[j, n + j] = 1.0
    orthonormalize(columns, diagonal)
    for j in range(k):
        store(entry(table, DIAG_R, 0, 0, j), abs(diagonal[j]))
        for i in range(n):
            store(entry(table, Q, 0, i, j), columns[j, i])
        for i in range(k):
            store(entry(table, INV_R, 0, i, j), columns[j, n + i])


def low_rank_kernel() -> Callable:
    """The kernel of value and gradient, to be compiled."""
    return run_rows


def run_rows(table):
    """Whiten all rows, then the value, or the gradients."""
    n_rows, n, k = table[N_ROWS], table[N], table[K]
    q, inv_R, root = np.empty(n * k), np.empty(k * k), np.empty(n)
    load_matrix(table, Q, n, q)
    load_matrix(table, INV_R, k, inv_R)
    rows, rest = np.empty(n_rows * n), np.empty(n_rows * n)
    c, u = np.empty(n_rows * k), np.empty(n_rows * k)
    for i in range(n):
        root[i] = load(entry(table, ROOT, 0, 0, i))
        for r in range(n_rows):
            rows[r * n + i] = load(entry(table, DELTA, r, 0, i)) / root[i]
    take_away_projection(table, q, rows, c, rest)
    matmul(n_rows, k, k, AS_IS, c, TRANSPOSED, inv_R, 0.0, u)
    if is_wanted(table, QUADDIST):
        store_value(table, root, rows, u)
    else:
        refine(table, root, q, rows, c, rest)
        store_gradients(table, root, q, inv_R, rows, u, rest)


@njit_exact
def load_matrix(table, operand, length, out):
    """Copy the rows of a matrix of k columns."""
    k = table[K]
    for i in range(length):
        for j in range(k):
            out[i * k + j] = load(entry(table, operand, 0, i, j))


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
    for j in range(k):
        diag_R = load(entry(table, DIAG_R, 0, 0, j))
        half_logdet += np.log(diag_R)
        posdef &= diag_R > 0.0
    for r in range(n_rows):
        quad = 0.0
        for i in range(n):
            quad += rows[r * n + i] * rows[r * n + i]
        for j in range(k):
            quad += u[r * k + j] * u[r * k + j]
        store(entry(table, QUADDIST, r, 0, 0), quad)
        store(entry(table, HALF_LOGDET, r, 0, 0), half_logdet)
        store_bool(entry(table, POSDEF, r, 0, 0), posdef)


@njit_exact
def refine(table, root, q, a, c, rest):
    """Whitened rows -> the inverse of the covariance times the rows, refined by one iteration."""
    n_rows, n, k = table[N_ROWS], table[N], table[K]
    factor, scratch = np.empty(n * k), np.empty(a.size)
    load_matrix(table, FACTOR, n, factor)
    for r in range(n_rows):
        for i in range(n):
            a[r * n + i] /= root[i]
    matmul(n_rows, k, n, AS_IS, a, AS_IS, factor, 0.0, c)
    matmul(n_rows, n, k, AS_IS, c, TRANSPOSED, factor, 0.0, rest)
    for i in range(n):
        variance = load(entry(table, DIAG, 0, 0, i))
        for r in range(n_rows):
            delta = load(entry(table, DELTA, r, 0, i))
            place = r * n + i
            rest[place] = (delta - variance * a[place] - rest[place]) / root[i]
    take_away_projection(table, q, rest, c, scratch)
    for r in range(n_rows):
        for i in range(n):
            a[r * n + i] += rest[r * n + i] / root[i]


@njit_exact
def store_gradients(table, root, q, inv_R, a, u, weighted):
    """The gradients, in the order of the formulas of the op; `weighted` is scratch."""
    n_rows, n, k = table[N_ROWS], table[N], table[K]
    g_sum = 0.0
    for r in range(n_rows):
        g_sum += load(entry(table, G_HALF_LOGDET, r, 0, 0))
        g = load(entry(table, G_QUAD, r, 0, 0))
        for i in range(n):
            weighted[r * n + i] = 2.0 * g * a[r * n + i]
            store(entry(table, D_DELTA, r, 0, i), weighted[r * n + i])
    of_quad, inverse_times_factor = np.empty(n * k), np.empty(n * k)
    matmul(n, k, n_rows, TRANSPOSED, weighted, AS_IS, u, 0.0, of_quad)
    matmul(n, k, k, AS_IS, q, TRANSPOSED, inv_R, 0.0, inverse_times_factor)
    for i in range(n):
        rest = 1.0
        for j in range(k):
            place = i * k + j
            rest -= q[place] * q[place]
            number = g_sum * inverse_times_factor[place] / root[i] - of_quad[place]
            store(entry(table, D_FACTOR, 0, i, j), number)
        d_diag = 0.5 * g_sum * rest / load(entry(table, DIAG, 0, 0, i))
        for r in range(n_rows):
            d_diag -= 0.5 * weighted[r * n + i] * a[r * n + i]
        store(entry(table, D_DIAG, 0, 0, i), d_diag)
