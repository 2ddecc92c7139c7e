import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import get_mode
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.basic import Join
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.lower.raveled import (
    MAX_COPIED,
    MAX_NUMBERS,
    Place,
    Ravel,
    Unravel,
    ravel_at_once,
    unravel_at_once,
)
from pytensor_mvn_rewrites.ops import packed_cholesky
from tests.harness import compiled_beside_a_density, evaluate

X = pt.vector("x")
A, B, C = pt.matrix("a", shape=(2, 3)), pt.vector("b", shape=(4,)), pt.scalar("c")
GATHERED = X[np.array([1, 3, 12])]


def rewritten(rule, *outputs):
    fgraph = FunctionGraph(outputs=[pt.exp(out) for out in outputs], clone=True)
    inputs = [inp.name for inp in fgraph.inputs]
    rule(fgraph)
    nodes = [node for node in fgraph.toposort() if isinstance(node.op, Unravel | Ravel)]
    return dict(zip(inputs, fgraph.inputs, strict=True)), fgraph.outputs, nodes


def assert_same(rule, outputs, values, *places):
    """The rule leaves one node, of these places, and changes no number."""
    inputs, new, nodes = rewritten(rule, *outputs)
    [node] = nodes
    assert set(node.op.places) == set(places)
    got = evaluate(new, {inputs[name]: value for name, value in values.items()})
    by_name = {"x": X, "a": A, "b": B, "c": C}
    want = evaluate(
        [pt.exp(out) for out in outputs], {by_name[name]: value for name, value in values.items()}
    )
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    return node


