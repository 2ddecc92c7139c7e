"""Every kernel against extended precision: within 50 eps times the condition number."""

from functools import cache

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pytensor_mvn_rewrites.lower.numba.blas_rows import BLAS_MIN_R
from pytensor_mvn_rewrites.lower.numba.frame import KernelSpec, kernels_by_condition
from pytensor_mvn_rewrites.ops import mvnormal_logp
from tests.lower.test_numba_backend import batched, compiled, lowered_nodes

EXTENDED = np.longdouble
LOG_2PI = np.log(2 * EXTENDED(np.pi))

pytestmark = pytest.mark.skipif(
    np.finfo(EXTENDED).eps > 1e-18, reason="long double is double on this platform"
)


def cholesky(matrix):
    """The lower Cholesky factor in extended precision, column by column."""
    factor = np.tril(matrix).astype(EXTENDED)
    for j in range(len(factor)):
        factor[j:, j] -= factor[j:, :j] @ factor[j, :j]
        factor[j:, j] /= np.sqrt(factor[j, j])
    return factor


def inverse_of_lower(factor):
    """The inverse of a lower triangle in extended precision, row by row."""
    inverse = np.zeros_like(factor)
    for i in range(len(factor)):
        inverse[i, i] = 1
        inverse[i] = (inverse[i] - factor[i, :i] @ inverse[:i]) / factor[i, i]
    return inverse


def reference(value, mu, matrix, param):
    """Log-density and gradients of one density in extended precision, and the sizes of their terms.

    Where the terms cancel, a result cannot be better than they are.
    """
    n = value.size
    delta = value.astype(EXTENDED) - mu
    factor = np.tril(matrix).astype(EXTENDED) if param == "chol" else cholesky(matrix)
    inverse = inverse_of_lower(factor)
    half_logdet = np.log(np.diag(factor)).sum()
    if param == "tau":
        symmetric = np.tril(matrix) + np.tril(matrix, -1).T
        a = symmetric.astype(EXTENDED) @ delta
        quad, half_logdet = delta @ a, -half_logdet
        outer, logdet = -np.outer(delta, delta) / 2, inverse.T @ inverse / 2
    else:
        z = inverse @ delta
        a, quad = inverse.T @ z, z @ z
        outer, logdet = np.outer(a, a) / 2, -inverse.T @ inverse / 2
    if param == "chol":
        outer, logdet = np.outer(a, z), -np.diag(1 / np.diag(factor))
        gradient = np.tril(outer) + logdet
    else:
        gradient = np.tril(2 * (outer + logdet)) - np.diag(np.diag(outer + logdet))
    logp = -n * LOG_2PI / 2 - quad / 2 - half_logdet
    sizes = [max(quad, abs(half_logdet), 1), abs(a).max(), abs(a).max()]
    sizes += [2 * max(abs(outer).max(), abs(logdet).max())]
    return (logp, -a, a, gradient), sizes


def random_matrix(rng, n, condition, scale, param):
    """A matrix of a condition number, that of the covariance where a factor is given."""
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    factor = scale ** (2 if param == "cov" else -2)
    # neither the matrix nor its inverse overflows
    eigenvalues = np.geomspace(condition, 1, n) if factor < 1 else np.geomspace(1, 1 / condition, n)
    cov = (q * eigenvalues) @ q.T
    return scale * cholesky(cov).astype(float) if param == "chol" else factor * cov


CASES = [
    ("lanes", "cov", 1),
    ("lanes", "cov", 3),
    ("lanes", "chol", 3),
    ("lanes", "tau", 3),
    ("lanes", "cov", 12),
    ("lanes", "cov", 16),
    ("lanes", "chol", 17),
    ("lanes", "tau", 20),
    ("lanes", "cov", 48),
    ("lanes", "cov", 100),
    ("large", "cov", None),
    ("small", "cov", None),
    ("rows", "cov", 3),
    ("rows", "chol", 3),
    ("rows", "tau", 3),
    ("rows", "cov", 16),
    ("blas_rows", "cov", 20),
    ("blas_rows", "chol", 20),
    ("blas_rows", "tau", 20),
    ("blas_rows", "cov", 60),
]

