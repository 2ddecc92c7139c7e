"""Models that are loops of random variables, and how many of their variables are in loops."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt

N = 9
ROWS = np.random.default_rng(0).normal(size=(N, 4, 2))


def mvnormals():
    mu = pm.Normal("mu", shape=(N, 2))
    L = pm.Normal("L", shape=(N, 2, 2))
    for n in range(N):
        pm.MvNormal(f"x_{n}", mu[n], cov=L[n] @ L[n].T + np.eye(2), observed=ROWS[n, 0])


def precisions_of_latent_scales():
    """Bounds that differ from member to member, in the transform and in its Jacobian."""
    for n in range(N):
        scale = pm.HalfNormal(f"scale_{n}")
        upper = pm.Uniform(f"upper_{n}", 0, n + 1.0)
        mean = pm.Normal(f"mean_{n}", upper, scale, shape=2)
        pm.MvNormal(f"x_{n}", mean, tau=np.eye(2) * scale, observed=ROWS[n])


def random_walk():
    """Each depends on the one before it."""
    x = pm.Normal("x_0")
    for n in range(1, N + 1):
        x = pm.Normal(f"x_{n}", 0.9 * x, 1 + n)
    pm.Normal("y", x, 1, observed=2.0)


def lkj_groups():
    for n in range(N):
        sd = pm.Exponential.dist(1.0 + n)
        chol, _, _ = pm.LKJCholeskyCov(f"chol_{n}", n=2, eta=2.0, sd_dist=sd)
        pm.MvNormal(f"x_{n}", np.zeros(2), chol=chol, observed=ROWS[n, :2])


def ragged_groups():
    """The same with many rows, and with a number of rows of each group's own."""
    scale = pm.HalfNormal("scale", shape=N)
    for n in range(N):
        mean = pm.Normal(f"mean_{n}", shape=2)
        cov = scale[n] * np.eye(2) + 0.3
        pm.MvNormal(f"x_{n}", mean, cov, observed=ROWS.reshape(-1, 2)[: 1 + n])
        pm.Normal(f"y_{n}", mean[0], scale[n], observed=ROWS[n, 0, 0] * np.ones(N - n))


def many_rows():
    sd = pm.HalfNormal("sd", shape=(N, 2))
    for n in range(N):
        pm.MvNormal(f"x_{n}", np.zeros(2), cov=pt.diag(sd[n]), observed=np.tile(ROWS[n], (3, 1)))


def discrete():
    p = pm.Beta("p", 1, 1, shape=N)
    z = [pm.Bernoulli(f"z_{n}", p=p[n]) for n in range(N)]
    for n in range(N):
        pm.Binomial(f"k_{n}", n=5 + n, p=p[n], observed=n)
        pm.Normal(f"y_{n}", z[n] * 2.0, 1.0, observed=ROWS[n, 0])
    pm.Potential("potential", sum(z) * 0.5)


def parts_that_are_draws():
    """Mixtures, censored variables and random walks, whose components are distributions."""
    s = pm.HalfNormal("s")
    for n in range(N):
        components = [pm.Normal.dist(n, 1), pm.Normal.dist(s, 1)]
        pm.Mixture(f"mixture_{n}", w=[0.2, 0.8], comp_dists=components, observed=0.3 * n)
        steps = {"init_dist": pm.Normal.dist(0, 1), "steps": 3}
        pm.GaussianRandomWalk(f"walk_{n}", mu=s, sigma=n + 1.0, **steps)
        censored = pm.Normal.dist(s, n + 1.0)
        pm.Censored(f"censored_{n}", censored, lower=-1, upper=1, observed=0.5)
        pm.ZeroInflatedPoisson(f"count_{n}", 0.3, s, observed=n)


def transforms():
    s = pm.HalfNormal("s")
    ordered = pm.distributions.transforms.ordered
    for n in range(N):
        pm.Dirichlet(f"weights_{n}", np.ones(3) + n)
        pm.TruncatedNormal(f"above_{n}", 0, s, lower=-n - 1.0)
        pm.Normal(f"sorted_{n}", s, 1, shape=3, transform=ordered, initval=np.arange(3.0))
        interval = pm.distributions.transforms.Interval(lower=-1.0, upper=2.0)
        pm.Normal(f"between_{n}", s, 1, transform=interval)


def data():
    rows = pm.Data("rows", ROWS[:, 0])
    scales = pm.Data("scales", np.arange(1.0, N + 1))
    mean = pm.Normal("mean", shape=2)
    for n in range(N):
        pm.MvNormal(f"x_{n}", mean, cov=scales[n] * np.eye(2), observed=rows[n])


def missing():
    for n in range(N):
        pm.Normal(f"y_{n}", 0, n + 1.0, observed=np.array([1.0, np.nan, 2.0]))


def kronecker_normals():
    s = pm.HalfNormal("s")
    for n in range(N):
        covs = [s * np.array([[1, 0.3], [0.3, 2]]), np.diag([1.0, 2.0 + n])]
        pm.KroneckerNormal(f"y_{n}", mu=np.zeros(4), covs=covs, sigma=0.1, observed=np.arange(4.0))


#: How many variables are in loops.
LOOPS = {
    mvnormals: N,
    precisions_of_latent_scales: 4 * N,
    random_walk: N,
    lkj_groups: 2 * N,
    ragged_groups: 3 * N,
    many_rows: N,
    discrete: 3 * N,
    parts_that_are_draws: 4 * N,
    transforms: 4 * N,
    data: N,
    missing: 2 * N,
    kronecker_normals: N,
}


def model_of(declare) -> pm.Model:
    with pm.Model() as model:
        declare()
    return model
