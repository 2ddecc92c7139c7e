"""Models as their users write them, which the benchmark, the demo, the docs and tests share.

Everything random comes from the argument `seed`. No function but :func:`fused` knows about the
plugin. Models whose covariance has a structure are in :mod:`benchmarks.structures`, those without a
multivariate normal in ``tests/plain_zoo.py``.
"""

import csv
from pathlib import Path

import numpy as np
import pymc as pm
import pytensor.tensor as pt

DATA = Path(__file__).parent / "data"


def loop_data(n: int, q: int, seed: int = 0):
    """Covariances and data of the loop models.

    Parameters
    ----------
    n, q : int
        Number of vectors and length of each.
    seed : int

    Returns
    -------
    covs : float, shape (n, q, q), positive definite
    data : float, shape (n, q)
    """
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n, q, q))
    covs = factors @ factors.mT + q * np.eye(q)
    return covs, rng.normal(size=(n, q))


def loop(n: int, q: int = 3, seed: int = 0) -> pm.Model:
    """N vectors, each with its own mean and its own covariance: one MvNormal per vector."""
    my_covs, data = loop_data(n, q, seed)
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        mu = pm.Normal("mu", 0, 1, shape=(n, q))
        for i in range(n):
            pm.MvNormal(f"x_{i}", mu=mu[i], cov=scale * my_covs[i], observed=data[i])
    return model


def loop_by_hand(n: int, q: int = 3, seed: int = 0) -> pm.Model:
    """Build the model of :func:`loop` with the vectors stacked by hand into one MvNormal."""
    my_covs, data = loop_data(n, q, seed)
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        mu = pm.Normal("mu", 0, 1, shape=(n, q))
        pm.MvNormal("x", mu=mu, cov=scale * my_covs, observed=data)
    return model


def latent_loop(n: int, q: int = 3, seed: int = 0) -> pm.Model:
    """Give every vector a latent MvNormal, observed with noise, in one loop."""
    my_covs, data = loop_data(n, q, seed)
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        sigma = pm.HalfNormal("sigma")
        for i in range(n):
            x = pm.MvNormal(f"x_{i}", mu=np.zeros(q), cov=scale * my_covs[i])
            pm.Normal(f"y_{i}", x, sigma, observed=data[i])
    return model


def latent_loop_by_hand(n: int, q: int = 3, seed: int = 0) -> pm.Model:
    """Build the model of :func:`latent_loop` with the vectors stacked by hand.

    Its raveled point is laid out as that of the loop: ``scale``, ``sigma``, then the vectors.
    """
    my_covs, data = loop_data(n, q, seed)
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        sigma = pm.HalfNormal("sigma")
        x = pm.MvNormal("x", mu=np.zeros((n, q)), cov=scale * my_covs)
        pm.Normal("y", x, sigma, observed=data)
    return model


def fused(model: str, **arguments):
    """What ``fuse_model`` makes of a model of this module."""
    from pytensor_mvn_rewrites import fuse_model

    return fuse_model(globals()[model](**arguments))


def iris_data():
    """Fisher's iris measurements.

    Returns
    -------
    measurements : dict of str to float array, shape (50, 4)
        Sepal length, sepal width, petal length and petal width in cm, by species.

    References
    ----------
    Fisher, R. A. (1936). "The use of multiple measurements in taxonomic problems". Annals of
    Eugenics 7 (2), 179-188. The values are those that R ships.
    """
    rows: dict[str, list[list[float]]] = {}
    with (DATA / "iris.csv").open(newline="") as file:
        for *numbers, species in list(csv.reader(file))[1:]:
            rows.setdefault(species, []).append([float(number) for number in numbers])
    return {species: np.array(values) for species, values in rows.items()}


