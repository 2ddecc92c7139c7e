import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import vectorize_graph

from pytensor_mvn_rewrites.ops import inv_quad_logdet
from tests.harness import (
    assert_declines,
    assert_rewrites_to,
    assert_same_numbers,
    our_ops,
    rewritten,
    spd,
)


def half_logdet(chol):
    return pt.log(pt.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)


def whitened(chol, delta, **kwargs):
    return pt.linalg.solve_triangular(chol, delta, lower=True, **kwargs)


@pytest.fixture
def vector(rng):
    """A vector, its covariance, and values of both."""
    d, S = pt.vector("d", shape=(3,)), pt.matrix("S", shape=(3, 3))
    return d, S, {d: rng.normal(size=3), S: spd(rng, n=3)}


@pytest.fixture
def rows(rng):
    """Rows with one covariance."""
    X, S = pt.matrix("X", shape=(None, 3)), pt.matrix("S", shape=(3, 3))
    return X, S, {X: rng.normal(size=(5, 3)), S: spd(rng, n=3)}


SQUARES = {
    "power": lambda z: (z**2).sum(),
    "sqr": lambda z: pt.sqr(z).sum(-1),
    "product": lambda z: (z * z).sum(),
    "inner product": lambda z: z @ z,
    "dot": lambda z: pt.dot(z.T, z),
}


@pytest.mark.parametrize("square", SQUARES.values(), ids=SQUARES)
def test_vector(vector, square):
    d, S, values = vector
    L = pt.linalg.cholesky(S)
    quad, half, _ = inv_quad_logdet(d, S)
    assert_rewrites_to([square(whitened(L, d)), half_logdet(L)], [quad, half], values)


def test_check_of_the_diagonal(vector):
    d, S, values = vector
    L = pt.linalg.cholesky(S)
    quad, half, posdef = inv_quad_logdet(d, S)
    assert_rewrites_to(
        [(whitened(L, d) ** 2).sum() + half_logdet(L), pt.all(pt.diag(L) > 0)],
        [quad + half, posdef],
        values,
    )


def test_given_cholesky_factor(vector):
    d, L, values = vector
    values[L] = np.linalg.cholesky(values[L])
    quad, half, _ = inv_quad_logdet(d, L, "chol")
    assert_rewrites_to([(whitened(L, d) ** 2).sum(), half_logdet(L)], [quad, half], values)


def test_upper_factor_reads_the_upper_triangle(vector):
    d, S, values = vector
    values[S] = values[S] + np.tril(np.ones((3, 3)), -1)
    U = pt.linalg.cholesky(S, lower=False)
    z = pt.linalg.solve_triangular(U, d, lower=False, trans=1)
    quad, half, _ = inv_quad_logdet(d, S.mT)
    assert_rewrites_to([(z**2).sum(), half_logdet(U)], [quad, half], values)


def test_given_upper_factor(vector):
    d, U, values = vector
    values[U] = np.linalg.cholesky(values[U]).T
    z = pt.linalg.solve_triangular(U, d, lower=False, trans=1)
    quad, half, _ = inv_quad_logdet(d, U.mT, "chol")
    assert_rewrites_to([(z**2).sum(), half_logdet(U)], [quad, half], values)


def test_one_row(rng):
    x, S = pt.matrix("x", shape=(1, 3)), pt.matrix("S", shape=(3, 3))
    L = pt.linalg.cholesky(S)
    quad, half, _ = inv_quad_logdet(x.squeeze(0), S)
    assert_rewrites_to(
        (whitened(L, x, b_ndim=1) ** 2).sum(-1) + half_logdet(L),
        (quad + half)[None],
        {x: rng.normal(size=(1, 3)), S: spd(rng, n=3)},
    )


def test_rows_that_share_a_covariance(rows):
    X, S, values = rows
    L = pt.linalg.cholesky(S)
    quad, half, _ = inv_quad_logdet(X, S)
    assert_rewrites_to(
        -0.5 * (whitened(L, X, b_ndim=1) ** 2).sum(-1) - (1.5 + half_logdet(L)),
        -0.5 * quad - (1.5 + half),
        values,
    )


def test_columns(rows):
    X, S, values = rows
    L = pt.linalg.cholesky(S)
    quad, half, _ = inv_quad_logdet(X, S)
    assert_rewrites_to((whitened(L, X.T) ** 2).sum(0) + half_logdet(L), quad + half, values)


