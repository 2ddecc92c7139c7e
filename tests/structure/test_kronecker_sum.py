from functools import reduce

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.assumptions import assume
from pytensor.graph.traversal import ancestors

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import inv_quad_logdet, noisy_kronecker_quad_logdet
from tests.harness import (
    PIPELINE_MODE,
    assert_declines,
    assert_model_agrees,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    gradient,
    named,
    our_ops,
    rewritten,
    spd,
)
from tests.structure.contract import (
    Case,
    StructureContract,
    batched_kron,
    dense_variables,
    spd_input,
    symmetric,
)

kron = pt.linalg.kron


class TestFullNoise(StructureContract):
    """The noise is the smallest eigenvalue of an ill-conditioned matrix."""

    sizes: tuple[int, ...] = (2, 3)

    def noise_factor(self, rng, name, n, *, batch, dtype):
        root = pt.tensor(name, shape=(*batch, n, n), dtype=dtype)
        value = 0.3 * rng.normal(size=root.type.shape).astype(dtype)
        return root @ root.mT + np.eye(n, dtype=dtype), {root: value}

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        options = {"batch": batch, "dtype": dtype}
        noise, signal, values = [], [], {}
        for k, n in enumerate(self.sizes):
            factor, value = self.noise_factor(rng, f"noise_{k}", n, **options)
            noise.append(factor)
            values |= value
            # a negative definite signal is larger than the noise
            factor, value = spd_input(rng, f"signal_{k}", n, sign=sign if k == 1 else 1, **options)
            signal.append(factor)
            values |= value
        s, t = (pt.tensor(name, shape=batch, dtype=dtype) for name in "st")
        scales = {
            s: np.full(batch, 9.0, dtype=dtype),
            t: np.full(batch, 1 / condition, dtype=dtype),
        }
        matrix = s[..., None, None] * reduce(batched_kron, signal)
        matrix += t[..., None, None] * reduce(batched_kron, noise)
        return Case(matrix, {**scales, **values})


class TestDiagonalNoise(TestFullNoise):
    def noise_factor(self, rng, name, n, *, batch, dtype):
        log_diag = pt.tensor(name, shape=(*batch, n), dtype=dtype)
        value = 0.3 * rng.normal(size=log_diag.type.shape).astype(dtype)
        return pt.exp(log_diag)[..., None] * np.eye(n, dtype=dtype), {log_diag: value}


class TestThree(TestFullNoise):
    sizes = (2, 3, 2)
    test_batch_of_matrices = None


A, B, C, D = (pt.matrix(name, shape=(n, n)) for name, n in zip("ABCD", (2, 3, 2, 3), strict=True))
delta, s = pt.vector("delta", shape=(6,)), pt.scalar("s")
log_c, log_d = pt.vector("log_c", shape=(2,)), pt.vector("log_d", shape=(3,))
SIGNAL = kron(symmetric(A), symmetric(B))
C_DEFINITE, D_DEFINITE = C @ C.T + np.eye(2), D @ D.T + np.eye(3)
c, d = pt.exp(log_c), pt.exp(log_d)


def values_of(graph):
    rng = np.random.default_rng(0)
    values = {delta: rng.normal(size=6), s: 0.7}
    values |= {var: rng.normal(size=var.type.shape) for var in (log_c, log_d)}
    values |= {var: spd(rng, n=var.type.shape[0]) for var in (A, B, C, D)}
    inputs = set(ancestors(graph))
    return {var: value for var, value in values.items() if var in inputs}


def test_exact_graph():
    a, b = A + A.mT, B + B.mT
    L, root = pt.linalg.cholesky(C_DEFINITE), pt.sqrt(d)
    graph = list(inv_quad_logdet(delta, kron(a, b) + s * kron(C_DEFINITE, pt.diag(d))))

    def solve(columns):
        return pt.linalg.solve_triangular(L, columns, lower=True, b_ndim=2)

    columns = delta[None].reshape((2, 3)).mT / root[:, None]
    whitened = solve(columns.reshape((3, 2)).mT).reshape((6, 1)).mT.squeeze(0)
    factors = [1.0 * solve(solve(a).mT), (b / root[:, None]).mT / root[:, None]]
    quaddist, half_logdet, posdef = noisy_kronecker_quad_logdet(whitened, 1.0 * s, factors)
    half_logdet = half_logdet + 3 * pt.log(pt.diagonal(L)).sum(-1) + 2 * pt.log(root).sum(-1)
    posdef = posdef & (pt.diagonal(L) > 0).all(-1) & (root > 0).all(-1)
    expected = [quaddist, half_logdet, posdef]
    assert_rewrites_to(graph, expected, values_of(graph), condition=1e2)


FORMS = {
    "noise first": s * kron(C_DEFINITE, pt.diag(d)) + SIGNAL,
    "diagonal": SIGNAL + kron(pt.diag(c), pt.diag(d)),
    "outer product": SIGNAL + pt.diag(pt.outer(c, d).ravel()),
    "columns of the same variance": SIGNAL + kron(np.eye(2), pt.diag(d)),
    "rows of the same variance": SIGNAL + kron(pt.diag(c), np.eye(3)),
    "Cholesky factor": SIGNAL
    + kron(pt.linalg.cholesky(C_DEFINITE) @ pt.linalg.cholesky(C_DEFINITE).T, np.eye(3)),
    "signal subtracted": kron(C_DEFINITE, D_DEFINITE) - 0.01 * SIGNAL,
    "noise of any sign": SIGNAL - (-s) * kron(C_DEFINITE, D_DEFINITE),
    "declared": SIGNAL
    + kron(assume(C, positive_definite=True), assume(D + D.T, positive_definite=True)),
}


