"""The models of four forum threads and tutorials, as their authors wrote them.

With the plugin on and off they have the same log-density and the same gradient at random points,
and nothing warns. Sizes are small where the author left them open; each docstring says what was
adapted.
"""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

import pytensor_mvn_rewrites as mvn
from tests.harness import PIPELINE_MODE, assert_model_agrees, spd

RNG = np.random.default_rng(20261121)
MODELS = {}


def listing(builder):
    """Collect a builder under its name."""
    MODELS[builder.__name__] = builder
    return builder


# --- several MvNormals with different covariance matrices ---


@listing
def loop_of_the_question():
    """The loop of the question; `N`, `q`, `my_means` and `my_covs` as it describes them."""
    N, q = 5, 3
    my_means, my_covs = RNG.normal(size=(N, q)), spd(RNG, N, n=q)
    with pm.Model() as model:
        for n in range(N):
            pm.MvNormal(f"x_{n}", mu=my_means[n], cov=my_covs[n], shape=q)
    return model


@listing
def batched_answer():
    """ "The MvNormal now accepts arbitrary batched params.\""""
    N, q = 5, 3
    my_means, my_covs = RNG.normal(size=(N, q)), spd(RNG, N, n=q)
    with pm.Model() as model:
        pm.MvNormal("x", mu=my_means, cov=my_covs, shape=(N, q))
    return model


@listing
def block_diagonal_by_kron():
    """The Kronecker products of the answer.

    `pytensor.scan` no longer returns updates: it warns unless told so, and returns one value. The
    author's `big_cov` is the `big_cov2` of the line before.
    """
    # Make a set of (N, N) matrices of all zeros with a 1 in the (i,i)th position
    indicators = [np.zeros((5, 5)) for _ in range(5)]
    for i in range(5):
        indicators[i][i, i] = 1

    with pm.Model() as mod:
        L = pm.Normal("L", size=(5, 3, 3))
        # This is just to make a block of positive semi-definite matrices, you can ignore it
        covs = pytensor.scan(lambda x: x @ x.T, sequences=[L], return_updates=False)

        # Here's where the actual block diagonal matrix get made
        big_cov2 = pt.stack([pt.linalg.kron(indicators[i], covs[i]) for i in range(5)]).sum(axis=0)
        pm.MvNormal("obs", mu=0, cov=big_cov2)
    return mod


@listing
def block_diagonal():
    """The block-diagonal covariance that the first answer describes in words."""
    N, q = 4, 2
    my_means, my_covs = RNG.normal(size=(N, q)), spd(RNG, N, n=q)
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        cov = pt.linalg.block_diag(*[scale * my_covs[n] for n in range(N)])
        pm.MvNormal("x", mu=my_means.ravel(), cov=cov, shape=N * q)
    return model


# --- KroneckerNormal: the listings of its documentation ---


def kronecker_inputs():
    K1 = np.array([[1.0, 0.5], [0.5, 2]])
    K2 = np.array([[1.0, 0.4, 0.2], [0.4, 2, 0.3], [0.2, 0.3, 1]])
    return [K1, K2], 6, np.zeros(6)


@listing
def kronecker_normal():
    covs, N, mu = kronecker_inputs()
    with pm.Model() as model:
        pm.KroneckerNormal("vals", mu=mu, covs=covs, shape=N)
    return model


@listing
def kronecker_normal_by_factors():
    covs, N, mu = kronecker_inputs()
    chols = [np.linalg.cholesky(Ki) for Ki in covs]
    evds = [np.linalg.eigh(Ki) for Ki in covs]
    with pm.Model() as model:
        pm.KroneckerNormal("vals2", mu=mu, chols=chols, shape=N)
        # or
        pm.KroneckerNormal("vals3", mu=mu, evds=evds, shape=N)
    return model