PIECES = {
    "gather": (GATHERED, Place((1, 3, 12), (3,))),
    "gathered matrix": (X[np.array([1, 3, 5, 0])].reshape((2, 2)), Place((1, 3, 5, 0), (2, 2))),
    "slice": (X[4:7], Place((4, 5, 6), (3,))),
    "by steps": (X[4:9:2], Place((4, 6, 8), (3,))),
    "from the start": (X[:2], Place((0, 1), (2,))),
    "slice of known length": (pt.specify_shape(X[4:7], 3), Place((4, 5, 6), (3,))),
    "matrix": (X[4:10].reshape((2, 3)), Place(tuple(range(4, 10)), (2, 3))),
    "with an axis": (X[4:10].reshape((2, 3))[:, None], Place(tuple(range(4, 10)), (2, 1, 3))),
    "scalar": (X[5], Place((5,), ())),
    "scalar by a slice": (X[5:6].squeeze(0), Place((5,), ())),
    "scalar as a matrix": (X[5:6].squeeze(0)[None, None], Place((5,), ())),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_a_vector(name):
    piece, place = PIECES[name]
    values = {"x": np.linspace(-1, 1, 14)}
    outputs = [GATHERED, piece] if name != "gather" else [piece, X[2]]
    others = [Place((1, 3, 12), (3,))] if name != "gather" else [Place((2,), ())]
    node = assert_same(unravel_at_once, outputs, values, *others, place)
    assert node.op.length == 13


def test_a_piece_with_two_shapes():
    outputs = [GATHERED, X[4:10], X[4:10].reshape((2, 3))]
    run = tuple(range(4, 10))
    assert_same(
        unravel_at_once,
        outputs,
        {"x": np.arange(13.0)},
        Place((1, 3, 12), (3,)),
        Place(run, (6,)),
        Place(run, (2, 3)),
    )


def test_pieces_of_a_computed_vector():
    """In graphs with kernels, where they are several."""
    packed = pt.vector("packed", shape=(9,))
    y = 2 * packed
    chol, *_ = packed_cholesky(y[:6], 3)
    outputs = [chol, y[6], y[7::2], y[8]]
    fgraph = FunctionGraph(outputs=outputs, clone=True)
    unravel_at_once(fgraph)
    [node] = [node for node in fgraph.apply_nodes if isinstance(node.op, Unravel)]
    assert len(node.op.places) == 4
    values = np.arange(1.0, 10.0)
    got = evaluate(fgraph.outputs, {fgraph.inputs[0]: values})
    for one, other in zip(got, evaluate(outputs, {packed: values}), strict=True):
        np.testing.assert_array_equal(one, other)
    for fewer in (outputs[:2], outputs[1:]):
        fgraph = FunctionGraph(outputs=fewer, clone=True)
        unravel_at_once(fgraph)
        assert not any(isinstance(node.op, Unravel) for node in fgraph.apply_nodes)


def test_integers():
    index = pt.lvector("index")
    fgraph = FunctionGraph(outputs=[index[np.array([2, 0])] * index[3]], clone=True)
    unravel_at_once(fgraph)
    [out] = evaluate(fgraph.outputs, {fgraph.inputs[0]: np.arange(5)})
    assert out.dtype == "int64"
    np.testing.assert_array_equal(out, [6, 0])


i = pt.iscalar("i")
NOT_PIECES = {
    "beyond what is needed": [GATHERED, X[4:20]],
    "unknown bounds": [GATHERED, X[2:i]],
    "from the end": [GATHERED, X[-2:]],
    "backwards": [GATHERED, X[8:2:-2]],
    "the vector": [GATHERED, X],
    "long slice": [GATHERED, X[: MAX_COPIED + 1].reshape((1, MAX_COPIED + 1))],
    "long gather": [X[:2], X[np.arange(MAX_NUMBERS + 1) % 7]],
    "no gather": [X[2:4], X[5:6].squeeze()],
    "negative gather": [X[np.array([-1, 2])], X[1]],
    "two axes": [A[np.array([0, 1])], A[0]],
    "no input": [(2 * X)[np.array([0, 1])], (2 * X)[3]],
}


@pytest.mark.parametrize("name", NOT_PIECES)
def test_unravel_declines(name):
    fgraph = FunctionGraph(outputs=NOT_PIECES[name], clone=True)
    before = pytensor.dprint(fgraph, file="str")
    unravel_at_once(fgraph)
    assert pytensor.dprint(fgraph, file="str") == before


JOINED = {
    "vectors": ([B, 2 * B], [Place((0, 1, 2, 3), (4,)), Place((4, 5, 6, 7), (4,))]),
    "matrix": (
        [A.reshape((-1,)), B],
        [Place((0, 1, 2, 3, 4, 5), (2, 3)), Place((6, 7, 8, 9), (4,))],
    ),
    "scalar": ([C[None], B], [Place((0,), ()), Place((1, 2, 3, 4), (4,))]),
    "computed scalar": ([C[None] * A[0, :1], B], [Place((0,), ()), Place((1, 2, 3, 4), (4,))]),
    "sum": ([A.sum(0)[:1] + A[:, :1].sum(0), B], [Place((0,), ()), Place((1, 2, 3, 4), (4,))]),
}
VALUES = {"a": np.arange(6.0).reshape(2, 3) / 6, "b": np.arange(4.0), "c": np.array(0.3)}


@pytest.mark.parametrize("permuted", [False, True], ids=["in order", "permuted"])
@pytest.mark.parametrize("name", JOINED)
def test_arrays_of_a_vector(name, permuted):
    parts, places = JOINED[name]
    graph = pt.join(0, *parts)
    if permuted:
        length = sum(len(place.positions) for place in places)
        order = np.random.default_rng(0).permutation(length)
        graph = graph[order]
        places = [
            Place(tuple(int(np.flatnonzero(order == p)[0]) for p in place.positions), place.shape)
            for place in places
        ]
    values = {inp.name: VALUES[inp.name] for inp in FunctionGraph(outputs=[graph]).inputs}
    assert_same(ravel_at_once, [graph], values, *places)


NOT_JOINED = {
    "unknown length": pt.join(0, X, B),
    "other dtypes": pt.join(0, pt.vector("f", shape=(2,), dtype="float32"), B),
    "matrices": pt.join(0, A, A),
    "other axis": pt.join(1, A, A),
    "empty part": pt.join(0, B[:0], B),
}


@pytest.mark.parametrize("name", NOT_JOINED)
def test_ravel_declines(name):
    assert not rewritten(ravel_at_once, NOT_JOINED[name])[2]


@pytest.mark.parametrize("index", [np.array([0, 0, 1]), np.array([1, 0])], ids=["twice", "part"])
def test_a_gather_that_is_no_permutation_stays(index):
    fgraph = FunctionGraph(outputs=[pt.join(0, B, 2 * B)[index]], clone=True)
    ravel_at_once(fgraph)
    ops = [node.op for node in fgraph.toposort()]
    assert sum(isinstance(op, Ravel) for op in ops) == 1
    assert isinstance(ops[-1], AdvancedSubtensor)


def test_a_long_permutation_stays():
    long = pt.vector("long", shape=(MAX_NUMBERS,))
    order = np.roll(np.arange(MAX_NUMBERS + 4), 1)
    fgraph = FunctionGraph(outputs=[pt.join(0, long, B)[order]], clone=True)
    ravel_at_once(fgraph)
    [node] = [node for node in fgraph.apply_nodes if isinstance(node.op, Ravel)]
    assert all(place.is_run for place in node.op.places)
    assert isinstance(fgraph.outputs[0].owner.op, AdvancedSubtensor)


@pytest.fixture(scope="module")
def compiled():
    """A function that cuts a vector and joins the pieces in another order, with the kernels."""
    pieces = [
        X[np.array([7, 1, 4])],
        X[np.array([0, 2, 3, 5])].reshape((2, 2)).T,
        X[8:12].reshape((2, 2)),
        X[6],
    ]
    joined = pt.join(0, *[pt.exp(piece).reshape((-1,)) for piece in pieces])
    order = np.random.default_rng(1).permutation(12)
    return compiled_beside_a_density([X], [joined[order]], get_mode("NUMBA")), joined[order]


def test_kernels(compiled):
    fn, graph = compiled
    ops = [node.op for node in fn.fgraph.apply_nodes]
    assert sum(isinstance(op, Unravel) for op in ops) == 1
    assert sum(isinstance(op, Ravel) for op in ops) == 1
    assert not any(isinstance(op, AdvancedSubtensor | Subtensor | Join) for op in ops)
    with mvn.disable():
        for x in (np.linspace(-1, 1, 12), np.linspace(-1, 1, 26)[::2]):
            np.testing.assert_allclose(fn(x), evaluate([graph], {X: x}), rtol=1e-15)


@pytest.mark.parametrize("length", [0, 5, 11])
def test_a_vector_that_is_too_short_raises(compiled, length):
    with pytest.raises(ValueError, match="fewer than 12 entries"):
        compiled[0](np.zeros(length))
    op = Unravel((Place((11,), ()),))
    with pytest.raises(ValueError, match="fewer than 12 entries"):
        evaluate([pt.tensor_from_scalar(op(X))], {X: np.zeros(length)})


def test_keys_of_kernels_hold_the_positions():
    """Functions whose sources are equal must not share machine code."""
    for positions in ((2, 0, 1), (1, 2, 0), (2, 1, 0)):
        arrays = Unravel((Place(positions, (3,)), Place((1, 0), (2,))))(X)
        fn = pytensor.function([X], arrays[0], mode=get_mode("NUMBA"))
        np.testing.assert_array_equal(fn(np.arange(3.0)), positions)


def test_a_gather_that_asks_for_the_length_first():
    """As slices of a vector of unknown length are joined: one piece, not the long slice."""
    gather = pt.specify_shape(X[:13], 13)[np.array([12, 1])]
    node = assert_same(
        unravel_at_once,
        [gather, X[4:7]],
        {"x": np.linspace(-1, 1, 14)},
        Place((12, 1), (2,)),
        Place((4, 5, 6), (3,)),
    )
    assert node.op.length == 13
