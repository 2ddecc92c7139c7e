"""`explain` says what fired on which variables, what is left and what that costs."""

from io import StringIO

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import apply_ancestors
from rich.console import Console

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.flops import flops
from pytensor_mvn_rewrites.names import collapsed
from pytensor_mvn_rewrites.ops import inv_quad_logdet
from tests.harness import PIPELINE_MODE, spd


@pytest.fixture(autouse=True)
def no_tracebacks():
    """They are what most of the time would go into."""
    with pytensor.config.change_flags(traceback__limit=0):
        yield


def loop(rng, n_terms=20, n=3):
    covs = spd(rng, n_terms, n=n)
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        mu = pm.Normal("mu", shape=(n_terms, n))
        for k in range(n_terms):
            pm.MvNormal(f"x_{k}", mu[k], cov=scale * covs[k], observed=np.ones(n))
    return model


def dense(n=15, **kwargs):
    """A model that no rule has anything for."""
    with pm.Model(coords={"row": range(n)}) as model:
        a = pm.Normal("a", dims="row")
        cov = pt.exp(-((a[:, None] - a) ** 2)) + np.eye(n)
        pm.MvNormal("y", np.zeros(n), cov=cov, observed=np.ones(n), **kwargs)
    return model


def test_loop(rng):
    found = mvn.explain(loop(rng))
    [fused] = found.after
    assert (fused.op, fused.variables, fused.size) == (
        "InvQuadLogdet{chol}",
        "x_0 ... x_19",
        "20 x 3 x 3",
    )
    # a triangular solve each
    assert fused.flops == 20 * 3**2
    # value, matrix, and the two results with a flag
    assert fused.bytes == 20 * (3 * 8 + 9 * 8 + 2 * 8 + 1)
    cholesky, solve = found.before
    assert (cholesky.op, cholesky.variables, cholesky.count) == ("Cholesky", "x_0 ... x_19", 20)
    assert cholesky.flops == 20 * 3**3 / 3
    assert cholesky.bytes == 20 * 2 * 9 * 8
    assert (solve.op, solve.flops) == ("SolveTriangular", 20 * 3**2)
    assert not found.declined
    assert not found.dense
    by_rule = {event.rule: event for event, _ in found.fired}
    assert by_rule["ConstantMatrix"].variables == "x_0 ... x_19"
    assert by_rule["ConstantMatrix"].became == "MvNormalLogp{chol}"


def test_what_terms_share_counts_once():
    with pm.Model() as model:
        a = pm.Normal("a", shape=(3, 3))
        cov = a @ a.T + np.eye(3)
        for k in range(10):
            pm.MvNormal(f"x_{k}", np.zeros(3), cov=cov, observed=np.full(3, k))
    cholesky = next(own for own in mvn.explain(model).before if own.op == "Cholesky")
    assert (cholesky.count, cholesky.flops) == (1, 3**3 / 3)


def test_what_is_left_dense_has_a_remedy():
    found = mvn.explain(dense())
    assert not found.declined
    [left] = found.dense
    assert (left.op, left.variables, left.size) == ("MvNormalLogp{cov}", "y", "15 x 15")
    text = str(found)
    assert "declined: nothing" in text
    assert "left dense (remedy: write the matrix as what it is made of" in text
    assert "  MvNormalLogp{cov} y 15 x 15" in text


def test_near_miss(rng):
    with pm.Model() as model:
        a = pm.Normal("a", shape=(4, 4))
        pm.MvNormal("y", np.zeros(8), cov=pt.linalg.kron(spd(rng, n=2), a))
    found = mvn.explain(model)
    assert len(found.dense) == 1
    [event] = found.declined
    assert (event.rule, event.variables) == ("Kronecker", "y")
    assert event.reason == "a Kronecker factor is not proven symmetric"
    assert "assume(matrix, symmetric=True)" in event.remedy
    assert "y: a Kronecker factor is not proven symmetric; remedy: declare it by" in str(found)
    assert "left dense (remedy: see what was declined)" in str(found)


def test_lengths_are_those_of_the_initial_point():
    with pm.Model(coords={"row": range(5), "column": range(3)}) as model:
        a = pm.Normal("a", dims=("row", "column"))
        pm.MvNormal("y", pt.zeros(5), cov=a @ a.T + np.eye(5), dims="row")
    found = mvn.explain(model)
    assert [own.flops for own in found.before if own.op == "Dot"] == [2 * 5 * 3 * 5]
    assert [own.flops for own in found.after if own.op == "Dot"] == [2 * 5 * 3 * 5]


