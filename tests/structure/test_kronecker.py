import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.assumptions import assume

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import inv_quad_logdet, whiten_by
from pytensor_mvn_rewrites.pipeline import Declined, recording
from tests.harness import (
    PIPELINE_MODE,
    assert_declines,
    assert_model_agrees,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    named,
    on_and_off,
    our_ops,
    rewritten,
    same_graphs,
    spd,
)
from tests.structure.contract import Case, StructureContract, batched_kron, spd_input, symmetric

kron = pt.linalg.kron


class TestTwo(StructureContract):
    params = ("cov", "tau")
    sizes = (2, 3)

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        m, n = self.sizes
        options = {"batch": batch, "dtype": dtype, "condition": np.sqrt(condition)}
        A, a = spd_input(rng, "A", m, **options)
        B, b = spd_input(rng, "B", n, sign=sign, **options)
        return Case(batched_kron(A, B), {**a, **b})


class TestOneByOne(TestTwo):
    """A Kronecker factor of size 1."""

    sizes = (1, 3)
    test_batch_of_matrices = None

    test_nothing_dense_is_left = None


class TestThree(StructureContract):
    params = ("cov", "tau")
    test_batch_of_matrices = None

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        options = {"dtype": dtype, "condition": np.cbrt(condition)}
        A, a = spd_input(rng, "A", 2, **options)
        B, b = spd_input(rng, "B", 3, **options)
        C, c = spd_input(rng, "C", 2, sign=sign, **options)
        return Case(kron(kron(A, B), C), {**a, **b, **c})


class TestScaled(StructureContract):
    """The scale may be on the product or on a Kronecker factor, and of any sign."""

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        options = {"batch": batch, "dtype": dtype, "condition": np.sqrt(condition)}
        s, t = pt.tensor("s", shape=batch, dtype=dtype), pt.scalar("t", dtype=dtype)
        A, a = spd_input(rng, "A", 2, **options)
        B, b = spd_input(rng, "B", 3, **options)
        matrix = s[..., None, None] * batched_kron(A, t * B)
        scales = {s: np.full(batch, 1.7, dtype=dtype), t: np.asarray(sign * 0.6, dtype=dtype)}
        return Case(matrix, {**scales, **a, **b})


def test_exact_graph(rng):
    delta = pt.vector("delta", shape=(6,))
    a, b = pt.matrix("a", shape=(2, 2)), pt.matrix("b", shape=(3, 3))
    A, B = a + a.mT, b + b.mT
    sign = pt.sign(B[0, 0])[None, None]
    rows, half_logdet_of_a, posdef_of_a = whiten_by(A * sign, delta.reshape((2, 3)))
    quaddist, half_logdet, posdef = inv_quad_logdet(rows.mT.reshape((3, 2)).mT, sign * B)
    expected = [
        quaddist.sum(axis=-1),
        half_logdet.sum(axis=-1) + 3.0 * half_logdet_of_a,
        pt.and_(posdef.all(axis=-1), posdef_of_a),
    ]
    values = {delta: rng.normal(size=6), a: spd(rng, n=2), b: spd(rng, n=3)}
    assert_rewrites_to(list(inv_quad_logdet(delta, kron(A, B))), expected, values, condition=1e2)


SIGNS = [(1, 1, 1), (1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, -1), (-1, 1, 1), (1, 0, 1)]


@pytest.mark.parametrize("signs", SIGNS, ids=str)
@pytest.mark.parametrize("param", ["cov", "tau"])
def test_positive_definite_exactly_when_the_dense_matrix_is(rng, signs, param):
    delta, c = pt.vector("delta", shape=(6,)), pt.scalar("c")
    a, b = pt.matrix("a", shape=(2, 2)), pt.matrix("b", shape=(3, 3))
    graph = list(inv_quad_logdet(delta, c * kron(symmetric(a), symmetric(b)), param))
    new = rewritten(graph)
    assert our_ops(new) == {f"InvQuadLogdet{{{param}}}": 1}
    values = {delta: rng.normal(size=6), c: signs[0] * 1.3}
    values |= {a: signs[1] * spd(rng, n=2), b: signs[2] * spd(rng, n=3)}
    got, want = evaluate(new, values), evaluate(graph, values)
    assert want[-1] == (np.prod(signs) > 0)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)
    if want[-1]:
        assert_same_numbers(graph, new, values, condition=1e2)


