"""The ops that share a decomposition with their gradients."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import pushforward

from pytensor_mvn_rewrites.ops import (
    ExpmQuadLogdetPullback,
    FiniteEigh,
    LowRankFactorization,
    NoisyKroneckerQuadLogdetPullback,
    expm_quad_logdet,
    inv_quad_logdet,
    low_rank_quad_logdet,
    noisy_kronecker_quad_logdet,
)
from tests.harness import PIPELINE_MODE, assert_close, evaluate, spd


def kronecker_plus_noise(rng, constant):
    """Inputs with their values, a density, the same by a dense matrix, and number of what."""
    a, b = spd(rng, n=2), spd(rng, n=3)
    matrix = pt.constant(a) if constant else pt.matrix("a", shape=(2, 2))
    values = {pt.scalar("noise"): np.asarray(0.3), pt.matrix("b", shape=(3, 3)): b}
    noise, other = values
    delta = pt.vector("delta", shape=(6,))
    inputs = {delta: rng.normal(size=6)} | values | ({} if constant else {matrix: a})
    ours = noisy_kronecker_quad_logdet(delta, noise, [matrix, other])
    dense = NoisyKroneckerQuadLogdetPullback.formula(delta, noise, matrix, other)
    return inputs, ours, dense, FiniteEigh, 1 if constant else 2


def matrix_exponential(rng, constant):
    x = np.log(2) * spd(rng, n=3)
    matrix = pt.constant(x) if constant else pt.matrix("x", shape=(3, 3))
    delta, noise = pt.vector("delta", shape=(3,)), pt.scalar("noise")
    inputs = {delta: rng.normal(size=3), noise: np.asarray(0.3)}
    inputs |= {} if constant else {matrix: x}
    ours = expm_quad_logdet(delta, noise, matrix)
    dense = ExpmQuadLogdetPullback.formula(delta, noise, matrix)
    return inputs, ours, dense, FiniteEigh, 0 if constant else 1


def low_rank(rng, constant):
    w, d = rng.normal(size=(6, 2)), rng.uniform(1, 2, size=6)
    factor = pt.constant(w) if constant else pt.matrix("w", shape=(6, 2))
    diag = pt.constant(d) if constant else pt.vector("d", shape=(6,))
    delta = pt.vector("delta", shape=(6,))
    inputs = {delta: rng.normal(size=6)} | ({} if constant else {factor: w, diag: d})
    ours = low_rank_quad_logdet(delta, factor, diag)
    dense = inv_quad_logdet(delta, factor @ factor.T + pt.diag(diag))
    return inputs, ours, dense, LowRankFactorization, 0 if constant else 1


DENSITIES = [kronecker_plus_noise, matrix_exponential, low_rank]


def logp(quaddist, half_logdet, posdef):
    return pt.switch(posdef, -0.5 * quaddist - half_logdet, -np.inf)


@pytest.mark.parametrize(
    ("mode", "constant"),
    [(PIPELINE_MODE, False), (PIPELINE_MODE, True), ("NUMBA", False)],
    ids=["python", "python, constants", "numba"],
)
@pytest.mark.parametrize("density", DENSITIES)
def test_value_and_gradient_share_the_decompositions(rng, density, mode, constant):
    """And those of constants are computed once."""
    inputs, ours, dense, op, count = density(rng, constant)
    outputs, expected = ([logp(*of), *pt.grad(logp(*of), list(inputs))] for of in (ours, dense))
    fn = pytensor.function(list(inputs), outputs, mode=mode)
    assert sum(isinstance(node.op, op) for node in fn.maker.fgraph.apply_nodes) == count
    for got, want in zip(fn(*inputs.values()), evaluate(expected, inputs), strict=True):
        assert_close(got, want, "gradient", condition=1e2)


@pytest.mark.parametrize("density", DENSITIES)
def test_second_derivatives(rng, density):
    """Of each gradient alone, by each input."""
    inputs, ours, dense, *_ = density(rng, False)
    for part in range(len(inputs)):
        seconds = []
        for of in (ours, dense):
            gradient = pt.grad(logp(*of), list(inputs)[part])
            direction = np.arange(gradient.size.eval(inputs) if gradient.type.ndim else 1) + 1.0
            weighted = (gradient * direction.reshape(evaluate([gradient.shape], inputs)[0])).sum()
            seconds.append(evaluate(pt.grad(weighted, list(inputs)), inputs))
        for got, want in zip(*seconds, strict=True):
            assert_close(got, want, "hessian", condition=1e2)


@pytest.mark.parametrize("density", DENSITIES)
def test_pushforward_of_the_gradient(rng, density):
    """PyTensor differentiates by the cotangents, which are no inputs of the graph."""
    inputs, ours, dense, *_ = density(rng, False)
    tangents = [pt.constant(rng.normal(size=np.shape(value))) for value in inputs.values()]
    got, want = (
        evaluate(pushforward(pt.grad(logp(*of), list(inputs)), list(inputs), tangents), inputs)
        for of in (ours, dense)
    )
    for own, expected in zip(got, want, strict=True):
        assert_close(own, expected, "hessian", condition=1e2)
