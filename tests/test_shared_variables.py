"""What a shared variable holds may change after compiling: data, lengths, a sampler's variables.

The same model with other data must give what the graph as it was written gives for them.
"""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.pytensorf import rewrite_pregrad
from scipy.stats import multivariate_normal

import pytensor_mvn_rewrites as mvn
from tests.harness import PIPELINE_MODE, REFERENCE_MODE, logp_and_gradient, on_and_off

RNG = np.random.default_rng(20261129)
N, Q = 40, 3
DATA = RNG.normal(size=(N, Q))
COV = np.eye(Q) + 0.2
INDEX = np.arange(N) % 3 + 1
X = RNG.normal(size=(N, Q))

#: The log-density of a model of pm.Data D, and two values of D
CASES = {}


def case(before, after):
    """Collect ``function(D, s)``, the mean and covariance; s is a positive parameter."""

    def register(function):
        CASES[function.__name__] = (function, np.asarray(before), np.asarray(after))
        return function

    return register


@case(np.eye(Q), 4 * np.eye(Q))
def covariance(D, s):
    return s * np.ones(Q), D + 0.1 * np.eye(Q)


@case(np.eye(Q), 4 * np.eye(Q))
def scaled_symmetric_covariance(D, s):
    return np.zeros(Q), s * (D + D.T)


@case(np.eye(Q), 4 * np.eye(Q))
def covariance_per_row(D, s):
    return np.zeros(Q), s * (D + np.stack([np.eye(Q), COV]))[INDEX % 2]


@case(np.eye(Q), 4 * np.eye(Q))
def cholesky_factor(D, s):
    return np.zeros(Q), s * (2 * D @ (2 * D).T)


@case(np.arange(3.0), [0.0, 0.1, 0.5])
def covariance_function(D, s):
    return np.zeros(Q), s * (pt.exp(-((D[:, None] - D) ** 2)) + 0.1 * np.eye(Q))


@case([1.0, 2.0, 3.0], [2.0, 0.1, 1.0])
def diagonal(D, s):
    return np.zeros(Q), s * pt.diag(D + 1)


@case(2.0, 5.0)
def scale(D, s):
    return s * np.ones(Q), (D + 1) * COV


@case(INDEX, INDEX[::-1] % 3 + 1)
def index_of_the_mean(D, s):
    return (s * np.arange(9.0).reshape(3, 3))[D - 1], COV


@case(INDEX, INDEX[::-1] % 3 + 1)
def index_of_the_covariance(D, s):
    return np.zeros(Q), (s * np.stack([COV, 2 * COV, 3 * COV]))[D - 1]


@case(X, 3 * X[::-1])
def centered_design(D, s):
    return (D - D.mean(0)) @ (s * np.arange(9.0).reshape(3, 3)), COV


@case(X, 3 * X[::-1])
def scaled_offset(D, s):
    return s + 2 * D, COV


def model_of(function, value) -> pm.Model:
    with pm.Model() as model:
        s = pm.HalfNormal("s")
        mu, cov = function(pm.Data("D", value), s)
        pm.MvNormal("y", mu, cov=cov, observed=DATA)
    return model


@pytest.mark.parametrize("loop", [False, True], ids=["one density", "loop"])
@pytest.mark.parametrize("name", CASES)
def test_set_data(name, loop):
    function, before, after = CASES[name]
    model = model_of(function, before)
    if loop:
        with model:
            for i in range(3):
                mu, cov = function(model["D"], pm.HalfNormal(f"s_{i}"))
                pm.MvNormal(f"y_{i}", mu, cov=cov, observed=DATA + i)
    fn, reference = on_and_off(lambda mode: logp_and_gradient(model, mode))
    point = {name: value + 0.2 for name, value in model.initial_point().items()}
    results = []
    for value in (before, after):
        with model:
            pm.set_data({"D": value})
        results.append(reference(point))
        for got, want in zip(fn(point), results[-1], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10)
    assert not np.allclose(results[0][0], results[1][0])


def test_set_dim():
    with pm.Model(coords={"f": range(Q)}) as model:
        s = pm.HalfNormal("s")
        y = pm.Data("D", DATA, dims=("row", "f"))
        cov = s * (pt.eye(model.dim_lengths["f"]) + 0.5)
        pm.MvNormal("y", 0, cov=cov, observed=y)
    logp = model.compile_logp(mode=PIPELINE_MODE)
    larger = np.hstack([DATA, DATA])
    with model:
        pm.set_data({"D": larger}, coords={"f": range(2 * Q)})
    with mvn.disable():
        reference = model.compile_logp(mode=REFERENCE_MODE)
    point = {"s_log__": np.array(0.3)}
    np.testing.assert_allclose(logp(point), reference(point), rtol=1e-12)


