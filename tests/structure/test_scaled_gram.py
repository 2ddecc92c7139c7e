import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import ancestors

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
    spd,
)
from tests.structure.contract import Case, StructureContract

N = 4
TRIL = np.tril_indices(N)


def lower(entries):
    """Lower triangular, with a positive diagonal."""
    zeros = pt.zeros((*entries.type.shape[:-1], N, N), dtype=entries.type.dtype)
    L = zeros[..., *TRIL].set(entries)
    L.tag.lower_triangular = True
    return L


class TestScaledGram(StructureContract):
    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        e = pt.tensor("e", shape=(*batch, len(TRIL[0])), dtype=dtype)
        c = pt.tensor("c", shape=(*batch, 1, 1), dtype=dtype)
        L = lower(e)
        entries = np.linalg.cholesky(spd(rng, *batch, n=N, condition=condition))[..., *TRIL]
        scale = sign * rng.uniform(0.5, 2, size=(*batch, 1, 1))
        return Case(c * (L @ L.mT), {c: scale.astype(dtype), e: entries.astype(dtype)})

    def test_nothing_dense_is_left(self, rng):
        """The Cholesky factor is."""


x, e, c, s = (
    pt.vector("x", shape=(N,)),
    pt.vector("e", shape=(len(TRIL[0]),)),
    pt.scalar("c"),
    pt.scalar("s"),
)
L = lower(e)
SIGMA = L @ L.T

FORMS = {
    "number": (0.05 * SIGMA, np.sqrt(0.05)),
    "variable": (c * SIGMA, pt.sqrt(c)),
    "square": (c**2 * SIGMA, pt.sqrt(c**2)),
    "quotient": (SIGMA / c, pt.sqrt(1 / c)),
    "twice": (c * (s * SIGMA), pt.sqrt(c * s)),
}


@pytest.mark.parametrize("name", FORMS)
def test_form(rng, name):
    matrix, root = FORMS[name]
    values = {x: rng.normal(size=N), c: 1.7, s: 0.3}
    values[e] = np.linalg.cholesky(spd(rng, n=N))[TRIL]
    expected = list(mvnormal_logp(x, np.zeros(N), root * L, "chol"))
    assert_rewrites_to(list(mvnormal_logp(x, np.zeros(N), matrix)), expected, values)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan])
def test_bad_scale(bad):
    rows, scales = pt.matrix("rows", shape=(2, N)), pt.tensor("scales", shape=(2, 1, 1))
    values = {x: np.ones(N), rows: np.ones((2, N)), e: np.linalg.cholesky(np.eye(N))[TRIL], c: bad}
    values[scales] = np.array([bad, 1.0])[:, None, None]
    for graph in (inv_quad_logdet(x, c * SIGMA), inv_quad_logdet(rows, scales * SIGMA)):
        for outputs in (graph, rewritten(graph)):
            quaddist, half_logdet, posdef = evaluate(outputs, values)
            assert not posdef.flat[0]
            assert not np.isfinite(quaddist + half_logdet).flat[0]
            assert posdef.size == 1 or posdef[1]


def test_many_scales_of_one_factor(rng):
    rows, scales = pt.matrix("rows", shape=(5, N)), pt.vector("scales", shape=(5,))
    graph = list(mvnormal_logp(rows, np.zeros(N), scales[:, None, None] * SIGMA))
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{chol}": 1}
    [node] = {var.owner for var in ancestors(new) if str(var.owner_op) == "InvQuadLogdet{chol}"}
    assert node.inputs[1].type.ndim == 2
    values = {rows: rng.normal(size=(5, N)), scales: rng.uniform(0.5, 2, size=5)}
    values[e] = np.linalg.cholesky(spd(rng, n=N))[TRIL]
    assert_same_numbers(graph, new, values)


def near_misses():
    A = pt.matrix("A", shape=(N, N))
    return {
        "a full product": inv_quad_logdet(x, c * (A @ A.T)),
        "a matrix of scales": inv_quad_logdet(x, A * SIGMA),
        "scales of rows": inv_quad_logdet(x, x[:, None] * SIGMA),
        "precision": inv_quad_logdet(x, c * SIGMA, "tau"),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


def test_model(rng):
    """The g-prior of three groups, each a multiple of one LKJ covariance."""
    with pm.Model() as model:
        chol, _, _ = pm.LKJCholeskyCov(
            "chol", n=N, eta=2, sd_dist=pm.Exponential.dist(1, shape=N), compute_corr=True
        )
        scale = pm.HalfNormal("scale", shape=3)
        for k in range(3):
            pm.MvNormal(f"b_{k}", np.zeros(N), cov=scale[k] ** 2 * (chol @ chol.T))
        pm.MvNormal("y", np.zeros(N), cov=0.05 * (chol @ chol.T), observed=rng.normal(size=(9, N)))
    assert all("chol" in op for op in our_ops(rewritten([model.logp()])))
    assert_model_agrees(model)
