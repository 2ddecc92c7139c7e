"""Models with a covariance for each group, as users write them, with the plugin on and off.

Every builder returns ``(model, densities)``: for each fused density that is left in the
log-density, the shape of its rows; they do not depend on the number of observations where these
are compressed.
"""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
import xarray
from pymc.pytensorf import rewrite_pregrad
from pytensor.graph.traversal import ancestors
from scipy.stats import multivariate_normal

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops.gaussian import GaussianOp
from tests.harness import PIPELINE_MODE, assert_model_agrees, on_and_off, random_points
from tests.lower.test__groups import lowered_in_python
from tests.lower.test_numba_backend import lowered_nodes

RNG = np.random.default_rng(20261124)
K, N = 3, 2
SIZES = [11, 1, 30]
RAGGED = [RNG.normal(size=(size, N)) + 3 for size in SIZES]
R = sum(SIZES)
Y = RNG.normal(size=(R, N))
INDEX = RNG.permutation(np.repeat(np.arange(K), SIZES))
OTHER_INDEX = RNG.permutation(np.arange(R) % 2)
X = RNG.normal(size=(R, 2))
GROUP_MODELS = {}


def group_model(builder):
    """Collect a builder under its name."""
    GROUP_MODELS[builder.__name__] = builder
    return builder


def lkj(name, n=N, eta=2.0, scalar=False, **kwargs):
    """The Cholesky factor of a covariance with an LKJ prior."""
    sd_dist = pm.Exponential.dist(1) if scalar else pm.Exponential.dist(1, shape=n)
    return pm.LKJCholeskyCov(name, n=n, eta=eta, sd_dist=sd_dist, **kwargs)[0]


def stacked_factors(k=K, n=N):
    """One Cholesky factor per group."""
    return pt.stack([lkj(f"chol_{g}", n) for g in range(k)])


# --- a loop over the groups ---


def accepted_answer(sizes):
    """The accepted answer: a loop over groups, each with its own rows, covariance and mean."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    values = RNG.normal(size=(len(groups), N))
    with pm.Model(coords={"groups": range(len(sizes)), "features": range(N)}) as model:
        group_idx = pm.Data("group_idx", groups)
        mu_group = pm.Normal("mu_group", 0, 1, dims=("groups", "features"))
        obs = []
        for i in range(len(sizes)):
            chol, _, _ = pm.LKJCholeskyCov(
                f"{i}_chol",
                n=N,
                eta=2,
                sd_dist=pm.Exponential.dist(1, shape=N),
                compute_corr=True,
                store_in_trace=False,
            )
            pm.Deterministic(f"{i}_cov", chol.dot(chol.T))
            n = pt.eq(group_idx, i).sum()
            obs.append(
                pm.MvNormal(
                    f"{i}_obs",
                    mu=mu_group[i],
                    chol=chol,
                    observed=values[groups == i],
                    shape=(n, N),
                )
            )
        pm.Deterministic("obs", pt.concatenate(obs, axis=0))
    return model


@group_model
def accepted_answer_equal():
    return accepted_answer([8, 8]), [(2, 1 + N)]


@group_model
def accepted_answer_ragged():
    return accepted_answer([8, 30, 17]), [(3, 1 + N)]


@group_model
def groups_of_few_rows():
    """Fewer rows than dimensions."""
    n = 4
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1, shape=(3, n))
        for g, size in enumerate([20, 2, 3]):
            pm.MvNormal(
                f"obs_{g}", mu[g], chol=lkj(f"chol_{g}", n), observed=RNG.normal(size=(size, n))
            )
    return model, [(3, 1 + n)]


@group_model
def collinear_designs():
    """A design per group, with columns that depend on each other."""
    with pm.Model() as model:
        for g, values in enumerate(RAGGED):
            x = RNG.normal(size=(len(values), 1))
            design = np.hstack([np.ones_like(x), x, 2 * x - 1])
            coefficients = pm.Normal(f"b_{g}", shape=(3, N))
            pm.MvNormal(f"obs_{g}", design @ coefficients, chol=lkj(f"chol_{g}"), observed=values)
    return model, [(2, 3 + N), (1,)]


def vector_autoregression(sizes, lags=2, n=3):
    """The hierarchical vector autoregression of PyMC's examples, rows per country ragged."""
    with pm.Model() as model:
        alpha_loc = pm.Normal("alpha_hat_location", 0, 0.1)
        alpha_scale = pm.InverseGamma("alpha_hat_scale", 3, 0.5)
        beta_loc = pm.Normal("beta_hat_location", 0, 0.1)
        beta_scale = pm.InverseGamma("beta_hat_scale", 3, 0.5)
        omega_global = lkj("omega_global", n, 1.0, scalar=True)
        for country, size in enumerate(sizes):
            data = RNG.normal(size=(size, n))
            z_scale_beta = pm.InverseGamma(f"z_scale_beta_{country}", 3, 0.5)
            z_scale_alpha = pm.InverseGamma(f"z_scale_alpha_{country}", 3, 0.5)
            betas = pm.Normal(
                f"lag_coefs_{country}", beta_loc, beta_scale * z_scale_beta, shape=(n, lags, n)
            )
            alphas = pm.Normal(
                f"alpha_{country}", alpha_loc, alpha_scale * z_scale_alpha, shape=(n,)
            )
            ars = []
            for j in range(n):
                ar = pm.math.sum(
                    [
                        pm.math.sum(betas[j, i] * data[lags - (i + 1) : -(i + 1)], axis=-1)
                        for i in range(lags)
                    ],
                    axis=0,
                )
                ars.append(ar)
            mean = alphas + pm.math.stack(ars, axis=-1)
            rho = pm.Beta(f"rho_{country}", alpha=2, beta=2)
            omega = pm.Deterministic(
                f"omega_{country}",
                rho * omega_global + (1 - rho) * lkj(f"noise_chol_{country}", n, 10.0, scalar=True),
            )
            pm.MvNormal(f"obs_{country}", mu=mean, chol=omega, observed=data[lags:])
    return model