def orthodont_data():
    """How a distance in the heads of 16 boys and 11 girls grew.

    Returns
    -------
    children : list of str
    sexes : list of str
        "girl" or "boy".
    distances : float array, shape (27, 4)
        From the pituitary to the pterygomaxillary fissure in mm, at the ages 8, 10, 12 and 14.

    References
    ----------
    Potthoff, R. F. and Roy, S. N. (1964). "A generalized multivariate analysis of variance model
    useful especially for growth curve problems". Biometrika 51 (3/4), 313-326, table 1.
    """
    with (DATA / "orthodont.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    children, sexes, *distances = zip(*rows, strict=True)
    return list(children), list(sexes), np.array(distances, dtype=float).T


def iris() -> pm.Model:
    """One mean and one covariance per species of iris, in a loop over the species."""
    measurements = iris_data()
    coords = {"species": list(measurements), "feature": ["sl", "sw", "pl", "pw"]}
    with pm.Model(coords=coords) as model:
        mu = pm.Normal("mu", 4, 3, dims=("species", "feature"))
        for i, (species, rows) in enumerate(measurements.items()):
            chol, _, _ = pm.LKJCholeskyCov(
                f"chol_{species}",
                n=4,
                eta=2,
                sd_dist=pm.Exponential.dist(1, shape=4),
                store_in_trace=False,
            )
            pm.MvNormal(f"flowers_{species}", mu=mu[i], chol=chol, observed=rows)
    return model


def correlated_rows(rng, sizes, n: int) -> list[np.ndarray]:
    """Rows of multivariate normals, a mean and a covariance for each group.

    Parameters
    ----------
    rng : numpy.random.Generator
    sizes : sequence of int
        Rows of each group.
    n : int
        Length of a row.

    Returns
    -------
    list of float array, shape (size, n)
    """
    groups = []
    for size in sizes:
        root = rng.normal(size=(n, n)) / np.sqrt(n) + np.eye(n)
        groups.append(rng.normal(size=n) + rng.normal(size=(size, n)) @ root.T)
    return groups


def ragged_sizes(rng, groups: int, rows: int) -> list[int]:
    """`rows` dealt out to the groups, from a third of the mean to about twice the mean."""
    weights = rng.uniform(1, 6, size=groups)
    ends = np.round(np.cumsum(weights) / weights.sum() * rows).astype(int)
    return np.diff(ends, prepend=0).tolist()


def forum_data(rows: int, seed: int):
    """The data of the forum thread: two groups of `rows` pairs each."""
    rng = np.random.default_rng(seed)
    first = rng.multivariate_normal([0, 0], np.eye(2), rows)
    second = rng.multivariate_normal([1, -1], [[1, -0.5], [-0.5, 1]], rows)
    return np.concatenate([first, second]), np.repeat([0, 1], rows)


def forum_answer(rows: int, seed: int = 0) -> pm.Model:
    """Give each group its own LKJCholeskyCov and its own MvNormal over its own rows.

    The accepted answer of the thread "Learning covariances using LKJCholeskyCov at the group level
    in a hierarchical multivariate Normal model" on the forum of PyMC.
    """
    values, groups = forum_data(rows, seed)
    with pm.Model(coords={"groups": ["A", "B"], "features": ["x", "y"]}) as model:
        group_idx = pm.Data("group_idx", groups)
        mu_group = pm.Normal("mu_group", mu=0, sigma=1, dims=("groups", "features"))
        observed = []
        for i, group in enumerate(["A", "B"]):
            chol, _, _ = pm.LKJCholeskyCov(
                f"{group}_chol",
                n=2,
                eta=2,
                sd_dist=pm.Exponential.dist(1, shape=2),
                compute_corr=True,
                store_in_trace=False,
            )
            pm.Deterministic(f"{group}_cov", chol.dot(chol.T))
            n = pt.eq(group_idx, i).sum()
            observed.append(
                pm.MvNormal(
                    f"{group}_obs",
                    mu=mu_group[i],
                    chol=chol,
                    observed=values[groups == i],
                    shape=(n, 2),
                )
            )
        pm.Deterministic("obs", pt.concatenate(observed, axis=0))
    return model


def forum_question(rows: int, seed: int = 0) -> pm.Model:
    """One factor for all rows, and a mean for each group: the question of the same thread."""
    values, groups = forum_data(rows, seed)
    with pm.Model(coords={"groups": ["A", "B"], "features": ["x", "y"]}) as model:
        group_idx = pm.Data("group_idx", groups)
        observations = pm.Data("observations", values)
        mu_group = pm.Normal("mu_group", mu=0, sigma=1, dims=("groups", "features"))
        chol, _, _ = pm.LKJCholeskyCov(
            "chol", n=2, eta=2, sd_dist=pm.Exponential.dist(1, shape=2), store_in_trace=False
        )
        pm.Deterministic("cov", chol.dot(chol.T))
        pm.MvNormal(
            "obs", mu=mu_group[group_idx], chol=chol, observed=observations, shape=values.shape
        )
    return model


def one_factor(rows: int, n: int = 2, seed: int = 0) -> pm.Model:
    """Rows of constant data that share a mean and a Cholesky factor."""
    [data] = correlated_rows(np.random.default_rng(seed), [rows], n)
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 2, shape=n)
        pm.MvNormal("obs", mu, chol=lkj_factor("chol", n), observed=data)
    return model


