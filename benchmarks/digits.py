"""Digits that log-densities and gradients lose, with the plugin and without it.

    python -m benchmarks.digits              # all models, some minutes: most of it compiles
    python -m benchmarks.digits ou loop      # some of them

Functions are compiled for Numba and called at points where the covariance has a given condition
number; the observations are drawn from it, and priors are flat. The true value is that of the
graph as it was written, at the same doubles, in arithmetic of 50 digits. What is lost is the
logarithm of the relative error over 2.2e-16, the largest at some points; of a gradient, for the
variable that loses most, relative to the largest entry of its gradient.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from mpmath import log10, mpf
from pymc.pytensorf import rewrite_pregrad

import pytensor_mvn_rewrites as mvn
from tests.certificates.interpreter import evaluate

CONDITIONS = [10.0**k for k in range(2, 15, 2)]
POINTS = 20
TABLES = Path(__file__).parent / "digits.md"
EPS = float(np.finfo("float64").eps)

#: For the data and the value variables of a model their values
Situation = dict[str, np.ndarray]

#: name -> what makes a situation of a condition number, and declares the model, given one
MODELS: dict[str, tuple[Callable[..., Situation], Callable[[Situation], None]]] = {}


def spectrum(rng, n: int, condition: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, evenly spaced in the logarithm, and eigenvectors."""
    return np.geomspace(1, 1 / condition, n), np.linalg.qr(rng.normal(size=(n, n)))[0]


def root(rng, n: int, condition: float) -> np.ndarray:
    """An X, no triangle, with X @ X.T of a condition number."""
    eigenvalues, vectors = spectrum(rng, n, condition)
    return (vectors * np.sqrt(eigenvalues)) @ spectrum(rng, n, 1)[1]


def model(name: str, situation: Callable[..., Situation]):
    """Collect a model with its situations."""

    def register(declare):
        MODELS[name] = situation, declare
        return declare

    return register


def of_loop(rng, condition):
    """Ten covariances that are data, times a scale."""
    covs, y = np.empty((10, 3, 3)), np.empty((10, 3))
    for k in range(10):
        eigenvalues, vectors = spectrum(rng, 3, condition)
        covs[k] = (vectors * eigenvalues) @ vectors.T
        y[k] = (vectors * np.sqrt(eigenvalues)) @ rng.normal(size=3)
    return {"covs": (covs + covs.mT) / 2, "y": y, "s_log__": np.array(0.1), "mu": 0 * y}


@model("loop, `cov = s * covs[n]`", of_loop)
def loop(at):
    """Ten variables."""
    covs, y = pm.Data("covs", at["covs"]), pm.Data("y", at["y"])
    s, mu = pm.HalfFlat("s"), pm.Flat("mu", shape=(10, 3))
    for k in range(10):
        pm.MvNormal(f"y_{k}", mu[k], cov=s * covs[k], observed=y[k])


def of_lkj(rng, condition):
    """Six rows, and the factor of a covariance as PyMC packs it."""
    eigenvalues, vectors = spectrum(rng, 4, condition)
    # the R of QR is the Cholesky factor, and no covariance is computed
    chol = np.linalg.qr((vectors * np.sqrt(eigenvalues)).T, mode="r").T
    chol = chol * np.sign(np.diag(chol))
    chol = chol * np.sign(np.diag(chol))
    y, diagonal = rng.normal(size=(6, 4)) @ chol.T, np.diag_indices(4)
    chol[diagonal] = np.log(chol[diagonal])
    return {"y": y, "L_cholesky-cov-packed__": chol[np.tril_indices(4)]}


@model("one LKJ factor, `chol=L`", of_lkj)
def lkj(at):
    """Rows that share it."""
    chol, _, _ = pm.LKJCholeskyCov("L", n=4, eta=2, sd_dist=pm.Exponential.dist(1, shape=4))
    pm.MvNormal("x", np.zeros(4), chol=chol, observed=pm.Data("y", at["y"]))


def of_kron(rng, condition):
    """Two Kronecker factors, whose smallest eigenvalues make as much as the noise."""
    A, B, s = root(rng, 3, condition**0.5), root(rng, 4, condition**0.5), condition**-0.5
    y = np.kron(A, B) @ rng.normal(size=12) + s * rng.normal(size=12)
    return {"y": y, "A": A, "B": B, "s_log__": np.log(s)}


@model("`kron(A @ A.T, B @ B.T) + s**2 * eye`", of_kron)
def kron(at):
    """A Gaussian process on a grid."""
    A, B = pm.Flat("A", shape=(3, 3)), pm.Flat("B", shape=(4, 4))
    cov = pt.linalg.kron(A @ A.T, B @ B.T) + pm.HalfFlat("s") ** 2 * np.eye(12)
    pm.MvNormal("x", np.zeros(12), cov=cov, observed=pm.Data("y", at["y"]))


def of_low_rank(rng, condition):
    """Two columns of length one."""
    W, s = np.linalg.qr(rng.normal(size=(24, 2)))[0], condition**-0.5
    y = W @ rng.normal(size=2) + s * rng.normal(size=24)
    return {"y": y, "W": W, "s_log__": np.log(s)}


