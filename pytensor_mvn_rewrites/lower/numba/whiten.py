"""The kernel of ``Whiten`` and its pullback: LAPACK's factorization and inverse, and BLAS."""

import numpy as np

from pytensor_mvn_rewrites.lower.numba.jit import is_kernel, njit_exact
from pytensor_mvn_rewrites.lower.numba.lapack import (
    AS_IS,
    TRANSPOSED,
    lapack_factorize,
    lapack_invert_factor,
    matmul,
)
from pytensor_mvn_rewrites.lower.numba.structured import (
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
from pytensor_mvn_rewrites.ops import Whiten, WhitenPullback

NAMES = (
    *("matrix", "columns", "whitened", "half_logdet", "posdef"),
    *("inv_chol", "g_whitened", "g_half_logdet", "d_matrix", "d_columns"),
)
MATRIX, COLUMNS, WHITENED, HALF_LOGDET, POSDEF = range(5)
INV_CHOL, G_WHITENED, G_HALF_LOGDET, D_MATRIX, D_COLUMNS = range(5, 10)
C = SIZES


@compiled_by(Whiten, WhitenPullback)
def whiten_function(op, node) -> NodeFunction:
    """The function that a node calls, for the value or the gradient."""
    names = "matrix columns -> whitened half_logdet posdef inv_chol"
    if isinstance(op, WhitenPullback):
        names = "inv_chol whitened g_whitened g_half_logdet -> d_matrix d_columns"
    return NodeFunction.of(op, node, "whiten", names, NAMES)


@is_kernel("whiten")
def run_matrix(table):
    """The value, or the gradients."""
    n, c = table[N], table[C]
    numbers, columns, whitened = np.empty(n * n), np.empty(n * c), np.empty(n * c)
    if is_wanted(table, MATRIX):
        store_value(table, numbers, columns, whitened)
    else:
        copy_in(table, INV_CHOL, n, n, numbers)
        copy_in(table, WHITENED, n, c, whitened)
        copy_in(table, G_WHITENED, n, c, columns)
        store_gradients(table, numbers, whitened, columns)


@njit_exact
def store_value(table, inv_chol, columns, whitened):
    """Factorize, invert the factor, and multiply; all three arrays are scratch."""
    n, c = table[N], table[C]
    copy_in(table, MATRIX, n, n, inv_chol)
    copy_in(table, COLUMNS, n, c, columns)
    chol = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            chol[i, j] = inv_chol[i * n + j]
    posdef = lapack_factorize(chol)
    half_logdet = 0.0
    for i in range(n):
        posdef &= chol[i, i] > 0.0
        half_logdet += np.log(chol[i, i])
    if posdef:
        lapack_invert_factor(chol)
    else:
        half_logdet = np.nan
        chol[:] = np.nan
    for i in range(n):
        for j in range(n):
            inv_chol[i * n + j] = chol[i, j]
    matmul(n, c, n, AS_IS, inv_chol, AS_IS, columns, 0.0, whitened)
    store(number(table, HALF_LOGDET, 0), half_logdet)
    store_bool(number(table, POSDEF, 0), posdef)
    copy_out(table, WHITENED, n, c, whitened)
    copy_out(table, INV_CHOL, n, n, inv_chol)


@njit_exact
def store_gradients(table, inv_chol, whitened, g_whitened):
    """The formulas of the op."""
    n, c = table[N], table[C]
    inner, half, d_columns = np.empty(n * n), np.empty(n * n), np.empty(n * c)
    half_g = 0.5 * load(number(table, G_HALF_LOGDET, 0))
    matmul(n, n, c, AS_IS, g_whitened, TRANSPOSED, whitened, 0.0, inner)
    for i in range(n):
        for j in range(n):
            inner[i * n + j] *= -0.5 if i == j else -1.0 if j < i else 0.0
        inner[i * n + i] += half_g
    matmul(n, n, n, AS_IS, inner, AS_IS, inv_chol, 0.0, half)
    matmul(n, n, n, TRANSPOSED, inv_chol, AS_IS, half, 0.0, inner)
    for i in range(n):
        for j in range(i):
            # the lower triangle of the symmetric part, doubled
            inner[i * n + j] += inner[j * n + i]
            inner[j * n + i] *= 0.0
    matmul(n, c, n, TRANSPOSED, inv_chol, AS_IS, g_whitened, 0.0, d_columns)
    copy_out(table, D_MATRIX, n, n, inner)
    copy_out(table, D_COLUMNS, n, c, d_columns)
