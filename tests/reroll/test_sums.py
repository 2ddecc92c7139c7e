"""Sums of isomorphic terms: every form of the sum, and what must be left alone."""

from functools import reduce
from operator import add

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace
from pytensor.graph.traversal import ancestors, apply_ancestors
from pytensor.tensor.elemwise import CAReduce
from pytensor.tensor.subtensor import Subtensor

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp, packed_cholesky
from pytensor_mvn_rewrites.reroll._cost import FEW, FEW_SLICES
from pytensor_mvn_rewrites.reroll.sums import reroll_sums
from tests.harness import (
    PIPELINE_MODE,
    REFERENCE_MODE,
    assert_close,
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


def g(v):
    """Another one, of another structure."""
    return pt.cos(pt.tanh(pt.erf(pt.exp(pt.sin(pt.cosh(v))))))


def balanced(terms):
    """A binary tree of additions."""
    while len(terms) > 1:
        odd = terms[-1:] if len(terms) % 2 else []
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)] + odd
    return terms[0]


SUMS = {
    "variadic": lambda terms: pt.add(*terms),
    "Python's sum": sum,
    "left to right": lambda terms: reduce(add, terms),
    "right to left": lambda terms: reduce(lambda a, b: b + a, reversed(terms)),
    "balanced": balanced,
    "variadic of variadic": lambda terms: pt.add(pt.add(*terms[:3]), pt.add(*terms[3:])),
    "stack and sum": lambda terms: pt.stack(terms).sum(axis=0),
}


@pytest.mark.parametrize("form", SUMS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=["scalars", "vectors", "matrices"])
def test_surface_forms(rng, form, shape):
    x = pt.tensor("x", shape=(N, *shape))
    graph = SUMS[form]([f(x[i]) for i in range(N)])
    values = {x: rng.normal(size=(N, *shape))}
    if form == "stack and sum":
        # the way the stack is merged and summed up again is PyTensor's business
        new = rewritten([graph])
        assert count_of(new, "tanh") == 1
        assert_same_numbers(graph, new, values)
    else:
        assert_rewrites_to(graph, f(x).sum(axis=0), values)


def count_of(graph, name: str) -> int:
    """How many nodes of the elementwise op `name` there are."""
    nodes = {var.owner for var in ancestors(graph) if var.owner}
    return sum(getattr(getattr(n.op, "scalar_op", None), "name", "") == name for n in nodes)


def test_odd_one_out(rng):
    x, y = pt.vector("x", shape=(N,)), pt.scalar("y")
    terms = [f(x[i]) for i in range(N)]
    terms.insert(2, g(y))
    values = {x: rng.normal(size=N), y: 0.3}
    assert_rewrites_to(pt.add(*terms), g(y) + f(x).sum(axis=0), values)


def test_two_interleaved_packs(rng):
    x, y = pt.vector("x", shape=(N,)), pt.vector("y", shape=(N,))
    graph = sum(f(x[i]) + g(y[i]) for i in range(N))
    values = {x: rng.normal(size=N), y: rng.normal(size=N)}
    assert_rewrites_to(graph, f(x).sum(axis=0) + g(y).sum(axis=0), values)


def test_two_sums_in_one_graph(rng):
    x, y = pt.vector("x", shape=(N,)), pt.vector("y", shape=(N,))
    graph = [pt.exp(sum(f(x[i]) for i in range(N))), sum(g(y[i]) for i in range(N)) ** 2]
    expected = [pt.exp(f(x).sum(axis=0)), g(y).sum(axis=0) ** 2]
    assert_rewrites_to(graph, expected, {x: rng.normal(size=N), y: rng.normal(size=N)})


def test_a_sum_inside_the_terms_of_a_sum(rng):
    x = pt.matrix("x", shape=(4, 5))
    graph = sum(f(sum(g(x[i, j]) for j in range(5))) for i in range(4))
    new = rewritten([graph])
    assert count_of(new, "erf") == count_of(new, "sinh") == 1
    assert_same_numbers(graph, new, {x: rng.normal(size=(4, 5))})


def test_partial_sum_with_another_use(rng):
    """A partial sum that is needed elsewhere is a root of its own."""
    x = pt.vector("x", shape=(N,))
    part = sum(f(x[i]) for i in range(N))
    graph = [part + g(x[0]), pt.exp(part)]
    total = f(x).sum(axis=0)
    expected = [total + g(x[0]), pt.exp(total)]
    assert_rewrites_to(graph, expected, {x: rng.normal(size=N)})


def test_cumulative_sums(rng):
    """Every partial sum is an output."""
    x = pt.vector("x", shape=(N,))
    partial, total = [], 0.0
    for i in range(N):
        total = total + f(x[i])
        partial.append(total)
    assert_same_numbers(partial, rewritten(partial), {x: rng.normal(size=N)})