@pytest.mark.parametrize("form", FORMS)
def test_form(form):
    graph = list(inv_quad_logdet(delta, FORMS[form]))
    new = rewritten(graph)
    assert our_ops(new) == {"NoisyKroneckerQuadLogdet{2}": 1}
    values = values_of(graph)
    # a declaration says nothing about the gradient of the two triangles
    wrt = [delta, A, B] if form == "declared" else list(values)
    assert_same_numbers(graph, new, values, wrt=wrt, condition=1e3)


@pytest.mark.parametrize("noise", [0.0, -0.5, -30.0, np.nan])
@pytest.mark.parametrize("sign", [1, -1])
def test_bad_input(noise, sign):
    """The dense graph's result, on both sides of the border."""
    graph = list(inv_quad_logdet(delta, SIGNAL + s * kron(C_DEFINITE, pt.diag(d))))
    values = values_of(graph) | {s: noise}
    values[A] = sign * values[A]
    got, want = evaluate(rewritten(graph), values), evaluate(graph, values)
    assert got[-1] == want[-1]
    if want[-1]:
        assert_same_numbers(graph, rewritten(graph), values, condition=1e3)
    else:
        assert np.isnan(got[:-1]).all()


def near_misses():
    definite = kron(C_DEFINITE, D_DEFINITE)
    return {
        "neither proven definite": SIGNAL + kron(symmetric(C), symmetric(D)),
        "semidefinite": SIGNAL + kron(C @ C.T, D @ D.T),
        "one factor definite": SIGNAL + kron(C_DEFINITE, symmetric(D)),
        "variances of any sign": SIGNAL + kron(pt.diag(log_c), pt.diag(d)),
        "signal not symmetric": kron(A, B) + definite,
        "other sizes": SIGNAL + kron(D_DEFINITE, C_DEFINITE),
        "three terms": SIGNAL + definite + kron(symmetric(C), D_DEFINITE),
        "one full term": SIGNAL + definite[::-1, ::-1],
        "variances that differ": SIGNAL + pt.diag(pt.exp(delta)),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(list(inv_quad_logdet(delta, case)))


@pytest.mark.parametrize("param", ["tau", "chol"])
def test_other_parametrizations(param):
    assert_declines(list(inv_quad_logdet(delta, FORMS["diagonal"], param)))


def multitask_model(kind, rows=()):
    """Several tasks at several points, with a noise that is correlated between tasks."""
    rng = np.random.default_rng(0)
    points = 2 * np.arange(4.0)[:, None]
    with pm.Model() as model:
        K = pm.gp.cov.ExpQuad(1, ls=pm.LogNormal("length"))(points)
        W = pm.Normal("W", shape=(3, 1))
        tasks = W @ W.T + pt.diag(pm.LogNormal("kappa", shape=3))
        if kind == "LKJ":
            sd = pm.Exponential.dist(1, shape=3)
            chol, _, _ = pm.LKJCholeskyCov("chol", n=3, eta=2, sd_dist=sd)
            noise = kron(chol @ chol.T, np.eye(4))
        elif kind == "declared":
            other = pt.exp(-np.abs(points - points.T) / pm.LogNormal("length_2"))
            noise = kron(
                pt.diag(pm.LogNormal("sigma", shape=3)), assume(other, positive_definite=True)
            )
        else:
            noise = kron(pt.diag(pm.LogNormal("sigma", shape=3)), np.eye(4))
        cov = kron(tasks, K) + noise
        pm.MvNormal("y", np.zeros(12), cov=cov, observed=rng.normal(size=(*rows, 12)))
    return model


@pytest.mark.parametrize("rows", [(), (5,)], ids=str)
@pytest.mark.parametrize("kind", ["LKJ", "diagonal", "declared"])
def test_model(kind, rows):
    model = multitask_model(kind, rows)
    assert our_ops(rewritten([model.logp()])) == {"NoisyKroneckerQuadLogdet{2}": 1}
    assert not dense_variables(model.compile_dlogp(mode=PIPELINE_MODE).f.maker.fgraph, 12)
    assert_model_agrees(model)


def test_explanation(rng):
    with pm.Model() as model:
        x = pm.LogNormal("x", shape=2)
        distances = np.abs(np.subtract.outer(np.arange(2), np.arange(2)))
        K, other = pt.exp(-x[0] * distances), pt.exp(-((x[1] * distances) ** 2))
        cov = kron(K, other) + kron(other, K)
        pm.MvNormal("y", np.zeros(4), cov=cov, observed=rng.normal(size=4))
    [event] = mvn.explain(model).declined
    assert (event.stage, event.rule) == ("structure", "KroneckerSum")
    assert "positive definite" in event.reason


@pytest.mark.parametrize("r", [0.5, 0.0])
def test_eigenvalues_that_coincide(rng, r):
    """The gradient of an eigendecomposition is not defined there."""
    rho = pt.scalar("rho")
    left, right = ((1 - rho) * pt.eye(n) + rho * pt.ones((n, n)) for n in (2, 3))
    graph = list(inv_quad_logdet(delta, kron(left, right) + kron(pt.diag(c), np.eye(3))))
    new = rewritten(graph)
    assert our_ops(new) == {"NoisyKroneckerQuadLogdet{2}": 1}
    values = {delta: rng.normal(size=6), rho: r, log_c: np.zeros(2)}
    assert_same_numbers(graph, new, values, condition=1e2)
    assert all(np.isfinite(g).all() for g in evaluate(gradient(new, list(values)), values))
