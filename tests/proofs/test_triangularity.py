"""The prover of triangularity, matrix by matrix."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.assumptions import assume
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.basic import AllocDiag

from pytensor_mvn_rewrites.proofs.triangularity import Triangularity, triangularity
from tests.harness import evaluate, rewritten, spd

UNKNOWN, LOWER, CHOLESKY = Triangularity

S, A = pt.matrix("S", shape=(3, 3)), pt.matrix("A", shape=(3, 3))
B = pt.tensor3("B", shape=(5, 3, 3))
e, v, s = pt.vector("e", shape=(6,)), pt.vector("v", shape=(3,)), pt.scalar("s")
INPUTS = [S, A, B, e, v, s]
ROWS, COLUMNS = np.tril_indices(3)
DIAGONAL = np.flatnonzero(ROWS == COLUMNS)
CONSTANT = np.array([[2.0, 0, 0], [1, 3, 0], [0, -1, 1]])

L, K = pt.linalg.cholesky(S), pt.linalg.cholesky(A)
LOW = pt.tril(A)
CHOLS = pt.linalg.cholesky(B)
PACKED = pt.zeros((3, 3))[ROWS, COLUMNS]
RHO = pt.sigmoid(s)


def unpacked(entries):
    return PACKED.set(entries)


LAST = np.array([False, True])

EXPECTED = {
    "chosen by a mask": (CHOLS[np.arange(5) > 2], CHOLESKY),
    "Cholesky factor": (L, CHOLESKY),
    "batch of Cholesky factors": (CHOLS, CHOLESKY),
    "chosen by an index": (CHOLS[[0, 3, 3]], CHOLESKY),
    "one of a batch": (CHOLS[2], CHOLESKY),
    "slice of a batch": (CHOLS[1:4], CHOLESKY),
    "stacked": (pt.stack([L, K, 2 * L]), CHOLESKY),
    "stacked and chosen": (pt.stack([L, K])[[1, 0, 1]], CHOLESKY),
    "stacked with a lower one": (pt.stack([L, LOW]), LOWER),
    "scaled": (pt.exp(s) * L, CHOLESKY),
    "scaled by any number": (s * L, LOWER),
    "over a scale": (L / pt.exp(s), CHOLESKY),
    "over any number": (L / s, LOWER),
    "rows scaled": (pt.exp(v)[:, None] * L, CHOLESKY),
    "columns scaled": (pt.exp(v) * L, CHOLESKY),
    "rows scaled by any number": (v[:, None] * L, LOWER),
    "convex combination": (RHO * L + (1 - RHO) * K, CHOLESKY),
    "any combination": (RHO * L + (s - RHO) * K, LOWER),
    "difference": (L - K, LOWER),
    "negative": (-L, LOWER),
    "product": (L @ K, CHOLESKY),
    "product with a lower one": (L @ LOW, LOWER),
    "elementwise product": (L * K, CHOLESKY),
    "elementwise with any matrix": (L * A, LOWER),
    "elementwise with a positive matrix": (L * pt.exp(A), CHOLESKY),
    "lower triangle": (LOW, LOWER),
    "batch of lower triangles": (pt.tril(B), LOWER),
    "below the diagonal": (pt.tril(A, -1), LOWER),
    "below a diagonal plus a diagonal": (pt.tril(A, -1) + pt.diag(pt.exp(v)), LOWER),
    "positive diagonal": (pt.diag(pt.exp(v)), CHOLESKY),
    "diagonal": (pt.diag(v), LOWER),
    "one of two": (pt.switch(s > 0, L, K), CHOLESKY),
    "unpacked": (unpacked(e), LOWER),
    "unpacked, positive": (unpacked(pt.exp(e)), CHOLESKY),
    "unpacked, positive diagonal": (unpacked(e[DIAGONAL].set(pt.exp(v))), CHOLESKY),
    "unpacked, other entries positive": (unpacked(e[[1, 3, 4]].set(pt.exp(v))), LOWER),
    "specified shape": (pt.specify_shape(L, (3, 3)), CHOLESKY),
    "constant": (pt.constant(CONSTANT), CHOLESKY),
    "constant with a negative pivot": (pt.constant(-CONSTANT), LOWER),
    "with a new axis": (L[None], CHOLESKY),
    # not lower triangular
    "any matrix": (A, UNKNOWN),
    "entries of a stack by a mask": (CHOLS[:3][np.eye(3, dtype=bool)], UNKNOWN),
    "unpacked by masks": (pt.zeros((2, 2))[LAST, LAST].set(pt.exp(v[:1])), UNKNOWN),
    "unpacked, positive by a mask": (
        PACKED.set(e[np.arange(6) > 4].set(pt.exp(v[:1]))),
        LOWER,
    ),
    "vector": (v, UNKNOWN),
    "transposed": (L.mT, UNKNOWN),
    "upper": (pt.linalg.cholesky(S, lower=False), UNKNOWN),
    "upper triangle": (pt.triu(A), UNKNOWN),
    "above the diagonal too": (pt.tril(A, 1), UNKNOWN),
    "full constant": (pt.constant(CONSTANT + CONSTANT.T), UNKNOWN),
    "plus a full matrix": (L + A, UNKNOWN),
    "plus a number": (L + s, UNKNOWN),
    "plus a vector": (L + v, UNKNOWN),
    "minus a number": (L - s, UNKNOWN),
    "product with any matrix": (L @ A, UNKNOWN),
    "by a transposed": (L @ L.mT, UNKNOWN),
    "exponential": (pt.exp(L), UNKNOWN),
    "permuted rows": (L[[1, 0, 2]], UNKNOWN),
    "permuted rows of a batch": (CHOLS[:, [1, 0, 2]], UNKNOWN),
    "joined rows": (pt.join(0, L[:1], L[1:]), UNKNOWN),
    "full where not lower": (pt.switch(s > 0, L, A), UNKNOWN),
    "numbers or lower": (pt.switch(s > 0, L, s), UNKNOWN),
    "unpacked into the upper triangle": (pt.zeros((3, 3))[COLUMNS, ROWS].set(e), UNKNOWN),
    "unpacked into a matrix": (A[ROWS, COLUMNS].set(e), UNKNOWN),
    "number over a factor": (s / L, UNKNOWN),
    "diagonals of other axes": (
        AllocDiag(offset=0, axis1=0, axis2=1)(pt.exp(A)),
        UNKNOWN,
    ),
    "diagonal off the main one": (pt.diag(v[:2], 1), UNKNOWN),
}


def proven(matrix, **kwargs):
    return triangularity(FunctionGraph(outputs=[matrix], clone=False), matrix, **kwargs)


@pytest.mark.parametrize("name", EXPECTED)
def test_proof(name):
    """As PyTensor canonicalizes it, for the sound part of the proof."""
    matrix, expected = EXPECTED[name]
    [canonical] = rewritten([matrix])
    assert proven(canonical, trusting=False) == expected


@pytest.mark.parametrize("name", [k for k, (_, state) in EXPECTED.items() if state])
def test_proofs_are_true(rng, name):
    matrix, state = EXPECTED[name]
    values = {x: rng.normal(size=x.type.shape) for x in (e, v, s)}
    values |= {S: spd(rng, n=3), A: spd(rng, n=3), B: spd(rng, 5, n=3)}
    [result] = evaluate([matrix], values)
    assert not np.triu(result, 1).any()
    if state is CHOLESKY:
        assert (np.diagonal(result, axis1=-2, axis2=-1) > 0).all()


def test_declared():
    """PyTensor takes what is declared lower triangular as a Cholesky factor."""
    tagged = pt.matrix("tagged", shape=(3, 3))
    tagged.tag.lower_triangular = True
    assumed = assume(A, lower_triangular=True)
    for matrix in (tagged, assumed, tagged[None], pt.stack([tagged, assumed])):
        assert proven(matrix) is CHOLESKY
    assert proven(-tagged) is LOWER
    for matrix in (tagged, tagged[None]):
        assert proven(matrix, trusting=False) is UNKNOWN


@pytest.mark.parametrize("n", [2, 3, 4])
def test_lkj(n):
    """The Cholesky factors of PyMC, one and several of them, also without their tag."""
    with pm.Model() as model:
        chols = [
            pm.LKJCholeskyCov(f"chol_{i}", n=n, eta=2, sd_dist=pm.Exponential.dist(1, shape=n))[0]
            for i in range(2)
        ]
        rho = pm.Beta("rho", 2, 2)
        mixed = rho * chols[0] + (1 - rho) * chols[1]
    matrices = model.replace_rvs_by_values([*chols, pt.stack(chols)[[1, 0, 0]], mixed])
    for matrix in rewritten(matrices):
        assert proven(matrix, trusting=False) is CHOLESKY
