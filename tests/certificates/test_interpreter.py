"""The interpreter gives the digits of PyTensor's own evaluation, and more of them."""

import numpy as np
import pytensor.tensor as pt
import pytest
from mpmath import mp, mpf
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.graph.rewriting.utils import rewrite_graph

from tests.certificates import linalg
from tests.certificates.constants import Table, exact_constants
from tests.certificates.interpreter import evaluate, random_digits, relative_difference
from tests.harness import PRE_GRADIENT, gradient, spd
from tests.harness import evaluate as evaluate_in_doubles

x, X, A = pt.vector("x", shape=(4,)), pt.matrix("X", shape=(3, 4)), pt.matrix("A", shape=(4, 4))
B = pt.tensor("B", shape=(2, 4, 4))
S = A @ A.T + pt.eye(4)
L = pt.linalg.cholesky(S)

#: All that has a rule, in graphs of x, X, A and B
GRAPHS = {
    "elementwise": pt.exp(x) * pt.log1p(x**2) / (2 + pt.sqr(x)) - pt.sqrt(x + 9) + pt.abs(x),
    "special": pt.gammaln(x + 9) + pt.sigmoid(x) + pt.softplus(x) + pt.log1mexp(-pt.exp(x)),
    "more special": pt.expm1(x) + pt.tanh(x) + pt.sign(x) * pt.erf(x) + pt.digamma(x + 9),
    "switches": pt.switch(x > 0, x, -x) + pt.maximum(x, 0.5) + pt.minimum(x, 0.1) + x.clip(0, 1),
    "integers": pt.arange(4) / 3 + pt.cast(pt.argsort(x), "float64") + (x > 0).sum(),
    "reductions": X.sum(0) + X.max(axis=0) + X.prod(0) + X.min(0) + X.mean(),
    "cumulative": pt.cumsum(x) + pt.sort(x),
    "log_sum_exp": pt.logsumexp(X, axis=0) + pt.special.softmax(X, axis=0)[1],
    "products": pt.dot(X, x).sum() + (B @ A).sum(0)[1] + pt.outer(x, x)[0],
    "indices": X[1, 1:].sum() + X[:, [0, 0, 2]].sum() + x[::-1] + X[X[:, 0] > -9].sum(0),
    "assignments": x[1:3].set(7.0) + x[[0, 0, 1]].inc(x[:3]) + A[[0, 1], [2, 3]].set(x[:2]).sum(0),
    "shapes": pt.join(0, x, x).reshape((2, 4)).T.sum(1) + pt.stack([x[0], x[1], 2.0, x[3]]),
    "repeats": pt.alloc(x[0], 4) + pt.tile(x[:2], 2) + pt.zeros_like(x) + X.shape[0],
    "diagonals": pt.diagonal(A) + pt.diag(x, 1)[:4, :4].sum(0) + pt.tril(A).sum(0) + pt.eye(4)[0],
    "blocks": pt.linalg.block_diag(A, X).sum(1)[:4] + pt.linalg.kron(A, X).sum(0)[:4],
    "cholesky": L.sum(0) + pt.linalg.cholesky(S, lower=False)[0],
    "triangular": pt.linalg.solve_triangular(L, x, lower=True)
    + pt.linalg.solve_triangular(L.T, X.T, lower=False)[0].sum()
    + pt.linalg.cho_solve((L, True), x),
    "solve": pt.linalg.solve(A, x) + pt.linalg.solve(S, X.T, assume_a="pos").sum(1),
    "inverse": pt.linalg.inv(A).sum(0) + pt.log(pt.linalg.det(S)) + pt.linalg.slogdet(A)[1],
    "eigh": pt.linalg.eigh(S)[0] + (pt.linalg.eigh(S)[1] ** 2 @ x),
    "qr": pt.abs(pt.linalg.qr(S, mode="economic")[1]).sum(0)
    + (pt.linalg.qr(B, mode="economic")[0] ** 2).sum((0, 2)),
    "expm": pt.linalg.expm(0.3 * A).sum(0),
    "batches": pt.linalg.cholesky(B @ B.mT + pt.eye(4)).sum((0, 1)) + pt.linalg.inv(B).sum((0, 1)),
}


def inputs(rng):
    return {var: rng.normal(size=var.type.shape) for var in (x, X, A, B)}


@pytest.mark.parametrize("name", GRAPHS)
def test_same_numbers(name, rng):
    values = inputs(rng)
    graph = [GRAPHS[name]]
    # the eigenvectors of S have no signs, nor has QR
    graph += [] if name in ("eigh", "qr") else gradient(graph, list(values))
    for got, want in zip(evaluate(graph, values), evaluate_in_doubles(graph, values), strict=True):
        np.testing.assert_allclose(got.astype(float), want, rtol=1e-9, atol=1e-9)


def test_all_digits():
    """Of a number that doubles do not hold."""
    third = linalg.exact([mpf(1) / 3] * 4)
    [tripled] = evaluate([x + x + x], {x: third})
    assert abs(tripled[0] - 1) < mpf(10) ** -49
    assert evaluate([pt.exp(x)], {x: third})[0][0] == mp.exp(mpf(1) / 3)


def test_linear_algebra_is_exact(rng):
    """Factors multiply to the matrix, in all digits."""
    a = random_digits(rng, spd(rng, n=5))
    chol, (q, r) = linalg.cholesky(linalg.symmetrized(a, True)), linalg.qr(a)
    eigenvalues, eigenvectors = linalg.eigh(a)
    b = linalg.symmetrized(a, True)
    for product, whole in (
        (chol @ chol.T, b),
        (q @ r, a),
        ((eigenvectors * eigenvalues) @ eigenvectors.T, b),
        (a @ linalg.inverse(a), linalg.identity(5)),
        (linalg.matrix_exponential(a) @ linalg.matrix_exponential(-a), linalg.identity(5)),
    ):
        assert relative_difference(product, whole) < mpf(10) ** -45
    assert abs(linalg.determinant(b) / np.prod(np.diag(chol)) ** 2 - 1) < mpf(10) ** -45


def test_not_positive_definite_is_nan():
    [chol] = evaluate([pt.linalg.cholesky(A)], {A: -np.eye(4)})
    assert all(entry != entry for entry in chol.ravel())


def test_unknown_op():
    class Unknown(Op):
        def make_node(self, x):
            return Apply(self, [x], [x.type()])

        def perform(self, node, inputs, output_storage):
            [output_storage[0][0]] = inputs

    with pytest.raises(NotImplementedError, match="Unknown"):
        evaluate([Unknown()(x)], {x: np.ones(4)})


def test_digits_of_constants(rng):
    """What PyTensor folds stands for the number that it is rounded from."""
    graph = x * pt.log(np.float64(3)) + pt.linalg.inv(pt.constant(spd(rng, n=4)))[0]
    point = {x: rng.normal(size=4)}
    with exact_constants() as table:
        new = rewrite_graph([graph], include=PRE_GRADIENT, clone=True)
    [want], [rounded] = evaluate([graph], point), evaluate(new, point)
    [got] = evaluate(new, point, table)
    assert mpf(10) ** -20 < relative_difference(rounded, want) < mpf(10) ** -14
    assert relative_difference(got, want) < mpf(10) ** -45


def test_a_double_stands_for_one_number():
    table = Table()
    table.add([0.1], [mpf(1) / 10])
    with pytest.raises(ValueError, match="both"):
        table.add([0.1], [mpf(1) / 10 + mpf(10) ** -20])
    with pytest.raises(ValueError, match="is not"):
        table.add([0.2], [mpf(1) / 3])