@group_model
def hierarchical_var():
    return vector_autoregression([22, 25, 30]), [(3, 1 + 3 * 2 + 3)]


@group_model
def one_density_per_time_point():
    """A Cholesky factor for all, and one observed vector each."""
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=N)
        chol = lkj("chol")
        for t in range(8):
            pm.MvNormal(f"obs_{t}", mu=mu, chol=chol, observed=Y[t])
    return model, [(N + 1,)]


# --- gathers ---


def gathered(param, data=False, index=INDEX):
    """``chols[idx]`` or ``cov[idx]``."""
    with pm.Model() as model:
        idx = pm.Data("idx", index) if data else index
        mu = pm.Normal("mu", 0, 1, shape=(K, N))
        chols = stacked_factors()
        matrix = chols if param == "chol" else chols @ chols.mT
        pm.MvNormal("obs", mu=mu[idx], **{param: matrix[idx]}, observed=Y)
    return model


@group_model
def chols_of_index():
    return gathered("chol"), [(K, 1 + N)]


@group_model
def covs_of_index():
    return gathered("cov"), [(K, 1 + N)]


@group_model
def group_without_rows():
    return gathered("chol", index=INDEX % 2 * 2), [(2, 1 + N)]


@group_model
def chols_of_changing_index():
    """With an index that may change nothing is compressed, but no row has a factor of its own."""
    return gathered("chol", data=True), [(R,)]


@group_model
def covs_of_changing_index():
    return gathered("cov", data=True), [(R,)]


@group_model
def question():
    """The question's model: a mean per group, one Cholesky factor for all."""
    with pm.Model(coords={"groups": range(K), "features": range(N)}) as model:
        mu_group = pm.Normal("mu_group", 0, 1, dims=("groups", "features"))
        pm.MvNormal("obs", mu=mu_group[INDEX], chol=lkj("chol"), observed=Y, shape=(R, N))
    # one of the groups has a single row
    return model, [(2 * (1 + N) + 1,)]


