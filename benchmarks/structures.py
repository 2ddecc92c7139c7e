"""Models whose covariance has a structure, written as plain mathematics."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt


def constant_blocks(rng, blocks: int, size: int) -> np.ndarray:
    """Well-conditioned covariances, shape (blocks, size, size)."""
    roots = rng.normal(size=(blocks, size, size))
    return roots @ roots.mT / size + np.eye(size)


def block_diagonal(blocks: int, size: int, form: str = "block_diag", seed: int = 0) -> pm.Model:
    """Give one vector a block-diagonal covariance, or its parts a batch of covariances.

    Parameters
    ----------
    blocks, size : int
        Number of blocks, and rows of each.
    form : {"block_diag", "dense", "batch"}
        ``block_diag(*blocks)``; the same matrix from few nodes, which PyTensor compiles in a minute
        instead of a quarter of an hour; the same model as a batch of short vectors.
    seed : int
    """
    rng = np.random.default_rng(seed)
    shapes = constant_blocks(rng, blocks, size)
    data = rng.normal(size=blocks * size)
    with pm.Model() as model:
        scale = pm.HalfNormal("scale", shape=blocks)
        mu = pm.Normal("mu", 0, 1, shape=blocks * size)
        covs = scale[:, None, None] * shapes
        if form == "batch":
            by_block = (blocks, size)
            pm.MvNormal("x", mu.reshape(by_block), cov=covs, observed=data.reshape(by_block))
        else:
            if form == "dense":
                spread = covs[:, :, None, :] * np.eye(blocks)[:, None, :, None]
                cov = spread.reshape((blocks * size, blocks * size))
            else:
                cov = pt.linalg.block_diag(*[covs[k] for k in range(blocks)])
            pm.MvNormal("x", mu, cov=cov, observed=data)
    return model


def indicator_krons(blocks: int, size: int, seed: int = 0) -> pm.Model:
    """Sum ``kron(indicator, block)`` over the blocks, as in the forum thread on many MvNormals."""
    rng = np.random.default_rng(seed)
    indicators = [np.zeros((blocks, blocks)) for _ in range(blocks)]
    for i in range(blocks):
        indicators[i][i, i] = 1
    with pm.Model() as model:
        roots = pm.Normal(
            "L", shape=(blocks, size, size), initval=np.eye(size) + np.zeros((blocks, 1, 1))
        )
        covs = pytensor.scan(lambda x: x @ x.T, sequences=[roots], return_updates=False)
        big_cov = pt.stack([pt.linalg.kron(indicators[i], covs[i]) for i in range(blocks)]).sum(
            axis=0
        )
        pm.MvNormal("obs", mu=0, cov=big_cov, observed=rng.normal(size=blocks * size))
    return model


def exponential_covariance(n: int, length_scale):
    """Covariance of an Ornstein-Uhlenbeck process at n equidistant points of the unit interval."""
    points = np.linspace(0, 1, n)
    return pt.exp(-np.abs(points[:, None] - points) / length_scale)


def separable(rows: int, columns: int, lengths):
    """Covariance of a grid: of its rows, times that of its columns."""
    return pt.linalg.kron(
        exponential_covariance(rows, lengths[0]), exponential_covariance(columns, lengths[1])
    )


def grids(groups: int, rows: int, columns: int, seed: int = 0) -> pm.Model:
    """Loop over groups of grids, two and more in each, with a separable covariance for each group.

    Parameters
    ----------
    groups : int
    rows, columns : int
        Sizes of the two Kronecker factors.
    seed : int
    """
    rng = np.random.default_rng(seed)
    with pm.Model() as model:
        for g in range(groups):
            cov = separable(rows, columns, pm.HalfNormal(f"lengths_{g}", shape=2))
            data = rng.normal(size=(2 + g % 4, rows * columns))
            pm.MvNormal(f"x_{g}", np.zeros(rows * columns), cov, observed=data)
    return model


def side_by_side(rows: int, columns: int, rank: int, seed: int = 0) -> pm.Model:
    """A separable covariance and one of low rank plus noise, of one size."""
    rng, n = np.random.default_rng(seed), rows * columns
    with pm.Model() as model:
        grid = separable(rows, columns, pm.HalfNormal("lengths", shape=2))
        loadings, noise = pm.Normal("loadings", shape=(n, rank)), pm.HalfNormal("noise")
        factors = loadings @ loadings.T + noise * pt.eye(n)
        pm.MvNormal("grid", np.zeros(n), grid, observed=rng.normal(size=n))
        pm.MvNormal("factors", np.zeros(n), factors, observed=rng.normal(size=n))
    return model


def kronecker(rows: int, columns: int, form: str, noise: bool = False, seed: int = 0) -> pm.Model:
    """Cover a grid with a separable covariance.

    Parameters
    ----------
    rows, columns : int
        Sizes of the two Kronecker factors.
    form : {"dense", "KroneckerNormal"}
        ``MvNormal(cov=kron(...))`` or PyMC's distribution.
    noise : bool
        Add independent noise to every point of the grid.
    seed : int
    """
    data = np.random.default_rng(seed).normal(size=rows * columns)
    mu = np.zeros(rows * columns)
    with pm.Model() as model:
        length_scales = pm.HalfNormal("length_scales", shape=2)
        amplitude = pm.HalfNormal("amplitude")
        covs = [
            amplitude**2 * exponential_covariance(rows, length_scales[0]),
            exponential_covariance(columns, length_scales[1]),
        ]
        sigma = pm.HalfNormal("sigma") if noise else 0
        if form == "KroneckerNormal":
            pm.KroneckerNormal("x", mu, covs=covs, sigma=sigma, observed=data)
        else:
            cov = pt.linalg.kron(*covs)
            if noise:
                cov = cov + sigma**2 * pt.eye(rows * columns)
            pm.MvNormal("x", mu, cov=cov, observed=data)
    return model


def matrix_normal(rows: int, columns: int, seed: int = 0) -> pm.Model:
    """Cover a grid by PyMC's matrix normal distribution."""
    data = np.random.default_rng(seed).normal(size=(rows, columns))
    with pm.Model() as model:
        lengths = pm.HalfNormal("lengths", shape=2)
        covs = {
            "rowcov": exponential_covariance(rows, lengths[0]),
            "colcov": exponential_covariance(columns, lengths[1]),
        }
        pm.MatrixNormal("x", np.zeros((rows, columns)), **covs, observed=data)
    return model


