"""Log-densities of loops of random variables, against those that PyMC derives one by one."""

import numpy as np
import pymc as pm
import pymc.dims as pmd
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.distributions import transforms as tr
from pymc.logprob.abstract import _logprob
from pymc.logprob.transforms import Transform
from pytensor.graph.traversal import apply_ancestors
from pytensor.tensor.random.basic import MvNormalRV
from pytensor.tensor.subtensor import Subtensor

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites import pipeline
from pytensor_mvn_rewrites.generative import densities
from pytensor_mvn_rewrites.pipeline import Declined, Fired, recording
from tests.harness import (
    PIPELINE_MODE,
    REFERENCE_MODE,
    assert_close,
    logp_and_gradient,
    on_and_off,
    our_ops,
    rewritten,
    warns_of_failures,
)
from tests.loop_models import LOOPS, N, data, model_of, mvnormals, ragged_groups

pytestmark = [
    pytest.mark.filterwarnings("ignore:Data in y_. contains missing values"),
    pytest.mark.filterwarnings("ignore:Intermediate results"),
]


def in_loops(events) -> int:
    return sum(
        int(event.detail.split()[0])
        for event in events
        if isinstance(event, Fired) and event.stage == "generative"
    )


def point(model, rng):
    start = model.initial_point()
    return [
        rng.integers(0, 2, size=start[v.name].shape).astype(v.dtype)
        if v.dtype.startswith("int")
        else np.asarray(0.3 * rng.normal(size=start[v.name].shape))
        for v in model.value_vars
    ]


def compiled(model, outputs):
    return pytensor.function(
        model.value_vars, outputs, mode=REFERENCE_MODE, on_unused_input="ignore"
    )


def assert_same_terms(model, rng, **kwargs):
    """Each term, by its value, type and name."""
    with mvn.disable():
        expected = model.logp(sum=False, **kwargs)
    terms = model.logp(sum=False, **kwargs)
    assert [term.type for term in terms] == [term.type for term in expected]
    assert [term.name for term in terms] == [term.name for term in expected]
    values = point(model, rng)
    pairs = zip(compiled(model, terms)(*values), compiled(model, expected)(*values), strict=True)
    for got, want in pairs:
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("jacobian", [True, False])
@pytest.mark.parametrize("declare", LOOPS, ids=lambda declare: declare.__name__)
def test_terms(declare, jacobian, rng):
    model = model_of(declare)
    with recording() as events:
        assert_same_terms(model, rng, jacobian=jacobian)
    assert in_loops(events) == LOOPS[declare]


