import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from scipy.stats import multivariate_normal

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import inv_quad_logdet
from tests.harness import (
    PIPELINE_MODE,
    assert_declines,
    assert_model_agrees,
    assert_same_numbers,
    evaluate,
    named,
    our_ops,
    rewritten,
)
from tests.structure.contract import Case, StructureContract, dense_variables

TIMES = np.array([2.0, 0.0, 4.5, 1.0, 3.25])
N = len(TIMES)
LAGS = np.abs(TIMES[:, None] - TIMES)


class TestConstantTimes(StructureContract):
    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        s, rate = (pt.tensor(name, shape=(*batch, 1, 1), dtype=dtype) for name in ("s", "rate"))
        # neighbours that are closely correlated make the matrix nearly singular
        values = {
            s: np.full((*batch, 1, 1), sign * 1.3),
            rate: np.full((*batch, 1, 1), 2 / condition),
        }
        matrix = s * pt.exp(-LAGS.astype(dtype) * rate)
        return Case(matrix, {var: value.astype(dtype) for var, value in values.items()})


delta = pt.vector("delta", shape=(N,))
s, ls, rho = pt.scalar("s"), pt.scalar("ls"), pt.scalar("rho")
t, shared = pt.vector("t", shape=(N,)), pytensor.shared(TIMES, "shared")
steps = np.abs(np.arange(N)[:, None] - np.arange(N))

FORMS = {
    "constant times": s * pt.exp(-LAGS / ls),
    "no scale": pt.exp(-LAGS / ls),
    "rate": s**2 * pt.exp(-ls * LAGS),
    "scaled twice": s / ls * pt.exp(-2 * LAGS * ls / 3),
    "computed": s * pt.exp(-pt.abs(pt.as_tensor(TIMES)[:, None] - TIMES) / ls),
    "variable times": s * pt.exp(-pt.abs(t[:, None] - t[None, :]) / ls),
    "shared times": s * pt.exp(-pt.abs(shared[:, None] - shared) / ls),
    "powers": s * rho**steps,
    "stationary": s / (1 - rho**2) * rho ** pt.abs(pt.arange(N)[:, None] - pt.arange(N)),
    "powers of distances": rho**LAGS,
    "one batch": (s * pt.exp(-LAGS / ls))[None],
}


def values_of(graph):
    rng = np.random.default_rng(0)
    return {delta: rng.normal(size=N), s: 1.7, ls: 0.8, rho: 0.6, t: TIMES}


@pytest.mark.parametrize("name", FORMS)
def test_form(name):
    rows = delta[None] if FORMS[name].type.ndim == 3 else delta
    graph = list(inv_quad_logdet(rows, FORMS[name]))
    new = rewritten(graph)
    assert not our_ops(new)
    assert not dense_variables(pytensor.graph.FunctionGraph(outputs=new, clone=True), N)
    assert_same_numbers(graph, new, values_of(graph), condition=1e2)


@pytest.mark.parametrize("value", [-0.7, 1e-300])
def test_negative_and_tiny_correlation(value):
    graph = list(inv_quad_logdet(delta, s * rho**steps))
    assert_same_numbers(graph, rewritten(graph), values_of(graph) | {rho: value})


@pytest.mark.parametrize("changes", [{s: 0.0}, {s: -1.0}, {rho: 1.0}, {rho: -1.2}, {rho: np.nan}])
def test_not_positive_definite(changes):
    graph = list(inv_quad_logdet(delta, s * rho**steps))
    for outputs in (graph, rewritten(graph)):
        with np.errstate(all="ignore"):
            quaddist, half_logdet, posdef = evaluate(outputs, values_of(graph) | changes)
        assert not posdef
        assert not np.isfinite(quaddist + half_logdet)


@pytest.mark.parametrize("n", [1, N])
@pytest.mark.parametrize("bad", [{t: np.nan}, {t: np.inf}, {t: -np.inf}, {ls: np.nan}, {ls: 0.0}])
def test_not_finite(bad, n):
    # the diagonal of the dense matrix is NaN: the difference of an infinite time to itself
    times, row = pt.vector("times"), pt.vector("row")
    graph = list(inv_quad_logdet(row, pt.exp(-pt.abs(times[:, None] - times) / ls)))
    new = rewritten(graph)
    assert not our_ops(new)
    values = {row: np.ones(n), times: TIMES[:n].copy(), ls: bad.get(ls, 0.8)}
    if t in bad:
        values[times][-1] = bad[t]
    for outputs in (graph, new):
        with np.errstate(all="ignore"):
            quaddist, half_logdet, posdef = evaluate(outputs, values)
        assert not posdef
        assert not np.isfinite(quaddist + half_logdet)


def test_no_times():
    times, row = pt.vector("times"), pt.vector("row")
    graph = list(inv_quad_logdet(row, s * pt.exp(-pt.abs(times[:, None] - times) / ls)))
    new = rewritten(graph)
    assert not our_ops(new)
    assert evaluate(new, {row: [], times: [], s: 1.7, ls: 0.8}) == [0.0, 0.0, True]


