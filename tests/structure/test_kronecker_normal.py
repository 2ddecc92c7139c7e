"""`pm.KroneckerNormal` against PyMC's own density and against the dense formula."""

from functools import reduce

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import ancestors
from pytensor.tensor.linalg.decomposition.cholesky import Cholesky
from pytensor.tensor.linalg.decomposition.eigen import Eigh

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import noisy_kronecker_quad_logdet
from tests.harness import (
    PIPELINE_MODE,
    assert_declines,
    assert_model_agrees,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    named,
    on_and_off,
    our_ops,
    rewritten,
    spd,
)
from tests.structure.contract import symmetric

RNG = np.random.default_rng(20261120)
DISTANCES = np.abs(np.subtract.outer(np.arange(3.0), np.arange(3.0)))
B = spd(RNG, n=2)
Q = np.linalg.eigh(spd(RNG, n=3))[1]

#: The covariance of the rows, of one parameter, in the three ways that PyMC takes it.
KRONECKER_FACTORS = {
    "covs": lambda x: {"covs": [pt.exp(-x * DISTANCES), B]},
    "three covs": lambda x: {"covs": [pt.exp(-x * DISTANCES), B * x, np.eye(2) + 0.1]},
    "chols": lambda x: {
        "chols": [pt.linalg.cholesky(pt.exp(-x * DISTANCES)), np.linalg.cholesky(B)]
    },
    "evds": lambda x: {"evds": [(x * np.arange(1, 4.0), Q), np.linalg.eigh(B)]},
    "evds that the graph decomposes": lambda x: {
        "evds": [pt.linalg.eigh(pt.exp(-x * DISTANCES)), pt.linalg.eigh(x * B)]
    },
}


def kronecker_model(factors, *, noise, rows=()):
    with pm.Model() as model:
        x = pm.LogNormal("x")
        sigma = pm.HalfNormal("sigma") if noise else 0.0
        mu = pm.Normal("mu", shape=6 if factors != "three covs" else 12)
        pm.KroneckerNormal(
            "y",
            mu=mu,
            sigma=sigma,
            observed=np.random.default_rng(0).normal(size=(*rows, mu.type.shape[0])),
            **KRONECKER_FACTORS[factors](x),
        )
    return model


def linear_algebra(model):
    """The ops of the log-density that decompose something."""
    nodes = {var.owner for var in ancestors(rewritten([model.logp()])) if var.owner}
    ops = [getattr(node.op, "core_op", node.op) for node in nodes]
    return {type(op) for op in ops if isinstance(op, Cholesky | Eigh)}


@pytest.mark.parametrize("rows", [(), (4,)], ids=["one", "rows"])
@pytest.mark.parametrize("noise", [True, False], ids=["noise", "no noise"])
@pytest.mark.parametrize("factors", KRONECKER_FACTORS)
def test_same_numbers_as_pymc(factors, noise, rows):
    assert_model_agrees(kronecker_model(factors, noise=noise, rows=rows))


@pytest.mark.parametrize("factors", KRONECKER_FACTORS)
def test_cholesky_without_noise(factors):
    """Never an eigendecomposition; given ones are used."""
    model = kronecker_model(factors, noise=False)
    ops = our_ops(rewritten([model.logp()]))
    assert Eigh not in linear_algebra(model)
    # of the last Kronecker factor; a constant one is factored when the graph is rewritten
    assert [name.split("{")[0] for name in ops] == ([] if factors == "evds" else ["InvQuadLogdet"])


@pytest.mark.parametrize("factors", KRONECKER_FACTORS)
def test_op_with_noise(factors):
    """One op, and no derivative of an eigendecomposition."""
    model = kronecker_model(factors, noise=True)
    ops = our_ops(rewritten([model.logp()]))
    assert Eigh not in linear_algebra(model)
    n_factors = 3 if factors == "three covs" else 2
    assert ops == ({} if factors == "evds" else {f"NoisyKroneckerQuadLogdet{{{n_factors}}}": 1})


def exchangeable_model(mode):
    """The covariance of engine measurements that are exchangeable, times another one."""
    data = np.random.default_rng(1).normal(size=6)
    with pm.Model() as model:
        r = pm.Uniform("r", default_transform=None)
        scale = pm.LogNormal("scale", default_transform=None)
        A = scale * ((1 - r) * pt.eye(3) + r * pt.ones((3, 3)))
        K = np.array([[1.0, 0.5], [0.5, 2.0]])
        if mode == "dense":
            cov = reduce(pt.linalg.kron, [A, K]) + 0.25 * pt.eye(6)
            pm.MvNormal("y", np.zeros(6), cov=cov, observed=data)
        else:
            pm.KroneckerNormal("y", mu=np.zeros(6), covs=[A, K], sigma=0.5, observed=data)
    return model


