r"""Small matrices: straight-line code, one array over the batch for each element.

XLA fuses it into a few loops over the batch, which it vectorizes. The covariance is factored as
:math:`\Sigma = L D L^\top` with a unit lower triangular :math:`L`: no square roots, and one
reciprocal for each pivot.
"""

import jax.numpy as jnp


def elements(rows, matrices):
    """The entries of the rows, and the lower triangles to be broadcast against them."""
    n = matrices.shape[-1]
    if rows.shape[-2] == 1:
        # one axis less: XLA fuses worse around an axis of length one (measured, a factor of 3)
        rows = rows[..., 0, :]
    else:
        matrices = matrices[..., None, :, :]
    x = [rows[..., i] for i in range(n)]
    return x, [[matrices[..., i, j] for j in range(i + 1)] for i in range(n)]


def minus_products(start, left, right):
    """``start - left @ right``, over the length of `right`."""
    for a, b in zip(left, right, strict=False):
        start = start - a * b
    return start


def ldl(s):
    """The unit lower triangular factor below its diagonal, the pivots and their reciprocals.

    A pivot that is not positive becomes NaN, and with it all that depends on it.
    """
    n = len(s)
    lower = [[None] * i for i in range(n)]
    scaled = [[None] * i for i in range(n)]  # each column of the factor times its pivot
    pivots, reciprocals = [], []
    for j in range(n):
        pivot = minus_products(s[j][j], lower[j], scaled[j])
        pivots.append(jnp.where(pivot > 0, pivot, jnp.nan))
        reciprocals.append(1 / pivots[j])
        for i in range(j + 1, n):
            scaled[i][j] = minus_products(s[i][j], lower[i], scaled[j])
            lower[i][j] = scaled[i][j] * reciprocals[j]
    return lower, pivots, reciprocals


def solve_unit_lower(lower, x):
    """Forward substitution."""
    y: list = []
    for xi, row in zip(x, lower, strict=True):
        y.append(minus_products(xi, row, y))
    return y


def half_logdet_of(pivots, matrices):
    """Half the sum of their logarithms, one number for each matrix."""
    return 0.5 * sum(jnp.log(pivot) for pivot in pivots).reshape(matrices.shape[:-2])


def quad_of(y, reciprocals, rows):
    """The quadratic form of the rows that `y` belongs to."""
    return sum(yi * (yi * r) for yi, r in zip(y, reciprocals, strict=True)).reshape(rows.shape[:-1])


def quad_half_logdet(rows, matrices):
    """(quaddist, half_logdet) of rows of shape (..., r, n) and covariances."""
    x, s = elements(rows, matrices)
    lower, pivots, reciprocals = ldl(s)
    y = solve_unit_lower(lower, x)
    return quad_of(y, reciprocals, rows), half_logdet_of(pivots, matrices)


def solve_and_invert(rows, matrices):
    """(quaddist, half_logdet, inverse times rows, inverse)."""
    x, s = elements(rows, matrices)
    n = len(s)
    lower, pivots, reciprocals = ldl(s)
    y = solve_unit_lower(lower, x)

    a: list = [None] * n
    for i in reversed(range(n)):
        column = [lower[k][i] for k in range(i + 1, n)]
        a[i] = minus_products(y[i] * reciprocals[i], column, a[i + 1 :])

    return (
        quad_of(y, reciprocals, rows),
        half_logdet_of(pivots, matrices),
        jnp.stack(a, -1).reshape(rows.shape),
        inverse(lower, reciprocals).reshape(matrices.shape),
    )


def inverse(lower, reciprocals):
    """The matrices ``M' D^-1 M`` with M the inverse of the unit lower triangular factor."""
    n = len(reciprocals)
    m: list = [[None] * n for _ in range(n)]
    for j in range(n):
        for i in range(j + 1, n):
            between = range(j + 1, i)
            m[i][j] = minus_products(
                -lower[i][j], [lower[i][k] for k in between], [m[k][j] for k in between]
            )

    rows: list = [[None] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1):
            # k = i, where M has a one on the diagonal
            element = reciprocals[i] if i == j else reciprocals[i] * m[i][j]
            for k in range(i + 1, n):
                element = element + m[k][i] * reciprocals[k] * m[k][j]
            rows[i][j] = rows[j][i] = element
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def solve_lower(chol, rows):
    """Forward substitution with each row, shape (..., r, n)."""
    x, low = elements(rows, chol)
    z: list = []
    for xi, row in zip(x, low, strict=True):
        z.append(minus_products(xi, row, z) / row[-1])
    return jnp.stack(z, -1).reshape(rows.shape)


def solve_lower_transposed(chol, rows):
    """Back substitution with each row, shape (..., r, n)."""
    x, low = elements(rows, chol)
    n = len(low)
    a: list = [None] * n
    for i in reversed(range(n)):
        column = [low[k][i] for k in range(i + 1, n)]
        a[i] = minus_products(x[i], column, a[i + 1 :]) / low[i][i]
    return jnp.stack(a, -1).reshape(rows.shape)