def test_batch(rng):
    X, S = pt.matrix("X", shape=(None, 3)), pt.tensor3("S", shape=(None, 3, 3))
    L = pt.linalg.cholesky(S)
    quad, half, posdef = inv_quad_logdet(X, S)
    assert_rewrites_to(
        [
            (whitened(L, X, b_ndim=1) ** 2).sum(-1) - half_logdet(L),
            (pt.diagonal(L, axis1=-2, axis2=-1) > 0).all(-1),
        ],
        [quad - half, posdef],
        {X: rng.normal(size=(4, 3)), S: spd(rng, 4, n=3)},
    )


def test_batch_summed(rng):
    X, S = pt.matrix("X", shape=(None, 3)), pt.tensor3("S", shape=(None, 3, 3))
    L = pt.linalg.cholesky(S)
    quad, half, posdef = inv_quad_logdet(X, S)
    assert_rewrites_to(
        [
            (whitened(L, X, b_ndim=1) ** 2).sum(),
            pt.log(pt.diagonal(L, axis1=-2, axis2=-1)).sum(),
            (pt.diagonal(L, axis1=-2, axis2=-1) > 0).all(),
        ],
        [quad.sum(), half.sum(), posdef.all()],
        {X: rng.normal(size=(4, 3)), S: spd(rng, 4, n=3)},
    )


@pytest.mark.parametrize("check", [False, True])
def test_rows_summed_before_they_meet_the_log_determinant(rng, check):
    """The log-density of all rows, as one writes it by hand."""
    X, S = pt.matrix("X", shape=(5, 3)), pt.matrix("S", shape=(3, 3))
    L = pt.linalg.cholesky(S)
    quad, half, posdef = inv_quad_logdet(X, S)
    checks = [(pt.diagonal(L) > 0).all()] if check else []
    assert_rewrites_to(
        [-0.5 * (whitened(L, X, b_ndim=1) ** 2).sum() - 5 * half_logdet(L), *checks],
        [-0.5 * quad.sum() - 5 * half[0], *([posdef.all()] if check else [])],
        {X: rng.normal(size=(5, 3)), S: spd(rng, n=3)},
    )


def test_rows_of_a_batch_summed_before_they_meet_the_log_determinant(rng):
    X, S = pt.tensor3("X", shape=(4, 5, 3)), pt.tensor3("S", shape=(4, 3, 3))
    L = pt.linalg.cholesky(S)
    quad, half, posdef = inv_quad_logdet(X, S[:, None])
    assert_rewrites_to(
        [
            (whitened(L, X.mT) ** 2).sum((-2, -1)) + half_logdet(L),
            (pt.diagonal(L, axis1=-2, axis2=-1) > 0).all(-1),
        ],
        [quad.sum(-1) + half[:, 0], posdef[:, 0]],
        {X: rng.normal(size=(4, 5, 3)), S: spd(rng, 4, n=3)},
    )


def test_two_vectors_with_one_covariance(vector, rng):
    d, S, values = vector
    e = pt.vector("e", shape=(3,))
    L = pt.linalg.cholesky(S)
    quad, _, _ = inv_quad_logdet(d, S)
    other, half, _ = inv_quad_logdet(e, S)
    assert_rewrites_to(
        (whitened(L, d) ** 2).sum() + (whitened(L, e) ** 2).sum() + 2 * half_logdet(L),
        quad + other + 2 * half,
        values | {e: rng.normal(size=3)},
    )


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("condition", [1.0, 1e8])
def test_condition(rng, n, condition):
    d, S = pt.vector("d"), pt.matrix("S")
    L = pt.linalg.cholesky(S)
    quad, half, _ = inv_quad_logdet(d, S)
    assert_rewrites_to(
        [(whitened(L, d) ** 2).sum(), half_logdet(L)],
        [quad, half],
        {d: rng.normal(size=n), S: spd(rng, n=n, condition=condition)},
        condition=condition,
    )


def test_float32(rng):
    d, S = pt.fvector("d"), pt.fmatrix("S")
    L = pt.linalg.cholesky(S)
    quad, half, _ = inv_quad_logdet(d, S)
    assert_rewrites_to(
        [(whitened(L, d) ** 2).sum(), half_logdet(L)],
        [quad, half],
        {d: rng.normal(size=3).astype("f4"), S: spd(rng, n=3).astype("f4")},
    )


def test_not_positive_definite(vector):
    d, S, values = vector
    values[S] = -values[S]
    L = pt.linalg.cholesky(S)
    quad, half, posdef = inv_quad_logdet(d, S)
    assert_rewrites_to(
        [(whitened(L, d) ** 2).sum(), half_logdet(L), pt.all(pt.diag(L) > 0)],
        [quad, half, posdef],
        values,
    )