def test_one_term_several_times(rng):
    x = pt.vector("x", shape=(N,))
    graph = pt.add(*[f(x[i % 2]) for i in range(N)], f(x[5]), f(x[5]))
    assert_same_numbers(graph, rewritten([graph]), {x: rng.normal(size=N)})


def test_commutative_inputs_in_another_order(rng):
    x, y = pt.vector("x", shape=(N,)), pt.vector("y", shape=(N,))
    terms = [f(x[i]) * g(y[i]) if i % 2 else g(y[i]) * f(x[i]) for i in range(N)]
    values = {x: rng.normal(size=N), y: rng.normal(size=N)}
    assert_rewrites_to(sum(terms), (f(x) * g(y)).sum(axis=0), values)


def test_non_commutative_inputs_in_another_order(rng):
    x, y = pt.vector("x", shape=(N,)), pt.vector("y", shape=(N,))
    terms = [f(x[i]) - g(y[i]) if i % 2 else g(y[i]) - f(x[i]) for i in range(N)]
    values = {x: rng.normal(size=N), y: rng.normal(size=N)}
    assert_same_numbers(sum(terms), rewritten([sum(terms)]), values)


def test_slices_alone(rng):
    """Nothing is computed in these terms: the sum of a slice."""
    x = pt.matrix("x", shape=(N, 3))
    graph = x[1] + x[2] + x[3] + x[4]
    assert_rewrites_to(graph, x[1:5].sum(axis=0), {x: rng.normal(size=(N, 3))})


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "float32"])
def test_dtype_of_the_sum(rng, dtype):
    """Small integers wrap around in a sum of terms; `sum` would count in 64 bits."""
    x = pt.vector("x", dtype=dtype, shape=(N,))
    graph = pt.add(*[x[i] * x[i] + x[i] for i in range(N)])
    values = {x: (20 * np.arange(N)).astype(dtype)}
    new = rewritten([graph])
    assert new[0].type.dtype == graph.type.dtype == dtype
    [got], [want] = evaluate(new, values), evaluate([graph], values)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_few_terms_stay_where_no_matrix_is_factorized(rng):
    """Next to a factorization, even two are worth it."""
    x, S = pt.matrix("x", shape=(N, 3)), pt.matrix("S", shape=(3, 3))
    few = pt.add(*[x[i] for i in range(FEW_SLICES - 1)])
    assert_declines(few)
    graph = [few, pt.linalg.cholesky(S)]
    new = rewritten(graph)
    assert isinstance(new[0].owner.op, CAReduce)
    assert_same_numbers(graph, new, {x: rng.normal(size=(N, 3)), S: spd(rng, n=3)})


def test_sum_of_bools_is_a_logical_or():
    x = pt.vector("x", dtype="bool", shape=(N,))
    graph = pt.add(*[x[i] for i in range(N)])
    assert_declines(graph)


def test_terms_of_two_dtypes(rng):
    x, y = pt.vector("x", shape=(N,)), pt.vector("y", dtype="float32", shape=(N,))
    graph = pt.add(*[term for i in range(N) for term in (f(x[i]), f(y[i]))])
    new = rewritten([graph])
    assert count_of(new, "tanh") == 2
    values = {x: rng.normal(size=N), y: rng.normal(size=N).astype("float32")}
    for got, want in zip(evaluate(new, values), evaluate([graph], values), strict=True):
        assert got.dtype == want.dtype == "float64"
        assert_close(got, want, "value", "float32")


def test_broadcast_terms(rng):
    """Terms of shape (1,) and (3,) add up to (3,); each shape is a pack."""
    x, y = pt.matrix("x", shape=(N, 3)), pt.matrix("y", shape=(N, 1))
    graph = pt.add(*[f(x[i]) for i in range(N)], *[f(y[i]) for i in range(N)])
    values = {x: rng.normal(size=(N, 3)), y: rng.normal(size=(N, 1))}
    assert_rewrites_to(graph, f(x).sum(axis=0) + f(y).sum(axis=0), values)