@listing
def kronecker_normal_with_noise():
    covs, N, mu = kronecker_inputs()
    chols = [np.linalg.cholesky(Ki) for Ki in covs]
    evds = [np.linalg.eigh(Ki) for Ki in covs]
    sigma = 0.1
    with pm.Model() as noise_model:
        pm.KroneckerNormal("vals", mu=mu, covs=covs, sigma=sigma, shape=N)
        pm.KroneckerNormal("vals2", mu=mu, chols=chols, sigma=sigma, shape=N)
        pm.KroneckerNormal("vals3", mu=mu, evds=evds, sigma=sigma, shape=N)
    return noise_model


# --- LKJCholeskyCov per group ---


def grouped_data(sizes=(7, 7)):
    """The author's data without pandas, which only named their columns."""
    rng = np.random.default_rng(0)
    mean1, mean2 = [0, 0], [1, -1]
    cov1 = [[1, 0], [0, 1]]  # covariance matrix 1
    cov2 = [[1, -0.5], [-0.5, 1]]  # covariance matrix 2
    sample1 = rng.multivariate_normal(mean1, cov1, sizes[0])
    sample2 = rng.multivariate_normal(mean2, cov2, sizes[1])
    sample = np.concatenate([sample1, sample2])
    group_values, group_names = np.repeat([0, 1], sizes), ["A", "B"]
    features = ["x", "y"]
    coords = {"groups": group_names, "features": features}
    return sample, group_values, group_names, features, coords


@listing
def common_covariance_of_groups():
    """The question's model: group means, one covariance."""
    df_numeric, group_values, _, features, coords = grouped_data()
    with pm.Model(coords=coords) as model:
        group_idx = pm.Data("group_idx", value=group_values)
        observations = pm.Data("observations", value=df_numeric)
        mu_group = pm.Normal("mu_group", mu=0, sigma=1, dims=("groups", "features"))
        mu = mu_group[group_idx]
        # LKJ Cholesky decomposition.
        sd_dist = pm.Exponential.dist(1, shape=len(features))
        chol, _, _ = pm.LKJCholeskyCov(
            "chol",
            n=len(features),
            eta=2,
            sd_dist=sd_dist,
            compute_corr=True,
            store_in_trace=False,
        )
        pm.Deterministic("cov", chol.dot(chol.T))
        pm.MvNormal("obs", mu=mu, chol=chol, observed=observations, shape=(df_numeric.shape))
    return model


def covariance_per_group(sizes):
    """The accepted answer."""
    df_numeric, group_values, group_names, features, coords = grouped_data(sizes)
    with pm.Model(coords=coords) as model:
        group_idx = pm.Data("group_idx", value=group_values)
        mu_group = pm.Normal("mu_group", mu=0, sigma=1, dims=("groups", "features"))
        # LKJ Cholesky decomposition.
        observed_vars = []
        for i, group in enumerate(group_names):
            sd_dist = pm.Exponential.dist(1, shape=len(features))

            chol, _, _ = pm.LKJCholeskyCov(
                f"{group}_chol",
                n=len(features),
                eta=2,
                sd_dist=sd_dist,
                compute_corr=True,
                store_in_trace=False,
            )

            pm.Deterministic(f"{group}_cov", chol.dot(chol.T))

            n = pt.eq(group_idx, i).sum()
            obs = pm.MvNormal(
                f"{group}_obs",
                mu=mu_group[i],
                chol=chol,
                observed=df_numeric[group_values == i],
                shape=(n, 2),
            )
            observed_vars.append(obs)

        pm.Deterministic("obs", pt.concatenate(observed_vars, axis=0))
    return model


@listing
def covariance_per_group_of_equal_size():
    return covariance_per_group((7, 7))


@listing
def covariance_per_group_of_unequal_size():
    return covariance_per_group((4, 9))


@listing
def covariances_fused_by_block_diag():
    """The answer's alternative: block_diag of the two covariances, the means raveled.

    Each observation has the values of both groups side by side; with groups of equal size none of
    its components is missing.
    """
    df_numeric, group_values, group_names, features, coords = grouped_data()
    wide = np.concatenate([df_numeric[group_values == i] for i in range(2)], axis=1)
    with pm.Model(coords=coords) as model:
        mu_group = pm.Normal("mu_group", mu=0, sigma=1, dims=("groups", "features"))
        covs = []
        for group in group_names:
            sd_dist = pm.Exponential.dist(1, shape=len(features))
            chol, _, _ = pm.LKJCholeskyCov(
                f"{group}_chol", n=len(features), eta=2, sd_dist=sd_dist, compute_corr=True
            )
            covs.append(chol.dot(chol.T))
        cov = pt.linalg.block_diag(*covs)
        pm.MvNormal("obs", mu=mu_group.ravel(), cov=cov, observed=wide)
    return model


