"""The gradient of a long join."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import apply_ancestors
from pytensor.tensor.basic import Join, Split

from pytensor_mvn_rewrites.ops import PackedCholesky
from pytensor_mvn_rewrites.reroll._joins import MANY, JoinOfKnownLengths, join
from tests.harness import REFERENCE_MODE, rewritten


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


LENGTHS = [(3 + k % 2,) for k in range(MANY)]


@pytest.mark.parametrize(
    ("xs", "is_known"),
    [
        (parts(LENGTHS), True),
        (parts([(None,), *LENGTHS]), False),
        (parts(LENGTHS, "int64"), False),
        (parts(LENGTHS[1:]), False),
    ],
    ids=["known", "unknown length", "integers", "few"],
)
def test_what_is_taken(xs, is_known):
    joined = join(xs)
    assert type(joined.owner.op) is (JoinOfKnownLengths if is_known else Join)
    assert joined.type == pt.join(0, *xs).type


def test_stacks_of_a_loop_are_merged():
    """That of the prior of the factors, and that of the observations."""
    with pm.Model() as model:
        for n in range(9):
            chol, _, _ = pm.LKJCholeskyCov(
                f"chol_{n}", n=2, eta=2.0, sd_dist=pm.Exponential.dist(1.0)
            )
            pm.MvNormal(f"x_{n}", np.zeros(2), chol=chol, observed=np.full((3, 2), n))
    [logp] = rewritten([model.logp()])
    ops = [node.op for node in apply_ancestors([logp])]
    assert len([op for op in ops if isinstance(op, PackedCholesky)]) == 1


def test_the_values_of_a_loop():
    with pm.Model() as model:
        s = pm.HalfNormal("s")
        for n in range(9):
            pm.Normal(f"x_{n}", n, s, shape=2)
    ops = {type(var.owner_op) for var in pytensor.graph.traversal.ancestors([model.logp()])}
    assert JoinOfKnownLengths in ops
    assert Join not in ops
