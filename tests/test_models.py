"""Whole models, with the plugin on and off: log-density, gradient, Hessian, terms.

All at random points, compiled with all rewrites, in Python's linker (which runs the reference
graphs); ``test_end_to_end.py`` does the same with Numba's kernels.
"""

import numpy as np
import pytest

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops.gaussian import GaussianOp, GaussianPullbackOp
from tests.harness import PIPELINE_MODE
from tests.zoo import LOOP_MODELS

POINTS = 3


def random_points(model, seed=0):
    """Points around the initial one, far enough to be in general position."""
    rng = np.random.default_rng(seed)
    start = model.initial_point()
    return [
        {name: value + 0.3 * rng.normal(size=np.shape(value)) for name, value in start.items()}
        for _ in range(POINTS)
    ]


def on_and_off(compile_function):
    """The same function compiled with the plugin and without."""
    on = compile_function()
    with mvn.disable():
        off = compile_function()
    return on, off


def fused_nodes(function):
    """The fused density nodes of a compiled model function."""
    return [
        node
        for node in function.f.maker.fgraph.apply_nodes
        if isinstance(node.op, GaussianOp) and not isinstance(node.op, GaussianPullbackOp)
    ]


@pytest.mark.parametrize("name", LOOP_MODELS)
def test_logp_and_gradient(name):
    model, expected = LOOP_MODELS[name]()
    logp_on, logp_off = on_and_off(lambda: model.compile_logp(mode=PIPELINE_MODE))
    dlogp_on, dlogp_off = on_and_off(lambda: model.compile_dlogp(mode=PIPELINE_MODE))
    assert len(fused_nodes(logp_on)) == expected
    assert not fused_nodes(logp_off)
    for point in random_points(model):
        np.testing.assert_allclose(logp_on(point), logp_off(point), rtol=1e-10)
        np.testing.assert_allclose(dlogp_on(point), dlogp_off(point), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", LOOP_MODELS)
def test_terms(name):
    """`compile_logp(sum=False)` still returns one array for each variable."""
    model, _ = LOOP_MODELS[name]()
    on, off = on_and_off(lambda: model.compile_logp(sum=False, mode=PIPELINE_MODE))
    for point in random_points(model):
        terms_on, terms_off = on(point), off(point)
        assert len(terms_on) == len(terms_off)
        for term_on, term_off in zip(terms_on, terms_off, strict=True):
            assert term_on.shape == term_off.shape
            np.testing.assert_allclose(term_on, term_off, rtol=1e-10)


@pytest.mark.parametrize("name", ["thread_loop", "random_walk", "given_cholesky_factor"])
def test_hessian(name):
    model, _ = LOOP_MODELS[name]()
    on, off = on_and_off(lambda: model.compile_d2logp(mode=PIPELINE_MODE, negate_output=False))
    [point, *_] = random_points(model)
    np.testing.assert_allclose(on(point), off(point), rtol=1e-8, atol=1e-9)