def rows_and_scale(seed_of_data=0) -> pm.Model:
    """The loop whose two parameters a step method takes in turn."""
    rng = np.random.default_rng(seed_of_data)
    with pm.Model() as model:
        mu, s = pm.Normal("mu", 0, 3, shape=2), pm.HalfNormal("s")
        for n in range(4):
            pm.MvNormal(f"y{n}", mu, s * (np.eye(2) + 0.5), observed=rng.normal(2, size=(8, 2)))
    return model


#: How many draws two chains are the same for: leapfrog steps make little differences large
STEPS = {
    pm.Metropolis: 20,
    pm.DEMetropolisZ: 20,
    pm.Slice: 10,
    pm.HamiltonianMC: 5,
    pm.NUTS: 5,
}


@pytest.mark.filterwarnings("ignore")  # of the sampler, about so few draws
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_step_methods(step):
    """The other variables of a step method are shared: the chain is the one without the plugin."""
    chains = []
    for context in (mvn.enable, mvn.disable):
        with context(), rows_and_scale():
            idata = pm.sample(
                draws=STEPS[step],
                tune=STEPS[step],
                chains=1,
                cores=1,
                step=step(compile_kwargs={"mode": PIPELINE_MODE}),
                progressbar=False,
                random_seed=1,
                compute_convergence_checks=False,
            )
        chains.append(idata.posterior)
    for name in ("mu", "s"):
        np.testing.assert_allclose(chains[0][name], chains[1][name], rtol=1e-6)
    assert np.ptp(chains[0]["s"].values) > 1e-3


