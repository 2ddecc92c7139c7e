import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.assumptions import assume

from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.harness import (
    assert_declines,
    assert_model_agrees,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    named,
    our_ops,
    rewritten,
)

N = 3
ROWS, COLUMNS = np.tril_indices(N)


def lower(entries):
    """Put the last axis of `entries` into the lower triangle, row by row."""
    return pt.zeros((*entries.type.shape[:-1], N, N))[..., ROWS, COLUMNS].set(entries)


def reversed_chol(upper):
    chol = upper[..., ::-1, ::-1]
    return chol * pt.sign(pt.diagonal(chol, axis1=-2, axis2=-1))[..., None, :]


@pytest.mark.parametrize("batch", [(), (4,)], ids=["one matrix", "batch"])
def test_form(rng, batch):
    """The diagonal has entries of both signs."""
    x, mu = pt.tensor("x", shape=(*batch, N)), pt.vector("mu", shape=(N,))
    entries = pt.tensor("entries", shape=(*batch, 6))
    U = lower(entries).mT
    assert_rewrites_to(
        list(mvnormal_logp(x, mu, U @ U.mT)),
        list(mvnormal_logp(x[..., ::-1], mu[::-1], reversed_chol(U), "chol")),
        {
            x: rng.normal(size=(*batch, N)),
            mu: rng.normal(size=N),
            entries: rng.uniform(0.5, 1, size=(*batch, 6)) * [1, 1, -1, 1, 1, 1],
        },
        condition=1e2,
    )


def test_transpose_first(rng):
    delta, entries = pt.vector("delta", shape=(N,)), pt.vector("entries", shape=(6,))
    L = lower(entries)
    graph = list(inv_quad_logdet(delta, L.T @ L))
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{chol}": 1}
    values = {delta: rng.normal(size=N), entries: rng.uniform(0.5, 1, size=6)}
    assert_same_numbers(graph, new, values, condition=1e2)


def test_declared(rng):
    delta, A = pt.vector("delta", shape=(N,)), pt.matrix("A", shape=(N, N))
    U = assume(A, upper_triangular=True)
    graph = list(inv_quad_logdet(delta, U @ U.T))
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{chol}": 1}
    values = {delta: rng.normal(size=N), A: np.triu(rng.uniform(0.5, 1, size=(N, N)))}
    # a declaration says nothing about the gradient of the entries below the diagonal
    assert_same_numbers(graph, new, values, wrt=[delta])


def test_singular():
    delta, entries = pt.vector("delta", shape=(N,)), pt.vector("entries", shape=(6,))
    U = lower(entries).T
    graph = list(inv_quad_logdet(delta, U @ U.T))
    for outputs in (rewritten(graph), graph):
        with np.errstate(all="ignore"):
            quaddist, _, posdef = evaluate(outputs, {delta: np.ones(N), entries: np.zeros(6)})
        assert not np.isfinite(quaddist)
        assert not posdef


def near_misses():
    delta, A = pt.vector("delta", shape=(N,)), pt.matrix("A", shape=(N, N))
    B, U = pt.matrix("B", shape=(N, N)), lower(pt.vector("entries", shape=(6,))).T
    return {
        "full": inv_quad_logdet(delta, A @ A.T),
        "another transpose": inv_quad_logdet(delta, U @ B.T),
        "precision": inv_quad_logdet(delta, U @ U.T, "tau"),
        "with jitter": inv_quad_logdet(delta, U @ U.T + 1e-6 * np.eye(N)),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


def test_model(rng):
    with pm.Model() as model:
        L, *_ = pm.LKJCholeskyCov("L", n=N, eta=2, sd_dist=pm.HalfNormal.dist(1))
        pm.MvNormal("x", np.zeros(N), cov=L.T @ L, observed=rng.normal(size=(4, N)))
    assert our_ops(rewritten([model.logp()])) == {"InvQuadLogdet{chol}": 1}
    assert_model_agrees(model)
