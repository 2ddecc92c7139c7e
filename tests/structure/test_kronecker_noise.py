import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import inv_quad_logdet, noisy_kronecker_quad_logdet
from tests.harness import (
    PIPELINE_MODE,
    assert_declines,
    assert_model_agrees,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    gradient,
    named,
    on_and_off,
    our_ops,
    rewritten,
    spd,
)
from tests.structure.contract import (
    Case,
    StructureContract,
    batched_kron,
    dense_variables,
    spd_input,
    symmetric,
)

kron = pt.linalg.kron
LAST = np.array([False, True])


class TestTwo(StructureContract):
    """The noise is the smallest eigenvalue of an ill-conditioned matrix."""

    sizes: tuple[int, ...] = (2, 3)

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        *first, last = self.sizes
        matrix, values = None, {}
        for i, n in enumerate(first):
            factor, value = spd_input(rng, f"A_{i}", n, batch=batch, dtype=dtype)
            matrix = factor if matrix is None else batched_kron(matrix, factor)
            values |= value
        factor, value = spd_input(
            rng, "B", last, batch=batch, dtype=dtype, condition=10 * condition, sign=sign
        )
        s = pt.tensor("s", shape=batch, dtype=dtype)
        eye = np.eye(int(np.prod(self.sizes)), dtype=dtype)
        noise = {s: np.full(batch, condition**-0.5, dtype=dtype)}
        return Case(
            batched_kron(matrix, factor) + s[..., None, None] ** 2 * eye,
            {**noise, **values, **value},
        )


class TestThree(TestTwo):
    sizes = (2, 3, 2)
    test_batch_of_matrices = None


class TestOneByOne(TestTwo):
    """A Kronecker factor of size 1."""

    sizes = (1, 3)
    test_batch_of_matrices = None

    test_nothing_dense_is_left = None


class TestScaled(StructureContract):
    """The scale may be on the product, on a Kronecker factor, and on the sum."""

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        options = {"batch": batch, "dtype": dtype, "condition": np.sqrt(condition)}
        s, t = pt.tensor("s", shape=batch, dtype=dtype), pt.scalar("t", dtype=dtype)
        A, a = spd_input(rng, "A", 2, **options)
        B, b = spd_input(rng, "B", 3, sign=sign, **options)
        eye = np.eye(6, dtype=dtype)
        matrix = t * (s[..., None, None] * batched_kron(A, B) + (t / condition) * eye)
        scales = {s: np.full(batch, 1.7, dtype=dtype), t: np.asarray(0.6, dtype=dtype)}
        return Case(matrix, {**scales, **a, **b})


def small():
    """delta, A, B, s, and the inputs of A and B."""
    delta, s = pt.vector("delta", shape=(6,)), pt.scalar("s")
    a, b = pt.matrix("a", shape=(2, 2)), pt.matrix("b", shape=(3, 3))
    return delta, symmetric(a), symmetric(b), s, a, b


def test_exact_graph(rng):
    delta, _, _, s, a, b = small()
    A, B = a + a.mT, b + b.mT
    graph = list(inv_quad_logdet(delta, kron(A, B) + s**2 * pt.eye(6)))
    expected = noisy_kronecker_quad_logdet(delta, s**2, [A, B])
    values = {delta: rng.normal(size=6), s: 0.5, a: spd(rng, n=2), b: spd(rng, n=3)}
    assert_rewrites_to(graph, expected, values, condition=1e2)


