"""What is said of a batch is said of every member."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.assumptions import assume
from pytensor.graph.traversal import ancestors

from pytensor_mvn_rewrites.ops import MvNormalLogp
from tests.harness import PIPELINE_MODE, assert_close, evaluate, gradient, rewritten

N = 6


def lower(matrix):
    """A Cholesky factor."""
    factor = np.tril(matrix)
    np.fill_diagonal(factor, np.abs(np.diag(factor)))
    return factor


def tagged(matrix):
    matrix.tag.lower_triangular = True
    return matrix @ matrix.T


def assumed(**facts):
    def cov(matrix):
        matrix = assume(matrix, **facts)
        return matrix @ matrix.T

    return cov


#: What the member says of its matrix, and what makes that true.
FACTS = {
    "chol": (lambda matrix: {"chol": matrix}, lower),
    "tag": (lambda matrix: {"cov": tagged(matrix)}, lower),
    "tril": (lambda matrix: {"cov": tagged(pt.tril(matrix))}, lower),
    "lower_triangular": (lambda m: {"cov": assumed(lower_triangular=True)(m)}, lower),
    "diagonal": (lambda m: {"cov": assumed(diagonal=True)(m)}, lambda m: np.diag(np.diag(m))),
    "positive_definite": (
        lambda m: {"cov": assume(m @ m.T, positive_definite=True)},
        lambda m: m,
    ),
}


def loop(rng, fact, with_fact, full):
    """The log-density of terms of which some have the fact, and a point."""
    declare, make_true = FACTS[fact]
    matrices = rng.normal(size=(N, 3, 3)) + 2 * np.eye(3)
    with pm.Model() as model:
        factor = pm.Normal("factor", shape=(N, 3, 3))
        scale = pm.Normal("scale", shape=N)
        for i in range(N):
            own = scale[i] * factor[i]
            matrix = declare(own) if i in with_fact else {"cov": full(own)}
            pm.MvNormal(f"y{i}", np.zeros(3), **matrix, observed=rng.normal(size=3))
            if i in with_fact:
                matrices[i] = make_true(matrices[i])
    point = dict(zip(model.value_vars, [matrices, rng.uniform(0.5, 2, size=N)], strict=True))
    return model.logp(), point


@pytest.mark.parametrize("with_fact", [(0,), (3,), (0, 1, 2), range(N)], ids=str)
@pytest.mark.parametrize("fact", FACTS)
def test_facts_of_some_members(rng, fact, with_fact):
    graph, point = loop(rng, fact, with_fact, lambda own: own @ own.T)
    inputs = list(point)
    new = rewritten([graph])
    # the chol of a term is an input of which only the lower triangle is read
    wrt = inputs[1:]
    fn = pytensor.function(inputs, [*new, *gradient(new, wrt)], mode=PIPELINE_MODE)
    want = evaluate([graph, *gradient([graph], wrt)], point)
    for got, expected in zip(fn(*point.values()), want, strict=True):
        assert_close(got, expected, "gradient", condition=1e3)


def test_a_fact_of_all_members_is_kept(rng):
    """A batch of Cholesky factors is not factored again."""
    graph, _ = loop(rng, "chol", range(N), None)
    [density] = [
        var.owner
        for var in ancestors(rewritten([graph]))
        if var.owner and isinstance(var.owner.op, MvNormalLogp)
    ][:1]
    assert density.op.param == "chol"
