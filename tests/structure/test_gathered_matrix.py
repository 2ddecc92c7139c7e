import numpy as np
import pytensor.tensor as pt
import pytest

from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from pytensor_mvn_rewrites.structure import gathered_matrix
from tests.harness import (
    assert_declines,
    assert_rewrites_to,
    assert_same_numbers,
    evaluate,
    named,
    our_ops,
    rewritten,
    rules_that_fire,
    spd,
)

G, R, N = 3, 7, 2
INDEX = np.array([2, 0, 0, 1, 2, 2, 0])


def symbols():
    """Rows, a mean, and one matrix for each group, symmetric only where the rows are."""
    x, mu = pt.matrix("x", shape=(R, N)), pt.vector("mu", shape=(N,))
    return x, mu, pt.tensor3("S", shape=(G, N, N))


def values(rng, *variables):
    x, mu, S = variables
    return {x: rng.normal(size=(R, N)), mu: rng.normal(size=N), S: spd(rng, G, n=N)}


def test_gather_of_covariances(rng):
    x, mu, S = symbols()
    chol = pt.linalg.cholesky(S, lower=True)
    assert_rewrites_to(
        list(mvnormal_logp(x, mu, S[INDEX])),
        list(mvnormal_logp(x, mu, chol[INDEX], "chol")),
        values(rng, x, mu, S),
        condition=10,
    )


def test_quad_logdet(rng):
    x, mu, S = symbols()
    chol = pt.linalg.cholesky(S, lower=True)
    assert_rewrites_to(
        list(inv_quad_logdet(x - mu, S[INDEX])),
        list(inv_quad_logdet(x - mu, chol[INDEX], "chol")),
        values(rng, x, mu, S),
        condition=10,
    )


@pytest.mark.parametrize("param", ["chol", "tau"])
def test_gather_below_what_is_done_to_each_matrix(rng, param):
    """It comes to the top, where a kernel can take the index."""
    x, mu, S = symbols()
    shared = pt.matrix("shared", shape=(N, N))
    index = pt.lvector("index", shape=(R,))
    given = {**values(rng, x, mu, S), shared: spd(rng, n=N), index: INDEX}
    assert_rewrites_to(
        list(mvnormal_logp(x, mu, shared + pt.exp(0.1 * S[index]), param)),
        list(mvnormal_logp(x, mu, (shared + pt.exp(0.1 * S))[index], param)),
        given,
        condition=1e2,
    )


SURFACE_FORMS = {
    "index of the data": lambda S, i: S[i],
    "scaled below the gather": lambda S, i: (2.0 * S)[i],
    "scaled above the gather": lambda S, i: 2.0 * S[i],
    "sum of two gathers": lambda S, i: S[i] + (S * S)[i],
    "product of gathered factors": lambda S, i: pt.tril(S)[i] @ pt.tril(S)[i].mT,
    "stack of a list": lambda S, i: pt.stack([S[0], S[2], pt.exp(0.1) * S[1]])[i],
}


@pytest.mark.parametrize("name", SURFACE_FORMS)
def test_surface_forms(rng, name):
    x, mu, S = symbols()
    index = pt.lvector("index", shape=(R,))
    given = {**values(rng, x, mu, S), index: INDEX}
    graph = list(mvnormal_logp(x, mu, SURFACE_FORMS[name](S, index)))
    new = rewritten(graph)
    assert our_ops(new) == {"MvNormalLogp{chol}": 1}
    assert_same_numbers(graph, new, given, condition=1e2)


def test_number_of_rows_that_is_not_known(rng):
    x, S, index = pt.matrix("x"), pt.tensor3("S", shape=(G, N, N)), pt.lvector("index")
    graph = list(mvnormal_logp(x, np.zeros(N), S[index]))
    new = rewritten(graph)
    assert our_ops(new) == {"MvNormalLogp{chol}": 1}
    for rows in (1, R):
        given = {x: rng.normal(size=(rows, N)), S: spd(rng, G, n=N), index: INDEX[:rows]}
        assert_same_numbers(graph, new, given, condition=10)


def test_groups_without_rows_do_not_matter(rng):
    """Their matrix need not even be positive definite."""
    x, mu, S = symbols()
    given = values(rng, x, mu, S)
    given[S][1] = -np.eye(N)
    index = np.where(INDEX == 1, 0, INDEX)
    graph = list(mvnormal_logp(x, mu, S[index]))
    new = rewritten(graph)
    assert our_ops(new) == {"MvNormalLogp{chol}": 1}
    logp, posdef = evaluate(new, given)
    assert np.isfinite(logp).all()
    assert posdef.all()
    assert_same_numbers(graph, new, given, wrt=[x, mu], condition=10)


