"""Isomorphic outputs of one function become slices of one batched term."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.fg import FunctionGraph

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import mvnormal_logp
from pytensor_mvn_rewrites.reroll.outputs import reroll_outputs
from tests.harness import (
    PIPELINE_MODE,
    assert_declines,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    rewritten,
    spd,
)

N = 6


def f(v):
    """Long enough to be worth re-rolling."""
    return pt.tanh(pt.exp(pt.sin(pt.cos(pt.sinh(pt.log1p(v**2))))))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=["scalars", "vectors", "matrices"])
def test_outputs(rng, shape):
    x = pt.tensor("x", shape=(N, *shape))
    batch = f(x)
    expected = [batch[i] for i in range(N)]
    values = {x: rng.normal(size=(N, *shape))}
    assert_rewrites_to([f(x[i]) for i in range(N)], expected, values)


def test_other_outputs_stay(rng):
    x, y = pt.vector("x", shape=(N,)), pt.scalar("y")
    graph = [pt.exp(y), *[f(x[i]) for i in range(N)], y]
    batch = f(x)
    expected = [pt.exp(y), *[batch[i] for i in range(N)], y]
    assert_rewrites_to(graph, expected, {x: rng.normal(size=N), y: 0.3})


def test_names_and_types_stay(rng):
    x = pt.matrix("x")
    graph = [f(x[i]) for i in range(N)]
    for i, out in enumerate(graph):
        out.name = f"out_{i}"
    new = rewritten(graph)
    assert [out.name for out in new] == [out.name for out in graph]
    assert [out.type for out in new] == [out.type for out in graph]
    assert_same_numbers(graph, new, {x: rng.normal(size=(N, 3))})


def test_one_output_several_times(rng):
    x = pt.vector("x", shape=(N,))
    graph = [f(x[i]) for i in range(N)]
    graph = [*graph, graph[0], graph[3]]
    assert_same_numbers(graph, rewritten(graph), {x: rng.normal(size=N)})


def test_outputs_that_other_outputs_use(rng):
    x = pt.vector("x", shape=(N,))
    inner = [f(x[i]) for i in range(N)]
    graph = [*inner, *[f(out + 1) for out in inner], sum(inner)]
    assert_same_numbers(graph, rewritten(graph), {x: rng.normal(size=N)})


def test_updates_of_shared_variables(rng):
    states = [pytensor.shared(value, name=f"s_{i}") for i, value in enumerate(rng.normal(size=N))]
    before = [s.get_value() for s in states]
    fn = pytensor.function([], [], updates={s: f(s) for s in states}, mode=PIPELINE_MODE)
    fn()
    v = pt.vector("v")
    [want] = evaluate([f(v)], {v: np.array(before)})
    np.testing.assert_allclose([s.get_value() for s in states], want)
    assert [s.name for s in states] == [f"s_{i}" for i in range(N)]


def chain():
    """Densities whose means depend on the densities before them."""
    value, mu, densities = pt.matrix("value", shape=(5, 3)), pt.zeros(3), []
    for i in range(5):
        densities.append(mvnormal_logp(value[i], mu, np.eye(3) * 2)[0])
        mu = 0.5 * mu + pt.tanh(densities[-1])
    return value, densities


def test_outputs_that_depend_on_each_other(rng):
    """They agree down to the density op, but cannot be computed at once."""
    value, densities = chain()
    new = rewritten(densities)
    assert_same_numbers(densities, new, {value: rng.normal(size=(5, 3))}, condition=1e2)
    FunctionGraph(outputs=new, clone=True).toposort()  # there is no cycle


def test_outputs_whose_means_depend_on_each_other(rng):
    """Here the densities can be computed at once."""
    value, mu, covs, densities = pt.matrix("value", shape=(5, 3)), pt.zeros(3), spd(rng, 5, n=3), []
    for i in range(5):
        mu = pt.tanh(mu) + value[i]
        densities.append(mvnormal_logp(value[i], mu, covs[i])[0])
    new = rewritten(densities)
    ops = [node.op for node in FunctionGraph(outputs=new, clone=True).apply_nodes]
    assert sum(str(op) == "MvNormalLogp{chol}" for op in ops) == 1
    assert_same_numbers(densities, new, {value: rng.normal(size=(5, 3))}, condition=1e2)


x = pt.matrix("x")
NEAR_MISSES = {
    "one output": [f(pt.dscalar())],
    "inputs": [pt.dscalar() for _ in range(N)],
    "slices": [x[i] for i in range(N)],
    "outputs of different structure": [f(pt.dscalar()), pt.exp(f(pt.dscalar()))],
    "little to save": [pt.exp(pt.dscalar("a")), pt.exp(pt.dscalar("b"))],
    "lengths that may differ": [f(pt.dvector(name)) for name in "abc"],
    "random variables": [f(pm.Normal.dist()) for _ in range(N)],
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_declines(name):
    assert_declines(NEAR_MISSES[name])


#: Slices of these would be lifted back onto each term, which would be re-rolled again, and so on.
LAYOUTS = {
    "specify_shape": lambda v, i: pt.specify_shape(v, (3,)),
    "alloc": lambda v, i: pt.alloc(v, 4, 3),
    "reshape": lambda v, i: v.reshape((3, 1)),
    "dimshuffle": lambda v, i: v[None, :, None],
    "join": lambda v, i: pt.concatenate([v, v[:1]]),
    "make_vector": lambda v, i: pt.stack([v[0], v[2]]),
    "gather": lambda v, i: v[np.array([2, 0, 0])],
    "alloc of a constant": lambda v, i: pt.alloc(v[0], 3) * 0 + i,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("computed", [False, True], ids=["alone", "of what is computed"])
@pytest.mark.parametrize("source", ["known", "unknown", "variables"])
def test_rewriting_ends(rng, layout, computed, source):
    n = 30
    if source == "variables":
        inputs = rows = [pt.vector(f"x_{i}", shape=(3,)) for i in range(n)]
        values = {row: rng.normal(size=3) for row in rows}
    else:
        x = pt.matrix("x", shape=(n, 3) if source == "known" else (None, None))
        inputs, rows, values = [x], [x[i] for i in range(n)], {x: rng.normal(size=(n, 3))}
    graph = [LAYOUTS[layout](f(row) if computed else row, i) for i, row in enumerate(rows)]
    fn = pytensor.function(inputs, graph, mode=PIPELINE_MODE, on_unused_input="ignore")
    for got, want in zip(fn(*values.values()), evaluate(graph, values), strict=True):
        np.testing.assert_allclose(got, want)
    assert_same_numbers(graph, rewritten(graph), values)


def test_initial_point_of_a_model_with_dims():
    """PyMC's function for the initial point has one output for each variable."""

    def build():
        with pm.Model(coords={"term": range(5), "feature": range(2)}) as model:
            mu = pm.Normal("mu", dims=("term", "feature"))
            for i in range(5):
                pm.MvNormal(f"x_{i}", mu=mu[i], cov=np.eye(2), dims="feature")
        return model

    on = build().initial_point()
    with mvn.disable():
        off = build().initial_point()
    for name, value in off.items():
        np.testing.assert_array_equal(on[name], value)


def test_a_pass_with_nothing_to_do_changes_nothing():
    for outputs in NEAR_MISSES.values():
        fgraph = FunctionGraph(outputs=outputs, clone=True)
        nodes = set(fgraph.apply_nodes)
        reroll_outputs(fgraph)
        assert set(fgraph.apply_nodes) == nodes
