import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.harness import (
    assert_declines,
    assert_model_agrees,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    named,
    rewritten,
    same_graphs,
    spd,
)
from tests.structure.contract import Case, StructureContract, batched_kron, spd_input, symmetric

N = 4
P = np.array([2, 0, 3, 1])
Q = np.argsort(P)


class TestKronecker(StructureContract):
    """What is permuted is a structure itself."""

    params = ("cov", "tau")

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        options = {"batch": batch, "dtype": dtype, "condition": np.sqrt(condition)}
        A, a = spd_input(rng, "A", 2, **options)
        B, b = spd_input(rng, "B", 3, sign=sign, **options)
        p = np.array([4, 0, 5, 2, 1, 3])
        return Case(batched_kron(A, B)[..., p, :][..., p], {**a, **b})


class TestDense(StructureContract):
    """PyTensor moves the gather below the sum that makes the matrix symmetric."""

    params = ("cov", "tau")

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        options = {"batch": batch, "dtype": dtype, "condition": condition, "sign": sign}
        S, values = spd_input(rng, "S", N, **options)
        return Case(S[..., P[:, None], P], values)

    def test_nothing_dense_is_left(self, rng):
        """The matrix is."""


x, C, d, c = (
    pt.vector("x", shape=(N,)),
    pt.matrix("C", shape=(N, N)),
    pt.vector("d", shape=(N,)),
    pt.scalar("c"),
)
S = symmetric(C)
LOWEST = P - N

FORMS = {
    "rows, columns": (S[P][:, P], S),
    "columns, rows": (S[:, P][P], S),
    "np.ix_": (S[np.ix_(P, P)], S),
    "P[:, None], P": (S[P[:, None], P], S),
    "negative": (S[LOWEST][:, P], S),
    "short integers": (S[P.astype("int8")][:, P.astype("uint8")], S),
    "twice": (S[P][:, P][Q][:, Q], S),
    "mixed": (S[P][:, Q][Q][:, P], S),
    "itself": (S[np.arange(N)][:, np.arange(N)], S),
    "scaled": (c**2 * S[P][:, P], c**2 * S),
    "noise": (S[P][:, P] + c**2 * np.eye(N), S + c**2 * np.eye(N)),
    "diagonal": (S[P][:, P] + pt.diag(d**2), S + pt.diag(d[Q] ** 2)),
    "constant": (S[P][:, P] + 0.1 * (P[:, None] + P), S + 0.1 * (np.arange(N)[:, None] + range(N))),
    "scales": (d[:, None] * S[P][:, P] ** 3 * d, d[Q][:, None] * S**3 * d[Q]),
    "product": (C[P] @ C.T[:, P], C @ C.T),
    "factor": (C[P] @ C[P].T, C @ C.T),
    "sum": (S[P][:, P] + c**2 * S[np.ix_(P, P)] ** 2, S + c**2 * S**2),
}


@pytest.mark.parametrize("name", FORMS)
def test_form(rng, name):
    matrix, inner = FORMS[name]
    values = {x: rng.normal(size=N), C: spd(rng, n=N), c: 0.7, d: rng.uniform(1, 2, size=N)}
    order = np.arange(N) if name in ("itself", "twice", "mixed") else Q
    expected = list(mvnormal_logp(x[order], np.arange(N)[order] * 1.0, inner))
    assert_rewrites_to(list(mvnormal_logp(x, np.arange(N) * 1.0, matrix)), expected, values)


@pytest.mark.parametrize("length", [N, N - 1, N + 1])
def test_length_that_is_not_known(length):
    """A vector that is too long must not go unnoticed."""
    unknown = pt.vector("unknown")
    new = rewritten(inv_quad_logdet(unknown, S[P][:, P]))
    values = {unknown: np.ones(length), C: np.eye(N)}
    if length == N:
        evaluate(new, values)
    else:
        with pytest.raises(AssertionError, match="SpecifyShape"):
            evaluate(new, values)