def test_rows_of_a_bad_matrix_are_alone(rng):
    x, mu, S = symbols()
    given = values(rng, x, mu, S)
    given[S][1] = -np.eye(N)
    graph = list(mvnormal_logp(x, mu, S[INDEX]))
    for result in (evaluate(graph, given), evaluate(rewritten(graph), given)):
        np.testing.assert_array_equal(np.isnan(result[0]), INDEX == 1)
        np.testing.assert_array_equal(result[1], INDEX != 1)


def near_misses():
    x, mu, S = symbols()
    index = pt.lvector("index", shape=(R,))
    other = pt.lvector("other", shape=(R,))
    chol = pt.linalg.cholesky(S)
    return {
        "a matrix for each row": mvnormal_logp(x, mu, pt.tensor3("T", shape=(R, N, N))),
        "no more rows than matrices": mvnormal_logp(x[:G], mu, S[index[:G]]),
        "two indices": mvnormal_logp(x, mu, S[index] + S[other]),
        "entries are gathered": mvnormal_logp(x[:G], mu, S[:, [1, 0]]),
        "a gathered Cholesky factor": mvnormal_logp(x, mu, chol[index], "chol"),
        "precision": mvnormal_logp(x, mu, S[index], "tau"),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


LARGE = 18
ROWS = np.array([2, 0, 0, 1, 2, 2, 0])

b, e = pt.matrix("b", shape=(G, LARGE)), pt.vector("e", shape=(G,))
Q = pt.tensor3("Q", shape=(G, 9, 9))

#: What a batch of large matrices is made of -> the batch
LARGE_STRUCTURES = {
    "Diagonal": pt.eye(LARGE) * pt.exp(b)[:, None, :],
    "BlockDiagonal": pt.zeros((G, LARGE, LARGE))[:, :9, :9].set(Q)[:, 9:, 9:].set(2 * Q),
    "Exponential": pt.linalg.expm(e[:, None, None] * np.cov(np.eye(LARGE) + 1)),
}


def large_values(rng, x):
    given = {b: rng.normal(size=(G, LARGE)), e: rng.normal(size=G), Q: spd(rng, G, n=9)}
    return given | {x: rng.normal(size=x.type.shape)}


@pytest.mark.parametrize("structure", LARGE_STRUCTURES)
@pytest.mark.parametrize("index", [ROWS, ROWS - G], ids=["index", "negative index"])
@pytest.mark.parametrize("mean", ["shared", "of each row"])
def test_large_matrices_of_some_structure_are_a_batch(rng, structure, index, mean):
    """No dense Cholesky factor: rows are put together by matrix, and padded."""
    x = pt.matrix("x", shape=(R, LARGE))
    mu = pt.exp(b)[index] if mean == "of each row" else b[0]
    for graph in (
        list(mvnormal_logp(x, mu, LARGE_STRUCTURES[structure][index])),
        list(inv_quad_logdet(x - mu, LARGE_STRUCTURES[structure][index])),
    ):
        found = rules_that_fire(graph)
        assert {structure, "gathered_structures_are_a_batch"} <= found
        assert "matrix_is_gathered" not in found
        assert_same_numbers(graph, rewritten(graph), large_values(rng, x), condition=1e2)


@pytest.mark.parametrize(
    "index",
    [
        pt.lvector("index", shape=(R,)),
        np.array([0] * 6 + [2]),
        np.array([0] * 40 + [1, 2]),
    ],
    ids=["may change", "a matrix without rows", "one group of most rows"],
)
def test_a_batch_by_rows_declines(monkeypatch, index):
    monkeypatch.setattr(gathered_matrix, "MAX_PADDING", 2)
    matrix = LARGE_STRUCTURES["Diagonal"][index]
    x = pt.matrix("x", shape=(matrix.type.shape[0], LARGE))
    assert "gathered_structures_are_a_batch" not in rules_that_fire(
        list(mvnormal_logp(x, b[0], matrix))
    )


def test_ragged_groups_of_a_loop(rng):
    """They stay apart where the stack of their matrices would be dense."""
    terms, given = [], {}
    for g in range(3):
        x, diag = pt.matrix(f"x_{g}", shape=(g + 1, LARGE)), pt.vector(f"d_{g}", shape=(LARGE,))
        terms.append(mvnormal_logp(x, np.zeros(LARGE), pt.diag(pt.exp(diag)))[0].sum())
        given |= {x: rng.normal(size=(g + 1, LARGE)), diag: rng.normal(size=LARGE)}
    graph = [pt.add(*terms)]
    assert "Diagonal" in rules_that_fire(graph)
    assert not our_ops(rewritten(graph))
    assert_same_numbers(graph, rewritten(graph), given)
