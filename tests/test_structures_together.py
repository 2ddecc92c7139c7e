"""Structured matrices beside others of their size: a stack of all would be dense."""

from collections import Counter
from itertools import count

import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import ancestors

from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp, mvnormal_logp
from pytensor_mvn_rewrites.pipeline import Fired, recording
from pytensor_mvn_rewrites.structure._structure import structures
from tests.harness import assert_same_numbers, rewritten, spd

A, B = pt.matrix("A", shape=(3, 3)), pt.matrix("B", shape=(8, 8))
C, D = pt.matrix("C", shape=(24, 24)), pt.matrix("D", shape=(24, 24))
W, d, s = pt.matrix("W", shape=(24, 2)), pt.vector("d", shape=(24,)), pt.scalar("s")
N = 24
T = np.sort(np.random.default_rng(1).uniform(0, 10, N))
CONSTANT = spd(np.random.default_rng(2), n=N)

STRUCTURED = {
    "Kronecker": pt.linalg.kron(A @ A.T, B @ B.T),
    "KroneckerPlusNoise": pt.linalg.kron(A @ A.T, B @ B.T) + s * pt.eye(N),
    "LowRankPlusDiagonal": W @ W.T + s * pt.eye(N),
    "Diagonal": pt.diag(d),
    "BlockDiagonal": pt.linalg.block_diag(*[B + i * pt.eye(8) for i in range(3)]),
    "ConstantMatrix": pt.constant(CONSTANT),
    "JointSpectrum": s * CONSTANT + s**2 * pt.eye(N),
    "OrnsteinUhlenbeck": pt.exp(-abs(T[:, None] - T) / s),
    "Exponential": pt.linalg.expm((C + C.T) / 1000),
}
DENSE = [C, C + D, C + 2 * D]


def value_of(var, rng):
    """A value for which all matrices are positive definite."""
    return {
        A: lambda: spd(rng, n=3),
        B: lambda: spd(rng, n=8),
        C: lambda: spd(rng, n=N),
        D: lambda: spd(rng, n=N),
        W: lambda: rng.normal(size=(N, 2)),
        d: lambda: rng.uniform(1, 2, size=N),
        s: lambda: np.array(0.7),
    }[var]()


def terms(matrices, rows, rng):
    """A log-density of each of the matrices, of so many rows, or of one vector."""
    for matrix, n_rows in zip(matrices, rows, strict=False):
        size = N if n_rows is None else (n_rows, N)
        value = pt.vector("x", shape=(N,)) if n_rows is None else pt.matrix("x", shape=size)
        logp, _ = mvnormal_logp(value, np.zeros(N), matrix, "cov")
        yield value, rng.normal(size=size), logp.sum()


def found_in(graph) -> Counter:
    """The structures that were found."""
    known = {cls.__name__ for cls in structures()}
    with recording() as events:
        new = rewritten(graph)
    return new, {e.rule for e in events if isinstance(e, Fired) and e.rule in known}


@pytest.mark.parametrize(
    "rows", [lambda: iter([None] * 99), lambda: iter([3] * 99), lambda: count(2)],
    ids=["vectors", "rows", "ragged rows"],
)  # fmt: skip
def test_no_structure_is_hidden(rng, rows):
    """Every matrix is taken apart as it is by itself, and the dense ones are one batch."""
    matrices = [*STRUCTURED.values(), *DENSE]
    values, data, densities = zip(*terms(matrices, rows(), rng), strict=True)
    total = pt.add(*densities)
    new, found = found_in([total])
    assert found >= set(STRUCTURED)
    dense = [
        node.inputs[-1].type.shape
        for node in {var.owner for var in ancestors(new) if var.owner}
        if isinstance(node.op, InvQuadLogdet | MvNormalLogp) and node.op.param == "cov"
    ]
    assert sum(shape[-1] == N for shape in dense) <= 1
    inputs = dict(zip(values, data, strict=True))
    parameters = [A, B, C, D, W, d, s]
    inputs |= {var: value_of(var, rng) for var in parameters}
    assert_same_numbers([total], new, inputs, condition=1e4)
