"""What is constant."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.printing import Print
from pytensor.raise_op import Assert

from pytensor_mvn_rewrites.proofs.constants import constant_value

v = pt.vector("v", shape=(3,))
ONES = pt.constant(np.ones((2, 3)))
DRAW = pt.random.normal(rng=pytensor.shared(np.random.default_rng(0)), return_next_rng=True)[1]

CONSTANT = {
    "constant": (ONES, np.ones((2, 3))),
    "computed": (2 * ONES.T - ONES.sum(), np.full((3, 2), -4.0)),
    "alloc": (pt.zeros((2, 3))[0] + 1, np.ones(3)),
    "made of numbers": (pt.arange(3) - 1, np.arange(3) - 1),
    "one of two results": (pt.linalg.eigh(pt.constant(np.diag([1.0, 2.0])))[0], [1, 2]),
}

NO_CONSTANT = {
    "input": v,
    "computed from an input": ONES + v,
    "shared": pytensor.shared(np.ones(2)),
    "computed from shared variables": 2 * pytensor.shared(np.ones(2)) - ONES[:, :2],
    "of a shared length": pt.eye(pytensor.shared(3)),
    "shape of a shared variable": pytensor.shared(np.ones((2, 2))).shape[0],
    "draw": DRAW,
    "draw of a constant generator": pt.random.normal(
        rng=pt.random.type.random_generator_type.make_constant(np.random.default_rng(0)),
        return_next_rng=True,
    )[1],
    "index that is drawn": ONES[pt.cast(DRAW, "int64")],
    "printed": Print("constant")(ONES) + 1,
    "check that fails": Assert("no")(ONES, pt.constant(False)) + 1,
    "index out of bounds": ONES[pt.constant(5)],
    "without a value": pt.empty((2, 2)),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_constant(name):
    var, expected = CONSTANT[name]
    value = constant_value(var)
    assert value.dtype == var.type.dtype
    np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("name", NO_CONSTANT)
def test_no_constant(name):
    assert constant_value(NO_CONSTANT[name]) is None


def test_constants_are_not_written_to():
    """An op that works in place may be in a graph that was compiled before."""
    data = pt.constant(np.zeros(3))
    changed = pt.inc_subtensor(data[:1], 1.0, inplace=True)
    assert constant_value(changed) is None
    np.testing.assert_array_equal(data.data, np.zeros(3))
