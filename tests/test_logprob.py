"""Whose log-density a random variable of PyMC's gets."""

from copy import copy

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
from pymc.distributions.multivariate import (
    KroneckerNormalRV,
    PrecisionMvNormalRV,
    _LKJCholeskyCovRV,
)
from pymc.logprob.abstract import _logprob
from pytensor.graph.basic import Apply
from pytensor.tensor.random.basic import MvNormalRV

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.logprob import has_density_of_pymc
from tests.harness import PIPELINE_MODE

MU = np.zeros(2)


TYPES = {
    "mvnormal": MvNormalRV,
    "precision": PrecisionMvNormalRV,
    "kronecker": KroneckerNormalRV,
    "lkj": _LKJCholeskyCovRV,
}
OWN_TYPES = {
    name: type(f"Own{rv_type.__name__}", (rv_type,), {}) for name, rv_type in TYPES.items()
}


def own_logp(op, values, *params, **kwargs):
    [value] = values
    return -(value**2).sum(axis=-1)


for own_type in OWN_TYPES.values():
    _logprob.register(own_type)(own_logp)


def drawn(name, own=False):
    """A random variable of each type, or of a subclass that has another density."""
    match name:
        case "mvnormal":
            rv = pm.MvNormal.dist(MU, np.eye(2))
        case "precision":
            _, rv = PrecisionMvNormalRV.rv_op(pt.zeros(2), pt.eye(2)).owner.outputs
        case "kronecker":
            rv = pm.KroneckerNormal.dist(MU, covs=[np.eye(2)], sigma=1.0)
        case "lkj":
            rv = _LKJCholeskyCovRV.rv_op(2, 1.0, pm.Exponential.dist(1.0, shape=2))
    if not own:
        return rv
    node = rv.owner
    op = copy(node.op)
    op.__class__ = OWN_TYPES[name]
    outputs = [out.type() for out in node.outputs]
    return Apply(op, node.inputs, outputs).outputs[node.outputs.index(rv)]


def own_density(rv):
    """The log-density that PyMC derives, at twos."""
    size = 3 if isinstance(rv.owner.op, _LKJCholeskyCovRV) else 2
    [logp] = pm.logprob.conditional_logp({rv: pt.constant(np.full(size, 2.0))}).values()
    return logp.eval() / (4 * size)


@pytest.mark.parametrize("name", TYPES)
def test_a_subclass_keeps_its_density(name):
    rv = drawn(name, own=True)
    assert not has_density_of_pymc(rv.owner.op)
    np.testing.assert_allclose(own_density(rv), -1)


@pytest.mark.parametrize("name", TYPES)
def test_a_density_that_a_user_registers_for_the_type_is_kept(name):
    rv, rv_type = drawn(name), TYPES[name]
    assert has_density_of_pymc(rv.owner.op)
    of_pymc = _logprob.dispatch(rv_type)
    try:
        _logprob.register(rv_type)(own_logp)
        assert not has_density_of_pymc(rv.owner.op)
        np.testing.assert_allclose(own_density(rv), -1)
    finally:
        _logprob.register(rv_type)(of_pymc)
    assert has_density_of_pymc(rv.owner.op)


def test_a_distribution_of_a_user_for_the_op_of_pymc_keeps_its_density():
    """A subclass of ``pm.MvNormal`` with a ``logp`` and its ``rv_op`` replaces PyMC's density."""
    of_pymc = _logprob.dispatch(MvNormalRV)
    try:

        class Own(pm.MvNormal):
            rv_op = pm.MvNormal.rv_op

            def logp(value, mu, cov):
                return -(value**2).sum(axis=-1)

        with pm.Model() as model:
            Own("x", MU, np.eye(2))
        logp = model.compile_logp()
        np.testing.assert_allclose(logp({"x": np.ones(2)}), -2)
        with mvn.disable():
            np.testing.assert_allclose(model.compile_logp()({"x": np.ones(2)}), -2)
    finally:
        _logprob.register(MvNormalRV)(of_pymc)


@pytest.mark.parametrize("form", ["constant", "scaled", "data", "rows"])
def test_both_triangles_of_a_precision(form):
    """PyMC's quadratic form reads all of `tau`, its log-determinant the lower triangle."""
    T = np.array([[3.0, 0.5, 0.0], [0.1, 3.0, 0.0], [0.2, 0.0, 3.0]])
    observed = np.arange(6.0).reshape(2, 3) if form == "rows" else np.arange(3.0)
    with pm.Model() as model:
        a = pm.HalfNormal("a")
        tau = {"constant": T, "data": pm.Data("T", T)}.get(form, T) * (
            1 if form == "constant" else a
        )
        pm.MvNormal("y", a * np.ones(3), tau=tau, observed=observed)
    assert mvn.verify(model, modes=PIPELINE_MODE).ok