@pytest.mark.parametrize("declare", LOOPS, ids=lambda declare: declare.__name__)
def test_gradient(declare, rng):
    model = model_of(declare)
    wrt, values = model.continuous_value_vars, point(model, rng)
    with mvn.disable():
        terms = model.logp(sum=False)
        expected = compiled(model, pt.grad(sum(term.sum() for term in terms), wrt))(*values)
    [logp] = rewritten([sum(term.sum() for term in model.logp(sum=False))])
    for got, want in zip(compiled(model, pt.grad(logp, wrt))(*values), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


class OwnMvNormalRV(MvNormalRV):
    """A user's own, with a density of its own: PyMC puts that of a precision in its place."""


class OwnMvNormal(pm.MvNormal):
    rv_op = OwnMvNormalRV(method="cholesky")


@_logprob.register(OwnMvNormalRV)
def own_logprob(op, values, rng, size, mu, cov, **kwargs):
    [value] = values
    return 0.25 * pm.logp(pm.MvNormal.dist(mu, cov), value)


@pytest.mark.parametrize("scales", ["variable", "constant", "equal"])
@pytest.mark.parametrize("rows", ["one", "own", "ragged"])
@pytest.mark.parametrize("distribution", [pm.MvNormal, OwnMvNormal])
def test_inverses_are_seen_through(distribution, rows, scales, rng):
    """PyMC reads both triangles of a precision, which tells a wrong one from its inverse.

    Of a constant one PyTensor computes the inverse before PyMC sees it.
    """
    y = rng.normal(size=(N, 4, 2))
    values = {"one": y[:, 0], "own": y, "ragged": [own[: 1 + n % 3] for n, own in enumerate(y)]}
    precision = np.array([[2.0, 0.5], [0.1, 1.0]])
    with pm.Model() as model:
        scale = pm.HalfNormal("scale", shape=N)
        for n, own in enumerate(values[rows]):
            by = {"variable": scale[n], "constant": 1.0 + n, "equal": 3.0}[scales]
            distribution(f"x_{n}", np.zeros(2), tau=by * precision, observed=own)
    with recording() as events:
        assert_same_terms(model, rng)
    assert in_loops(events) == N


def test_part_of_the_variables(rng):
    """Only what is asked for, in its order."""
    model = model_of(mvnormals)
    names = ["x_3", "mu", "x_1"]
    assert_same_terms(model, rng, vars=[model[name] for name in names])
    loop = [model[f"x_{n}"] for n in reversed(range(N))]
    with recording() as events:
        assert_same_terms(model, rng, vars=loop)
    assert in_loops(events) == N


@pytest.mark.parametrize("declare", LOOPS, ids=lambda declare: declare.__name__)
def test_priors_and_likelihoods_alone(declare, rng):
    """``pm.fit`` asks for the ones and for the others."""
    model = model_of(declare)
    for variables in (model.free_RVs, model.observed_RVs):
        if variables:
            assert_same_terms(model, rng, vars=variables)


def test_what_is_not_asked_for_is_not_derived():
    """But for what the others are conditional on."""
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        x = pm.Normal("x_0")
        for n in range(1, N):
            x = pm.Normal(f"x_{n}", x, scale)
        for n in range(N):
            pm.Normal(f"y_{n}", x, scale, observed=n)

    def in_use(*names):
        found = densities.values_in_use([model[name] for name in names], model.rvs_to_values)
        return {rv.name for rv in found}

    walk, rows = ({f"{stem}_{n}" for n in range(N)} for stem in "xy")
    assert in_use("scale") == {"scale"}
    assert in_use("x_0", "y_1") == {"scale", "y_1"} | walk
    assert in_use("scale", *walk) == {"scale"} | walk
    assert in_use("scale", *rows) == {"scale"} | walk | rows
    # too few to be a loop
    assert in_use("scale", *walk, *[f"y_{n}" for n in range(N - 3)]) == {"scale"} | walk | rows


@pytest.mark.parametrize("declare", [mvnormals, ragged_groups], ids=lambda d: d.__name__)
def test_size_does_not_grow(declare):
    """The sum is one density before the gradient is taken."""
    [logp] = rewritten([model_of(declare).logp()])
    assert len(list(apply_ancestors([logp]))) < 60


@pytest.mark.parametrize("declare", [mvnormals, ragged_groups], ids=lambda d: d.__name__)
def test_sum_before_any_rewrite(declare):
    """``pm.fit`` takes the gradient of the log-density as it is derived."""
    logp = model_of(declare).logp()
    assert len(logp.owner.inputs) <= 5
    assert not [v for v in logp.owner.inputs if isinstance(v.owner.inputs[0].owner_op, Subtensor)]


def test_data_may_change(rng):
    model = model_of(data)
    values = point(model, rng)
    [logp] = model.logp(vars=[model["x_2"]], sum=False)
    function = compiled(model, [sum(term.sum() for term in model.logp(sum=False))])
    before = function(*values)
    with model:
        pm.set_data({"rows": rng.normal(size=(N, 2)), "scales": np.arange(1.0, N + 1) ** 2})
    with mvn.disable():
        terms = model.logp(sum=False)
        expected = compiled(model, [sum(term.sum() for term in terms)])(*values)
    assert function(*values)[0] != before[0]
    np.testing.assert_allclose(function(*values), expected, rtol=1e-12)
    assert logp.type.ndim == 0


def test_a_bad_member_leaves_the_others_alone():
    with pm.Model() as model:
        scale = pm.Normal("scale", shape=N)
        for n in range(N):
            pm.MvNormal(f"x_{n}", np.zeros(2), cov=scale[n] * np.eye(2), observed=[1.0, 2.0])
    value = np.ones(N)
    value[3] = -1
    terms = model.compile_logp(sum=False, mode="FAST_COMPILE")({"scale": value})
    finite = [np.isfinite(term).all() for term in terms[1:]]
    assert finite == [n != 3 for n in range(N)]


def a_member_of_another_length():
    for n in range(N):
        size = 2 + (n == 4)
        pm.MvNormal(f"x_{n}", np.zeros(size), (n + 1.0) * np.eye(size))


def a_member_of_another_transform():
    for n in range(N):
        own = {"transform": pm.distributions.transforms.ordered, "initval": [0.0, 1.0]}
        pm.Normal(f"x_{n}", 0, n + 1.0, shape=2, **(own if n == 4 else {}))


def a_member_of_another_bound():
    for n in range(N):
        interval = pm.distributions.transforms.Interval(lower=-1.0 - (n == 4), upper=2.0)
        pm.Normal(f"x_{n}", 0, n + 1.0, transform=interval)


def a_member_of_another_distribution():
    for n in range(N):
        (pm.Laplace if n == 4 else pm.Normal)(f"x_{n}", 0, n + 1.0)


def a_member_of_other_parameters():
    s = pm.HalfNormal("s")
    for n in range(N):
        pm.Normal(f"x_{n}", 0, s**2 if n == 4 else s + n)


@pytest.mark.parametrize(
    "declare",
    [
        a_member_of_another_length,
        a_member_of_another_transform,
        a_member_of_another_bound,
        a_member_of_another_distribution,
        a_member_of_other_parameters,
    ],
    ids=lambda declare: declare.__name__,
)
def test_one_odd_member(declare, rng):
    """The others are a loop."""
    model = model_of(declare)
    with recording() as events:
        assert_same_terms(model, rng)
    assert in_loops(events) == N - 1


def unlike_transforms():
    """Functions that are made anew, and hold other numbers."""
    for n in range(N):
        interval = pm.distributions.transforms.Interval(lower=-1.0 - n, upper=2.0)
        pm.Normal(f"x_{n}", 0, n + 1.0, transform=interval)


def too_few():
    for n in range(7):
        pm.Normal(f"x_{n}", 0, n + 1.0)


def unknown_lengths():
    """Each in pm.Data of its own, which may get another length."""
    for n in range(N):
        pm.Normal(f"x_{n}", 0, n + 1.0, observed=pm.Data(f"data_{n}", np.ones(2)))


def several_values_of_one_node():
    for n in range(N):
        pm.Normal(f"x_{n}", 0, 1.0, observed=np.array([1.0, np.nan]))


@pytest.mark.parametrize(
    "declare", [unlike_transforms, too_few, unknown_lengths], ids=lambda d: d.__name__
)
def test_near_miss(declare, rng):
    model = model_of(declare)
    with recording() as events:
        assert_same_terms(model, rng)
    assert in_loops(events) == 0


def test_explain_says_why_not():
    model = model_of(unknown_lengths)
    with recording() as events:
        model.logp()
    [event] = {e for e in events if isinstance(e, Declined) and e.stage == "generative"}
    assert event.variables == "x_0 ... x_8"
    assert "may differ" in event.reason
    assert "freeze_dims_and_data" in event.remedy


def test_a_draw_among_the_parameters_is_the_same_error():
    def declare():
        scale = pm.HalfNormal.dist(1.0)
        for n in range(N):
            pm.Normal(f"x_{n}", n, scale, observed=1.0)

    model = model_of(declare)
    with mvn.disable(), pytest.raises(ValueError, match="Random variables detected"):
        model.logp()
    with pytest.raises(ValueError, match="Random variables detected"):
        model.logp()


@pytest.mark.parametrize("helper", ["find_loops", "with_whole_sums"])
def test_a_failure_is_a_warning(helper, rng, monkeypatch):
    """And the log-density is PyMC's."""

    def fail(*args):
        raise ZeroDivisionError

    model = model_of(mvnormals)
    monkeypatch.setattr(densities, helper, fail)
    monkeypatch.setattr(pipeline, "_failed", set())
    with warns_of_failures("ZeroDivisionError"):
        logp = model.logp()
    with mvn.disable():
        expected = model.logp()
    values = point(model, rng)
    got, want = compiled(model, [logp, expected])(*values)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_switched_off():
    model = model_of(mvnormals)
    with recording() as events, pytensor.config.change_flags(mvn_rewrites__skip="generative"):
        model.logp()
    assert in_loops(events) == 0


class Stretched(Transform):
    """Its attribute is in a slot."""

    __slots__ = ("factor",)
    name = "stretched"

    def __init__(self, factor):
        self.factor = factor

    def forward(self, value, *inputs):
        return value / self.factor

    def backward(self, value, *inputs):
        return value * self.factor

    def log_jac_det(self, value, *inputs):
        return pt.log(self.factor) * pt.ones_like(value)


def bounds_that_know_themselves(lower):
    def bounds(*inputs):
        return bounds.lower, 5.0

    bounds.lower = lower
    return bounds


ADJACENT = np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0.0]])


