"""Bad input: the same result or the same error as without the plugin."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.logprob.utils import ParameterValueError

from tests.harness import PIPELINE_MODE, on_and_off

Q = 3


def loop(covs, data, *, scale=True, check_bounds=True, **kwargs):
    """The loop of the thread with given constants."""
    with pm.Model(check_bounds=check_bounds) as model:
        s = pm.HalfNormal("s") if scale else 1.0
        mu = pm.Normal("mu", shape=(len(data), data.shape[1]))
        for n in range(len(data)):
            pm.MvNormal(f"x_{n}", mu=mu[n], cov=s * covs[n], observed=data[n], **kwargs)
    return model


def assert_same(model, point=None, useless_gradient=False):
    """Log-density, its terms and the gradient do not depend on the plugin.

    In a `useless_gradient`, where the log-density is not finite, infinities count as NaN.
    """
    point = model.initial_point() if point is None else point
    functions = {
        "log-density": lambda mode: model.compile_logp(mode=mode),
        "terms": lambda mode: model.compile_logp(mode=mode, sum=False),
        "gradient": lambda mode: model.compile_dlogp(mode=mode),
    }
    for name, compile_function in functions.items():
        on, off = on_and_off(compile_function, PIPELINE_MODE)
        with np.errstate(all="ignore"):
            values, references = (
                result if isinstance(result, list) else [result]
                for result in (on(point), off(point))
            )
        for value, reference in zip(values, references, strict=True):
            if useless_gradient and name == "gradient":
                value, reference = (
                    np.where(np.isinf(array), np.nan, array) for array in (value, reference)
                )
            np.testing.assert_allclose(value, reference, rtol=1e-9, atol=1e-12)


def covs_and_data(n_terms=4, q=Q):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(n_terms, q, q))
    return a @ a.mT + np.eye(q), rng.normal(size=(n_terms, q))


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(Q) - 2 * np.ones((Q, Q)),
        np.ones((Q, Q)),
        np.full((Q, Q), np.nan),
        np.ones((Q, Q)) + np.diag([1.0, np.nan, 1.0]),
        np.ones((Q, Q)) + np.diag([1.0, np.inf, 1.0]),
        np.full((Q, Q), np.inf),
    ],
    ids=["indefinite", "singular", "nan", "one nan", "one inf", "inf"],
)
@pytest.mark.parametrize("check_bounds", [True, False])
def test_bad_covariance_in_one_term(matrix, check_bounds):
    covs, data = covs_and_data()
    covs[2] = matrix
    assert_same(loop(covs, data, check_bounds=check_bounds))


@pytest.mark.parametrize("diagonal", [-1.0, 0.0])
def test_bad_diagonal_covariance(diagonal):
    """PyTensor knows diagonal matrices by itself: some gradients at ``-inf`` then stay finite."""
    covs, data = covs_and_data()
    covs[2] = np.diag([1.0, diagonal, 1.0])
    model = loop(covs, data)
    on, off = on_and_off(lambda mode: model.compile_logp(mode=mode), PIPELINE_MODE)
    assert on(model.initial_point()) == off(model.initial_point()) == -np.inf


def test_bad_covariance_spoils_its_own_term_only():
    covs, data = covs_and_data()
    covs[2] = -np.eye(Q)
    model = loop(covs, data)
    terms = model.compile_logp(mode=PIPELINE_MODE, sum=False)(model.initial_point())
    by_name = dict(zip([v.name for v in model.basic_RVs], terms, strict=True))
    assert by_name["x_2"] == -np.inf
    assert all(np.isfinite(by_name[f"x_{n}"]) for n in (0, 1, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_value_at_a_point(value):
    covs, data = covs_and_data()
    model = loop(covs, data)
    point = model.initial_point()
    point["mu"] = point["mu"] + 0.0
    point["mu"][1, 1] = value
    assert_same(model, point, useless_gradient=True)


@pytest.mark.parametrize(("n_terms", "q"), [(1, 3), (4, 1), (1, 1), (2, 2)])
def test_small_sizes(n_terms, q):
    covs, data = covs_and_data(n_terms, q)
    assert_same(loop(covs, data))


def test_empty_vectors():
    assert_same(loop(np.zeros((4, 0, 0)), np.zeros((4, 0))))


def test_integer_data():
    covs, data = covs_and_data()
    assert_same(loop(np.round(4 * covs).astype(int), np.round(data).astype(int)))


def test_float32():
    covs, data = covs_and_data()
    with pytensor.config.change_flags(floatX="float32"):
        model = loop(covs.astype("float32"), data.astype("float32"))
        on, off = on_and_off(lambda mode: model.compile_logp(mode=mode))
        point = model.initial_point()
        assert on(point).dtype == off(point).dtype
        np.testing.assert_allclose(on(point), off(point), rtol=2e-5)


def test_asymmetric_covariance_reads_the_lower_triangle():
    covs, data = covs_and_data()
    covs[1] += np.triu(np.ones((Q, Q)), 1)
    assert_same(loop(covs, data))


def test_wrong_shape_is_the_same_error():
    covs, _ = covs_and_data()
    x = [pt.vector(f"x_{n}") for n in range(4)]
    total = sum(pm.logp(pm.MvNormal.dist(np.zeros(Q), covs[n]), x[n]) for n in range(4))
    on, off = on_and_off(lambda mode: pytensor.function(x, total, mode=mode))
    right = [np.zeros(Q)] * 4
    np.testing.assert_allclose(on(*right), off(*right), rtol=1e-12)
    for wrong in ([np.zeros(2), np.zeros(4), np.zeros(Q), np.zeros(Q)], [np.zeros(2)] * 4):
        # one shape is checked by SpecifyShape, the other by whatever meets it first
        for function in (on, off):
            with pytest.raises((ValueError, AssertionError), match=r"shape|dimension"):
                function(*wrong)


def test_eager_logp_raises():
    """Outside a model a bad parameter is an error, not ``-inf``."""
    rv = pm.MvNormal.dist(mu=np.zeros(2), cov=-np.eye(2))
    with pytest.raises(ParameterValueError, match="posdef"):
        pm.logp(rv, np.zeros(2)).eval(mode=PIPELINE_MODE)


def test_raw_function_of_a_model_raises():
    """A model's log-density that PyMC does not compile raises, re-rolled or not."""
    covs, data = covs_and_data()
    covs[2] = -np.eye(Q)
    model = loop(covs, data)
    function = pytensor.function(model.value_vars, model.logp(), mode=PIPELINE_MODE)
    with pytest.raises(ParameterValueError, match="posdef"):
        function(*model.initial_point().values())


def test_given_factor_with_negative_diagonal():
    covs, data = covs_and_data()
    chols = np.linalg.cholesky(covs)
    chols[2, 1, 1] *= -1
    with pm.Model() as model:
        s = pm.HalfNormal("s")
        for n in range(4):
            pm.MvNormal(f"x_{n}", mu=np.zeros(Q), chol=s * chols[n], observed=data[n])
    assert_same(model)


def test_draws_are_the_same():
    """Rewriting log-densities does not touch random draws."""
    covs, data = covs_and_data()
    model = loop(covs, data)
    on, off = on_and_off(lambda mode: pm.draw(model.observed_RVs, random_seed=3, mode=mode))
    for a, b in zip(on, off, strict=True):
        np.testing.assert_array_equal(a, b)