x, y, z = pt.vector("x"), pt.vector("y"), pt.vector("z")
NEAR_MISSES = {
    "one term": f(pt.dscalar()) + 1.0,
    "terms of different structure": f(pt.dscalar()) + g(pt.dscalar()),
    "little to save": pt.exp(pt.dscalar("a")) + pt.exp(pt.dscalar("b")),
    "lengths that may differ": f(x).sum() + f(y).sum() + f(z).sum(),
    "different ranks": f(pt.dvector()).sum() + f(pt.dmatrix()).sum() + f(pt.dtensor3()).sum(),
    "different static lengths": sum(f(pt.vector(shape=(n,))).sum() for n in range(2, 8)),
    "different dtypes": f(pt.dscalar()) + f(pt.fscalar()),
    "reduced over different axes": f(pt.matrix("A", shape=(3, 3)).sum(0)).sum()
    + f(pt.matrix("B", shape=(3, 3)).sum(1)).sum(),
    "of length 1 and of length 3": f(pt.vector(shape=(1,))).sum() + f(pt.vector(shape=(3,))).sum(),
    "reshaped to different shapes": f(pt.vector("a", shape=(6,)).reshape((2, 3)).sum(0)).sum()
    + f(pt.vector("b", shape=(6,)).reshape((3, 2)).sum(0)).sum(),
    "few scalars": pt.add(*[f(f(f(pt.dscalar()))) for _ in range(FEW - 1)]),
    "leaves only": pt.add(*[pt.dscalar() for _ in range(N)]),
    "no sum": f(pt.dscalar()),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_declines(name):
    assert_declines(NEAR_MISSES[name])


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_pass_with_nothing_to_do_changes_nothing(name):
    """No replacement is made, no node of the graph is another one."""
    fgraph = FunctionGraph(outputs=[NEAR_MISSES[name]], clone=True)
    nodes, outputs, changes = set(fgraph.apply_nodes), list(fgraph.outputs), []
    fgraph.attach_feature(Listener(changes))
    reroll_sums(fgraph)
    assert not changes
    assert set(fgraph.apply_nodes) == nodes
    assert all(new is old for new, old in zip(fgraph.outputs, outputs, strict=True))


class Listener(pytensor.graph.features.Feature):
    """Notes every change of a graph."""

    def __init__(self, changes):
        self.changes = changes

    def on_change_input(self, fgraph, node, i, old, new, reason=None):
        self.changes.append((node, old, new))

    def on_import(self, fgraph, node, reason):
        self.changes.append(node)


def test_deep_graph(rng):
    """Python's sum of 3000 terms is 3000 additions deep."""
    n = 3000
    x = pt.vector("x", shape=(n,))
    graph = sum(f(x[i]) for i in range(n))
    fgraph = FunctionGraph(outputs=[graph], clone=False)
    reroll_sums(fgraph)
    [new] = fgraph.outputs
    assert len(fgraph.apply_nodes) < 20
    data = rng.normal(size=n)
    [got], [want] = evaluate([new], {x: data}), evaluate([f(x).sum()], {x: data})
    assert_close(got, want, "value")


def test_deep_terms(rng):
    """A recursion in each term: 1000 levels deep."""
    x = pt.vector("x", shape=(4,))
    terms = [x[i] for i in range(4)]
    for _ in range(1000):
        terms = [pt.sin(term) * 1.01 for term in terms]
    fgraph = FunctionGraph(outputs=[pt.add(*terms)], clone=False)
    reroll_sums(fgraph)
    assert sum(isinstance(node.op, CAReduce) for node in fgraph.apply_nodes) == 1
    # a sine, a product and the expanded constant on each level, and the sum
    assert len(fgraph.apply_nodes) == 3001


def test_terms_that_depend_on_other_terms(rng):
    """Each mean depends on the density before it; the densities still go together."""
    value, cov = pt.matrix("value", shape=(4, 3)), spd(rng, n=3)
    terms, mu = [], pt.zeros(3)
    for i in range(4):
        terms.append(mvnormal_logp(value[i], mu, cov)[0])
        mu = 0.5 * mu + pt.tanh(terms[-1])
    graph = pt.add(*terms)
    assert_same_numbers(graph, rewritten([graph]), {value: rng.normal(size=(4, 3))}, condition=1e2)


def test_random_variables_are_left_alone():
    terms = [f(pm.Normal.dist(0, 1)) for _ in range(N)]
    assert_declines(sum(terms))


def test_draws_are_the_same_with_the_plugin_on_and_off():
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=(N, 3))
        x = [pm.MvNormal(f"x_{n}", mu=mu[n], cov=np.eye(3)) for n in range(N)]
        pm.Deterministic("total", sum(f(x_n).sum() for x_n in x))
    on = pm.draw(model["total"], draws=3, random_seed=1, mode=PIPELINE_MODE)
    with mvn.disable():
        off = pm.draw(model["total"], draws=3, random_seed=1, mode=PIPELINE_MODE)
    np.testing.assert_allclose(on, off, rtol=1e-12)


def test_shared_variables(rng):
    """Leaves that are shared variables, some of them one and the same."""
    scales = [pytensor.shared(s, name=f"s_{i}") for i, s in enumerate(rng.normal(size=FEW))]
    common = pytensor.shared(1.5, name="common")
    x = pt.vector("x", shape=(FEW,))
    graph = sum(f(x[i] * scales[i]) * common for i in range(FEW))
    stacked = pt.stack(scales)
    values = {x: rng.normal(size=FEW)}
    assert_rewrites_to(graph, (common * f(stacked * x)).sum(axis=0), values)
    scales[0].set_value(10.0)
    assert_same_numbers(graph, rewritten([graph]), values)
    assert [s.name for s in scales] == [f"s_{i}" for i in range(FEW)]