def dims_of_pymc(i):
    model = pm.modelcontext(None)
    if i == 0:
        model.add_coords({"a": range(3), "g": range(8)})
        pmd.Normal("mu", dims=("g", "a"))
    pmd.Normal(f"x{i}", model["mu"].isel(g=i), 1.0, dims="a")


#: What differs, or has no batch, in a way that is not seen at once: one member of a loop
LEFT = {
    "keyword defaults": lambda i: pm.Normal(
        f"x{i}", transform=tr.Interval(bounds_fn=lambda *inputs, lower=-1.0 - i: (lower, 5.0))
    ),
    "slots": lambda i: pm.Normal(f"x{i}", transform=Stretched(1.0 + i)),
    "functions that hold themselves": lambda i: pm.Normal(
        f"x{i}", transform=tr.Interval(bounds_fn=bounds_that_know_themselves(-1.0 - i))
    ),
    "one infinite bound": lambda i: pm.TruncatedNormal(
        f"x{i}", common(i), 1.0, lower=-1.0 if i else -np.inf, upper=5.0, observed=0.1 * i
    ),
    "one infinite bound of parts": lambda i: pm.Truncated(
        f"x{i}", pm.Laplace.dist(common(i), 1.0), lower=-1.0, upper=4.0 if i else np.inf
    ),
    "no batch": lambda i: pm.CAR(f"x{i}", np.zeros(3), W=ADJACENT, alpha=0.5, tau=1.0 + i),
    "constants that are no tensors": lambda i: pm.Interpolated(
        f"x{i}", x_points=np.linspace(-1 - i, 1, 5), pdf_points=np.array([1, 2, 3, 2, 1.0])
    ),
    "dims of pymc.dims": dims_of_pymc,
}


