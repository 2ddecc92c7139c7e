import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.math import Sum

from pytensor_mvn_rewrites.lower.sums import merge_sums
from tests.harness import REFERENCE_MODE, assert_leaves, rtol

X, Y = pt.tensor3("x", shape=(2, 3, 4)), pt.tensor3("y", shape=(2, 3, 4))
Z, U = pt.matrix("z", shape=(3, 4)), pt.tensor3("u", shape=(None, 3, 4))
C = pt.constant(np.array([1.5, 2.5]))

#: Graph, and the number of sums that are left
MERGED = {
    "two": (X.sum() + Y.sum(), 1),
    "over an axis": (X.sum(1) + Y.sum(1), 1),
    "among others": (X.sum() + Z.sum() + pt.exp(Y).sum() + X[0, 0, 0], 2),
    "two shapes": (X.sum() + Z.sum() + Y.sum() + (Z**2).sum(), 2),
    "sum of a sum": (X.sum(1).sum(1), 1),
    "last axis first": (X.sum(2).sum(0), 1),
    "all that is left": (X.sum(0).sum(), 1),
    "axes between": (X.sum(1)[:, None, :, None].sum((0, 1)), 1),
    "permuted between": (X.sum(1).T.sum(0), 1),
    "permuted, two axes left": (X.sum(1).dimshuffle(1, "x", 0).sum(1), 1),
    "three": (X.sum(2).sum(1).sum(0), 1),
    "constant and sum": ((C + X.sum((1, 2))).sum(), 1),
    "constant of one entry": ((pt.constant([0.5]) + X.sum((1, 2))).sum(), 1),
    "constant, kept axis": ((pt.constant(np.ones((2, 4))) + X.sum(1)).sum(0), 1),
    "sums of sums": (pt.add(C, X.sum((1, 2)), Y.sum((1, 2))).sum() + (X * Y).sum(), 1),
}


def sums_of(fgraph):
    return sum(isinstance(node.op, Sum) for node in fgraph.apply_nodes)


def evaluated(fgraph, dtype="float64"):
    rng = np.random.default_rng(0)
    values = [
        rng.normal(size=[2 if length is None else length for length in inp.type.shape])
        for inp in fgraph.inputs
    ]
    fn = pytensor.function(fgraph.inputs, fgraph.outputs, mode=REFERENCE_MODE)
    return fn(*(value.astype(inp.dtype) for value, inp in zip(values, fgraph.inputs, strict=True)))


@pytest.mark.parametrize("name", MERGED)
def test_fewer_sums(name):
    graph, left = MERGED[name]
    fgraph = FunctionGraph(outputs=[graph], clone=True)
    before = evaluated(fgraph)
    merge_sums(fgraph)
    assert sums_of(fgraph) == left
    np.testing.assert_allclose(evaluated(fgraph)[0], before[0], rtol=rtol("value"))
    assert_leaves(merge_sums, fgraph)


def test_single_precision():
    x, y = (pt.matrix(name, shape=(3, 4), dtype="float32") for name in "xy")
    fgraph = FunctionGraph(outputs=[x.sum() + y.sum(0).sum()], clone=True)
    before = evaluated(fgraph)
    merge_sums(fgraph)
    assert sums_of(fgraph) == 1
    [after] = evaluated(fgraph)
    assert after.dtype == "float32"
    np.testing.assert_allclose(after, before[0], rtol=rtol("value", "float32"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad):
    fgraph = FunctionGraph([X, Y], [X.sum() + Y.sum(), X.sum(2).sum()], clone=True)
    x, y = np.ones((2, 3, 4)), np.ones((2, 3, 4))
    x[0, 0, 0], y[1, 0, 0] = bad, np.inf
    with np.errstate(invalid="ignore"):
        before = pytensor.function(fgraph.inputs, fgraph.outputs, mode=REFERENCE_MODE)(x, y)
        merge_sums(fgraph)
        after = pytensor.function(fgraph.inputs, fgraph.outputs, mode=REFERENCE_MODE)(x, y)
    np.testing.assert_array_equal(after, before)


total, row_sums = X.sum(), X.sum(1)
DECLINED = {
    "one sum": X.sum() + Y[0, 0, 0],
    "other shapes": X.sum() + Z.sum(),
    "other axes": pt.tensor3("cube", shape=(2, 2, 2)).sum(0) + X[:, :, :2].sum(1),
    "unknown shape": U.sum() + (U**2).sum(),
    "used elsewhere": (total + Y.sum()) * total,
    "inner used elsewhere": row_sums.sum(0) * row_sums[0],
    "no constant": (X.sum(1) + Y[:, 0]).sum(),
    "constant of unknown length": (C[0] + U.sum((1, 2))).sum(),
    "of integers": pt.ltensor3("i").sum(1).sum(),
    "of a cast": pt.cast(X.sum(1), "float32").sum(),
    "product between": (2 * X.sum(1)).sum(),
}


@pytest.mark.parametrize("name", DECLINED)
def test_declines(name):
    fgraph = FunctionGraph(outputs=[DECLINED[name]], clone=True)
    assert_leaves(merge_sums, fgraph)
