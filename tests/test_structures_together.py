"""Structured matrices beside others of their size: a stack of all would be dense."""

from itertools import count

import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import clone_replace
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
#: Of what is small enough that a batch of dense matrices is faster, see ``structure/low_rank.py``
DENSE_IN_A_BATCH = {"LowRankPlusDiagonal"}
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


def found_in(graph) -> tuple[list, set[str]]:
    """The graph, rewritten, and the structures that were found."""
    known = {cls.__name__ for cls in structures()}
    with recording() as events:
        new = rewritten(graph)
    return new, {e.rule for e in events if isinstance(e, Fired) and e.rule in known}


def dense_densities(graph) -> int:
    """How many densities of large dense covariances are left."""
    nodes = {var.owner for var in ancestors(graph) if var.owner is not None}
    dense = [node for node in nodes if isinstance(node.op, InvQuadLogdet | MvNormalLogp)]
    return sum(node.inputs[-1].type.shape[-1] == N and node.op.param == "cov" for node in dense)


ROWS = pytest.mark.parametrize(
    "rows", [lambda: iter([None] * 99), lambda: iter([3] * 99), lambda: count(2)],
    ids=["vectors", "rows", "ragged rows"],
)  # fmt: skip


@ROWS
def test_no_structure_is_hidden(rng, rows):
    """Every matrix is taken apart as it is by itself, and the dense ones are one batch."""
    matrices = [*STRUCTURED.values(), *DENSE]
    values, data, densities = zip(*terms(matrices, rows(), rng), strict=True)
    total = pt.add(*densities)
    new, found = found_in([total])
    assert found >= set(STRUCTURED)
    assert dense_densities(new) <= 1
    inputs = dict(zip(values, data, strict=True))
    parameters = [A, B, C, D, W, d, s]
    inputs |= {var: value_of(var, rng) for var in parameters}
    assert_same_numbers([total], new, inputs, condition=1e4)


def own(matrix, g):
    """The same matrix, of parameters of its own."""
    parameters = [A, B, C, D, W, d, s]
    new = {var: var.clone(name=f"{var.name}_{g}") for var in parameters}
    return clone_replace(matrix, new), {new[var]: var for var in parameters}


@ROWS
@pytest.mark.parametrize("structure", [name for name in STRUCTURED if name not in DENSE_IN_A_BATCH])
def test_a_loop_hides_no_structure(rng, structure, rows):
    """The terms are one batch, which is taken apart like each of them, or each of them is."""
    matrices, clones = zip(*[own(STRUCTURED[structure], g) for g in range(4)], strict=True)
    values, data, densities = zip(*terms(matrices, rows(), rng), strict=True)
    new, found = found_in([pt.add(*densities)])
    assert structure in found
    assert not dense_densities(new)
    inputs = dict(zip(values, data, strict=True))
    inputs |= {var: value_of(old, rng) for of_term in clones for var, old in of_term.items()}
    assert_same_numbers([pt.add(*densities)], new, inputs, condition=1e4)
