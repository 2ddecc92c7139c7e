import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.traversal import ancestors

from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.harness import (
    PIPELINE_MODE,
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
from tests.structure.contract import Case, StructureContract, spd_input, symmetric

block_diag, kron = pt.linalg.block_diag, pt.linalg.kron


class TestUnequalBlocks(StructureContract):
    params = ("cov", "tau", "chol")
    sizes = (2, 3, 2, 1)

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        blocks, values = [], {}
        for i, n in enumerate(self.sizes):
            # one bad block spoils the whole
            block_sign = sign if i == 1 else 1
            block, value = spd_input(
                rng, f"S{i}", n, batch=batch, dtype=dtype, condition=condition, sign=block_sign
            )
            blocks.append(block)
            values |= value
        return Case(block_diag(*blocks), values)


class TestEqualBlocks(TestUnequalBlocks):
    sizes = (3, 3, 3)


class TestOneByOneBlocks(TestUnequalBlocks):
    sizes = (1, 1)


class TestBlocksWithJitter(StructureContract):
    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        options = {"batch": batch, "dtype": dtype, "condition": condition}
        A, a = spd_input(rng, "A", 2, sign=sign, **options)
        B, b = spd_input(rng, "B", 3, **options)
        d = pt.tensor("d", shape=(*batch, 5), dtype=dtype)
        noise = d[..., None] * pt.eye(5, dtype=dtype) + 1e-9 * np.eye(5, dtype=dtype)
        values = {d: rng.uniform(0, 1 / condition, size=(*batch, 5)).astype(dtype)}
        return Case(block_diag(A, B) + noise, {**values, **a, **b})


class TestKronWithIdentity(StructureContract):
    params = ("cov", "tau", "chol")
    test_batch_of_matrices = None

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        block, values = spd_input(rng, "S", 3, dtype=dtype, condition=condition, sign=sign)
        return Case(kron(pt.eye(4, dtype=dtype), block), values)


class TestIdentityOnTheRight(TestKronWithIdentity):
    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        block, values = spd_input(rng, "S", 3, dtype=dtype, condition=condition, sign=sign)
        return Case(kron(block, pt.eye(4, dtype=dtype)), values)


class TestScaledAssignments(StructureContract):
    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        options = {"batch": batch, "dtype": dtype, "condition": condition}
        A, a = spd_input(rng, "A", 2, **options)
        B, b = spd_input(rng, "B", 3, **options)
        s = pt.scalar("s", dtype=dtype)
        matrix = pt.zeros((*batch, 5, 5), dtype=dtype)
        matrix = matrix[..., :2, :2].set(A)[..., 2:, 2:].set(B)
        return Case(s * matrix, {s: np.asarray(1.3 * sign, dtype=dtype), **a, **b})


class TestConstant(StructureContract):
    """A constant with three interleaved blocks."""

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1):
        constant = np.zeros((*batch, 6, 6))
        for i in range(3):
            constant[..., i::3, i::3] = spd(rng, *batch, n=2, condition=condition)
        s = pt.scalar("s", dtype=dtype)
        return Case(s * constant.astype(dtype), {s: np.asarray(1.3 * sign, dtype=dtype)})


def one_hot(k):
    return [np.diag(row) for row in np.eye(k)]


def summed(how, covs, k):
    terms = [kron(indicator, covs[i]) for i, indicator in enumerate(one_hot(k))]
    match how:
        case "stack":
            return pt.stack(terms).sum(axis=0)
        case "sum":
            return sum(terms)
        case "plus":
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            return total
        case "add":
            return pt.add(*terms)


