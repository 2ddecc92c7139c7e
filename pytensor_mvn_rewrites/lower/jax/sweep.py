r"""Medium matrices: one loop over the pivots, each step on the whole batch.

Gauss-Jordan elimination, known in statistics as the sweep operator (Goodnight, The American
Statistician 33, 1979), turns :math:`[\Sigma, \delta]` into
:math:`[-\Sigma^{-1}, \Sigma^{-1}\delta]` in place; the pivots are those of Cholesky's method. The
batch is the innermost axis, along which XLA vectorizes, and the program does not grow with n.
"""

from functools import partial

import jax.numpy as jnp
from jax import lax

# a triangular solve costs no more than its input: nothing to gain over LAPACK
from pytensor_mvn_rewrites.lower.jax.lapack import solve_lower, solve_lower_transposed

__all__ = ["quad_half_logdet", "solve_and_invert", "solve_lower", "solve_lower_transposed"]


def quad_half_logdet(rows, matrices):
    """(quaddist, half_logdet) of rows of shape (..., 1, n) and covariances."""
    return solve_and_invert(rows, matrices)[:2]


def solve_and_invert(rows, matrices):
    """(quaddist, half_logdet, inverse times rows, inverse)."""
    n = matrices.shape[-1]
    full = jnp.tril(matrices) + jnp.tril(matrices, -1).mT
    state = (
        jnp.moveaxis(full, (-2, -1), (0, 1)),
        jnp.moveaxis(rows[..., 0, :], -1, 0),
        jnp.zeros(matrices.shape[:-2], matrices.dtype),
        jnp.zeros(matrices.shape[:-2], matrices.dtype),
    )
    swept, a, quaddist, logdet = lax.fori_loop(0, n, partial(sweep_pivot, jnp.arange(n)), state)
    inverse = -jnp.moveaxis(swept, (0, 1), (-2, -1))
    return quaddist[..., None], 0.5 * logdet, jnp.moveaxis(a, 0, -1)[..., None, :], inverse


def sweep_pivot(indices, k, state):
    """Sweep pivot `k`; one that is not positive becomes NaN, and with it the whole matrix."""
    matrix, x, quaddist, logdet = state
    pivot = jnp.where(matrix[k, k] > 0, matrix[k, k], jnp.nan)
    column = matrix[k]
    scaled, scaled_x = column / pivot, x[k] / pivot

    is_pivot = (indices == k).reshape(-1, *(1,) * pivot.ndim)
    swept = matrix - column[:, None] * scaled[None, :]
    swept = jnp.where(is_pivot[None, :], scaled[:, None], swept)
    pivot_row = jnp.where(is_pivot, -1 / pivot, scaled)
    return (
        jnp.where(is_pivot[:, None], pivot_row[None, :], swept),
        jnp.where(is_pivot, scaled_x, x - column * scaled_x),
        quaddist + x[k] * scaled_x,
        logdet + jnp.log(pivot),
    )
