"""Whole models, with the plugin on and off: log-density, gradient, Hessian, terms.

All at random points, compiled with all rewrites, in Python's linker (which runs the reference
graphs), against the graph as it was written; ``test_end_to_end.py`` does the same with Numba.
"""

import numpy as np
import pymc as pm
import pytest
from pytensor.graph.traversal import apply_ancestors

from pytensor_mvn_rewrites.ops.gaussian import GaussianOp, GaussianPullbackOp
from tests.harness import (
    assert_functions_agree,
    assert_model_agrees,
    logp_and_gradient,
    on_and_off,
    random_points,
    rewritten,
)
from tests.zoo import COVS, DATA, LOOP_MODELS, N, Q


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
    on, off = on_and_off(lambda mode: logp_and_gradient(model, mode))
    assert len(fused_nodes(on)) == expected
    assert not fused_nodes(off)
    assert_functions_agree(on, off, random_points(model, points=3))


@pytest.mark.parametrize("name", LOOP_MODELS)
def test_terms(name):
    """`compile_logp(sum=False)` still returns one array for each variable."""
    model, _ = LOOP_MODELS[name]()
    on, off = on_and_off(lambda mode: model.compile_logp(sum=False, mode=mode))
    for point in random_points(model):
        terms_on, terms_off = on(point), off(point)
        assert len(terms_on) == len(terms_off)
        for term_on, term_off in zip(terms_on, terms_off, strict=True):
            assert term_on.shape == term_off.shape
            np.testing.assert_allclose(term_on, term_off, rtol=1e-10)


@pytest.mark.parametrize("name", ["thread_loop", "random_walk", "given_cholesky_factor"])
def test_hessian(name):
    model, _ = LOOP_MODELS[name]()
    on, off = on_and_off(lambda mode: model.compile_d2logp(mode=mode, negate_output=False))
    [point] = random_points(model, points=1)
    np.testing.assert_allclose(on(point), off(point), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("multivariate", [True, False], ids=["vectors", "numbers"])
def test_marginalized_loop(multivariate):
    """The sum over two states is one term for all members of the loop, however many there are."""
    marginalize = pytest.importorskip("pymc_extras").marginalize
    sizes = []
    for terms in (6, 9):
        with pm.Model() as model:
            p = pm.Beta("p", 2, 2)
            mu = pm.Normal("mu", shape=(2, Q) if multivariate else 2)
            for n in range(terms):
                z = pm.Bernoulli(f"z_{n}", p)
                if multivariate:
                    pm.MvNormal(f"y_{n}", mu[z], COVS[0], observed=DATA[n % N] + n)
                else:
                    pm.Normal(f"y_{n}", mu[z], 1.0, observed=DATA[n % N, 0] + n)
        model = marginalize(model, [f"z_{n}" for n in range(terms)])
        sizes.append(len(list(apply_ancestors(rewritten([model.logp()])))))
        assert_model_agrees(model)
    assert sizes[0] == sizes[1]