# --- three parametrizations of one covariance matrix ---

DATA = RNG.normal(size=(8, 3))


def log_likelihood_by_hand(data, mu, Sigma):
    """The author leaves `log_likelihood` to the reader: the textbook formula."""
    delta = data - mu
    n, d = DATA.shape
    quad = (delta * pt.linalg.solve(Sigma, delta.T).T).sum()
    logdet = pt.linalg.slogdet(Sigma)[1]
    return -0.5 * (quad + n * logdet + n * d * np.log(2 * np.pi))


def log_likelihood_by_inverse(data, mu, Sigma):
    """The same with an explicit inverse and determinant."""
    delta = data - mu
    n, d = DATA.shape
    quad = pt.diag(delta @ pt.linalg.inv(Sigma) @ delta.T).sum()
    return -0.5 * (quad + n * pt.log(pt.linalg.det(Sigma)) + n * d * np.log(2 * np.pi))


def log_likelihood_by_pymc(data, mu, Sigma):
    """PyMC's own log-density."""
    return pm.logp(pm.MvNormal.dist(mu=mu, cov=Sigma), data).sum()


def cholesky_parametrization():
    """Sigma = L L', L any square matrix near the identity, as `nn.Parameter(torch.eye(n))` is."""
    L = pm.Normal("L", mu=np.eye(3), sigma=0.3, shape=(3, 3))
    return pt.dot(L, L.T)


def exponential_parametrization():
    """Sigma = expm((A + A') / 2)."""
    A = pm.Normal("A", sigma=0.3, shape=(3, 3))
    A_sym = (A + A.T) / 2  # Ensure A is symmetric
    return pt.linalg.expm(A_sym)


def diagonal_parametrization():
    """Sigma = diag(exp(log_diag))."""
    log_diag = pm.Normal("log_diag", shape=3)
    return pt.diag(pt.exp(log_diag))


PARAMETRIZATIONS = [cholesky_parametrization, exponential_parametrization, diagonal_parametrization]
LIKELIHOODS = [log_likelihood_by_hand, log_likelihood_by_inverse, log_likelihood_by_pymc]


def covariance_model(parametrization, likelihood):
    with pm.Model() as model:
        mu = pm.Normal("mu", shape=3)
        Sigma = parametrization()
        if likelihood is None:
            pm.MvNormal("X", mu=mu, cov=Sigma, observed=DATA)
        else:
            pm.Potential("X", likelihood(DATA, mu, Sigma))
    return model


for _parametrization in PARAMETRIZATIONS:
    for _likelihood in [None, *LIKELIHOODS]:
        _name = _likelihood.__name__ if _likelihood else "observed"
        MODELS[f"{_parametrization.__name__}-{_name}"] = (
            lambda p=_parametrization, likelihood=_likelihood: covariance_model(p, likelihood)
        )


@pytest.mark.parametrize("name", MODELS)
def test_same_numbers_with_the_plugin_on_and_off(name):
    assert_model_agrees(MODELS[name](), points=3)


@pytest.mark.parametrize("name", ["loop_of_the_question", "covariance_per_group_of_equal_size"])
def test_draws_are_the_same_with_the_plugin_on_and_off(name):
    model = MODELS[name]()
    on = pm.draw(model.basic_RVs, draws=2, random_seed=1, mode=PIPELINE_MODE)
    with mvn.disable():
        off = pm.draw(model.basic_RVs, draws=2, random_seed=1, mode=PIPELINE_MODE)
    for with_plugin, without in zip(on, off, strict=True):
        np.testing.assert_array_equal(with_plugin, without)
