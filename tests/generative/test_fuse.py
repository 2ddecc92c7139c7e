"""Models with one variable for each loop, and the way back."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.model_graph import ModelGraph

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites import fuse_model, unfuse
from pytensor_mvn_rewrites.generative.fuse import _made, common_name
from tests.harness import PIPELINE_MODE, assert_close, densities_by_name, fused_point
from tests.loop_models import LOOPS, ROWS, N, data, lkj_groups, model_of, mvnormals, ragged_groups

pytestmark = [
    pytest.mark.filterwarnings("ignore:Data in y_. contains missing values"),
    pytest.mark.filterwarnings("ignore:Intermediate results"),
]

#: What the loops become; distributions that PyMC has no batches of, and chains, stay.
FUSED = {
    "mvnormals": ["x"],
    "precisions_of_latent_scales": ["scale", "upper", "mean", "x"],
    "random_walk": [],
    "lkj_groups": ["chol", "x"],
    "ragged_groups": ["mean", "x", "y"],
    "many_rows": ["x"],
    "discrete": ["z", "k", "y"],
    "parts_that_are_draws": ["mixture"],
    "transforms": ["weights", "above", "sorted", "between"],
    "data": ["x"],
    "missing": ["y_unobserved", "y_observed"],
    "kronecker_normals": [],
}


def point_of(model, rng):
    return {
        name: rng.integers(0, 2, size=value.shape).astype(value.dtype)
        if value.dtype.kind == "i"
        else np.asarray(0.3 * rng.normal(size=value.shape))
        for name, value in model.initial_point().items()
    }


@pytest.mark.parametrize("declare", LOOPS, ids=lambda declare: declare.__name__)
def test_log_densities(declare, rng):
    """Each variable has its own in the batch."""
    model = model_of(declare)
    fused = fuse_model(model)
    assert sorted(_made[fused].loops) == sorted(FUSED[declare.__name__])
    point = point_of(model, rng)
    expected = densities_by_name(model, point)
    for name, value in densities_by_name(fused, fused_point(model, fused, point)).items():
        fusion = _made[fused].loops.get(name)
        parts = {name: value}
        if fusion is not None:
            cuts = range(1, len(value)) if fusion.rows is None else np.cumsum(fusion.rows)[:-1]
            split = np.split(value, cuts)
            split = [part[0] for part in split] if fusion.rows is None else split
            parts = dict(zip(fusion.names, split, strict=True))
        for own, part in parts.items():
            np.testing.assert_allclose(part, expected.pop(own), rtol=1e-12)
    assert not expected


def test_coordinates():
    with pm.Model(coords={"trait": ["height", "weight"]}) as model:
        for place in ("north", "south", "west"):
            mean = pm.Normal(f"mean_{place}", dims="trait")
            pm.Normal(f"y_{place}", mean, 1, observed=[1.0, 2.0], dims="trait")
            pm.Deterministic(f"twice_{place}", 2 * mean, dims="trait")
    fused = fuse_model(model)
    assert fused.named_vars_to_dims["mean"] == fused.named_vars_to_dims["y"]
    assert fused.named_vars_to_dims["mean"] == ("mean_loop", "trait")
    assert fused.coords["mean_loop"] == ("north", "south", "west")
    assert {var.name for var in fused.deterministics} == {
        "twice_north",
        "twice_south",
        "twice_west",
    }
    # the user's model is left alone
    assert "mean_north" in model.named_vars
    assert "mean_loop" not in model.coords


def test_picture():
    """One node in one plate, where the loop has one for each member."""

    def drawn(model):
        plates = ModelGraph(model).get_plates()
        return sorted(node.var.name for plate in plates for node in plate.variables)

    model = model_of(mvnormals)
    assert drawn(model) == ["L", "mu", *(f"x_{n}" for n in range(N))]
    assert drawn(fuse_model(model)) == ["L", "mu", "x"]


def test_rows_know_their_member():
    fused = fuse_model(model_of(ragged_groups))
    np.testing.assert_array_equal(
        fused["x_member"].get_value(), np.repeat(np.arange(N), np.arange(1, N + 1))
    )
    assert fused.named_vars_to_dims["x_member"] == ("x_row",)


def test_data_may_change(rng):
    model = model_of(data)
    fused = fuse_model(model)
    new = {"rows": rng.normal(size=(N, 2)), "scales": np.arange(1.0, N + 1) ** 2}
    pm.set_data(new, model=model)
    pm.set_data(new, model=fused)
    point = point_of(model, rng)
    expected = sum(term.sum() for term in densities_by_name(model, point).values())
    got = sum(term.sum() for term in densities_by_name(fused, point).values())
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "declare", [mvnormals, ragged_groups, lkj_groups], ids=lambda d: d.__name__
)
def test_predictive_and_back(declare):
    """`unfuse` takes the batch apart, exactly."""
    model = model_of(declare)
    fused = fuse_model(model)
    with fused:
        samples = pm.sample_prior_predictive(
            5, random_seed=1, compile_kwargs={"mode": "FAST_COMPILE"}
        )
    back = unfuse(samples, fused)
    for group in ("prior", "prior_predictive"):
        for name, values in samples[group].data_vars.items():
            fusion = _made[fused].loops.get(name)
            if fusion is None:
                np.testing.assert_array_equal(back[group][name], values)
                continue
            assert name not in back[group]
            own = [back[group][n].values for n in fusion.names]
            whole = np.concatenate(own, axis=2) if fusion.rows else np.stack(own, axis=2)
            np.testing.assert_array_equal(whole, values)
    for rv in model.observed_RVs:
        assert back.prior_predictive[rv.name].shape[2:] == rv.type.shape


def test_initial_values():
    with pm.Model() as model:
        other = pm.Normal("other", initval=3.0)
        for n in range(4):
            pm.Normal(f"x_{n}", other, 1, initval=float(n))
            pm.Normal(f"some_{n}", other, 1, initval=1.0 if n else None)
    fused = fuse_model(model)
    start = fused.initial_point()
    np.testing.assert_array_equal(start["x"], np.arange(4))
    assert start["other"] == 3
    # of some only: they stay, with theirs
    assert start["some_1"] == 1
    assert "some" not in fused.named_vars
    assert model.initial_point()["x_3"] == 3


def test_order_of_variables():
    """That of the model, so that raveled points are laid out as its own are."""
    with pm.Model() as model:
        last = pm.Normal("last")
        first = pm.HalfNormal("first")
        for n in range(3):
            x = pm.Normal(f"x_{n}", first, n + 1.0)
            pm.Normal(f"y_{n}", x, 1.0, observed=n)
        pm.Deterministic("total", first + last)
        pm.Deterministic("difference", first - last)
    fused = fuse_model(model)
    assert [rv.name for rv in fused.basic_RVs] == ["last", "first", "x", "y"]
    assert [var.name for var in fused.deterministics] == ["total", "difference"]


def test_only_these():
    model = model_of(mvnormals)
    names = [f"x_{n}" for n in range(5)]
    fused = fuse_model(model, names=names)
    assert fused.coords["x_loop"] == tuple(range(5))
    assert {rv.name for rv in fused.observed_RVs} == {"x", "x_5", "x_6", "x_7", "x_8"}


def test_what_cannot_be_fused_is_named():
    with pm.Model() as model:
        pm.Normal("x")
        for n in range(3):
            pm.Normal(f"x_{n}", 0, n + 1.0)
        y = pm.Normal("y_0")
        for n in range(1, 4):
            y = pm.Normal(f"y_{n}", y, 1)
        pm.Normal("alpha", 0, 2.0)
        pm.Normal("beta", 0, 3.0)
    fused = fuse_model(model)
    assert not _made[fused].loops
    with pytest.raises(ValueError, match="x_0 cannot be fused: the name 'x' is taken"):
        fuse_model(model, names=["x_0", "x_1", "x_2"])
    with pytest.raises(ValueError, match="y_1 cannot be fused: they depend on one another"):
        fuse_model(model, names=["y_1", "y_2", "y_3"])
    with pytest.raises(ValueError, match="alpha cannot be fused: their names have no pattern"):
        fuse_model(model, names=["alpha", "beta"])
    with pytest.raises(ValueError, match="no random variables of the model"):
        fuse_model(model, names=["z"])


def test_a_transform_of_the_user():
    class Shift(pm.logprob.transforms.Transform):
        name = "shift"
        ndim_supp = 0

        def forward(self, value, *inputs):
            return value - 1

        def backward(self, value, *inputs):
            return value + 1

        def log_jac_det(self, value, *inputs):
            return pt.zeros_like(value)

    with pm.Model() as model:
        for n in range(3):
            pm.Normal(f"x_{n}", 0, n + 1.0, transform=Shift())
    assert not _made[fuse_model(model)].loops


def test_names_of_dimensions():
    """Those that PyMC gives the variables of the loop."""
    with pm.Model() as model:
        for n in range(3):
            pm.Normal(f"x_{n}", n, shape=(2, 4))
            pm.MvNormal(f"y_{n}", np.zeros(2), (1 + n) * np.eye(2), observed=ROWS[0][: n + 1])
    options = {"draws": 2, "compile_kwargs": {"mode": "FAST_COMPILE"}}
    expected = pm.sample_prior_predictive(model=model, **options)
    fused = fuse_model(model)
    back = unfuse(pm.sample_prior_predictive(model=fused, **options), fused)
    for group in ("prior", "prior_predictive"):
        for name, array in expected[group].data_vars.items():
            assert back[group][name].dims == array.dims
            assert back[group][name].shape == array.shape


def test_unfuse_wants_a_fused_model():
    with pytest.raises(ValueError, match="was not made by fuse_model"):
        unfuse(None, model_of(mvnormals))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x_0", "x_1", "x_10"], ("x", (0, 1, 10))),
        (["x0", "x1"], ("x", (0, 1))),
        (["x[0]", "x[1]"], ("x", (0, 1))),
        (["mu_north", "mu_south"], ("mu", ("north", "south"))),
        (["north_rate", "south_rate"], ("rate", ("north", "south"))),
        (["a_0_b", "a_1_b"], ("a_b", (0, 1))),
        (["mu_10", "mu_11"], ("mu", (10, 11))),
        (["alpha", "beta"], ("", ("alpha", "beta"))),
        (["theta", "thalamus"], ("", ("theta", "thalamus"))),
    ],
)
def test_common_name(names, expected):
    assert common_name(names) == expected


def test_observed_rows_of_one_shape():
    """A batch of several rows each, with means of their own."""
    with pm.Model() as model:
        for n in range(3):
            mean = pm.Normal(f"mean_{n}", shape=2)
            pm.MvNormal(f"x_{n}", mean, np.eye(2), observed=ROWS[n])
    fused = fuse_model(model)
    assert fused["x"].type.shape == (3, 4, 2)


def test_loops_whose_names_begin_alike():
    with pm.Model() as model:
        s = pm.HalfNormal("s")
        for n in range(3):
            pm.Normal(f"x_F{n:02}", n, s)
        for n in range(2):
            pm.Normal(f"x_M{n + 5:02}", n, s)
    fused = fuse_model(model)
    assert {rv.name for rv in fused.free_RVs} == {"s", "x_F", "x_M"}
    assert fused.coords["x_F_loop"] == (0, 1, 2)
    assert fused.coords["x_M_loop"] == (5, 6)


def the_same_generator(n):
    rng = pytensor.shared(np.random.default_rng(1)) if n == 0 else GENERATOR[0]
    GENERATOR[:] = [rng]
    pm.Normal(f"x_{n}", 0, n + 1.0, rng=rng)


GENERATOR: list = []
LOG = pm.distributions.transforms.log

#: One of a loop of five, and which of them are fused
ODD = {
    "another length": (lambda n: pm.Normal(f"x_{n}", 0, n + 1.0, shape=2 + (n == 3)), 4),
    "another distribution": (
        lambda n: (pm.Laplace if n == 3 else pm.Normal)(f"x_{n}", 0, n + 1.0),
        4,
    ),
    "another transform": (
        lambda n: pm.Normal(f"x_{n}", 0, 1.0 + n, **({"transform": LOG} if n == 3 else {})),
        4,
    ),
    "one is observed": (
        lambda n: pm.Normal(f"x_{n}", 0, 1.0 + n, observed=2.0 if n == 3 else None),
        4,
    ),
    "one has an initial value": (
        lambda n: pm.Normal(f"x_{n}", 0, 1.0 + n, initval=2.0 if n == 3 else None),
        0,
    ),
    "one generator": (the_same_generator, 5),
    "LKJ of another eta": (
        lambda n: pm.LKJCholeskyCov(
            f"x_{n}",
            n=2,
            eta=2.0 + (n == 3),
            sd_dist=pm.HalfNormal.dist(1.0 + n),
            compute_corr=False,
        ),
        0,
    ),
    "LKJ of another distribution": (
        lambda n: pm.LKJCholeskyCov(
            f"x_{n}",
            n=2,
            eta=2.0,
            sd_dist=(pm.Exponential if n == 3 else pm.HalfNormal).dist(1.0 + n),
            compute_corr=False,
        ),
        4,
    ),
    "LKJ of vectors": (
        lambda n: pm.LKJCholeskyCov(
            f"x_{n}",
            n=2,
            eta=2.0,
            sd_dist=pm.HalfNormal.dist(np.array([1.0, 2.0 + n])),
            compute_corr=False,
        ),
        5,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_stays(name, rng):
    """With its name and its density; the others are one variable."""
    with pm.Model() as model:
        for n in range(5):
            ODD[name][0](n)
    fused = fuse_model(model)
    members = [name for fusion in _made[fused].loops.values() for name in fusion.names]
    assert len(members) == ODD[name][1]
    assert "x_3" not in members or len(members) == 5
    point = point_of(model, rng)
    expected = densities_by_name(model, point)
    got = densities_by_name(fused, fused_point(model, fused, point))
    np.testing.assert_allclose(
        sum(value.sum() for value in got.values()),
        sum(value.sum() for value in expected.values()),
        rtol=1e-12,
    )


def nested_mixture(n):
    inner = pm.Mixture.dist(w=[0.5, 0.5], comp_dists=[pm.Normal.dist(n), pm.Normal.dist(1)])
    pm.Mixture(f"y_{n}", w=[0.2, 0.8], comp_dists=[inner, pm.Normal.dist(n)], observed=0.3)


#: One member of a loop of mixtures that are fused
MIXTURES = {
    "of vectors": lambda n, s, w: pm.Mixture(
        f"y_{n}",
        w=w[n],
        comp_dists=[
            pm.MvNormal.dist(np.full(2, n), np.eye(2)),
            pm.MvNormal.dist(np.zeros(2), s * np.eye(2) * (n + 1)),
        ],
        observed=ROWS[n, 0],
    ),
    "of rows": lambda n, s, w: pm.Mixture(
        f"y_{n}",
        w=w[n],
        comp_dists=[pm.Normal.dist(n, s, shape=4), pm.Laplace.dist(0, s, shape=4)],
        observed=ROWS[n, :, 0],
    ),
    "latent": lambda n, s, w: pm.Mixture(
        f"y_{n}", w=w[n], comp_dists=[pm.Normal.dist(n, 1), pm.Normal.dist(s, 1)]
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures(name, rng):
    with pm.Model() as model:
        s = pm.HalfNormal("s")
        w = pm.Dirichlet("w", np.ones(2), shape=(4, 2))
        for n in range(4):
            MIXTURES[name](n, s, w)
    fused = fuse_model(model)
    assert set(_made[fused].loops) == {"y"}
    point = point_of(model, rng)
    expected = densities_by_name(model, point)
    got = densities_by_name(fused, fused_point(model, fused, point))
    for n in range(4):
        np.testing.assert_allclose(got["y"][n], expected[f"y_{n}"], rtol=1e-12)
    [drawn] = pm.draw([fused["y"]], mode="FAST_COMPILE")
    assert drawn.shape == (4, *model["y_0"].shape.eval())


#: One member of a loop that stays, and what `explain` says of it
EXPLAINED = {
    "KroneckerNormal": (
        lambda n, s: pm.KroneckerNormal(
            f"y_{n}", np.zeros(4), covs=[s * np.eye(2), np.eye(2) + n], observed=np.ones(4)
        ),
        "distributions of this kind have no batches",
    ),
    "NormalMixture": (
        lambda n, s: pm.NormalMixture(f"y_{n}", w=[0.2, 0.8], mu=[0, s + n], observed=0.3),
        "a parameter is drawn anew",
    ),
    "mixture of mixtures": (
        lambda n, s: nested_mixture(n),
        "distributions like that of their components have no batches",
    ),
    "Censored": (
        lambda n, s: pm.Censored(f"y_{n}", pm.Normal.dist(s, n + 1.0), lower=-1, upper=1),
        "distributions of this kind have no batches",
    ),
    "dependent": (
        lambda n, s: pm.Normal(f"y_{n}", pm.modelcontext(None).free_RVs[-1]),
        "they depend on one another",
    ),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_explain_says_what_stays(name):
    declare, reason = EXPLAINED[name]
    with pm.Model() as model:
        s = pm.HalfNormal("s")
        for n in range(4):
            declare(n, s)
    fused = fuse_model(model)
    assert {rv.name for rv in fused.basic_RVs} == {rv.name for rv in model.basic_RVs}
    assert (reason, "y_0 ... y_3") in {
        (event.reason, event.variables) for event in mvn.explain(fused).declined
    }
    with pytest.raises(ValueError, match=f"y_1 cannot be fused: {reason}"):
        fuse_model(model, names=["y_1", "y_2"])


def test_components_with_draws_among_their_parameters_stay():
    with pm.Model() as model:
        for n in range(4):
            parts = [pm.Normal.dist(pm.Normal.dist(n)), pm.Normal.dist(n)]
            pm.Mixture(f"y_{n}", w=[0.2, 0.8], comp_dists=parts, observed=0.3)
    made = _made[fuse_model(model)]
    assert not made.loops
    [event] = made.declined
    assert "their components have no batches" in event.reason


def test_explain_names_the_odd_one():
    with pm.Model() as model:
        for n in range(5):
            pm.Normal(f"y_{n}", n, shape=2 + (n == 3))
    [event] = [e for e in mvn.explain(fuse_model(model)).declined if e.rule == "fuse_model"]
    assert event.variables == "y_3"
    assert event.reason == "not like y_0 in distribution, shape, value or transform"


@pytest.mark.parametrize("what", ["components", "mean"])
def test_inverses_in_other_places(what):
    """Of components with precisions there is no batch; an inverse elsewhere is any matrix."""
    with pm.Model() as model:
        scale = pm.HalfNormal("scale", shape=4)
        for i in range(4):
            tau = scale[i] * np.array([[2.0, 0.5], [0.5, 1.0]])
            if what == "mean":
                pm.Normal(f"y_{i}", pt.linalg.inv(tau), 1.0, observed=np.full((2, 2), i))
                continue
            parts = [pm.MvNormal.dist(np.full(2, k), tau=(1.0 + k) * tau) for k in range(2)]
            pm.Mixture(f"y_{i}", w=[0.3, 0.7], comp_dists=parts, observed=[0.3, i])
    fused = mvn.fuse_model(model)
    assert list(_made[fused].loops) == (["y"] if what == "mean" else [])
    point = {"scale_log__": np.array([0.1, 0.2, -0.3, 0.4])}
    with mvn.disable():
        expected = model.compile_logp(mode=PIPELINE_MODE)(point)
        assert_close(fused.compile_logp(mode=PIPELINE_MODE)(point), expected, "value")


def test_constant_precisions_are_covariances(rng):
    """As many as they have entries: PyMC's density of a precision would be wrong."""
    with pm.Model() as model:
        for i in range(2):
            pm.MvNormal(
                f"x_{i}", pm.Normal(f"mu_{i}"), tau=np.eye(2) * (1.0 + i), observed=[i, 1.0]
            )
    fused = mvn.fuse_model(model)
    assert _made[fused].loops.keys() == {"x", "mu"}
    with mvn.disable():
        for mu in rng.normal(size=(3, 2)):
            expected = model.compile_logp(mode=PIPELINE_MODE)({"mu_0": mu[0], "mu_1": mu[1]})
            assert_close(fused.compile_logp(mode=PIPELINE_MODE)({"mu": mu}), expected, "value")


