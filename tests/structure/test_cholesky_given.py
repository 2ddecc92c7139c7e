import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.assumptions import assume

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.harness import (
    PIPELINE_MODE,
    assert_close,
    assert_declines,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    logp_and_gradient,
    named,
    on_and_off,
    our_ops,
    rewritten,
    spd,
)


def tagged(L):
    """As PyMC marks the `chol` of an MvNormal."""
    L.tag.lower_triangular = True
    return L


def lower_triangular(entries, n=3):
    """Put the last axis of `entries` into the lower triangle, row by row."""
    rows, columns = np.tril_indices(n)
    zeros = pt.zeros((*entries.type.shape[:-1], n, n))
    return tagged(zeros[..., rows, columns].set(entries))


def entries_of(cov):
    """The values for `lower_triangular`."""
    return np.linalg.cholesky(cov)[..., *np.tril_indices(cov.shape[-1])]


def test_vector(rng):
    x, mu, e = pt.vector("x", shape=(3,)), pt.vector("mu", shape=(3,)), pt.vector("e", shape=(6,))
    L = lower_triangular(e)
    assert_rewrites_to(
        list(mvnormal_logp(x, mu, L @ L.mT)),
        list(mvnormal_logp(x, mu, L, "chol")),
        {x: rng.normal(size=3), mu: rng.normal(size=3), e: entries_of(spd(rng, n=3))},
    )


def test_cholesky_factor_of_another_matrix(rng):
    x, S, c = pt.vector("x", shape=(3,)), pt.matrix("S", shape=(3, 3)), pt.scalar("c")
    L = pt.exp(c) * pt.linalg.cholesky(S)
    assert_rewrites_to(
        list(inv_quad_logdet(x, L @ L.mT)),
        list(inv_quad_logdet(x, L, "chol")),
        {x: rng.normal(size=3), S: spd(rng, n=3), c: 0.3},
    )


def test_declared(rng):
    x, A = pt.vector("x", shape=(3,)), pt.matrix("A", shape=(3, 3))
    L = assume(A, lower_triangular=True)
    graph = inv_quad_logdet(x, L @ L.mT)
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{chol}": 1}
    values = {x: rng.normal(size=3), A: np.linalg.cholesky(spd(rng, n=3))}
    # a declaration says nothing about the gradient of the entries above the diagonal
    assert_same_numbers(graph, new, values, wrt=[x])


def test_upper_factor(rng):
    x, e = pt.vector("x", shape=(3,)), pt.vector("e", shape=(6,))
    U = lower_triangular(e).mT
    U.tag.upper_triangular = True
    assert_rewrites_to(
        list(inv_quad_logdet(x, U.mT @ U)),
        list(inv_quad_logdet(x, U.mT, "chol")),
        {x: rng.normal(size=3), e: entries_of(spd(rng, n=3))},
    )


def test_one_factor_for_all_rows(rng):
    x, e = pt.matrix("x", shape=(5, 3)), pt.vector("e", shape=(6,))
    L = lower_triangular(e)
    assert_rewrites_to(
        list(inv_quad_logdet(x, (L @ L.mT)[None])),
        list(inv_quad_logdet(x, L, "chol")),
        {x: rng.normal(size=(5, 3)), e: entries_of(spd(rng, n=3))},
    )


def test_batch(rng):
    x, e = pt.matrix("x", shape=(5, 3)), pt.matrix("e", shape=(5, 6))
    L = lower_triangular(e)
    assert_rewrites_to(
        list(inv_quad_logdet(x, L @ L.mT)),
        list(inv_quad_logdet(x, L, "chol")),
        {x: rng.normal(size=(5, 3)), e: entries_of(spd(rng, 5, n=3))},
    )


CHOL = np.linalg.cholesky([[2.0, 0.3, 0.1], [0.3, 1.0, 0.2], [0.1, 0.2, 1.5]])

PROVEN = {
    "scaled constant": lambda s, S: pt.exp(s) * CHOL,
    "batch of scaled constants": lambda s, S: pt.exp(s) * np.stack([CHOL, 2 * CHOL]),
    "stack": lambda s, S: pt.stack([pt.linalg.cholesky(S), pt.exp(s) * CHOL]),
    "gather": lambda s, S: pt.linalg.cholesky(pt.stack([S, pt.exp(s) * S]))[[1, 0]],
}


