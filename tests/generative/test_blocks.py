"""Flat vectors of block-diagonal covariances, which become batches."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
import xarray as xr

from pytensor_mvn_rewrites import explain, fuse_model, unfuse
from pytensor_mvn_rewrites.generative.fuse import _made
from tests.harness import densities_by_name

pytestmark = pytest.mark.filterwarnings("ignore:Data in y contains missing values")

K, n = 3, 2
ROOTS = np.random.default_rng(0).normal(size=(K, n, n)) + 2 * np.eye(n)
DATA = np.random.default_rng(1).normal(size=(4, K * n))
block_diag, kron = pt.linalg.block_diag, pt.linalg.kron


@pytest.fixture(autouse=True)
def python_only():
    with pytensor.config.change_flags(cxx=""):
        yield


def covs(scale):
    return [scale * root @ root.T for root in ROOTS]


def one_hot(k):
    return np.diag(np.eye(K)[k])


#: name -> the covariance, or its Cholesky factor
FORMS = {
    "block_diag": lambda s: {"cov": block_diag(*covs(s))},
    "scaled": lambda s: {"cov": s * block_diag(*covs(1.0))},
    "nested": lambda s: {"cov": block_diag(block_diag(*covs(s)[:2]), covs(s)[2])},
    "kron": lambda s: {"cov": kron(pt.eye(K), covs(s)[0])},
    "kron of NumPy": lambda s: {"cov": kron(np.eye(K), covs(s)[0])},
    "identity on the right": lambda s: {"cov": kron(covs(s)[0], np.eye(K))},
    "sum": lambda s: {"cov": sum(kron(one_hot(k), cov) for k, cov in enumerate(covs(s)))},
    "sum of a stack": lambda s: {
        "cov": pt.sum([kron(one_hot(k), cov) for k, cov in enumerate(covs(s))], axis=0)
    },
    "jitter": lambda s: {"cov": block_diag(*covs(s)) + 1e-6 * np.eye(K * n)},
    "Cholesky factor": lambda s: {"chol": block_diag(*(s * np.tril(root) for root in ROOTS))},
    "constant, interleaved": lambda s: {"cov": s * np.kron([[2.0, 0.3], [0.3, 1.0]], np.eye(K))},
}


def terms(model, point):
    """The sum of the log-densities of each variable and potential, by its name."""
    return {name: value.sum() for name, value in densities_by_name(model, point).items()}


def split(fused, point):
    """The same point for the values of the fused model."""
    blocks = _made[fused].blocks
    return {
        name: value[..., blocks[name].positions] if name in blocks else value
        for name, value in point.items()
    }


def assert_same_density(model, fused, rng):
    """Of each variable, and in sum."""
    for _ in range(3):
        point = {
            name: np.asarray(0.3 * rng.normal(size=value.shape))
            for name, value in model.initial_point().items()
        }
        expected, got = terms(model, point), terms(fused, split(fused, point))
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-12)
        total = sum(expected.values())
        np.testing.assert_allclose(sum(got.values()), total, rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["observed", "rows", "data", "latent"])
def test_log_densities(form, kind, rng):
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        mean = pm.Normal("mean", shape=K * n)
        y = {"observed": DATA[0], "rows": DATA, "latent": None}
        observed = pm.Data("data", DATA[1]) if kind == "data" else y[kind]
        y = pm.MvNormal("y", mean, **FORMS[form](scale), observed=observed)
        pm.Deterministic("twice", 2 * y)
        pm.Potential("potential", y[..., 1] * y[..., K])
        pm.Normal("z", y, scale, observed=np.zeros(y.type.shape))
    fused = fuse_model(model)
    assert fused["y"].type.shape[-2:] == (K, n)
    assert fused.named_vars_to_dims["y"][-2:] == ("y_block", "y_entry")
    assert fused.coords["y_block"] == tuple(range(K))
    assert fused["twice"].type.shape == model["twice"].type.shape
    assert_same_density(model, fused, rng)


def assert_same_arrays(got, expected):
    """Names, dims and coordinates."""
    assert set(got.children) == set(expected.children)
    for name, group in expected.children.items():
        own = got[name].to_dataset()
        assert set(own.data_vars) == set(group.data_vars)
        assert set(own.coords) == set(group.coords)
        for key, array in group.data_vars.items():
            assert own[key].dims == array.dims
            for dim in array.dims:
                np.testing.assert_array_equal(own[dim], array[dim])
    np.testing.assert_array_equal(got.observed_data["y"], expected.observed_data["y"])


@pytest.mark.parametrize("form", ["block_diag", "identity on the right"])
@pytest.mark.parametrize("dims", [None, ("trait",), ("row", "trait")])
def test_back(form, dims):
    """`unfuse` gives back the flat vector, its dims and their coordinates."""
    with pm.Model(coords={"trait": list("abcdef"), "row": [3, 1, 4, 5]}) as model:
        flat = dims[-1:] if dims else None
        x = pm.MvNormal("x", mu=np.zeros(K * n), **FORMS[form](1.0), dims=flat)
        observed = DATA if dims and len(dims) == 2 else DATA[0]
        pm.MvNormal("y", mu=x, **FORMS[form](2.0), observed=observed, dims=dims)
    fused = fuse_model(model)
    assert set(_made[fused].blocks) == {"x", "y"}
    options = {"draws": 3, "random_seed": 1, "compile_kwargs": {"mode": "FAST_COMPILE"}}
    original = pm.sample_prior_predictive(model=model, **options)
    samples = pm.sample_prior_predictive(model=fused, **options)
    back = unfuse(samples, fused)
    assert_same_arrays(back, original)
    for name, batch in _made[fused].blocks.items():
        group = "prior" if name == "x" else "prior_predictive"
        np.testing.assert_array_equal(
            back[group][name].values[..., batch.positions], samples[group][name].values
        )


def test_log_likelihood():
    """The flat vector has one log-density."""
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        pm.MvNormal("y", np.zeros(6), cov=block_diag(*covs(scale)), observed=DATA[0])
    fused = fuse_model(model)
    found = []
    for own in (model, fused):
        draws = xr.Dataset({"scale": (("chain", "draw"), [[0.5, 1.0, 2.0]])})
        data = xr.DataTree.from_dict({"posterior": draws.assign_coords(chain=[0], draw=[0, 1, 2])})
        mode = {"compile_kwargs": {"mode": "FAST_COMPILE"}}
        pm.compute_log_likelihood(data, model=own, progressbar=False, **mode)
        found.append(data)
    expected, got = found
    assert got.log_likelihood["y"].dims == ("chain", "draw", "y_block")
    back = unfuse(got, fused).log_likelihood["y"]
    assert back.dims == ("chain", "draw")
    np.testing.assert_allclose(back, expected.log_likelihood["y"], rtol=1e-12)


def test_what_is_computed_of_it():
    """Distributions of the draws are the same, and so are those of what uses them."""
    with pm.Model() as model:
        x = pm.MvNormal("x", mu=np.arange(6.0), cov=np.kron(1e-8 * np.diag([1.0, 2]), np.eye(3)))
        pm.MvNormal("y", mu=np.arange(6.0), cov=kron([[1e-8, 1e-9], [1e-9, 1e-8]], np.eye(3)))
        pm.Deterministic("total", x + model["y"])
    fused = fuse_model(model)
    assert set(_made[fused].blocks) == {"y"}
    [total] = pm.draw([fused["total"]], random_seed=1, mode="FAST_COMPILE")
    np.testing.assert_allclose(total, 2 * np.arange(6.0), atol=1e-2)


def test_initial_values():
    with pm.Model() as model:
        cov = block_diag(*covs(1.0))
        pm.MvNormal("x", np.zeros(6), cov=cov, initval=np.arange(6.0))
        pm.MvNormal("y", np.zeros(6), cov=cov, initval="support_point")
    start = fuse_model(model).initial_point()
    np.testing.assert_array_equal(start["x"], np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(start["y"], np.zeros((3, 2)))


def test_loops_of_flat_vectors(rng):
    """One variable of the loop, and of it one of the blocks."""
    with pm.Model() as model:
        scale = pm.HalfNormal("scale", shape=4)
        for i in range(4):
            pm.MvNormal(f"y_{i}", np.zeros(6), cov=block_diag(*covs(scale[i])), observed=DATA[i])
    fused = fuse_model(model)
    assert fused["y"].type.shape == (4, K, n)
    assert fused.named_vars_to_dims["y"] == ("y_loop", "y_block", "y_entry")
    point = {"scale_log__": 0.3 * rng.normal(size=4)}
    got, expected = terms(fused, point), terms(model, point)
    np.testing.assert_allclose(sum(got.values()), sum(expected.values()), rtol=1e-12)
    options = {"draws": 3, "random_seed": 1, "compile_kwargs": {"mode": "FAST_COMPILE"}}
    samples = pm.sample_prior_predictive(model=fused, **options)
    back = unfuse(samples, fused)
    assert back.prior_predictive["y_2"].dims == ("chain", "draw", "y_2_dim_0")
    np.testing.assert_array_equal(
        back.prior_predictive["y_2"].values.reshape(1, 3, K, n),
        samples.prior_predictive["y"].values[:, :, 2],
    )


def taken_dimension(cov):
    pm.modelcontext(None).add_coord("y_entry", [1, 2])
    pm.MvNormal("y", np.zeros(6), cov=cov)


#: What stays, and why
STAYS = {
    "unequal blocks": (
        lambda cov: pm.MvNormal("y", np.zeros(5), cov=block_diag(np.eye(3) + 1, cov[:2, :2])),
        "its blocks differ in size",
    ),
    "sizes not known": (
        lambda cov: pm.MvNormal(
            "y", np.zeros(4), cov=block_diag(*2 * [pm.Data("c", np.eye(2) + 0.1)])
        ),
        "the sizes of its blocks are not known",
    ),
    "missing values": (
        lambda cov: pm.MvNormal(
            "y", 0, cov=cov, observed=np.where(np.arange(6) == 1, np.nan, DATA[0])
        ),
        "some of its values are missing",
    ),
    "precision": (
        lambda cov: pm.MvNormal("y", np.zeros(6), tau=cov),
        "PyMC has no density of a batch that is given by precisions",
    ),
    "transform": (
        lambda cov: pm.MvNormal(
            "y", 0, cov=cov, transform=pm.distributions.transforms.ordered, initval=np.arange(6.0)
        ),
        "is one of the flat vector",
    ),
    "initial graph": (
        lambda cov: pm.MvNormal("y", 0, cov=cov, initval=pt.zeros(6)),
        "its initial value is given as a graph",
    ),
    "dimension taken": (taken_dimension, "the dimension 'y_entry' is taken"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays(name, rng):
    """As it is; `explain` says why."""
    declare, reason = STAYS[name]
    with pm.Model() as model:
        pm.Normal("other")
        declare(block_diag(*covs(1.0)))
    fused = fuse_model(model)
    assert not _made[fused].blocks
    assert fused.coords.keys() == model.coords.keys()
    assert fused.initial_point().keys() == model.initial_point().keys()
    assert_same_density(model, fused, rng)
    [declined] = [own for own in explain(fused).declined if own.rule == "fuse_model"]
    assert reason in declined.reason
    assert declined.variables.startswith("y")
    [y] = [rv.name for rv in model.basic_RVs if rv.name in ("y", "y_observed")]
    with pytest.raises(ValueError, match=f"{y} cannot be fused: .*{reason}"):
        fuse_model(model, names=[y])


def test_no_blocks():
    """Diagonal, dense, and of one block."""
    with pm.Model() as model:
        pm.MvNormal("a", np.zeros(4), cov=np.eye(4))
        pm.MvNormal("b", np.zeros(4), cov=np.eye(4) + 0.1)
        pm.MvNormal("c", np.zeros(2), cov=block_diag(np.eye(2) + 0.1))
        pm.MvNormal("d", np.zeros(4), chol=np.tril(np.ones((4, 4))))
    fused = fuse_model(model)
    assert not _made[fused].blocks
    reasons = {event.reason for event in _made[fused].declined}
    assert reasons == {"their names have no pattern"}


def test_only_these():
    with pm.Model() as model:
        for name in "xy":
            pm.MvNormal(name, np.zeros(6), cov=block_diag(*covs(1.0 + (name == "y"))))
    fused = fuse_model(model, names=["y"])
    assert fused["x"].type.shape == (6,)
    assert fused["y"].type.shape == (3, 2)
