"""Models that users write with loops, one function each; sizes small enough for Python's linker.

Every function returns ``(model, expected)``: `expected` is the number of fused density nodes
(`MvNormalLogp` or `InvQuadLogdet`) that the rewritten log-density holds, whatever the number of
terms of the loop.
"""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

N, Q = 6, 3
RNG = np.random.default_rng(20261120)
A = RNG.normal(size=(N, Q, Q))
COVS = A @ A.mT + Q * np.eye(Q)
CHOLS = np.linalg.cholesky(COVS)
DATA = RNG.normal(size=(N, Q))
X = np.sort(RNG.uniform(size=(N, Q)), axis=1)
LOOP_MODELS = {}


def loop_model(builder):
    """Collect a builder under its name."""
    LOOP_MODELS[builder.__name__] = builder
    return builder


@loop_model
def thread_loop():
    """The loop of the forum thread: means indexed, covariances constant up to a scale."""
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        mu = pm.Normal("mu", 0, 1, shape=(N, Q))
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=mu[n], cov=scale * COVS[n], observed=DATA[n])
    return model, 1


@loop_model
def latent_with_constant_parameters():
    """The question's own listing: latent x_n, mu and cov constant arrays."""
    my_means, my_covs = DATA, COVS
    with pm.Model() as model:
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=my_means[n], cov=my_covs[n], shape=Q)
    return model, 1


@loop_model
def latent_shared_parameters():
    """Latent x_n with one mean and one covariance for all, and data that depend on them."""
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=Q)
        s = pm.HalfNormal("s")
        for n in range(N):
            x = pm.MvNormal(f"x_{n}", mu=mu, cov=s * COVS[0])
            pm.Normal(f"y_{n}", x, 0.5, observed=DATA[n])
    return model, 1


@loop_model
def scaled_correlation():
    """cov = scale[n]**2 * R, with R shared: the data are whitened by R when compiling."""
    corr = COVS[0] / np.sqrt(np.outer(np.diag(COVS[0]), np.diag(COVS[0])))
    with pm.Model() as model:
        scale = pm.HalfNormal("scale", shape=N)
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=np.zeros(Q), cov=scale[n] ** 2 * corr, observed=DATA[n])
    return model, 0


@loop_model
def product_covariance():
    """cov = A[n] @ A[n].T + I."""
    with pm.Model() as model:
        a = pm.Normal("a", shape=(N, Q, Q))
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=0.0, cov=a[n] @ a[n].T + np.eye(Q), observed=DATA[n])
    return model, 1


@loop_model
def separate_scales():
    """A scale of its own, a separate variable, for every term; its prior is batched too."""
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=Q)
        for n in range(N):
            scale = pm.HalfNormal(f"scale_{n}")
            pm.MvNormal(f"x_{n}", mu=mu, cov=scale * COVS[n], observed=DATA[n])
    return model, 1


@loop_model
def covariance_function():
    """cov from a covariance function of X[n]."""
    with pm.Model() as model:
        ell = pm.HalfNormal("ell")
        for n in range(N):
            distance = X[n][:, None] - X[n][None, :]
            cov = pt.exp(-0.5 * (distance / ell) ** 2) + 0.1 * np.eye(Q)
            pm.MvNormal(f"x_{n}", mu=np.zeros(Q), cov=cov, observed=DATA[n])
    return model, 1


@loop_model
def given_cholesky_factor():
    """chol= an indexed constant, scaled."""
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=(N, Q))
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=mu[n], chol=CHOLS[n], observed=DATA[n])
    return model, 1


@loop_model
def given_precision():
    """tau= instead of cov=."""
    with pm.Model() as model:
        s = pm.HalfNormal("s")
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=np.zeros(Q), tau=s * COVS[n], observed=DATA[n])
    return model, 1


@loop_model
def two_loops():
    """Two loops of different sizes."""
    with pm.Model() as model:
        s = pm.HalfNormal("s")
        mu = pm.Normal("mu", shape=(N, Q))
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=mu[n], cov=s * COVS[n], observed=DATA[n])
        for n in range(N):
            pm.MvNormal(
                f"z_{n}", mu=mu[n, :2], cov=np.eye(2) + s * COVS[n, :2, :2], observed=DATA[n, :2]
            )
    return model, 2


@loop_model
def random_walk():
    """x_t given x_{t-1}; the first one is an odd one out, with a diagonal covariance."""
    with pm.Model() as model:
        s = pm.HalfNormal("s")
        x = pm.MvNormal("x_0", mu=np.zeros(Q), cov=np.eye(Q))
        for t in range(1, N):
            x = pm.MvNormal(f"x_{t}", mu=x, cov=s * COVS[0])
            pm.Normal(f"y_{t}", x, 1.0, observed=DATA[t])
    return model, 1


@loop_model
def autoregression():
    """x_t given B x_{t-1}."""
    with pm.Model() as model:
        b = pm.Normal("b", shape=(Q, Q))
        x = pm.MvNormal("x_0", mu=np.zeros(Q), cov=np.eye(Q))
        for t in range(1, N):
            x = pm.MvNormal(f"x_{t}", mu=b @ x, cov=COVS[0])
    return model, 1


@loop_model
def state_space_recursion():
    """Means computed one from the other: the terms differ in depth, their densities do not."""
    with pm.Model() as model:
        b = pm.Normal("b", shape=(Q, Q))
        innovation = pm.Normal("innovation", shape=(N, Q))
        state = pt.zeros(Q)
        for t in range(N):
            state = b @ state + innovation[t]
            pm.MvNormal(f"y_{t}", mu=state, cov=COVS[t], observed=DATA[t])
    return model, 1


