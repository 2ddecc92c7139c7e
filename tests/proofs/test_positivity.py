"""The prover of positive entries."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pytensor_mvn_rewrites.proofs.positivity import is_positive

x, v = pt.scalar("x"), pt.vector("v", shape=(3,))

POSITIVE = {
    "exp": pt.exp(x),
    "softplus": pt.softplus(x),
    "square of exp": pt.exp(x) ** 2,
    "sum with a square": pt.exp(x) + x**2,
    "quotient": 1 / pt.exp(v),
    "root": pt.sqrt(pt.exp(v))[:2],
    "constant": pt.constant([1.0, 2.0]),
    "repeated": pt.alloc(pt.exp(x), pt.iscalar()),
    "of a given shape": pt.specify_shape(pt.exp(pt.vector()), 3),
    "reshaped": pt.exp(v).reshape((3, 1)),
    "joined": pt.join(0, pt.exp(v), v**2 + 1),
    "stacked": pt.stack([pt.exp(x), pt.abs(x) + 1]),
}

NOT_POSITIVE = {
    "input": x,
    "square": x**2,
    "absolute value": pt.abs(x),
    "difference": pt.exp(x) - 1,
    "product": pt.exp(x) * x,
    "cube": x**3,
    "constant with a zero": pt.constant([1.0, 0.0]),
    "repeated": pt.alloc(x, pt.iscalar()),
    "joined": pt.join(0, pt.exp(v), v),
    "stacked": pt.stack([pt.exp(x), x]),
    "shared": pytensor.shared(np.ones(2)),
    "scaled by a shared variable": pt.exp(x) * pytensor.shared(1.0),
}


@pytest.mark.parametrize("name", POSITIVE)
def test_positive(name):
    assert is_positive(POSITIVE[name])


@pytest.mark.parametrize("name", NOT_POSITIVE)
def test_not_proven_positive(name):
    assert not is_positive(NOT_POSITIVE[name])


def test_not_negative():
    assert is_positive(x**2, strict=False)
    assert is_positive(pt.abs(x) + pt.exp(x), strict=False)
    A = pt.matrix()
    assert is_positive(pt.diagonal(A @ A.T), strict=False)
    assert not is_positive(pt.diagonal(A @ A.T))
    assert not is_positive(pt.diagonal(A @ A.T - pt.eye(2)), strict=False)
    assert not is_positive(pt.diagonal(A @ A.T, offset=1), strict=False)
    assert not is_positive(x**3, strict=False)
