import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import ancestors
from scipy.stats import multivariate_normal, norm

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import inv_quad_logdet, low_rank_quad_logdet
from pytensor_mvn_rewrites.pipeline import Declined, recording
from tests.harness import (
    PIPELINE_MODE,
    REFERENCE_MODE,
    assert_declines,
    assert_model_agrees,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    gradient,
    named,
    our_ops,
    rewritten,
)
from tests.structure.contract import Case, StructureContract

N, K = 24, 3
EYE = np.eye(N)


def size_for(batch):
    """Small matrices are left to the dense kernels, those of a batch in particular."""
    return 64 if batch else N


class TestMultipleOfIdentity(StructureContract):
    """Of any sign: it is an eigenvalue of the matrix."""

    params = ("cov", "tau")

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        n = size_for(batch)
        W = pt.tensor("W", shape=(*batch, n, K), dtype=dtype)
        s = pt.tensor("s", shape=batch, dtype=dtype)
        values = {
            W: np.linalg.qr(rng.normal(size=(*batch, n, K)))[0].astype(dtype),
            s: np.full(batch, sign / condition, dtype=dtype),
        }
        return Case(W @ W.mT + s[..., None, None] * pt.eye(n, dtype=dtype), values)


class TestFactorModel(StructureContract):
    params = ("cov", "tau")

    # the logarithm of the diagonal is what the model knows
    test_not_positive_definite = None

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        n = size_for(batch)
        W = pt.tensor("W", shape=(*batch, n, K), dtype=dtype)
        log_d = pt.tensor("log_d", shape=(*batch, n), dtype=dtype)
        values = {
            W: (rng.normal(size=(*batch, n, K)) / 4).astype(dtype),
            log_d: -rng.uniform(0, np.log(condition), size=(*batch, n)).astype(dtype),
        }
        return Case(W @ W.mT + pt.exp(log_d)[..., None] * pt.eye(n, dtype=dtype), values)


delta = pt.vector("delta", shape=(N,))
W, C = pt.matrix("W", shape=(N, K)), pt.matrix("C", shape=(K, K))
PD = C @ C.T + np.eye(K)
s, c, w = pt.scalar("s"), pt.vector("c", shape=(K,)), pt.vector("w", shape=(N,))
log_d = pt.vector("log_d", shape=(N,))
Z = np.random.default_rng(0).normal(size=(N, K))
NOISE = s**2 * EYE

#: The matrix, and the rank that is to be found.
FORMS = {
    "dot": (pt.dot(W, W.T) + NOISE, K),
    "diagonal": (W @ W.T + pt.diag(pt.exp(log_d)), K),
    "with a jitter": (W @ W.T + pt.diag(pt.exp(log_d)) + 1e-3 * EYE, K),
    "scaled": (pt.exp(s) * (W @ W.T) + NOISE, K),
    "weights": (W @ pt.diag(pt.exp(c)) @ W.T + NOISE, K),
    "weighted columns": ((W * pt.exp(c)) @ W.T + NOISE, K),
    "squared weights": (W @ (c[:, None] ** 2 * W.T) + NOISE, K),
    "matrix in the middle": (W @ PD @ W.T + NOISE, K),
    "product": ((W @ C) @ (W @ C).T + NOISE, K),
    "outer product": (s**2 * pt.outer(w, w) + NOISE, 1),
    "sum of two": (W @ W.T + NOISE + pt.outer(w, w), K + 1),
    "compound symmetry": (
        pt.sigmoid(s) * np.ones((N, N)) + (1 - pt.sigmoid(s)) * EYE,
        1,
    ),
    "compound symmetry by a scalar": (pt.exp(s) + pt.diag(pt.exp(log_d)), 1),
    "design on one side": (Z @ (s**2 * Z.T) + NOISE, K),
    "scaled design": ((s * Z) @ (s * Z.T) + NOISE, K),
    "design multiplied out": (s**2 * (Z @ Z.T) + pt.diag(pt.exp(log_d)), K),
}


def values_of(graph):
    """A value for each input of the graph."""
    rng = np.random.default_rng(1)
    inputs = set(ancestors(graph))
    return {
        var: rng.normal(size=var.type.shape)
        for var in (delta, W, C, s, c, w, log_d)
        if var in inputs
    }


