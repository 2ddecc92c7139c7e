import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import get_mode
from pytensor.graph.fg import FunctionGraph
from pytensor.scalar.basic import Identity
from pytensor.tensor.elemwise import CAReduce, Elemwise
from pytensor.tensor.math import All, Sum

from pytensor_mvn_rewrites.lower.reductions import MAX_SIZE, fuse_small_reductions
from tests.harness import assert_leaves, compiled_beside_a_density, evaluate

X = pt.tensor3("x", shape=(2, 3, 4))
POSITIVE = pt.matrix("positive", shape=(2, 3), dtype="bool")

FUSED = {
    "sum": X.sum(),
    "over an axis": X.sum(1),
    "transposed": X.transpose(2, 0, 1).sum((0, 2)),
    "all": POSITIVE.all(),
    "all over an axis": POSITIVE.all(0),
}
VALUES = {X: np.arange(24.0).reshape(2, 3, 4), POSITIVE: np.array([[1, 1, 0], [0, 1, 1]], bool)}


@pytest.mark.parametrize("name", FUSED)
def test_reduces_an_elementwise_result(name):
    graph = FUSED[name]
    fgraph = FunctionGraph(outputs=[graph], clone=True)
    [inp] = fgraph.inputs
    fuse_small_reductions(fgraph)
    [node] = [node for node in fgraph.apply_nodes if isinstance(node.op, Sum | All)]
    assert isinstance(node.inputs[0].owner.op, Elemwise)
    assert isinstance(node.inputs[0].owner.op.scalar_op, Identity)
    [own] = [var for var in VALUES if var.name == inp.name]
    [got] = evaluate(fgraph.outputs, {inp: VALUES[own]})
    np.testing.assert_array_equal(got, evaluate([graph], {own: VALUES[own]})[0])
    assert_leaves(fuse_small_reductions, fgraph)


def test_no_reduction_of_its_own_is_compiled():
    outputs = [*FUSED.values(), X.max()]
    fn = compiled_beside_a_density([X, POSITIVE], outputs, get_mode("NUMBA"))
    left = [node.op for node in fn.fgraph.apply_nodes if isinstance(node.op, CAReduce)]
    # the maximum alone
    assert len(left) == 1
    values = [VALUES[X], VALUES[POSITIVE]]
    for got, want in zip(fn(*values), evaluate(outputs, VALUES), strict=True):
        np.testing.assert_array_equal(got, want)


DECLINED = {
    "elementwise": pt.exp(X).sum(),
    "unknown size": pt.matrix("unknown").sum(),
    "large": pt.vector("large", shape=(MAX_SIZE + 1,)).sum(),
    "empty": pt.matrix("empty", shape=(0, 3)).sum(0),
    "product": X.prod(),
}


@pytest.mark.parametrize("name", DECLINED)
def test_declines(name):
    fgraph = FunctionGraph(outputs=[DECLINED[name]], clone=True)
    assert_leaves(fuse_small_reductions, fgraph)
