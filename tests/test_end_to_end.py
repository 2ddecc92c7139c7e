"""The loop of the thread all the way: kernels, samplers, variational inference, draws.

Compiled with PyTensor's default backend. The small sizes run everywhere; the full size of the
bars (N=1000) is marked slow, and runs too.
"""

import numpy as np
import pymc as pm
import pytest
from scipy.stats import halfnorm, multivariate_normal, norm

Q = 3


def loop(n_terms):
    """The model of the thread, and its data."""
    rng = np.random.default_rng(n_terms)
    a = rng.normal(size=(n_terms, Q, Q))
    covs = a @ a.mT + Q * np.eye(Q)
    data = rng.normal(size=(n_terms, Q))
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        mu = pm.Normal("mu", 0, 1, shape=(n_terms, Q))
        for n in range(n_terms):
            pm.MvNormal(f"x_{n}", mu=mu[n], cov=scale * covs[n], observed=data[n])
    return model, covs, data


def closed_form(covs, data, log_scale, mu):
    """Log-density and gradient from SciPy and the textbook."""
    scale = np.exp(log_scale)
    logp = halfnorm.logpdf(scale) + log_scale + norm.logpdf(mu).sum()
    logp += sum(
        multivariate_normal.logpdf(x, m, scale * cov)
        for x, m, cov in zip(data, mu, covs, strict=True)
    )
    alpha = np.linalg.solve(scale * covs, (data - mu)[..., None])[..., 0]
    quaddist = (alpha * (data - mu)).sum()
    d_log_scale = -(scale**2) + 1 + 0.5 * quaddist - 0.5 * data.size
    return logp, d_log_scale, alpha - mu


@pytest.fixture(scope="module")
def compiled():
    model, covs, data = loop(50)
    function = model.logp_dlogp_function(ravel_inputs=True)
    function.set_extra_values({})
    return model, covs, data, function


def test_kernel_ran(compiled):
    *_, function = compiled
    ops = [str(node.op) for node in function._pytensor_function.maker.fgraph.apply_nodes]
    fused = [op for op in ops if "InvQuadLogdet" in op]
    assert len(fused) == 1
    assert fused[0].startswith("NumbaInvQuadLogdet{chol, n=3")
    assert not any("Cholesky" in op or "Solve" in op for op in ops)
    assert len(ops) < 25


def test_against_scipy(compiled, rng):
    _, covs, data, function = compiled
    for _ in range(3):
        log_scale, mu = rng.normal(), rng.normal(size=(50, Q))
        logp, gradient = function(np.concatenate([[log_scale], mu.ravel()]))
        expected, d_log_scale, d_mu = closed_form(covs, data, log_scale, mu)
        np.testing.assert_allclose(logp, expected, rtol=1e-11)
        np.testing.assert_allclose(gradient, [d_log_scale, *d_mu.ravel()], rtol=1e-9, atol=1e-10)


def test_not_positive_definite_is_minus_infinity():
    _, covs, data = loop(4)
    with pm.Model() as model:
        c = pm.Normal("c")
        for n in range(4):
            pm.MvNormal(f"x_{n}", mu=np.zeros(Q), cov=covs[n] - c * np.eye(Q), observed=data[n])
    logp = model.compile_logp()
    assert np.isfinite(logp({"c": 0.0}))
    assert logp({"c": 1e3}) == -np.inf


def sample(model, sampler, draws=20):
    with model:
        return pm.sample(
            draws=draws,
            tune=draws,
            chains=1,
            cores=1,
            nuts_sampler=sampler,
            progressbar=False,
            random_seed=1,
            compute_convergence_checks=False,
        )


@pytest.mark.filterwarnings("ignore")  # of the samplers, about so few draws
@pytest.mark.parametrize("sampler", ["nutpie", "pymc"])
def test_samplers(compiled, sampler):
    model, *_ = compiled
    idata = sample(model, sampler)
    assert idata.posterior["mu"].shape == (1, 20, 50, Q)
    assert np.isfinite(idata.posterior["scale"]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sampler", ["nutpie", "pymc"])
def test_samplers_at_full_size(sampler):
    model, *_ = loop(1000)
    idata = sample(model, sampler)
    assert idata.posterior["mu"].shape == (1, 20, 1000, Q)
    assert np.isfinite(idata.posterior["scale"]).all()


@pytest.mark.filterwarnings("ignore")
def test_everything_else_that_pymc_does_with_a_model():
    """Log-likelihoods for each term, posterior predictive draws, ADVI, a MAP estimate."""
    model, covs, data = loop(5)
    idata = sample(model, "pymc", draws=5)
    with model:
        pm.compute_log_likelihood(idata, progressbar=False)
        predictive = pm.sample_posterior_predictive(idata, progressbar=False, random_seed=1)
        approximation = pm.fit(20, progressbar=False, random_seed=1)
        estimate = pm.find_MAP(progressbar=False)
    draw = {name: idata.posterior[name].values[0, 0] for name in ("scale", "mu")}
    for n in range(5):
        expected = multivariate_normal.logpdf(data[n], draw["mu"][n], draw["scale"] * covs[n])
        actual = idata.log_likelihood[f"x_{n}"].values[0, 0]
        np.testing.assert_allclose(actual, expected, rtol=1e-10)
        assert predictive.posterior_predictive[f"x_{n}"].shape == (1, 5, Q)
    assert np.isfinite(approximation.hist).all()
    assert np.isfinite(estimate["scale"])


@pytest.mark.slow
def test_hessian_is_compiled_too():
    model, *_ = loop(3)
    hessian = model.compile_d2logp(negate_output=False)
    value = hessian(model.initial_point())
    assert value.shape == (10, 10)
    np.testing.assert_allclose(value, value.T, atol=1e-9)