@group_model
def question_with_data():
    """The same with data that may change: nothing is compressed."""
    with pm.Model(coords={"groups": range(K), "features": range(N)}) as model:
        group_idx = pm.Data("group_idx", INDEX)
        observations = pm.Data("observations", Y)
        mu_group = pm.Normal("mu_group", 0, 1, dims=("groups", "features"))
        pm.MvNormal(
            "obs", mu=mu_group[group_idx], chol=lkj("chol"), observed=observations, shape=(R, N)
        )
    return model, [(None,)]


@group_model
def means_by_another_index():
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1, shape=(2, N))
        pm.MvNormal("obs", mu=mu[OTHER_INDEX], chol=stacked_factors()[INDEX], observed=Y)
    return model, [(K, 2 * (1 + N))]


@group_model
def regression_by_group():
    """Intercepts and slopes by group, a covariance by group."""
    with pm.Model() as model:
        intercept = pm.Normal("intercept", shape=(K, N))
        slope = pm.Normal("slope", shape=(K, N))
        b = pm.Normal("b", shape=(2, N))
        mean = intercept[INDEX] + slope[INDEX] * X[:, :1] + X @ b
        pm.MvNormal("obs", mean, chol=stacked_factors()[INDEX], observed=Y)
    return model, [(K, 1 + 2 + N)]


@group_model
def correlated_varying_effects():
    """Intercepts and slopes of a group from one MvNormal, not centred."""
    with pm.Model() as model:
        z = pm.Normal("z", shape=(4, K))
        effects = (lkj("effects", 4) @ z).T
        mean = [effects[INDEX, 2 * i] + effects[INDEX, 2 * i + 1] * X[:, 0] for i in range(N)]
        pm.MvNormal("obs", pt.stack(mean, axis=-1), chol=lkj("chol"), observed=Y)
    return model, [(2 * (2 + N) + 1,)]


@group_model
def centred_varying_effects():
    """The effects themselves are latent rows, one density; the data another."""
    with pm.Model() as model:
        effects = pm.MvNormal("effects", 0, chol=lkj("effects_chol"), shape=(K, N))
        pm.MvNormal("obs", effects[INDEX], chol=lkj("chol"), observed=Y)
    return model, [(K,), (2 * (1 + N) + 1,)]


@group_model
def stacked_columns():
    """One linear predictor for each column."""
    with pm.Model() as model:
        a, b, c = pm.Normal("a"), pm.Normal("b", shape=2), pm.Normal("c")
        mean = pt.stack([a + X @ b, c + X[:, 0] * b[1]], axis=-1)
        pm.MvNormal("obs", mean, chol=lkj("chol"), observed=Y)
    return model, [(1 + 2 + N,)]


@group_model
def scale_by_group():
    """A global correlation and a scale for each group."""
    with pm.Model() as model:
        scale = pm.HalfNormal("scale", shape=K)
        cov = scale[INDEX][:, None, None] ** 2 * (np.eye(N) + 0.5)
        pm.MvNormal("obs", pm.Normal("mu", shape=N), cov=cov, observed=Y)
    return model, [(K, 1 + N)]


@group_model
def mixed_factors():
    """The Cholesky factor of the autoregression, gathered."""
    with pm.Model() as model:
        rho = pm.Beta("rho", 2, 2)
        chol = rho * lkj("shared") + (1 - rho) * stacked_factors()[INDEX]
        pm.MvNormal("obs", pm.Normal("mu", shape=N), chol=chol, observed=Y)
    return model, [(K, 1 + N)]


def densities(graph) -> list[tuple]:
    """Shapes of the rows of each fused density, the largest first."""
    nodes = {var.owner for var in ancestors([graph]) if var.owner}
    shapes = [node.outputs[0].type.shape for node in nodes if isinstance(node.op, GaussianOp)]
    return sorted(shapes, key=str, reverse=True)


@pytest.mark.parametrize("name", GROUP_MODELS)
def test_group_model(name):
    model, expected = GROUP_MODELS[name]()
    assert densities(rewrite_pregrad(model.logp())) == sorted(expected, key=str, reverse=True)
    assert_model_agrees(model)


