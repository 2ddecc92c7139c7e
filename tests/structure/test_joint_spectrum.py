import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import ancestors

from pytensor_mvn_rewrites.ops import inv_quad_logdet
from tests.harness import (
    assert_declines,
    assert_model_agrees,
    assert_same_numbers,
    evaluate,
    named,
    our_ops,
    rewritten,
    spd,
)
from tests.structure.contract import Case, StructureContract

N = 9
C = spd(np.random.default_rng(0), n=N)
D = spd(np.random.default_rng(1), n=N)
RING = np.roll(np.eye(N), 1, axis=0) + np.roll(np.eye(N), -1, axis=0)


class TestJointSpectrum(StructureContract):
    params = ("cov", "tau")

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        a, b = (pt.tensor(name, shape=(*batch, 1, 1), dtype=dtype) for name in "ab")
        u = np.linspace(1, 2, N)
        spiked = np.outer(u, u).astype(dtype)
        values = {a: np.full((*batch, 1, 1), condition / (u @ u)), b: np.full((*batch, 1, 1), sign)}
        matrix = a * spiked + b * np.eye(N, dtype=dtype)
        return Case(matrix, {var: value.astype(dtype) for var, value in values.items()})

    def test_nothing_dense_is_left(self, rng):
        """The eigenvectors are dense, and constant."""


delta = pt.vector("delta", shape=(N,))
a, b = pt.scalar("a"), pt.scalar("b")

FORMS = {
    "nugget": a * C + b * np.eye(N),
    "squares": a**2 * C + b**2 * pt.eye(N),
    "two matrices": a * C + b * D,
    "convex": a * (b * C + (1 - b) * np.eye(N)),
    "CAR": a * (2 * np.eye(N) - b * RING),
    "quotients": C / a + np.eye(N) / b,
    "three terms": a * C + b * np.eye(N) + a * b * np.eye(N),
    "identity alone": C + b * np.eye(N),
    "diagonal": a * C + b * pt.eye(N) * 3.0,
    "one batch": (a * C + b * np.eye(N))[None],
}


@pytest.mark.parametrize("param", ["cov", "tau"])
@pytest.mark.parametrize("name", FORMS)
def test_form(name, param):
    rows = delta[None] if FORMS[name].type.ndim == 3 else delta
    graph = list(inv_quad_logdet(rows, FORMS[name], param))
    new = rewritten(graph)
    assert not our_ops(new)
    values = {delta: np.random.default_rng(2).normal(size=N), a: 1.3, b: 0.4}
    assert_same_numbers(graph, new, values, condition=1e2)


BAD = {"negative": {a: -1.0}, "singular": {b: 0.0}, "zero": {a: 0.0, b: 0.0}, "NaN": {b: np.nan}}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("param", ["cov", "tau"])
def test_bad_numbers(name, param):
    singular = np.ones((N, N))
    graph = list(inv_quad_logdet(delta, a * singular + b * np.eye(N), param))
    values = {delta: np.ones(N), a: 1.0, b: 0.5} | BAD[name]
    for outputs in (graph, rewritten(graph)):
        quaddist, half_logdet, posdef = evaluate(outputs, values)
        assert not posdef
        assert not np.isfinite(quaddist + half_logdet)


def test_constant_rows_are_rotated_when_compiling(rng):
    beta = pt.vector("beta", shape=(2,))
    X, y = rng.normal(size=(N, 2)), rng.normal(size=N)
    graph = list(inv_quad_logdet(y - X @ beta, a * C + b * np.eye(N)))
    new = rewritten(graph)
    assert not [var for var in ancestors(new) if getattr(var.type, "shape", ()) == (N, N)]
    assert_same_numbers(graph, new, {beta: rng.normal(size=2), a: 1.3, b: 0.4}, condition=1e2)


def near_misses():
    M = pt.matrix("M", shape=(N, N))
    oblique = C + np.triu(np.ones((N, N)), 1)
    return {
        "a variable matrix": a * M + b * np.eye(N),
        "not symmetric": a * oblique + b * np.eye(N),
        "three matrices": a * C + b * D + np.eye(N),
        "neither is definite": a * RING + b * np.ones((N, N)),
        "small": a * C[:4, :4] + b * np.eye(4),
        "a scale for each row": delta[:, None] * C + b * np.eye(N),
    }


def test_near_misses():
    for name, matrix in near_misses().items():
        with named(name):
            assert_declines(inv_quad_logdet(pt.vector("x", shape=(matrix.type.shape[-1],)), matrix))


def test_model(rng):
    """A genetic effect of each individual, and noise: the animal model."""
    with pm.Model() as model:
        beta = pm.Normal("beta", shape=2)
        genetic, residual = pm.HalfNormal("genetic"), pm.HalfNormal("residual")
        cov = genetic**2 * C + residual**2 * pt.eye(N)
        pm.MvNormal("y", rng.normal(size=(N, 2)) @ beta, cov=cov, observed=rng.normal(size=N))
        spatial = pm.Uniform("spatial", 0, 0.4)
        pm.MvNormal("phi", np.zeros(N), tau=genetic * (np.eye(N) - spatial * RING))
    assert not our_ops(rewritten([model.logp()]))
    assert_model_agrees(model)
