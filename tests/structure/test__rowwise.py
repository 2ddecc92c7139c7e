"""Linear functions of rows: which constants they are functions of, and their value at others."""

import numpy as np
import pytensor.tensor as pt
import pytest

from pytensor_mvn_rewrites.structure._rowwise import NotRowwise, linear_in_rows, with_other_rows
from tests.harness import assert_close, evaluate

R, N, P, G = 12, 2, 3, 4
RNG = np.random.default_rng(20261123)
X = RNG.normal(size=(R, P))
Z = RNG.normal(size=(R, P, N))
INDEX = RNG.permutation(np.arange(R) % G)

a, c = pt.vector("a", shape=(N,)), pt.scalar("c")
B, M = pt.matrix("B", shape=(P, N)), pt.matrix("M", shape=(G, N))
PARAMETERS = [a, c, B, M]

#: var, axis of the rows, number of columns, number of indices
LINEAR = {
    "constant": (pt.as_tensor(X), 0, P, 0),
    "constant, rows last": (pt.as_tensor(X.T), 1, P, 0),
    "tensor": (pt.as_tensor(Z), 0, P * N, 0),
    "shared vector": (a[None], 0, 1, 0),
    "design": (X @ B, 0, P, 0),
    "transposed design": (B.T @ X.T, 1, P, 0),
    "vector of products": (X @ B[:, 0], 0, P, 0),
    "product with a vector": (B[:, 0] @ pt.as_tensor(X.T), 0, P, 0),
    "sum": (c + X @ B - a, 0, P + 1, 0),
    "negative": (-(X @ B), 0, P, 0),
    "ratio": ((X @ B) / c, 0, P, 0),
    "product": (c * X * B[:, 0], 0, P, 0),
    "columns": ((X[:, None, :] * B.T).sum(axis=-1), 0, P, 0),
    "one column": ((X @ B)[:, 1], 0, P, 0),
    "reversed columns": ((X @ B)[:, ::-1], 0, P, 0),
    "symbolic column": ((X @ B)[:, pt.argmax(a)], 0, P, 0),
    "joined columns": (pt.join(1, X @ B, X * c), 0, P, 0),
    "gather": (M[INDEX], 0, 1, 1),
    "gathered column": (M[INDEX, 1], 0, 1, 1),
    "gathered transposed": (M[INDEX].T, 1, 1, 1),
    "two indices": (M[INDEX] + M[INDEX[::-1]], 0, 1, 2),
    "slope of a group": (M[INDEX] * X[:, :1], 0, 1, 1),
    "function of a group": (X[:, :1] / pt.exp(M[INDEX] + a), 0, 1, 1),
    "allocated": (pt.alloc(X[:, 0] * c, 5, R), 1, 1, 0),
    "full": (pt.full((R, N), c), 0, 1, 0),
    "cast": ((X @ B).astype("float32").astype("float64"), 0, P, 0),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear(rng, name):
    """With a random matrix Q for each cell: Q f(C) = f(Q C)."""
    var, axis, n_columns, n_indices = LINEAR[name]
    n_rows = 1 if name == "shared vector" else R
    columns, indices = linear_in_rows(var, axis, n_rows)
    assert columns.shape == (n_rows, n_columns)
    assert indices.shape == (n_rows, n_indices)
    cells = np.unique(indices, axis=0, return_inverse=True)[1]
    mixed, representative = [], []
    mixer = np.zeros((0, n_rows))
    for cell in np.unique(cells):
        rows = np.flatnonzero(cells == cell)
        q = np.zeros((2, n_rows))
        q[:, rows] = rng.normal(size=(2, len(rows)))
        mixer = np.vstack([mixer, q])
        mixed.append(q @ columns)
        representative += [rows[0]] * 2
    other = with_other_rows(var, axis, columns, np.vstack(mixed), np.array(representative))
    assert other.type.dtype == var.type.dtype
    values = {p: rng.normal(size=p.type.shape) for p in PARAMETERS}
    [got, dense] = evaluate([other, var], values)
    want = np.moveaxis(np.tensordot(mixer, np.moveaxis(dense, axis, 0), axes=1), 0, axis)
    assert_close(got, want, "gradient", "float32" if name == "cast" else "float64", condition=10)


def test_columns_are_counted_once():
    columns, _ = linear_in_rows(X @ B + X[:, :1] * a + X[:, ::-1] @ B, 0, R)
    assert columns.shape == (R, P)


def test_shared_terms_cost_little():
    """Each variable is visited once, however often it is used."""
    var = X @ B
    for _ in range(60):
        var = var + var
    columns, _ = linear_in_rows(var, 0, R)
    np.testing.assert_array_equal(columns, X)


def test_long_sums():
    """A sum may be too deep for Python's stack: then the answer is no, and not an error."""
    var = sum(c * X[:, :N] for _ in range(5000))
    with pytest.raises(NotRowwise, match="too deep"):
        linear_in_rows(var, 0, R)


NOT_LINEAR = {
    "parameter": (pt.matrix("rows", shape=(R, N)), 0, "rows, which is no constant"),
    "function": (pt.exp(X @ B), 0, "Exp"),
    "product of rows": ((X @ B) * X[:, :N], 0, "a product of two terms"),
    "rows in the denominator": (c / (X @ B), 0, "True_div"),
    "integer part": ((X @ B).astype("int64"), 0, "Cast"),
    "sorted": (pt.sort(X @ B, axis=0), 0, "Sort"),
    "shifted": ((X @ B)[1:], 0, "a part of the rows"),
    "joined rows": (pt.join(0, X @ B, X @ B), 0, "Join"),
    "rows of another length": (X[1:] @ B, 0, "a constant of another length"),
    "truth values": (pt.as_tensor(X > 0), 0, "a constant of another length"),
    "parameters with several axes": (
        M[np.stack([INDEX, INDEX])],
        1,
        "not linear in constant rows",
    ),
    "gathered by two indices": (M[INDEX, INDEX % N], 0, "AdvancedSubtensor"),
    "gathered columns": (B[:, INDEX % N], 1, "AdvancedSubtensor"),
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_not_linear(name):
    var, axis, reason = NOT_LINEAR[name]
    with pytest.raises(NotRowwise, match=reason):
        linear_in_rows(var, axis, R)