def near_misses():
    one, unknown, p = pt.vector(shape=(1,)), pt.matrix(), pt.lvector(shape=(N,))
    half, unknown_scales = symmetric(unknown), pt.vector()
    triple, three = pt.vector(shape=(3,)), np.array([2, 0, 3])
    shared = pytensor.shared(P, shape=(N,))
    mask = np.ones(N, dtype=bool)
    B = symmetric(pt.tensor3(shape=(N, N, N)))
    rows = pt.matrix(shape=(N, N))
    return {
        "an input": inv_quad_logdet(x, S[p][:, p]),
        "shared": inv_quad_logdet(x, S[shared][:, shared]),
        "repeated": inv_quad_logdet(x, S[[0, 1, 1, 3]][:, [0, 1, 1, 3]]),
        "left out": inv_quad_logdet(triple, S[three][:, three]),
        "out of range": inv_quad_logdet(x, S[[0, 1, 2, N]][:, [0, 1, 2, N]]),
        "below the lowest": inv_quad_logdet(x, S[[0, 1, 2, -5]][:, [0, 1, 2, -5]]),
        "rows alone": inv_quad_logdet(x, S[P]),
        "columns alone": inv_quad_logdet(x, S[:, P]),
        "different": inv_quad_logdet(x, S[P][:, Q]),
        "different at once": inv_quad_logdet(x, S[P[:, None], Q]),
        "transposed": inv_quad_logdet(x, S[P, P[:, None]]),
        "pairs": inv_quad_logdet(x, B[:, P, P]),
        "mask": inv_quad_logdet(x, S[mask][:, mask]),
        "the batch too": inv_quad_logdet(
            rows, B[np.arange(N)[:, None, None], P[:, None], P[None, :]]
        ),
        "unknown length": inv_quad_logdet(x, half[P][:, P]),
        "not symmetric": inv_quad_logdet(x, C[P][:, P]),
        "entries of a vector": inv_quad_logdet(x, x[np.abs(P[:, None] - P)]),
        "one column": inv_quad_logdet(x, B[:, P[:, None], 0, None][..., 0, 0] + S),
        "chol": inv_quad_logdet(x, S[P][:, P], "chol"),
        "two permutations": inv_quad_logdet(x, S[P][:, P] + S[Q][:, Q]),
        "beside a matrix": inv_quad_logdet(x, S[P][:, P] + S),
        "a mean of length 1": mvnormal_logp(x, one, S[P][:, P]),
        "vectors of length 1": inv_quad_logdet(one, S[P][:, P]),
        "scales of unknown length": inv_quad_logdet(x, unknown_scales[:, None] * S[P][:, P]),
        "one by one": inv_quad_logdet(one, pt.matrix(shape=(1, 1))[[0]][:, [0]]),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


def test_reason(rng):
    """What is declined can be declared."""
    with pm.Model() as model:
        cov = pm.Data("cov", spd(rng, n=N), shape=(N, N))
        pm.MvNormal("y", np.zeros(N), cov=cov[P][:, P])
    assert "not proven symmetric" in str(mvn.explain(model))
    with pm.Model() as declared:
        cov = pm.Data("cov", spd(rng, n=N), shape=(N, N))
        cov = pytensor.assumptions.assume(cov, symmetric=True)
        pm.MvNormal("y", np.zeros(N), cov=cov[P][:, P])
    assert "Permuted" in str(mvn.explain(declared))
    assert_model_agrees(declared)


A = symmetric(pt.matrix("A", shape=(2, 2)))
D = symmetric(pt.matrix("D", shape=(2, 2)))
U = pt.matrix("U", shape=(N, 1))

NESTED = {
    "Kronecker": pt.linalg.kron(A, D),
    "KroneckerNoise": pt.linalg.kron(A, D) + c**2 * np.eye(N),
    "BlockDiagonal": pt.linalg.block_diag(A, D),
    "Diagonal": pt.diag(d**2),
    "LowRank": U @ U.T + pt.diag(d**2),
    "ScaledGram": c**2 * (pt.linalg.cholesky(S) @ pt.linalg.cholesky(S).T),
    "ConstantMatrix": c**2 * pt.as_tensor(np.eye(N) + 0.3),
}


@pytest.mark.parametrize("name", NESTED)
def test_nested(rng, name):
    """A matrix in another order is taken apart as it is in its own."""
    plain = rewritten(inv_quad_logdet(x[Q], NESTED[name]))
    graph = list(inv_quad_logdet(x, NESTED[name][P][:, P]))
    new = rewritten(graph)
    assert same_graphs(new, plain)
    values = {x: rng.normal(size=N), C: spd(rng, n=N), c: 0.7, d: rng.uniform(1, 2, size=N)}
    for var in (A, D):
        values[var.owner.inputs[1].owner.inputs[0]] = spd(rng, n=2)
    values[U] = rng.normal(size=(N, 1))
    assert_same_numbers(graph, new, values)


def test_model(rng):
    """Rows of a Kronecker product in another order, with a mean that is data."""
    n, p = 6, np.array([4, 0, 5, 2, 1, 3])
    gap = np.subtract.outer(np.arange(3.0), np.arange(3.0))
    with pm.Model() as model:
        mean = pm.Data("mean", np.zeros(n))
        length, sd = pm.HalfNormal("length"), pm.HalfNormal("sd")
        kernel = pt.exp(-0.5 * (gap / length) ** 2) + 0.1 * np.eye(3)
        rho = pm.Uniform("rho", -1, 1)
        cov = pt.linalg.kron((1 - rho) * np.eye(2) + rho, sd**2 * kernel)
        pm.MvNormal("y", mean, cov=cov[p][:, p], observed=rng.normal(size=(5, n)))
    text = str(mvn.explain(model))
    assert "Permuted" in text
    assert "Kronecker" in text
    assert "declined: nothing" in text
    assert_model_agrees(model)
    with model:
        pm.set_data({"mean": rng.normal(size=n)})
    assert_model_agrees(model)
