import numpy as np
import pytensor.tensor as pt
import pytest

from pytensor_mvn_rewrites.graph import lengths_of
from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.harness import (
    assert_close,
    assert_declines,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    named,
    our_ops,
    rewritten,
    spd,
)

N, P = 6, 2
RNG = np.random.default_rng(4)
S, SS = spd(RNG, n=N), spd(RNG, 3, n=N)
X, Y = RNG.normal(size=(N, P)), RNG.normal(size=N)


def test_constant_covariance(rng):
    x, mu = pt.vector("x", shape=(N,)), pt.vector("mu", shape=(N,))
    assert_rewrites_to(
        list(mvnormal_logp(x, mu, S)),
        list(mvnormal_logp(x, mu, np.linalg.cholesky(S), "chol")),
        {x: rng.normal(size=N), mu: rng.normal(size=N)},
        condition=10,
    )


def unscaled(vector, scale, matrices):
    """What is expected of ``inv_quad_logdet(vector, scale * matrices)``."""
    chol, root = np.linalg.cholesky(matrices), pt.sqrt(scale)
    quaddist, _, _ = inv_quad_logdet(vector, chol, "chol")
    if root.type.ndim:
        root = root[..., 0, 0]
    else:
        root = pt.expand_dims(root, range(matrices.ndim - 2))
    log_pivots = np.log(np.diagonal(chol, axis1=-2, axis2=-1)).sum(axis=-1)
    quaddist = quaddist / root**2
    half_logdet = log_pivots + N * pt.log(root)
    posdef = root > 0
    if posdef.type.broadcastable != quaddist.type.broadcastable:
        posdef = pt.broadcast_to(posdef, lengths_of(quaddist))
    return [quaddist, half_logdet, posdef]


@pytest.mark.parametrize("matrices", [S, SS], ids=["one", "batch"])
def test_scaled(rng, matrices):
    x, s = pt.vector("x", shape=(N,)), pt.scalar("s")
    assert_rewrites_to(
        list(inv_quad_logdet(x, s * matrices)),
        unscaled(x, s, matrices),
        {x: rng.normal(size=N), s: 0.3},
        condition=10,
    )


def test_scales_of_a_batch(rng):
    x, s = pt.vector("x", shape=(N,)), pt.vector("s", shape=(3,))
    scale = s[:, None, None] ** 2
    assert_rewrites_to(
        list(inv_quad_logdet(x, scale * SS)),
        unscaled(x, scale, SS),
        {x: rng.normal(size=N), s: np.array([0.3, 1, -2])},
        condition=10,
    )


def test_scaled_cholesky_factors(rng):
    """Scales of given Cholesky factors; what is above the diagonal does not count."""
    x, mu, s = pt.matrix("x", shape=(3, N)), pt.vector("mu", shape=(N,)), pt.scalar("s")
    factors = np.linalg.cholesky(SS) + np.triu(np.ones((N, N)), 1)
    graph = list(mvnormal_logp(x, mu, s * factors, "chol"))
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{chol}": 1}
    given = {x: rng.normal(size=(3, N)), mu: rng.normal(size=N), s: 0.3}
    assert_same_numbers(graph, new, given, condition=10)


@pytest.mark.parametrize("param", ["cov", "chol"])
@pytest.mark.parametrize("factors", [(-0.7, -0.4), (-0.7, 0.4)])
def test_factors_of_a_scale_may_be_negative(rng, param, factors):
    x, a, b = pt.vector("x", shape=(N,)), pt.scalar("a"), pt.scalar("b")
    matrix = S if param == "cov" else np.linalg.cholesky(S)
    graph = list(inv_quad_logdet(x, a * (b * matrix), param))
    values = dict(zip([x, a, b], [rng.normal(size=N), *factors], strict=True))
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{chol}": 1}
    with np.errstate(invalid="ignore"):
        got, want = evaluate(new, values), evaluate(graph, values)
    assert got[2] == want[2] == (np.prod(factors) > 0)
    if want[2]:
        assert_close(got[0], want[0], "value", "float64")
        assert_close(got[1], want[1], "value", "float64")


def test_only_the_lower_triangle_counts(rng):
    x = pt.vector("x", shape=(N,))
    graph = list(inv_quad_logdet(x, S + np.triu(np.ones((N, N)), 1)))
    assert_same_numbers(graph, rewritten(graph), {x: rng.normal(size=N)}, condition=10)


