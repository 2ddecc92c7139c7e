"""Generated models of rows in groups: the rewritten graph has the same numbers.

As in ``test_generated_models.py``, for a covariance per group, however the rows get theirs.
"""

from dataclasses import dataclass

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymc.pytensorf import rewrite_pregrad

import pytensor_mvn_rewrites as mvn
from tests.test_generated_models import logp_and_gradient

FORMS = ["loop", "chols[idx]", "covs[idx]", "scale[idx] * chol", "mix of chols[idx]"]
MEANS = [
    "zero",
    "shared",
    "mu[idx]",
    "mu[other]",
    "X @ B",
    "mu[idx] + X @ B",
    "slopes",
    "not linear",
]


@dataclass(frozen=True)
class Groups:
    """Rows in groups; `sizes` are the numbers of rows."""

    sizes: tuple[int, ...]
    n: int
    form: str
    mean: str
    constant: bool
    columns: int
    collinear: bool
    changing_values: bool
    changing_index: bool
    negative: bool
    dims: bool
    seed: int


@st.composite
def groups(draw):
    form = draw(st.sampled_from(FORMS))
    # PyTensor itself cannot evaluate a loop term without rows in Python
    numbers = st.sampled_from([1, 2, 3, 7, 12] if form == "loop" else [0, 1, 1, 2, 3, 7, 12])
    return Groups(
        sizes=tuple(draw(st.lists(numbers, min_size=1, max_size=4).filter(any))),
        n=draw(st.integers(1, 4)),
        form=form,
        mean=draw(st.sampled_from(MEANS)),
        constant=draw(st.booleans()),
        columns=draw(st.integers(1, 3)),
        collinear=draw(st.booleans()),
        changing_values=draw(st.booleans()),
        changing_index=draw(st.booleans()),
        negative=draw(st.booleans()),
        dims=draw(st.booleans()),
        seed=draw(st.integers(0, 2**20)),
    )


def factor(spec, rng, name):
    """The Cholesky factor of one group."""
    if spec.constant and spec.mean != "zero":
        return np.tril(0.1 * rng.normal(size=(spec.n, spec.n))) + np.eye(spec.n)
    return pt.tril(0.1 * pm.Normal(name, shape=(spec.n, spec.n))) + np.eye(spec.n)


def means(spec, rng, rows):
    """A function from the numbers and the groups of some rows to their means."""
    x = rng.normal(size=(rows, spec.columns))
    if spec.collinear:
        x = np.column_stack([x, x[:, 0], np.ones(rows)])
    other = rng.integers(0, 2, size=rows)
    shapes = {"mu": (len(spec.sizes), spec.n), "few": (2, spec.n), "B": (x.shape[1], spec.n)}
    used = {
        "zero": [],
        "shared": ["few"],
        "mu[idx]": ["mu"],
        "mu[other]": ["few"],
        "X @ B": ["B"],
        "mu[idx] + X @ B": ["mu", "B"],
        "slopes": ["mu"],
        "not linear": ["mu", "B"],
    }[spec.mean]
    rvs = {name: pm.Normal(name, shape=shapes[name]) for name in used}

    def mean(at, group):
        return {
            "zero": lambda: np.zeros(spec.n),
            "shared": lambda: rvs["few"][0],
            "mu[idx]": lambda: rvs["mu"][group],
            "mu[other]": lambda: rvs["few"][other[at]],
            "X @ B": lambda: x[at] @ rvs["B"],
            "mu[idx] + X @ B": lambda: rvs["mu"][group] + x[at] @ rvs["B"],
            "slopes": lambda: rvs["mu"][group] * x[at, :1],
            "not linear": lambda: pt.tanh(rvs["mu"][group] + x[at] @ rvs["B"]),
        }[spec.mean]()

    return mean


def build(spec) -> pm.Model:
    """The model of a specification."""
    rng = np.random.default_rng(spec.seed)
    k, rows = len(spec.sizes), sum(spec.sizes)
    index = rng.permutation(np.repeat(np.arange(k), spec.sizes))
    values = rng.normal(size=(rows, spec.n))
    coords = {"row": range(rows), "feature": range(spec.n)}
    with pm.Model(coords=coords) as model:
        mean = means(spec, rng, rows)
        if spec.form == "loop":
            for g in range(k):
                at = np.flatnonzero(index == g)
                observed = values[at]
                if spec.changing_values:
                    observed = pm.Data(f"values_{g}", observed)
                chol = factor(spec, rng, f"factor_{g}")
                pm.MvNormal(f"obs_{g}", mean(at, g), chol=chol, observed=observed)
            return model
        if spec.negative:
            index = np.where(rng.random(rows) < 0.5, index, index - k)
        idx = pm.Data("idx", index) if spec.changing_index else index
        y = pm.Data("values", values) if spec.changing_values else values
        if spec.form == "scale[idx] * chol":
            scale = pm.HalfNormal("scale", shape=k)
            matrix = {"chol": scale[idx][:, None, None] * factor(spec, rng, "factor")}
        else:
            stack = pt.stack([pt.as_tensor(factor(spec, rng, f"factor_{g}")) for g in range(k)])
            matrix = {
                "chols[idx]": lambda: {"chol": stack[idx]},
                "covs[idx]": lambda: {"cov": (stack @ stack.mT)[idx]},
                "mix of chols[idx]": lambda: {"chol": 0.3 * stack[idx] + 0.7 * np.eye(spec.n)},
            }[spec.form]()
        dims = {"dims": ("row", "feature")} if spec.dims else {}
        pm.MvNormal("obs", mean(np.arange(rows), idx), **matrix, observed=y, **dims)
    return model


def check(spec) -> None:
    """Compare log-density and gradient, with the plugin and without, at a random point."""
    model = build(spec)
    on = logp_and_gradient(model, rewrite_pregrad(model.logp()))
    with mvn.disable():
        off = logp_and_gradient(model, model.logp())
    rng = np.random.default_rng(spec.seed)
    point = [0.3 * rng.normal(size=var.type.shape) for var in model.value_vars]
    for got, want in zip(on(*point), off(*point), strict=True):
        assert np.isfinite(want).all()
        scale = max(1.0, np.abs(want).max(initial=0.0))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * scale)


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(groups())
def test_generated_groups(spec):
    check(spec)
