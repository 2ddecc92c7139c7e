import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.harness import (
    assert_declines,
    assert_model_agrees,
    assert_rewrites_to,
    evaluate,
    named,
    our_ops,
    rewritten,
)
from tests.structure.contract import Case, StructureContract

N = 4


class TestDiagonal(StructureContract):
    params = ("cov", "chol", "tau")

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        d = pt.tensor("d", shape=(*batch, N), dtype=dtype)
        value = rng.permuted(np.geomspace(1, 1 / condition, N) * np.ones((*batch, 1)), axis=-1)
        value[..., 1] *= sign
        return Case(d[..., None] * pt.eye(N, dtype=dtype), {d: value.astype(dtype)})


FORMS = {
    "diag": lambda d, s: (pt.diag(d), d),
    "log scale": lambda d, s: (pt.diag(pt.exp(pt.log(d))), pt.exp(pt.log(d))),
    "scaled": lambda d, s: (s * pt.diag(d), s * d),
    "columns": lambda d, s: (d * pt.eye(N), d),
    "rows": lambda d, s: (pt.eye(N) * d[:, None], d),
    "scaled identity": lambda d, s: (s * np.eye(N), s * np.ones(N)),
    "over a scale": lambda d, s: (pt.eye(N) / s, np.ones(N) / s),
    "sum": lambda d, s: (pt.diag(d) + s * pt.eye(N), d + s * np.ones(N)),
    "difference": lambda d, s: (pt.diag(d) - s * 0.1 * np.eye(N), d - s * 0.1 * np.ones(N)),
    "mask": lambda d, s: (pt.eye(N) * (d + s)[:, None], d + s),
    "product": lambda d, s: (pt.diag(d) * pt.diag(d), d * d),
}


def by_hand(delta, d):
    d = pt.as_tensor(d)
    posdef = pt.all(d > 0, axis=-1)
    d = pt.switch(d > 0, d, np.nan)
    return [(delta**2 / d).sum(axis=-1), 0.5 * pt.log(d).sum(axis=-1), posdef]


@pytest.mark.parametrize("name", FORMS)
def test_form(rng, name):
    delta, d, s = pt.vector("delta", shape=(N,)), pt.vector("d", shape=(N,)), pt.scalar("s")
    matrix, diag = FORMS[name](d, s)
    values = {delta: rng.normal(size=N), d: rng.uniform(1, 2, size=N), s: 1.3}
    assert_rewrites_to(list(inv_quad_logdet(delta, matrix)), by_hand(delta, diag), values)


def test_mvnormal(rng):
    x, mu, d = pt.matrix("x", shape=(5, N)), pt.vector("mu", shape=(N,)), pt.vector("d", shape=(N,))
    quaddist, half_logdet, posdef = by_hand(x - mu, d)
    logp = -0.5 * np.log(2 * np.pi) * N - 0.5 * quaddist - half_logdet
    assert_rewrites_to(
        list(mvnormal_logp(x, mu, pt.diag(d))),
        [logp, pt.broadcast_to(posdef, (5,))],
        {x: rng.normal(size=(5, N)), mu: rng.normal(size=N), d: rng.uniform(1, 2, size=N)},
    )


def test_one_dimension(rng):
    delta, d = pt.vector("delta", shape=(1,)), pt.vector("d", shape=(1,))
    assert_rewrites_to(
        list(inv_quad_logdet(delta, pt.diag(d))),
        by_hand(delta, d),
        {delta: rng.normal(size=1), d: rng.uniform(1, 2, size=1)},
    )


def test_unknown_length(rng):
    """With ``dims`` no length is known before the function runs."""
    delta, d = pt.vector("delta"), pt.vector("d")
    values = {delta: rng.normal(size=N), d: rng.uniform(1, 2, size=N)}
    for matrix in (pt.diag(d), d * pt.eye(d.shape[0])):
        assert_rewrites_to(list(inv_quad_logdet(delta, matrix)), by_hand(delta, d), values)


@pytest.mark.parametrize("entry", [0.0, -1.0, np.nan])
@pytest.mark.parametrize("param", ["cov", "tau"])
def test_bad_entry(rng, entry, param):
    delta, d = pt.vector("delta", shape=(N,)), pt.vector("d", shape=(N,))
    new = rewritten(inv_quad_logdet(delta, pt.diag(d), param))
    assert not our_ops(new)
    bad = rng.uniform(1, 2, size=N)
    bad[2] = entry
    quaddist, half_logdet, posdef = evaluate(new, {delta: np.ones(N), d: bad})
    assert np.isnan(quaddist)
    assert np.isnan(half_logdet)
    assert not posdef


def near_misses():
    delta, d = pt.vector("delta", shape=(N,)), pt.vector("d", shape=(N,))
    A, s = pt.matrix("A", shape=(N, N)), pt.scalar("s")
    off = np.eye(N)
    off[1, 0] = 0.5
    return {
        "off-diagonal entry": inv_quad_logdet(delta, A * off),
        "plus a full matrix": inv_quad_logdet(delta, pt.diag(d) + A),
        "plus a scalar": inv_quad_logdet(delta, pt.diag(d) + s),
        "other diagonal": inv_quad_logdet(delta, pt.diag(d[1:], k=1)),
        "other identity": inv_quad_logdet(delta, s * pt.eye(pt.iscalar(), k=pt.iscalar())),
        "one entry for several": inv_quad_logdet(delta, pt.diag(pt.vector("e", shape=(1,)))),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


def test_model(rng):
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=N)
        sd = pm.LogNormal("sd", shape=N)
        scale = pm.HalfNormal("scale")
        pm.MvNormal("x", mu, cov=scale * pt.diag(sd**2), observed=rng.normal(size=(6, N)))
        pm.MvNormal("y", mu, cov=sd * pt.eye(N))
    assert not our_ops(rewritten([model.logp()]))
    assert_model_agrees(model)


def test_not_positive_definite_model(rng):
    with pm.Model() as model:
        d = pm.Normal("d", shape=N)
        pm.MvNormal("x", np.zeros(N), cov=pt.diag(d), observed=rng.normal(size=(6, N)))
    assert model.compile_logp()({"d": np.array([1.0, -1.0, 1.0, 1.0])}) == -np.inf