@pytest.mark.parametrize("name", ["accepted_answer_ragged", "chols_of_index", "hierarchical_var"])
def test_compiled(name):
    """With all rewrites, and row by row where a row is asked for."""
    model, _ = GROUP_MODELS[name]()
    [point, *_] = random_points(model)
    on, off = on_and_off(lambda mode: model.compile_logp(sum=False, mode=mode))
    for got, want in zip(on(point), off(point), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("scalar", [False, True], ids=["vector sd_dist", "scalar sd_dist"])
def test_lkj_of_any_size(n, scalar):
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=(3, n))
        for g in range(3):
            pm.MvNormal(
                f"obs_{g}",
                mu[g],
                chol=lkj(f"chol_{g}", n, scalar=scalar),
                observed=RNG.normal(size=(8 + 3 * g, n)),
            )
    assert densities(rewrite_pregrad(model.logp())) == [(3, 1 + n)]
    assert_model_agrees(model)


def test_lkj_with_a_parameter_of_its_own():
    """`eta` differs from group to group."""
    with pm.Model() as model:
        for g in range(3):
            pm.MvNormal(f"obs_{g}", chol=lkj(f"chol_{g}", 3, 1.0 + g), observed=X[:, [0, 1, 0]])
    assert densities(rewrite_pregrad(model.logp())) == [(3, 3)]
    assert_model_agrees(model)


def test_data_may_change():
    """Neither the values nor the index of ``pm.Data`` are taken for constants."""
    rng = np.random.default_rng(0)
    for model in (GROUP_MODELS["question_with_data"]()[0], gathered("chol", data=True)):
        [point, *_] = random_points(model)
        on, off = on_and_off(lambda mode, model=model: model.compile_logp(mode=mode))
        before = on(point)
        np.testing.assert_allclose(before, off(point), rtol=1e-9)
        with model:
            for name in ("group_idx", "idx"):
                if name in model.named_vars:
                    pm.set_data({name: rng.permutation(INDEX)})
            if "observations" in model.named_vars:
                pm.set_data({"observations": 2 * Y})
        assert abs(on(point) - before) > 1
        np.testing.assert_allclose(on(point), off(point), rtol=1e-9)


def test_no_row_has_a_matrix_of_its_own():
    """Compiled with Numba: one op takes the index, which may change, and gathers nothing."""
    with pm.Model() as model:
        idx = pm.Data("idx", INDEX)
        mu = pm.Normal("mu", shape=(K, N))
        chols = pt.tril(0.1 * pm.Normal("factors", shape=(K, N, N))) + np.eye(N)
        pm.MvNormal("obs", mu[idx], chol=chols[idx], observed=Y)
    on = model.logp_dlogp_function(ravel_inputs=True, mode="NUMBA")._pytensor_function
    with mvn.disable():
        off = model.logp_dlogp_function(ravel_inputs=True, mode=PIPELINE_MODE)._pytensor_function
    [node] = lowered_nodes(on)
    assert node.op.layout.is_grouped
    for each in on.maker.fgraph.apply_nodes:
        assert all(out.type.ndim < 3 or out.type.shape[0] == K for out in each.outputs)
    rng = np.random.default_rng(0)
    for index in (INDEX, rng.permutation(INDEX), np.zeros(R, int), INDEX - K):
        with model:
            pm.set_data({"idx": index})
        point = rng.normal(size=K * N + K * N * N)
        for got, want in zip(on(point), off(point), strict=True):
            scale = max(1.0, np.abs(want).max())
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12 * scale)
    with model:
        pm.set_data({"idx": np.where(INDEX == 1, K, INDEX)})
    for function in (on, off):
        with pytest.raises(IndexError):
            function(point)


