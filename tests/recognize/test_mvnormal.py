import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pymc.logprob.utils import ParameterValueError

from pytensor_mvn_rewrites.logprob import check_posdef
from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.harness import (
    assert_declines,
    assert_rewrites_to,
    assert_same_numbers,
    named,
    our_ops,
    rewritten,
    spd,
)


def posdef_check(logp, posdef):
    return check_posdef(logp, posdef, "posdef covariance")


@pytest.mark.parametrize(("n", "size"), [(3, 3), (None, 4), (None, 1)])
def test_pymc_vector(rng, n, size):
    x, mu, S = pt.vector("x", shape=(n,)), pt.vector("mu", shape=(n,)), pt.matrix("S", shape=(n, n))
    assert_rewrites_to(
        pm.logp(pm.MvNormal.dist(mu, S), x),
        posdef_check(*mvnormal_logp(x, mu, S)),
        {x: rng.normal(size=size), mu: rng.normal(size=size), S: spd(rng, n=size)},
    )


def test_pymc_rows(rng):
    x, mu, S = pt.matrix("x"), pt.matrix("mu"), pt.matrix("S")
    assert_rewrites_to(
        pm.logp(pm.MvNormal.dist(mu, S), x),
        posdef_check(*mvnormal_logp(x, mu, S)),
        {x: rng.normal(size=(5, 3)), mu: rng.normal(size=(5, 3)), S: spd(rng, n=3)},
    )


def test_pymc_batch(rng):
    x, mu, S = pt.matrix("x"), pt.matrix("mu"), pt.tensor3("S")
    assert_rewrites_to(
        pm.logp(pm.MvNormal.dist(mu, S), x),
        posdef_check(*mvnormal_logp(x, mu, S)),
        {x: rng.normal(size=(5, 3)), mu: rng.normal(size=(5, 3)), S: spd(rng, 5, n=3)},
    )


def test_pymc_chol(rng):
    x, mu, M = pt.vector("x"), pt.vector("mu"), pt.matrix("M")
    L = pt.tril(M)
    assert_rewrites_to(
        pm.logp(pm.MvNormal.dist(mu, chol=L), x),
        posdef_check(*mvnormal_logp(x, mu, L, "chol")),
        {
            x: rng.normal(size=3),
            mu: rng.normal(size=3),
            M: np.linalg.cholesky(spd(rng, n=3)),
        },
    )


def test_by_hand(rng):
    x, mu, S = pt.vector("x", shape=(3,)), pt.vector("mu", shape=(3,)), pt.matrix("S", shape=(3, 3))
    prior = pt.scalar("prior")
    L = pt.linalg.cholesky(S)
    z = pt.linalg.solve_triangular(L, x - mu, lower=True)
    logdet = 2 * pt.log(pt.diag(L)).sum()
    assert_rewrites_to(
        -0.5 * (3 * np.log(2 * np.pi) + logdet + z @ z) + prior,
        mvnormal_logp(x, mu, S)[0] + prior,
        {x: rng.normal(size=3), mu: rng.normal(size=3), S: spd(rng, n=3), prior: 0.3},
    )


def test_not_positive_definite_raises_as_before(rng):
    x, S = rng.normal(size=3), -spd(rng, n=3)
    with pytest.raises(ParameterValueError, match="posdef covariance"):
        pm.logp(pm.MvNormal.dist(np.zeros(3), S), x).eval(mode="FAST_COMPILE")


@pytest.mark.parametrize("name", ["list of components", "batched component"])
def test_mixture(rng, name):
    x, mu, S = (
        pt.vector("x", shape=(2,)),
        pt.matrix("mu", shape=(3, 2)),
        pt.tensor3("S", shape=(3, 2, 2)),
    )
    if name == "batched component":
        components = pm.MvNormal.dist(mu, S)
    else:
        components = [pm.MvNormal.dist(mu[k], S[k]) for k in range(3)]
    graph = pm.logp(pm.Mixture.dist(w=[0.2, 0.3, 0.5], comp_dists=components), x)
    new = rewritten([graph])
    assert our_ops(new) == {"MvNormalLogp{cov}": 1}
    assert_same_numbers(
        graph, new, {x: rng.normal(size=2), mu: rng.normal(size=(3, 2)), S: spd(rng, 3, n=2)}
    )


def near_misses():
    x, mu, S = pt.vector("x", shape=(3,)), pt.vector("mu", shape=(3,)), pt.matrix("S", shape=(3, 3))
    quad, half, _ = inv_quad_logdet(x - mu, S)
    other, _, _ = inv_quad_logdet(mu - x, 2 * S)
    norm = 1.5 * np.log(2 * np.pi)
    return {
        "no constant": -0.5 * quad - half,
        "constant of another length": -0.5 * quad - half - 2 * norm,
        "no half": -quad - half - norm,
        "determinant, not its root": -0.5 * quad - 2 * half - norm,
        "wrong sign": -0.5 * quad + half - norm,
        "parts of two ops": -0.5 * other - half - norm,
        "product": -0.5 * quad * half - norm,
        "one half used elsewhere": [-0.5 * quad - half - norm, quad],
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


def test_no_difference_is_declined():
    d, S = pt.vector("d", shape=(3,)), pt.matrix("S", shape=(3, 3))
    quad, half, _ = inv_quad_logdet(d, S)
    assert_declines(-1.5 * np.log(2 * np.pi) - 0.5 * quad - half)