@pytest.mark.parametrize("param", ["scale", "chol", "tau"])
@pytest.mark.parametrize("batch", [(), (5,)], ids=["vector", "rows"])
def test_student_t(rng, param, batch):
    nu, S = pt.scalar("nu"), pt.matrix("S", shape=(3, 3))
    x = pt.tensor("x", shape=(*batch, 3))
    # the inverse of a precision that is not symmetric would be another matrix, and PyMC squares
    # a factor that is no triangle
    matrix = {"scale": S, "chol": pt.tril(S), "tau": (S + S.T) / 2}[param]
    graph = pm.logp(pm.MvStudentT.dist(nu, mu=np.arange(3.0), **{param: matrix}), x)
    new = rewritten([graph])
    assert our_ops(new) == {f"InvQuadLogdet{{{'cov' if param == 'scale' else param}}}": 1}
    value = spd(rng, n=3)
    if param == "chol":
        value = np.linalg.cholesky(value)
    assert_same_numbers(graph, new, {nu: 4.0, x: rng.normal(size=(*batch, 3)), S: value})


def declining(name):
    d, e, S = pt.vector("d", shape=(3,)), pt.vector("e", shape=(3,)), pt.matrix("S", shape=(3, 3))
    X = pt.matrix("X", shape=(None, 3))
    L = pt.linalg.cholesky(S)
    quad, half = (whitened(L, d) ** 2).sum(), half_logdet(L)
    return {
        "only the quadratic form": quad,
        "only the log-determinant": half,
        "factor used elsewhere": [quad + half, L @ e],
        "whitened vector used elsewhere": [quad + half, whitened(L, d)],
        "squares used elsewhere": [quad + half, whitened(L, d) ** 2],
        "sum of cubes": (whitened(L, d) ** 3).sum() + half,
        "two whitened vectors": (whitened(L, d) * whitened(L, e)).sum() + half,
        "inner product of two": whitened(L, d) @ whitened(L, e) + half,
        "solve with the transpose": (
            pt.linalg.solve_triangular(L, d, lower=True, trans=1) ** 2
        ).sum()
        + half,
        "unit diagonal": (whitened(L, d, unit_diagonal=True) ** 2).sum() + half,
        "upper solve": (pt.linalg.solve_triangular(L, d, lower=False) ** 2).sum() + half,
        "shifted diagonal": quad + pt.log(pt.diagonal(L, offset=-1)).sum(),
        "log of the absolute diagonal": quad + pt.log(pt.abs(pt.diag(S))).sum(),
        "check against another bound": [quad + half, pt.all(pt.diag(L) > 1e-3)],
        "complex": (whitened(pt.linalg.cholesky(pt.zmatrix()), pt.zvector()) ** 2).sum(),
        # with no row, the op has no log-determinant to give
        "rows, perhaps none, summed before they meet the log-determinant": (
            (whitened(L, X, b_ndim=1) ** 2).sum() + half
        ),
        "log-determinant beside other rows": [
            (whitened(L, X, b_ndim=1) ** 2).sum(-1),
            half + pt.vector("w"),
        ],
    }[name]


NAMES = [
    "only the quadratic form",
    "only the log-determinant",
    "factor used elsewhere",
    "whitened vector used elsewhere",
    "squares used elsewhere",
    "sum of cubes",
    "two whitened vectors",
    "inner product of two",
    "solve with the transpose",
    "unit diagonal",
    "upper solve",
    "shifted diagonal",
    "log of the absolute diagonal",
    "check against another bound",
    "complex",
    "rows, perhaps none, summed before they meet the log-determinant",
    "log-determinant beside other rows",
]


@pytest.mark.parametrize("name", NAMES)
def test_near_miss(name):
    assert_declines(declining(name))


def test_vectorized(vector, rng):
    d, S, _ = vector
    L = pt.linalg.cholesky(S)
    graph = (whitened(L, d) ** 2).sum() + half_logdet(L)
    ds, Ss = pt.matrix("ds", shape=(None, 3)), pt.tensor3("Ss", shape=(None, 3, 3))
    quad, half, _ = inv_quad_logdet(ds, Ss)
    assert_rewrites_to(
        vectorize_graph(graph, {d: ds, S: Ss}),
        quad + half,
        {ds: rng.normal(size=(4, 3)), Ss: spd(rng, 4, n=3)},
    )
