"""The op of noisy Kronecker products against the dense covariance."""

import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import vectorize_graph

from pytensor_mvn_rewrites.ops import NoisyKroneckerQuadLogdetPullback, noisy_kronecker_quad_logdet
from tests.harness import assert_close, assert_same_numbers, evaluate, spd

formula = NoisyKroneckerQuadLogdetPullback.formula

SHAPES = {
    # batch of delta, batch of the noise, batches of the Kronecker factors, their sizes
    "one": ((), (), [(), ()], (2, 3)),
    "three Kronecker factors": ((), (), [(), (), ()], (2, 1, 3)),
    "one Kronecker factor": ((4,), (), [()], (3,)),
    "rows": ((4,), (), [(), ()], (3, 2)),
    "two batch dimensions of rows": ((2, 4), (), [(), ()], (3, 2)),
    "batch": ((4,), (4,), [(4,), (4,)], (2, 3)),
    "one row": ((), (4,), [(4,), (4,)], (2, 3)),
    "rows and a batch": ((5, 4), (4,), [(4,), (4,)], (2, 3)),
    "batch of the noise": ((5, 4), (4,), [(), ()], (2, 3)),
    "batch of one Kronecker factor": ((4,), (), [(), (4,)], (2, 3)),
    "broadcast": ((2, 1), (), [(4,), (2, 1)], (2, 3)),
}


def operands(rng, name, static):
    """Variables with their values."""
    batch, noise_batch, factor_batches, sizes = SHAPES[name]

    def variable(value):
        # PyTensor broadcasts only lengths that the type tells to be 1
        shape = tuple(k if static or k == 1 else None for k in value.shape)
        return pt.tensor(shape=shape), value

    data = [rng.normal(size=(*batch, int(np.prod(sizes)))), rng.uniform(0.5, 1, noise_batch)]
    data += [spd(rng, *own, n=n) for own, n in zip(factor_batches, sizes, strict=True)]
    return dict(map(variable, data))


@pytest.mark.parametrize("static", [True, False], ids=["known lengths", "unknown lengths"])
@pytest.mark.parametrize("name", SHAPES)
def test_broadcasting(rng, name, static):
    values = operands(rng, name, static)
    delta, noise, *factors = values
    outputs = noisy_kronecker_quad_logdet(delta, noise, factors)
    expected = formula(delta, noise, *factors)
    assert [out.type.ndim for out in outputs] == [out.type.ndim for out in expected]
    assert_same_numbers(expected, outputs, values, condition=1e2)

    shapes = evaluate([out.shape for out in outputs], values)
    assert [tuple(shape) for shape in shapes] == [np.shape(v) for v in evaluate(expected, values)]


def test_vectorize(rng):
    """New batch dimensions of some inputs."""
    values = operands(rng, "one", True)
    outputs = noisy_kronecker_quad_logdet(*list(values)[:2], list(values)[2:])
    delta, _, a, _ = values
    batched = {var: pt.tensor(shape=(3, *var.type.shape)) for var in (delta, a)}
    results = evaluate(
        vectorize_graph(outputs, batched),
        {batched.get(v, v): np.stack([x] * 3) if v in batched else x for v, x in values.items()},
    )
    for got, want in zip(results, evaluate(outputs, values), strict=True):
        np.testing.assert_allclose(got, np.stack([want] * 3))


def test_lower_triangles_are_read(rng):
    values = operands(rng, "one", True)
    delta, noise, *factors = values
    outputs = noisy_kronecker_quad_logdet(delta, noise, factors)
    expected = evaluate(outputs, values)
    changed = {v: np.tril(x) if x.ndim == 2 else x for v, x in values.items()}
    for got, want in zip(evaluate(outputs, changed), expected, strict=True):
        assert_close(got, want, "value", condition=1e2)


def test_semidefinite_up_to_rounding(rng):
    """An eigenvalue of the size of rounding errors is none."""
    q, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    singular = (q[:, :5] @ q[:, :5].T)[None]
    delta = rng.normal(size=60)
    outputs = noisy_kronecker_quad_logdet(delta, pt.constant([0.0, 1e-8]), [singular, np.eye(3)])
    quaddist, half_logdet, posdef = evaluate(outputs, {})
    np.testing.assert_array_equal(posdef, [False, True])
    assert np.isnan(quaddist[0])
    assert_close(
        half_logdet[1], (15 * np.log(1 + 1e-8) + 45 * np.log(1e-8)) / 2, "value", condition=1e8
    )


def test_derivatives_of_parts(rng):
    """A half that nothing needs counts as zero; the condition has no derivative."""
    values = operands(rng, "one", True)
    delta, noise, *factors = values
    quaddist, half_logdet, posdef = noisy_kronecker_quad_logdet(delta, noise, factors)
    dense = formula(delta, noise, *factors)
    for ours, theirs in ((quaddist, dense[0]), (half_logdet, dense[1])):
        wrt = [noise, *factors]
        got, want = evaluate(pt.grad(ours, wrt), values), evaluate(pt.grad(theirs, wrt), values)
        for one, other in zip(got, want, strict=True):
            assert_close(one, other, "gradient", condition=1e2)
    grad = pt.grad(posdef.astype("float64"), noise, disconnected_inputs="ignore")
    assert evaluate([grad], values)[0] == 0
