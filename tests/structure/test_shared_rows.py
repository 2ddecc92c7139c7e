"""Rows that share a structured matrix, in a batch of such matrices."""

import numpy as np
import pytensor.tensor as pt
import pytest

from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.harness import assert_same_numbers, evaluate, rewritten, rules_that_fire, spd

RULE = "shared_rows_come_first"
G, R = 3, 2
N1, N2 = 3, 6
N = N1 * N2

A, B = pt.tensor3("A", shape=(G, N1, N1)), pt.tensor3("B", shape=(G, N2, N2))
d, s = pt.matrix("d", shape=(G, N)), pt.vector("s", shape=(G,))
S = pt.tensor3("S", shape=(G, N, N))
x, mu = pt.tensor4("x", shape=(4, G, R, N)), pt.vector("mu", shape=(N,))


def kron(a, b):
    """The Kronecker products of two batches."""
    return (a[:, :, None, :, None] * b[:, None, :, None, :]).reshape((G, N, N))


#: What a batch of matrices is made of -> the batch
STRUCTURES = {
    "KroneckerPlusNoise": kron(A @ A.mT, B @ B.mT) + s[:, None, None] * pt.eye(N),
    "Diagonal": pt.eye(N) * d[:, None, :],
    "BlockDiagonal": pt.zeros((G, N, N))[:, :N2, :N2].set(B)[:, N2:, N2:].set(S[:, N2:, N2:]),
    "Exponential": pt.linalg.expm((S + S.mT) / 100),
    "OrnsteinUhlenbeck": pt.exp(-abs(np.arange(N)[:, None] - np.arange(N)) / s[:, None, None]),
}


def values(rng):
    """A value for each parameter."""
    matrices = {A: spd(rng, G, n=N1), B: spd(rng, G, n=N2), S: spd(rng, G, n=N)}
    scales = {d: rng.uniform(1, 2, (G, N)), s: rng.uniform(1, 2, G)}
    return matrices | scales | {var: rng.normal(size=var.type.shape) for var in (x, mu)}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("rows", [x[0], x], ids=["groups, rows", "draws, groups, rows"])
@pytest.mark.parametrize("density", [mvnormal_logp, inv_quad_logdet])
def test_matrices_are_taken_apart(rng, structure, rows, density):
    vectors = (rows, mu) if density is mvnormal_logp else (rows - mu,)
    graph = list(density(*vectors, STRUCTURES[structure][:, None]))
    assert structure in rules_that_fire(graph)
    assert_same_numbers(graph, rewritten(graph), values(rng), condition=1e3)


def test_two_shared_axes(rng):
    """The matrices of a batch of batches."""
    matrix = STRUCTURES["KroneckerPlusNoise"][:, None, None]
    graph = list(mvnormal_logp(x[0][:, :, None] + s[:, None, None, None], mu, matrix))
    assert "KroneckerPlusNoise" in rules_that_fire(graph)
    assert_same_numbers(graph, rewritten(graph), values(rng), condition=1e3)


def test_rows_of_another_number_raise_as_before(rng):
    graph = list(mvnormal_logp(pt.tensor3("y"), mu, STRUCTURES["Exponential"][:, None]))
    [y] = [var for var in graph[0].owner.inputs if var.name == "y"]
    for outputs in (graph, rewritten(graph)):
        with pytest.raises(Exception, match=r"(?i)shape|broadcast|dimension"):
            evaluate(outputs, values(rng) | {y: np.zeros((G + 1, R, N))})


def test_declines():
    """Matrices that are made of nothing, without an axis of rows, and small ones."""
    small = pt.tensor3("small", shape=(G, 4, 4))
    for vectors, matrix in (
        (x[0], S[:, None]),
        (x[0, :, 0], STRUCTURES["Diagonal"]),
        (x[0, :, :, :4], (small @ small.mT)[:, None]),
    ):
        assert RULE not in rules_that_fire(list(inv_quad_logdet(vectors, matrix)))
