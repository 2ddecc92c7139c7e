import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import ancestors

from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.harness import (
    assert_declines,
    assert_same_numbers,
    evaluate,
    our_ops,
    rewritten,
    spd,
)
from tests.structure.contract import (
    Case,
    StructureContract,
    assert_model_agrees,
    spd_input,
    symmetric,
)

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
    assert our_ops(new) == {"InvQuadLogdet{chol}": 1}
    lower = np.linalg.cholesky(spd(rng, n=3))[np.tril_indices(3)]
    values = {x: rng.normal(size=3), d: rng.uniform(1, 2, size=3), entries: lower}
    assert_same_numbers(graph, new, values, condition=1e2)


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


@pytest.mark.parametrize("name", near_misses())
def test_near_miss(name):
    assert_declines(near_misses()[name])


def test_model(rng):
    with pm.Model() as model:
        scales = pm.LogNormal("scales", shape=N)
        A = pm.Normal("A", shape=(2, 2))
        cov = pt.diag(scales) @ kron(spd(rng, n=3), A @ A.T + np.eye(2)) @ pt.diag(scales)
        pm.MvNormal("x", np.zeros(N), cov=cov, observed=rng.normal(size=(4, N)))
    assert our_ops(rewritten([model.logp()])) == {"InvQuadLogdet{cov}": 1}
    assert_model_agrees(model)
