"""Models without a multivariate normal, one function each: what the plugin must not make worse."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

RNG = np.random.default_rng(20261129)
N, P = 20, 3
X = RNG.normal(size=(N, P))
Y = X @ RNG.normal(size=P) + RNG.normal(size=N)
POSITIVE = np.exp(0.3 * Y)
COUNTS = RNG.poisson(3, size=N)
GROUP = RNG.integers(0, 4, size=N)
TIME = np.linspace(0, 1, N)
PLAIN_MODELS = {}


def plain_model(builder):
    """Collect a builder under its name."""
    PLAIN_MODELS[builder.__name__] = builder
    return builder


def hsgp(name: str, x=TIME, *, amplitude: bool = True):
    """One Hilbert space approximation of a Gaussian process, with its own hyperparameters."""
    ell = pm.InverseGamma(f"ell_{name}", 5, 2)
    cov = pm.gp.cov.ExpQuad(1, ls=ell)
    if amplitude:
        cov = pm.HalfNormal(f"eta_{name}") ** 2 * cov
    gp = pm.gp.HSGP(m=[8], c=1.5, cov_func=cov)
    return gp.prior(f"f_{name}", X=np.asarray(x)[:, None])


@plain_model
def eight_schools_centered():
    with pm.Model() as model:
        mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
        theta = pm.Normal("theta", mu, tau, shape=8)
        pm.Normal("y", theta, np.arange(9, 17), observed=np.arange(8.0))
    return model


@plain_model
def eight_schools():
    with pm.Model(coords={"school": list("ABCDEFGH")}) as model:
        mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
        z = pm.Normal("z", dims="school")
        pm.Normal("y", mu + tau * z, np.arange(9, 17), observed=np.arange(8.0), dims="school")
    return model


@plain_model
def linear_regression():
    with pm.Model() as model:
        a, b, s = pm.Normal("a"), pm.Normal("b", shape=P), pm.HalfNormal("s")
        pm.Normal("y", a + X @ b, s, observed=Y)
    return model


@plain_model
def separate_slopes():
    """A scalar variable for each slope, as in many a tutorial."""
    with pm.Model() as model:
        a, s = pm.Normal("a"), pm.Exponential("s", 1)
        b = [pm.Normal(f"b_{j}", 0, 2) for j in range(P)]
        pm.Normal("y", a + sum(b[j] * X[:, j] for j in range(P)), s, observed=Y)
    return model


@plain_model
def logistic_regression():
    with pm.Model() as model:
        a, b = pm.Normal("a", 0, 2), pm.Normal("b", shape=P)
        pm.Bernoulli("y", logit_p=a + X @ b, observed=Y > 0)
    return model


@plain_model
def poisson_regression():
    with pm.Model() as model:
        a, b = pm.Normal("a"), pm.Normal("b", shape=P)
        pm.Poisson("y", pt.exp(a + X @ b), observed=COUNTS)
    return model


@plain_model
def negative_binomial_with_data():
    """The design in `pm.Data`."""
    with pm.Model(coords={"slope": range(P)}) as model:
        design = pm.Data("design", X)
        b = pm.Normal("b", dims="slope")
        pm.NegativeBinomial(
            "y", mu=pt.exp(design @ b), alpha=pm.Gamma("alpha", 2, 1), observed=COUNTS
        )
    return model


@plain_model
def hierarchical():
    """Varying intercepts and slopes, not centered."""
    with pm.Model() as model:
        mu_a, mu_b = pm.Normal("mu_a"), pm.Normal("mu_b")
        s_a, s_b = pm.HalfNormal("s_a"), pm.HalfNormal("s_b")
        a = mu_a + s_a * pm.Normal("z_a", shape=4)
        b = mu_b + s_b * pm.Normal("z_b", shape=4)
        pm.Normal("y", a[GROUP] + b[GROUP] * TIME, pm.HalfNormal("s"), observed=Y)
    return model


@plain_model
def hierarchical_centered():
    with pm.Model() as model:
        a = pm.Normal("a", pm.Normal("mu_a"), pm.HalfNormal("s_a"), shape=4)
        b = pm.Normal("b", pm.Normal("mu_b"), pm.HalfNormal("s_b"), shape=4)
        pm.Normal("y", a[GROUP] + b[GROUP] * TIME, pm.HalfNormal("s"), observed=Y)
    return model


@plain_model
def one_hsgp():
    with pm.Model() as model:
        pm.Normal("y", hsgp("a"), pm.HalfNormal("s"), observed=Y)
    return model


@plain_model
def two_hsgps():
    with pm.Model() as model:
        pm.Normal("y", hsgp("a") + hsgp("b", X[:, 0]), pm.HalfNormal("s"), observed=Y)
    return model


@plain_model
def three_hsgps():
    with pm.Model() as model:
        f = hsgp("a") + hsgp("b", X[:, 0]) + hsgp("c", X[:, 1])
        pm.Normal("y", f, pm.HalfNormal("s"), observed=Y)
    return model


@plain_model
def two_hsgps_of_unit_amplitude():
    with pm.Model() as model:
        f = hsgp("a", amplitude=False) + hsgp("b", X[:, 0], amplitude=False)
        pm.StudentT("y", nu=4, mu=f, sigma=pm.HalfNormal("s"), observed=Y)
    return model


@plain_model
def heteroscedastic_hsgp():
    with pm.Model() as model:
        pm.Normal("y", hsgp("mean"), pt.exp(hsgp("log_sd")), observed=Y)
    return model


@plain_model
def autoregressive():
    with pm.Model() as model:
        rho = pm.Normal("rho", 0, 0.5, shape=2)
        init = pm.Normal.dist(0, 1, shape=2)
        pm.AR("y", rho=rho, sigma=pm.HalfNormal("s"), init_dist=init, observed=Y)
    return model


@plain_model
def gaussian_random_walk():
    with pm.Model() as model:
        walk = pm.GaussianRandomWalk(
            "walk", sigma=pm.HalfNormal("s"), init_dist=pm.Normal.dist(), steps=N - 1
        )
        pm.Normal("y", walk, pm.HalfNormal("noise"), observed=Y)
    return model


@plain_model
def stochastic_volatility():
    with pm.Model() as model:
        step = pm.Exponential("step", 10)
        volatility = pm.GaussianRandomWalk(
            "h", sigma=step, init_dist=pm.Normal.dist(0, 10), steps=N - 1
        )
        pm.StudentT("y", nu=pm.Exponential("nu", 0.1), sigma=pt.exp(volatility), observed=Y)
    return model


@plain_model
def mixture():
    with pm.Model() as model:
        w = pm.Dirichlet("w", np.ones(3))
        mu = pm.Normal("mu", 0, 5, shape=3)
        pm.NormalMixture("y", w=w, mu=mu, sigma=pm.HalfNormal("s", shape=3), observed=Y)
    return model


@plain_model
def mixture_of_list():
    with pm.Model() as model:
        w = pm.Dirichlet("w", np.ones(2))
        components = [
            pm.Normal.dist(pm.Normal("m_0"), pm.HalfNormal("s_0")),
            pm.Normal.dist(pm.Normal("m_1"), pm.HalfNormal("s_1")),
        ]
        pm.Mixture("y", w=w, comp_dists=components, observed=Y)
    return model


@plain_model
def ordered_logit():
    with pm.Model() as model:
        cut = pm.Normal(
            "cut", [-1, 0, 1], 1, transform=pm.distributions.transforms.ordered, initval=[-1, 0, 1]
        )
        b = pm.Normal("b", shape=P)
        pm.OrderedLogistic("y", eta=X @ b, cutpoints=cut, observed=GROUP)
    return model


@plain_model
def weibull_survival():
    """Censored: a potential of the survival function."""
    censored = Y > 0.5
    with pm.Model() as model:
        alpha, b = pm.HalfNormal("alpha"), pm.Normal("b", shape=P)
        scale = pt.exp(X @ b / alpha)
        pm.Weibull("y", alpha, scale[~censored], observed=POSITIVE[~censored])
        pm.Potential("late", -(((POSITIVE / scale) ** alpha)[censored]))
    return model


@plain_model
def censored():
    with pm.Model() as model:
        latent = pm.Normal.dist(pm.Normal("mu"), pm.HalfNormal("s"))
        pm.Censored("y", latent, lower=None, upper=1.0, observed=np.minimum(Y, 1.0))
    return model


@plain_model
def zero_inflated_poisson():
    with pm.Model() as model:
        psi, mu = pm.Beta("psi", 1, 1), pm.Gamma("mu", 2, 0.5)
        pm.ZeroInflatedPoisson("y", psi, mu, observed=COUNTS)
    return model


@plain_model
def dirichlet_multinomial():
    counts = RNG.multinomial(30, [0.2, 0.3, 0.5], size=6)
    with pm.Model() as model:
        share = pm.Dirichlet("share", np.ones(3))
        concentration = pm.LogNormal("concentration", 1, 1)
        pm.DirichletMultinomial("y", n=30, a=share * concentration, observed=counts)
    return model


@plain_model
def lkj_correlation():
    """A correlation matrix and what is computed from it, but no normal."""
    with pm.Model() as model:
        corr = pm.LKJCorr("corr", n=3, eta=2)
        pm.Normal("y", corr.mean(), 1.0, observed=Y)
    return model


@plain_model
def lkj_effects():
    """Correlated effects by a Cholesky factor times standard normals."""
    with pm.Model() as model:
        chol, _, _ = pm.LKJCholeskyCov("chol", n=2, eta=2, sd_dist=pm.Exponential.dist(1, shape=2))
        effects = pm.Normal("z", shape=(4, 2)) @ chol.T
        pm.Normal("y", effects[GROUP, 0] + effects[GROUP, 1] * TIME, 1.0, observed=Y)
    return model


@plain_model
def garch():
    """GARCH(1, 1), written by hand with a scan."""
    with pm.Model() as model:
        omega, alpha, beta = pm.HalfNormal("omega"), pm.Beta("alpha", 1, 3), pm.Beta("beta", 3, 1)
        variance = pytensor.scan(
            lambda y, v, w, a, b: w + a * y**2 + b * v,
            sequences=[pt.as_tensor(Y[:-1])],
            outputs_info=[pt.as_tensor(np.float64(1))],
            non_sequences=[omega, alpha, beta],
            return_updates=False,
        )
        pm.Normal("y", 0.0, pt.sqrt(variance), observed=Y[1:])
    return model


@plain_model
def spline():
    basis = np.maximum(TIME[:, None] - np.linspace(0, 0.9, 6), 0) ** 3
    with pm.Model() as model:
        w = pm.Normal("w", 0, pm.HalfNormal("tau"), shape=6)
        pm.Normal("y", pm.Normal("a") + pt.dot(basis, w), pm.Exponential("s", 1), observed=Y)
    return model


@plain_model
def missing_values():
    data = Y.copy()
    data[[2, 5]] = np.nan
    with pm.Model() as model:
        pm.Normal("y", pm.Normal("mu"), pm.HalfNormal("s"), observed=np.ma.masked_invalid(data))
    return model


@plain_model
def change_point():
    with pm.Model() as model:
        tau = pm.Uniform("tau", 0, 1)
        early, late = pm.Exponential("early", 1), pm.Exponential("late", 1)
        pm.Poisson("y", pt.switch(TIME < tau, early, late), observed=COUNTS)
    return model


@plain_model
def robust_regression_of_two_predictors():
    """Two scalar slopes, two scalar scales."""
    with pm.Model() as model:
        b1, b2 = pm.Normal("b1", 0, 1), pm.Normal("b2", 0, 1)
        s1, s2 = pm.HalfCauchy("s1", 1), pm.HalfCauchy("s2", 1)
        mu = b1 * X[:, 0] + b2 * X[:, 1]
        pm.StudentT("y", nu=3, mu=mu, sigma=pt.sqrt(s1**2 + s2**2 * X[:, 2] ** 2), observed=Y)
    return model


@plain_model
def item_response():
    """Two parameter logistic model."""
    answers = RNG.integers(0, 2, size=(6, 5))
    with pm.Model() as model:
        ability, difficulty = pm.Normal("ability", shape=(6, 1)), pm.Normal("difficulty", shape=5)
        slope = pm.LogNormal("slope", 0, 0.5, shape=5)
        pm.Bernoulli("y", logit_p=slope * (ability - difficulty), observed=answers)
    return model


@plain_model
def fourier_seasonality():
    """Trend with a prior on each coefficient, and two seasonalities."""
    with pm.Model() as model:
        trend = pm.Normal("k") * TIME + pm.Normal("m")
        total = trend
        for name, order in (("week", 2), ("year", 3)):
            waves = [g(2 * np.pi * (i + 1) * TIME) for i in range(order) for g in (np.sin, np.cos)]
            total = total + pt.dot(np.stack(waves, 1), pm.Normal(name, shape=2 * order))
        pm.Normal("y", total, pm.HalfNormal("s"), observed=Y)
    return model


@plain_model
def media_mix():
    """Saturation and adstock of three channels in a loop: short, but all alike."""
    spend = np.abs(X)
    with pm.Model() as model:
        total = pm.Normal("intercept")
        for j in range(P):
            lam, beta = pm.Gamma(f"lam_{j}", 3, 1), pm.HalfNormal(f"beta_{j}")
            saturated = (1 - pt.exp(-lam * spend[:, j])) / (1 + pt.exp(-lam * spend[:, j]))
            total = total + beta * saturated
        pm.Normal("y", total, pm.HalfNormal("s"), observed=Y)
    return model


@plain_model
def two_outcomes():
    """Two likelihoods alike, each with parameters of its own."""
    with pm.Model() as model:
        for name, data in (("u", Y), ("v", X[:, 0])):
            a, b = pm.Normal(f"a_{name}"), pm.Normal(f"b_{name}")
            pm.Normal(name, a + b * TIME, pm.HalfNormal(f"s_{name}"), observed=data)
    return model


@plain_model
def predator_and_prey():
    """A system of differential equations by Euler steps in a scan."""
    with pm.Model() as model:
        a, b = pm.LogNormal("a", 0, 0.5), pm.LogNormal("b", 0, 0.5)

        def step(u, v, a, b):
            return u + 0.1 * (a * u - u * v), v + 0.1 * (u * v - b * v)

        u, v = pytensor.scan(
            step,
            outputs_info=[pt.as_tensor(np.float64(1)), pt.as_tensor(np.float64(0.5))],
            non_sequences=[a, b],
            n_steps=N,
            return_updates=False,
        )
        pm.LogNormal("prey", pt.log(u), 0.5, observed=POSITIVE)
        pm.LogNormal("predator", pt.log(v), 0.5, observed=POSITIVE)
    return model


@plain_model
def multinomial_logit():
    with pm.Model() as model:
        b = pm.Normal("b", shape=(P, 3))
        eta = pt.concatenate([pt.zeros((N, 1)), X @ b], axis=1)
        pm.Categorical("y", logit_p=eta, observed=GROUP)
    return model