@pytest.mark.parametrize("which", ["indefinite", "semidefinite"])
def test_bad_factor(rng, which):
    delta = pt.vector("delta", shape=(6,))
    a, b = pt.matrix("a", shape=(2, 2)), pt.matrix("b", shape=(3, 3))
    graph = list(inv_quad_logdet(delta, kron(symmetric(a), symmetric(b))))
    bad = np.diag([1.0, -1.0]) if which == "indefinite" else np.diag([1.0, 0.0])
    values = {delta: rng.normal(size=6), a: bad, b: spd(rng, n=3)}
    got, want = evaluate(rewritten(graph), values), evaluate(graph, values)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("sign", [1, -1])
def test_cholesky_factors(rng, sign):
    """The Kronecker product of Cholesky factors is the Cholesky factor of the product."""
    delta, S, T = (
        pt.vector("delta", shape=(6,)),
        pt.matrix("S", shape=(2, 2)),
        pt.matrix("T", shape=(3, 3)),
    )
    L, M = sign * pt.linalg.cholesky(S), sign * pt.linalg.cholesky(T)
    for factor in (L, M):
        factor.tag.lower_triangular = True
    graph = list(inv_quad_logdet(delta, kron(L, M), "chol"))
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{chol}": 1}
    values = {delta: rng.normal(size=6), S: spd(rng, n=2), T: spd(rng, n=3)}
    assert_same_numbers(graph, new, values, condition=1e2)


@pytest.mark.parametrize("param", ["cov", "tau"])
def test_first_factor_need_not_be_symmetric(rng, param):
    """Of the first Kronecker factor the dense graph reads the lower triangle only."""
    delta = pt.vector("delta", shape=(6,))
    A, b = pt.matrix("A", shape=(2, 2)), pt.matrix("b", shape=(3, 3))
    graph = list(inv_quad_logdet(delta, kron(A, symmetric(b)), param))
    new = rewritten(graph)
    assert our_ops(new) == {f"InvQuadLogdet{{{param}}}": 1}
    values = {delta: rng.normal(size=6), A: np.array([[2.0, 9.0], [1.0, 3.0]]), b: spd(rng, n=3)}
    assert_same_numbers(graph, new, values, condition=1e2)


def test_declared_symmetric(rng):
    delta, A, B = pt.vector("delta", shape=(6,)), pt.matrix(shape=(2, 2)), pt.matrix(shape=(3, 3))
    graph = list(inv_quad_logdet(delta, kron(A, assume(B, symmetric=True))))
    new = rewritten(graph)
    with mvn.disable():
        assert not same_graphs(new, rewritten(graph))
    values = {delta: rng.normal(size=6), A: spd(rng, n=2), B: spd(rng, n=3)}
    # a declaration says nothing about the gradient of the two triangles
    assert_same_numbers(graph, new, values, wrt=[delta, A], condition=1e2)


@pytest.mark.parametrize("computed", [True, False], ids=["of an expression", "of a parameter"])
def test_declared_symmetric_in_a_model(rng, computed):
    """PyTensor drops the marker before the log-density is made."""
    with pm.Model() as model:
        b = pm.Normal("b", shape=(3, 3), initval=spd(rng, n=3))
        B = assume(1.5 * b if computed else b, symmetric=True)
        pm.MvNormal("y", np.zeros(6), cov=kron(np.eye(2) + 1, B), observed=rng.normal(size=6))
    assert our_ops(rewritten([model.logp()])) == {"InvQuadLogdet{cov}": 1}
    on, off = on_and_off(lambda mode: model.compile_logp(mode=mode))
    point = model.initial_point()
    np.testing.assert_allclose(on(point), off(point), rtol=1e-12)


def test_not_symmetric_factor(rng):
    """The dense Cholesky reads both triangles of the second Kronecker factor."""
    delta, A, B = pt.vector("delta", shape=(6,)), pt.matrix(shape=(2, 2)), pt.matrix(shape=(3, 3))
    values = {delta: rng.normal(size=6), A: spd(rng, n=2), B: spd(rng, n=3)}
    values[B][0, 2] += 0.1
    with recording() as events:
        assert_declines(inv_quad_logdet(delta, kron(A, B))[:2], values)
    assert {event.rule for event in events if isinstance(event, Declined)} == {"Kronecker"}


