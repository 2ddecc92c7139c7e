import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pymc.distributions.transforms import CholeskyCovPacked
from pymc.pytensorf import rewrite_pregrad
from pytensor.graph.traversal import ancestors

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.logprob import ETA_MAY_VARY
from pytensor_mvn_rewrites.ops import PackedCholesky, packed_cholesky
from pytensor_mvn_rewrites.ops.packed_cholesky import diagonal_positions
from tests.harness import (
    PIPELINE_MODE,
    assert_declines,
    assert_rewrites_to,
    logp_and_gradient,
    on_and_off,
)


def length(n):
    return n * (n + 1) // 2


def exponential_diagonal(u, n):
    """What PyMC's transform makes of the unconstrained vector."""
    return CholeskyCovPacked(n).backward(u)


def unpacked(packed, n):
    zeros = pt.zeros((*packed.type.shape[:-1], n, n))
    return pt.set_subtensor(zeros[(..., *np.tril_indices(n))], packed)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("batch", [(), (4,)], ids=["one", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["known length", "unknown length"])
def test_prior_and_matrix_share_the_op(rng, n, batch, static):
    u = pt.tensor("u", shape=(*batch, length(n) if static else None))
    packed = exponential_diagonal(u, n)
    _, sd, corr_diag, _ = packed_cholesky(packed, n)
    zeros = pt.zeros((*batch, n, n))
    chol = pt.set_subtensor(zeros[(..., *np.tril_indices(n))], packed)
    jacobian = CholeskyCovPacked(n).log_jac_det(u)
    expected = packed_cholesky(u, n, log_diagonal=True)
    graph = [chol, sd, corr_diag, jacobian]
    by_hand = [*expected[:3], expected[3].sum(axis=-1)]
    assert_rewrites_to(graph, by_hand, {u: rng.normal(size=(*batch, length(n)))})


@pytest.mark.parametrize("n", [2, 3])
def test_matrix_alone(rng, n):
    """Without the prior, as in ``pm.expand_packed_triangular`` of a value."""
    u = pt.vector("u", shape=(length(n),))
    expected = packed_cholesky(u, n, log_diagonal=True)[0]
    graph = pm.math.expand_packed_triangular(n, exponential_diagonal(u, n))
    assert_rewrites_to(graph, expected, {u: rng.normal(size=length(n))})


def test_standard_deviations_are_known(rng):
    """Also where a dimension is added before the root is taken."""
    u = pt.vector("u", shape=(6,))
    chol = pm.math.expand_packed_triangular(3, exponential_diagonal(u, 3))
    variances = pt.diagonal(chol @ chol.T)
    _, sd, *_ = packed_cholesky(u, 3, log_diagonal=True)
    assert_rewrites_to(
        [pt.sqrt(variances), pt.sqrt(variances[:, None])],
        [sd, sd[:, None]],
        {u: rng.normal(size=6)},
    )


def test_given_factor_is_used():
    """The covariance of the factor is never factored again."""
    u, x = pt.vector("u", shape=(6,)), pt.vector("x", shape=(3,))
    chol = pm.math.expand_packed_triangular(3, exponential_diagonal(u, 3))
    logp = pm.logp(pm.MvNormal.dist(0, chol @ chol.T), x)
    assert mvn.explain(logp).fused == ("InvQuadLogdet{chol}",)


N = 3
U = pt.vector("u", shape=(length(N),))
OTHER = pt.vector("other", shape=(length(N),))
DIAGONAL = diagonal_positions(N)


def replaced(entries, at=DIAGONAL, of=U):
    return pt.set_subtensor(of[at], entries)


NEAR_MISSES = {
    "set by one vector": pt.zeros((4, 3))[np.array([0, 2])].set(pt.exp(U[:2, None])),
    "set by a mask": pt.zeros((3, 3))[np.eye(3, dtype=bool)].set(U[:3]),
    "set by masks of both axes": pt.zeros((N, N))[np.arange(N) > 0, np.arange(N) > 0].set(U[0]),
    "plain packed vector": unpacked(U, N),
    "exponential of other entries": unpacked(replaced(pt.exp(U[[0, 1, 4]])), N),
    "exponential of another vector": unpacked(replaced(pt.exp(OTHER[DIAGONAL])), N),
    "softplus": unpacked(replaced(pt.softplus(U[DIAGONAL])), N),
    "wrong entries": unpacked(replaced(pt.exp(U[[0, 1, 2]]), [0, 1, 2]), N),
    "incremented": unpacked(pt.inc_subtensor(U[DIAGONAL], pt.exp(U[DIAGONAL])), N),
    "into ones": pt.set_subtensor(
        pt.ones((N, N))[np.tril_indices(N)], replaced(pt.exp(U[DIAGONAL]))
    ),
    "upper triangle": pm.math.expand_packed_triangular(
        N, replaced(pt.exp(U[DIAGONAL])), lower=False
    ),
    "diagonal of a vector that is not unpacked": U[DIAGONAL].sum(),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_declines(rng, name):
    values = {U: rng.normal(size=length(N)), OTHER: rng.normal(size=length(N))}
    assert_declines(NEAR_MISSES[name], values)


def fused_in(graph):
    nodes = {var.owner for var in ancestors([graph]) if var.owner is not None}
    return [node.op for node in nodes if isinstance(node.op, PackedCholesky)]


@pytest.mark.parametrize("transform", [True, False], ids=["transformed", "not transformed"])
@pytest.mark.parametrize("eta", [1, 2.5, 60, *(["random"] if ETA_MAY_VARY else [])])
def test_model(rng, transform, eta):
    """The prior of PyMC in a model, with and without its transform: values and gradients."""
    with pm.Model() as model:
        pm.LKJCholeskyCov(
            "chol",
            n=3,
            eta=pm.Gamma("eta", 3, 1) if eta == "random" else eta,
            sd_dist=pm.HalfNormal.dist([1, 2, 3]),
            **({} if transform else {"default_transform": None}),
        )
    [op] = fused_in(rewrite_pregrad(model.logp()))
    assert op.log_diagonal == transform
    point = model.initial_point()
    for name, value in point.items():
        point[name] = value + 0.1 * np.abs(rng.normal(size=value.shape))
    with mvn.disable():
        assert not fused_in(rewrite_pregrad(model.logp()))
    on, off = on_and_off(lambda mode: logp_and_gradient(model, mode))
    for got, want in zip(on(point), off(point), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize("entry", [np.nan, np.inf, -np.inf, 800.0, -800.0])
@pytest.mark.parametrize("on_diagonal", [True, False])
def test_bad_entries(entry, on_diagonal):
    """Not a number, infinite, or overflowing: what the model gives without the plugin."""
    with pm.Model() as model:
        chol, _, _ = pm.LKJCholeskyCov("chol", n=2, eta=2, sd_dist=pm.Exponential.dist(1))
        pm.MvNormal("x", chol=chol, observed=[1.0, 2.0])
    packed = np.array([0.2, 0.3, -0.1])
    packed[2 if on_diagonal else 1] = entry
    [name] = model.initial_point()
    on, off = on_and_off(lambda mode: model.compile_logp(mode=mode), PIPELINE_MODE)
    np.testing.assert_array_equal(on({name: packed}), off({name: packed}))


def test_rows_of_different_scales():
    """The standard deviation of a small row beside a large one keeps its digits."""
    packed = np.array([1e9, 3e-9, 4e-9])
    _, sd, corr_diag, _ = packed_cholesky(packed, 2)
    np.testing.assert_allclose(sd.eval(mode=PIPELINE_MODE), [1e9, 5e-9], rtol=1e-14)
    np.testing.assert_allclose(corr_diag.eval(mode=PIPELINE_MODE), [1, 0.8], rtol=1e-14)
