"""Packs of slices of one variable become one indexing of it."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import ancestors
from pytensor.tensor.basic import Join, MakeVector

from pytensor_mvn_rewrites.reroll._indexing import batch_of_slices
from tests.harness import PIPELINE_MODE, REFERENCE_MODE, assert_close, evaluate, gradient

SHAPE = (6, 4, 5)

#: name -> how the n-th member of the pack indexes a tensor of shape `SHAPE`
INDEXINGS = {
    "x[i]": [i for i in range(6)],
    "x[i], a part": [1, 2, 3],
    "x[i], strided": [1, 3, 5],
    "x[i], backwards": [5, 4, 3, 2, 1, 0],
    "x[i], backwards, strided": [4, 2, 0],
    "x[i], in no order": [3, 0, 5, 1],
    "x[i], repeated": [0, 0, 1, 1],
    "x[i], negative": [-1, -2, -3],
    "x[i], of both signs": [-6, 1, -4],
    "x[i, j], j fixed": [(i, 2) for i in range(6)],
    "x[i, j], i fixed": [(2, j) for j in range(4)],
    "x[i, j], both differ": [(0, 3), (4, 1), (2, 2)],
    "x[i, i]": [(i, i) for i in range(4)],
    "x[i, j, k]": [(i, 3 - i, 2 * i) for i in range(3)],
    "x[:, i]": [np.s_[:, i] for i in range(4)],
    "x[:, i], in no order": [np.s_[:, i] for i in (2, 0, 3)],
    "x[..., i]": [np.s_[..., i] for i in range(5)],
    "x[:, i, j]": [np.s_[:, i, j] for i, j in [(0, 1), (3, 2)]],
    "x[i, :, j]": [np.s_[i, :, j] for i, j in [(0, 1), (3, 2), (5, 0)]],
    "x[i, :, j], j fixed": [np.s_[i, :, 2] for i in (0, 1, 2)],
    "x[i, :2]": [np.s_[i, :2] for i in range(6)],
    "x[i, 1:, ::-1]": [np.s_[i, 1:, ::-1] for i in range(6)],
    "x[i, :2], in no order": [np.s_[i, :2] for i in (3, 0, 1)],
    "x[a:b], one after the other": [slice(0, 2), slice(2, 4), slice(4, 6)],
    "x[a:b], a part": [slice(1, 3), slice(3, 5)],
    "x[a:b], with gaps": [slice(0, 1), slice(2, 3), slice(4, 5)],
    "x[a:b], overlapping": [slice(0, 3), slice(1, 4), slice(2, 5)],
    "x[a:b], cut off at the end": [slice(0, 3), slice(3, 9)],
    "x[a:b], negative": [slice(-4, -2), slice(-2, None)],
    "x[:, a:b]": [np.s_[:, 0:2], np.s_[:, 2:4]],
    "x[:, a:b], with gaps": [np.s_[:, 2:3], np.s_[:, 0:1]],
    "x[1, a:b]": [np.s_[1, 0:2], np.s_[1, 2:4]],
    "x[[...]]": [[0, 3], [1, 1], [5, 2]],
}


def pack_of(x, indices):
    return [x[np.array(index) if isinstance(index, list) else index] for index in indices]


@pytest.mark.parametrize("name", INDEXINGS)
def test_one_indexing(rng, name):
    x = pt.tensor3("x", shape=SHAPE)
    pack = pack_of(x, INDEXINGS[name])
    batch = batch_of_slices(pack)
    if batch is None:
        # slices whose ends are not all given: some other form of the same index
        assert name == "x[a:b], negative"
        return
    assert not holds_join(batch)
    check(rng, x, pack, batch, SHAPE)


def holds_join(batch) -> bool:
    # a MakeVector of lengths, which holds the shape of a reshape, is not a join of slices
    nodes = [var.owner for var in ancestors([batch]) if var.owner]
    return any(
        isinstance(n.op, Join)
        or (isinstance(n.op, MakeVector) and n.outputs[0].type.dtype == "float64")
        for n in nodes
    )


def check(rng, x, pack, batch, shape):
    values = {x: rng.normal(size=shape)}
    [got] = evaluate([batch], values)
    np.testing.assert_array_equal(got, np.stack(evaluate(pack, values)))
    weights = rng.normal(size=got.shape)
    stacked = pt.stack(pack)
    [got], [want] = (evaluate(gradient([out * weights], [x]), values) for out in (batch, stacked))
    assert_close(got, want, "gradient")


@pytest.mark.parametrize("name", INDEXINGS)
def test_axes_of_unknown_length(rng, name):
    """As far as the length of the axis does not matter."""
    x = pt.tensor3("x")
    pack = pack_of(x, INDEXINGS[name])
    batch = batch_of_slices(pack)
    if batch is None:
        assert "a:b" in name
        return
    assert not holds_join(batch)
    check(rng, x, pack, batch, SHAPE)


@pytest.mark.parametrize(
    "positions", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3], [3, 1], [3, 0, 1], [4, 2], [2, 4], [-4, 0]]
)
@pytest.mark.parametrize("mode", [REFERENCE_MODE, PIPELINE_MODE], ids=["as written", "rewritten"])
def test_an_index_beyond_the_end_still_fails(positions, mode):
    """A slice would silently be shorter, or start elsewhere."""
    x = pt.vector("x")
    batch = batch_of_slices([x[position] for position in positions])
    fn = pytensor.function([x], batch, mode=mode)
    longest = max(max(positions) + 1, -min(positions))
    np.testing.assert_array_equal(fn(np.arange(longest)), np.arange(longest)[positions])
    for length in range(longest):
        with pytest.raises((IndexError, AssertionError)):
            fn(np.arange(float(length)))


def test_everything_is_the_variable_itself():
    x = pt.matrix("x", shape=(3, 2))
    assert batch_of_slices([x[0], x[1], x[2]]) is x
    assert batch_of_slices([x[-3], x[-2], x[-1]]) is x


def test_parts_of_a_raveled_vector_are_a_reshape(rng):
    x = pt.vector("x", shape=(20,))
    pack = [x[2 + 4 * i : 2 + 4 * (i + 1)] for i in range(4)]
    check(rng, x, pack, batch_of_slices(pack), (20,))
    matrices = [part.reshape((2, 2)) for part in pack]
    assert batch_of_slices(matrices) is None


def test_parts_of_a_split(rng):
    x = pt.matrix("x", shape=(6, 4))
    parts = pt.split(x, [2, 2, 2], axis=0)
    check(rng, x, parts, batch_of_slices(parts), (6, 4))
    columns = pt.split(x, [2, 2], axis=1)
    check(rng, x, columns, batch_of_slices(columns), (6, 4))


x, y = pt.matrix("x"), pt.matrix("y")
NEAR_MISSES = {
    "a leaf": [x, y],
    "another source": [x[0], y[1]],
    "another kind of index": [x[0], x[:, 0]],
    "a variable as index": [x[pt.iscalar()], x[pt.iscalar()]],
    "slices of unknown size": [x[:2], x[2:4]],
    "slices of different lengths": pack_of(pt.vector(shape=(5,)), [slice(0, 2), slice(2, 5)]),
    "slices of length 0": pack_of(pt.vector(shape=(5,)), [slice(2, 1), slice(7, 9)]),
    "different steps": pack_of(pt.vector(shape=(6,)), [slice(0, 4, 2), slice(0, 6, 3)]),
    "gathers of different lengths": pack_of(x, [[0, 1], [0, 1, 2]]),
    "gathers along another axis": [x[:, np.array([0, 1])], x[:, np.array([2, 1])]],
    "masks": [x[np.array([True, False])], x[np.array([False, True])]],
    "unequal split": pt.split(pt.vector(shape=(5,)), [2, 3]),
    "split in another order": pt.split(pt.vector(shape=(4,)), [2, 2])[::-1],
    "other results": [pt.exp(x), pt.exp(y)],
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_declines(name):
    assert batch_of_slices(NEAR_MISSES[name]) is None


@pytest.mark.parametrize("length", [6, 5, 8])
def test_parts_of_a_split_of_unknown_length(length):
    """A Split of another length is an error, and so is the batch."""
    x = pt.matrix("x")
    parts = pt.split(x, [2, 2, 2], axis=1)
    batch = batch_of_slices(parts[:2])
    values = {x: np.arange(3.0 * length).reshape(3, length)}
    if length == 6:
        [got], want = evaluate([batch], values), evaluate(parts[:2], values)
        np.testing.assert_array_equal(got, want)
        return
    for graph in ([batch], parts[:2]):
        with pytest.raises((ValueError, AssertionError)):
            evaluate(graph, values)