def test_sequential_monte_carlo():
    samples = []
    for context in (mvn.enable, mvn.disable):
        with context(), rows_and_scale():
            idata = pm.sample_smc(
                20,
                chains=1,
                cores=1,
                random_seed=1,
                progressbar=False,
                compute_convergence_checks=False,
                compile_kwargs={"mode": PIPELINE_MODE},
            )
        samples.append(idata.posterior)
    np.testing.assert_allclose(samples[0]["mu"], samples[1]["mu"], rtol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_maximum_a_posteriori():
    found = []
    for context in (mvn.enable, mvn.disable):
        # older versions of PyMC take no `compile_kwargs` here
        with context(), rows_and_scale(), pytensor.config.change_flags(mode=PIPELINE_MODE):
            found.append(pm.find_MAP(seed=1, progressbar=False))
    np.testing.assert_allclose(found[0]["mu"], found[1]["mu"], rtol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["fullrank_advi", "svgd"])
def test_other_approximations(method):
    means = []
    for context in (mvn.enable, mvn.disable):
        with context(), rows_and_scale():
            kwargs = {"compile_kwargs": {"mode": PIPELINE_MODE}, "progressbar": False}
            kwargs |= {"inf_kwargs": {"n_particles": 5}} if method == "svgd" else {}
            np.random.seed(1)  # noqa: NPY002, the particles begin where NumPy says
            approximation = pm.fit(5, method=method, random_seed=3, **kwargs)
            means.append([shared.eval() for shared in approximation.params])
    for got, want in zip(*means, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch_size", [None, 10], ids=["all rows", "minibatch"])
def test_variational_inference(batch_size):
    """Of the loss, the parameters of the approximation are shared, and draws are its inputs."""
    histories = []
    for context in (mvn.enable, mvn.disable):
        with context(), pm.Model():
            mu, s = pm.Normal("mu", 0, 3, shape=Q), pm.HalfNormal("s")
            y = DATA if batch_size is None else pm.Minibatch(DATA, batch_size=batch_size)
            pm.MvNormal("y", mu, s * COV, observed=y, total_size=N)
            kwargs = {"compile_kwargs": {"mode": PIPELINE_MODE}, "progressbar": False}
            histories.append(pm.fit(8, random_seed=3, **kwargs).hist)
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-9)
    assert np.ptp(histories[0]) > 0.1


def test_draws_before_the_gradient():
    """The likelihood stays when draws of shared parameters stand for the variables of a model."""
    loc, log_sd = pytensor.shared(np.zeros(2), "loc"), pytensor.shared(np.zeros(2), "log_sd")
    rng = pytensor.shared(np.random.default_rng(1), "rng")
    results = []
    for context in (mvn.enable, mvn.disable):
        with context():
            model = rows_and_scale()
            _, noise = pt.random.normal(size=(3,), rng=rng, return_next_rng=True)
            mu = loc + pt.exp(log_sd) * noise[:2]
            logp = model.logp()
            inputs = dict(zip(model.value_vars, (mu, noise[2]), strict=True))
            [logp] = pytensor.graph.replace.graph_replace([logp], inputs)
            logp = rewrite_pregrad(logp)
            gradient = pt.grad(logp, [loc, log_sd])
            fn = pytensor.function([], [logp, *gradient], mode=PIPELINE_MODE)
            for value in (0.0, 1.5):
                loc.set_value(np.full(2, value))
                results.append(fn())
    for ours, reference in zip(results[:2], results[2:], strict=True):
        for got, want in zip(ours, reference, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n_particles", [1, 3])
def test_fit_advi(n_particles):
    advi = pytest.importorskip("pymc_extras.inference.advi.fit")
    histories = []
    for context in (mvn.enable, mvn.disable):
        with context():
            idata = advi.fit_advi(
                rows_and_scale(),
                n_steps=6,
                draws=2,
                n_particles=n_particles,
                random_seed=3,
                compile_kwargs={"mode": PIPELINE_MODE},
            )
        histories.append(idata["fit"].elbo)
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["fit_pathfinder", "fit_dadvi", "fit_laplace"])
def test_approximations_of_pymc_extras(method):
    """Of 1000 draws with the same seed, after an optimizer that ends where the gradient says."""
    fit = getattr(pytest.importorskip("pymc_extras.inference"), method)
    means = []
    for context in (mvn.enable, mvn.disable):
        with context():
            idata = fit(model=rows_and_scale(), random_seed=3, progressbar=False)
        means.append(idata.posterior["mu"].mean(("chain", "draw")))
    np.testing.assert_allclose(*means, atol=0.05)


#: Samplers that are not PyMC's own: the package they need, and what says which they are
SAMPLERS = {
    "nutpie, Numba": ("nutpie", {"nuts_sampler": "nutpie"}),
    "nutpie, JAX": (
        "nutpie",
        {"nuts_sampler": "nutpie", "nuts_sampler_kwargs": {"backend": "jax"}},
    ),
    "NumPyro": ("numpyro", {"nuts_sampler": "numpyro"}),
    "BlackJAX": ("blackjax", {"nuts_sampler": "blackjax"}),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLERS)
def test_other_samplers(name):
    """Rounding makes chains differ in the end; what they estimate agrees within its error."""
    package, keywords = SAMPLERS[name]
    pytest.importorskip(package)
    if "JAX" in name:
        pytest.importorskip("jax")
    means, errors = [], []
    for context in (mvn.enable, mvn.disable):
        with context(), rows_and_scale():
            idata = pm.sample(
                draws=400,
                tune=300,
                chains=1,
                cores=1,
                progressbar=False,
                random_seed=1,
                compute_convergence_checks=False,
                **keywords,
            )
        draws = np.column_stack([idata.posterior["mu"][0], np.log(idata.posterior["s"][0])])
        means.append(draws.mean(axis=0))
        # of batches, which hardly depend on each other
        errors.append(draws.reshape(10, 40, 3).mean(axis=1).std(axis=0, ddof=1) / np.sqrt(10))
    assert (np.abs(means[0] - means[1]) < 4 * np.hypot(*errors)).all()
    # there is something to estimate: the errors are small
    assert (np.hypot(*errors) < 0.05).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nutpie_with_other_data():
    nutpie = pytest.importorskip("nutpie")
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 100, shape=Q)
        pm.MvNormal("y", mu + 2 * pm.Data("D", X), cov=COV, observed=DATA)
    compiled = nutpie.compile_pymc_model(model).with_data(D=X + 5)
    idata = nutpie.sample(compiled, draws=100, tune=100, chains=1, seed=1, progress_bar=False)
    # the mean of a normal of known covariance; its standard deviation is 0.17
    expected = (DATA - 2 * (X + 5)).mean(axis=0)
    np.testing.assert_allclose(idata.posterior["mu"].mean(("chain", "draw")), expected, atol=0.15)


def test_against_scipy():
    with pm.Model() as model:
        D = pm.Data("D", np.eye(Q))
        pm.MvNormal("y", pm.Flat("mu", shape=Q), cov=D + 0.1 * np.eye(Q), observed=DATA)
    logp = model.compile_logp(mode=PIPELINE_MODE)
    with model:
        pm.set_data({"D": 4 * np.eye(Q)})
    expected = multivariate_normal.logpdf(DATA, np.ones(Q), 4.1 * np.eye(Q)).sum()
    np.testing.assert_allclose(logp({"mu": np.ones(Q)}), expected, rtol=1e-12)