def lkj_factor(name: str, n: int):
    """A Cholesky factor with a weak prior."""
    sd_dist = pm.Exponential.dist(1, shape=n)
    return pm.LKJCholeskyCov(name, n=n, eta=2, sd_dist=sd_dist, store_in_trace=False)[0]


def lkj_loop(groups: int, rows: int, n: int, ragged: bool = False, seed: int = 0) -> pm.Model:
    """Loop over groups: an LKJCholeskyCov and an MvNormal over the rows of each.

    Parameters
    ----------
    groups : int
    rows : int
        Rows of all groups together.
    n : int
        Length of a row.
    ragged : bool
        Different numbers of rows, or the same number in every group.
    seed : int
    """
    rng = np.random.default_rng(seed)
    sizes = ragged_sizes(rng, groups, rows) if ragged else [rows // groups] * groups
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 2, shape=(groups, n))
        for i, data in enumerate(correlated_rows(rng, sizes, n)):
            pm.MvNormal(f"obs_{i}", mu=mu[i], chol=lkj_factor(f"chol_{i}", n), observed=data)
    return model


def gathered_factors(
    groups: int, rows: int, n: int, changing: bool = False, seed: int = 0
) -> pm.Model:
    """``chols[idx]``: one MvNormal over all rows, which gathers a factor for each of them.

    Parameters
    ----------
    groups : int
    rows : int
        Rows of all groups together.
    n : int
        Length of a row.
    changing : bool
        Whether the index is ``pm.Data``.
    seed : int
    """
    rng = np.random.default_rng(seed)
    sizes = ragged_sizes(rng, groups, rows)
    data = np.concatenate(correlated_rows(rng, sizes, n))
    idx = np.repeat(np.arange(groups), sizes)
    order = rng.permutation(rows)
    data, idx = data[order], idx[order]
    with pm.Model() as model:
        if changing:
            idx = pm.Data("idx", idx)
        mu = pm.Normal("mu", 0, 2, shape=(groups, n))
        chols = pt.stack([lkj_factor(f"chol_{i}", n) for i in range(groups)])
        pm.MvNormal("obs", mu=mu[idx], chol=chols[idx], observed=data)
    return model


def vector_autoregression(rng, rows: int, lags: int, equations: int) -> np.ndarray:
    """Simulate a stationary series, shape (rows, equations)."""
    coefs = rng.normal(scale=0.2 / lags, size=(lags, equations, equations))
    series = rng.normal(size=(rows, equations))
    for t in range(lags, rows):
        for lag in range(lags):
            series[t] += coefs[lag] @ series[t - 1 - lag]
    return series


def lagged_mean(coefs, series: np.ndarray, lags: int):
    """Mean of each row after the first `lags`, equation by equation and lag by lag."""
    rows = len(series)
    equations = []
    for j in range(series.shape[1]):
        terms = [
            pm.math.sum(coefs[j, lag] * series[lags - 1 - lag : rows - 1 - lag], axis=-1)
            for lag in range(lags)
        ]
        equations.append(pm.math.sum(pm.math.stack(terms), axis=0))
    return pm.math.stack(equations, axis=-1)