@pytest.mark.parametrize("k", [2, 5, 12])
@pytest.mark.parametrize("how", ["stack", "sum", "plus", "add"])
def test_sum_of_krons(rng, how, k):
    delta, L = pt.vector("delta", shape=(3 * k,)), pt.tensor("L", shape=(k, 3, 3))
    covs = L @ L.mT + pt.eye(3)
    graph = list(inv_quad_logdet(delta, summed(how, covs, k)))
    new = rewritten(graph)
    [node] = {var.owner.inputs[0].owner for var in new if var.owner.inputs}
    assert our_ops(new) == {"InvQuadLogdet{cov}": 1}
    assert node.inputs[1].type.shape[-2:] == (3, 3)
    values = {delta: rng.normal(size=3 * k), L: rng.normal(size=(k, 3, 3))}
    assert_same_numbers(graph, new, values, condition=1e2)


@pytest.mark.parametrize("k", [3, 12])
def test_indicators_on_the_right(rng, k):
    """Each block takes every k-th row."""
    delta, L = pt.vector("delta", shape=(2 * k,)), pt.tensor("L", shape=(k, 2, 2))
    covs = L @ L.mT + pt.eye(2)
    terms = [kron(covs[i], indicator) for i, indicator in enumerate(one_hot(k))]
    values = {delta: rng.normal(size=2 * k), L: rng.normal(size=(k, 2, 2))}
    for matrix in (sum(terms), pt.stack(terms).sum(axis=0), sum(terms) + 1e-3 * np.eye(2 * k)):
        graph = list(inv_quad_logdet(delta, matrix))
        new = rewritten(graph)
        assert our_ops(new) == {"InvQuadLogdet{cov}": 1}
        assert not [v for v in ancestors(new) if getattr(v.type, "shape", ()) == (2 * k, 2 * k)]
        assert_same_numbers(graph, new, values, condition=1e2)


@pytest.mark.parametrize("form", [block_diag, lambda A, B: kron(A, pt.eye(2))])
def test_not_symmetric_block(rng, form):
    """Only the lower triangle of a block is in the lower triangle of the matrix."""
    delta, A, B = pt.vector("delta", shape=(4,)), pt.matrix(shape=(2, 2)), pt.matrix(shape=(2, 2))
    graph = list(inv_quad_logdet(delta, form(A, B)))
    skewed = np.array([[2.0, 5.0], [1.0, 3.0]])
    values = {delta: rng.normal(size=4), A: skewed, B: spd(rng, n=2)}
    assert_same_numbers(graph, rewritten(graph), values, condition=1e2)


def test_semidefinite_block(rng):
    delta, a = pt.vector("delta", shape=(4,)), pt.vector("a", shape=(2,))
    graph = list(inv_quad_logdet(delta, block_diag(pt.outer(a, a), np.eye(2))))
    for outputs in (rewritten(graph), graph):
        quaddist, _, posdef = evaluate(outputs, {delta: rng.normal(size=4), a: np.ones(2)})
        assert np.isnan(quaddist)
        assert not posdef


def test_sum_of_weighted_krons_in_another_order(rng):
    delta, c = pt.vector("delta", shape=(6,)), pt.scalar("c")
    a, b = pt.matrix("a", shape=(2, 2)), pt.matrix("b", shape=(2, 2))
    A, B = a + a.mT, b + b.mT
    matrix = c * kron(np.diag([0, 2.0, 0]), A) + kron(np.diag([1.0, 0, 3.0]), B)
    blocks = pt.stack([B, A * c, B])
    outputs = inv_quad_logdet(
        delta.reshape((3, 2)), np.array([1.0, 2.0, 3.0])[:, None, None] * blocks
    )
    expected = [outputs[0].sum(axis=-1), outputs[1].sum(axis=-1), outputs[2].all(axis=-1)]
    values = {delta: rng.normal(size=6), c: 1.3, a: spd(rng, n=2), b: spd(rng, n=2)}
    graph = list(inv_quad_logdet(delta, matrix))
    assert our_ops(rewritten(graph)) == our_ops(rewritten(expected))
    assert_same_numbers(graph, rewritten(graph), values, condition=1e2)
    assert_same_numbers(graph, expected, values, condition=1e2)


