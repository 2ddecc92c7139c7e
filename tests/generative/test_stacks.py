"""The gradient of a long join."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.tensor.basic import Join, Split

from pytensor_mvn_rewrites.generative.stacks import JoinOfKnownLengths, copied
from tests.harness import REFERENCE_MODE


def parts(shapes, dtype="float64"):
    return [pt.tensor(f"x_{i}", dtype=dtype, shape=shape) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("axis", [0, 1])
def test_gradient(axis, rng):
    shapes = [(2, 3), (2, 1), (2, 4)] if axis else [(3, 2), (1, 2), (4, 2)]
    xs = parts(shapes)
    weights = rng.normal(size=(2, 8) if axis else (8, 2))
    joins = [op(*xs) for op in (Join(axis), JoinOfKnownLengths(axis))]
    grads = [pt.grad((weights * join).sum(), xs) for join in joins]
    assert [grad.type.shape for grad in grads[1]] == shapes
    assert isinstance(grads[1][0].owner.op, Split)
    function = pytensor.function(xs, [*grads[0], *grads[1]], mode=REFERENCE_MODE)
    values = function(*[rng.normal(size=shape) for shape in shapes])
    for want, got in zip(values[:3], values[3:], strict=True):
        np.testing.assert_array_equal(got, want)


def test_gradient_of_other_inputs():
    """Whose lengths are not known, as after ``clone_replace``."""
    x, y = pt.vectors("xy")
    joined = JoinOfKnownLengths(0)(x, y)
    grads = pt.grad((joined**2).sum(), [x, y])
    values = pytensor.function([x, y], grads, mode=REFERENCE_MODE)([1.0], [2.0, 3.0])
    np.testing.assert_array_equal(np.concatenate(values), [2, 4, 6])


@pytest.mark.parametrize(
    ("xs", "is_known"),
    [
        (parts([(3,), (4,)]), True),
        (parts([(3,), (None,)]), False),
        (parts([(3,), (4,)], "int64"), False),
        (parts([(3,)]), False),
    ],
    ids=["known", "unknown length", "integers", "short"],
)
def test_what_is_taken(xs, is_known):
    node = Join(0)(*xs).owner
    copy = copied(node, node.inputs, minimum=2)
    assert type(copy.op) is (JoinOfKnownLengths if is_known else Join)
    assert copy.outputs[0].type == node.outputs[0].type


def test_the_values_of_a_loop():
    with pm.Model() as model:
        s = pm.HalfNormal("s")
        for n in range(9):
            pm.Normal(f"x_{n}", n, s, shape=2)
    ops = {type(var.owner_op) for var in pytensor.graph.traversal.ancestors([model.logp()])}
    assert JoinOfKnownLengths in ops
    assert Join not in ops
