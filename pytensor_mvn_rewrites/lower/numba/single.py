"""One matrix at a time, of any size: the careful formulas that every kernel can fall back on.

All work in place on C-contiguous float64 scratch of the caller, read and write lower triangles
only, and run along contiguous rows, which is what LLVM vectorises. Failure is NaN: a matrix that
is not positive definite gets a factor of NaN, which then spreads to all results by itself.

There are few functions, and no slices in them, because each of both costs compile time.
"""

import numpy as np

from pytensor_mvn_rewrites.lower.numba.jit import CHOL, COV, TAU, njit_exact


@njit_exact(reassociate=True)
def cholesky_in_place(chol):
    """Turn a matrix into its Cholesky factor in place; False if a pivot is not positive."""
    n = chol.shape[0]
    for i in range(n):
        for j in range(i):
            dot = 0.0
            for k in range(j):
                dot += chol[i, k] * chol[j, k]
            chol[i, j] = (chol[i, j] - dot) / chol[j, j]
        dot = 0.0
        for k in range(i):
            dot += chol[i, k] * chol[i, k]
        pivot = chol[i, i] - dot
        if not pivot > 0.0:
            return False
        chol[i, i] = np.sqrt(pivot)
    return True


@njit_exact
def check_factor(chol, factorized, param):
    """Half the log-determinant of the covariance, and whether all pivots are positive.

    A covariance or precision without a factor, or with NaN in it, gets a factor of NaN.
    """
    n = chol.shape[0]
    half_logdet = 0.0
    posdef = True
    for i in range(n):
        half_logdet += np.log(chol[i, i])
        posdef &= chol[i, i] > 0.0
    posdef &= factorized
    if param != CHOL and not posdef:
        half_logdet = np.nan
        for i in range(n):
            for j in range(n):
                chol[i, j] = np.nan
    return -half_logdet if param == TAU else half_logdet, posdef


@njit_exact(reassociate=True)
def whiten(chol, delta, z, a, param, wants_gradient):
    """Return delta' S^-1 delta; write z with z'z equal to it, and a = S^-1 delta if wanted.

    A given Cholesky factor with a zero on its diagonal yields NaN, as LAPACK's trtrs refuses it.
    """
    n = chol.shape[0]
    quad = 0.0
    if param == TAU:
        for i in range(n):
            z[i] = 0.0
            for j in range(i + 1):
                z[j] += chol[i, j] * delta[i]
        for i in range(n):
            quad += z[i] * z[i]
            dot = 0.0
            for k in range(i + 1):
                dot += chol[i, k] * z[k]
            a[i] = dot
        return quad
    singular = False
    for i in range(n):
        singular |= chol[i, i] == 0.0
    for i in range(n):
        dot = 0.0
        for k in range(i):
            dot += chol[i, k] * z[k]
        z[i] = np.nan if singular else (delta[i] - dot) / chol[i, i]
        a[i] = z[i]
        quad += z[i] * z[i]
    if wants_gradient:
        for i in range(n - 1, -1, -1):
            a[i] /= chol[i, i]
            for k in range(i):
                a[k] -= chol[i, k] * a[i]
    return quad


@njit_exact
def add_quad_gradient(grad, g_quad, delta, z, a, param):
    """Add the gradient of ``g_quad * quaddist``, not folded, to the lower triangle."""
    for i in range(grad.shape[0]):
        if param == COV:
            factor = -g_quad * a[i]
            for j in range(i + 1):
                grad[i, j] += factor * a[j]
        elif param == CHOL:
            factor = -2.0 * g_quad * a[i]
            for j in range(i + 1):
                grad[i, j] += factor * z[j]
        else:
            factor = g_quad * delta[i]
            for j in range(i + 1):
                grad[i, j] += factor * delta[j]


@njit_exact
def invert(chol, row):
    """Replace a lower Cholesky factor by the lower triangle of (L L')^-1; `row` is scratch."""
    n = chol.shape[0]
    # inverse of the factor, row by row: X_i = (e_i - sum_k L_ik X_k) / L_ii
    for i in range(n):
        pivot = 1.0 / chol[i, i]
        for j in range(i):
            row[j] = 0.0
        for k in range(i):
            factor = chol[i, k] * pivot
            for j in range(k + 1):
                row[j] -= factor * chol[k, j]
        for j in range(i):
            chol[i, j] = row[j]
        chol[i, i] = pivot
    # X'X: row i needs the rows from i on
    for i in range(n):
        pivot = chol[i, i]
        for j in range(i + 1):
            chol[i, j] *= pivot
        for k in range(i + 1, n):
            factor = chol[k, i]
            for j in range(i + 1):
                chol[i, j] += factor * chol[k, j]


@njit_exact
def add_logdet_gradient(grad, g_half_logdet, chol_or_inverse, param):
    """Add the gradient of ``g_half_logdet * half_logdet`` to `grad`, and fold.

    Needs the inverse of :func:`invert`, except for a given Cholesky factor.
    """
    n = grad.shape[0]
    if param == CHOL:
        for i in range(n):
            grad[i, i] += g_half_logdet / chol_or_inverse[i, i]
        return
    factor = -0.5 * g_half_logdet if param == TAU else 0.5 * g_half_logdet
    for i in range(n):
        for j in range(i):
            grad[i, j] = 2.0 * (grad[i, j] + factor * chol_or_inverse[i, j])
        grad[i, i] += factor * chol_or_inverse[i, i]