@pytest.mark.parametrize("name", FORMS)
def test_form(name):
    matrix, rank = FORMS[name]
    graph = list(inv_quad_logdet(delta, matrix))
    new = rewritten(graph)
    assert our_ops(new) == {"LowRankQuadLogdet{cov}": 1}
    assert new[0].owner.inputs[1].type.shape == (N, rank)
    assert_same_numbers(graph, new, values_of(graph), condition=1e2)


def test_exact_graph():
    graph = list(inv_quad_logdet(delta, W @ W.T + pt.diag(pt.exp(log_d)) + 1e-3 * EYE))
    expected = low_rank_quad_logdet(delta, W, pt.exp(log_d) + 1e-3 * np.ones(N))
    assert_rewrites_to(graph, expected, values_of(graph), condition=1e2)


def test_precision():
    graph = list(inv_quad_logdet(delta, FORMS["dot"][0], "tau"))
    _, half_logdet, posdef = low_rank_quad_logdet(delta, W, s**2 * np.ones(N))
    quaddist = ((delta @ W) ** 2).sum() + (delta**2 * (s**2 * np.ones(N))).sum()
    values = values_of(graph)
    new = rewritten(graph)
    assert our_ops(new) == {"LowRankQuadLogdet{cov}": 1}
    assert_same_numbers(new, [quaddist, -half_logdet, posdef], values, condition=1e2)
    assert_same_numbers(graph, new, values, condition=1e2)


@pytest.mark.parametrize("d", [1e-4, 1e-8, 1e-12])
def test_small_diagonal(d):
    """Against exact solutions: orthonormal columns make everything known in closed form."""
    rng = np.random.default_rng(2)
    q, _ = np.linalg.qr(rng.normal(size=(N, N)))
    factor, rest = q[:, :K], q[:, K:]
    inside, outside = rng.normal(size=K), np.sqrt(d) * rng.normal(size=N - K)
    x = factor @ inside + rest @ outside
    graph = rewritten(inv_quad_logdet(delta, W @ W.T + pt.diag(pt.exp(log_d))))
    values = {delta: x, W: factor, log_d: np.full(N, np.log(d))}
    quaddist, half_logdet, _ = evaluate(graph, values)
    # x was rounded to eps, which the matrix enlarges by 1 / sqrt(d)
    rounding = 1e3 * np.finfo(float).eps / np.sqrt(d)
    expected = inside @ inside / (1 + d) + outside @ outside / d
    np.testing.assert_allclose(quaddist, expected, rtol=rounding)
    expected = (K * np.log1p(d) + (N - K) * np.log(d)) / 2
    np.testing.assert_allclose(half_logdet, expected, rtol=1e-13)
    [d_delta] = evaluate(gradient(graph[:1], [delta]), values)
    expected = 2 * (factor @ inside / (1 + d) + rest @ outside / d)
    np.testing.assert_allclose(d_delta, expected, atol=rounding * np.abs(expected).max())


def test_one_small_entry():
    """A diagonal of very different entries, against the dense graph, which is accurate there."""
    graph = list(inv_quad_logdet(delta, W @ W.T + pt.diag(pt.exp(log_d))))
    values = values_of(graph)
    values[log_d] = np.r_[np.log(1e-8), np.zeros(N - 1)]
    new = rewritten(graph)
    for got, want in zip(evaluate(new, values), evaluate(graph, values), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)
    wrt = [delta, W, log_d]
    results = [evaluate(gradient(outputs, wrt), values) for outputs in (new, graph)]
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11 * np.abs(want).max())


@pytest.mark.parametrize("noise", [0.0, -0.5, np.nan])
def test_bad_noise(noise):
    """Without a positive multiple of the identity the matrix has a rank that is too small."""
    graph = list(inv_quad_logdet(delta, W @ W.T + s * EYE))
    values = values_of(graph) | {s: noise}
    quaddist, half_logdet, posdef = evaluate(rewritten(graph), values)
    assert np.isnan(quaddist)
    assert np.isnan(half_logdet)
    assert not posdef


