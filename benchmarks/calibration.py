"""Simulation-based calibration: the ranks of true values among draws of their posteriors.

    python -m benchmarks.calibration                    # all models, a quarter of an hour
    python -m benchmarks.calibration kron -n 200        # one of them, with fewer replicates

A replicate draws parameters from the prior and data from these, and samples the posterior of the
data by nutpie, with the plugin on. The rank of the true value among draws of the posterior is then
uniform (Talts et al. 2018, https://arxiv.org/abs/1804.06788). The truth is drawn by NumPy from the
model as it is written, so that an error of the log-density or its gradient shows in the ranks.

A model is compiled once, and replicates differ in its data. Histograms and p-values go to
``calibration.json``, where :mod:`benchmarks.publish` finds them, and a plot to
``docs/pictures/calibration.svg``. Needs nutpie.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from scipy import stats

import pytensor_mvn_rewrites as mvn
from benchmarks.report import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "calibration.json"
PICTURE = ROOT / "docs" / "pictures" / "calibration.svg"

REPLICATES = 1000
#: Draws that are kept, of THIN times as many: ranks go from 0 to KEPT.
KEPT, THIN, TUNE = 99, 5, 500
BINS = 20
#: How many of the bins of a histogram lie within the band, each for itself
BAND = 0.99

#: name -> what declares the model, with observations that are zeros in a pm.Data
MODELS: dict[str, Callable[[], None]] = {}


def model(declare: Callable[[], None]) -> Callable[[], None]:
    """Collect a model."""
    MODELS[declare.__name__] = declare
    return declare


def observed(name: str, *shape: int):
    """Zeros, until there are data."""
    return pm.Data(f"{name}_data", np.zeros(shape))


@model
def loop():
    """Ten variables in a loop, ``cov = s * covs[n]``."""
    rng = np.random.default_rng(1)
    s, mu = pm.LogNormal("s", 0, 0.7), pm.Normal("mu", 0, 1, shape=(10, 2))
    for k in range(10):
        cov = np.cov(rng.normal(size=(2, 6)))
        pm.MvNormal(f"y_{k}", mu[k], cov=s * cov, observed=observed(f"y_{k}", 2))


@model
def lkj():
    """Groups of 4, 7 and 10 rows, each with an LKJ Cholesky factor."""
    for k, rows in enumerate((4, 7, 10)):
        sd = pm.Exponential.dist(1, shape=2)
        chol, _, _ = pm.LKJCholeskyCov(f"L_{k}", n=2, eta=2, sd_dist=sd)
        mu = pm.Normal(f"mu_{k}", 0, 1, shape=2)
        pm.MvNormal(f"y_{k}", mu, chol=chol, observed=observed(f"y_{k}", rows, 2))


@model
def kron():
    """A Gaussian process on a grid of 4 by 5, ``s * kron(K_1, K_2) + noise * eye``."""
    grids = np.linspace(0, 2, 4), np.linspace(0, 3, 5)
    scales = pm.LogNormal("length", 0, 0.5, shape=2)
    s, noise = pm.LogNormal("s", 0, 0.7), pm.LogNormal("noise", -1, 0.5)
    factors = [
        pt.exp(-0.5 * ((grid[:, None] - grid) / scales[k]) ** 2) for k, grid in enumerate(grids)
    ]
    cov = s * pt.linalg.kron(*factors) + noise * np.eye(20)
    pm.MvNormal("y", np.zeros(20), cov=cov, observed=observed("y", 20))


@model
def mixture():
    """Two components, which their priors tell apart."""
    w, s = pm.Dirichlet("w", [3, 3]), pm.LogNormal("s", 0, 0.4, shape=2)
    mu = pm.Normal("mu", [[-2, -2], [2, 2]], 0.7, shape=(2, 2))
    cov = np.array([[1, 0.4], [0.4, 1]])
    components = [pm.MvNormal.dist(mu[k], cov=s[k] * cov) for k in range(2)]
    pm.Mixture("y", w=w, comp_dists=components, observed=observed("y", 20, 2))


def built(name: str) -> pm.Model:
    """The model `name`."""
    with pm.Model() as model:
        MODELS[name]()
    return model


def truths(model: pm.Model, replicates: int, seed: int) -> tuple[dict, dict]:
    """Draws of the prior, and data for each of them, by the name of their pm.Data."""
    variables = [*model.free_RVs, *model.observed_RVs]
    draws = pm.draw(variables, replicates, random_seed=np.random.default_rng(seed))
    named = dict(zip([var.name for var in variables], draws, strict=True))
    data = {f"{var.name}_data": named.pop(var.name) for var in model.observed_RVs}
    return named, data


def ranks(name: str, replicates: int, seed: int = 1, tune: int = TUNE) -> dict[str, np.ndarray]:
    """For each variable the ranks of its true values; the first axis is that of the replicates."""
    import nutpie

    model = built(name)
    true, data = truths(model, replicates, seed)
    compiled = nutpie.compile_pymc_model(model)
    found: dict[str, list[np.ndarray]] = {variable: [] for variable in true}
    for k in range(replicates):
        posterior = nutpie.sample(
            compiled.with_data(**{key: values[k] for key, values in data.items()}),
            draws=KEPT * THIN,
            tune=tune,
            chains=1,
            cores=1,
            seed=seed + k,
            progress_bar=False,
        ).posterior
        for variable, of_variable in found.items():
            draws = posterior[variable].values[0, THIN - 1 :: THIN]
            of_variable.append((draws < true[variable][k]).sum(axis=0))
    return {variable: np.stack(of_variable) for variable, of_variable in found.items()}


def columns(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The ranks of each scalar; the weights of two components are one."""
    scalars = {}
    for variable, of_variable in found.items():
        for k, column in enumerate(of_variable.reshape(len(of_variable), -1).T):
            scalars[f"{variable}[{k}]" if of_variable.ndim > 1 else variable] = column
    scalars.pop("w[1]", None)
    return scalars


