"""Scans without recurrence, against the scan itself."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import ancestors
from pytensor.scan.op import Scan

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import mvnormal_logp
from pytensor_mvn_rewrites.reroll.maps import maps_are_batched
from tests.harness import REFERENCE_MODE, assert_close, assert_leaves, rewritten

L = pt.tensor3("L", shape=(5, 3, 3))
ragged = pt.tensor3("ragged", shape=(None, 3, 3))
square = pt.tensor3("square", shape=(None, None, None))
s = pt.vector("s", shape=(5,))
A = pt.matrix("A", shape=(3, 3))
eye = np.eye(3)


def scan(step, sequences, **kwargs):
    return pytensor.scan(step, sequences=sequences, return_updates=False, **kwargs)


def gram(x):
    return x @ x.T + eye


MAPS = {
    "of known length": scan(gram, [L]),
    "of unknown length": scan(gram, [ragged]),
    "two sequences": scan(lambda x, scale: scale**2 * gram(x), [L, s]),
    "with what all share": scan(lambda x, other: gram(x) + other @ other.T, [L], non_sequences=[A]),
    "two results": scan(lambda x: (gram(x), x.sum()), [L])[0],
    "the shorter one counts": scan(lambda x, y: gram(x) + y @ y.T, [L, ragged]),
    "indexed, and set": scan(lambda x: pt.set_subtensor(gram(x)[0, 0], 9.0), [L]),
    "backwards": scan(gram, [L], go_backwards=True),
    "shapes of a step": scan(lambda x: x @ x.T + pt.eye(x.shape[0]), [square]),
    "one after the other": scan(lambda x: x + eye, [scan(gram, [L])]),
    "a map": pytensor.map(gram, [L], return_updates=False),
}


def density(covs):
    value = pt.constant(np.arange(3.0))
    return mvnormal_logp(value, np.zeros(3), covs)[0].sum()


def holds_scan(graph) -> bool:
    return any(isinstance(var.owner.op, Scan) for var in ancestors([graph]) if var.owner)


@pytest.mark.parametrize("name", MAPS)
def test_map(name, rng):
    graph = density(MAPS[name])
    assert holds_scan(graph)
    values = {L: rng.normal(size=(5, 3, 3)), ragged: rng.normal(size=(4, 3, 3))}
    values |= {square: rng.normal(size=(4, 3, 3))}
    values |= {s: rng.normal(size=5), A: rng.normal(size=(3, 3))}
    inputs = [var for var in values if var in set(ancestors([graph]))]
    want = pytensor.function(inputs, [graph, *pt.grad(graph, inputs)], mode=REFERENCE_MODE)
    [new] = rewritten([graph])
    assert not holds_scan(new)
    got = pytensor.function(inputs, [new, *pt.grad(new, inputs)], mode=REFERENCE_MODE)
    arguments = [values[var] for var in inputs]
    for one, other in zip(got(*arguments), want(*arguments), strict=True):
        assert_close(one, other, "gradient")


def test_too_short_a_sequence_is_an_error(rng):
    """Not a shorter result."""
    [new] = rewritten([density(scan(gram, [ragged], n_steps=5))])
    assert not holds_scan(new)
    function = pytensor.function([ragged], new, mode=REFERENCE_MODE)
    assert np.isfinite(function(rng.normal(size=(7, 3, 3))))
    with pytest.raises(AssertionError):
        function(rng.normal(size=(4, 3, 3)))


def noisy_covs():
    rng = pytensor.shared(np.random.default_rng(0))

    def noisy(x, rng):
        next_rng, noise = pt.random.normal(rng=rng, return_next_rng=True)
        return gram(x) + noise**2, next_rng

    return scan(noisy, [L], outputs_info=[None, rng])[0]


NEAR_MISSES = {
    "carried": lambda: density(scan(lambda x, last: gram(x) + last, [L], outputs_info=[pt.eye(3)])),
    "without a sequence": lambda: density(
        scan(lambda last: last + eye, None, outputs_info=[pt.eye(3)], n_steps=4)
    ),
    "random numbers": lambda: density(noisy_covs()),
    "without a density": lambda: scan(gram, [L]).sum(),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss(name):
    graph = FunctionGraph(outputs=[NEAR_MISSES[name]()], clone=True, copy_inputs=False)
    assert_leaves(maps_are_batched, graph)


def test_model(rng):
    """The construction of the forum thread, and dims of unknown length."""
    with pm.Model(coords={"group": range(9)}) as model:
        roots = pm.Normal("roots", dims=("group", "row", "column"), shape=(9, 3, 3))
        covs = scan(gram, [roots])
        for n in range(9):
            pm.MvNormal(f"x_{n}", np.zeros(3), cov=covs[n], observed=rng.normal(size=3))
    [logp] = rewritten([model.logp()])
    assert not holds_scan(logp)
    assert mvn.verify(model).ok
