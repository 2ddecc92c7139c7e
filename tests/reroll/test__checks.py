"""Parameter checks of re-rolled terms act term by term."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.logprob.utils import CheckParameterValue, ParameterValueError

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops.check import BatchedCheck
from tests.harness import PIPELINE_MODE, REFERENCE_MODE, evaluate, rewritten, spd

N = 4


def loop(bad: int | None):
    """A loop of which one term may get a negative scale: its covariance is not definite."""
    with pm.Model() as model:
        scale = pm.Normal("scale", shape=N)
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=np.zeros(2), cov=scale[n] * np.eye(2), observed=np.ones(2))
    scales = np.ones(N)
    if bad is not None:
        scales[bad] = -1.0
    return model, {"scale": scales}


@pytest.mark.parametrize("bad", [0, 2, None])
def test_one_bad_term_leaves_the_others_alone(bad):
    model, point = loop(bad)
    terms = model.compile_logp(sum=False, mode=PIPELINE_MODE)(point)
    with mvn.disable():
        want = model.compile_logp(sum=False, mode=PIPELINE_MODE)(point)
    for n, (got, expected) in enumerate(zip(terms, want, strict=True)):
        np.testing.assert_allclose(got, expected)
        assert np.isfinite(got).all() == (bad is None or n - 1 != bad)


@pytest.mark.parametrize("bad", [0, None])
def test_the_sum(bad):
    model, point = loop(bad)
    logp = model.compile_logp(mode=PIPELINE_MODE)(point)
    assert logp == -np.inf if bad is not None else np.isfinite(logp)


def test_two_loops_that_differ_in_what_is_observed():
    """Each loop is re-rolled, then both together: a batched check is batched once more."""
    covs = spd(np.random.default_rng(0), N, n=2)
    with pm.Model() as model:
        scale = pm.Normal("scale", 1.0, 0.1, shape=2)
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=np.zeros(2), cov=scale[0] * covs[n], observed=np.full(2, n))
        for n in range(N):
            pm.MvNormal(f"y_{n}", mu=np.zeros(2), cov=scale[0] * covs[n])
    on = model.compile_logp(mode=PIPELINE_MODE)
    with mvn.disable():
        off = model.compile_logp(mode=PIPELINE_MODE)
    point = model.initial_point()
    np.testing.assert_allclose(on(point), off(point))
    point["scale"] = -point["scale"]
    assert on(point) == off(point) == -np.inf


@pytest.mark.parametrize("what", ["value", "condition", "both"])
def test_a_batched_check_is_batched_again(what):
    x = pt.tensor3("x", shape=(2, 3, 4))
    check = BatchedCheck("checked", can_be_replaced_by_ninf=True)
    terms = [
        check(
            pt.sin(pt.cosh(x[0 if what == "condition" else i])),
            x[0 if what == "value" else i, :, :1] > -10,
        )
        for i in range(2)
    ]
    graph = pt.add(*[pt.exp(term.sum()) for term in terms])
    value = np.linspace(0, 1, 24).reshape(2, 3, 4)
    np.testing.assert_allclose(
        evaluate(rewritten([graph]), {x: value})[0], evaluate([graph], {x: value})[0]
    )


def checked_sum():
    x = pt.vector("x", shape=(N,))
    check = CheckParameterValue("x is positive", can_be_replaced_by_ninf=True)
    terms = [check(pt.log(pt.exp(pt.sin(pt.cosh(x[n])))) * 2, x[n] > 0) for n in range(N)]
    return x, pt.add(*terms)


@pytest.mark.parametrize(
    "mode",
    [REFERENCE_MODE, PIPELINE_MODE, pytest.param("NUMBA", marks=pytest.mark.slow)],
    ids=["as written", "rewritten", "numba"],
)
def test_a_function_raises(mode):
    x, total = checked_sum()
    new = rewritten([total])
    assert sum(isinstance(node.op, BatchedCheck) for node in apply_nodes(new)) == 1
    good, bad = np.ones(N), np.array([1.0, 1.0, -1.0, 1.0])
    want = evaluate([total], {x: good})[0]
    for graph in (total, new[0]):
        fn = pytensor.function([x], graph, mode=mode)
        np.testing.assert_allclose(fn(good), want)
        # Numba raises its own class of a compiled op
        with pytest.raises((ParameterValueError, AssertionError, ValueError), match="positive"):
            fn(bad)


def apply_nodes(graph):
    return pytensor.graph.fg.FunctionGraph(outputs=list(graph), clone=True).apply_nodes


def test_checks_with_different_messages_are_not_put_together():
    x = pt.vector("x", shape=(N,))
    terms = [
        CheckParameterValue(f"x_{n}")(pt.log(pt.exp(pt.sin(pt.cosh(x[n])))) * 2, x[n] > 0)
        for n in range(N)
    ]
    new = rewritten([pt.add(*terms)])
    assert not any(isinstance(node.op, BatchedCheck) for node in apply_nodes(new))


def test_a_failing_constant_condition_is_not_folded():
    """It fails when the function runs, not when it is compiled."""
    x = pt.vector("x", shape=(N,))
    conditions = np.array([True, False, True, True])
    check = CheckParameterValue("constant")
    terms = [
        check(pt.log(pt.exp(pt.sin(pt.cosh(x[n])))) * 2, pt.constant(conditions[n]))
        for n in range(N)
    ]
    fn = pytensor.function([x], pt.add(*terms), mode=PIPELINE_MODE)
    with pytest.raises(ParameterValueError, match="constant"):
        fn(np.ones(N))
