"""Models with a covariance per group of rows, as their users write them, and their scenarios."""

from collections.abc import Iterator

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from benchmarks.scenarios import (
    Bar,
    Scenario,
    faster_both,
    first_gradient,
    model,
    on_and_off,
    per_build,
    unrewritten,
)


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


def scenarios(pick) -> Iterator[Scenario]:
    """Every scenario with groups."""
    rows = pick(1000, tiny=9)
    yield Scenario(
        "groups:forum_answer",
        f"an LKJCholeskyCov and an MvNormal for each of 2 groups, {rows} rows each, n=2",
        on_and_off("groups.forum_answer", rows=rows),
        (*faster_both(20), *first_gradient(1)),
        reference="off",
    )
    yield Scenario(
        "groups:forum_question",
        f"one factor, mean per group by an index, 2 groups of {rows} rows, n=2",
        on_and_off("groups.forum_question", rows=rows),
        reference="off",
    )

    few, many = pick((10_000, 1_000_000), tiny=(9, 18))
    yield Scenario(
        "groups:one_factor",
        f"MvNormal('obs', mu, chol=chol, observed=data), {few} and {many} rows, n=2",
        on_and_off("groups.one_factor", rows=few),
        faster_both(40),
        reference="off",
    )
    yield Scenario(
        "groups:one_factor_rows",
        f"the same with {few} and with {many} rows",
        (
            model("few rows", "groups.one_factor", rows=few),
            model("many rows", "groups.one_factor", rows=many),
        ),
        (
            Bar(
                "evaluation with many rows within 20% of that with few",
                ("many rows", "evaluate"),
                ("few rows", "evaluate"),
                at_most=1.2,
            ),
        ),
    )

    sizes = pick(
        {"groups": 50, "rows": 100_000, "n": 5},
        short={"groups": 10, "rows": 20_000, "n": 5},
        tiny={"groups": 3, "rows": 20, "n": 3},
    )
    yield Scenario(
        "groups:ragged",
        "{groups} ragged groups in a loop, {rows} rows, n={n}".format(**sizes),
        on_and_off("groups.lkj_loop", ragged=True, **sizes),
        (*faster_both(200), *first_gradient(1)),
        reference="off",
        warm=1,
    )

    sizes = pick({"groups": 20, "rows": 2000, "n": 3}, tiny={"groups": 3, "rows": 9, "n": 3})
    yield Scenario(
        "groups:gathered",
        "chols[idx]: {rows} rows, {groups} groups, n={n}".format(**sizes),
        on_and_off("groups.gathered_factors", **sizes),
        faster_both(30),
        reference="off",
    )
    yield Scenario(
        "groups:gathered_data",
        "the same, idx is pm.Data",
        on_and_off("groups.gathered_factors", changing=True, **sizes),
        reference="off",
    )

    sizes = pick({"countries": 8, "rows": 40}, tiny={"countries": 2, "rows": 5})
    yield Scenario(
        "groups:hierarchical_var",
        "hierarchical VAR(2) of {countries} countries, 3 equations, about {rows} rows each".format(
            **sizes
        ),
        on_and_off("groups.hierarchical_var", **sizes),
        (*first_gradient(1 / 5), *faster_both(3)),
        reference="off",
    )

    sizes = pick(
        {"groups": 100, "rows": 2000, "n": 3},
        short={"groups": 30, "rows": 600, "n": 3},
        tiny={"groups": 3, "rows": 9, "n": 3},
    )
    yield Scenario(
        "groups:lkj_100",
        "{groups} groups in a loop, LKJ and all, {rows} rows, n={n}".format(**sizes),
        (
            model("on", "groups.lkj_loop", **sizes),
            unrewritten("groups.lkj_loop", **sizes),
        ),
        per_build(6),
        reference="unrewritten",
    )
