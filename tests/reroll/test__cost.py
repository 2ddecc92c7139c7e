"""What re-rolling costs is known before anything is built, and remembered."""

import pytensor.tensor as pt
import pytest
from pytensor.graph.fg import FunctionGraph

from pytensor_mvn_rewrites.ops import mvnormal_logp, packed_cholesky
from pytensor_mvn_rewrites.reroll import _packs
from pytensor_mvn_rewrites.reroll._cost import FEW, FEW_SLICES, HEAVY, WORTHWHILE
from pytensor_mvn_rewrites.reroll._lockstep import LockStep
from pytensor_mvn_rewrites.reroll._signature import Signatures
from pytensor_mvn_rewrites.reroll._walk import expected
from pytensor_mvn_rewrites.reroll.sums import reroll_sums
from tests.harness import rewritten


def f(v):
    """Five nodes."""
    return pt.tanh(pt.exp(pt.sin(pt.cos(pt.sinh(v)))))


def density(cov):
    return mvnormal_logp(pt.vector(shape=(2,)), [0.0, 0.0], cov)[0]


x = pt.matrix("x", shape=(20, 2))
common = f(x[0])
PACKS = {
    "slices": [f(x[i]) for i in range(3)],
    "variables": [f(pt.dscalar()) for _ in range(3)],
    "constants": [common * (i + 1.5) for i in range(3)],
    "one variable twice": [f(v) * v for v in (pt.dscalar(), pt.dscalar())],
    "shared nodes": [f(v) + f(v + 1) for v in (pt.dscalar(), pt.dscalar())],
    "common parts": [common * pt.dscalar() for _ in range(3)],
    "factorizations": [density(pt.matrix(shape=(2, 2))) for _ in range(3)],
    "Cholesky factors": [packed_cholesky(pt.vector(shape=(3,)), 2)[1].sum() for _ in range(3)],
}


@pytest.mark.parametrize("name", PACKS)
def test_expectation_is_the_cost_of_the_walk(name):
    terms, signatures = PACKS[name], Signatures()
    assert len(set(map(signatures, terms))) == 1
    cost = LockStep(terms, signatures, {}).batch().cost
    assert expected(terms, signatures, ()) == cost


def test_used_stacks_are_free():
    terms, signatures = PACKS["variables"], Signatures()
    cost = expected(terms, signatures, ())
    again = expected(terms, signatures, cost.stacks)
    assert (cost.new_stacks, again.new_stacks) == (1, 0)
    assert again.saved == cost.saved + 3


PAYS = {
    "few scalars": ([f(f(f(f(pt.dscalar())))) for _ in range(FEW - 1)], False),
    "many scalars": ([f(f(pt.dscalar())) for _ in range(FEW)], True),
    "many short terms": ([pt.exp(pt.dscalar()) for _ in range(FEW)], False),
    "three slices": ([f(f(f(x[i]))) for i in range(3)], False),
    "four slices": ([f(f(f(x[i]))) for i in range(4)], True),
    "three densities": (PACKS["factorizations"], True),
    "three Cholesky factors": (PACKS["Cholesky factors"], False),
}


@pytest.mark.parametrize("name", PAYS)
def test_pays(name):
    terms, pays = PAYS[name]
    assert expected(terms, Signatures(), ()).pays(WORTHWHILE) is pays


def test_a_density_is_heavy():
    assert expected(PACKS["factorizations"], Signatures(), ()).nodes == HEAVY


@pytest.fixture
def walks(monkeypatch):
    """The packs that were expected to pay, and those that were estimated."""
    built, estimated = [], []

    def batch(self, original=LockStep.batch):
        built.append(self.terms)
        return original(self)

    def estimate(terms, *args, original=expected):
        estimated.append(terms)
        return original(terms, *args)

    monkeypatch.setattr(_packs.LockStep, "batch", batch)
    monkeypatch.setattr(_packs, "expected", estimate)
    return built, estimated


def local_linear_trend(n: int):
    """The log-density of a Kalman filter, written out as a loop."""
    y = pt.vector("y", shape=(n,))
    q0, q1, r = (pt.scalar(name) for name in ("q0", "q1", "r"))
    level = slope = pt.constant(0.0)
    p00, p01, p11 = pt.constant(1.0), pt.constant(0.1), pt.constant(1.0)
    logps = []
    for t in range(n):
        level = level + slope
        p00, p01, p11 = p00 + 2 * p01 + p11 + q0, p01 + p11, p11 + q1
        variance, error = p00 + r, y[t] - level
        logps.append(-0.5 * (error**2 / variance + pt.log(variance)))
        k0, k1 = p00 / variance, p01 / variance
        level, slope = level + k0 * error, slope + k1 * error
        p00, p01, p11 = p00 - k0 * p00, p01 - k0 * p01, p11 - k1 * p01
    return pt.add(*logps)


def test_an_unrolled_recursion_builds_nothing_that_is_rejected(walks):
    built, estimated = walks
    rewritten([local_linear_trend(5)])
    assert estimated
    assert not any(len(set(terms)) > 1 for terms in built)


def test_what_was_rejected_is_remembered(walks):
    _, estimated = walks
    terms = [f(pt.dscalar(f"v_{i}")) for i in range(FEW_SLICES)]
    fgraph = FunctionGraph(outputs=[pt.add(*terms), pt.add(*map(pt.exp, terms))], clone=False)
    reroll_sums(fgraph)
    before = len(estimated)
    assert before == 2
    reroll_sums(fgraph)
    assert len(estimated) == before


def test_a_term_that_is_computed_in_another_way_is_asked_about_again(walks):
    _, estimated = walks
    variables = [pt.dscalar(f"v_{i}") for i in range(FEW_SLICES)]
    inner = [pt.sin(v) for v in variables]
    fgraph = FunctionGraph(outputs=[pt.add(*map(pt.exp, inner))], clone=False)
    reroll_sums(fgraph)
    fgraph.replace_all([(old, pt.cos(v)) for old, v in zip(inner, variables, strict=True)])
    reroll_sums(fgraph)
    assert len(estimated) == 2