@loop_model
def means_from_scan():
    """An op that has no batched form below each density: its results are stacked."""
    with pm.Model() as model:
        a = pm.Normal("a", shape=(N, Q))
        s = pm.HalfNormal("s")
        for n in range(N):
            mean = pytensor.scan(
                lambda x, total: 0.5 * total + x,
                sequences=[a[n]],
                outputs_info=[pt.zeros(())],
                return_updates=False,
            )
            pm.MvNormal(f"x_{n}", mu=mean, cov=s * COVS[n], observed=DATA[n])
    return model, 1


@loop_model
def own_copies():
    """Each term computes what it indexes: one variable, N times."""
    with pm.Model() as model:
        log_mu = pm.Normal("log_mu", shape=(N, Q))
        s = pm.HalfNormal("s")
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=pt.exp(log_mu)[n], cov=s * COVS[n], observed=DATA[n])
    return model, 1


@loop_model
def mixture_of_list():
    """A mixture over a Python list of MvNormals."""
    with pm.Model() as model:
        w = pm.Dirichlet("w", np.ones(N))
        mu = pm.Normal("mu", shape=(N, Q))
        s = pm.HalfNormal("s")
        components = [pm.MvNormal.dist(mu=mu[k], cov=s * COVS[k]) for k in range(N)]
        pm.Mixture("x", w=w, comp_dists=components, observed=DATA)
    return model, 1


@loop_model
def student_t():
    """A loop of MvStudentT."""
    with pm.Model() as model:
        nu = pm.Gamma("nu", 2, 0.1)
        s = pm.HalfNormal("s")
        for n in range(N):
            pm.MvStudentT(f"x_{n}", nu=nu, mu=np.zeros(Q), scale=s * COVS[n], observed=DATA[n])
    # constant scale matrices: the quadratic forms of the constant data are constants
    return model, 0


@loop_model
def gaussian_processes():
    """One marginal GP per subject."""
    with pm.Model() as model:
        ell = pm.HalfNormal("ell")
        sigma = pm.HalfNormal("sigma")
        for n in range(N):
            gp = pm.gp.Marginal(cov_func=pm.gp.cov.ExpQuad(1, ls=ell))
            gp.marginal_likelihood(f"y_{n}", X=X[n][:, None], y=DATA[n], sigma=sigma)
    return model, 1


@loop_model
def odd_one_out():
    """One term of another size; the rest still batches."""
    with pm.Model() as model:
        s = pm.HalfNormal("s")
        for n in range(N):
            q = 2 if n == 2 else Q
            pm.MvNormal(f"x_{n}", mu=s, cov=s * COVS[n, :q, :q] + np.eye(q), observed=DATA[n, :q])
    return model, 2


@loop_model
def unknown_shapes():
    """dims= and pm.Data: static shapes are unknown."""
    coords = {"subject": np.arange(N), "feature": ["a", "b", "c"]}
    with pm.Model(coords=coords) as model:
        design = pm.Data("design", DATA, dims=("subject", "feature"))
        mu = pm.Normal("mu", dims=("subject", "feature"))
        scale = pm.HalfNormal("scale", dims="subject")
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=mu[n] * design[n], cov=scale[n] * COVS[n], dims="feature")
    return model, 1


@loop_model
def unknown_shapes_throughout():
    """Not even the size of the covariance is known."""
    coords = {"subject": np.arange(N), "feature": ["a", "b", "c"]}
    with pm.Model(coords=coords) as model:
        covs = pm.Data("covs", COVS)
        mu = pm.Normal("mu", dims=("subject", "feature"))
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=mu[n], cov=covs[n], observed=DATA[n])
    return model, 1


@loop_model
def rows_with_common_covariance():
    """Each term is a batch of rows."""
    data = RNG.normal(size=(N, 4, Q))
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=(N, Q))
        s = pm.HalfNormal("s")
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=mu[n], cov=s * COVS[n], observed=data[n])
    return model, 1


@loop_model
def python_sum_of_potentials():
    """Potentials added up by Python's sum."""
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=(N, Q))
        s = pm.HalfNormal("s")
        terms = [pm.logp(pm.MvNormal.dist(mu=mu[n], cov=s * COVS[n]), DATA[n]) for n in range(N)]
        pm.Potential("likelihood", sum(terms))
    return model, 1


@loop_model
def separate_means():
    """Means as separate variables in a list, gathered in another order."""
    order = RNG.permutation(N)
    with pm.Model() as model:
        mus = [pm.Normal(f"mu_{n}", shape=Q) for n in range(N)]
        s = pm.HalfNormal("s")
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=mus[order[n]], cov=s * COVS[n], observed=DATA[n])
    return model, 1


@loop_model
def group_level_lkj():
    """The accepted answer of the LKJ thread, with groups of equal size."""
    groups = np.repeat([0, 1, 2], 4)
    values = RNG.normal(size=(12, 2))
    with pm.Model(coords={"groups": list("ABC"), "features": ["x", "y"]}) as model:
        group_idx = pm.Data("group_idx", groups)
        mu_group = pm.Normal("mu_group", dims=("groups", "features"))
        for i, group in enumerate("ABC"):
            chol, _, _ = pm.LKJCholeskyCov(
                f"{group}_chol", n=2, eta=2, sd_dist=pm.Exponential.dist(1, shape=2)
            )
            pm.Deterministic(f"{group}_cov", chol.dot(chol.T))
            n = pt.eq(group_idx, i).sum()
            pm.MvNormal(
                f"{group}_obs",
                mu=mu_group[i],
                chol=chol,
                observed=values[groups == i],
                shape=(n, 2),
            )
    return model, 1
