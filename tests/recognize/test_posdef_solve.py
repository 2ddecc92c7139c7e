"""Whole formulas by hand: each ends as one op, and only where the matrix is proven definite."""

import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.assumptions import assume

from tests.harness import assert_declines, assert_same_numbers, our_ops, rewritten, spd

QUADRATIC_FORMS = {
    "solve": lambda S, d: d @ pt.linalg.solve(S, d),
    "solve, sum": lambda S, d: (d * pt.linalg.solve(S, d)).sum(),
    "inv left": lambda S, d: (d @ pt.linalg.inv(S)) @ d,
    "inv right": lambda S, d: d @ (pt.linalg.inv(S) @ d),
    "inv, transposes": lambda S, d: d.T.dot(pt.linalg.inv(S)).dot(d),
    "solve, declared positive": lambda S, d: d @ pt.linalg.solve(S, d, assume_a="pos"),
    "cho_solve": lambda S, d: d @ pt.linalg.cho_solve((pt.linalg.cholesky(S), True), d),
}

LOG_DETERMINANTS = {
    "slogdet": lambda S: pt.linalg.slogdet(S)[1],
    "log det": lambda S: pt.log(pt.linalg.det(S)),
    "log abs det": lambda S: pt.log(pt.abs(pt.linalg.det(S))),
}

ROW_FORMS = {
    "inv": lambda S, X: (X @ pt.linalg.inv(S) * X).sum(-1),
    "solve": lambda S, X: (X * pt.linalg.solve(S, X.T).T).sum(-1),
    "solve, columns": lambda S, X: (X.T * pt.linalg.solve(S, X.T)).sum(0),
}


def gaussian(S, d):
    return d @ pt.linalg.solve(S, d) + pt.linalg.slogdet(S)[1]


def gram_plus_jitter(A):
    return A @ A.T + 1e-3 * pt.eye(3)


@pytest.mark.parametrize("form", QUADRATIC_FORMS)
@pytest.mark.parametrize("logdet", LOG_DETERMINANTS)
def test_vector(rng, form, logdet):
    d, A = pt.vector("d", shape=(3,)), pt.matrix("A", shape=(3, 4))
    S = gram_plus_jitter(A)
    graph = -0.5 * (QUADRATIC_FORMS[form](S, d) + LOG_DETERMINANTS[logdet](S))
    new = rewritten([graph])
    assert our_ops(new) == {"InvQuadLogdet{cov}": 1}
    values = {d: rng.normal(size=3), A: rng.normal(size=(3, 4))}
    assert_same_numbers(graph, new, values, condition=1e2)


@pytest.mark.parametrize("form", ROW_FORMS)
def test_rows(rng, form):
    X, A = pt.matrix("X", shape=(None, 3)), pt.matrix("A", shape=(3, 4))
    S = gram_plus_jitter(A)
    graph = -0.5 * (ROW_FORMS[form](S, X) + pt.linalg.slogdet(S)[1])
    new = rewritten([graph])
    assert our_ops(new) == {"InvQuadLogdet{cov}": 1}
    values = {X: rng.normal(size=(5, 3)), A: rng.normal(size=(3, 4))}
    assert_same_numbers(graph, new, values, condition=1e2)


def test_mvnormal(rng):
    x, mu, A = pt.vector("x", shape=(3,)), pt.vector("mu", shape=(3,)), pt.matrix("A", shape=(3, 4))
    S = gram_plus_jitter(A)
    graph = -0.5 * (3 * np.log(2 * np.pi) + gaussian(S, x - mu))
    new = rewritten([graph])
    assert our_ops(new) == {"MvNormalLogp{cov}": 1}
    values = {x: rng.normal(size=3), mu: rng.normal(size=3), A: rng.normal(size=(3, 4))}
    assert_same_numbers(graph, new, values, condition=1e2)


MATRICES = {
    "scaled constant": lambda v, A: pt.exp(v[0]) * (np.eye(3) + 0.1),
    "softplus times constant": lambda v, A: pt.softplus(v[0]) ** 2 * (np.eye(3) + 0.1),
    "Gram matrix plus jitter": lambda v, A: A @ A.T + 1e-6 * pt.eye(3),
    "Gram matrix plus noise": lambda v, A: A @ A.T + pt.exp(v[0]) * pt.eye(3),
    "Gram matrix plus diagonal": lambda v, A: A @ A.T + pt.diag(pt.exp(v)),
    "identity times a row": lambda v, A: A @ A.T + pt.eye(3) * pt.exp(v),
    "square plus definite": lambda v, A: v[1] ** 2 * (A @ A.T) + np.eye(3),
    "inverse": lambda v, A: pt.linalg.inv(A @ A.T + np.eye(3)) + np.eye(3),
    "one of a stack": lambda v, A: pt.stack([A @ A.T + np.eye(3), np.eye(3)])[v[0].astype(int)],
}

INDEFINITE = {
    "any matrix": lambda v, A: pt.matrix("S", shape=(3, 3)),
    "constant": lambda v, A: pt.exp(v[0]) * np.array([[1.0, 2, 0], [2, 1, 0], [0, 0, 1]]),
    "asymmetric constant": lambda v, A: pt.exp(v[0]) * (np.eye(3) + np.tri(3, k=-1) / 9),
    "scale of any sign": lambda v, A: v[0] * (np.eye(3) + 0.1),
    "scale that may be zero": lambda v, A: pt.sqr(v[0]) * (np.eye(3) + 0.1),
    "sum with any matrix": lambda v, A: A[:, :3] + np.eye(3),
    "sum with a broadcast scalar": lambda v, A: v[0] + np.eye(3),
    "difference": lambda v, A: np.eye(3) - A @ A.T,
    "identity times any row": lambda v, A: pt.eye(3) * v,
    "product of two": lambda v, A: A @ pt.exp(A).T + np.eye(3),
    "declared symmetric": lambda v, A: assume(A[:, :3] + A[:, :3].T, symmetric=True),
    "definite with a negative jitter": lambda v, A: A @ A.T - 1e-6 * pt.eye(3),
}


@pytest.mark.parametrize("name", MATRICES)
def test_proven(rng, name):
    d, v, A = pt.vector("d", shape=(3,)), pt.vector("v", shape=(3,)), pt.matrix("A", shape=(3, 4))
    graph = gaussian(MATRICES[name](v, A), d)
    new = rewritten([graph])
    param = "chol" if "constant" in name else "cov"
    assert our_ops(new) == {f"InvQuadLogdet{{{param}}}": 1}
    values = {d: rng.normal(size=3), v: rng.uniform(0.2, 0.9, size=3), A: rng.normal(size=(3, 4))}
    assert_same_numbers(graph, new, values, condition=1e2)


@pytest.mark.parametrize("name", INDEFINITE)
def test_near_miss(name):
    d, v, A = pt.vector("d", shape=(3,)), pt.vector("v", shape=(3,)), pt.matrix("A", shape=(3, 4))
    assert_declines(gaussian(INDEFINITE[name](v, A), d))


def test_declared(rng):
    d, S = pt.vector("d", shape=(3,)), pt.matrix("S", shape=(3, 3))
    graph = gaussian(assume(S, positive_definite=True), d)
    new = rewritten([graph])
    assert our_ops(new) == {"InvQuadLogdet{cov}": 1}
    assert_same_numbers(graph, new, {d: rng.normal(size=3), S: spd(rng, n=3)}, wrt=[d])


def test_solve_alone_is_declined():
    d, A = pt.vector("d", shape=(3,)), pt.matrix("A", shape=(3, 4))
    assert_declines(d @ pt.linalg.solve(gram_plus_jitter(A), d))
