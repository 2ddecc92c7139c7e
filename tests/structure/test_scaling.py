import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import ancestors
from pytensor.tensor.basic import ExtractDiag
from pytensor.tensor.math import Dot

from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.harness import (
    assert_declines,
    assert_model_agrees,
    assert_same_numbers,
    evaluate,
    named,
    our_ops,
    rewritten,
    spd,
)
from tests.structure.contract import Case, StructureContract, spd_input, symmetric

block_diag, kron = pt.linalg.block_diag, pt.linalg.kron
N = 6


class TestScaledBlocks(StructureContract):
    params = ("cov", "tau")

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        options = {"batch": batch, "dtype": dtype, "condition": condition}
        A, a = spd_input(rng, "A", 2, sign=sign, **options)
        B, b = spd_input(rng, "B", 4, **options)
        s = pt.tensor("s", shape=(*batch, N), dtype=dtype)
        # the dense result does not depend on the signs of the standard deviations
        scales = rng.uniform(0.5, 2, size=(*batch, N)) * rng.choice([-1, 1], size=(*batch, N))
        matrix = s[..., :, None] * block_diag(A, B) * s[..., None, :]
        return Case(matrix, {s: scales.astype(dtype), **a, **b})


delta, s, t = (pt.vector(name, shape=(N,)) for name in ("delta", "s", "t"))
a, b = pt.matrix("a", shape=(2, 2)), pt.matrix("b", shape=(3, 3))
R = kron(symmetric(a), symmetric(b))
S = pt.matrix("S", shape=(N, N))

FORMS = {
    "diagonal matrices": pt.diag(s) @ R @ pt.diag(s),
    "right first": pt.diag(s) @ (R @ pt.diag(s)),
    "columns and rows": s[:, None] * R * s[None, :],
    "outer product": pt.outer(s, s) * R,
    "logarithms": pt.diag(pt.exp(s)) @ R @ pt.diag(pt.exp(s)),
    "twice": pt.outer(s, s) * (pt.diag(t) @ R @ pt.diag(t)),
    "scaled twice": 2.0 * pt.outer(s, s) * R,
    "one batch": (pt.outer(s, s) * R)[None],
}


def values_of(graph):
    rng = np.random.default_rng(0)
    values = {var: rng.uniform(0.5, 2, size=N) for var in (delta, s, t)}
    return values | {a: spd(rng, n=2), b: spd(rng, n=3)}


@pytest.mark.parametrize("name", FORMS)
def test_form(name):
    rows = delta[None] if FORMS[name].type.ndim == 3 else delta
    graph = list(inv_quad_logdet(rows, FORMS[name]))
    new = rewritten(graph)
    [op] = our_ops(new).elements()
    assert op == "InvQuadLogdet{cov}"
    dense = [var for var in ancestors(new) if getattr(var.type, "shape", ())[-2:] == (N, N)]
    assert not dense
    assert_same_numbers(graph, new, values_of(graph), condition=1e2)


def test_correlation_given_by_its_cholesky_factor(rng):
    """Nothing is factored."""
    entries = pt.vector("entries", shape=(6,))
    L = pt.zeros((3, 3))[np.tril_indices(3)].set(entries)
    L.tag.lower_triangular = True
    d, x = pt.vector("d", shape=(3,)), pt.vector("x", shape=(3,))
    graph = list(mvnormal_logp(x, np.zeros(3), pt.outer(d, d) * (L @ L.T)))
    new = rewritten(graph)
    assert our_ops(new) == {"MvNormalLogp{chol}": 1}
    lower = np.linalg.cholesky(spd(rng, n=3))[np.tril_indices(3)]
    values = {x: rng.normal(size=3), d: rng.uniform(1, 2, size=3), entries: lower}
    assert_same_numbers(graph, new, values, condition=1e2)


LKJ_ENTRIES = pt.vector("entries", shape=(6,))


def lkj(scale=None):
    """The correlation matrix as ``pm.LKJCholeskyCov`` computes it, scaled."""
    L = pt.zeros((3, 3))[np.tril_indices(3)].set(pt.exp(LKJ_ENTRIES))
    cov = L @ L.T
    inv_sd = 1 / pt.sqrt(pt.diag(cov))
    corr = inv_sd[:, None] * cov * inv_sd[None, :]
    return corr if scale is None else pt.diag(scale) @ corr @ pt.diag(scale)


d3 = pt.vector("d3", shape=(3,))
OF_LKJ = {
    "correlation": lkj(),
    "scaled by diagonal matrices": lkj(d3),
    "scaled by an outer product": pt.outer(d3, d3) * lkj(),
    "scaled by positive numbers": lkj(pt.exp(d3)),
    "divided": lkj() / pt.outer(d3, d3),
}