def test_log_determinant_does_not_overflow(rng):
    """Sums of logarithms, where powers of determinants would overflow."""
    delta, c = pt.vector("delta", shape=(400,)), pt.scalar("c")
    A, B = 1e3 * spd(rng, n=20), 1e3 * spd(rng, n=20)
    a, b = pt.matrix("a", shape=(20, 20)), pt.matrix("b", shape=(20, 20))
    graph = list(inv_quad_logdet(delta, c * kron(a, symmetric(b))))
    values = {delta: rng.normal(size=400), c: 1e3, a: A, b: B}
    got = evaluate(rewritten(graph), values)
    _, half_logdet = np.linalg.slogdet(1e3 * np.kron(A, B))
    np.testing.assert_allclose(got[1], half_logdet / 2)


def near_misses():
    delta = pt.vector("delta", shape=(6,))
    A, B = pt.matrix("A", shape=(2, 2)), pt.matrix("B", shape=(3, 3))
    return {
        "sum": inv_quad_logdet(delta, kron(A, B) + kron(A, B).T * pt.eye(6)[::-1]),
        "noise": inv_quad_logdet(delta, kron(A, B) + pt.eye(6)),
        "scaled rows": inv_quad_logdet(delta, kron(A, B) * delta),
        "not square": inv_quad_logdet(
            delta, kron(pt.matrix(shape=(2, 3)), pt.matrix(shape=(3, 2)))
        ),
        "unknown sizes": inv_quad_logdet(pt.vector("u"), kron(pt.matrix(), pt.matrix())),
        "not symmetric": inv_quad_logdet(delta, kron(A, B + A[0, 0]), "tau"),
        "not triangular": inv_quad_logdet(delta, kron(A, B), "chol"),
        "vectors": inv_quad_logdet(delta, kron(A, pt.vector("v", shape=(3,)))[:, :6].repeat(3, 0)),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


def kronecker_model(rng, rows=()):
    with pm.Model() as model:
        length = pm.LogNormal("length", shape=2)
        scale = pm.HalfNormal("scale")
        covs = [
            pt.exp(-((np.subtract.outer(np.arange(n), np.arange(n)) / length[i]) ** 2))
            + 0.1 * np.eye(n)
            for i, n in enumerate((4, 3))
        ]
        mu = pm.Normal("mu", shape=12)
        pm.MvNormal("y", mu, cov=scale * kron(*covs), observed=rng.normal(size=(*rows, 12)))
    return model


@pytest.mark.parametrize("rows", [(), (5,)], ids=str)
def test_model(rng, rows):
    model = kronecker_model(rng, rows)
    assert our_ops(rewritten([model.logp()])) == {"InvQuadLogdet{cov}": 1}
    assert_model_agrees(model)


def test_loop_of_kronecker_covariances(rng):
    """The loop is re-rolled first; its batch of Kronecker products keeps its structure."""
    with pm.Model() as model:
        A, B = symmetric(pm.Normal("A", shape=(2, 2))), symmetric(pm.Normal("B", shape=(3, 3)))
        scale = pm.LogNormal("scale", shape=12)
        for i in range(12):
            cov = kron(A @ A.T + np.eye(2), scale[i] * (B @ B.T + np.eye(3)))
            pm.MvNormal(f"y_{i}", np.zeros(6), cov=cov, observed=rng.normal(size=6))
    fn = model.compile_dlogp(mode=PIPELINE_MODE).f
    assert not [
        var
        for node in fn.maker.fgraph.apply_nodes
        for var in node.outputs
        if getattr(var.type, "shape", ())[-2:] == (6, 6)
    ]
    assert_model_agrees(model)


def test_not_positive_definite_model(rng):
    with pm.Model() as model:
        s = pm.Normal("s")
        cov = s * kron(spd(rng, n=2) + 0 * s, spd(rng, n=3) + 0 * s)
        pm.MvNormal("y", np.zeros(6), cov=cov, observed=rng.normal(size=6))
    on, off = on_and_off(lambda mode: model.compile_logp(mode=mode), PIPELINE_MODE)
    for s in (-1.0, 1.0):
        point = {"s": np.array(s)}
        assert np.isfinite(off(point)) == (s > 0)
        np.testing.assert_allclose(on(point), off(point))


def test_large_product_never_exists(rng):
    """At n = 2500 the dense matrix would take 50 MB."""
    delta, a = pt.vector("delta", shape=(2500,)), pt.matrix("a", shape=(50, 50))
    graph = list(inv_quad_logdet(delta, kron(symmetric(a), symmetric(a))))
    new = rewritten(graph)
    fn = pytensor.function([delta, a], new, mode=PIPELINE_MODE)
    A, x = spd(rng, n=50), rng.normal(size=2500)
    quaddist, half_logdet, posdef = fn(x, A)
    X = x.reshape(50, 50)
    np.testing.assert_allclose(quaddist, (X * np.linalg.solve(A, np.linalg.solve(A, X).T).T).sum())
    np.testing.assert_allclose(half_logdet, 50 * np.linalg.slogdet(A)[1])
    assert posdef


def test_sizes_known_at_run_time_only(rng):
    """Symmetric matrices are square; of the wrong sizes they are an error, as without the rule."""
    delta, a, b = pt.vector("delta", shape=(12,)), pt.matrix("a"), pt.matrix("b")
    for param in ("cov", "tau"):
        graph = list(inv_quad_logdet(delta, kron(a @ a.T, symmetric(b)), param))
        new = rewritten(graph)
        assert our_ops(new) == {f"InvQuadLogdet{{{param}}}": 1}
        for n in (1, 3, 4):
            values = {delta: rng.normal(size=12), a: rng.normal(size=(n, n + 2))}
            assert_same_numbers(graph, new, {**values, b: spd(rng, n=12 // n)}, condition=1e3)
        for m, n in [(3, 3), (4, 4), (3, 8), (6, 4), (1, 4)]:
            values = {delta: rng.normal(size=12), a: rng.normal(size=(m, 9)), b: spd(rng, n=n)}
            for outputs in (new, graph):
                with pytest.raises(ValueError, match=r"shape|size|dim"):
                    evaluate(outputs, values)


def coregionalized(noise):
    """Several tasks at inputs that may change, as one writes it with dims."""
    rng = np.random.default_rng(0)
    with pm.Model(coords={"task": range(3), "latent": range(2)}) as model:
        points = pm.Data("points", np.arange(4.0)[:, None])
        K = pm.gp.cov.ExpQuad(1, ls=pm.LogNormal("ls"))(points) + 0.1 * pt.eye(points.shape[0])
        W = pm.Normal("W", dims=("task", "latent"))
        tasks = W @ W.T + pt.diag(pm.HalfNormal("kappa", dims="task"))
        cov = kron(tasks, K)
        if noise:
            cov = cov + pm.HalfNormal("sigma") ** 2 * pt.eye(12)
        pm.MvNormal("y", np.zeros(12), cov=cov, observed=rng.normal(size=12))
    return model


@pytest.mark.parametrize("noise", [False, True])
def test_dims(rng, noise):
    model = coregionalized(noise)
    graph = model.logp()
    new = rewritten([graph])
    op = "NoisyKroneckerQuadLogdet{2}" if noise else "InvQuadLogdet{cov}"
    assert our_ops(new) == {op: 1}
    # compiled without the plugin, PyTensor's rewrites fail on Kronecker products of such sizes
    point = model.initial_point()
    values = {
        var: point[var.name] + 0.1 * rng.normal(size=point[var.name].shape)
        for var in model.value_vars
    }
    assert_same_numbers(graph, new, values, condition=1e3)


def test_unknown_sizes_that_decline():
    delta, a, b = pt.vector("delta", shape=(12,)), pt.matrix("a"), pt.matrix("b")
    A, B = symmetric(a), symmetric(b)
    assert_declines(list(inv_quad_logdet(delta, kron(a, B))))
    assert_declines(list(inv_quad_logdet(pt.vector("any length"), kron(A, B))))
    assert_declines(list(inv_quad_logdet(delta, kron(A, B) + pt.eye(a.shape[0] * b.shape[0]))))
    assert_declines(list(inv_quad_logdet(delta, kron(A, B), "chol")))