def histogram(column: np.ndarray) -> np.ndarray:
    """How many ranks there are in each bin."""
    return np.bincount(column * BINS // (KEPT + 1), minlength=BINS)


def p_value(column: np.ndarray) -> float:
    """Of a chi-square test that ranks are uniform."""
    return float(stats.chisquare(histogram(column)).pvalue)


def band(replicates: int) -> tuple[float, float]:
    """Where a bin lies with a probability of `BAND`, if ranks are uniform."""
    low, high = stats.binom.interval(BAND, replicates, 1 / BINS)
    return float(low), float(high)


def summary(scalars: dict[str, np.ndarray]) -> dict:
    """The figures of a model."""
    counts = np.stack([histogram(column) for column in scalars.values()])
    replicates = len(next(iter(scalars.values())))
    low, high = band(replicates)
    return {
        "replicates": replicates,
        "p": {scalar: round(p_value(column), 4) for scalar, column in scalars.items()},
        "bins": counts.size,
        "outside": int(((counts < low) | (counts > high)).sum()),
        "histograms": dict(zip(scalars, counts.tolist(), strict=True)),
    }


def plot(found: dict[str, dict], path: Path) -> None:
    """One panel for each model, one line for each scalar; where the band is, in grey."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    edges = np.arange(BINS + 1) * (KEPT + 1) / BINS
    figure = Figure(figsize=(2.4 * len(found), 2.2), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)
    for ax, (name, figures) in zip(axes[0], found.items(), strict=True):
        ax.axhspan(*band(figures["replicates"]), color="0.85", lw=0)
        for counts in figures["histograms"].values():
            ax.stairs(counts, edges, baseline=None, color="C0", alpha=0.45, lw=0.8)
        ax.axhline(figures["replicates"] / BINS, color="0.4", lw=0.8)
        ax.set_title(f"{name}, {len(figures['p'])} parameters", fontsize="medium")
        ax.set(xlabel="rank", xlim=(0, KEPT + 1))
        ax.set_ylim(0, 2 * figures["replicates"] / BINS)
    axes[0, 0].set_ylabel("replicates")
    # the same numbers give the same file
    with mpl.rc_context({"svg.hashsalt": "calibration", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Calibrate models; those that were calibrated before stay in the results and in the plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", default=[*MODELS], help=", ".join(MODELS))
    parser.add_argument("-n", type=int, default=REPLICATES, help="replicates")
    arguments = parser.parse_args()
    old = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    for name in arguments.models:
        start = time.monotonic()
        fused = mvn.explain(built(name)).fused
        figures = summary(columns(ranks(name, arguments.n)))
        old[name] = {"fused": fused, "seconds": round(time.monotonic() - start), **figures}
        print(  # noqa: T201
            f"{name} ({', '.join(fused)}): {arguments.n} replicates in {old[name]['seconds']} s, "
            f"{figures['outside']} of {figures['bins']} bins outside of the band, "
            f"p from {min(figures['p'].values())} to {max(figures['p'].values())}",
            flush=True,
        )
        RESULTS.write_text(json.dumps({"machine": machine(), "models": old}, indent=1) + "\n")
        plot({name: old[name] for name in MODELS if name in old}, PICTURE)


if __name__ == "__main__":
    main()
