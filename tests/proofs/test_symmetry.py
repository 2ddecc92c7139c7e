"""The prover of symmetry, matrix by matrix."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.assumptions import assume
from pytensor.graph.fg import FunctionGraph

from pytensor_mvn_rewrites.proofs.symmetry import is_symmetric
from tests.harness import rewritten

A = pt.matrix("A", shape=(3, 4))
S, T = pt.matrix("S", shape=(3, 3)), pt.matrix("T", shape=(3, 3))
B = pt.tensor3("B", shape=(5, 3, 3))
x, s, v = pt.vector("x", shape=(3,)), pt.scalar("s"), pt.vector("v")
X = pt.matrix("X", shape=(3, 2))
CONSTANT = np.array([[2.0, 1, 0], [1, 3, 0], [0, 0, 1]])
SYM = 0.5 * (S + S.T)
DISTANCE = x[:, None] - x[None, :]

EYE = np.eye(3, dtype=bool)
STACK = B[:3] @ B[:3].mT

SYMMETRIC = {
    "matrices of a stack by a mask": STACK[np.array([True, False, True])],
    "matrices of a stack of stacks by a mask": pt.stack([STACK, 2 * STACK])[EYE[:2]],
    "chosen by two indices": pt.stack([STACK, 2 * STACK])[[0, 1], [2, 0]],
    "chosen, with all rows": STACK[[0, 2], :, :],
    "constant": pt.constant(CONSTANT),
    "batched constant": pt.constant(np.stack([CONSTANT, 2 * CONSTANT])),
    "identity": pt.eye(3),
    "identity of unknown size": pt.eye(v.shape[0]),
    "diagonal": pt.diag(x),
    "diagonal of a product": x * pt.eye(3) * S,
    "scalar": pt.full((3, 3), s),
    "Gram matrix": A @ A.T,
    "batched Gram matrix": B @ B.mT,
    "Gram matrix of a product": (S @ A) @ (S @ A).T,
    "congruence": A.T @ SYM @ A,
    "congruence, other way round": A.T @ (SYM @ A),
    "plus its transpose": S + S.T,
    "mean with its transpose": 0.5 * (S + S.T) + s,
    "product with its transpose": S * S.T,
    "outer product": pt.outer(x, x),
    "scaled by standard deviations": x[:, None] * SYM * x[None, :],
    "scaled by diagonal matrices": pt.diag(x) @ SYM @ pt.diag(x),
    "inverse": pt.linalg.inv(SYM),
    "exponential": pt.linalg.expm(SYM),
    "kron": pt.linalg.kron(SYM, A @ A.T),
    "block diagonal": pt.linalg.block_diag(SYM, A @ A.T),
    "chosen from a batch": (B @ B.mT)[[0, 3, 3]],
    "one of a batch": (B @ B.mT)[2],
    "joined": pt.stack([SYM, A @ A.T]),
    "sum over a batch": (B @ B.mT).sum(axis=0),
    "covariance kernel": s**2 * pt.exp(-(DISTANCE**2) / s) + 1e-6 * pt.eye(3),
    "covariance kernel of differences over a scale": pt.exp(-((DISTANCE / s) ** 2)),
    "covariance kernel of absolute differences": pt.exp(-abs(DISTANCE) / s),
    "even function": pt.cos(2 * -DISTANCE),
    "kernel of PyMC": pm.gp.cov.ExpQuad(2, ls=s)(X),
    "kernel of PyMC in one dimension": pm.gp.cov.ExpQuad(1, ls=s)(X[:, :1]),
    "periodic kernel of PyMC": pm.gp.cov.Periodic(1, period=s, ls=2 * s)(X[:, :1]),
    "products of a row, a column and scalars": (s * x[:, None]) * (x[None, :] / s) / s,
    "odd function of differences, squared": pt.sin(DISTANCE / s) ** 2,
    "Matern kernel of PyMC": pm.gp.cov.Matern52(2, ls=s)(X) * 2,
    "linear kernel of PyMC": pm.gp.cov.Linear(2, c=s)(X),
    "kernel of constants": pt.exp(-((np.subtract.outer(np.arange(3), np.arange(3)) / s) ** 2)),
    "one row and column": pt.matrix(shape=(1, 1)),
    "specified shape": pt.specify_shape(v[:, None] * v, (3, 3)),
}

NOT_SYMMETRIC = {
    "entries of a stack by a mask": STACK[EYE],
    "entries of a batch of stacks by a mask": pt.stack([STACK, 2 * STACK])[:, EYE],
    "rows by a mask": STACK[:, np.ones(3, bool)],
    "input": S,
    "constant": pt.constant(np.triu(CONSTANT)),
    "not a number": pt.constant(np.full((2, 2), np.nan)),
    "rectangular": A,
    "product": S @ T,
    "product of symmetric ones": SYM @ (T + T.T),
    "with another transpose": S + T.T,
    "difference from its transpose": S - S.T,
    "differences": DISTANCE,
    "cube of differences": DISTANCE**3,
    "differences of two": (x[:, None] - pt.exp(x)[None, :]) ** 2,
    "a row": SYM + x,
    "rows and columns": SYM + x[None, :] + 2 * x[:, None],
    "scaled along rows": SYM * x[:, None],
    "scaled along rows and columns, differently": (x[:, None] * x[None, :]) / (x[None, :] * SYM),
    "column over row": x[:, None] / x[None, :],
    "scaled on one side": pt.diag(x) @ SYM,
    "two scales": pt.diag(x) @ SYM @ pt.diag(x**2),
    "cholesky": pt.linalg.cholesky(SYM),
    "rows of a matrix": SYM[[2, 1, 0]],
    "joined rows": pt.join(0, SYM[:1], SYM[1:]),
    "cumulative sum": pt.cumsum(SYM, axis=0),
    "one of two blocks": pt.linalg.block_diag(S, SYM),
    "vector": x,
}


def proven(matrix):
    return is_symmetric(FunctionGraph(outputs=[matrix], clone=False), matrix)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric(name):
    """As PyTensor canonicalizes it."""
    assert proven(rewritten([SYMMETRIC[name]])[0])


def test_declared():
    assert proven(assume(S, symmetric=True))
    assert proven(pt.exp(assume(S, positive_definite=True)))
    assert not proven(assume(S, lower_triangular=True))


@pytest.mark.parametrize("name", NOT_SYMMETRIC)
def test_not_proven(name):
    assert not proven(NOT_SYMMETRIC[name])
    assert not proven(rewritten([NOT_SYMMETRIC[name]])[0])


def test_large_graphs_cost_little():
    """A proof that fails looks at each pair once, and not at all below some depth."""
    matrix = S
    for _ in range(100):
        matrix = pt.exp(matrix * matrix.T + matrix)
    assert not proven(matrix)


def test_large_products_cost_little():
    """The factors of a square of a square of a square... are not all looked at."""
    matrix = S
    for _ in range(100):
        matrix = matrix * matrix
    assert not proven(matrix)
