"""The kernel for every size: one matrix after the other, its rows after its factorization.

Layout: the matrix is copied into square scratch once and factorized there; each of its rows is
whitened and adds its part of the gradient; the inverse for the gradient of the log-determinant
comes last and overwrites the factor.

One compiled function does all ops, parametrizations and sizes: what it spends on deciding at run
time is small next to one matrix.
"""

from collections.abc import Callable

import numpy as np

from pytensor_mvn_rewrites.lower.numba.groups import START, count_rows, row_number
from pytensor_mvn_rewrites.lower.numba.jit import (
    CHOL,
    Table,
    bind,
    builds_kernel,
    call_or_interpret,
    njit_exact,
)
from pytensor_mvn_rewrites.lower.numba.lapack import lapack_factorize, lapack_invert
from pytensor_mvn_rewrites.lower.numba.single import (
    add_logdet_gradient,
    add_quad_gradient,
    check_factor,
    cholesky_in_place,
    invert,
    whiten,
)
from pytensor_mvn_rewrites.lower.numba.vectors import load, store, store_bool

#: Core size from which LAPACK's blocked routines are faster than plain loops. Measured for one
#: matrix with all gradients: 21 us by both at n = 48, 108 and 97 us at 100, 8.1 and 5.4 ms at 500
LAPACK_MIN_N = 48

HALF_LOG_2PI = 0.9189385332046727

N_R, N_M, N, PARAM = Table.N_R, Table.N_M, Table.N, Table.PARAM
M_START, M_STOP = Table.M_START, Table.M_STOP
IS_LOGP, IS_CHECKED = Table.IS_LOGP, Table.IS_CHECKED
VALUE, MU, MATRIX, G_FIRST, G_SECOND, FIRST, SECOND, DVALUE, DMU, DMATRIX, POSDEF, TOTAL = map(
    Table.entry, Table.NAMES[: Table.NAMES.index("start")]
)


@builds_kernel("small", "large")
def general_kernel(name: str) -> Callable:
    """The function for large matrices, which calls LAPACK, or for small ones.

    Two functions, because loading LAPACK costs compile time that small matrices do not need.
    """
    if name == "large":
        return bind(run_matrices, cholesky_in_place=lapack_factorize, invert=lapack_invert)
    return run_matrices


def run_matrices(table):
    """Loop over the matrices, and over the rows of each."""
    n, param, is_logp = table[N], table[PARAM], table[IS_LOGP] != 0
    is_grouped = table[START] != 0
    wants_matrix = table[DMATRIX] != 0
    wants_gradient = wants_matrix or table[DVALUE] != 0 or table[DMU] != 0
    chol = np.empty((n, n))
    delta, z, a = np.empty(n), np.empty(n), np.empty(n)
    grad = np.empty((n, n))
    total = 0.0
    for m in range(table[M_START], table[M_STOP]):
        n_rows = count_rows(table, m, is_grouped)
        if is_grouped and n_rows == 0:
            continue
        source = element(table, MATRIX, 0, m)
        for i in range(n):
            for j in range(i + 1):
                chol[i, j] = load(source + i * table[MATRIX + 3] + j * table[MATRIX + 4])
                grad[i, j] = 0.0
        factorized = param == CHOL or cholesky_in_place(chol)
        half_logdet, posdef = check_factor(chol, factorized, param)
        sum_g_half_logdet = 0.0
        for row in range(n_rows):
            r = row_number(table, m, row, is_grouped)
            load_delta(table, r, m, delta)
            quad = whiten(chol, delta, z, a, param, wants_gradient)
            if is_logp:
                logp = -HALF_LOG_2PI * n - 0.5 * quad - half_logdet
                store_if_wanted(table, FIRST, r, m, logp)
                total += -np.inf if table[IS_CHECKED] != 0 and not posdef else logp
            else:
                store_if_wanted(table, FIRST, r, m, quad)
                store_if_wanted(table, SECOND, r, m, half_logdet)
            if table[POSDEF] != 0:
                store_bool(element(table, POSDEF, r, m), posdef)
            if not wants_gradient:
                continue
            g_first = load(element(table, G_FIRST, r, m))
            g_quad = -0.5 * g_first if is_logp else g_first
            g_half_logdet = -g_first if is_logp else load(element(table, G_SECOND, r, m))
            store_vector(table, DVALUE, r, m, 2.0 * g_quad, a)
            store_vector(table, DMU, r, m, -2.0 * g_quad, a)
            if wants_matrix:
                add_quad_gradient(grad, g_quad, delta, z, a, param)
                sum_g_half_logdet += g_half_logdet
        if wants_matrix:
            if param != CHOL:
                invert(chol, z)
            add_logdet_gradient(grad, sum_g_half_logdet, chol, param)
            # what the reference graph has above the diagonal: zeros, times the NaN of a failure
            above = 0.0 if param == CHOL or posdef else np.nan
            target = element(table, DMATRIX, 0, m)
            for i in range(n):
                row = target + i * table[DMATRIX + 3]
                for j in range(n):
                    store(row + j * table[DMATRIX + 4], grad[i, j] if j <= i else above)
    if table[TOTAL] != 0:
        store(table[TOTAL], load(table[TOTAL]) + total)


