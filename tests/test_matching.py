"""What is constant, and the prover of definiteness, matrix by matrix."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.fg import FunctionGraph
from pytensor.printing import Print
from pytensor.raise_op import Assert

from pytensor_mvn_rewrites.matching import Definiteness, constant_value, definiteness, is_positive

A = pt.matrix("A", shape=(3, 4))
B = pt.tensor3("B", shape=(5, 3, 4))
x, v = pt.scalar("x"), pt.vector("v", shape=(3,))
EYE = pt.constant(np.eye(3))
GRAM = A @ A.mT
CHOL = pt.linalg.cholesky(pt.matrix())

CASES = {
    "Gram matrix": (GRAM, Definiteness.SEMIDEFINITE),
    "batched Gram matrix": (B @ B.mT, Definiteness.SEMIDEFINITE),
    "identity": (EYE, Definiteness.DEFINITE),
    "singular diagonal": (pt.constant(np.diag([1.0, 0, 1])), Definiteness.SEMIDEFINITE),
    "NaN": (pt.constant(np.full((2, 2), np.nan)), Definiteness.UNKNOWN),
    "batched constant": (pt.constant(np.stack([np.eye(2)] * 3)), Definiteness.DEFINITE),
    "sum": (GRAM + EYE, Definiteness.DEFINITE),
    "sum of two Gram matrices": (GRAM + 2.0 * GRAM, Definiteness.SEMIDEFINITE),
    "transpose": ((GRAM + EYE).mT, Definiteness.DEFINITE),
    "block diagonal": (pt.linalg.block_diag(EYE, EYE + GRAM), Definiteness.DEFINITE),
    "block diagonal, one semidefinite": (
        pt.linalg.block_diag(EYE, GRAM),
        Definiteness.SEMIDEFINITE,
    ),
    "kron": (pt.linalg.kron(EYE, EYE + GRAM), Definiteness.DEFINITE),
    "kron of Gram matrices": (pt.linalg.kron(GRAM, GRAM), Definiteness.SEMIDEFINITE),
    "inverse": (pt.linalg.inv(EYE + GRAM), Definiteness.DEFINITE),
    "inverse of a Gram matrix": (pt.linalg.inv(GRAM), Definiteness.UNKNOWN),
    "diagonal": (pt.diag(pt.exp(v)), Definiteness.DEFINITE),
    "diagonal of squares": (pt.diag(v**2), Definiteness.SEMIDEFINITE),
    "any diagonal": (pt.diag(v), Definiteness.UNKNOWN),
    "second diagonal": (pt.diag(pt.exp(v), k=1), Definiteness.UNKNOWN),
    "chosen from a batch": ((B @ B.mT + EYE)[[0, 3, 3]], Definiteness.DEFINITE),
    "part of a matrix": ((GRAM + EYE)[:2, 1:], Definiteness.UNKNOWN),
    "rows of a matrix": ((GRAM + EYE)[[2, 1, 0]], Definiteness.UNKNOWN),
    "chosen by a mask": ((B @ B.mT + EYE)[np.arange(5) > 2], Definiteness.DEFINITE),
    "entries of a stack by a mask": (
        (B @ B.mT + EYE)[:3][np.eye(3, dtype=bool)],
        Definiteness.UNKNOWN,
    ),
    "joined": (pt.stack([GRAM + EYE, EYE]), Definiteness.DEFINITE),
    "product of a Cholesky factor": (CHOL @ CHOL.mT, Definiteness.DEFINITE),
    "vector": (pt.exp(v), Definiteness.UNKNOWN),
}


@pytest.mark.parametrize("name", CASES)
def test_definiteness(name):
    matrix, expected = CASES[name]
    fgraph = FunctionGraph(outputs=[matrix], clone=False)
    assert definiteness(fgraph, matrix) is expected


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
    assert is_positive(pt.diagonal(GRAM), strict=False)
    assert not is_positive(pt.diagonal(GRAM))
    assert not is_positive(pt.diagonal(A @ A.T - EYE), strict=False)
    assert not is_positive(x**3, strict=False)


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
