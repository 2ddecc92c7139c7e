"""A rewrite must pay: models without a multivariate normal are left alone, or get smaller."""

import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.graph.basic import equal_computations

import pytensor_mvn_rewrites as mvn
from tests.harness import PIPELINE_MODE, rewritten
from tests.plain_zoo import PLAIN_MODELS

#: Correlation matrices have rules of their own, which pay
GAIN = {"lkj_effects"}

#: Without the fusion of elementwise nodes, and with it
MODES = [PIPELINE_MODE, Mode(linker="py", optimizer="fast_run")]


def pre_gradient_and_sizes(model):
    """The log-density after the pre-gradient pass, and the nodes of it compiled with its gradient.

    Elementwise nodes that fuse cost next to nothing: the fused graph is what a call pays for.
    """
    [logp] = rewritten([model.logp()])
    grads = pt.grad(logp, model.continuous_value_vars)
    functions = [pytensor.function(model.value_vars, [logp, *grads], mode=m) for m in MODES]
    # samplers give one vector: scalars are slices of it
    sampled = model.logp_dlogp_function(ravel_inputs=True, mode=MODES[1])
    functions.append(sampled._pytensor_function)
    return logp, [len(function.maker.fgraph.apply_nodes) for function in functions]


# Python runs a loop of at most 32 arguments
@pytest.mark.filterwarnings("ignore:Loop fusion failed:UserWarning")
@pytest.mark.filterwarnings("ignore:Data in y contains missing values")
@pytest.mark.parametrize("name", PLAIN_MODELS)
def test_models_without_a_multivariate_normal(name):
    model = PLAIN_MODELS[name]()
    with mvn.disable():
        without, sizes_without = pre_gradient_and_sizes(model)
    with mvn.pipeline.recording() as events:
        logp, sizes = pre_gradient_and_sizes(model)
    assert all(size <= limit for size, limit in zip(sizes, sizes_without, strict=True))
    if name in GAIN:
        assert events
        assert sizes < sizes_without
    else:
        assert equal_computations([logp], [without])
        assert sizes == sizes_without