def test_what_is_not_known_is_not_guessed():
    matrix, x = pt.matrix("matrix"), pt.vector("x")
    quad, half_logdet, _ = inv_quad_logdet(x, matrix)
    found = mvn.explain(quad + half_logdet + pt.linalg.expm(matrix).sum())
    assert {own.op: own.flops for own in found.after} == {"InvQuadLogdet{cov}": None, "Expm": None}
    assert {own.size for own in found.after} == {"? x ?"}
    assert "unknown flops, unknown B -> unknown flops, unknown B" in str(found)


def test_compiled_functions():
    model = dense()
    point = model.compile_logp(mode=PIPELINE_MODE)
    [density] = mvn.explain(point).after
    # PyMC's names of the densities are gone: these are the inputs
    assert (density.op, density.variables, density.size) == ("MvNormalLogp{cov}", "y, a", "15 x 15")
    assert mvn.explain(point.f) == mvn.explain(point)
    raveled = model.logp_dlogp_function(mode=PIPELINE_MODE, ravel_inputs=True)
    text = str(mvn.explain(raveled))
    assert "runs:" in text
    assert "MvNormalLogpPullback{cov}" in text
    assert "fired" not in text


def test_kernels_of_numba():
    x, matrix = pt.matrix("x", shape=(10, 3)), pt.tensor("matrix", shape=(10, 3, 3))
    quad, _, _ = inv_quad_logdet(x, matrix)
    [density] = mvn.explain(pytensor.function([x, matrix], quad, mode="NUMBA")).after
    assert density.kernel == "lanes"
    assert density.is_dense
    assert density.flops == pytest.approx(10 * (3**3 / 3 + 3**2))


def test_inner_graphs():
    def step(matrix):
        return pt.linalg.cholesky(matrix)[0, 0]

    matrices = pt.tensor("matrices", shape=(4, 3, 3))
    function = pytensor.function(
        [matrices],
        pytensor.map(step, sequences=[matrices], return_updates=False),
        mode=PIPELINE_MODE.excluding("scan"),
    )
    [left] = [own for own in mvn.explain(function).after if own.op == "Cholesky"]
    assert left.is_dense
    assert left.variables == "matrices"


def test_it_is_shown_as_tables(rng):
    found = mvn.explain(loop(rng))
    console = Console(width=120, record=True, file=StringIO())
    console.print(found)
    text = console.export_text()
    assert "│ InvQuadLogdet{chol} │ x_0 ... x_19 │" in text
    assert "declined: nothing" in text
    html = found._repr_html_()
    assert "<td>InvQuadLogdet{chol}</td><td>x_0 ... x_19</td><td>20 x 3 x 3</td>" in html
    assert "-&gt;" in html
    assert "\x1b" not in str(found)


def test_names():
    names = ["y", *(f"x_{k}" for k in (10, 2, 0)), "z_1", "z_2"]
    assert collapsed(names) == "y, x_0 ... x_10, z_1, z_2"
    assert collapsed("abcdefg") == "a, b, c, d, 3 more"


A, B = pt.tensor("A", shape=(7, 4, 4)), pt.tensor("B", shape=(7, 4, 2))

#: By the books, of 4 x 4 matrices and two columns
COUNTS = {
    "Cholesky": (pt.linalg.cholesky(A), 7 * 64 / 3),
    "triangular": (pt.linalg.solve_triangular(A, B), 7 * 16 * 2),
    "vector": (pt.linalg.solve_triangular(A, B[..., 0], b_ndim=1), 7 * 16),
    "solve": (pt.linalg.solve(A, B), 7 * (2 * 64 / 3 + 2 * 16 * 2)),
    "inverse": (pt.linalg.inv(A), 7 * 2 * 64),
    "det": (pt.linalg.det(A), 7 * 2 * 64 / 3),
    "eigh": (pt.linalg.eigh(A)[0], 7 * 9 * 64),
    "product": (A @ B, 7 * 2 * 4 * 4 * 2),
    "expm": (pt.linalg.expm(A), None),
    "elementwise": (pt.exp(A), 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    out, count = COUNTS[name]
    assert flops(out.owner) == (count if count is None else pytest.approx(count))


def test_the_graph_stays_as_it_is(rng):
    x, L = pt.vector("x", shape=(3,)), pt.matrix("L", shape=(3, 3))
    graph = pm.logp(pm.MvNormal.dist(np.zeros(3), cov=L @ L.T + np.eye(3)), x) + x.sum()
    nodes = list(apply_ancestors([graph]))
    inputs = [node.inputs.copy() for node in nodes]
    assert mvn.explain(graph).fused
    assert [node.inputs for node in nodes] == inputs
    assert list(apply_ancestors([graph])) == nodes


def test_something_else():
    with pytest.raises(TypeError, match="no model, tensor variable or compiled function"):
        mvn.explain([pt.vector()])