def near_misses():
    d = pt.vector("d", shape=(N,))
    wide, small = pt.matrix("wide", shape=(N, 7)), pt.matrix("small", shape=(4, 1))
    return {
        "no diagonal": inv_quad_logdet(delta, W @ W.T + 2 * (W @ C) @ (W @ C).T),
        "diagonal of any sign": inv_quad_logdet(delta, W @ W.T + pt.diag(d)),
        "diagonal of squares": inv_quad_logdet(delta, W @ W.T + pt.diag(d**2)),
        "scale of any sign": inv_quad_logdet(delta, s * (W @ W.T) + EYE),
        "weights of any sign": inv_quad_logdet(delta, (W * c) @ W.T + EYE),
        "matrix in the middle": inv_quad_logdet(delta, W @ C @ W.T + EYE),
        "product of two": inv_quad_logdet(delta, W @ (W + 1).T + EYE),
        "outer product of two": inv_quad_logdet(delta, pt.outer(w, pt.exp(w)) + EYE),
        "a full matrix": inv_quad_logdet(delta, W @ W.T + EYE + pt.matrix(shape=(N, N))),
        "small matrices of a batch": inv_quad_logdet(
            delta, pt.stack([W, 2 * W]) @ pt.stack([W, 2 * W]).mT + EYE
        ),
        "rank too large": inv_quad_logdet(delta, wide @ wide.T + EYE),
        "small matrix": inv_quad_logdet(delta[:4], small @ small.T + np.eye(4)),
        "unknown sizes": inv_quad_logdet(delta, pt.dot(U := pt.matrix("U"), U.T) + EYE),
        "Cholesky factor": inv_quad_logdet(delta, W @ W.T + EYE, "chol"),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


def test_explained():
    with recording() as events:
        rewritten(near_misses()["diagonal of any sign"])
    reasons = {event.reason for event in events if isinstance(event, Declined)}
    assert any("not proven positive" in reason for reason in reasons)


def test_factor_model(rng):
    with pm.Model() as model:
        loadings = pm.Normal("loadings", shape=(N, K))
        psi = pm.HalfNormal("psi", shape=N)
        cov = loadings @ loadings.T + pt.diag(psi)
        pm.MvNormal("y", np.zeros(N), cov=cov, observed=rng.normal(size=(5, N)))
    assert our_ops(rewritten([model.logp()])) == {"LowRankQuadLogdet{cov}": 1}
    assert_model_agrees(model)


COORDS = {
    "item": range(N),
    "factor": range(K),
    "obs": range(5),
    "group": range(3),
    "row": range(64),
}

UNKNOWN_SIZES = {
    "diagonal": lambda W, psi: W @ W.T + pt.diag(psi),
    "times eye": lambda W, psi: W @ W.T + psi**2 * pt.eye(N),
    "multiple of the identity": lambda W, psi: W @ W.T + psi[0] * pt.eye(N),
    "identity of unknown size": lambda W, psi: W @ W.T + psi[0] * pt.eye(W.shape[0]),
    "weighted": lambda W, psi: (W * psi[:K]) @ W.T + pt.diag(psi),
    "scaled rows": lambda W, psi: (psi[:, None] * W) @ (psi[:, None] * W).T + pt.diag(psi),
    "one factor": lambda W, psi: pt.outer(W[:, 0], W[:, 0]) + pt.diag(psi),
}


@pytest.mark.parametrize("free", [False, True], ids=["observed", "free"])
@pytest.mark.parametrize("form", UNKNOWN_SIZES)
def test_dims(rng, form, free):
    """No type knows a length of a dimension: n comes from the data, and k is small at present."""
    with pm.Model(coords=COORDS) as model:
        loadings = pm.Normal("loadings", dims=("item", "factor"))
        cov = UNKNOWN_SIZES[form](loadings, pm.HalfNormal("psi", dims="item"))
        mu, data = pm.Normal("mu", dims="item"), rng.normal(size=(5, N))
        y = pm.MvNormal("y", mu, cov=cov, observed=None if free else data, dims=("obs", "item"))
        if free:
            pm.Normal("z", y, observed=data)
    found = our_ops(rewritten([model.logp()]))
    # nothing knows the size of a free vector but a constant identity
    unknown = free and form not in ("times eye", "multiple of the identity")
    assert found == {"MvNormalLogp{cov}" if unknown else "LowRankQuadLogdet{cov}": 1}
    assert_model_agrees(model)


@pytest.mark.parametrize("k", [1, K, N, 40])
def test_dims_that_change(rng, k):
    """Their lengths decide on the cost alone: with k >= n the sum is any positive definite one."""
    with pm.Model(coords={"factor": range(K)}) as model:
        loadings = pm.Normal("loadings", shape=(N, model.dim_lengths["factor"]))
        data = rng.normal(size=N)
        pm.MvNormal("y", np.zeros(N), cov=loadings @ loadings.T + EYE, observed=data)
    assert our_ops(rewritten([model.logp()])) == {"LowRankQuadLogdet{cov}": 1}
    logp = model.compile_logp(mode=PIPELINE_MODE)
    model.set_dim("factor", k, range(k))
    point = {"loadings": rng.normal(size=(N, k))}
    cov = point["loadings"] @ point["loadings"].T + EYE
    expected = multivariate_normal.logpdf(data, cov=cov) + norm.logpdf(point["loadings"]).sum()
    np.testing.assert_allclose(logp(point), expected, rtol=1e-10)


@pytest.mark.parametrize("param", ["cov", "tau"])
def test_diagonal_of_any_sign_beside_a_dim(rng, param):
    """A negative diagonal leaves W @ W.T positive definite once W has as many columns as rows."""
    with pm.Model(coords={"factor": range(2)}) as model:
        loadings = pm.Normal("loadings", shape=(32, model.dim_lengths["factor"]))
        matrix = loadings @ loadings.T + pm.Normal("b") * pt.eye(32)
        pm.MvNormal("y", np.zeros(32), **{param: matrix}, observed=rng.normal(size=32))
    with recording() as events:
        assert our_ops(rewritten([model.logp()])) == {f"MvNormalLogp{{{param}}}": 1}
    reasons = {event.reason for event in events if isinstance(event, Declined)}
    assert any("not proven positive" in reason for reason in reasons)
    logp = model.compile_logp(mode=PIPELINE_MODE)
    model.set_dim("factor", 60, range(60))
    with mvn.disable():
        reference = model.compile_logp(mode=REFERENCE_MODE)
    point = {"loadings": rng.normal(size=(32, 60)), "b": np.array(-0.1)}
    assert np.isfinite(logp(point))
    np.testing.assert_allclose(logp(point), reference(point), rtol=1e-9)


def test_dims_of_many_factors(rng):
    with pm.Model(coords={"item": range(N), "factor": range(N)}) as model:
        loadings = pm.Normal("loadings", dims=("item", "factor"))
        cov = loadings @ loadings.T + pt.diag(pm.HalfNormal("psi", dims="item"))
        pm.MvNormal("y", np.zeros(N), cov=cov, observed=rng.normal(size=N))
    assert our_ops(rewritten([model.logp()])) == {"MvNormalLogp{cov}": 1}
    [event] = mvn.explain(model).declined
    assert event.rule == "LowRankPlusDiagonal"
    assert "rank is not known" in event.reason


def test_loop_over_groups_with_dims(rng):
    with pm.Model(coords=COORDS) as model:
        loadings = pm.Normal("loadings", dims=("group", "row", "factor"))
        sigma = pm.HalfNormal("sigma", dims="group")
        for i in range(3):
            cov = loadings[i] @ loadings[i].T + sigma[i] ** 2 * pt.eye(64)
            pm.MvNormal(f"y_{i}", np.zeros(64), cov=cov, observed=rng.normal(size=64))
    assert our_ops(rewritten([model.logp()])) == {"LowRankQuadLogdet{cov}": 1}
    assert_model_agrees(model)


def test_random_effects(rng):
    """A linear mixed model with two crossed factors, marginalized by hand."""
    designs = [np.eye(4)[rng.integers(4, size=48)], np.eye(5)[rng.integers(5, size=48)]]
    with pm.Model() as model:
        tau, sigma = pm.HalfNormal("tau", shape=2), pm.HalfNormal("sigma")
        cov = sum(tau[i] ** 2 * (Z @ Z.T) for i, Z in enumerate(designs)) + sigma**2 * np.eye(48)
        pm.MvNormal("y", pm.Normal("mu"), cov=cov, observed=rng.normal(size=48))
    assert our_ops(rewritten([model.logp()])) == {"LowRankQuadLogdet{cov}": 1}
    assert_model_agrees(model)


def test_large_matrix_never_exists(rng):
    with pm.Model() as model:
        loadings, sigma = pm.Normal("loadings", shape=(3000, 2)), pm.HalfNormal("sigma")
        cov = loadings @ loadings.T + sigma**2 * np.eye(3000)
        pm.MvNormal("y", np.zeros(3000), cov=cov, observed=rng.normal(size=3000))
    fn = model.compile_dlogp(mode=PIPELINE_MODE).f
    variables = {var for node in fn.maker.fgraph.apply_nodes for var in node.outputs}
    assert not [var for var in variables if var.type.shape[-2:] == (3000, 3000)]
