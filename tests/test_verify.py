"""`verify` finds what is wrong, and lets pass what is not; its reference is PyMC's."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.exceptions import ImputationWarning
from pytensor.compile.mode import Mode

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites import reference
from pytensor_mvn_rewrites.reference import Reference
from pytensor_mvn_rewrites.structure.diagonal import Diagonal
from pytensor_mvn_rewrites.verify import VerificationError
from tests.harness import PIPELINE_MODE, REFERENCE_MODE
from tests.test_failures import MODELS, built

SEVERAL = ("short_loop", "correlation", "kron, noise", "by_hand", "matrix_normal")


@pytest.fixture(autouse=True)
def no_tracebacks():
    """They are what most of the time would go into."""
    with pytensor.config.change_flags(traceback__limit=0):
        yield


def many(n_terms=4):
    """Loops over latent vectors, scales and observations, with a potential for each."""
    rng = np.random.default_rng(1)
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=(n_terms, 2))
        for k in range(n_terms):
            sd = pm.Uniform(f"sd_{k}", 0, k + 1.0)
            x = pm.MvNormal(f"x_{k}", mu[k], cov=sd * np.eye(2) * (k + 1))
            pm.Normal(f"y_{k}", x, sd, observed=rng.normal(size=2))
            pm.Potential(f"p_{k}", -((x - k) ** 2).sum())
        n = pm.Poisson("n", 3.0)
        pm.Normal("z", n, 1.0, observed=2.0)
    return model


def as_pymc_has_it(model, point):
    """Log-density and gradient by name, of the graph of the whole model."""
    with mvn.disable():
        logp = model.logp()
        wrt = model.continuous_value_vars
        outputs = [logp, *pt.grad(logp, wrt)]
        function = pytensor.function(model.value_vars, outputs, mode=REFERENCE_MODE)
        value, *gradient = function(*(point[var.name] for var in model.value_vars))
    return value, dict(zip((var.name for var in wrt), gradient, strict=True))


def test_reference_is_that_of_pymc(rng):
    model = many()
    ours = Reference(model)
    assert sorted(group.n_terms for group in ours.groups) == [1, 1, 1, 4, 4, 4, 4]
    point = {
        name: value + (rng.normal(size=value.shape) if value.dtype.kind == "f" else 1)
        for name, value in model.initial_point().items()
    }
    logp, gradient = as_pymc_has_it(model, point)
    for is_batched in (True, False):
        results, _ = ours(point, {})
        assert sum(group.is_batched for group in ours.groups) == 4 * is_batched
        np.testing.assert_allclose(results["logp", ""], logp, rtol=1e-13)
        for name, want in gradient.items():
            np.testing.assert_allclose(results["gradient", name], want, rtol=1e-11, atol=1e-12)
        for group in ours.groups:
            group.is_batched = False


def test_batches_that_are_wrong_are_not_used(monkeypatch):
    """The three terms that are looked at one by one say so."""
    model = many()
    point = model.initial_point()
    logp, gradient = as_pymc_has_it(model, point)
    vectorize = reference.vectorize_graph
    monkeypatch.setattr(reference, "vectorize_graph", lambda *args: 1.001 * vectorize(*args))
    ours = Reference(model)
    results, _ = ours(point, {})
    assert not any(group.is_batched for group in ours.groups)
    np.testing.assert_allclose(results["logp", ""], logp, rtol=1e-13)
    np.testing.assert_allclose(results["gradient", "mu"], gradient["mu"], rtol=1e-12)


def test_terms_that_pymc_derives_with_the_model_only():
    """The other half of partly observed data; a density that reads the value of a constant."""
    with pm.Model() as model:
        mu = pm.Normal("mu")
        with pytest.warns(ImputationWarning):
            pm.Normal("y", mu, 1.0, observed=np.array([1.0, np.nan, 2.0]))
        pm.Truncated("t", pm.Normal.dist(mu, 1.0), upper=3.0)
        pm.Mixture("m", [0.3, 0.7], [pm.Normal.dist(mu, 1.0), pm.Normal.dist(-mu, 2.0)])
    assert mvn.verify(model, modes=PIPELINE_MODE).check().points == 10


def test_a_missing_and_an_observed_number_are_not_alike():
    """Both are of one number each: a variable, and a constant."""
    with pm.Model() as model:
        x = pm.Normal("x", shape=2)
        with pytest.warns(ImputationWarning):
            pm.Normal("y", x, observed=[np.nan, 1.0])
    mvn.verify(model)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.filterwarnings("ignore:pytensor.tensor.linalg.trace:FutureWarning")
def test_models_agree(name):
    assert name in MODELS
    model, _ = built(name)
    mvn.verify(model, points=1, modes=PIPELINE_MODE).check()


def wrong(outputs):
    return lambda self, node: [outputs(self, node)[0] * (1 + 1e-6), *outputs(self, node)[1:]]


@pytest.mark.parametrize("hessian", [False, True])
def test_a_wrong_rule_is_found(monkeypatch, hessian):
    model, _ = built("diagonal")
    monkeypatch.setattr(Diagonal, "outputs", wrong(Diagonal.outputs))
    found = mvn.verify(model, modes=PIPELINE_MODE, hessian=hessian)
    assert not found.ok
    assert {c.quantity for c in found.differing} == {"logp", "gradient"} | (
        {"hessian"} if hessian else set()
    )
    assert found.worst("gradient") > 1e-7
    assert "gradient of " in str(found)
    with pytest.raises(VerificationError, match="DIFFERS"):
        found.check()


def test_rounding_is_no_difference():
    """Of a matrix that is nearly singular, whose factor is known without factorizing it."""
    model, _ = built("Gram")
    found = mvn.verify(model, modes=PIPELINE_MODE).check()
    rounded = [c for c in found.comparisons if c.rounding]
    assert rounded
    assert all(c.rounding > c.difference > 1e-9 for c in rounded)
    assert "rounding of the unrewritten graph is larger at" in str(found)


def test_points_and_modes_are_what_was_asked_for():
    model, point = built("scaled constant")
    modes = [PIPELINE_MODE, Mode(linker="vm", optimizer="fast_compile")]
    found = mvn.verify(model, points=[point, point], modes=modes).check()
    assert found.points == 2
    assert {c.mode for c in found.comparisons} == {"PerformLinker", "VMLinker"}


def test_a_flat_prior_has_no_draws():
    with pm.Model() as model:
        x = pm.Flat("x", shape=2)
        pm.MvNormal("y", x, np.eye(2), observed=np.ones(2))
    assert mvn.verify(model, modes=PIPELINE_MODE).check().points == 7


def test_a_model_without_continuous_variables():
    with pm.Model() as model:
        k = pm.Poisson("k", 3.0)
        pm.MvNormal("y", k * np.ones(2), np.eye(2), observed=np.ones(2))
    found = mvn.verify(model, modes=PIPELINE_MODE).check()
    assert {c.quantity for c in found.comparisons} == {"logp"}