def test_exact_graph(rng):
    x, mu = pt.matrix("x", shape=(4, 7)), pt.vector("mu", shape=(7,))
    A, B, C = (
        pt.matrix("A", shape=(2, 2)),
        pt.matrix("B", shape=(3, 3)),
        pt.matrix("C", shape=(2, 2)),
    )
    # rows 0, 1 and 5, 6 are not one slice
    pairs = np.array([[0, 1], [5, 6]])
    small = mvnormal_logp(x[..., pairs], mu[..., pairs], pt.stack([A, C]))
    large = mvnormal_logp(x[..., 2:5].reshape((4, 1, 3)), mu[2:5].reshape((1, 3)), B)
    expected = [
        small[0].sum(axis=-1) + large[0].sum(axis=-1),
        pt.and_(small[1].all(axis=-1), large[1].all(axis=-1)),
    ]
    values = {x: rng.normal(size=(4, 7)), mu: rng.normal(size=7)}
    values |= {A: spd(rng, n=2), B: spd(rng, n=3), C: spd(rng, n=2)}
    assert_rewrites_to(
        list(mvnormal_logp(x, mu, block_diag(A, B, C))), expected, values, condition=1e2
    )


def test_one_block_many_times(rng):
    x, mu, S = pt.vector("x", shape=(6,)), pt.vector("mu", shape=(6,)), pt.matrix("S", shape=(3, 3))
    logp, posdef = mvnormal_logp(x.reshape((2, 3)), mu.reshape((2, 3)), S)
    values = {x: rng.normal(size=6), mu: rng.normal(size=6), S: spd(rng, n=3)}
    for matrix in (block_diag(S, S), kron(pt.eye(2), S)):
        assert_rewrites_to(
            list(mvnormal_logp(x, mu, matrix)),
            [logp.sum(axis=-1), posdef.all(axis=-1)],
            values,
            condition=1e2,
        )


def test_identity_between_two(rng):
    delta = pt.vector("delta", shape=(24,))
    a, b = pt.matrix("a", shape=(2, 2)), pt.matrix("b", shape=(3, 3))
    A, B = symmetric(a), symmetric(b)
    graph = list(inv_quad_logdet(delta, kron(kron(A, 2 * pt.eye(4)), B)))
    new = rewritten(graph)
    # what is left is a Kronecker product again
    assert our_ops(new) == {"InvQuadLogdet{cov}": 1}
    values = {delta: rng.normal(size=24), a: spd(rng, n=2), b: spd(rng, n=3)}
    assert_same_numbers(graph, new, values, condition=1e2)


def test_constant_with_blocks_of_several_sizes(rng):
    n = 40
    order = rng.permutation(n)
    constant = np.zeros((n, n))
    for rows in np.split(order, [10, 15, 30]):
        constant[np.ix_(rows, rows)] = spd(rng, n=len(rows))
    delta, s = pt.vector("delta", shape=(n,)), pt.scalar("s")
    graph = list(inv_quad_logdet(delta, s * constant))
    new = rewritten(graph)
    # sizes 10, 10, 5, 15
    assert our_ops(new) == {"InvQuadLogdet{chol}": 3}
    assert_same_numbers(graph, new, {delta: rng.normal(size=n), s: 1.3}, condition=1e2)


def test_unknown_length(rng):
    """The length of a vector of unknown shape is still checked when the function runs."""
    delta, S = pt.vector("delta"), pt.matrix("S", shape=(3, 3))
    graph = list(inv_quad_logdet(delta, kron(pt.eye(2), S)))
    new = rewritten(graph)
    assert_same_numbers(graph, new, {delta: rng.normal(size=6), S: spd(rng, n=3)}, condition=1e2)
    for length in (5, 7):
        with pytest.raises((AssertionError, ValueError)):
            evaluate(new, {delta: rng.normal(size=length), S: spd(rng, n=3)})