#: One member of a loop of which PyMC has no batch
WITHOUT_BATCH = {
    "CAR": lambda i: pm.CAR(f"x{i}", np.zeros(3), W=ADJACENT, alpha=0.3 + 0.1 * i, tau=1.0),
    "ICAR": lambda i: pm.ICAR(f"x{i}", W=ADJACENT, sigma=1.0 + i),
    "precision": lambda i: pm.MvNormal(
        f"x{i}", np.zeros(3), tau=pt.eye(3) * pm.Data(f"s{i}", 1.0 + i)
    ),
    "MatrixNormal": lambda i: pm.MatrixNormal(
        f"x{i}", mu=np.zeros((2, 2)), rowcov=np.eye(2) * (i + 1), colcov=np.eye(2)
    ),
}
ADJACENT = np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0.0]])


@pytest.mark.parametrize("name", WITHOUT_BATCH)
def test_distributions_without_batches_stay(name):
    with pm.Model() as model:
        for i in range(3):
            WITHOUT_BATCH[name](i)
    fused = mvn.fuse_model(model)
    assert {rv.name for rv in fused.free_RVs} == {"x0", "x1", "x2"}
    point = model.initial_point()
    assert_close(
        fused.compile_logp(mode=PIPELINE_MODE)(point),
        model.compile_logp(mode=PIPELINE_MODE)(point),
        "value",
    )
