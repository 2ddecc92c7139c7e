"""Stacks and concatenations of isomorphic terms become one batched term."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import ancestors
from pytensor.tensor.basic import Join, MakeVector
from pytensor.tensor.elemwise import Elemwise

from pytensor_mvn_rewrites.reroll._cost import FEW
from pytensor_mvn_rewrites.reroll._packs import Pack
from pytensor_mvn_rewrites.reroll.stacks import assemble, reroll_stacks
from tests.harness import (
    PIPELINE_MODE,
    assert_declines,
    assert_rewrites_to,
    assert_same_numbers,
    rewritten,
)

N = 6


def f(v):
    """A few nodes, elementwise."""
    return pt.tanh(pt.exp(pt.sin(v)))


def g(v):
    """Another structure."""
    return pt.cos(pt.cosh(v))


def joins(graph) -> int:
    """How many stacks of floats there are."""
    nodes = {var.owner for var in ancestors(graph) if var.owner}
    return sum(
        isinstance(n.op, Join | MakeVector) and n.outputs[0].type.dtype.startswith("float")
        for n in nodes
    )


def test_stack_of_scalars(rng):
    x = pt.vector("x", shape=(N,))
    assert_rewrites_to(pt.stack([f(x[i]) for i in range(N)]), f(x), {x: rng.normal(size=N)})


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_stack_of_matrices(rng, axis):
    x = pt.tensor3("x", shape=(N, 2, 3))
    graph = pt.stack([f(x[i]) for i in range(N)], axis=axis)
    new = rewritten([graph])
    assert not joins(new)
    assert new[0].type == graph.type
    assert_same_numbers(graph, new, {x: rng.normal(size=(N, 2, 3))})


@pytest.mark.parametrize("shape", [(N, 2, 3), (None, None, None)], ids=["known", "unknown"])
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_concatenation(rng, axis, shape):
    x = pt.tensor3("x", shape=shape)
    graph = pt.concatenate([f(x[i]) for i in range(N)], axis=axis)
    new = rewritten([graph])
    assert not joins(new)
    assert_same_numbers(graph, new, {x: rng.normal(size=(N, 2, 3))})


@pytest.mark.parametrize("axis", [0, 1])
def test_interleaved_packs_need_a_gather(rng, axis):
    x, y = pt.tensor3("x", shape=(N, 2, 2)), pt.tensor3("y", shape=(N, 2, 2))
    terms = [term for i in range(N) for term in (f(x[i]), g(y[i]))]
    graph = pt.concatenate(terms, axis=axis)
    new = rewritten([graph])
    assert joins(new) == 1
    values = {x: rng.normal(size=(N, 2, 2)), y: rng.normal(size=(N, 2, 2))}
    assert_same_numbers(graph, new, values)


def test_interleaved_packs_of_different_lengths(rng):
    x, y = pt.matrix("x", shape=(N, 3)), pt.matrix("y", shape=(N, 1))
    graph = pt.concatenate([term for i in range(N) for term in (f(x[i]), f(y[i]))])
    new = rewritten([graph])
    assert joins(new) == 1
    values = {x: rng.normal(size=(N, 3)), y: rng.normal(size=(N, 1))}
    assert_same_numbers(graph, new, values)


def test_interleaved_packs_of_lengths_that_their_batches_know(rng):
    """A split of a batch does not say how long its parts are."""
    joined = pt.join(0, *pt.vectors("a", "b", "c", "d"))
    x, y = pt.matrix("x", shape=(2, 3)), pt.matrix("y", shape=(2, 1))
    new = assemble(joined.owner, [Pack([0, 2], x, False), Pack([1, 3], y, False)])
    in_order = pt.concatenate([x[0], y[0], x[1], y[1]])
    values = {x: rng.normal(size=(2, 3)), y: rng.normal(size=(2, 1))}
    assert_same_numbers(in_order, new, values)
    unknown = pt.matrix("z", shape=(2, None))
    assert assemble(joined.owner, [Pack([0, 2], x, False), Pack([1, 3], unknown, False)]) is None


@pytest.mark.parametrize(("count", "exponentials"), [(FEW, 1), (FEW - 1, FEW - 1)])
def test_a_stack_of_functions_is_a_function_of_a_stack(rng, count, exponentials):
    """The stack of the results goes, that of the inputs comes; few scalars fuse as well."""
    xs = [pt.scalar(f"x_{i}") for i in range(count)]
    graph = pt.stack([pt.exp(x) for x in xs])
    new = rewritten([graph])
    computed = [var for var in ancestors(new) if var.owner and isinstance(var.owner.op, Elemwise)]
    assert (joins(new), len(computed)) == (1, exponentials)
    assert_same_numbers(graph, new, dict(zip(xs, rng.normal(size=count), strict=True)))


def test_interleaved_packs_of_scalars(rng):
    x, y = pt.vector("x", shape=(N,)), pt.vector("y", shape=(N,))
    graph = pt.stack([f(x[i]) if i % 2 else g(y[i]) for i in range(N)])
    new = rewritten([graph])
    assert joins(new) == 1
    assert_same_numbers(graph, new, {x: rng.normal(size=N), y: rng.normal(size=N)})


@pytest.mark.parametrize("position", [0, 3, N])
def test_odd_one_out(rng, position):
    x, y = pt.matrix("x", shape=(N, 3)), pt.matrix("y", shape=(1, 2))
    terms = [f(x[i]) for i in range(N)]
    terms.insert(position, g(y[0]))
    graph = pt.concatenate(terms)
    new = rewritten([graph])
    assert joins(new) == 1
    assert_same_numbers(graph, new, {x: rng.normal(size=(N, 3)), y: rng.normal(size=(1, 2))})


def test_slices_of_one_vector_are_a_reshape(rng):
    x = pt.vector("x", shape=(12,))
    graph = pt.stack([x[3 * i : 3 * (i + 1)] for i in range(4)])
    assert_rewrites_to(graph, x.reshape((4, 3)), {x: rng.normal(size=12)})


def test_slices_put_together_again(rng):
    x = pt.vector("x", shape=(12,))
    graph = pt.concatenate([x[3 * i : 3 * (i + 1)] for i in range(4)]) * 2
    assert_rewrites_to(graph, x * 2, {x: rng.normal(size=12)})


def test_the_gradient_of_slices_of_one_vector(rng):
    """The gradient of a re-rolled sum is joined from N parts."""
    parts = [pt.vector(f"x_{i}", shape=(3,)) for i in range(N)]
    total = pt.add(*[pt.sin(pt.exp(pt.cosh(pt.tanh(f(part))))).sum() for part in parts])
    [new] = rewritten([total])
    graph = pt.concatenate(pt.grad(new, parts))
    assert_same_numbers(graph, rewritten([graph]), {part: rng.normal(size=3) for part in parts})


@pytest.mark.parametrize("static", [True, False], ids=["known length", "unknown length"])
def test_names_of_inputs_stay(static):
    """The whole stack may be an input, which keeps its name."""
    x = pt.vector("x", shape=(3,) if static else (None,))
    s = pytensor.shared(np.ones(3), name="s", shape=(3,))
    out = pt.stack([x[0], x[1], x[2]]) * pt.stack([s[0], s[1], s[2]])
    out.owner.inputs[0].name = out.owner.inputs[1].name = "stack"
    fn = pytensor.function([x], out, mode=PIPELINE_MODE)
    np.testing.assert_array_equal(fn(x=np.arange(3.0)), np.arange(3.0))
    assert (x.name, s.name) == ("x", "s")


def test_dtypes_are_upcast(rng):
    x, y = pt.vector("x", dtype="float32", shape=(N,)), pt.vector("y", dtype="int8", shape=(N,))
    graph = pt.stack([f(x[i]) for i in range(N)] + [(y[i] ** 2) * 3 for i in range(N)])
    values = {x: rng.normal(size=N).astype("float32"), y: np.arange(N).astype("int8")}
    new = rewritten([graph])
    assert new[0].type == graph.type
    assert_same_numbers(graph, new, values, wrt=[x])


def test_an_index_beyond_the_end_still_fails():
    x = pt.vector("x")
    fn = pytensor.function([x], pt.stack([f(x[i]) for i in (2, 1, 0)]), mode=PIPELINE_MODE)
    with pytest.raises((IndexError, AssertionError)):
        fn(np.arange(2.0))


def test_scalars_that_are_no_tensors(rng):
    """A stack of these is a stack already; making it again and again would not end."""
    scalars = [pytensor.scalar.float64(f"s_{i}") for i in range(5)]
    tensors = [pt.tensor_from_scalar(s) for s in scalars]
    graph = sum(f(f(f(t))) for t in tensors) + pt.stack(tensors).prod()
    fn = pytensor.function(scalars, graph, mode=PIPELINE_MODE)
    v = rng.normal(size=5)
    want = pytensor.function([], f(f(f(pt.constant(v)))).sum() + v.prod(), mode=PIPELINE_MODE)()
    np.testing.assert_allclose(fn(*v), want)


LAYOUTS = {
    "itself": lambda v: v,
    "specify_shape": lambda v: pt.specify_shape(v, (3,)),
    "alloc": lambda v: pt.alloc(v, 4, 3),
    "reshape": lambda v: v.reshape((3, 1)),
    "dimshuffle": lambda v: v[None, :, None],
    "join": lambda v: pt.concatenate([v, v[:1]]),
    "make_vector": lambda v: pt.stack([v[0], v[2]]),
    "gather": lambda v: v[np.array([2, 0, 0])],
    "set": lambda v: v[1].set(0.0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("computed", [False, True], ids=["alone", "of what is computed"])
@pytest.mark.parametrize("source", ["known", "unknown", "variables"])
def test_rewriting_ends(rng, layout, computed, source):
    n = 30
    if source == "variables":
        rows = [pt.vector(f"x_{i}", shape=(3,)) for i in range(n)]
        values = {row: rng.normal(size=3) for row in rows}
    else:
        x = pt.matrix("x", shape=(n, 3) if source == "known" else (None, None))
        rows, values = [x[i] for i in range(n)], {x: rng.normal(size=(n, 3))}
    terms = [LAYOUTS[layout](f(row) if computed else row) for row in rows]
    for graph in (pt.stack(terms), pt.concatenate(terms, axis=-1)):
        assert_same_numbers(graph, rewritten([graph]), values)


NEAR_MISSES = {
    "of inputs": pt.stack([pt.dscalar() for _ in range(N)]),
    "different structures": pt.stack([pt.exp(pt.dscalar()), pt.sin(pt.dscalar())]),
    "lengths that may differ": pt.concatenate([f(pt.dvector(name)) for name in "abc"]),
    "lengths that do differ": pt.concatenate([f(pt.vector(shape=(n,))) for n in (2, 3)]),
    "different dtypes": pt.stack([f(pt.dscalar()), f(pt.fscalar())]),
    "interleaved, of unknown lengths": pt.concatenate([pt.dvector("a"), f(pt.dvector("b"))]),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_declines(name):
    assert_declines(NEAR_MISSES[name])


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_pass_with_nothing_to_do_changes_nothing(name):
    fgraph = FunctionGraph(outputs=[NEAR_MISSES[name]], clone=True)
    nodes = set(fgraph.apply_nodes)
    reroll_stacks(fgraph)
    assert set(fgraph.apply_nodes) == nodes


@pytest.mark.parametrize("axis", [0, 1])
def test_stacks_of_stacks_stay(axis):
    """Exchanging the inner and the outer stack saves nothing, and could go on for ever."""
    a, b, c, d = (pt.vector(name, shape=(3,)) for name in "abcd")
    pairs = [pt.join(0, *pair).reshape((2, 3)) for pair in ((a, b), (c, d))]
    assert_declines(pt.join(axis, *pairs))
    assert_declines(pt.join(axis, *[pt.stack(pair) for pair in ((a, pt.exp(b)), (c + 1, d))]))
