"""The kernel for larger matrices that many rows share: factorize once, BLAS on blocks of rows.

Layout: the differences of up to `BLOCK` rows to their means lie one after the other in scratch,
wherever :mod:`.groups` finds the rows.
Products of that block with the inverse of the factor and its transpose give what the substitutions
of each row would, and the product of two blocks is the sum of the outer products of their rows.

With many rows the inverse costs nothing, and BLAS multiplies four times as fast as it substitutes
(1000 rows, n = 20: 26 and 109 us).

A matrix with pivots that are not positive, or a row that leaves the range where the products are
accurate, is done again by :mod:`.general` with all of its rows; the others do not notice.
"""

import numpy as np

from pytensor_mvn_rewrites.lower.numba.general import (
    DMATRIX,
    DMU,
    DVALUE,
    FIRST,
    G_FIRST,
    G_SECOND,
    HALF_LOG_2PI,
    MATRIX,
    MU,
    POSDEF,
    SECOND,
    TOTAL,
    VALUE,
    do_again,
    element,
    store_if_wanted,
)
from pytensor_mvn_rewrites.lower.numba.groups import START, count_rows, row_number
from pytensor_mvn_rewrites.lower.numba.jit import (
    CHOL,
    TAU,
    Table,
    copy_table,
    is_kernel,
    njit_exact,
    words,
)
from pytensor_mvn_rewrites.lower.numba.lanes import HIGHEST_QUAD
from pytensor_mvn_rewrites.lower.numba.lapack import (
    AS_IS,
    TRANSPOSED,
    lapack_factorize,
    lapack_invert_factor,
    matmul,
)
from pytensor_mvn_rewrites.lower.numba.vectors import load, store, store_bool

#: Core size from which this kernel is worth having
BLAS_MIN_N = 13

#: Rows of a matrix from which this kernel is the faster one. Measured for two matrices with all
#: gradients, in microseconds, one row after the other and by this kernel:
#:
#:     rows     n = 13       20          30          50           100
#:        8    9.4   6.2   15   10     27   20     70   61     243   275
#:       32     26   9.6   40   15     67   30    139   81     416   352
#:     1000    682   159  1040  222   1643  428   2951  884    7398  3489
BLAS_MIN_R = 8

#: The same where :mod:`.rows` has straight-line code. At n = 16, two matrices of 8 rows take 11 us
#: by both, of 64 rows 23 us there and 19 here, fifty matrices of 8 rows 72 there and 156 here
BLAS_MIN_R_STRAIGHT = 16

#: Rows that are multiplied at once
BLOCK = 256

#: Beyond it, and its reciprocal, what stands on the diagonal of a factor is left to :mod:`.general`
SMALLEST_PIVOT = 1e-150

LANE = 8
N_R, N, PARAM, IS_LOGP = Table.N_R, Table.N, Table.PARAM, Table.IS_LOGP
M_START, M_STOP = Table.M_START, Table.M_STOP


@is_kernel("blas_rows")
def run_matrices(table):
    """Loop over the matrices, and over blocks of the rows of each."""
    n, param, is_logp = table[N], table[PARAM], table[IS_LOGP]
    is_grouped = table[START] != 0
    wants_matrix = table[DMATRIX] != 0
    wants_gradient = wants_matrix or table[DVALUE] != 0 or table[DMU] != 0
    block = min(BLOCK, table[N_R])
    factor, symmetric, products = np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    delta, z = np.empty((block, n)), np.empty((block, n))
    a, u = np.empty((block, n)), np.empty((block, n))
    vector_sum = np.empty(n)
    redo_table = words()
    copy_table(redo_table, table)
    for m in range(table[M_START], table[M_STOP]):
        n_r = count_rows(table, m, is_grouped)
        if is_grouped and n_r == 0:
            continue
        fine, half_logdet = prepare(table, m, factor, symmetric)
        quad_sum = g_sum = 0.0
        vector_sum[:] = 0.0
        products[:] = 0.0
        for start in range(0, n_r, block):
            rows = min(block, n_r - start)
            load_deltas(table, start, rows, m, is_grouped, delta)
            if param == TAU:
                matmul(rows, n, n, AS_IS, delta, AS_IS, symmetric, 0.0, a)
            else:
                matmul(rows, n, n, AS_IS, delta, TRANSPOSED, factor, 0.0, z)
                if wants_gradient:
                    matmul(rows, n, n, AS_IS, z, AS_IS, factor, 0.0, a)
            for row in range(rows):
                r = row_number(table, m, start + row, is_grouped)
                left, right = (delta, a) if param == TAU else (z, z)
                quad = dot(left, right, row)
                fine &= abs(quad) <= HIGHEST_QUAD
                quad_sum += quad
                store_forward(table, r, m, quad, half_logdet)
                if wants_gradient:
                    g = load(element(table, G_FIRST, r, m))
                    g_quad = -0.5 * g if is_logp != 0 else g
                    g_sum += -g if is_logp != 0 else load(element(table, G_SECOND, r, m))
                    store_gradients(table, r, m, 2.0 * g_quad, a, row, vector_sum)
                    scale(2.0 * g_quad, delta if param == TAU else a, u, row)
            if wants_matrix:
                others = delta if param == TAU else z if param == CHOL else a
                matmul(n, n, rows, TRANSPOSED, u, AS_IS, others, 1.0, products)
        if not fine:
            do_again(redo_table, m)
            continue
        if table[TOTAL] != 0:
            total = 0.5 * quad_sum + n_r * (half_logdet + n * HALF_LOG_2PI)
            store(table[TOTAL], load(table[TOTAL]) - total)
        add_shared(table, DVALUE, m, 1.0, vector_sum)
        add_shared(table, DMU, m, -1.0, vector_sum)
        if wants_matrix:
            store_matrix(table, m, g_sum, factor, symmetric, products)