@pytest.mark.parametrize("name", PROVEN)
def test_proven_without_a_tag(rng, name):
    d, s, S = pt.vector("d", shape=(3,)), pt.scalar("s"), pt.matrix("S", shape=(3, 3))
    L = PROVEN[name](s, S)
    values = {d: rng.normal(size=3), s: 0.3, S: spd(rng, n=3)}
    graph = list(inv_quad_logdet(d, L @ L.mT))
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{chol}": 1}
    assert_same_numbers(graph, new, values, condition=1e2)


#: Lower triangular, with a diagonal of any sign
OF_ANY_SIGN = {
    "tril": lambda s, A: pt.tril(A),
    "tril of a batch": lambda s, A: pt.tril(pt.stack([A, A + s])),
    "scale": lambda s, A: s * CHOL,
    "scales of rows": lambda s, A: A[0][:, None] * CHOL,
    "difference": lambda s, A: pt.tril(A) - pt.exp(s) * CHOL,
    "entries": lambda s, A: pt.zeros((3, 3))[np.tril_indices(3)].set(A.ravel()[:6]),
}


@pytest.mark.parametrize("name", OF_ANY_SIGN)
def test_signs_are_taken_out(rng, name):
    """PyTensor factors the product: the signs of the diagonal do not matter."""
    d, s, A = pt.vector("d", shape=(3,)), pt.scalar("s"), pt.matrix("A", shape=(3, 3))
    L = OF_ANY_SIGN[name](s, A)
    values = {d: rng.normal(size=3), s: -0.3, A: -rng.uniform(0.5, 1, size=(3, 3))}
    [entries] = evaluate([L], values)
    assert (np.diagonal(entries, axis1=-2, axis2=-1) < 0).any()
    graph = list(inv_quad_logdet(d, L @ L.mT))
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{chol}": 1}
    assert_same_numbers(graph, new, values, condition=1e3)


def near_misses():
    d, A = pt.vector("d", shape=(3,)), pt.matrix("A", shape=(3, 3))
    L = lower_triangular(pt.vector("e", shape=(6,)))
    K = lower_triangular(pt.vector("f", shape=(6,)))
    return {
        "not triangular": inv_quad_logdet(d, A @ A.mT),
        "two factors": inv_quad_logdet(d, L @ K.mT),
        "jitter": inv_quad_logdet(d, L @ L.mT + 1e-6 * pt.eye(3)),
        "precision": inv_quad_logdet(d, L @ L.mT, "tau"),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


@pytest.mark.parametrize("sign", [1, -1])
def test_model(rng, sign):
    """A negative diagonal of `chol` gives -inf, as it does without the plugin."""
    with pm.Model() as model:
        entries = pm.Normal("entries", shape=3)
        L = pt.set_subtensor(pt.zeros((2, 2))[np.tril_indices(2)], entries)
        pm.MvNormal("x", np.zeros(2), chol=L, observed=rng.normal(size=(4, 2)))
    assert our_ops(rewritten([model.logp()])) == {"InvQuadLogdet{chol}": 1}
    point = {"entries": np.array([1.3, 0.2, sign * 0.7])}
    on, off = on_and_off(lambda mode: logp_and_gradient(model, mode), PIPELINE_MODE)
    (logp, dlogp), (want, gradient) = on(point), off(point)
    assert np.isfinite(want) == (sign == 1)
    assert_close(logp, want, "value")
    if sign == 1:
        assert_close(dlogp, gradient, "gradient")


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_a_triangle_that_need_not_be_square(rng, side):
    """Its ``dims`` may get any lengths."""
    with pm.Model(coords={"row": range(3), "column": range(3)}) as model:
        L = pt.tril(pm.Normal("L", dims=("row", "column")))
        cov = L @ L.T if side == "lower" else L.T @ L
        pm.MvNormal("y", 0, cov=cov)
    logp = model.logp()
    fns = [pytensor.function(model.value_vars, rewritten([logp])[0], mode=PIPELINE_MODE)]
    with mvn.disable():
        fns.append(pytensor.function(model.value_vars, logp, mode=PIPELINE_MODE))
    for shape in ((3, 3), (2, 4)) if side == "lower" else ((3, 3), (4, 2)):
        n = shape[0] if side == "lower" else shape[1]
        model.set_dim("row", shape[0], coord_values=range(shape[0]))
        model.set_dim("column", shape[1], coord_values=range(shape[1]))
        values = {"L": rng.normal(size=shape), "y": rng.normal(size=n)}
        got, want = (fn(*[values[v.name] for v in model.value_vars]) for fn in fns)
        assert_close(got, want, "value", condition=1e4)