def test_times_whose_differences_overflow():
    times = pt.vector("times", shape=(N,), dtype="int8")
    graph = list(inv_quad_logdet(delta, pt.exp(-pt.abs(times[:, None] - times) / ls)))
    values = {delta: np.ones(N), ls: 20.0, times: np.array([100, -100, 3, 2, 1], dtype="int8")}
    new = rewritten(graph)
    assert our_ops(new)
    assert_same_numbers(graph, new, values)


def test_equal_times_are_singular():
    graph = list(inv_quad_logdet(delta, s * pt.exp(-pt.abs(t[:, None] - t) / ls)))
    equal = np.array([0.0, 1.0, 1.0, 2.0, 3.0])
    # rounding may hide it in the dense graph
    *_, posdef = evaluate(rewritten(graph), values_of(graph) | {t: equal})
    assert not posdef


def test_nearly_singular_keeps_its_digits():
    """The dense Cholesky factorization loses half of them."""
    rate = 1e-9
    graph = list(inv_quad_logdet(delta, pt.exp(-LAGS * s)))
    _, half_logdet, posdef = evaluate(rewritten(graph), values_of(graph) | {s: rate})
    assert posdef
    assert half_logdet == pytest.approx(
        0.5 * np.log(-np.expm1(-2 * rate * np.diff(np.sort(TIMES)))).sum(), rel=1e-14
    )


def test_vector_of_another_length_fails():
    y = pt.vector("y")
    new = rewritten(inv_quad_logdet(y, s * pt.exp(-LAGS / ls)))
    with pytest.raises((AssertionError, ValueError)):
        evaluate(new, {y: np.ones(N + 1), s: 1.0, ls: 1.0})


def near_misses():
    two = pt.vector("two", shape=(N,))
    twice = np.array([0.0, 1.0, 1.0, 2.0, 3.0])
    plane = np.random.default_rng(0).normal(size=(N, 2))
    in_plane = np.sqrt(((plane[:, None] - plane) ** 2).sum(-1))
    return {
        "equal constant times": s * pt.exp(-np.abs(twice[:, None] - twice) / ls),
        "distances in a plane": s * pt.exp(-in_plane / ls),
        "squared distances": s * pt.exp(-(LAGS**2) / ls),
        "two vectors": s * pt.exp(-pt.abs(t[:, None] - two) / ls),
        "a rate for each row": s * pt.exp(-LAGS * t[:, None]),
        "a power for each row": t[:, None] ** steps,
        "other diagonal": s * pt.exp(-(LAGS + np.eye(N)) / ls),
        "no distances": s * pt.exp(LAGS - 1 / ls),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(inv_quad_logdet(delta, case))


def test_model_against_scipy(rng):
    y = rng.normal(size=N)
    with pm.Model() as model:
        scale, length = pm.HalfNormal("scale"), pm.HalfNormal("length")
        pm.MvNormal("y", np.ones(N), cov=scale**2 * pt.exp(-LAGS / length), observed=y)
    [density] = model.logp(vars=[model["y"]], sum=False)
    values = {model.rvs_to_values[model["scale"]]: 0.3, model.rvs_to_values[model["length"]]: 0.1}
    want = multivariate_normal(np.ones(N), np.exp(0.6) * np.exp(-LAGS / np.exp(0.1))).logpdf(y)
    assert evaluate(rewritten([density]), values)[0] == pytest.approx(want, rel=1e-12)
    assert_model_agrees(model)


def test_other_times(rng):
    """Times in ``pm.Data`` may change, and their number with them."""
    with pm.Model() as model:
        times, y = pm.Data("times", TIMES), pm.Data("y", rng.normal(size=N))
        length = pm.HalfNormal("length")
        cov = pt.exp(-pt.abs(times[:, None] - times[None, :]) / length)
        pm.MvNormal("x", 0, cov=cov, observed=y)
    fn = model.compile_logp()
    y = rng.normal(size=4)
    pm.set_data({"times": [3.0, 0.0, 1.0, 7.0], "y": y}, model=model)
    lags = np.abs(np.subtract.outer([3.0, 0.0, 1.0, 7.0], [3.0, 0.0, 1.0, 7.0]))
    with pm.Model() as fresh:
        length = pm.HalfNormal("length")
        pm.MvNormal("x", 0, cov=pt.exp(-lags / length), observed=y)
    want = fresh.compile_logp()({"length_log__": 0.2})
    np.testing.assert_allclose(fn({"length_log__": 0.2}), want, rtol=1e-12)


@pytest.mark.parametrize("times", [[0, 1, 2, 3], [3, 2, 1, 0], [3, 0, 1, 2]], ids=str)
def test_after_all_rewrites(rng, times):
    """Also as a factor of a Kronecker product: the first value is not the last."""
    times = np.array(times, dtype="float64")
    lags = np.abs(times[:, None] - times)
    with pm.Model() as model:
        ls = pm.LogNormal("ls", shape=2)
        other = pt.exp(-np.abs(np.subtract.outer(np.arange(3.0), np.arange(3.0))) / ls[1])
        pm.MvNormal("x", np.zeros(4), cov=pt.exp(-lags / ls[0]), observed=rng.normal(size=4))
        cov = pt.linalg.kron(other, pt.exp(-lags / ls[0]))
        pm.MvNormal("y", np.zeros(12), cov=cov, observed=rng.normal(size=12))
    assert mvn.verify(model, modes=PIPELINE_MODE).ok
