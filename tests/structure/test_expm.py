import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import expm_quad_logdet, inv_quad_logdet
from tests.harness import (
    PIPELINE_MODE,
    assert_close,
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
from tests.structure.contract import Case, StructureContract, symmetric


def exponent(rng, *batch, n, condition):
    """A symmetric matrix whose exponential has the given condition number."""
    q, _ = np.linalg.qr(rng.normal(size=(*batch, n, n)))
    return (q * np.linspace(0, -np.log(condition), n)) @ np.swapaxes(q, -1, -2)


class TestExpm(StructureContract):
    params = ("cov", "tau")

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        entries = pt.tensor("entries", shape=(*batch, 3, 3), dtype=dtype)
        value = exponent(rng, *batch, n=3, condition=condition).astype(dtype)
        return Case(pt.linalg.expm(symmetric(entries)), {entries: value})

    #: The exponential is positive definite, and as large as its exponent.
    test_not_positive_definite = None
    test_nothing_dense_is_left = None

    def test_nan(self, rng):
        """Where SciPy's exponential of a NaN is an error."""
        for graph, values in self.graphs(rng).values():
            *_, last = values
            values = {**values, last: np.full_like(values[last], np.nan)}
            got = evaluate(rewritten(graph), values)
            assert np.isnan(got[0])
            assert not got[-1]


class TestScaled(TestExpm):
    """By a number of any sign."""

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        case = super().build(rng, batch=batch, dtype=dtype, condition=condition)
        s = pt.tensor("s", shape=batch, dtype=dtype)
        values = {s: np.full(batch, 0.7 * sign, dtype=dtype), **case.values}
        return Case(s[..., None, None] * case.matrix, values)

    test_not_positive_definite = StructureContract.test_not_positive_definite


class TestNoise(TestExpm):
    """The noise is what is left of an exponential of few eigenvalues."""

    params = ("cov",)

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        case = super().build(rng, batch=batch, dtype=dtype, condition=10 * condition)
        s, log_c = (pt.tensor(name, shape=batch, dtype=dtype) for name in ("s", "log_c"))
        noise = s[..., None, None] * np.eye(3, dtype=dtype)
        values = {s: np.full(batch, sign / condition, dtype=dtype)}
        values |= {log_c: np.full(batch, 0.2, dtype=dtype), **case.values}
        return Case(pt.exp(log_c)[..., None, None] * case.matrix + noise, values)

    test_not_positive_definite = StructureContract.test_not_positive_definite


def small():
    """A vector, a symmetric matrix, and the variable that it is made of."""
    a = pt.matrix("a", shape=(4, 4))
    return pt.vector("delta", shape=(4,)), a + a.mT, a


def test_exact_graph(rng):
    delta, X, a = small()
    expected = expm_quad_logdet(delta, np.zeros(()), X)
    values = {delta: rng.normal(size=4), a: exponent(rng, n=4, condition=3.0)}
    graph = list(inv_quad_logdet(delta, pt.linalg.expm(X)))
    assert_rewrites_to(graph, expected, values, condition=1e2)


def test_exact_graph_with_scale_and_noise(rng):
    delta, X, a = small()
    s, c = pt.scalar("s"), pt.exp(pt.scalar("log_c"))
    graph = list(inv_quad_logdet(delta, c * pt.linalg.expm(X) + s * pt.eye(4)))
    scale = pt.switch(c > 0, c, np.nan)
    quaddist, half_logdet, posdef = expm_quad_logdet(delta, s / scale, X)
    expected = [quaddist / scale, half_logdet + 2.0 * pt.log(scale), posdef & (scale > 0)]
    values = {delta: rng.normal(size=4), a: exponent(rng, n=4, condition=3.0), s: 0.3}
    values |= {c.owner.inputs[0]: 0.2}
    assert_rewrites_to(graph, expected, values, condition=1e2)


@pytest.mark.parametrize("jitter", [1e-6, -0.1, -10.0, np.nan])
def test_jitter(rng, jitter):
    """On both sides of the border."""
    delta, X, a = small()
    s = pt.scalar("s")
    graph = list(inv_quad_logdet(delta, pt.linalg.expm(X) + s * pt.eye(4)))
    values = {delta: rng.normal(size=4), a: exponent(rng, n=4, condition=2.0), s: jitter}
    got, want = evaluate(rewritten(graph), values), evaluate(graph, values)
    assert got[-1] == want[-1] == (jitter > -0.2)
    if want[-1]:
        assert_same_numbers(graph, rewritten(graph), values, condition=1e2)
    else:
        assert np.isnan(got[:-1]).all()


EXPONENTS = {
    "mean with its transpose": lambda A: (A + A.T) / 2,
    "sum with its transpose": lambda A: A.T + A,
    "both triangles": lambda A: pt.tril(A) + pt.tril(A).T,
    "strict triangle and diagonal": lambda A: pt.tril(A, -1) + pt.tril(A, -1).T + pt.diag(A[0]),
    "Gram matrix": lambda A: A @ A.T,
    "minus": lambda A: -(A + A.T),
}


@pytest.mark.parametrize("name", EXPONENTS)
def test_exponents_that_are_symmetric(rng, name):
    delta, a = pt.vector("delta", shape=(3,)), pt.matrix("a", shape=(3, 3))
    graph = list(inv_quad_logdet(delta, pt.linalg.expm(EXPONENTS[name](a))))
    new = rewritten(graph)
    assert our_ops(new) == {"ExpmQuadLogdet": 1}
    assert_same_numbers(graph, new, {delta: rng.normal(size=3), a: 0.3 * rng.normal(size=(3, 3))})


@pytest.mark.parametrize("gap", [0.0, 1e-14, 1e-8, 1e-3])
def test_eigenvalues_that_coincide(rng, gap):
    delta, a = pt.vector("delta", shape=(4,)), pt.matrix("a", shape=(4, 4))
    graph = list(inv_quad_logdet(delta, pt.linalg.expm(symmetric(a))))
    values = {delta: rng.normal(size=4), a: np.diag([0.5, 0.5 + gap, 0.5, -1.0])}
    assert_same_numbers(graph, rewritten(graph), values, condition=10)


def test_exponential_that_is_too_ill_conditioned_to_be_factored(rng):
    """The dense graph loses the small eigenvalues: the exponent still has them."""
    delta, a = pt.vector("delta", shape=(2,)), pt.matrix("a", shape=(2, 2))
    h = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
    values = {delta: np.array([1.0, 0.5]), a: h @ np.diag([20.0, -30.0]) @ h}
    new = rewritten(list(inv_quad_logdet(delta, pt.linalg.expm(symmetric(a)))))
    quaddist, half_logdet, posdef = evaluate(new, values)
    r = h @ values[delta]
    assert_close(quaddist, (np.exp([-20.0, 30.0]) * r**2).sum(), "value", condition=1e2)
    assert_close(half_logdet, -5.0, "value", condition=1e2)
    assert posdef
    assert all(np.isfinite(g).all() for g in evaluate(gradient(new, list(values)), values))


def near_misses():
    delta, a = pt.vector("delta", shape=(3,)), pt.matrix("a", shape=(3, 3))
    X = a + a.T
    return {
        "not symmetric": inv_quad_logdet(delta, pt.linalg.expm(a)),
        "antisymmetric": inv_quad_logdet(delta, pt.linalg.expm(a - a.T)),
        "plus something": inv_quad_logdet(delta, pt.linalg.expm(X) + pt.ones((3, 3))),
        "precision plus noise": inv_quad_logdet(delta, pt.linalg.expm(X) + pt.eye(3), "tau"),
        "scale of any sign, noise": inv_quad_logdet(
            delta, pt.scalar() * pt.linalg.expm(X) + pt.eye(3)
        ),
        "noise of unknown size": inv_quad_logdet(
            pt.vector(), pt.linalg.expm((Y := pt.matrix()) + Y.T) + pt.eye(Y.shape[0])
        ),
        "variances that differ": inv_quad_logdet(delta, pt.linalg.expm(X) + pt.diag(delta)),
        "Cholesky factor": inv_quad_logdet(delta, pt.linalg.expm(X), "chol"),
        "elementwise": inv_quad_logdet(delta, pt.exp(X)),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


def expm_model(rng, sym=True):
    with pm.Model() as model:
        A = pm.Normal("A", sigma=0.3, shape=(3, 3))
        mu = pm.Normal("mu", shape=3)
        cov = pt.linalg.expm((A + A.T) / 2 if sym else A)
        pm.MvNormal("y", mu, cov=cov, observed=rng.normal(size=(5, 3)))
    return model


def test_model(rng):
    model = expm_model(rng)
    assert our_ops(rewritten([model.logp()])) == {"ExpmQuadLogdet": 1}
    assert_model_agrees(model)


def test_explanation(rng):
    [event] = mvn.explain(expm_model(rng, sym=False)).declined
    assert (event.stage, event.rule) == ("structure", "Exponential")
    assert "symmetric" in event.reason


def test_one_eigendecomposition(rng):
    """The value and the gradient share it; no exponential is left."""
    model = expm_model(rng)
    logp = model.logp()
    inputs = model.value_vars
    outputs = rewritten([logp])
    fn = pytensor.function(inputs, [*outputs, *pt.grad(outputs[0], inputs)], mode=PIPELINE_MODE)
    ops = [str(node.op) for node in fn.maker.fgraph.apply_nodes]
    assert sum("Eigh" in op for op in ops) == 1
    assert not any("Expm{" in op for op in ops)
