"""Which unknown lengths are provably equal, and which are not."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.raise_op import Assert
from pytensor.tensor.math import Dot

from pytensor_mvn_rewrites.ops import (
    LowRankFactorization,
    expm_quad_logdet,
    inv_quad_logdet,
    low_rank_quad_logdet,
    mvnormal_logp,
    noisy_kronecker_quad_logdet,
    packed_cholesky,
    whiten_by,
)
from pytensor_mvn_rewrites.reroll._dims import DimEquations
from tests.harness import (
    PIPELINE_MODE,
    assert_close,
    assert_declines,
    assert_same_numbers,
    evaluate,
    gradient,
    ifelse,
    our_ops,
    rewritten,
)

a, b, A, B = pt.vector("a"), pt.vector("b"), pt.matrix("A"), pt.matrix("B")
c = np.arange(3.0)
one = pt.vector("one", shape=(1,))

low_rank = low_rank_quad_logdet(a, A, b)[0]
kronecker = noisy_kronecker_quad_logdet(a, 0.5, [A, B])[0]
pullbacks = {
    op: pt.grad(density, wrt)
    for op, density, wrt in [("low rank", low_rank, A), ("kronecker", kronecker, B)]
}

#: name -> (root, var, axis, var, axis) with equal lengths
EQUAL = {
    "elementwise": (a + b, a, 0, b, 0),
    "elementwise, two steps": (pt.exp(a) * pt.sin(b), a, 0, b, 0),
    "with a matrix": (a + A, a, 0, A, 1),
    "dimshuffled": (a[:, None] + A, a, 0, A, 0),
    "transposed": (A.T + B, A, 0, B, 1),
    "after a sum": (A.sum(0) + b, A, 1, b, 0),
    "after an index": (A[2] + b, A, 1, b, 0),
    "joined along the other axis": (pt.concatenate([A, B], axis=0), A, 1, B, 1),
    "a product": (A @ B, A, 1, B, 0),
    "a product, rewritten": (Dot()(A, B), A, 1, B, 0),
    "rows of a product, rewritten": (Dot()(A, B) + b, B, 1, b, 0),
    "a solve": (pt.linalg.solve(A, b), A, 0, b, 0),
    "square": (pt.linalg.cholesky(A), A, 0, A, 1),
    "checked": (Assert()(a, a.sum() > 0) + b, a, 0, b, 0),
    "a density": (mvnormal_logp(a, b, A)[0], a, 0, A, 1),
    "its gradient": (pt.grad(mvnormal_logp(a, b, A)[0], b), a, 0, A, 1),
    "a density of rows": (mvnormal_logp(A, b, B)[0].sum(), A, 1, B, 0),
    "a quadratic form": (inv_quad_logdet(a, A)[0], a, 0, A, 0),
    "low rank": (low_rank, a, 0, A, 0),
    "gradient of low rank": (pullbacks["low rank"], a, 0, A, 0),
    "diagonal beside low rank": (low_rank, a, 0, b, 0),
    "square Kronecker factors": (kronecker, A, 0, A, 1),
    "gradient of Kronecker factors": (pullbacks["kronecker"], B, 0, B, 1),
    "a matrix exponential": (expm_quad_logdet(a, 0.5, A)[0], a, 0, A, 1),
    "whitened columns": (whiten_by(A, B)[0], A, 1, B, 0),
    "negative axis": (A.sum(-1) + b, A, 0, b, 0),
}

#: the same, not provably equal
UNEQUAL = {
    "in a branch that may not be taken": (
        ifelse(a.sum() > 0, (a * b).sum(), b.sum()) + a.sum(),
        a,
        0,
        b,
        0,
    ),
    "nothing in common": (a.sum() + b.sum(), a, 0, b, 0),
    "the other axis": (A + B, A, 0, B, 1),
    "reduced": (A.sum(1) + b, A, 1, b, 0),
    "a slice": (a[:2] + b, a, 0, b, 0),
    "joined": (pt.concatenate([a, b]), a, 0, b, 0),
    "stretched": (one + a, b, 0, a, 0),
    "an outer product": (pt.outer(a, b), a, 0, b, 0),
    "the other end of a product": (A @ B, A, 0, B, 1),
    "rank and length": (low_rank, A, 0, A, 1),
    "rank and length, gradient": (pullbacks["low rank"], A, 0, A, 1),
    "rank and length, factorized": (LowRankFactorization()(A, a, return_list=True)[1], A, 0, A, 1),
    "two Kronecker factors": (kronecker, A, 0, B, 0),
    "two Kronecker factors, gradient": (pullbacks["kronecker"], A, 0, B, 0),
    "Kronecker factor and vector": (kronecker, a, 0, A, 0),
    "columns and rows": (whiten_by(A, B)[0], B, 0, B, 1),
    "a mean that is stretched": (mvnormal_logp(a, one, A)[0], a, 0, one, 0),
    "indexed by an array": (A[np.array([0, 1])] + B, A, 0, B, 0),
    "reshaped": (a.reshape((2, 2)) + A, a, 0, A, 0),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal(name):
    root, x, i, y, j = EQUAL[name]
    dims = DimEquations([root])
    assert dims._find((x, i)) == dims._find((y, j))


@pytest.mark.parametrize("name", UNEQUAL)
def test_not_provably_equal(name):
    root, x, i, y, j = UNEQUAL[name]
    dims = DimEquations([root])
    assert dims._find((x, i)) != dims._find((y, j))


def test_length_of_a_packed_triangle():
    """A triangle of three rows has six entries, also where the length is unknown."""
    chol, *_ = packed_cholesky(A, 3)
    dims = DimEquations([chol])
    assert dims.length(A, 1) == 6
    assert dims.length(A, 0) is None
    assert dims._find((A, 0)) == dims._find((chol, 0))


def test_length_of_what_is_added_to_a_constant():
    dims = DimEquations([pt.exp(a) + c])
    assert dims.length(a, 0) == 3
    assert dims.length(b, 0) is None


def test_length_from_a_known_covariance():
    dims = DimEquations([mvnormal_logp(a, b, np.eye(3))[0]])
    assert dims.length(a, 0) == dims.length(b, 0) == 3


def test_length_found_through_other_variables():
    """In any order of the equations."""
    x = [pt.vector(f"x_{i}") for i in range(5)]
    roots = [x[3] + x[4], x[0] + x[1], x[2] + c, x[1] + x[2], x[3] * x[2]]
    dims = DimEquations(roots)
    assert [dims.length(var, 0) for var in x] == [3] * 5
    assert dims.all_equal(x, 0)


def test_a_known_and_an_unknown_length_are_not_equal():
    assert not DimEquations([a, pt.exp(c)]).all_equal([a, pt.constant(c)], 0)


def f(v):
    return pt.tanh(pt.exp(pt.sin(pt.cos(pt.sinh(pt.log1p(v**2))))))


PROVABLE = {
    "added to a constant": lambda v, i: f(v + c * i),
    "added to a row": lambda v, i: f(v * B[i]),
    "a density with a known covariance": lambda v, i: mvnormal_logp(v, c * i, np.eye(3))[0],
    "a density with a known mean": lambda v, i: mvnormal_logp(v, c * i, A)[0],
    "a product with a constant": lambda v, i: f(np.ones((2, 3)) * i @ v),
}

NOT_PROVABLE = {
    "summed": lambda v, i: f(v).sum(),
    "times a number": lambda v, i: f(v * (i + 0.1)).sum(),
    "times a scalar": lambda v, i: f(v * a[i]).sum(),
    "plus a row of length 1": lambda v, i: f(v + np.array([0.5 * i])).sum(),
    "with itself": lambda v, i: f(pt.outer(v, v)).sum(),
    "a slice": lambda v, i: f(v[:2]).sum(),
    "a norm": lambda v, i: f(v @ v + v.sum() + f(v).max()),
}


@pytest.mark.parametrize("name", PROVABLE)
def test_stacks_what_is_provable(rng, name):
    leaves = [pt.vector(f"v_{i}") for i in range(8)]
    graph = pt.add(*[PROVABLE[name](v, i).sum() for i, v in enumerate(leaves)])
    new = rewritten([graph])
    assert sum(our_ops(new).values()) <= 1
    values = {v: rng.normal(size=3) for v in leaves}
    values |= {A: np.eye(3) + 0.1, B: rng.normal(size=(8, 3))}
    assert_same_numbers(graph, new, {v: values[v] for v in values}, condition=1e2)
    stacked = [v for v in leaves if len(clients(new, v)) == 1]
    assert stacked == leaves


def clients(graph, var):
    from pytensor.graph.traversal import ancestors

    nodes = {v.owner for v in ancestors(graph) if v.owner}
    return [node for node in nodes if var in node.inputs]


@pytest.mark.parametrize("name", NOT_PROVABLE)
def test_declines_what_is_not(rng, name):
    """Rows of different lengths: such a graph must go on working."""
    leaves = [pt.vector(f"v_{i}") for i in range(5)]
    graph = pt.add(*[NOT_PROVABLE[name](v, i) for i, v in enumerate(leaves)])
    values = {v: rng.normal(size=2 + i) for i, v in enumerate(leaves)}
    assert_declines(graph, {**values, a: rng.normal(size=5)})


#: Enough for a factor with k columns to count as narrow.
N_ROWS = 32


def low_rank_plus_noise(s, i):
    factor = pm.Normal(f"W{i}", dims=("row", f"k{i}"))
    return factor @ factor.T + s * np.eye(N_ROWS)


def test_ranks_that_differ_in_a_model(rng):
    """Nothing of lengths that differ is stacked."""
    coords = {"row": range(N_ROWS)}
    coords |= {f"k{i}": range(i + 2) for i in range(4)}
    with pm.Model(coords=coords) as model:
        for i in range(4):
            s = pm.HalfNormal(f"s{i}")
            pm.MvNormal(
                f"y{i}",
                np.zeros(N_ROWS),
                cov=low_rank_plus_noise(s, i),
                observed=rng.normal(size=N_ROWS),
            )
    graph, inputs = model.logp(), model.value_vars
    values = {var: rng.normal(size=model.initial_point()[var.name].shape) for var in inputs}
    new = rewritten([graph])
    fn = pytensor.function(inputs, [*new, *gradient(new, inputs)], mode=PIPELINE_MODE)
    want = evaluate([graph, *gradient([graph], inputs)], values)
    for got, expected in zip(fn(*values.values()), want, strict=True):
        assert_close(got, expected, "gradient", condition=1e3)