@model("`W @ W.T + s**2 * eye`, of rank 2", of_low_rank)
def low_rank(at):
    """A factor model."""
    W = pm.Flat("W", shape=(24, 2))
    cov = W @ W.T + pm.HalfFlat("s") ** 2 * np.eye(24)
    pm.MvNormal("x", np.zeros(24), cov=cov, observed=pm.Data("y", at["y"]))


def of_blocks(rng, condition):
    """Two blocks."""
    A, B = root(rng, 3, condition), root(rng, 4, condition)
    y = np.concatenate([A @ rng.normal(size=3), B @ rng.normal(size=4)])
    return {"y": y, "A": A, "B": B}


@model("`block_diag(A @ A.T, B @ B.T)`", of_blocks)
def blocks(at):
    """Of products, in which half of the digits of A and B are lost."""
    A, B = pm.Flat("A", shape=(3, 3)), pm.Flat("B", shape=(4, 4))
    cov = pt.linalg.block_diag(A @ A.T, B @ B.T)
    pm.MvNormal("x", np.zeros(7), cov=cov, observed=pm.Data("y", at["y"]))


TIMES = np.array([0.0, 1.0, 1.5, 3.0, 4.0, 6.0, 6.5, 9.0])
DISTANCES = np.abs(TIMES[:, None] - TIMES)


def of_ou(rng, condition):
    """A length-scale; the condition number grows as it does, once it is long."""
    scale = 1e3 * condition / np.linalg.cond(np.exp(-DISTANCES / 1e3))
    y, correlation = rng.normal(size=8), np.exp(-np.diff(TIMES) / scale)
    for k, step in enumerate(np.diff(TIMES)):
        y[k + 1] = correlation[k] * y[k] + np.sqrt(-np.expm1(-2 * step / scale)) * y[k + 1]
    return {"y": y, "l_log__": np.log(scale)}


@model("`exp(-abs(t[:, None] - t) / l)`", of_ou)
def ou(at):
    """An Ornstein-Uhlenbeck process."""
    cov = pt.exp(-DISTANCES / pm.HalfFlat("l"))
    pm.MvNormal("x", np.zeros(8), cov=cov, observed=pm.Data("y", at["y"]))


def density_and_gradient(model: pm.Model, rewrite=lambda logp: logp) -> list:
    """The log-density and its gradient, as PyMC takes it."""
    logp = rewrite(model.logp())
    return [logp, *pt.grad(logp, model.value_vars)]


def compiled(model: pm.Model, plugin: bool) -> Callable:
    """A function of the value variables."""
    with nullcontext() if plugin else mvn.disable():
        outputs = density_and_gradient(model, rewrite_pregrad)
        return model.compile_fn(outputs, inputs=model.value_vars, mode="NUMBA", point_fn=False)


def lost(value, true) -> float:
    """Digits that a number or an array has lost; infinity where it is none."""
    value, true = np.ravel(value), np.ravel(true)
    if not np.isfinite(value).all():
        return np.inf
    errors = [abs(mpf(float(x)) - y) for x, y in zip(value, true, strict=True)]
    error = max(errors) / max(map(abs, true)) / EPS
    return float(log10(error)) if error > 1 else 0.0


def measured(name: str) -> dict[str, list[tuple[float, float]]]:
    """For value and gradient, the digits lost without and with the plugin at each condition."""
    situation, declare = MODELS[name]
    rng = np.random.default_rng(20261129)
    with pm.Model() as built:
        declare(situation(rng, 10.0))
    with mvn.disable():
        as_written = density_and_gradient(built)
    functions = [compiled(built, plugin) for plugin in (False, True)]
    table: dict[str, list[tuple[float, float]]] = {"log-density": [], "gradient": []}
    for condition in CONDITIONS:
        worst = np.zeros((2, 2))
        for _ in range(POINTS):
            at = situation(rng, condition)
            for data in built.data_vars:
                data.set_value(at[data.name])
            point = {var: at[var.name] for var in built.value_vars}
            true = evaluate(as_written, point)
            for k, function in enumerate(functions):
                digits = list(map(lost, function(*point.values()), true))
                worst[:, k] = np.maximum(worst[:, k], [digits[0], max(digits[1:])])
        for quantity, pair in zip(table, worst, strict=True):
            table[quantity].append((pair[0], pair[1]))
    return table


def markdown(tables: dict[str, dict[str, list[tuple[float, float]]]]) -> str:
    """A table for the log-density and one for the gradient."""

    def number(digits: float) -> str:
        return "fails" if np.isinf(digits) else f"{digits:.1f}"

    lines = []
    for quantity in ("log-density", "gradient"):
        powers = [f"1e{round(np.log10(condition))}" for condition in CONDITIONS]
        lines += [f"| {quantity} | {' | '.join(powers)} |", "|---" * (1 + len(powers)) + "|"]
        for name, table in tables.items():
            cells = (f"{number(off)}, {number(on)}" for off, on in table[quantity])
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def main() -> None:
    """Print the tables of all models, or of those whose functions are named.

    Those of all are kept in ``digits.md``, from where :mod:`benchmarks.publish` takes them.
    """
    names = [
        name
        for name, (_, declare) in MODELS.items()
        if not sys.argv[1:] or declare.__name__ in sys.argv[1:]
    ]
    tables = markdown({name: measured(name) for name in names})
    print(tables)  # noqa: T201
    if len(names) == len(MODELS):
        TABLES.write_text(tables)


if __name__ == "__main__":
    main()
