import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.elemwise import Elemwise

from pytensor_mvn_rewrites.lower.pullbacks import merge_pullbacks
from pytensor_mvn_rewrites.ops import PackedCholeskyPullback, packed_cholesky
from tests.harness import assert_close, assert_leaves, evaluate

U, V = pt.matrix("u", shape=(4, 6)), pt.matrix("v", shape=(4, 6))
VALUES = {U: np.linspace(-1, 1, 24).reshape(4, 6), V: np.linspace(-1, 0, 24).reshape(4, 6)}


def pullback(*weights, of=U, log_diagonal=True, outputs=None):
    """The gradient of a weighted sum of some outputs."""
    outputs = outputs or packed_cholesky(of, 3, log_diagonal=log_diagonal)
    total = sum((weight * pt.sin(out)).sum() for weight, out in zip(weights, outputs, strict=True))
    return pt.grad(total, of)


SHARED = packed_cholesky(U, 3, log_diagonal=True)
MERGED = {
    "two": pt.add(pullback(1, 0, 2, 0, outputs=SHARED), pullback(3, 1, 0, 1, outputs=SHARED)),
    "three and another": pt.add(
        pullback(1, 0, 2, 0, outputs=SHARED),
        V,
        pullback(3, 1, 0, 1, outputs=SHARED),
        pullback(0, 0, 1, 0, outputs=SHARED),
    ),
}


def count(fgraph, op):
    return sum(isinstance(node.op, op) for node in fgraph.apply_nodes)


@pytest.mark.parametrize("name", MERGED)
def test_one_pullback(name):
    graph = MERGED[name]
    fgraph = FunctionGraph(outputs=[graph], clone=True)
    merge_pullbacks(fgraph)
    assert count(fgraph, PackedCholeskyPullback) == 1
    own = {inp.name: inp for inp in fgraph.inputs}
    values = {own[var.name]: value for var, value in VALUES.items() if var.name in own}
    assert_close(
        evaluate(fgraph.outputs, values)[0],
        evaluate([graph], {var: VALUES[var] for var in VALUES if var.name in own})[0],
        "gradient",
    )


def test_cotangents_that_are_zero_are_not_added():
    chol, sd, corr_diag, _ = packed_cholesky(U, 3, log_diagonal=True)
    zeros = [pt.zeros((4, 3, 3)), *[pt.zeros((4, 3))] * 3]
    op = PackedCholeskyPullback(n=3, log_diagonal=True)
    g, h = pt.tensor3("g", shape=(4, 3, 3)), pt.matrix("h", shape=(4, 3))
    one = op(chol, sd, corr_diag, g, *zeros[1:])
    other = op(chol, sd, corr_diag, zeros[0], h, *zeros[2:])
    fgraph = FunctionGraph([U, g, h], [one + other], clone=False)
    merge_pullbacks(fgraph)
    assert count(fgraph, Elemwise) == 0
    [node] = [n for n in fgraph.apply_nodes if isinstance(n.op, PackedCholeskyPullback)]
    assert node.inputs[3] is g
    assert node.inputs[4] is h


used_elsewhere = pullback(1, 0, 0, 0, outputs=SHARED)
DECLINED = {
    "of other vectors": pullback(1, 0, 0, 0) + pullback(1, 0, 0, 0, of=V),
    "of other ops": pullback(1, 0, 0, 0) + pullback(0, 1, 0, 0, log_diagonal=False),
    "one": pullback(1, 0, 0, 0) + V,
    "used elsewhere": (used_elsewhere + pullback(0, 1, 0, 0, outputs=SHARED)) * used_elsewhere,
    "product": pullback(1, 0, 0, 0, outputs=SHARED) * pullback(0, 1, 0, 0, outputs=SHARED),
}


@pytest.mark.parametrize("name", DECLINED)
def test_declines(name):
    fgraph = FunctionGraph(outputs=[DECLINED[name]], clone=True)
    assert_leaves(merge_pullbacks, fgraph)