@pytest.mark.parametrize("name", OF_LKJ)
def test_lkj_correlation(rng, name):
    """Nothing is factored, whatever the signs of the scales."""
    x = pt.matrix("x", shape=(4, 3))
    graph = list(mvnormal_logp(x, np.zeros(3), OF_LKJ[name]))
    new = rewritten(graph)
    assert our_ops(new) == {"MvNormalLogp{chol}": 1}
    values = {x: rng.normal(size=(4, 3)), LKJ_ENTRIES: 0.3 * rng.normal(size=6)}
    assert_same_numbers(graph, new, values | {d3: np.array([0.5, -2.0, 1.5])}, condition=1e2)


def test_zero_scale_of_a_known_factor(rng):
    x = pt.vector("x", shape=(3,))
    graph = list(mvnormal_logp(x, np.zeros(3), lkj(d3)))
    values = {x: np.ones(3), LKJ_ENTRIES: np.zeros(6), d3: np.array([1.0, 0.0, 1.0])}
    for outputs in (graph, rewritten(graph)):
        *_, posdef = evaluate(outputs, values)
        assert not posdef


def test_many_scales_of_one_factor(rng):
    """The factor is not copied for each row."""
    x, scales = pt.matrix("x", shape=(5, 3)), pt.matrix("scales", shape=(5, 3))
    cov = scales[:, :, None] * lkj() * scales[:, None, :]
    graph = list(mvnormal_logp(x, np.zeros(3), cov))
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{chol}": 1}
    [node] = {var.owner for var in ancestors(new) if str(var.owner_op) == "InvQuadLogdet{chol}"}
    assert node.inputs[1].type.ndim == 2
    values = {x: rng.normal(size=(5, 3)), scales: rng.uniform(0.5, 2, size=(5, 3))}
    assert_same_numbers(graph, new, values | {LKJ_ENTRIES: 0.3 * rng.normal(size=6)}, condition=1e2)


@pytest.mark.parametrize("bad", [0.0, np.nan])
@pytest.mark.parametrize("param", ["cov", "tau"])
def test_bad_scale(bad, param):
    graph = list(inv_quad_logdet(delta, pt.outer(s, s) * R, param))
    values = values_of(graph)
    values[s][2] = bad
    for outputs in (rewritten(graph), graph):
        quaddist, half_logdet, posdef = evaluate(outputs, values)
        assert np.isnan(quaddist)
        assert not np.isfinite(half_logdet)
        assert not posdef


CORRELATIONS = {
    "constant": (np.eye(N) + 0.3, "InvQuadLogdet{chol}"),
    "Kronecker plus noise": (R + 0.5 * np.eye(N), "NoisyKroneckerQuadLogdet{2}"),
    "inverse": (pt.linalg.inv(symmetric(S)), "InvQuadLogdet{tau}"),
}


@pytest.mark.parametrize("name", CORRELATIONS)
def test_correlation(rng, name):
    correlation, op = CORRELATIONS[name]
    graph = list(inv_quad_logdet(delta, pt.outer(s, s) * correlation))
    new = rewritten(graph)
    assert our_ops(new) == {op: 1}
    assert_same_numbers(graph, new, values_of(graph) | {S: spd(rng, n=N)}, condition=1e2)


def near_misses():
    return {
        "a correlation matrix without structure": inv_quad_logdet(delta, pt.outer(s, s) * S),
        "two scales": inv_quad_logdet(delta, pt.outer(s, t) * R),
        "rows only": inv_quad_logdet(delta, s * R),
        "inverse scale on the right": inv_quad_logdet(delta, s[:, None] * R / s),
        "Cholesky factor": inv_quad_logdet(delta, pt.outer(s, s) * R, "chol"),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


def test_lkj_model(rng):
    """A correlation matrix alone, and scaled: no factorization, and no product of the factor."""
    with pm.Model() as model:
        _, corr, _ = pm.LKJCholeskyCov(
            "chol", n=3, eta=2, sd_dist=pm.Exponential.dist(1, shape=3), compute_corr=True
        )
        scales = pm.HalfNormal("scales", shape=3)
        pm.MvNormal("x", np.zeros(3), cov=corr, observed=rng.normal(size=(6, 3)))
        pm.MvNormal("y", np.zeros(3), cov=pt.diag(scales) @ corr @ pt.diag(scales))
    logp = rewritten([model.logp()])
    assert set(our_ops(logp)) == {"InvQuadLogdet{chol}", "MvNormalLogp{chol}"}
    assert not [var for var in ancestors(logp) if isinstance(var.owner_op, Dot | ExtractDiag)]
    # standard deviations are no negative scales
    assert not [var for var in ancestors(logp) if var.owner_op == pt.sign]
    assert_model_agrees(model)


def test_model(rng):
    with pm.Model() as model:
        scales = pm.LogNormal("scales", shape=N)
        A = pm.Normal("A", shape=(2, 2))
        cov = pt.diag(scales) @ kron(spd(rng, n=3), A @ A.T + np.eye(2)) @ pt.diag(scales)
        pm.MvNormal("x", np.zeros(N), cov=cov, observed=rng.normal(size=(4, N)))
    assert our_ops(rewritten([model.logp()])) == {"InvQuadLogdet{cov}": 1}
    assert_model_agrees(model)