FORMS = {
    "s * eye": lambda K, s: K + s * pt.eye(6),
    "eye first": lambda K, s: s * pt.eye(6) + K,
    "constant eye": lambda K, s: K + s * np.eye(6),
    "eye_like": lambda K, s: K + s * pt.identity_like(K),
    "eye of a shape": lambda K, s: K + s * pt.eye(K.shape[0]),
    "diag(full)": lambda K, s: K + pt.diag(pt.full(6, s)),
    "diag(s * ones)": lambda K, s: K + pt.diag(s * pt.ones(6)),
    "diag(repeat)": lambda K, s: K + pt.diag(pt.repeat(s, 6)),
    "noise and jitter": lambda K, s: K + s * pt.eye(6) + 1e-6 * pt.eye(6),
    "jitter": lambda K, s: K + 0.01 * pt.eye(6) + 0 * s,
    "minus": lambda K, s: K - (-s) * pt.eye(6),
    "scaled sum": lambda K, s: 3 * (K + s * pt.eye(6)),
    "divided sum": lambda K, s: (K + s * pt.eye(6)) / s,
    "inc": lambda K, s: K[np.arange(6), np.arange(6)].inc(s),
    "set": lambda K, s: K + pt.zeros((6, 6))[np.diag_indices(6)].set(s),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_noise(rng, form):
    delta, A, B, s, a, b = small()
    graph = list(inv_quad_logdet(delta, FORMS[form](kron(A, B), s)))
    new = rewritten(graph)
    assert our_ops(new) == {"NoisyKroneckerQuadLogdet{2}": 1}
    values = {delta: rng.normal(size=6), s: 0.7, a: spd(rng, n=2), b: spd(rng, n=3)}
    assert_same_numbers(graph, new, values, condition=1e2)


def near_misses():
    delta, A, B, s, _, b = small()
    K, d = kron(A, B), pt.vector("d", shape=(6,))
    one = pt.matrix("one", shape=(1, 1))
    return {
        "variances differ": inv_quad_logdet(delta, K + pt.diag(d)),
        "constant variances differ": inv_quad_logdet(delta, K + np.diag(np.arange(1.0, 7))),
        "not the diagonal": inv_quad_logdet(delta, K + s * np.eye(6)[::-1]),
        "added everywhere": inv_quad_logdet(delta, K + s),
        "one by one": inv_quad_logdet(delta, K + one),
        "set, not added": inv_quad_logdet(delta, pt.fill_diagonal(K, s)),
        "added twice to one entry": inv_quad_logdet(
            delta, K[[0, 0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4, 5]].inc(s)
        ),
        "added by masks": inv_quad_logdet(delta[:2], kron(A, symmetric(one))[LAST, LAST].inc(s)),
        "added to a matrix of unknown size": inv_quad_logdet(
            pt.vector("u"), kron(A, symmetric(pt.matrix()))[range(6), range(6)].inc(s)
        ),
        "not symmetric": inv_quad_logdet(delta, kron(A, b) + s * pt.eye(6)),
        "subtracted": inv_quad_logdet(delta, s * pt.eye(6) - K),
        "two products": inv_quad_logdet(delta, K + K.T * A[0, 0] + kron(A, B + 1) + pt.eye(6)),
        "precision": inv_quad_logdet(delta, K + s * pt.eye(6), "tau"),
        "Cholesky factor": inv_quad_logdet(delta, K + s * pt.eye(6), "chol"),
        "unknown sizes": inv_quad_logdet(
            pt.vector("u"), kron(symmetric(pt.matrix()), symmetric(pt.matrix())) + s * pt.eye(6)
        ),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


def test_lower_triangle_of_the_first_kronecker_factor(rng):
    """The dense graph reads no more of it, symmetric or not."""
    delta, _, B, s, a, b = small()
    graph = list(inv_quad_logdet(delta, kron(a, B) + s * pt.eye(6)))
    new = rewritten(graph)
    assert our_ops(new) == {"NoisyKroneckerQuadLogdet{2}": 1}
    lower = spd(rng, n=2) + np.triu(rng.normal(size=(2, 2)), 1)
    values = {delta: rng.normal(size=6), s: 0.7, a: lower, b: spd(rng, n=3)}
    assert_same_numbers(graph, new, values, condition=1e2)


def test_explanation_of_a_kronecker_factor_that_may_not_be_symmetric(rng):
    with pm.Model() as model:
        b = pm.Normal("b", shape=(3, 3))
        cov = kron(np.eye(2) + 1, b) + pt.eye(6)
        pm.MvNormal("y", np.zeros(6), cov=cov, observed=rng.normal(size=6))
    [event] = mvn.explain(model).declined
    assert (event.stage, event.rule) == ("structure", "KroneckerPlusNoise")
    assert "symmetric" in event.reason


BAD = {
    # noise, smallest eigenvalue of A, sign of B
    "semidefinite, noise": (0.5, 0.0, 1),
    "semidefinite, no noise": (0.0, 0.0, 1),
    "no noise": (0.0, 0.2, 1),
    "indefinite, much noise": (5.0, -0.3, 1),
    "indefinite, little noise": (0.05, -0.3, 1),
    "negative noise": (-0.05, 0.3, 1),
    "too negative noise": (-2.0, 0.3, 1),
    "both negative definite": (0.1, None, -1),
    "NaN": (np.nan, 0.3, 1),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(rng, name):
    """The dense graph's result, on both sides of every border."""
    noise, smallest, sign = BAD[name]
    delta, A, B, s, a, b = small()
    graph = list(inv_quad_logdet(delta, kron(A, B) + s * pt.eye(6)))
    new = rewritten(graph)
    # exact arithmetic: the dense Cholesky factorization meets the zero pivot
    eigenvalues = np.array([1.0, smallest]) if smallest is not None else np.array([-1.0, -2.0])
    h = np.array([[1.0, 1.0], [1.0, -1.0]])
    values = {delta: rng.normal(size=6), s: noise, a: h @ np.diag(eigenvalues) @ h}
    values |= {b: sign * np.array([[4.0, 2, 0], [2, 5, 2], [0, 2, 5]])}
    got, want = evaluate(new, values), evaluate(graph, values)
    assert got[-1] == want[-1]
    if want[-1]:
        assert_same_numbers(graph, new, values, condition=1e3)
    else:
        assert np.isnan(got[:-1]).all()
        assert np.isnan(want[:-1]).all()


@pytest.mark.parametrize("r", [0.5, 0.31, 0.0])
def test_eigenvalues_that_coincide(rng, r):
    """Exchangeable covariances, and the identity: the gradient of eigenvectors is not defined."""
    delta, rho, scale = pt.vector("delta", shape=(12,)), pt.scalar("rho"), pt.scalar("scale")
    A = (1 - rho) * pt.eye(3) + rho * pt.ones((3, 3))
    B = scale * ((1 - rho) * pt.eye(4) + rho)
    graph = list(inv_quad_logdet(delta, kron(A, B) + 0.25 * pt.eye(12)))
    new = rewritten(graph)
    assert our_ops(new) == {"NoisyKroneckerQuadLogdet{2}": 1}
    values = {delta: rng.normal(size=12), rho: r, scale: 1.0}
    assert_same_numbers(graph, new, values, condition=1e2)
    assert all(np.isfinite(g).all() for g in evaluate(gradient(new, list(values)), values))


def gp_model(rng, rows=()):
    """A Gaussian process on a grid."""
    with pm.Model() as model:
        length = pm.LogNormal("length", shape=2)
        scale, sigma = pm.HalfNormal("scale"), pm.HalfNormal("sigma")
        covs = [
            pm.gp.cov.ExpQuad(1, ls=length[i])(np.arange(n, dtype=float)[:, None])
            for i, n in enumerate((4, 3))
        ]
        cov = scale**2 * kron(*covs) + sigma**2 * pt.eye(12)
        pm.MvNormal("y", np.zeros(12), cov=cov, observed=rng.normal(size=(*rows, 12)))
    return model


@pytest.mark.parametrize("rows", [(), (5,)], ids=str)
def test_model(rng, rows):
    model = gp_model(rng, rows)
    assert our_ops(rewritten([model.logp()])) == {"NoisyKroneckerQuadLogdet{2}": 1}
    assert_model_agrees(model)


def test_loop_of_noisy_kronecker_covariances(rng):
    """The loop is re-rolled first; its batch of covariances keeps its structure."""
    with pm.Model() as model:
        A, B = symmetric(pm.Normal("A", shape=(2, 2))), symmetric(pm.Normal("B", shape=(3, 3)))
        sigma = pm.LogNormal("sigma", shape=4)
        for i in range(4):
            cov = kron(A @ A.T, B @ B.T) + sigma[i] ** 2 * pt.eye(6)
            pm.MvNormal(f"y_{i}", np.zeros(6), cov=cov, observed=rng.normal(size=6))
    assert our_ops(rewritten([model.logp()])) == {"NoisyKroneckerQuadLogdet{2}": 1}
    fn = model.compile_dlogp(mode=PIPELINE_MODE).f
    assert not dense_variables(fn.maker.fgraph, 6)
    assert_model_agrees(model)


def test_negative_noise_in_a_model(rng):
    """-inf where the covariance is not positive definite."""
    with pm.Model() as model:
        s = pm.Normal("s")
        cov = kron(spd(rng, n=2) + 0 * s, spd(rng, n=3)) + s * pt.eye(6)
        pm.MvNormal("y", np.zeros(6), cov=cov, observed=rng.normal(size=6))
    on, off = on_and_off(lambda mode: model.compile_logp(mode=mode), PIPELINE_MODE)
    for s in (-9.0, 1.0):
        point = {"s": np.array(s)}
        assert np.isfinite(off(point)) == (s > 0)
        np.testing.assert_allclose(on(point), off(point))


def test_large_covariance_never_exists(rng):
    """At n = 2500 the dense matrix would take 50 MB."""
    delta, a = pt.vector("delta", shape=(2500,)), pt.matrix("a", shape=(50, 50))
    graph = list(inv_quad_logdet(delta, kron(symmetric(a), symmetric(a)) + 0.1 * pt.eye(2500)))
    new = rewritten(graph)
    outputs = [*new, *gradient(new, [delta, a])]
    fn = pytensor.function([delta, a], outputs, mode=PIPELINE_MODE)
    assert not dense_variables(fn.maker.fgraph, 2500)
    A, x = spd(rng, n=50), rng.normal(size=2500)
    quaddist, half_logdet, posdef, *_ = fn(x, A)
    w, q = np.linalg.eigh(A)
    spectrum = np.multiply.outer(w, w) + 0.1
    np.testing.assert_allclose(quaddist, ((q.T @ x.reshape(50, 50) @ q) ** 2 / spectrum).sum())
    np.testing.assert_allclose(half_logdet, np.log(spectrum).sum() / 2)
    assert posdef