@pytest.mark.parametrize("same", [True, False], ids=["equal", "different"])
def test_constants(rng, same):
    x = pt.matrix("x", shape=(N, 3))
    c = rng.normal(size=(N, 3))
    if same:
        c[:] = c[0]
    graph = sum(f(c[i].copy() * x[i]) for i in range(N))
    expected = f(x * (c[0] if same else c)).sum(axis=0)
    assert_rewrites_to(graph, expected, {x: rng.normal(size=(N, 3))})


def test_constants_with_nan_are_equal_to_themselves(rng):
    x, c = pt.matrix("x", shape=(N, 3)), np.array([1.0, np.nan, 2.0])
    graph = sum(f(x[i]) * c.copy() for i in range(N))
    assert_rewrites_to(graph, (c * f(x)).sum(axis=0), {x: rng.normal(size=(N, 3))})


def test_signed_zeros_differ(rng):
    x, zeros = pt.matrix("x", shape=(N, 3)), np.array([0.0, -0.0] * 3)
    graph = sum(pt.arctan2(pt.constant(zeros[i]), -f(x[i] + 2.0)).sum() for i in range(N))
    new = rewritten([graph])
    assert count_of(new, "tanh") == 1
    values = {x: rng.normal(size=(N, 3))}
    assert_close(evaluate(new, values)[0], evaluate([graph], values)[0], "value")


def test_a_clone_of_the_graph_gives_the_same_graph(rng):
    """The result does not depend on the identity of the variables."""
    x = pt.vector("x", shape=(N,))
    graph = sum(f(x[i]) for i in range(N))
    [clone] = clone_replace([graph], {x: x})
    assert_rewrites_to(clone, rewritten([graph])[0], {x: rng.normal(size=N)})


def test_the_rewritten_function_runs_in_the_reference_mode(rng):
    """Nothing that a backend would have to know is left in the graph."""
    x = pt.vector("x", shape=(N,))
    new = rewritten([sum(f(x[i]) for i in range(N))])
    fn = pytensor.function([x], new, mode=REFERENCE_MODE)
    assert np.isfinite(fn(rng.normal(size=N))[0])


def test_short_terms_of_a_pack_go_with_it(rng):
    """Terms too short to be worth a stack of their own share the stack of others."""
    vectors = [pt.vector(f"v_{i}", shape=(3,)) for i in range(FEW)]
    long = [f(packed_cholesky(v, 2)[1]).sum() for v in vectors]
    short = [v.sum() for v in vectors]
    assert "Join" not in op_names(rewritten([pt.add(*short)]))
    values = {v: rng.uniform(1, 2, size=3) for v in vectors}
    graph = pt.add(*long, *short)
    new = rewritten([graph])
    names = op_names(new)
    assert names.count("PackedCholesky") == names.count("JoinOfKnownLengths") == 1
    # one sum for each pack
    assert names.count("Sum") == 2
    assert_same_numbers(graph, new, values)


def op_names(graph) -> list[str]:
    nodes = {var.owner for var in ancestors(graph) if var.owner}
    return [type(node.op).__name__ for node in nodes]


@pytest.mark.parametrize("extra", [1, 2])
def test_terms_of_a_pack_go_with_it_and_others_alike_stay(rng, extra):
    """Priors of groups, and of what the groups have in common."""
    own = [pt.vector(f"own{i}", shape=(3,)) for i in range(4)]
    others = [pt.vector(f"other{i}", shape=(3,)) for i in range(extra)]
    densities = [mvnormal_logp(v, np.zeros(3), pt.outer(v, v) + np.eye(3))[0] for v in own]
    priors = [f(v).sum() for v in [*others, *own]]
    graph = [pt.add(*densities, *priors)]
    new = rewritten(graph)
    tanhs = [v for v in ancestors(new) if v.owner and str(v.owner.op) == "Tanh"]
    assert sorted(v.type.shape for v in tanhs) == [(3,)] * extra + [(4, 3)]
    values = {v: rng.normal(size=3) for v in [*own, *others]}
    assert_same_numbers(graph, new, values, condition=10)


def test_lags_in_the_mean_of_a_density():
    """Rows of a mean are no matrix with a structure: their terms are sums like any other."""
    coefs, rows = pt.tensor("coefs", shape=(3, 2, 3)), np.arange(60.0).reshape(2, 10, 3)
    lags = [(coefs[:, None, lag] * rows[lag]).sum(-1).T for lag in range(2)]
    [density] = rewritten([inv_quad_logdet(lags[0] + lags[1], np.eye(3) + 0.5, "cov")[0].sum()])
    assert not any(isinstance(node.op, Subtensor) for node in apply_ancestors([density]))