def near_misses():
    delta = pt.vector("delta", shape=(6,))
    S, T = pt.matrix("S", shape=(3, 3)), pt.matrix("T", shape=(3, 3))
    zeros = pt.zeros((6, 6))
    i = pt.iscalar("i")
    return {
        "not square": inv_quad_logdet(
            delta, block_diag(pt.matrix(shape=(2, 4)), pt.matrix(shape=(4, 2)))
        ),
        "unknown sizes": inv_quad_logdet(delta, block_diag(S, pt.matrix())),
        "a row is missing": inv_quad_logdet(
            delta,
            kron(np.diag([1.0, 0, 0]), S[:2, :2]) + kron(np.diag([0, 1.0, 0]), T[:2, :2]),
        ),
        "indicators off the diagonal": inv_quad_logdet(
            delta, kron(np.array([[1.0, 0.5], [0.5, 0]]), S) + kron(np.diag([0, 1.0]), T)
        ),
        "overlap": inv_quad_logdet(
            delta, kron(np.diag([1.0, 0]), S) + kron(np.diag([2.0, 1.0]), T)
        ),
        "plus a full matrix": inv_quad_logdet(
            delta, block_diag(S, T) + pt.matrix("M", shape=(6, 6))
        ),
        "overlapping assignments": inv_quad_logdet(delta, zeros[:3, :3].set(S)[2:5, 2:5].set(T)),
        "a gap": inv_quad_logdet(delta, zeros[:3, :3].set(S)[3:5, 3:5].set(T[:2, :2])),
        "off the diagonal": inv_quad_logdet(delta, zeros[:3, 3:].set(S)[3:, :3].set(T)),
        "ones": inv_quad_logdet(delta, pt.ones((6, 6))[:3, :3].set(S)[3:, 3:].set(T)),
        "unknown rows": inv_quad_logdet(delta, zeros[i:, i:].set(S)[:i, :i].set(T)),
        "filled row by row": inv_quad_logdet(delta, zeros[0].set(delta)[1].set(2.0 * delta)),
        "a stack that is filled": inv_quad_logdet(
            delta[:3], pt.zeros((2, 3, 3))[0].set(S)[1].set(T)
        ),
        "broadcast value": inv_quad_logdet(delta, zeros[:3, :3].set(S)[3:, 3:].set(1.0)),
        "small constant of several sizes": inv_quad_logdet(
            pt.vector(shape=(3,)), np.linalg.cholesky([[2.0, 1, 0], [1, 2, 0], [0, 0, 1]]), "chol"
        ),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)


@pytest.mark.parametrize("k", [2, 5, 12])
def test_thread_model(rng, k):
    """As its author wrote it."""
    indicators = [np.zeros((k, k)) for _ in range(k)]
    for i in range(k):
        indicators[i][i, i] = 1
    with pm.Model() as model:
        L = pm.Normal("L", size=(k, 3, 3))
        covs = pytensor.scan(lambda x: x @ x.T, sequences=[L], return_updates=False)
        big_cov2 = pt.stack([pt.linalg.kron(indicators[i], covs[i]) for i in range(k)]).sum(axis=0)
        pm.MvNormal("obs", mu=0, cov=big_cov2, observed=rng.normal(size=3 * k))
    logp = rewritten([model.logp()])
    assert our_ops(logp) == {"MvNormalLogp{cov}": 1}
    fn = model.compile_dlogp(mode=PIPELINE_MODE).f
    assert not [
        var
        for node in fn.maker.fgraph.apply_nodes
        for var in node.outputs
        if getattr(var.type, "shape", ())[-2:] == (3 * k, 3 * k)
    ]
    # products of random square matrices are badly conditioned
    assert_model_agrees(model, rtol=1e-6)


def test_block_diag_model(rng):
    with pm.Model() as model:
        scale = pm.LogNormal("scale", shape=3)
        mu = pm.Normal("mu", shape=(3, 2))
        covs = [scale[i] * spd(rng, n=2) for i in range(3)]
        cov = block_diag(*covs)
        pm.MvNormal("x", mu.ravel(), cov=cov, observed=rng.normal(size=(5, 6)))
        pm.MvNormal("y", mu.ravel(), chol=pt.linalg.cholesky(cov))
    assert_model_agrees(model)