@pytest.mark.parametrize("scale", [0.0, -0.3, np.nan])
def test_scale_that_is_not_positive(rng, scale):
    x, s = pt.vector("x", shape=(N,)), pt.scalar("s")
    # a vector that is a parameter, and one that is linear in constants
    for vector in (x, Y - pt.dot(X, x[:P])):
        graph = list(mvnormal_logp(vector, np.zeros(N), s * S))
        new = rewritten(graph)
        for result in (
            evaluate(graph, {x: rng.normal(size=N), s: scale}) for graph in (graph, new)
        ):
            assert not result[1]


LINEAR_MEANS = {
    "regression": lambda b: pt.dot(X, b),
    "intercept": lambda b: pt.dot(X, b) + b[0],
    "sum of columns": lambda b: b[0] * X[:, 0] - X[:, 1] / pt.exp(b[1]),
    "constant": lambda b: np.ones(N),
    "as many columns as entries": lambda b: pt.dot(np.eye(N), pt.tile(b, N // P)),
}


@pytest.mark.parametrize("scaled", [False, True], ids=["constant", "scaled"])
@pytest.mark.parametrize("name", LINEAR_MEANS)
def test_constant_data_is_whitened(rng, name, scaled):
    b, s = pt.vector("b", shape=(P,)), pt.scalar("s")
    cov = pt.exp(s) * S if scaled else S
    graph = list(mvnormal_logp(Y, LINEAR_MEANS[name](b), cov))
    new = rewritten(graph)
    assert our_ops(new) == {}
    given = {b: rng.normal(size=P), s: 0.2}
    assert_same_numbers(graph, new, given, condition=10)


def test_rows_are_whitened(rng):
    b, data = pt.vector("b", shape=(P,)), rng.normal(size=(4, N))
    graph = list(mvnormal_logp(data, pt.dot(X, b), S))
    new = rewritten(graph)
    assert our_ops(new) == {}
    assert_same_numbers(graph, new, {b: rng.normal(size=P)}, condition=10)


def test_ill_conditioned(rng):
    """QR of the whitened columns: the condition number of the covariance is not squared."""
    cov = spd(rng, n=N, condition=1e10)
    b, given = pt.vector("b", shape=(P,)), rng.normal(size=P)
    logp, _ = mvnormal_logp(Y, pt.dot(X, b), cov)
    [actual] = evaluate(rewritten([logp]), {b: given})
    [expected] = evaluate([logp], {b: given})
    assert_close(actual / expected, 1.0, "value", condition=1e10)


def near_misses():
    x, s, A = pt.vector("x", shape=(N,)), pt.scalar("s"), pt.matrix("A", shape=(N, N))
    return {
        "not positive definite": mvnormal_logp(x, Y, -S),
        "semidefinite": mvnormal_logp(x, Y, np.ones((N, N))),
        "NaN": mvnormal_logp(x, Y, np.full((N, N), np.nan)),
        "one bad matrix of a batch": mvnormal_logp(x, Y, np.stack([S, -S])),
        "not a number but a matrix": mvnormal_logp(x, Y, A * S),
        "scales of rows": mvnormal_logp(x, Y, pt.exp(x)[:, None] * S),
        "sum": mvnormal_logp(x, Y, S + pt.exp(s)),
        "precision": mvnormal_logp(x, Y, S, "tau"),
        "value that is not constant": mvnormal_logp(x, X[:, 0], np.linalg.cholesky(S), "chol"),
        "scaled, not a Cholesky factor": mvnormal_logp(
            x, Y, pt.exp(s) * -np.linalg.cholesky(S), "chol"
        ),
        "scales of the rows of a factor": mvnormal_logp(
            x, Y, pt.exp(x)[:, None] * np.linalg.cholesky(S), "chol"
        ),
        "gathered scales of one factor": mvnormal_logp(
            A, Y, pt.exp(x)[[0, 0, 1, 2, 2, 3], None, None] * np.linalg.cholesky(S), "chol"
        ),
        "mean that is not linear": mvnormal_logp(
            Y, pt.exp(s * X[:, 0]), np.linalg.cholesky(S), "chol"
        ),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)
