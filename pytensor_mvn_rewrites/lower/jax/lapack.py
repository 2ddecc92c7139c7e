"""Large matrices, and many rows that share a matrix: JAX's Cholesky and triangular solves."""

import jax.numpy as jnp
from jax import lax
from jax.lax.linalg import cholesky, triangular_solve


def factor(matrices):
    """The lower Cholesky factors, NaN where there is none; the lower triangle is read."""
    # the derivative of JAX's Cholesky wants both triangles
    full = jnp.tril(matrices) + jnp.tril(matrices, -1).mT
    return cholesky(full, symmetrize_input=False)


def solve_lower(chol, rows):
    """Forward substitution with each row, shape (..., r, n)."""
    return triangular_solve(chol, rows.mT, left_side=True, lower=True).mT


def solve_lower_transposed(chol, rows):
    """Back substitution with each row, shape (..., r, n)."""
    return triangular_solve(chol, rows.mT, left_side=True, lower=True, transpose_a=True).mT


def whitened(rows, chol):
    """(whitened rows, quaddist, half_logdet)."""
    z = solve_lower(chol, rows)
    half_logdet = jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)
    return z, (z * z).sum(-1), half_logdet


def quad_half_logdet(rows, matrices):
    """(quaddist, half_logdet) of rows of shape (..., r, n) and covariances."""
    return whitened(rows, factor(matrices))[1:]


def solve_and_invert(rows, matrices):
    """(quaddist, half_logdet, inverse times rows, inverse)."""
    chol = factor(matrices)
    z, quaddist, half_logdet = whitened(rows, chol)
    eye = jnp.broadcast_to(jnp.eye(chol.shape[-1], dtype=chol.dtype), chol.shape)
    inv_chol = triangular_solve(chol, eye, left_side=True, lower=True)
    inverse = jnp.matmul(inv_chol.mT, inv_chol, precision=lax.Precision.HIGHEST)
    return quaddist, half_logdet, solve_lower_transposed(chol, z), inverse
