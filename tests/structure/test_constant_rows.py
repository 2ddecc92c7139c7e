"""Constant rows that share a covariance."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.tensor.subtensor import AdvancedSubtensor

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import MvNormalLogp, inv_quad_logdet, mvnormal_logp
from pytensor_mvn_rewrites.ops.quadlogdet import InvQuadLogdet
from pytensor_mvn_rewrites.pipeline import Declined, recording
from tests.harness import (
    assert_close,
    assert_declines,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    gradient,
    named,
    our_ops,
    rewritten,
    same_graphs,
    spd,
)

R, N, P, G = 40, 2, 3, 4
RNG = np.random.default_rng(20261122)
Y = RNG.normal(size=(R, N))
X = RNG.normal(size=(R, P))
INDEX = RNG.permutation(np.arange(R) % G)
OTHER_INDEX = RNG.permutation(np.arange(R) % 2)

a, c = pt.vector("a", shape=(N,)), pt.scalar("c")
B = pt.matrix("B", shape=(P, N))
M = pt.matrix("M", shape=(G, N))
K = pt.tensor3("K", shape=(G, P, N))
S = pt.matrix("S", shape=(N, N))
T = pt.tensor3("T", shape=(G, N, N))
x = X[:, :1]

#: mean -> number of rows that are left
MEANS = {
    "zero": (pt.zeros(N), N),
    "constant": (pt.as_tensor(X[:, :N]), N),
    "vector": (a, 1 + N),
    "scalar": (pt.full((R, N), c), 1 + N),
    "broadcast entry": (pt.broadcast_to(a[:1], (R, N)), 1 + N),
    "design": (X @ B, P + N),
    "intercept and design": (a + X @ B, 1 + P + N),
    "column times vector": (x * a, 1 + N),
    "integers": (np.arange(R)[:, None] * a, 1 + N),
    "broadcast rows": (pt.alloc(pt.as_tensor(X[:, 0]) * c, N, R).T, 1 + N),
    "difference over a scale": ((a - X @ B) / c, 1 + P + N),
    "stacked columns": (pt.stack([c + X[:, 0] * c, X @ B[:, 0]], axis=-1), 1 + P + N),
    "stacked rows": (pt.stack([X[:, 1] * c, X @ B[:, 0]]).T, P + N),
    "sum of products": ((X[:, :, None] * B).sum(axis=1), P + N),
    "columns of a product": ((X @ B)[:, ::-1], P + N),
    "by a vector": (pt.outer(X @ B[:, 0], a), P + N),
    "indexed": (M[INDEX], G * (1 + N)),
    "indexed twice": (M[INDEX] + M[OTHER_INDEX] * c, 8 * (1 + N)),
    "negative index": (M[INDEX - G], G * (1 + N)),
    "function of indexed": (pt.exp(M)[INDEX] + pt.tanh(M[INDEX]), G * (1 + N)),
    "slope by group": (M[INDEX] + K[INDEX, 0] * x, G * (2 + N)),
    "over a scale by group": (x / pt.exp(M[INDEX]), G * (1 + N)),
    "specified shape": (pt.specify_shape(M[INDEX], (R, N)), G * (1 + N)),
    "cast": ((x * a).astype("float64"), 1 + N),
}

PARAMETERS = [a, c, B, M, K, S, T]


def parameters(rng, dtype="float64"):
    """A value for each parameter."""
    values = {var: rng.normal(size=var.type.shape).astype(dtype) for var in (a, c, B, M, K)}
    return values | {S: spd(rng, n=N), T: spd(rng, G, n=N)}


def density(mean, matrix=S, value=Y, param="cov"):
    """The total log-density of constant rows, and whether the matrices are positive definite."""
    logp, posdef = mvnormal_logp(value, mean, matrix, param)
    return [logp.sum(), posdef.all()]


def used(graph, values):
    """The `values` of the inputs of `graph`."""
    inputs = set(pytensor.graph.traversal.explicit_graph_inputs(graph))
    return {var: value for var, value in values.items() if var in inputs}


def rows_left(graph) -> list[int]:
    """The number of rows of each density."""
    nodes = {var.owner for var in pytensor.graph.traversal.ancestors(graph) if var.owner}
    return [
        int(np.prod(node.inputs[0].type.shape[:-1]))
        for node in nodes
        if isinstance(node.op, InvQuadLogdet | MvNormalLogp)
    ]


def assert_compressed(graph, values, rows, **kwargs):
    """`rows` rows are left, and the numbers are those of all rows."""
    values = used(graph, values)
    new = rewritten(graph)
    assert rows_left(new) == [rows]
    assert [v.type.dtype for v in new] == [v.type.dtype for v in graph]
    assert same_graphs(rewritten(new), new)
    assert_same_numbers(graph, new, values, **kwargs)


def reasons(graph) -> set[str]:
    """Why the rule declines."""
    with recording() as events:
        rewritten(graph)
    return {
        event.reason
        for event in events
        if isinstance(event, Declined) and event.rule == "constant_rows_are_compressed"
    }


def test_exact_graph(rng):
    """For a constant mean: the R of the rows, and their number as a weight.

    Below its diagonal is a number that vanishes, not zero, whose product with infinity is NaN.
    """
    triangle = np.linalg.qr(Y, mode="r")
    triangle[1, 0] = np.sqrt(np.finfo("float64").tiny)
    quaddist, half_logdet, posdef = inv_quad_logdet(triangle, S)
    norm = -0.5 * np.log(2 * np.pi) * R * N
    total = (-0.5 * quaddist - np.array([R / N]) * half_logdet).sum() + norm
    assert_rewrites_to(density(np.zeros(N)), [total, posdef.all()], {S: spd(rng, n=N)})


INFINITE = {
    "vector": (a, S, a, 0),
    "vector, last": (a, S, a, N - 1),
    "all of a scalar": (pt.full((R, N), c), S, c, ()),
    "intercept next to a design": (a + X @ B, S, a, 0),
    "slope": (a + X @ B, S, B, (1, 0)),
    "slope of a column with zeros": (a + np.maximum(X, 0) @ B, S, B, (1, 0)),
    "indexed": (M[INDEX], S, M, (2, 0)),
    "indexed, in groups": (M[INDEX], T[INDEX], M, (2, 1)),
    "of some rows of a group": (a + M[OTHER_INDEX], T[INDEX], M, (1, 0)),
    "group without rows": (M[INDEX % 2], T[INDEX % 2], M, (3, 0)),
}


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 1e200], ids=str)
@pytest.mark.parametrize("name", INFINITE)
def test_infinite_parameter(rng, name, number):
    """Minus infinity or NaN, whatever the rows give, for any signs of the covariances."""
    mean, matrix, parameter, position = INFINITE[name]
    for param in ("cov", "chol"):
        graph = density(mean, matrix, param=param)
        new = rewritten(graph)
        assert max(rows_left(new)) < R
        values = used(graph, parameters(rng))
        values[parameter] = np.array(values[parameter])
        values[parameter][position] = number
        with np.errstate(all="ignore"):
            for got, want in zip(evaluate(new, values), evaluate(graph, values), strict=True):
                assert_close(got, want, "value")


@pytest.mark.parametrize("name", MEANS)
def test_mean(rng, name):
    mean, rows = MEANS[name]
    assert_compressed(density(mean), parameters(rng), rows)


@pytest.mark.parametrize("param", ["cov", "chol", "tau"])
def test_parametrizations(rng, param):
    matrix = pt.linalg.cholesky(S) if param == "chol" else S
    assert_compressed(density(a + X @ B, matrix, param=param), parameters(rng), 1 + P + N)


#: batch of matrices, one for each row -> number of groups that have rows
GATHERED = {
    "batch": (T[INDEX], G),
    "negative index": (T[INDEX - G], G),
    "some groups have no rows": (T[INDEX % 2 * 2 + 1], 2),
    "stack": (pt.stack([T[2], S, S + T[1], T[0]])[INDEX], G),
    "scaled": (pt.exp(c) * T[INDEX], G),
    "scaled by group": (pt.exp(M[:, 0])[INDEX][:, None, None] * T[INDEX], G),
    "plus a shared one": (T[INDEX] + S, G),
    "product": (T[INDEX] @ T[INDEX].mT, G),
    "one matrix": (S[None], 1),
}


@pytest.mark.parametrize("name", GATHERED)
def test_matrix_by_group(rng, name):
    matrix, groups = GATHERED[name]
    assert_compressed(density(a, matrix), parameters(rng), groups * (1 + N), condition=1e2)


@pytest.mark.parametrize("param", ["chol", "tau"])
def test_parametrizations_by_group(rng, param):
    matrices = pt.linalg.cholesky(T) if param == "chol" else T
    graph = density(M[INDEX], matrices[INDEX], param=param)
    assert_compressed(graph, parameters(rng), G * (1 + N))


def test_means_and_matrices_by_different_indices(rng):
    """Each pair of indices is a cell."""
    graph = density(M[OTHER_INDEX], T[INDEX])
    cells = max(len(set(OTHER_INDEX[INDEX == g])) for g in range(G))
    assert_compressed(graph, parameters(rng), G * cells * (1 + N))


#: mean of rows that share a covariance -> how many gathers are left
MEANS_OF_GROUPS = {
    "all groups in order": (M[INDEX], 0),
    "and a shared design": (M[INDEX] + X @ B, 0),
    "over a scale by group": (x / pt.exp(M[INDEX]), 0),
    "one mean of many": (pt.broadcast_to(M[[2]], (R, N)), 0),
    "some groups, in another order": (M[(3 - INDEX) % 3], 1),
    "groups within groups": (M[OTHER_INDEX], 1),
}


@pytest.mark.parametrize("name", MEANS_OF_GROUPS)
def test_means_of_groups_are_not_copied(rng, name):
    """Where the rows of a covariance share a mean, both are batches; other rows gather."""
    mean, gathers = MEANS_OF_GROUPS[name]
    graph = density(mean, T[INDEX])
    new = rewritten(graph)
    ancestors = pytensor.graph.traversal.ancestors(new)
    ops = [var.owner.op for var in ancestors if var.owner is not None]
    assert sum(isinstance(op, AdvancedSubtensor) for op in ops) == gathers
    assert_same_numbers(graph, new, used(graph, parameters(rng)))


def test_ragged_groups(rng):
    """A group of one row, fewer rows than columns, many rows: each has its own weight."""
    index = np.repeat([2, 0, 3, 1], [1, 2, 30, 7])
    graph = density(M[index] + X @ B, T[index])
    assert_compressed(graph, parameters(rng), G * (1 + P + N))


@pytest.mark.parametrize(
    "design",
    [
        np.ones((R, P)),
        np.zeros((R, P)),
        np.column_stack([x, 2 * x, x - 1]),
        np.eye(P)[INDEX % P],
        1e8 * X,
        X * [1, 1e-8, 1e8],
    ],
    ids=["ones", "zeros", "collinear", "dummies", "large", "badly scaled"],
)
def test_designs(rng, design):
    graph = density(a + design @ B)
    values = used(graph, parameters(rng))
    scale = np.abs(design).max(axis=0, keepdims=True).T
    values[B] = values[B] / np.where(scale > 0, scale, 1)
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{cov}": 1}
    for got, want in zip(evaluate(new, values), evaluate(graph, values), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10)
    grads = [
        evaluate(pt.grad(outputs[0], [a, B, S], disconnected_inputs="ignore"), values)
        for outputs in (new, graph)
    ]
    for got, want in zip(*grads, strict=True):
        size = np.maximum(np.abs(want).max(axis=-1, keepdims=True), 1e-12)
        np.testing.assert_allclose(got / size, want / size, rtol=1e-9, atol=1e-9)


def test_equal_columns_count_once(rng):
    assert_compressed(density(pt.as_tensor(Y) * c), parameters(rng), N)


def test_densities_get_equally_many_rows(rng):
    """So that they can be re-rolled."""
    sizes = [5, 9, 30]
    totals = [density(M[g], T[g], Y[:size])[0] for g, size in enumerate(sizes)]
    graph = [pt.add(*totals)]
    new = rewritten(graph)
    assert rows_left(new) == [3 * (1 + N)]
    assert_same_numbers(graph, new, used(graph, parameters(rng)))


def test_one_row_of_many_means(rng):
    """A mean that is too rich: as many cells as rows."""
    index = np.arange(R) // 2
    means = pt.matrix("means", shape=(R // 2, N))
    assert_declines(density(means[index])[:1])


def test_more_columns_than_rows():
    design = RNG.normal(size=(4, 6))
    coefficients = pt.matrix("coefficients", shape=(6, N))
    assert_declines(density(design @ coefficients, value=Y[:4])[:1])


@pytest.mark.parametrize("time", ["int8", "int64", "float32", "float64"])
@pytest.mark.parametrize("floatX", ["float32", "float64"])
def test_dtypes(rng, floatX, time):
    """Fractions do not fit into integers; the dtype of the result stays what it was."""
    with pytensor.config.change_flags(floatX=floatX):
        b = pt.vector("b", shape=(N,), dtype=floatX)
        s = pt.matrix("s", shape=(N, N), dtype=floatX)
        graph = density(np.arange(R, dtype=time)[:, None] * b, s, Y.astype(floatX))
        values = {b: 0.1 * rng.normal(size=N).astype(floatX), s: spd(rng, n=N).astype(floatX)}
        new = rewritten(graph)
        assert rows_left(new) == [1 + N]
        assert [v.type.dtype for v in new] == [v.type.dtype for v in graph]
        for quantity, one, other in (
            ("value", new, graph),
            ("gradient", gradient(new, list(values)), gradient(graph, list(values))),
        ):
            for got, want in zip(evaluate(one, values), evaluate(other, values), strict=True):
                scale = max(1.0, np.abs(want).max())
                assert_close(got / scale, want / scale, quantity, floatX, condition=10)


def test_integer_value(rng):
    value = RNG.integers(0, 9, size=(R, N))
    assert_compressed(density(a, value=value.astype("float64")), parameters(rng), 1 + N)


@pytest.mark.parametrize("bad", ["indefinite", "singular", "nan"])
@pytest.mark.parametrize("grouped", [False, True])
def test_bad_matrix(rng, bad, grouped):
    values = parameters(rng)
    matrix = {
        "indefinite": np.array([[1.0, 2], [2, 1]]),
        "singular": np.zeros((2, 2)),
        "nan": np.full((2, 2), np.nan),
    }[bad]
    values[S] = matrix
    values[T][1] = matrix
    graph = density(a, T[INDEX] if grouped else S)
    values = used(graph, values)
    new = rewritten(graph)
    assert our_ops(new) == {"InvQuadLogdet{cov}": 1}
    for got, want in zip(evaluate(new, values), evaluate(graph, values), strict=True):
        np.testing.assert_array_equal(got, want)


def test_bad_matrix_without_rows(rng):
    """Nobody asks whether the matrix of a group without rows is positive definite."""
    values = parameters(rng)
    values[T][2] = -np.eye(N)
    index = np.where(INDEX == 2, 0, INDEX)
    assert_compressed(density(a, T[index]), values, 3 * (1 + N), wrt=[a])


def test_nan_parameter(rng):
    values = parameters(rng) | {a: np.array([np.nan, 0.0])}
    graph = density(a)
    [total, posdef] = evaluate(rewritten(graph), used(graph, values))
    assert np.isnan(total)
    assert posdef


def test_index_out_of_bounds(rng):
    graph = density(M[INDEX + 1])
    for outputs in (graph, rewritten(graph)):
        with pytest.raises(IndexError):
            evaluate(outputs, used(graph, parameters(rng)))


def near_misses():
    """graph, why"""
    rows = pt.matrix("rows", shape=(R, N))
    index = pt.vector("index", dtype="int64", shape=(R,))
    nan = np.where(np.arange(R)[:, None] == 3, np.nan, X[:, :1])
    logp, posdef = mvnormal_logp(Y, a, S)
    product = "a product of two terms that differ from row to row"
    return {
        "tanh": (density(pt.tanh(X @ B)), "not linear in constant rows: Tanh"),
        "power": (density((x * a) ** 2), "not linear in constant rows: Pow"),
        "product of rows": (density((x * c) * (X @ B)), product),
        "a mean for each row": (
            density(rows),
            "not linear in constant rows: rows, which is no constant",
        ),
        "index that varies": (
            density(M[index]),
            "not linear in constant rows: AdvancedSubtensor{idx_list=(0,)}",
        ),
        "integer part": (
            density((x * a).astype("int64").astype("float64")),
            "not linear in constant rows: Cast{float64}",
        ),
        "value not finite": (density(a, value=nan * Y), "the value is not finite"),
        "design not finite": (density(nan * a), "a constant of the mean is not finite"),
        "data that may change": (
            density(a, value=pytensor.shared(Y, name="y")),
            "the value may change (pm.Data)",
        ),
        "design that may change": (
            density(pytensor.shared(X, name="X", shape=(R, P)) @ B),
            "not linear in constant rows: X, which is no constant",
        ),
        "log-densities of rows": ([logp, posdef.all()], "log-densities row by row are used"),
        "weighted": ([(logp * X[:, 0]).sum()], "log-densities row by row are used"),
        "positive definite for some": (
            [logp.sum(), posdef.any()],
            "log-densities row by row are used",
        ),
        "matrix by an index that varies": (
            density(a, T[index]),
            "the covariance of each row depends on data or parameters",
        ),
        "rows of two designs": (
            density(pt.concatenate([X[:9] @ B, X[9:] @ (c * B)])),
            "not linear in constant rows: Join{axis=0}",
        ),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            graph, reason = case
            assert any("Logp" in op for op in our_ops(rewritten(graph)))
            assert reason in reasons(graph)


def test_vectors_and_latent_rows_are_no_near_misses():
    latent = pt.matrix("latent", shape=(R, N))
    assert not reasons(density(a, value=latent))
    assert not reasons(density(a, value=Y[0]))
    scales = pt.matrix("scales", shape=(R, N))
    assert not reasons(density(a, T[INDEX] * pt.exp(scales)[:, :, None]))
    assert_declines(density(a, value=latent)[:1])


def test_explain():
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=N)
        pm.MvNormal("obs", mu, cov=np.eye(N) + mu[0] ** 2, observed=Y)
    events = [event for event, _ in mvn.explain(model).fired]
    [fired] = [event for event in events if event.rule == "constant_rows_are_compressed"]
    assert fired.detail == "obs: 40 rows -> 3"


def test_rows_chosen_by_a_mask(rng):
    """Of the mean, or of the covariances: true and false are no groups."""
    mask = np.ones(R, bool)
    rows, covs = pt.matrix("rows", shape=(R, N)), pt.tensor3("covs", shape=(R, N, N))
    assert_declines(density(rows[mask])[:1], {rows: rng.normal(size=(R, N)), S: spd(rng, n=N)})
    logp = density(a, covs[mask])[0]
    assert_declines([logp], {a: rng.normal(size=N), covs: spd(rng, R, n=N)})
