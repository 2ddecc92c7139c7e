"""Batching single ops: each in the middle of a sum of isomorphic terms."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.traversal import ancestors
from pytensor.raise_op import Assert

from tests.harness import (
    PIPELINE_MODE,
    assert_close,
    assert_same_numbers,
    evaluate,
    gradient,
    ifelse,
    rewritten,
)

ROOM = np.arange(12.0).reshape(3, 4) / 7


def spd_of(v):
    return pt.outer(v, v) + np.eye(4)


def cube_of(v):
    return v[:, None, None] * pt.sin(v[:, None]) * pt.cos(v)


def block(i):
    """Rows and columns, of unequal rank."""
    return np.array([[i % 3], [(i + 1) % 3]]), np.array([(i + 1) % 4, i % 4])


def around(indices):
    first, second = indices
    return first, slice(None), second


SHARED = pytensor.shared(np.cos(np.arange(16.0).reshape(4, 4)), shape=(None, None))
SHARED3 = pytensor.shared(np.cos(np.arange(64.0).reshape(4, 4, 4)), shape=(None, None, None))

#: name -> an op applied to a vector of length 4 that is `x[i]`
OPS = {
    "reshape": lambda v, i: v.reshape((2, 2)).sum(0),
    "alloc": lambda v, i: pt.alloc(v[0], 3) * v[1],
    "broadcast_to": lambda v, i: pt.broadcast_to(v, (3, 4)) * ROOM,
    "transpose": lambda v, i: pt.outer(v, 2 * v).T @ v,
    "set one": lambda v, i: v[1].set(2.0 * v[0]),
    "set a constant": lambda v, i: v[1].set(3.0),
    "set in a constant": lambda v, i: pt.zeros(4)[2].set(v[0]),
    "increment a slice": lambda v, i: v[1:].inc(v[0]),
    "set a gather": lambda v, i: v[np.array([0, 2])].set(3 * v[2:]),
    "increment a gather": lambda v, i: v[np.array([0, 2, 2])].inc(v[1]),
    "set a diagonal": lambda v, i: pt.zeros((4, 4))[np.arange(4), np.arange(4)].set(v),
    "gather": lambda v, i: v[np.array([3, 0, 0])],
    "mask": lambda v, i: v[np.array([True, False, True, True])],
    "set by a mask of a matrix": lambda v, i: pt.outer(v, v)[np.eye(4, dtype=bool)].set(v),
    "diag of a vector": lambda v, i: pt.diag(v) @ v,
    "diag of a matrix": lambda v, i: pt.diag(pt.outer(v, v) * 2),
    "eye": lambda v, i: pt.eye(4) * v[0] + v,
    "kron": lambda v, i: pt.linalg.kron(pt.outer(v, v)[:2, :2], np.eye(2)),
    "block_diag": lambda v, i: pt.linalg.block_diag(pt.outer(v, v), np.eye(2)),
    "softmax": lambda v, i: pt.special.softmax(v),
    "cumsum": lambda v, i: pt.cumsum(v),
    "cumsum of all": lambda v, i: pt.cumsum(pt.outer(v, v)),
    "max": lambda v, i: pt.max(pt.outer(v, v), axis=1),
    "argmax": lambda v, i: pt.argmax(v) * v,
    "sort": lambda v, i: pt.sort(v) * ROOM[1],
    "dot of vectors": lambda v, i: v @ (2 * v),
    "matrix times vector": lambda v, i: ROOM @ v,
    "matrix times matrix": lambda v, i: ROOM @ pt.outer(v, v),
    "cholesky": lambda v, i: pt.linalg.cholesky(spd_of(v)),
    "solve": lambda v, i: pt.linalg.solve(spd_of(v), v),
    "solve, constant matrix": lambda v, i: pt.linalg.solve(np.eye(4) + 0.1, v),
    "det": lambda v, i: pt.linalg.det(spd_of(v)),
    "eigh": lambda v, i: pt.linalg.eigh(spd_of(v) + np.diag(np.arange(4.0)))[0],
    "join": lambda v, i: pt.concatenate([v, np.ones(2), 2 * v]),
    "make_vector": lambda v, i: pt.stack([v[0], v[3] * v[1], 1.0]),
    "split": lambda v, i: pt.split(v, [1, 3])[1],
    "power with different integers": lambda v, i: (v**2) ** i,
    "specify_shape": lambda v, i: pt.specify_shape(v, (4,)),
    "assert": lambda v, i: Assert("finite")(v, pt.all(pt.isfinite(v))),
    "shape": lambda v, i: v / v.shape[0],
    "different shapes": lambda v, i: pt.alloc(v[0], i + 1),
    "different reshapes": lambda v, i: v.reshape((1 + i % 2 * 3, 4 - i % 2 * 3)).sum(0),
    "different axes of sizes": lambda v, i: pt.eye(i + 1) * v[0],
    "different slices": lambda v, i: v[: i % 4 + 1],
    "different masks": lambda v, i: v[np.arange(4) <= i % 4],
    "different gathers": lambda v, i: v[np.array([i % 4, 0])],
    "different entries": lambda v, i: v[i % 4] * v,
    "different entries of rows": lambda v, i: pt.outer(v, v)[:, i % 4],
    "different rows of a slice": lambda v, i: cube_of(v)[1:, i % 4],
    "different entries of a matrix": lambda v, i: pt.outer(v, 2 * v)[i % 4, (i + 1) % 4] * v,
    "one block": lambda v, i: pt.outer(v, 2 * v)[block(0)],
    "different blocks": lambda v, i: pt.outer(v, 2 * v)[block(i)],
    "different blocks of one variable": lambda v, i: SHARED[block(i)] @ v[:2],
    "different blocks of last axes": lambda v, i: cube_of(v)[(slice(None), *block(i))],
    "different blocks around a slice": lambda v, i: cube_of(v)[around(block(i))],
    "different blocks of one, last axes": lambda v, i: SHARED3[(slice(None), *block(i))] @ v[:2],
    "different blocks of one, around": lambda v, i: SHARED3[around(block(i))] @ v,
    "a block around a slice": lambda v, i: cube_of(v)[around(block(0))],
    "a row and columns": lambda v, i: pt.outer(v, 2 * v)[i % 3, np.array([i % 4, 0])],
    "rows and a mask": lambda v, i: pt.outer(v, v)[:, np.arange(4) > 1],
    "a mask of two dimensions": lambda v, i: pt.outer(v, 2 * v)[np.tri(4, dtype=bool)],
    "increment a block": lambda v, i: pt.outer(v, v)[block(0)].inc(v[:2]),
    "set rows where a mask": lambda v, i: pt.outer(v, v)[np.arange(4) > 1].inc(v),
    "different entries set": lambda v, i: v[i % 4].set(1.0),
    "different blocks set": lambda v, i: pt.zeros((6, 4))[i].set(v) @ ROOM.T,
    "scan": lambda v, i: pytensor.scan(
        lambda a, s: s + a**2, sequences=[v], outputs_info=[pt.zeros(())], return_updates=False
    ),
    "ifelse": lambda v, i: ifelse(v[0] > 0, v, 2 * v),
}

#: These stay N terms: no batched form, or nothing of one shape.
STAY = {
    "different shapes",
    "different axes of sizes",
    "different slices",
    "different masks",
    "different entries set",
    "different blocks set",
    "sort",
    "scan",
    "ifelse",
}


def total(name, n, shape=(None, 4)):
    x = pt.matrix("x", shape=(n, *shape[1:]) if shape[1] else shape)
    terms = [pt.sin(pt.tanh(OPS[name](x[i], i))).sum() * pt.cos(x[i]).sum() for i in range(n)]
    return x, pt.add(*terms)


def nodes(graph) -> int:
    return len({var.owner for var in ancestors(graph) if var.owner})


@pytest.mark.parametrize("name", OPS)
def test_size_does_not_grow_with_the_number_of_terms(name):
    sizes = [nodes(rewritten([total(name, n)[1]])) for n in (8, 9)]
    assert (sizes[0] == sizes[1]) == (name not in STAY)


@pytest.mark.parametrize("name", OPS)
def test_unknown_lengths(rng, name):
    x, graph = total(name, 5, shape=(None, None))
    assert_same_numbers(graph, rewritten([graph]), {x: rng.normal(size=(5, 4))}, condition=1e3)


def assert_same_when_compiled(graph, values):
    """The gradient is taken of the rewritten graph, as PyMC does, and rewritten in turn."""
    new = rewritten([graph])
    fn = pytensor.function(list(values), [graph, *gradient(new, values)], mode=PIPELINE_MODE)
    got, *grads = fn(*values.values())
    want, *want_grads = evaluate([graph, *gradient([graph], values)], values)
    assert_close(got, want, "value", condition=1e3)
    for grad, want_grad in zip(grads, want_grads, strict=True):
        assert_close(grad, want_grad, "gradient", condition=1e3)


@pytest.mark.parametrize("name", OPS)
def test_whole_pipeline(rng, name):
    x, graph = total(name, 5)
    assert_same_when_compiled(graph, {x: rng.normal(size=(5, 4))})


#: What a term makes of a vector of its own and one that all terms share
OF_A_SHARED_VECTOR = {
    "join": lambda shared, v: pt.concatenate([shared, v]),
    "make_vector": lambda shared, v: pt.stack([shared[0], v[1], shared[2]]),
    "set": lambda shared, v: shared[1:3].set(v[:2]),
    "increment": lambda shared, v: pt.outer(shared, shared)[np.arange(3), 1:].inc(v[1:]),
    "diag of one": lambda shared, v: pt.linalg.kron(pt.diag(pt.exp(v[:1])), pt.outer(shared, v)),
    "product": lambda shared, v: pt.outer(shared, shared) @ v,
    "solve": lambda shared, v: pt.linalg.solve(spd_of(shared), v),
}


@pytest.mark.parametrize("shares", OF_A_SHARED_VECTOR)
def test_a_batch_of_points_that_all_terms_share(rng, shares):
    x, shared = pt.matrix("x", shape=(5, 4)), pt.vector("shared", shape=(4,))
    terms = [pt.sin(OF_A_SHARED_VECTOR[shares](shared, x[i])).prod() for i in range(5)]
    assert_same_for_a_batch(pt.add(*terms), {x: (5, 4), shared: (4,)}, rng)


# PyTensor cannot run the gradient of a batch of `ifelse`
@pytest.mark.parametrize("name", [name for name in OPS if name != "ifelse"])
def test_a_batch_of_points(rng, name):
    x, graph = total(name, 5)
    assert_same_for_a_batch(graph, {x: (5, 4)}, rng)


def assert_same_for_a_batch(graph, shapes, rng):
    """What is batched already is batched again: variational inference, Pathfinder."""
    [new] = rewritten([graph])
    batched = {x: pt.tensor(shape=(None, *shape)) for x, shape in shapes.items()}
    outputs = vectorize_graph([new, *gradient([new], shapes)], batched)
    values = {x: rng.normal(size=(2, *shape)) for x, shape in shapes.items()}
    got = evaluate(outputs, {batched[x]: value for x, value in values.items()})
    for i in range(2):
        point = {x: value[i] for x, value in values.items()}
        want, *gradients = evaluate([graph, *gradient([graph], point)], point)
        assert_close(got[0][i], want, "value", condition=1e3)
        for one, want_one in zip(got[1:], gradients, strict=True):
            assert_close(one[i], want_one, "gradient", condition=1e3)


def covariances(i, matrix, rows):
    cov = matrix @ matrix.T + 5 * np.eye(5)
    pm.MvNormal(f"y{i}", np.zeros(2), cov=cov[rows[:, None], rows], observed=np.ones(2) * i)


def means(i, matrix, rows):
    sd = pm.HalfNormal(f"s{i}")
    pm.Normal(f"y{i}", matrix[rows[:, None], rows], sd, observed=np.ones((2, 2)) * i)


@pytest.mark.parametrize("term", [covariances, means])
def test_submatrices_in_a_model(rng, term):
    """PyTensor's gradient of a Blockwise'd index of unequal ranks raises when it is compiled."""
    with pm.Model() as model:
        matrix = pm.Normal("matrix", shape=(5, 5))
        for i in range(6):
            term(i, matrix, rng.permutation(5)[:2])
    graph, values = model.logp(), model.value_vars
    point = {value: rng.normal(size=value.type.shape) for value in values}
    assert_same_when_compiled(graph, point)


@pytest.mark.parametrize("of", ["diagonal", "determinant", "trace"])
def test_blocks_in_a_loop(of):
    """PyTensor's rules for a batched ``block_diag`` raise, or give another determinant."""
    a, b = pt.tensor3("a", shape=(4, 2, 2)), pt.tensor3("b", shape=(4, 3, 3))

    def term(i):
        matrix = pt.linalg.block_diag(pt.exp(a[i]), pt.exp(b[i]) + np.eye(3))
        if of == "diagonal":
            return pt.log(pt.diag(matrix)).sum()
        return pt.linalg.det(matrix) if of == "determinant" else pt.diag(matrix @ matrix).sum()

    graph = sum(pt.exp(-(term(i) ** 2)) for i in range(4))
    rng = np.random.default_rng(0)
    values = {a: rng.normal(size=(4, 2, 2)), b: rng.normal(size=(4, 3, 3))}
    new = rewritten([graph])
    assert_same_numbers([graph], new, values)
