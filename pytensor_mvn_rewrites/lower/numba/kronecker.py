"""The kernel of a Kronecker product plus noise, its Kronecker factors decomposed.

Layout: the rows that share the covariance are one long vector, whose entries are numbered by one
index for each Kronecker factor and one for the row. A Kronecker product times that vector is, for
each Kronecker factor in turn, one product of matrices that takes an axis from one end and puts it
at the other: BLAS, without a copy. The gradient of a Kronecker factor is a product of matrices as
well, for which the entries are copied with its axis in front.
"""

import numpy as np

from pytensor_mvn_rewrites.lower.numba.jit import is_kernel, njit_exact
from pytensor_mvn_rewrites.lower.numba.lapack import AS_IS, TRANSPOSED, matmul
from pytensor_mvn_rewrites.lower.numba.structured import (
    N_ROWS,
    N_SIZES,
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
from pytensor_mvn_rewrites.ops import NoisyKroneckerQuadLogdet, NoisyKroneckerQuadLogdetPullback

NAMES = (
    *("delta", "noise", "g_quad", "g_half_logdet"),
    *("quaddist", "half_logdet", "posdef", "d_delta", "d_noise"),
)
DELTA, NOISE, G_QUAD, G_HALF_LOGDET, QUADDIST, HALF_LOGDET, POSDEF, D_DELTA, D_NOISE = range(9)
#: The operands of the first Kronecker factor; those of the others follow
FACTOR_NAMES = ("eigenvalues", "eigenvectors", "d_factor")
EIGENVALUES, EIGENVECTORS, D_FACTOR = range(9, 12)
PER_FACTOR = 3

EPS = float(np.finfo("float64").eps)


@compiled_by(NoisyKroneckerQuadLogdet, NoisyKroneckerQuadLogdetPullback)
def kronecker_function(op, node) -> NodeFunction:
    """The function that a node calls, for the value or the gradient."""
    factors = range(op.n_factors)
    kinds = ("factor", "eigenvalues", "eigenvectors")
    parts = " ".join(f"{name}{k}" for name in kinds for k in factors)
    names = f"delta noise {parts} -> quaddist half_logdet posdef"
    if isinstance(op, NoisyKroneckerQuadLogdetPullback):
        gradients = " ".join(f"d_factor{k}" for k in factors)
        names = f"delta noise {parts} g_quad g_half_logdet -> d_delta d_noise {gradients}"
    places = [*NAMES, *(f"{name}{k}" for k in factors for name in FACTOR_NAMES)]
    condition = f"n == {' * '.join(f'n{k + 1}' for k in factors)}"
    return NodeFunction.of(op, node, "kronecker", names, places, condition)


@is_kernel("kronecker")
def run_rows(table):
    """Rotate all rows at once, then the value, or the gradients."""
    n, n_rows = table[N], table[N_ROWS]
    largest = 1
    for k in range(table[N_SIZES]):
        largest = max(largest, table[SIZES + k])
    spectrum, matrix = np.empty(n), np.empty(largest * largest)
    posdef = fill_spectrum(table, largest, spectrum, matrix)
    rotated, scratch = np.empty(n * n_rows), np.empty(n * n_rows)
    copy_in(table, DELTA, n_rows, n, scratch)
    rotated, scratch = rotate(table, n * n_rows, scratch, rotated, matrix)
    if is_wanted(table, QUADDIST):
        store_value(table, spectrum, posdef, rotated)
    else:
        for i in range(n):
            spectrum[i] = 1.0 / spectrum[i]
            for r in range(n_rows):
                rotated[i * n_rows + r] *= spectrum[i]
        store_factor_gradients(table, largest, spectrum, rotated, scratch, matrix)
        store_other_gradients(table, spectrum, rotated, scratch, matrix)


@njit_exact
def fill_spectrum(table, largest, spectrum, values):
    """The eigenvalues of the covariance, NaN where one is not positive, and whether all are."""
    fill_products(table, -1, spectrum, values)
    noise = load(number(table, NOISE, 0))
    most = 0.0
    for i in range(spectrum.size):
        spectrum[i] += noise
        most = max(most, abs(spectrum[i]))
    posdef = True
    for i in range(spectrum.size):
        posdef &= spectrum[i] > EPS * largest * most
    if not posdef:
        spectrum[:] = np.nan
    return posdef


@njit_exact
def fill_products(table, left_out, out, values):
    """All products of an eigenvalue of each Kronecker factor; those of one count as ones.

    `values` is scratch.
    """
    out[0] = 1.0
    length = 1
    for k in range(table[N_SIZES]):
        size = table[SIZES + k]
        if k == left_out:
            values[:size] = 1.0
        else:
            copy_in(table, EIGENVALUES + PER_FACTOR * k, 1, size, values)
        for i in range(length - 1, -1, -1):
            product = out[i]
            for j in range(size):
                out[i * size + j] = product * values[j]
        length *= size


@njit_exact
def rotate(table, length, rows, out, matrix):
    """The Kronecker product of all eigenvectors, transposed, times each row: rows -> columns.

    Both arrays are used; the one with the result comes first.
    """
    # invariant: the axis of the next matrix comes last, those before it were moved to the front
    for k in range(table[N_SIZES] - 1, -1, -1):
        size = table[SIZES + k]
        copy_in(table, EIGENVECTORS + PER_FACTOR * k, size, size, matrix)
        matmul(size, length // size, size, TRANSPOSED, matrix, TRANSPOSED, rows, 0.0, out)
        rows, out = out, rows
    return rows, out


@njit_exact
def rotate_back(table, length, columns, out, matrix):
    """The Kronecker product of all eigenvectors times each column: columns -> rows.

    Both arrays are used; the one with the result comes first.
    """
    # invariant: the axis of the next matrix comes first, those after it were moved to the back
    for k in range(table[N_SIZES]):
        size = table[SIZES + k]
        copy_in(table, EIGENVECTORS + PER_FACTOR * k, size, size, matrix)
        matmul(length // size, size, size, TRANSPOSED, columns, TRANSPOSED, matrix, 0.0, out)
        columns, out = out, columns
    return columns, out


@njit_exact
def store_value(table, spectrum, posdef, rotated):
    """Quadratic forms, and half the log-determinant."""
    n_rows = table[N_ROWS]
    half_logdet = 0.0
    for i in range(spectrum.size):
        half_logdet += 0.5 * np.log(spectrum[i])
    for r in range(n_rows):
        quad = 0.0
        for i in range(spectrum.size):
            quad += rotated[i * n_rows + r] * rotated[i * n_rows + r] / spectrum[i]
        store(number(table, QUADDIST, r), quad)
        store(number(table, HALF_LOGDET, r), half_logdet)
        store_bool(number(table, POSDEF, r), posdef)


@njit_exact
def store_factor_gradients(table, largest, inverse, t, scratch, matrix):
    """The gradient of each Kronecker factor; `t` is what was rotated, over the spectrum."""
    n_rows = table[N_ROWS]
    half_g = 0.0
    g_quad = np.empty(n_rows)
    for r in range(n_rows):
        half_g += 0.5 * load(number(table, G_HALF_LOGDET, r))
        g_quad[r] = load(number(table, G_QUAD, r))
    others, weighted = np.empty(inverse.size), np.empty(t.size)
    products, half = np.empty(largest * largest), np.empty(largest * largest)
    left = 1
    for k in range(table[N_SIZES]):
        size = table[SIZES + k]
        fill_products(table, k, others, matrix)
        weight_rows(others, g_quad, t, scratch)
        bring_to_front(left, size, scratch, weighted)
        bring_to_front(left, size, t, scratch)
        matmul(size, size, t.size // size, AS_IS, weighted, TRANSPOSED, scratch, 0.0, products)
        # the diagonal of the partial trace of the inverse
        run = others.size // (left * size)
        for i in range(left):
            for a in range(size):
                for c in range((i * size + a) * run, (i * size + a + 1) * run):
                    products[a * size + a] += half_g * others[c] * inverse[c]
        copy_in(table, EIGENVECTORS + PER_FACTOR * k, size, size, matrix)
        matmul(size, size, size, AS_IS, matrix, AS_IS, products, 0.0, half)
        matmul(size, size, size, AS_IS, half, TRANSPOSED, matrix, 0.0, products)
        for i in range(size):
            for j in range(size):
                # only the lower triangle is an input of the dense graph
                products[i * size + j] *= 1.0 if i == j else 2.0 if j < i else 0.0
        copy_out(table, D_FACTOR + PER_FACTOR * k, size, size, products)
        left *= size


@njit_exact
def weight_rows(others, g_quad, t, out):
    """Multiply each entry by the eigenvalues of the others, and by the cotangent of its row."""
    n_rows = g_quad.size
    for i in range(others.size):
        for r in range(n_rows):
            out[i * n_rows + r] = -others[i] * g_quad[r] * t[i * n_rows + r]


@njit_exact
def bring_to_front(left, size, source, target):
    """Copy entries with the axis of a Kronecker factor in front of those that precede it."""
    run = source.size // (left * size)
    for i in range(left):
        for a in range(size):
            for c in range(run):
                target[(a * left + i) * run + c] = source[(i * size + a) * run + c]


@njit_exact
def store_other_gradients(table, inverse, t, scratch, matrix):
    """The gradients of the noise and of the rows; `t` as above, it is overwritten."""
    n, n_rows = table[N], table[N_ROWS]
    d_noise = 0.0
    for r in range(n_rows):
        half_g = 0.5 * load(number(table, G_HALF_LOGDET, r))
        g = load(number(table, G_QUAD, r))
        for i in range(n):
            d_noise += half_g * inverse[i] - g * t[i * n_rows + r] * t[i * n_rows + r]
            t[i * n_rows + r] *= 2.0 * g
    store(number(table, D_NOISE, 0), d_noise)
    rows, _ = rotate_back(table, n * n_rows, t, scratch, matrix)
    copy_out(table, D_DELTA, n_rows, n, rows)