@njit_exact
def prepare(table, m, factor, symmetric):
    """Invert the Cholesky factor of a matrix; return whether it has one, and half_logdet.

    A precision goes to `symmetric` as well.
    """
    n, param = table[N], table[PARAM]
    source = element(table, MATRIX, 0, m)
    for i in range(n):
        for j in range(i + 1):
            number = load(source + i * table[MATRIX + 3] + j * table[MATRIX + 4])
            symmetric[i, j] = symmetric[j, i] = number
            factor[i, j] = number
    fine = param == CHOL or lapack_factorize(factor)
    half_logdet = 0.0
    for i in range(n):
        fine &= SMALLEST_PIVOT <= factor[i, i] <= 1.0 / SMALLEST_PIVOT
        half_logdet += np.log(factor[i, i])
        for j in range(i + 1, n):
            factor[i, j] = 0.0
    if fine:
        lapack_invert_factor(factor)
    return fine, -half_logdet if param == TAU else half_logdet


@njit_exact
def load_deltas(table, start, rows, m, is_grouped, delta):
    """The differences of rows to their means, of which InvQuadLogdet has none."""
    n, step, mu_step = table[N], table[VALUE + 4], table[MU + 4]
    for row in range(rows):
        r = row_number(table, m, start + row, is_grouped)
        value, mu = element(table, VALUE, r, m), element(table, MU, r, m)
        if table[MU] == 0:
            for i in range(n):
                delta[row, i] = load(value + i * step)
        elif step == LANE and mu_step == LANE:
            for i in range(n):
                delta[row, i] = load(value + i * LANE) - load(mu + i * LANE)
        else:
            for i in range(n):
                delta[row, i] = load(value + i * step) - load(mu + i * mu_step)


@njit_exact(reassociate=True)
def dot(left, right, r):
    """The product of a row of each of two arrays."""
    total = 0.0
    for i in range(left.shape[1]):
        total += left[r, i] * right[r, i]
    return total


@njit_exact
def scale(factor, source, target, r):
    """Multiply a row."""
    for i in range(source.shape[1]):
        target[r, i] = factor * source[r, i]


@njit_exact
def store_forward(table, r, m, quad, half_logdet):
    """Write the forward outputs of a row."""
    if table[IS_LOGP] != 0:
        store_if_wanted(table, FIRST, r, m, -HALF_LOG_2PI * table[N] - 0.5 * quad - half_logdet)
    else:
        store_if_wanted(table, FIRST, r, m, quad)
        store_if_wanted(table, SECOND, r, m, half_logdet)
    if table[POSDEF] != 0:
        store_bool(element(table, POSDEF, r, m), True)


@njit_exact
def store_gradients(table, r, m, factor, a, row, vector_sum):
    """Write the gradients for the vectors of a row, or add to those that the rows share."""
    n = table[N]
    for i in range(n):
        vector_sum[i] += factor * a[row, i]
    for output in (DVALUE, DMU):
        if table[output] == 0 or table[output + 1] == 0:
            continue
        target, step = element(table, output, r, m), table[output + 4]
        sign = factor if output == DVALUE else -factor
        for i in range(n):
            store(target + i * step, sign * a[row, i])


@njit_exact
def add_shared(table, output, m, sign, vector_sum):
    """Add to the gradient for a vector that rows share."""
    if table[output] == 0 or table[output + 1] != 0:
        return
    for i in range(table[N]):
        target = element(table, output, 0, m) + i * table[output + 4]
        store(target, load(target) + sign * vector_sum[i])


@njit_exact
def store_matrix(table, m, g_half_logdet, inverse, symmetric, products):
    """Write the gradient for the matrix, given the inverse of its factor: a lower triangle."""
    n, param = table[N], table[PARAM]
    if param != CHOL:
        matmul(n, n, n, TRANSPOSED, inverse, AS_IS, inverse, 0.0, symmetric)
    target = element(table, DMATRIX, 0, m)
    for i in range(n):
        for j in range(n):
            number = 0.0
            if param == CHOL and j <= i:
                number = -products[i, j]
                if i == j:
                    number += g_half_logdet * inverse[i, i]
            elif j <= i:
                number = g_half_logdet * symmetric[i, j] - products[i, j]
                if param == TAU:
                    number = -number
                if i == j:
                    number *= 0.5
            store(target + i * table[DMATRIX + 3] + j * table[DMATRIX + 4], number)