def kronecker_sum(rows: int, columns: int, seed: int = 0) -> pm.Model:
    """Cover a grid with a separable covariance, and noise of a variance per row and per column."""
    data = np.random.default_rng(seed).normal(size=rows * columns)
    with pm.Model() as model:
        length_scales = pm.HalfNormal("length_scales", shape=2)
        signal = pt.linalg.kron(
            exponential_covariance(rows, length_scales[0]),
            exponential_covariance(columns, length_scales[1]),
        )
        noise = [pm.HalfNormal(name, shape=n) for name, n in (("c", rows), ("d", columns))]
        cov = signal + pt.linalg.kron(*map(pt.diag, noise))
        pm.MvNormal("x", np.zeros(rows * columns), cov=cov, observed=data)
    return model


def low_rank(n: int, rank: int, seed: int = 0) -> pm.Model:
    """Load n observed variables on a few factors: ``W @ W.T + diag(d)``."""
    data = np.random.default_rng(seed).normal(size=n)
    with pm.Model() as model:
        loadings = pm.Normal("W", 0, 1, shape=(n, rank))
        variances = pm.HalfNormal("d", shape=n)
        pm.MvNormal("x", np.zeros(n), cov=loadings @ loadings.T + pt.diag(variances), observed=data)
    return model


def diagonal(n: int, seed: int = 0) -> pm.Model:
    """Build a covariance from logarithms of variances: ``diag(exp(log_diag))``."""
    data = np.random.default_rng(seed).normal(size=n)
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 1, shape=n)
        log_diag = pm.Normal("log_diag", 0, 1, shape=n)
        pm.MvNormal("x", mu, cov=pt.diag(pt.exp(log_diag)), observed=data)
    return model


def matrix_exponential(n: int, seed: int = 0) -> pm.Model:
    """Make a covariance of any symmetric matrix: ``expm((A + A.T) / 2)``."""
    data = np.random.default_rng(seed).normal(size=n)
    with pm.Model() as model:
        a = pm.Normal("A", 0, 1 / np.sqrt(n), shape=(n, n))
        pm.MvNormal("x", np.zeros(n), cov=pt.linalg.expm((a + a.T) / 2), observed=data)
    return model


def kinship(n: int, seed: int = 0) -> pm.Model:
    """Give individuals a genetic effect and noise: ``a * K + b * eye``, K constant (BLUP)."""
    rng = np.random.default_rng(seed)
    markers = rng.normal(size=(n, 2 * n))
    with pm.Model() as model:
        beta = pm.Normal("beta", 0, 1, shape=2)
        genetic, residual = pm.HalfNormal("genetic"), pm.HalfNormal("residual")
        cov = genetic**2 * (markers @ markers.T / (2 * n)) + residual**2 * pt.eye(n)
        pm.MvNormal("y", rng.normal(size=(n, 2)) @ beta, cov=cov, observed=rng.normal(size=n))
    return model


def lkj_correlation(rows: int, n: int, seed: int = 0) -> pm.Model:
    """Draw vectors of a correlation matrix scaled by other standard deviations than its own."""
    rng = np.random.default_rng(seed)
    with pm.Model() as model:
        _, corr, _ = pm.LKJCholeskyCov(
            "chol", n=n, eta=2, sd_dist=pm.Exponential.dist(1, shape=n), compute_corr=True
        )
        sd = pm.HalfNormal("sd", shape=n)
        cov = pt.diag(sd) @ corr @ pt.diag(sd)
        pm.MvNormal("x", np.zeros(n), cov=cov, shape=(rows, n))
        pm.MvNormal("z", np.zeros(n), cov=corr, observed=rng.normal(size=(rows, n)))
    return model


def ornstein_uhlenbeck(n: int, data: bool = False, seed: int = 0) -> pm.Model:
    """Observe an Ornstein-Uhlenbeck process at n times, constant or in ``pm.Data``."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, n / 10, size=n))
    with pm.Model() as model:
        t = pm.Data("t", times) if data else pt.as_tensor(times)
        scale, length = pm.HalfNormal("scale"), pm.HalfNormal("length")
        cov = scale**2 * pt.exp(-pt.abs(t[:, None] - t[None, :]) / length)
        pm.MvNormal("y", np.zeros(n), cov=cov, observed=rng.normal(size=n))
    return model
