r"""Small matrices: straight-line code, one array over the batch for each element.

XLA fuses it into a few loops over the batch, which it vectorizes. The covariance is factored as
:math:`\Sigma = L D L^\top` with a unit lower triangular :math:`L`: no square roots.
"""

import jax.numpy as jnp


def elements(matrices):
    """Element (i, j) of all matrices, to be broadcast against rows."""
    n = matrices.shape[-1]
    return [[matrices[..., i, j, None] for j in range(i + 1)] for i in range(n)]


def ldl(matrices):
    """The unit lower triangular factor, below the diagonal, and the pivots.

    A pivot that is not positive becomes NaN, and with it all that depends on it.
    """
    s = elements(matrices)
    n = len(s)
    lower, pivots = [[None] * n for _ in range(n)], []
    for j in range(n):
        scaled = [lower[j][k] * pivots[k] for k in range(j)]
        pivot = minus_products(s[j][j], lower[j], scaled)
        pivots.append(jnp.where(pivot > 0, pivot, jnp.nan))
        for i in range(j + 1, n):
            lower[i][j] = minus_products(s[i][j], lower[i], scaled) / pivots[j]
    return lower, pivots


def minus_products(start, left, right):
    """``start - left @ right``, over the length of `right`."""
    for a, b in zip(left, right, strict=False):
        start = start - a * b
    return start


def solve_unit_lower(lower, x):
    """Forward substitution."""
    y: list = []
    for xi, row in zip(x, lower, strict=True):
        y.append(minus_products(xi, row, y))
    return y


def quad_of(rows, lower, pivots):
    """The whitened vector, times the root of the pivots, and the quadratic form."""
    n = len(pivots)
    y = solve_unit_lower(lower, [rows[..., i] for i in range(n)])
    return y, sum(yi * (yi / pivot) for yi, pivot in zip(y, pivots, strict=True))


def half_logdet_of(pivots):
    """Half the sum of their logarithms, without the axis of the rows."""
    return 0.5 * sum(jnp.log(pivot[..., 0]) for pivot in pivots)


def quad_half_logdet(rows, matrices):
    """(quaddist, half_logdet) of rows of shape (..., r, n) and covariances."""
    lower, pivots = ldl(matrices)
    return quad_of(rows, lower, pivots)[1], half_logdet_of(pivots)


def solve_and_invert(rows, matrices):
    """(quaddist, half_logdet, inverse times rows, inverse)."""
    lower, pivots = ldl(matrices)
    n = len(pivots)
    y, quaddist = quad_of(rows, lower, pivots)
    reciprocals = [1 / pivot for pivot in pivots]

    a: list = [None] * n
    for i in reversed(range(n)):
        column = [lower[k][i] for k in range(i + 1, n)]
        a[i] = minus_products(y[i] * reciprocals[i], column, a[i + 1 :])

    return quaddist, half_logdet_of(pivots), jnp.stack(a, -1), inverse(lower, reciprocals)


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
            rows[i][j] = rows[j][i] = element[..., 0]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def solve_lower(chol, rows):
    """Forward substitution with each row, shape (..., r, n)."""
    low = elements(chol)
    z: list = []
    for i, row in enumerate(low):
        z.append(minus_products(rows[..., i], row[:i], z) / row[i])
    return jnp.stack(z, -1)


def solve_lower_transposed(chol, rows):
    """Back substitution with each row, shape (..., r, n)."""
    low = elements(chol)
    n = len(low)
    a: list = [None] * n
    for i in reversed(range(n)):
        column = [low[k][i] for k in range(i + 1, n)]
        a[i] = minus_products(rows[..., i], column, a[i + 1 :]) / low[i][i]
    return jnp.stack(a, -1)