@pytest.mark.parametrize(("scale", "r"), [(1.3, 0.31), (1.0, 0.5)])
def test_eigenvalues_that_coincide(scale, r):
    """PyMC's gradient is wrong or NaN; this one is that of the dense formula."""
    point = {"r": np.array(r), "scale": np.array(scale)}
    with mvn.disable(), np.errstate(all="ignore"):
        pymc = exchangeable_model("kronecker").compile_dlogp(mode=PIPELINE_MODE)(point)
        dense = exchangeable_model("dense").compile_dlogp(mode=PIPELINE_MODE)(point)
    assert not np.allclose(pymc, dense, rtol=1e-2)
    ours = exchangeable_model("kronecker").compile_dlogp(mode=PIPELINE_MODE)(point)
    np.testing.assert_allclose(ours, dense, rtol=1e-10)


@pytest.mark.parametrize("noise", [0.0, 0.5], ids=["no noise", "noise"])
def test_not_positive_definite(noise):
    """NaN, as PyMC has no parameter check here."""
    with pm.Model() as model:
        x = pm.Normal("x")
        covs = [x * np.eye(3) + 0.1, B]
        pm.KroneckerNormal("y", mu=np.zeros(6), covs=covs, sigma=noise, observed=np.ones(6))
    on, off = on_and_off(lambda mode: model.compile_logp(mode=mode), PIPELINE_MODE)
    for value in (-3.0, 1.0):
        point = {"x": np.array(value)}
        assert np.isnan(off(point)) == (value < 0)
        np.testing.assert_allclose(on(point), off(point))


def test_value_of_three_dimensions():
    """The error is PyMC's."""
    rv = pm.KroneckerNormal.dist(mu=np.zeros(6), covs=[np.eye(3), B], shape=(2, 2, 6))
    with pm.Model() as model:
        model.register_rv(rv, "y")
    for context in (mvn.enable, mvn.disable):
        with context(), pytest.raises(ValueError, match="Invalid dimension for value: 3"):
            model.logp()


def test_draws_are_the_same():
    model = kronecker_model("covs", noise=True)
    draws = [pm.draw(model["y"], random_seed=1, mode=PIPELINE_MODE)]
    with mvn.disable():
        draws.append(pm.draw(model["y"], random_seed=1, mode=PIPELINE_MODE))
    np.testing.assert_array_equal(*draws)


def operands():
    delta, s, w = pt.vector("delta", shape=(6,)), pt.scalar("s"), pt.vector("w", shape=(3,))
    a, b = pt.matrix("a", shape=(3, 3)), pt.matrix("b", shape=(2, 2))
    return delta, s, w, a, b


RECOMPOSED = {
    "left to right": lambda w, q: q @ pt.diag(w) @ q.T,
    "right to left": lambda w, q: q @ (pt.diag(w) @ q.T),
    "columns": lambda w, q: (q * w) @ q.T,
    "rows": lambda w, q: q @ (w[:, None] * q.T),
}


@pytest.mark.parametrize("spelling", RECOMPOSED)
def test_undone_eigendecomposition(rng, spelling):
    delta, s, _, a, b = operands()
    recomposed = RECOMPOSED[spelling](*pt.linalg.eigh(symmetric(a)))
    graph = noisy_kronecker_quad_logdet(delta, s, [recomposed, b])
    expected = noisy_kronecker_quad_logdet(delta, s, [symmetric(a), b])
    at = {delta: rng.normal(size=6), s: 0.3, a: spd(rng, n=3), b: spd(rng, n=2)}
    assert_rewrites_to(graph, expected, at, condition=1e2)


@pytest.mark.parametrize("signs", [(1, 1), (-1, -1), (1, -1)], ids=str)
def test_signs_without_noise(rng, signs):
    """The product of two negative definite matrices is positive definite."""
    delta, _, _, a, b = operands()
    graph = noisy_kronecker_quad_logdet(delta, pt.constant(0.0), [a, b])
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{cov}": 1}
    at = {delta: rng.normal(size=6), a: signs[0] * spd(rng, n=3), b: signs[1] * spd(rng, n=2)}
    if np.prod(signs) > 0:
        assert_same_numbers(graph, new, at, condition=1e2)
    else:
        for got, want in zip(evaluate(new, at), evaluate(graph, at), strict=True):
            np.testing.assert_array_equal(got, want)


def near_misses():
    delta, s, w, a, b = operands()
    rotation = Q @ pt.diag(w) @ Q.T
    tilted = (Q + 0.1) @ pt.diag(w) @ (Q + 0.1).T
    other = Q @ pt.diag(w) @ np.roll(Q, 1, axis=0).T
    wrong_axis = Q @ (Q.T * w)
    values, vectors = pt.linalg.eigh(symmetric(a))
    unknown = pt.matrix("unknown")
    zero = pt.constant(0.0)
    return {
        "not orthogonal": (delta, s, [tilted, B]),
        "scaled along the other axis": (delta, s, [wrong_axis, B]),
        "another transpose": (delta, s, [other, B]),
        "one that is not given": (delta, s, [rotation, b]),
        "other eigenvalues": (delta, s, [vectors @ pt.diag(values + 1) @ vectors.T, b]),
        "unknown sizes": (pt.vector("u"), zero, [unknown, b]),
        "small noise": (delta, pt.constant(1e-12), [a, b]),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(noisy_kronecker_quad_logdet(*case))
