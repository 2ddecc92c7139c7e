"""Linear algebra of object arrays of `mpmath.mpf`, one matrix at a time.

Textbook algorithms: matrices here are small, and far from singular in the working precision.
"""

import numpy as np
from mpmath import eigsy, expm, matrix, mp, mpf, sqrt

NAN = mpf("nan")


def exact(array) -> np.ndarray:
    """An object array of `mpf`: doubles and integers are what they are."""
    with np.errstate(invalid="ignore"):
        return np.asarray(_as_mpf(np.asarray(array)), dtype=object)


def _number(x) -> mpf:
    if isinstance(x, mpf):
        return x
    if not isinstance(x, float | int | np.number | np.bool_):
        raise TypeError(f"{x!r} of {type(x)} is no number")
    return mpf(float(x))


_as_mpf = np.frompyfunc(_number, 1, 1)


def zeros(*shape: int) -> np.ndarray:
    return exact(np.zeros(shape))


def identity(n: int) -> np.ndarray:
    return exact(np.eye(n))


def cholesky(a, lower=True):
    """NaN unless the triangle that is read is that of a positive definite matrix."""
    chol = cholesky_columns(a if lower else a.T, len(a))
    return chol if lower else chol.T


def cholesky_columns(a, rank):
    """The first columns of the lower Cholesky factor: all of a matrix of that rank."""
    n = len(a)
    chol = zeros(n, rank)
    for j in range(rank):
        pivot = a[j, j] - (chol[j, :j] ** 2).sum()
        if not pivot > 0:
            return np.full((n, rank), NAN)
        chol[j, j] = sqrt(pivot)
        for i in range(j + 1, n):
            chol[i, j] = (a[i, j] - (chol[i, :j] * chol[j, :j]).sum()) / chol[j, j]
    return chol


def solve_triangular(a, b, lower=True, unit_diagonal=False):
    """Only the triangle counts; NaN where an entry of the diagonal is 0."""
    n = len(a)
    if not unit_diagonal and any(a[i, i] == 0 for i in range(n)):
        return np.full(b.shape, NAN)
    x = np.array(b)
    for i in range(n) if lower else reversed(range(n)):
        known = slice(0, i) if lower else slice(i + 1, n)
        if a[i, known].size:
            x[i] = x[i] - a[i, known] @ x[known]
        if not unit_diagonal:
            x[i] = x[i] / a[i, i]
    return x


def symmetrized(a, lower):
    """The symmetric matrix of which one triangle is given."""
    triangle = np.tril(a) if lower else np.triu(a)
    return exact(triangle + triangle.T - np.diag(np.diag(a)))


def lu(a):
    """(permutation, its sign, the factors in one matrix), by pivoting."""
    a, n, sign = np.array(a), len(a), 1
    order = np.arange(n)
    for j in range(n):
        pivot = j + int(np.argmax([abs(x) for x in a[j:, j]]))
        if a[pivot, j] == 0:
            continue
        if pivot != j:
            a[[j, pivot]], order[[j, pivot]], sign = a[[pivot, j]], order[[pivot, j]], -sign
        a[j + 1 :, j] = a[j + 1 :, j] / a[j, j]
        a[j + 1 :, j + 1 :] -= np.outer(a[j + 1 :, j], a[j, j + 1 :])
    return order, sign, a


def solve(a, b, assume_a="gen", lower=False):
    """By LU, of what SciPy's `solve` reads of the matrix."""
    if assume_a in ("pos", "positive definite", "sym", "symmetric", "her", "hermitian"):
        a = symmetrized(a, lower)
    elif assume_a in ("lower triangular", "upper triangular"):
        return solve_triangular(a, b, lower=assume_a.startswith("lower"))
    elif assume_a not in ("gen", "general"):
        raise NotImplementedError(assume_a)
    order, _, factors = lu(a)
    z = solve_triangular(factors, b[order], lower=True, unit_diagonal=True)
    return solve_triangular(factors, z, lower=False)


def inverse(a):
    return solve(a, identity(len(a)))


def determinant(a):
    _, sign, factors = lu(a)
    return sign * np.prod(np.diag(factors))


def slogdet(a):
    det = determinant(a)
    return mp.sign(det), mp.log(abs(det))


def eigh(a, b=None, lower=True):
    """Eigenvalues in increasing order and eigenvectors, of A v = l B v too."""
    a = symmetrized(a, lower)
    if b is not None:
        chol = cholesky(symmetrized(b, lower))
        half = solve_triangular(chol, a)
        eigenvalues, eigenvectors = eigh(solve_triangular(chol, half.T))
        return eigenvalues, solve_triangular(chol.T, eigenvectors, lower=False)
    eigenvalues, eigenvectors = eigsy(matrix(a.tolist()))
    return exact(list(eigenvalues)), exact(eigenvectors.tolist())


def qr(a):
    """The economic one, with a positive diagonal, by Gram-Schmidt, done twice."""
    m, n = a.shape
    q, r = np.array(a[:, : min(m, n)]), zeros(min(m, n), n)
    for j in range(min(m, n)):
        for _ in range(2):
            for i in range(j):
                projection = (q[:, i] * q[:, j]).sum()
                r[i, j] += projection
                q[:, j] = q[:, j] - projection * q[:, i]
        r[j, j] = sqrt((q[:, j] ** 2).sum())
        q[:, j] = q[:, j] / r[j, j]
    r[:, min(m, n) :] = q.T @ a[:, min(m, n) :]
    return q, r


def matrix_exponential(a):
    return exact(expm(matrix(a.tolist())).tolist())