def hierarchical_var(
    countries: int, rows: int, lags: int = 2, equations: int = 3, seed: int = 0
) -> pm.Model:
    """Hierarchical Bayesian vector autoregression, after the example in PyMC's gallery.

    Each country has its own coefficients, drawn around those of all, and a factor that is a convex
    combination of a global one and its own. The countries differ in their numbers of rows.
    """
    rng = np.random.default_rng(seed)
    sizes = [size + lags for size in ragged_sizes(rng, countries, countries * rows)]
    coords = {
        "lags": range(1, lags + 1),
        "equations": [f"y{j}" for j in range(equations)],
        "cross_vars": [f"y{j}" for j in range(equations)],
    }
    with pm.Model(coords=coords) as model:
        rho = pm.Beta("rho", alpha=2, beta=2)
        alpha_location = pm.Normal("alpha_hat_location", 0, 0.1)
        alpha_scale = pm.InverseGamma("alpha_hat_scale", 3, 0.5)
        beta_location = pm.Normal("beta_hat_location", 0, 0.1)
        beta_scale = pm.InverseGamma("beta_hat_scale", 3, 0.5)
        omega_global, _, _ = pm.LKJCholeskyCov(
            "omega_global", n=equations, eta=1.0, sd_dist=pm.Exponential.dist(1)
        )
        for i, size in enumerate(sizes):
            series = vector_autoregression(rng, size, lags, equations)
            z_alpha = pm.InverseGamma(f"z_scale_alpha_{i}", 3, 0.5)
            z_beta = pm.InverseGamma(f"z_scale_beta_{i}", 3, 0.5)
            coefs = pm.Normal(
                f"lag_coefs_{i}",
                mu=beta_location,
                sigma=beta_scale * z_beta,
                dims=("equations", "lags", "cross_vars"),
            )
            alpha = pm.Normal(
                f"alpha_{i}", mu=alpha_location, sigma=alpha_scale * z_alpha, dims=("equations",)
            )
            noise_chol, _, _ = pm.LKJCholeskyCov(
                f"noise_chol_{i}", n=equations, eta=10, sd_dist=pm.Exponential.dist(1)
            )
            omega = pm.Deterministic(f"omega_{i}", rho * omega_global + (1 - rho) * noise_chol)
            pm.MvNormal(
                f"obs_{i}",
                mu=alpha + lagged_mean(coefs, series, lags),
                chol=omega,
                observed=series[lags:],
            )
    return model


def lkj_effects(groups: int, rows: int, effects: int = 3, seed: int = 0) -> pm.Model:
    """Correlated intercepts and slopes of several crossed factors, non-centred; no MvNormal."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, rows))
    index = rng.integers(0, groups, size=(effects, rows))
    with pm.Model() as model:
        mean = pm.Normal("intercept", 0, 2) + pm.Normal("slope", 0, 1) * x
        for k in range(effects):
            chol, _, _ = pm.LKJCholeskyCov(f"chol_{k}", n=2, eta=2, sd_dist=pm.Exponential.dist(1))
            effect = chol @ pm.Normal(f"z_{k}", shape=(2, groups))
            mean = mean + effect[0, index[k]] + effect[1, index[k]] * x
        pm.Normal("y", mean, pm.HalfNormal("sigma", 1), observed=y)
    return model


def latent_gp(points: int, seed: int = 0) -> pm.Model:
    """A Gaussian process at a few points, which a count is observed of."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 1, points)[:, None]
    with pm.Model() as model:
        length = pm.InverseGamma("length", 3, 1)
        gp = pm.gp.Latent(cov_func=pm.HalfNormal("scale") ** 2 * pm.gp.cov.Matern52(1, length))
        f = gp.prior("f", X=x, reparameterize=False)
        pm.Poisson("y", pm.math.exp(f), observed=rng.poisson(2, size=points))
    return model


def one_mvnormal(rows: int, n: int = 3, seed: int = 0) -> pm.Model:
    """Rows of group effects under one LKJ prior, centred."""
    rng = np.random.default_rng(seed)
    with pm.Model() as model:
        chol, _, _ = pm.LKJCholeskyCov("chol", n=n, eta=2, sd_dist=pm.Exponential.dist(1))
        effects = pm.MvNormal("effects", np.zeros(n), chol=chol, shape=(rows, n))
        pm.Normal("y", effects, pm.HalfNormal("sigma"), observed=rng.normal(size=(rows, n)))
    return model
