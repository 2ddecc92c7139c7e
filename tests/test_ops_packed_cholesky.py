"""``PackedCholesky``: its formulas, its pullback, and its kernels."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import vectorize_graph

from pytensor_mvn_rewrites.ops import (
    PackedCholesky,
    PackedCholeskyPullback,
    packed_cholesky,
)
from tests.harness import REFERENCE_MODE, assert_close, evaluate

PACKED = [0.3, -1.2, 0.5, 2.0, 0.1, 0.7]


@pytest.mark.parametrize("log_diagonal", [False, True])
def test_values(log_diagonal):
    chol, sd, corr_diag, diag = (
        out.eval(mode=REFERENCE_MODE)
        for out in packed_cholesky(np.array(PACKED), 3, log_diagonal=log_diagonal)
    )
    expected = np.zeros((3, 3))
    expected[np.tril_indices(3)] = PACKED
    np.testing.assert_array_equal(diag, np.diag(expected))
    if log_diagonal:
        np.fill_diagonal(expected, np.exp(np.diag(expected)))
    np.testing.assert_array_equal(chol, expected)
    cov = expected @ expected.T
    np.testing.assert_allclose(sd, np.sqrt(np.diag(cov)), rtol=1e-15)
    # the Cholesky factor of the correlations has rows of length 1
    np.testing.assert_allclose(corr_diag, np.diag(expected) / sd, rtol=1e-15)


def weighted(outputs, rng):
    """A scalar that depends on all outputs, and in different ways on each."""
    return sum((rng.normal(size=out.type.shape[-1:]) * pt.sin(out)).sum() for out in outputs)


def graphs(rng, batch=(), dtype="float64", n=3, log_diagonal=True, skip=()):
    """The op and its formula, as scalar functions of the packed vector."""
    packed = pt.tensor("packed", shape=(*batch, n * (n + 1) // 2), dtype=dtype)
    op = PackedCholesky(n=n, log_diagonal=log_diagonal)
    seed = rng.integers(1000)
    totals = []
    for outputs in (op(packed, return_list=True), op.build_inner_graph(packed)):
        kept = [out for i, out in enumerate(outputs) if i not in skip]
        totals.append(weighted(kept, np.random.default_rng(seed)).astype(dtype))
    value = (0.5 * rng.normal(size=packed.type.shape) + 0.7).astype(dtype)
    return packed, value, totals


@pytest.mark.parametrize("log_diagonal", [False, True])
@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_pullback(rng, log_diagonal, batch, n):
    packed, value, totals = graphs(rng, batch, n=n, log_diagonal=log_diagonal)
    got, want = (evaluate([pt.grad(total, packed)], {packed: value}) for total in totals)
    assert_close(got[0], want[0], "gradient")


@pytest.mark.parametrize("skip", [(0,), (1, 2), (3,), (0, 1, 2)], ids=str)
def test_disconnected_outputs(rng, skip):
    packed, value, totals = graphs(rng, (2,), skip=skip)
    got, want = (evaluate([pt.grad(total, packed)], {packed: value}) for total in totals)
    assert_close(got[0], want[0], "gradient")


def test_hessian(rng):
    packed, value, totals = graphs(rng)
    got, want = (evaluate([pt.hessian(total, packed)], {packed: value}) for total in totals)
    assert_close(got[0], want[0], "hessian")


def test_vectorized_gradient(rng):
    """A new batch dimension of the value, as Hessians and several points need it."""
    packed, _, totals = graphs(rng)
    values = rng.normal(size=(5, 6))
    many = pt.matrix("many", shape=(5, 6))
    got, want = (
        evaluate([vectorize_graph(pt.grad(total, packed), {packed: many})], {many: values})
        for total in totals
    )
    assert_close(got[0], want[0], "gradient")


def test_shapes_are_inferred():
    packed = pt.tensor("packed", shape=(None, 6))
    outputs = packed_cholesky(packed, 3, log_diagonal=True)
    fn = pytensor.function([packed], [out.shape for out in outputs], mode="FAST_COMPILE")
    shapes = [tuple(shape) for shape in fn(np.zeros((4, 6)))]
    assert shapes == [(4, 3, 3), (4, 3), (4, 3), (4, 3)]
    assert not any(isinstance(node.op, PackedCholesky) for node in fn.maker.fgraph.apply_nodes)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)], ids=str)
def test_kernels(rng, monkeypatch, batch, dtype):
    """Both kernels run on Numba, and give what the formulas give."""
    # the package registers them: importing the module here would hide it if it did not
    from pytensor_mvn_rewrites.lower import numba as package

    kernels = package.packed_cholesky

    asked_for = []
    compile_source = kernels.compile_source
    monkeypatch.setattr(
        kernels,
        "compile_source",
        lambda source, name, env: asked_for.append(name) or compile_source(source, name, env),
    )
    packed, value, (total, formula) = graphs(rng, batch, dtype)
    fn = pytensor.function([packed], [total, pt.grad(total, packed)], mode="NUMBA")
    assert sorted(asked_for) == ["PackedCholesky", "PackedCholeskyPullback"]
    want = evaluate([formula, pt.grad(formula, packed)], {packed: value})
    assert_close(fn(value)[0], want[0], "value", dtype)
    assert_close(fn(value)[1], want[1], "gradient", dtype)


def test_kernel_of_a_broadcast_cotangent(rng):
    """The formulas run where the cotangents do not have all batch dimensions."""
    op = PackedCholesky(n=2, log_diagonal=True)
    packed = pt.matrix("packed", shape=(3, 3))
    outputs = op(packed, return_list=True)
    cotangents = [np.ones((1, *out.type.shape[1:])) for out in outputs]
    grad = PackedCholeskyPullback(n=2, log_diagonal=True)(*outputs[:3], *cotangents)
    value = rng.normal(size=(3, 3))
    got = pytensor.function([packed], grad, mode="NUMBA")(value)
    [want] = evaluate([grad], {packed: value})
    assert_close(got, want, "gradient")


def test_wrong_length_raises():
    packed = pt.vector("packed")
    fn = pytensor.function([packed], packed_cholesky(packed, 3)[1], mode="NUMBA")
    with pytest.raises(ValueError, match="another length"):
        fn(np.zeros(5))


def test_other_dtypes_and_scalars():
    with pytest.raises(ValueError, match="at least 1 dimensions"):
        packed_cholesky(1.0, 2)


def test_jax(rng):
    pytest.importorskip("jax")
    packed, value, (total, formula) = graphs(rng, (2,))
    fn = pytensor.function([packed], [total, pt.grad(total, packed)], mode="JAX")
    want = evaluate([formula, pt.grad(formula, packed)], {packed: value})
    for got, expected in zip(fn(value), want, strict=True):
        assert_close(np.asarray(got), expected, "gradient")
