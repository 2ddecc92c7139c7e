import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.tensor.linalg.decomposition.eigen import Eigh
from pytensor.tensor.linalg.decomposition.qr import QR

from pytensor_mvn_rewrites.ops import (
    FiniteEigh,
    LowRankFactorization,
    expm_quad_logdet,
    low_rank_quad_logdet,
    noisy_kronecker_quad_logdet,
)
from tests.harness import PIPELINE_MODE, assert_close, evaluate, spd


def decompositions(fn, op):
    return [
        node
        for node in fn.maker.fgraph.apply_nodes
        if isinstance(getattr(node.op, "core_op", node.op), op)
    ]


def kronecker_plus_noise(rng):
    delta, noise = pt.matrix("delta", shape=(4, 6)), pt.scalar("noise")
    a, b = pt.matrix("a", shape=(2, 2)), pt.matrix("b", shape=(3, 3))
    outputs = noisy_kronecker_quad_logdet(delta, noise, [a, b])
    values = [rng.normal(size=(4, 6)), np.asarray(0.3), spd(rng, n=2), spd(rng, n=3)]
    return dict(zip([delta, noise, a, b], values, strict=True)), outputs, (Eigh, FiniteEigh), 2


def matrix_exponential(rng):
    delta, noise, x = pt.matrix("delta", shape=(4, 3)), pt.scalar("noise"), pt.matrix("x")
    outputs = expm_quad_logdet(delta, noise, x)
    values = [rng.normal(size=(4, 3)), np.asarray(0.3), np.log(2) * spd(rng, n=3)]
    return dict(zip([delta, noise, x], values, strict=True)), outputs, (Eigh, FiniteEigh), 1


def low_rank(rng):
    delta, w = pt.matrix("delta", shape=(4, 6)), pt.matrix("w", shape=(6, 2))
    d = pt.vector("d", shape=(6,))
    outputs = low_rank_quad_logdet(delta, w, d)
    values = [rng.normal(size=(4, 6)), rng.normal(size=(6, 2)), rng.uniform(1, 2, size=6)]
    return dict(zip([delta, w, d], values, strict=True)), outputs, (QR, LowRankFactorization), 1


@pytest.mark.parametrize("mode", [PIPELINE_MODE, "NUMBA"], ids=["python", "numba"])
@pytest.mark.parametrize("density", [kronecker_plus_noise, matrix_exponential, low_rank])
def test_value_and_gradient_share_the_decompositions(rng, density, mode):
    values, (quaddist, half_logdet, _), op, count = density(rng)
    logp = -0.5 * quaddist.sum() - half_logdet.sum()
    outputs = [logp, *pt.grad(logp, list(values))]
    fn = pytensor.function(list(values), outputs, mode=mode)
    assert len(decompositions(fn, op)) == count
    expected = evaluate(outputs, values)
    for got, want in zip(fn(*values.values()), expected, strict=True):
        assert_close(got, want, "gradient", condition=1e2)
