"""Diagonals of matrices that are diagonal by construction."""

import numpy as np
import pytensor.tensor as pt
import pytest

from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from tests.harness import evaluate

A, v, s = pt.matrix("A", shape=(3, 3)), pt.vector("v", shape=(3,)), pt.scalar("s")

DIAGONAL = {
    "constant": pt.constant(np.diag([1.0, 0.0, 2.0])),
    "identity": pt.eye(3),
    "scaled": s * pt.eye(3) / pt.exp(s),
    "product with any matrix": pt.eye(3) * A,
    "scaled along rows": v[:, None] * pt.eye(3),
    "sum": pt.diag(v) + pt.eye(3) - s * pt.eye(3),
    "transposed, with a new axis": pt.diag(v)[None].mT,
}

OTHER = {
    "input": A,
    "rectangular": pt.eye(3, 2),
    "second diagonal": pt.diag(v, 1),
    "plus a number": pt.eye(3) + s,
    "plus a full matrix": pt.eye(3) + A,
    "over a row": pt.eye(3) / v,
    "vector": v,
}


@pytest.mark.parametrize("name", DIAGONAL)
def test_diagonal(rng, name):
    matrix = DIAGONAL[name]
    diag = diagonal_of(matrix)
    values = {A: rng.normal(size=(3, 3)), v: rng.normal(size=3), s: 0.7}
    got, expected = evaluate([diag, matrix], values)
    np.testing.assert_allclose(got[..., None] * np.eye(3), expected)


@pytest.mark.parametrize("name", OTHER)
def test_other(name):
    assert diagonal_of(OTHER[name]) is None
