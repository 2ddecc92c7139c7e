import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.logprob import check_posdef
from pytensor_mvn_rewrites.ops import mvnormal_logp
from tests.harness import (
    PIPELINE_MODE,
    assert_close,
    assert_same_numbers,
    logp_and_gradient,
    named,
    on_and_off,
    our_ops,
    rewritten,
    spd,
)

N = 2


def terms(lengths, *, mean="shared", static=True, n=N):
    """Summed log-densities of groups of rows, and their inputs."""
    rows = [
        pt.matrix(f"x{g}", shape=(length if static else None, n))
        for g, length in enumerate(lengths)
    ]
    mus = [
        {
            "shared": pt.vector(f"mu{g}", shape=(n,)),
            "expanded": pt.matrix(f"mu{g}", shape=(1, n)),
            "per row": pt.matrix(f"mu{g}", shape=(length if static else None, n)),
        }[mean]
        for g, length in enumerate(lengths)
    ]
    # a product: a matrix input would be the same for a batch
    covs = [pt.matrix(f"S{g}", shape=(n, n)) for g in range(len(lengths))]
    logps = [
        check_posdef(*mvnormal_logp(x, mu, S), "posdef").sum()
        for x, mu, S in zip(rows, mus, covs, strict=True)
    ]
    return logps, rows, mus, covs


def some_values(rng, lengths, rows, mus, covs):
    given = {x: rng.normal(size=(r, N)) for x, r in zip(rows, lengths, strict=True)}
    for mu, r in zip(mus, lengths, strict=True):
        shape = {1: (N,), 2: (1, N) if mu.type.shape[0] == 1 and r != 1 else (r, N)}[mu.type.ndim]
        given[mu] = rng.normal(size=shape)
    return given | {S: spd(rng, n=N) for S in covs}


@pytest.mark.parametrize("static", [True, False], ids=["static", "unknown lengths"])
@pytest.mark.parametrize("mean", ["shared", "expanded", "per row"])
def test_ragged_groups(rng, mean, static):
    lengths = (3, 5, 2, 5)
    logps, *inputs = terms(lengths, mean=mean, static=static)
    graph = [pt.add(*logps)]
    new = rewritten(graph)
    if static:
        assert our_ops(new) == {"MvNormalLogp{chol}": 1}
    assert_same_numbers(graph, new, some_values(rng, lengths, *inputs), condition=10)


def test_other_terms_stay(rng):
    lengths = (4, 1, 2)
    logps, *inputs = terms(lengths)
    other = pt.exp(inputs[0][0]).sum()
    graph = [logps[0] + (other + logps[1]) + logps[2]]
    new = rewritten(graph)
    assert our_ops(new) == {"MvNormalLogp{chol}": 1}
    assert_same_numbers(graph, new, some_values(rng, lengths, *inputs), condition=10)


def test_equal_lengths_make_a_batch():
    logps, *_ = terms((4, 4, 4, 4))
    with mvn.pipeline.recording() as events:
        rewritten([pt.add(*logps)])
    assert {event.rule for event in events} >= {"reroll_sums"}
    assert "join_ragged_rows" not in {event.rule for event in events}


def test_vectors_of_different_lengths_stay_apart():
    left, *_ = terms((4, 3))
    right, *_ = terms((4, 3), n=3)
    new = rewritten([pt.add(*left, *right)])
    assert our_ops(new) == {"MvNormalLogp{chol}": 2}


def near_misses():
    logps, *_ = terms((4, 3))
    vectors, *_ = terms((4,))
    plain = [logp.owner.inputs[0] for logp in logps]
    return {
        "one group": pt.exp(vectors[0]) + vectors[0],
        "not summed": pt.join(0, *plain),
        "products": pt.mul(*logps),
        "scaled": 2.0 * logps[0] + 3.0 * logps[1],
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            with mvn.pipeline.recording() as events:
                rewritten([case])
            assert "join_ragged_rows" not in {event.rule for event in events}


@pytest.mark.parametrize("bad", [False, True])
def test_model(rng, bad):
    """Latent rows, one matrix that may not be positive definite: -inf for the whole model."""
    with pm.Model() as model:
        scale = pm.Normal("scale", shape=3)
        for g, length in enumerate((2, 4, 1)):
            x = pm.MvNormal(f"x{g}", np.zeros(N), cov=scale[g] * np.eye(N) + 0.1, shape=(length, N))
            pm.Normal(f"y{g}", x, 1.0, observed=rng.normal(size=(length, N)))
    assert our_ops(rewritten([model.logp()])) == {"MvNormalLogp{chol}": 1}
    point = model.initial_point()
    point["scale"] = np.array([1.0, -2.0 if bad else 2.0, 3.0])
    on, off = on_and_off(lambda mode: logp_and_gradient(model, mode), PIPELINE_MODE)
    (logp, *dlogp), (want, *gradients) = on(point), off(point)
    assert np.isfinite(want) == (not bad)
    assert_close(logp, want, "value")
    if not bad:
        for got, gradient in zip(dlogp, gradients, strict=True):
            assert_close(got, gradient, "gradient", condition=10)