def common(i):
    return pm.Normal("common") if i == 0 else pm.modelcontext(None)["common"]


@pytest.mark.filterwarnings("ignore:SplineWrapper should implement")
@pytest.mark.parametrize("name", LEFT)
def test_left_to_pymc(name):
    """The right numbers and gradients, and no warning, which would be an error here."""
    with pm.Model() as model:
        for i in range(8):
            LEFT[name](i)
    point = {k: np.full_like(v, 0.3) for k, v in model.initial_point().items()}
    on, off = on_and_off(lambda mode: logp_and_gradient(model, mode), PIPELINE_MODE)
    (logp, *dlogp), (want, *gradients) = on(point), off(point)
    assert_close(logp, want, "value")
    for got, gradient in zip(dlogp, gradients, strict=True):
        assert_close(got, gradient, "gradient")


def test_what_pymc_cannot_derive_is_its_error_alone():
    with pm.Model() as model:
        for i in range(8):
            x = pm.LogNormal(f"x{i}", pm.HalfNormal(f"mu{i}"), 1.0)
            pm.Deterministic(f"log_x{i}", pt.log(x))
    observed = pm.observe(model, {f"log_x{i}": 0.1 * i for i in range(8)})
    with pytest.raises(RuntimeError, match="could not be derived"):
        observed.logp()