def test_ragged_loop_has_one_matrix_per_group():
    """Where nothing can be compressed, the joined rows of a loop take an index as well."""
    with pm.Model() as model:
        slope = pm.Normal("slope", shape=(K, N))
        for g, values in enumerate(RAGGED):
            mean = pt.tanh(slope[g] * np.arange(len(values))[:, None])
            chol = pt.tril(0.1 * pm.Normal(f"factor_{g}", shape=(N, N))) + np.eye(N)
            pm.MvNormal(f"obs_{g}", mean, chol=chol, observed=values)
    logp = rewrite_pregrad(model.logp())
    graph = [logp, *pytensor.grad(logp, model.value_vars)]
    [node] = lowered_nodes(lowered_in_python(model.value_vars, graph))
    assert node.op.layout.is_grouped
    assert_model_agrees(model)


def test_log_likelihood_of_each_row():
    model, _ = GROUP_MODELS["chols_of_index"]()
    [log_likelihood] = [model.compile_logp(vars=[model["obs"]], sum=False, mode=PIPELINE_MODE)]
    [point, *_] = random_points(model)
    [rows] = log_likelihood(point)
    assert rows.shape == (R,)
    total = model.compile_logp(vars=[model["obs"]], mode=PIPELINE_MODE)(point)
    np.testing.assert_allclose(rows.sum(), total, rtol=1e-12)


@pytest.mark.parametrize("form", ["loop", "index", "data"])
def test_compute_log_likelihood(form):
    """One number for each row, draw by draw, where the model's own sum is compressed or grouped."""
    with pm.Model():
        mu = pm.Normal("mu", shape=(K, N))
        chols = pt.tril(0.1 * pm.Normal("factors", shape=(K, N, N))) + np.eye(N)
        if form == "loop":
            for g in range(K):
                pm.MvNormal(f"obs_{g}", mu[g], chol=chols[g], observed=Y[INDEX == g])
        else:
            idx = pm.Data("idx", INDEX) if form == "data" else INDEX
            pm.MvNormal("obs", mu[idx], chol=chols[idx], observed=Y)
        draws = {"mu": RNG.normal(size=(1, 2, K, N)), "factors": RNG.normal(size=(1, 2, K, N, N))}
        posterior = xarray.Dataset(
            {
                name: (("chain", "draw", *(f"{name}_{k}" for k in range(x.ndim - 2))), x)
                for name, x in draws.items()
            }
        )
        result = pm.compute_log_likelihood(
            {"posterior": posterior},
            extend_inferencedata=False,
            progressbar=False,
            compile_kwargs={"mode": PIPELINE_MODE},
        )
    for draw in range(2):
        for g in range(K):
            chol = np.tril(0.1 * draws["factors"][0, draw, g]) + np.eye(N)
            rows = Y[INDEX == g]
            expected = multivariate_normal.logpdf(rows, draws["mu"][0, draw, g], chol @ chol.T)
            own = result[f"obs_{g}"] if form == "loop" else result["obs"]
            got = own.values[0, draw]
            np.testing.assert_allclose(
                got if form == "loop" else got[INDEX == g], np.atleast_1d(expected), rtol=1e-10
            )


@pytest.mark.parametrize("bad", ["one group", "all groups", "nan"])
def test_bad_covariance(bad):
    """-inf as without the plugin, when the covariance of one group is not positive definite."""
    with pm.Model() as model:
        s = pm.Normal("s", shape=K)
        covs = s[:, None, None] * np.eye(N) + 0.1
        pm.MvNormal("obs", pm.Normal("mu", shape=N), cov=covs[INDEX], observed=Y)
    s = {"one group": [1, -1, 1], "all groups": [-1, -1, -1], "nan": [1, 1, np.nan]}[bad]
    point = {"s": np.array(s, dtype=float), "mu": np.zeros(N)}
    on, off = on_and_off(lambda mode: model.compile_logp(mode=mode), PIPELINE_MODE)
    assert densities(rewrite_pregrad(model.logp())) == [(K, 1 + N)]
    np.testing.assert_array_equal(on(point), off(point))
    assert not np.isfinite(on(point))


def test_float32():
    with pytensor.config.change_flags(floatX="float32"):
        model, expected = GROUP_MODELS["regression_by_group"]()
        assert densities(rewrite_pregrad(model.logp())) == expected
        assert_model_agrees(model, rtol=1e-4)
