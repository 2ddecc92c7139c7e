"""The prover of definiteness, matrix by matrix."""

import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.basic import AllocDiag

from pytensor_mvn_rewrites.proofs.definiteness import Definiteness, definiteness

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
    "diagonals of other axes": (
        AllocDiag(offset=0, axis1=0, axis2=1)(pt.exp(A)),
        Definiteness.UNKNOWN,
    ),
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
