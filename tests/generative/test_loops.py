"""What counts as the same transform, and what as a parameter."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.distributions import transforms as tr

from pytensor_mvn_rewrites.generative.loops import identity, parameters_of, with_parameters


def bounds(scale):
    def of_inputs(*inputs):
        return scale * inputs[2], None

    return of_inputs


def test_identity_of_transforms():
    assert identity(tr.Interval(lower=0.0, upper=1.0)) == identity(tr.Interval(0.0, 1.0))
    assert identity(tr.Interval(lower=0.0, upper=1.0)) != identity(tr.Interval(0.0, 2.0))
    assert identity(tr.log) == identity(tr.LogTransform())
    assert identity(tr.log) != identity(tr.logodds)
    assert identity(tr.Interval(bounds_fn=bounds(1.0))) == identity(
        tr.Interval(bounds_fn=bounds(1.0))
    )
    assert identity(tr.Interval(bounds_fn=bounds(1.0))) != identity(
        tr.Interval(bounds_fn=bounds(2.0))
    )
    assert identity(tr.Chain([tr.log, tr.ordered])) == identity(tr.Chain([tr.log, tr.ordered]))
    assert identity(tr.Chain([tr.log, tr.ordered])) != identity(tr.Chain([tr.ordered, tr.log]))


def test_identity_of_what_is_not_known():
    """Objects are what they are, and graphs their values if these cannot change."""
    x = pt.scalar()
    assert identity(x) == identity(x) != identity(pt.scalar())
    assert identity(pt.arange(3) - 1) == identity(np.arange(3) - 1)
    assert identity(1) != identity(1.0)


def test_parameters_of_parts():
    """Through draws, down to those that have a value."""
    scale = pm.HalfNormal.dist(1.0)
    rv = pm.Censored.dist(pm.Normal.dist(scale, 2.0), lower=-1.0, upper=1.0)
    parameters = parameters_of(rv, {scale})
    assert scale in parameters
    assert rv.owner.inputs[0] not in parameters
    same = with_parameters(rv, iter(parameters), {scale})
    assert parameters_of(same, {scale}) == parameters
    assert len(parameters_of(rv, ())) > len(parameters)
