import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.harness import (
    PIPELINE_MODE,
    assert_close,
    assert_declines,
    assert_rewrites_to,
    assert_same_numbers,
    named,
    on_and_off,
    our_ops,
    rewritten,
    spd,
)


def symmetric(a):
    """A positive definite matrix made of any: its gradient does not depend on the triangle."""
    return a @ a.mT + pt.eye(a.type.shape[-1])


@pytest.mark.parametrize("batch", [(), (4,)], ids=["one matrix", "batch"])
def test_mvnormal(rng, batch):
    x, mu = pt.tensor("x", shape=(4, 3)), pt.vector("mu", shape=(3,))
    A = pt.tensor("A", shape=(*batch, 3, 3))
    tau = symmetric(A)
    assert_rewrites_to(
        list(mvnormal_logp(x, mu, pt.linalg.inv(tau))),
        list(mvnormal_logp(x, mu, tau, "tau")),
        {x: rng.normal(size=(4, 3)), mu: rng.normal(size=3), A: rng.normal(size=(*batch, 3, 3))},
        condition=1e2,
    )


def test_quad_logdet(rng):
    d, A = pt.vector("d", shape=(3,)), pt.matrix("A", shape=(3, 3))
    tau = symmetric(A)
    assert_rewrites_to(
        list(inv_quad_logdet(d, pt.linalg.inv(tau))),
        list(inv_quad_logdet(d, tau, "tau")),
        {d: rng.normal(size=3), A: rng.normal(size=(3, 3))},
        condition=1e2,
    )


def test_precision_that_is_an_inverse(rng):
    d, A = pt.vector("d", shape=(3,)), pt.matrix("A", shape=(3, 3))
    cov = symmetric(A)
    assert_rewrites_to(
        list(inv_quad_logdet(d, pt.linalg.inv(cov), "tau")),
        list(inv_quad_logdet(d, cov)),
        {d: rng.normal(size=3), A: rng.normal(size=(3, 3))},
        condition=1e2,
    )


FORMS = {
    "inverse": lambda tau, c: pt.linalg.inv(tau),
    "scaled": lambda tau, c: pt.exp(c) * pt.linalg.inv(tau),
    "over a scale": lambda tau, c: pt.linalg.inv(tau) / pt.exp(c),
    "solve": lambda tau, c: pt.linalg.solve(tau, pt.eye(3), b_ndim=2),
    "solve with a constant": lambda tau, c: pt.linalg.solve(tau, np.eye(3), b_ndim=2),
    "transpose": lambda tau, c: pt.linalg.inv(tau).mT,
    "standard deviations": lambda tau, c: pt.outer(c + SD, c + SD) * pt.linalg.inv(tau),
    "inverse standard deviations": lambda tau, c: pt.linalg.inv(pt.outer(c + SD, c + SD) * tau),
}
SD = np.array([1.0, 2.0, 0.5])


@pytest.mark.parametrize("batch", [(), (4,)], ids=["one matrix", "batch"])
@pytest.mark.parametrize("name", FORMS)
def test_form(rng, name, batch):
    d, A, c = pt.matrix("d", shape=(4, 3)), pt.tensor("A", shape=(*batch, 3, 3)), pt.scalar("c")
    graph = list(inv_quad_logdet(d, FORMS[name](symmetric(A), c)))
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{tau}": 1}
    values = {d: rng.normal(size=(4, 3)), A: rng.normal(size=(*batch, 3, 3)), c: 0.3}
    assert_same_numbers(graph, new, values, condition=1e2)


def near_misses():
    d, A = pt.vector("d", shape=(3,)), pt.matrix("A", shape=(3, 3))
    tau = symmetric(A)
    return {
        "pseudo-inverse": inv_quad_logdet(d, pt.linalg.pinv(tau)),
        "sum with an inverse": inv_quad_logdet(d, pt.linalg.inv(tau) + 1e-6 * np.eye(3)),
        "solution": inv_quad_logdet(d, pt.linalg.solve(tau, A @ A.T)),
        "inverse of a Cholesky factor": inv_quad_logdet(d, pt.linalg.inv(tau), "chol"),
        "not symmetric": inv_quad_logdet(d, pt.linalg.inv(A)),
        "matrix": inv_quad_logdet(d, tau),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


@pytest.mark.parametrize("posdef", [True, False])
def test_model(rng, posdef):
    """``MvNormal(tau=...)`` in a model: PyMC's own specialization does not get in the way."""
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        tau = scale * pt.as_tensor(spd(rng, n=3) if posdef else -spd(rng, n=3))
        pm.MvNormal("x", np.zeros(3), tau=tau, observed=rng.normal(size=3))
    assert our_ops(rewritten([model.logp()])) == {"MvNormalLogp{tau}": 1}
    point = {"scale_log__": np.array(0.3)}
    on, off = on_and_off(lambda mode: model.compile_logp(mode=mode), PIPELINE_MODE)
    assert np.isfinite(off(point)) == posdef
    assert_close(on(point), off(point), "value")


def test_both_triangles_of_a_variable_precision_are_read(rng):
    """PyMC's log-determinant reads the lower one; its quadratic form reads both."""
    entries = rng.normal(size=(3, 3))
    full = spd(rng, n=3) + np.triu(entries, 1)
    with pm.Model() as model:
        tau = pm.Normal("tau", shape=(3, 3), initval=full)
        x = pm.MvNormal("x", np.zeros(3), tau=tau, observed=entries[0])
    logp = model.compile_logp(vars=[x], mode=PIPELINE_MODE)(model.initial_point())
    lower = np.tril(full) + np.tril(full, -1).T
    quaddist = entries[0] @ full @ entries[0]
    want = 0.5 * np.linalg.slogdet(lower / (2 * np.pi)).logabsdet - 0.5 * quaddist
    np.testing.assert_allclose(logp, want)
