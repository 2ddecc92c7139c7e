"""Models in which there is next to nothing to gain: none may get slower."""

from collections.abc import Iterator

import numpy as np
import pymc as pm

from benchmarks.scenarios import Scenario, faster_both, on_and_off


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


def scenarios(pick) -> Iterator[Scenario]:
    """Every scenario in which nothing may get slower."""
    effects = pick({"groups": 10, "rows": 100}, tiny={"groups": 2, "rows": 5})
    models = [
        ("lkj_effects", "3 crossed effects with LKJ priors, non-centred, {groups} groups", effects),
        ("latent_gp", "a latent Gaussian process of {points} points", pick({"points": 10})),
        ("one_mvnormal", "{rows} rows under one LKJ prior", pick({"rows": 8})),
    ]
    for name, title, sizes in models:
        yield Scenario(
            f"small:{name}",
            title.format(**sizes),
            on_and_off(f"small.{name}", **sizes),
            faster_both(1),
            reference="off",
        )