def loop_with_dims(groups, transformed=False):
    """Latent vectors whose lengths only the dims know."""
    with pm.Model(coords={"trait": range(3), "lag": range(2)}) as model:
        location = pm.Normal("location")
        for g in range(groups):
            scale = pm.HalfNormal(f"scale_{g}", dims="trait") if transformed else 1.0
            mean = pm.Normal(f"mean_{g}", location, 1, dims="trait")
            coefs = pm.Normal(f"coefs_{g}", 0, 1, dims=("lag", "trait"))
            mean = scale * (mean + coefs[0] * 0.3 + coefs[1] * 0.7)
            pm.MvNormal(f"y_{g}", mean, cov=np.eye(3) + 0.5, observed=np.arange(3.0) + g)
    return model


@pytest.mark.parametrize(("groups", "transformed"), [(3, True), (9, False)])
def test_dims_tie_lengths_together(groups, transformed, rng):
    """Before the gradient, in short loops and in long ones."""
    model = loop_with_dims(groups, transformed)
    assert_same_terms(model, rng)
    [logp] = rewritten([model.logp()])
    assert our_ops([logp]) == {"MvNormalLogp{chol}": 1}
    wrt, values = model.continuous_value_vars, point(model, rng)
    with mvn.disable():
        expected = compiled(model, pt.grad(model.logp(), wrt))(*values)
    for got, want in zip(compiled(model, pt.grad(logp, wrt))(*values), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


def test_dims_of_another_length_later(rng):
    with pm.Model(coords={"trait": range(2)}) as model:
        for g in range(9):
            mean = pm.Normal(f"mean_{g}", dims="trait")
            pm.Normal(f"y_{g}", mean.sum(), 1, observed=0.1 * g)
    [logp] = rewritten([model.logp()])
    function = compiled(model, [logp, *pt.grad(logp, model.value_vars)])
    with mvn.disable():
        plain = model.logp()
        expected = compiled(model, [plain, *pt.grad(plain, model.value_vars)])
    model.set_dim("trait", 4, range(4))
    values = point(model, rng)
    assert values[0].shape == (4,)
    for got, want in zip(function(*values), expected(*values), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_value_of_another_length_than_its_dims_raises(rng):
    model = loop_with_dims(3)
    [logp] = rewritten([model.logp()])
    values = [rng.normal(size=(4, 3) if v.name == "coefs_1" else (2, 3)) for v in model.value_vars]
    values = [
        own.sum() if v.ndim == 0 else own[0] if v.ndim == 1 else own
        for v, own in zip(model.value_vars, values, strict=True)
    ]
    with pytest.raises(ValueError, match="must match exactly"):
        compiled(model, [logp])(*values)


def test_dims_of_equal_length_are_not_one():
    with pm.Model(coords={"a": range(2), "b": range(2)}) as model:
        for g in range(9):
            pm.Normal(f"x_{g}", dims="a" if g % 2 else "b")
    with recording() as events:
        rewritten([model.logp()])
    assert in_loops(events) == 0


def test_observed_values_have_the_lengths_that_they_have():
    """Data may be shorter or longer than the dims: PyMC says so, or not."""
    with pm.Model(coords={"trait": range(3)}) as model:
        x = pm.Normal("x", dims="trait", observed=np.zeros(3))
        y = pm.Normal("y", dims="trait")
    model.logp()
    tagged = [hasattr(model.rvs_to_values[rv].tag, "mvn_rewrites_lengths") for rv in (x, y)]
    assert tagged == [False, True]