#: Matrices, or rows of one of them
SIZE = BLAS_MIN_R


SCALES = [1e-150, 1.0, 1e150]
CONDITIONS = [1.0, 1e4, 1e8, 1e12]


def kernels_of(function):
    [node] = lowered_nodes(function)
    return [name for _, name in kernels_by_condition(KernelSpec.of(node.op, node))]


def random_densities(rng, n, condition, scale, param, *, shares_matrix):
    """Values, means and matrices of `SIZE` densities; the last two may be one for all."""
    matrices = [random_matrix(rng, n, condition, scale, param) for _ in range(SIZE)]
    values, mus = scale * rng.normal(size=(2, SIZE, n))
    if shares_matrix:
        matrices, mus = matrices[:1] * SIZE, mus[:1].repeat(SIZE, axis=0)
    return values, mus, np.array(matrices)


def assert_accurate(outputs, densities, param, condition, sums):
    """The densities and their gradients are within the bound; those in `sums` are added up."""
    expected = [reference(*own, param) for own in zip(*densities, strict=True)]
    tolerance = 50 * np.finfo(float).eps * max(condition, densities[0].shape[1])
    for k, results in enumerate(outputs):
        terms = np.array([own[k] for own, _ in expected])
        sizes = np.array([own[k] for _, own in expected])
        if k in sums:
            results, terms, sizes = results[None], [terms.sum(axis=0)], [sizes.sum()]
        for actual, desired, size in zip(results, terms, sizes, strict=True):
            assert np.abs(actual - desired).max() <= tolerance * size


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("kernel", "param", "n"), CASES)
def test_against_extended_precision(kernel, param, n, scale):
    rng = np.random.default_rng(n)
    shapes = batched(mvnormal_logp, None, n)
    shares_matrix = kernel.endswith("rows")
    if shares_matrix:
        shapes = ((None, n), (n,), (n, n))
    function, _ = compiled(mvnormal_logp, param, shapes)
    assert kernel in (name.split()[0] for name in kernels_of(function))
    n = n or {"small": 6, "large": 60}[kernel]
    for condition in CONDITIONS:
        densities = random_densities(rng, n, condition, scale, param, shares_matrix=shares_matrix)
        values, mus, matrices = densities
        if shares_matrix:
            mus, matrices = mus[0], matrices[0]
        outputs = function(values, mus, matrices, np.ones(SIZE))
        del outputs[1]
        assert_accurate(outputs, densities, param, condition, {2, 3} if shares_matrix else ())


@cache
def summed(param, shapes):
    """The sum of the log-densities and its gradients."""
    inputs = [pt.tensor(shape=shape) for shape in shapes]
    total = mvnormal_logp(*inputs, param)[0].sum()
    return pytensor.function(inputs, [total, *pytensor.grad(total, inputs)], mode="NUMBA")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("kernel", "param", "n"),
    [
        ("lanes sum", "cov", 3),
        ("lanes sum", "chol", 3),
        ("lanes sum", "tau", 3),
        ("lanes sum", "chol", 12),
        ("lanes sum", "cov", 20),
        ("rows sum", "cov", 3),
        ("rows sum", "chol", 3),
        ("blas_rows", "chol", 20),
    ],
)
def test_sum_against_extended_precision(kernel, param, n, scale):
    rng = np.random.default_rng(n)
    shares_matrix = "rows" in kernel
    shapes = ((None, n), (n,), (n, n)) if shares_matrix else batched(mvnormal_logp, None, n)
    function = summed(param, shapes)
    assert any(name.startswith(kernel) for name in kernels_of(function))
    for condition in CONDITIONS:
        densities = random_densities(rng, n, condition, scale, param, shares_matrix=shares_matrix)
        values, mus, matrices = densities
        if shares_matrix:
            mus, matrices = mus[0], matrices[0]
        outputs = function(values, mus, matrices)
        assert_accurate(outputs, densities, param, condition, {0, 2, 3} if shares_matrix else {0})
