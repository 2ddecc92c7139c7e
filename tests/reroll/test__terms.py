"""The terms of a covariance are its structure: they are not batched."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import equal_computations
from pytensor.graph.fg import FunctionGraph

from pytensor_mvn_rewrites.ops import mvnormal_logp
from pytensor_mvn_rewrites.reroll._terms import structured_matrices
from tests.harness import evaluate, our_ops, rewritten, spd

n, q = 12, 3
A = spd(np.random.default_rng(0), n=n)
s, e = pt.scalar("s"), pt.scalar("e")
G, E = pt.matrix("G", shape=(q, q)), pt.matrix("E", shape=(q, q))
kron = pt.linalg.kron


def positive(matrix):
    return matrix @ matrix.T + np.eye(q)


def fused(y, cov):
    """As the rule of `pm.MvNormal` makes it."""
    return mvnormal_logp(y, np.zeros(y.type.shape), cov)[0]


def by_cholesky(y, cov):
    """As a user writes it: not recognized yet when sums are re-rolled."""
    chol = pt.linalg.cholesky(cov)
    white = pt.linalg.solve_triangular(chol, y, lower=True)
    return -0.5 * (white**2).sum() - pt.log(pt.diagonal(chol)).sum()


COVS = {
    "Kronecker products": lambda: kron(A, positive(G)) + kron(np.eye(n), positive(E)),
    "unproven Kronecker products": lambda: kron(A, G @ G.T) + kron(np.eye(n), E @ E.T),
    "scaled constants": lambda: s**2 * A + e**2 * np.eye(n),
    "scaled": lambda: e * (s**2 * A + e**2 * np.eye(n)),
    "in a stack": lambda: pt.stack([s**2 * A + e**2 * np.eye(n), A])[0],
    "eight scaled constants": lambda: pt.add(*[(s + k) ** 2 * (A + k) for k in range(8)]),
}


@pytest.mark.parametrize("name", COVS)
@pytest.mark.parametrize("density", [fused, by_cholesky])
def test_terms_of_a_covariance_stay(rng, name, density):
    y = pt.vector("y", shape=COVS[name]().type.shape[:1])
    new = rewritten([density(y, COVS[name]())])
    with pytensor.config.change_flags(mvn_rewrites__skip="reroll"):
        want = rewritten([density(y, COVS[name]())])
    assert equal_computations(new, want)
    values = {y: rng.normal(size=y.type.shape), s: 1.3, e: 0.7}
    values |= {var: spd(rng, n=q) for var in (G, E)}
    [got], [reference] = evaluate(new, values), evaluate([density(y, COVS[name]())], values)
    np.testing.assert_allclose(got, reference, rtol=1e-9)


def test_a_sum_of_kronecker_products_is_seen():
    y = pt.vector("y", shape=(n * q,))
    new = rewritten([fused(y, COVS["Kronecker products"]())])
    assert any("Kronecker" in op for op in our_ops(new))


def test_the_covariances_of_a_loop_are_batched_as_wholes():
    """Terms of each covariance stay apart; the covariances go together."""
    y, scales = pt.matrix("y", shape=(5, n)), pt.vector("scales", shape=(5,))
    matrix = pt.matrix("matrix", shape=(n, n))
    terms = [fused(y[i], scales[i] * matrix + e * np.eye(n)) for i in range(5)]
    [count] = our_ops(rewritten([pt.add(*terms)])).values()
    assert count == 1


def test_what_is_summed_beside_a_covariance_is_not_its_structure():
    x, y = pt.vector("x", shape=(n,)), pt.vector("y", shape=(n,))
    beside, cov = pt.exp(x[:4, None]) + pt.exp(x[4:8, None]), s * A + e * np.eye(n)
    fgraph = FunctionGraph(outputs=[fused(y, cov), beside.sum()], clone=False)
    found = structured_matrices(fgraph)
    assert cov in found
    assert beside not in found
