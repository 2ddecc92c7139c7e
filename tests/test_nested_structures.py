"""Structures inside structures: nothing of the size of the whole is left."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import ancestors

from pytensor_mvn_rewrites.ops import mvnormal_logp
from tests.harness import assert_model_agrees, assert_same_numbers, our_ops, rewritten, spd
from tests.structure.contract import symmetric

block_diag, kron, inv = pt.linalg.block_diag, pt.linalg.kron, pt.linalg.inv

a, b, c = pt.matrix("a", shape=(2, 2)), pt.matrix("b", shape=(3, 3)), pt.matrix("c", shape=(4, 4))
A, B, C = symmetric(a), symmetric(b), symmetric(c)
d = pt.matrix("d", shape=(2, 2))
W, V = pt.matrix("W", shape=(24, 2)), pt.matrix("V", shape=(28, 3))
s = pt.scalar("s")
NOISE = pt.exp(s)


expm = pt.linalg.expm


def low_rank(factor, noise):
    return factor @ factor.T + noise * np.eye(factor.type.shape[0])


def two_products():
    return kron(A, B) + kron(d @ d.T + np.eye(2), NOISE * np.eye(3))


def scaled_by(scales, matrix):
    return pt.diag(scales) @ matrix @ pt.diag(scales)


#: The matrix, and the ops that are left of it.
NESTED = {
    "block-diagonal of Kronecker": (
        block_diag(kron(A, B), kron(B, A)),
        {"InvQuadLogdet{cov}": 2},
    ),
    "block-diagonal of low rank": (
        block_diag(low_rank(W, NOISE), low_rank(V, 2.0)),
        {"LowRankQuadLogdet{cov}": 2},
    ),
    "equal blocks of low rank": (
        block_diag(low_rank(W, NOISE), low_rank(W, NOISE)),
        {"LowRankQuadLogdet{cov}": 1},
    ),
    "block-diagonal of scaled Kronecker": (
        block_diag(scaled_by(pt.exp(b.ravel()[:6]), kron(A, B)), C),
        {"InvQuadLogdet{cov}": 1, "MvNormalLogp{cov}": 1},
    ),
    "block-diagonal of block-diagonal": (
        block_diag(block_diag(A, B), block_diag(B, A)),
        {"MvNormalLogp{cov}": 2},
    ),
    "block-diagonal of precisions": (
        block_diag(inv(A), inv(symmetric(d))),
        {"MvNormalLogp{tau}": 1},
    ),
    # the Cholesky factor of the first Kronecker factor is a plain one
    "Kronecker of block-diagonal": (kron(block_diag(A, B), C), {"InvQuadLogdet{cov}": 1}),
    "Kronecker with block-diagonal": (kron(C, block_diag(A, B)), {"InvQuadLogdet{cov}": 2}),
    "Kronecker with low rank": (kron(A, low_rank(W, NOISE)), {"LowRankQuadLogdet{cov}": 1}),
    "block-diagonal of sums of Kronecker": (
        block_diag(two_products(), C),
        {"NoisyKroneckerQuadLogdet{2}": 1, "MvNormalLogp{cov}": 1},
    ),
    "scaled sum of Kronecker": (
        scaled_by(pt.exp(b.ravel()[:6]), two_products()),
        {"NoisyKroneckerQuadLogdet{2}": 1},
    ),
    "block-diagonal of exponentials": (
        block_diag(expm(A), NOISE * expm(B) + 0.1 * np.eye(3)),
        {"ExpmQuadLogdet": 2},
    ),
    "Kronecker with exponential": (kron(A, expm(B)), {"ExpmQuadLogdet": 1}),
    "inverse of an exponential": (inv(expm(B)), {"ExpmQuadLogdet": 1}),
    "inverse of Kronecker": (inv(kron(A, B)), {"InvQuadLogdet{tau}": 1}),
    "inverse of block-diagonal": (inv(block_diag(A, B)), {"MvNormalLogp{tau}": 2}),
    "scaled inverse": (
        scaled_by(pt.exp(pt.diagonal(b)), inv(B)),
        {"InvQuadLogdet{tau}": 1},
    ),
}


def values_of(graph):
    rng = np.random.default_rng(0)
    inputs = set(ancestors(graph))
    values = {var: spd(rng, n=var.type.shape[0]) for var in (a, b, c, d)}
    values |= {var: rng.normal(size=var.type.shape) for var in (W, V)} | {s: 0.3}
    return {var: value for var, value in values.items() if var in inputs}


@pytest.mark.parametrize("name", NESTED)
def test_nested(name):
    matrix, ops = NESTED[name]
    n = matrix.type.shape[0]
    x = pt.vector("x", shape=(n,))
    graph = list(mvnormal_logp(x, np.zeros(n), matrix))
    new = rewritten(graph)
    if n > 3:
        assert not [v for v in ancestors(new) if getattr(v.type, "shape", ())[-2:] == (n, n)]
    values = {x: np.random.default_rng(1).normal(size=n), **values_of(graph)}
    assert_same_numbers(graph, new, values, condition=1e3)
    assert our_ops(new) == ops


LOOPS = {
    "Kronecker": (lambda x, L: kron(x * A_CONST, L @ L.T), {"InvQuadLogdet{cov}": 1}),
    "Kronecker plus noise": (
        lambda x, L: kron(A_CONST, L @ L.T) + x * pt.eye(6),
        {"NoisyKroneckerQuadLogdet{2}": 1},
    ),
    "sum of Kronecker": (
        lambda x, L: kron(A_CONST, L @ L.T) + kron(x * A_CONST, np.eye(3)),
        {"NoisyKroneckerQuadLogdet{2}": 1},
    ),
    "block-diagonal": (
        lambda x, L: block_diag(x * B_CONST, L @ L.T + pt.eye(3)),
        {"MvNormalLogp{cov}": 1},
    ),
    "exponential": (lambda x, L: x * expm(L + L.T), {"ExpmQuadLogdet": 1}),
    "scaled Kronecker": (
        lambda x, L: scaled_by(x * pt.arange(1.0, 7), kron(A_CONST, L @ L.T)),
        {"InvQuadLogdet{cov}": 1},
    ),
    "low rank": (
        lambda x, L: x * (W_CONST @ L[:2] @ L[:2].T @ W_CONST.T) + x * pt.eye(64),
        {"LowRankQuadLogdet{cov}": 1},
    ),
}

A_CONST, B_CONST = spd(np.random.default_rng(0), n=2), spd(np.random.default_rng(1), n=3)
W_CONST = np.random.default_rng(2).normal(size=(64, 2))


@pytest.mark.parametrize("name", LOOPS)
def test_loop_over_groups(rng, name):
    """The loop becomes a batch first, and the batch keeps the structure."""
    build, ops = LOOPS[name]
    with pm.Model() as model:
        x = pm.LogNormal("x", shape=4)
        L = pm.Normal("L", sigma=0.3, shape=(4, 3, 3), initval=np.eye(3) + np.zeros((4, 1, 1)))
        for i in range(4):
            cov = build(x[i], L[i])
            n = cov.type.shape[0]
            pm.MvNormal(f"y_{i}", np.zeros(n), cov=cov, observed=rng.normal(size=n))
    assert our_ops(rewritten([model.logp()])) == ops
    assert_model_agrees(model)
