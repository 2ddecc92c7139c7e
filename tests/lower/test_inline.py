import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.tensor.linalg.decomposition.eigen import Eigh

from pytensor_mvn_rewrites.ops import noisy_kronecker_quad_logdet
from tests.harness import PIPELINE_MODE, assert_close, evaluate, spd


def eigendecompositions(fn):
    return [
        node
        for node in fn.maker.fgraph.apply_nodes
        if isinstance(getattr(node.op, "core_op", node.op), Eigh)
    ]


def density():
    delta, noise = pt.matrix("delta", shape=(4, 6)), pt.scalar("noise")
    a, b = pt.matrix("a", shape=(2, 2)), pt.matrix("b", shape=(3, 3))
    quaddist, half_logdet, _ = noisy_kronecker_quad_logdet(delta, noise, [a, b])
    logp = -0.5 * quaddist.sum() - half_logdet.sum()
    inputs = [delta, noise, a, b]
    return inputs, [logp, *pt.grad(logp, inputs)]


@pytest.mark.parametrize("mode", [PIPELINE_MODE, "NUMBA"], ids=["python", "numba"])
def test_value_and_gradient_share_the_eigendecompositions(rng, mode):
    inputs, outputs = density()
    fn = pytensor.function(inputs, outputs, mode=mode)
    assert len(eigendecompositions(fn)) == 2
    values = [rng.normal(size=(4, 6)), np.asarray(0.3), spd(rng, n=2), spd(rng, n=3)]
    expected = evaluate(outputs, dict(zip(inputs, values, strict=True)))
    for got, want in zip(fn(*values), expected, strict=True):
        assert_close(got, want, "gradient", condition=1e2)
