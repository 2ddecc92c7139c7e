"""The matrix normal distribution, and traces by hand."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.traversal import ancestors

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import inv_quad_logdet
from tests.harness import (
    PIPELINE_MODE,
    assert_declines,
    assert_model_agrees,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    named,
    our_ops,
    rewritten,
    spd,
)

solve_triangular, cholesky = pt.linalg.solve_triangular, pt.linalg.cholesky

S, R = pt.matrix("S", shape=(3, 3)), pt.matrix("R", shape=(4, 3))


def trace_of_solve(factor, gram):
    z = solve_triangular(factor, gram, lower=True)
    return pt.trace(solve_triangular(factor.T, z, lower=False))


def half_logdet(factor):
    return pt.log(pt.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)


def values(rng, **kwargs):
    return {R: rng.normal(size=(4, 3)), S: spd(rng, n=3, **kwargs)}


def test_trace(rng):
    """Without a log-determinant it is a sum of squares."""
    L = cholesky(S)
    expected = (solve_triangular(L, R.T, lower=True) ** 2).sum()
    assert_rewrites_to(trace_of_solve(L, R.T @ R), expected, values(rng))


@pytest.mark.parametrize("condition", [1.0, 1e8])
def test_with_log_determinant(rng, condition):
    L = cholesky(S)
    quaddist, half, _ = inv_quad_logdet(R, S)
    assert_rewrites_to(
        trace_of_solve(L, R.T @ R) + 8 * half_logdet(L),
        quaddist.sum() + 8 * half[0],
        values(rng, condition=condition),
        condition=condition,
    )


def test_given_cholesky_factor(rng):
    quaddist, half, _ = inv_quad_logdet(R, S, "chol")
    at = values(rng)
    assert_rewrites_to(
        [trace_of_solve(S, R.T @ R), half_logdet(S)],
        [quaddist.sum(), half[0]],
        at | {S: np.linalg.cholesky(at[S])},
    )


@pytest.mark.parametrize("shared", [False, True], ids=["own covariances", "shared covariance"])
def test_batch(rng, shared):
    L = cholesky(S)
    graph = trace_of_solve(L, R.T @ R) + half_logdet(L)
    batched = {var: pt.tensor(shape=(5, *var.type.shape)) for var in (S, R)}
    if shared:
        del batched[S]
    graph = vectorize_graph(graph, batched)
    new = rewritten([graph])
    assert our_ops(new) == {"InvQuadLogdet{cov}": 1}
    at = {S: spd(rng, 5, n=3), R: rng.normal(size=(5, 4, 3))}
    at = {batched.get(var, var): x if var in batched else x[0] for var, x in at.items()}
    assert_same_numbers(graph, new, at, condition=1e2)


def test_not_positive_definite(rng):
    L = cholesky(S)
    graph = trace_of_solve(L, R.T @ R) + half_logdet(L)
    at = values(rng)
    at[S] = -at[S]
    assert np.isnan(evaluate([graph, *rewritten([graph])], at)).all()


def near_misses():
    L, other = cholesky(S), pt.matrix("other", shape=(3, 3))
    solution = solve_triangular(L.T, solve_triangular(L, R.T @ R, lower=True), lower=False)
    return {
        "not a Gram matrix": trace_of_solve(L, other),
        "product of two": trace_of_solve(L, R.T @ (R + 1)),
        "another diagonal": pt.diagonal(solution, offset=1).sum(),
        "used elsewhere": [pt.diagonal(solution).sum(), pt.diagonal(solution)],
        "product of the diagonal": pt.diagonal(solution).prod(),
        "sum of all": solution.sum(),
        "two factors": pt.trace(
            solve_triangular(cholesky(other).T, solve_triangular(L, R.T @ R), lower=False)
        ),
        "one solve": pt.trace(solve_triangular(L, R.T @ R, lower=True)),
        "unit diagonal": pt.trace(
            solve_triangular(
                L.T,
                solve_triangular(L, R.T @ R, lower=True),
                lower=False,
                unit_diagonal=True,
            )
        ),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


DISTANCES = [np.abs(np.subtract.outer(np.arange(n), np.arange(n))) for n in (4, 3)]


def covariances(x):
    """Of the rows and of the columns."""
    return [pt.exp(-(distances**1.5) / x) for distances in DISTANCES]


PARAMETERS = {
    "covariances": lambda U, V: {"rowcov": U, "colcov": V},
    "Cholesky factors": lambda U, V: {"rowchol": cholesky(U), "colchol": cholesky(V)},
    "constant rows": lambda U, V: {
        "rowcov": pt.as_tensor(spd(np.random.default_rng(0), n=4)),
        "colcov": V,
    },
    "constant columns": lambda U, V: {"rowcov": U, "colcov": spd(np.random.default_rng(0), n=3)},
}


def matrix_normals(parameters, *, n, shared=False):
    rng = np.random.default_rng(0)
    with pm.Model() as model:
        x = pm.LogNormal("x", shape=n)
        mu = pm.Normal("mu", shape=(n, 4, 3))
        for i in range(n):
            kwargs = PARAMETERS[parameters](*covariances(x[0 if shared else i]))
            pm.MatrixNormal(f"y_{i}", mu[i], observed=rng.normal(size=(4, 3)), **kwargs)
    return model


def solves_above(graph):
    return [v for v in ancestors(graph) if v.owner and "SolveTriangular" in str(v.owner.op)]


@pytest.mark.parametrize("shared", [False, True], ids=["own covariances", "shared covariances"])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_matrix_normal(parameters, n, shared):
    """One op for the columns of all, one solve for the rows; no Gram matrix."""
    model = matrix_normals(parameters, n=n, shared=shared)
    new = rewritten([model.logp()])
    # PyTensor factors a constant when it compiles, and the log-determinant is a constant, too
    constant = parameters == "constant columns"
    assert sum(our_ops(new).values()) == (0 if constant else 1)
    assert len(solves_above(new)) == (2 if constant else 1)
    assert_model_agrees(model)


def test_free_matrix_normal_with_lkj_factor(rng):
    with pm.Model() as model:
        sd = pm.Exponential.dist(1, shape=3)
        chol, _, _ = pm.LKJCholeskyCov("chol", n=3, eta=2, sd_dist=sd)
        rowcov = covariances(pm.LogNormal("x"))[0]
        y = pm.MatrixNormal("y", np.zeros((4, 3)), rowcov=rowcov, colchol=chol)
        pm.Normal("z", y, observed=rng.normal(size=(4, 3)))
    assert our_ops(rewritten([model.logp()])) == {"InvQuadLogdet{chol}": 1}
    assert_model_agrees(model)


def test_logp_of_a_distribution(rng):
    value, x = pt.matrix("value", shape=(4, 3)), pt.scalar("x")
    rowcov, colcov = covariances(x)
    graph = pm.logp(pm.MatrixNormal.dist(np.ones((4, 3)), rowcov=rowcov, colcov=colcov), value)
    new = rewritten([graph])
    assert our_ops(new) == {"InvQuadLogdet{cov}": 1}
    assert_same_numbers(graph, new, {value: rng.normal(size=(4, 3)), x: 1.5}, condition=1e2)


@pytest.mark.parametrize("which", ["rowcov", "colcov"])
def test_bad_covariance_of_a_matrix_normal(which):
    """NaN, as PyMC checks neither of them."""
    with pm.Model() as model:
        x = pm.Normal("x")
        covs = {"rowcov": np.eye(4) + 0 * x, "colcov": np.eye(3) + 0 * x}
        n = 4 if which == "rowcov" else 3
        covs[which] = np.eye(n) * x
        pm.MatrixNormal("y", np.zeros((4, 3)), observed=np.ones((4, 3)), **covs)
    for value in (-3.0, 1.0):
        results = []
        for context in (mvn.enable, mvn.disable):
            with context():
                results.append(model.compile_logp(mode=PIPELINE_MODE)({"x": np.array(value)}))
        assert np.isnan(results[1]) == (value < 0)
        np.testing.assert_allclose(*results)