@njit_exact
def element(table, operand, r, m):
    """Address of the first core element of an operand."""
    return table[operand] + r * table[operand + 1] + m * table[operand + 2]


@njit_exact
def load_delta(table, r, m, delta):
    """The difference to the mean, of which InvQuadLogdet has none."""
    value, mu = element(table, VALUE, r, m), element(table, MU, r, m)
    for i in range(delta.size):
        delta[i] = load(value + i * table[VALUE + 4])
        if table[MU] != 0:
            delta[i] -= load(mu + i * table[MU + 4])


@njit_exact
def store_if_wanted(table, output, r, m, number):
    """Write one number of a forward output."""
    if table[output] != 0:
        store(element(table, output, r, m), number)


@njit_exact
def store_vector(table, output, r, m, factor, a):
    """Write the gradient for a vector, or add it if the vector is shared."""
    if table[output] == 0:
        return
    is_sum = (table[output + 1] == 0 and table[N_R] > 1) or (
        table[output + 2] == 0 and table[N_M] > 1 and table[START] == 0
    )
    target = element(table, output, r, m)
    for i in range(a.size):
        address = target + i * table[output + 4]
        store(address, load(address) + factor * a[i] if is_sum else factor * a[i])


# --- what other kernels leave to this one -----------------------------------------------------


@njit_exact
def do_again(own_table, m):
    """Do one matrix with all of its rows, which another kernel could not; the table is its own.

    Most often it has no Cholesky factor, and everything is NaN.
    """
    own_table[M_START], own_table[M_STOP] = m, m + 1
    if own_table[PARAM] == CHOL or has_factor(own_table, m):
        call_or_interpret("small", own_table)
    else:
        fill_with_nan(own_table, m)


@njit_exact
def has_factor(table, m):
    """Whether a matrix is positive definite."""
    n, source = table[N], element(table, MATRIX, 0, m)
    chol = np.empty((n, n))
    for i in range(n):
        for j in range(i + 1):
            chol[i, j] = load(source + i * table[MATRIX + 3] + j * table[MATRIX + 4])
    return cholesky_in_place(chol)


@njit_exact
def fill_with_nan(table, m):
    """Write the results for a matrix without a factor."""
    n, is_grouped = table[N], table[START] != 0
    n_rows = count_rows(table, m, is_grouped)
    for row in range(n_rows):
        r = row_number(table, m, row, is_grouped)
        for output in (FIRST, SECOND):
            store_if_wanted(table, output, r, m, np.nan)
        if table[POSDEF] != 0:
            store_bool(element(table, POSDEF, r, m), False)
        for output in (DVALUE, DMU):
            for i in range(n if table[output] != 0 else 0):
                store(element(table, output, r, m) + i * table[output + 4], np.nan)
    if table[DMATRIX] != 0:
        target = element(table, DMATRIX, 0, m)
        for i in range(n):
            for j in range(n):
                store(target + i * table[DMATRIX + 3] + j * table[DMATRIX + 4], np.nan)
    if table[TOTAL] != 0 and n_rows > 0:
        total = -np.inf if table[IS_CHECKED] != 0 else np.nan
        store(table[TOTAL], load(table[TOTAL]) + total)
