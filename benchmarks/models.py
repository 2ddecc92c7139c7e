"""The zoo: functions that build the PyMC models which the benchmark, the demo and tests measure.

Everything random comes from the argument `seed`. No function knows about the plugin.
"""

import csv
from pathlib import Path

import numpy as np
import pymc as pm

IRIS_CSV = Path(__file__).parent / "data" / "iris.csv"
ORTHODONT_CSV = Path(__file__).parent / "data" / "orthodont.csv"


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
    with IRIS_CSV.open(newline="") as file:
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
    with ORTHODONT_CSV.open(newline="") as file:
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


def eight_schools() -> pm.Model:
    """Build the non-centred eight-schools model (Rubin, 1981): no multivariate normal, no loop."""
    effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    standard_errors = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    with pm.Model(coords={"school": list("ABCDEFGH")}) as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        z = pm.Normal("z", dims="school")
        pm.Normal("effect", mu + tau * z, standard_errors, observed=effects, dims="school")
    return model


def logistic(n: int = 500, p: int = 8, seed: int = 0) -> pm.Model:
    """Regress a binary outcome on `p` covariates: no multivariate normal, no loop."""
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(n, p))
    outcome = rng.random(n) < 1 / (1 + np.exp(-design @ rng.normal(size=p)))
    with pm.Model() as model:
        intercept = pm.Normal("intercept", 0, 2)
        slopes = pm.Normal("slopes", 0, 1, shape=p)
        pm.Bernoulli("outcome", logit_p=intercept + design @ slopes, observed=outcome)
    return model


#: Every model by its name; those of a loop take `n`, `q` and `seed`.
MODELS = {
    function.__name__: function
    for function in (
        loop,
        loop_by_hand,
        latent_loop,
        latent_loop_by_hand,
        iris,
        eight_schools,
        logistic,
    )
}
