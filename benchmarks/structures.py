"""Models whose covariance has a structure, written as plain mathematics, and their scenarios."""

from collections.abc import Iterator

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from benchmarks.scenarios import (
    Bar,
    Scenario,
    faster,
    first_gradient,
    model,
    on_and_off,
)


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


def matrix_normal(rows: int, columns: int, seed: int = 0) -> pm.Model:
    """Cover a grid by PyMC's matrix normal distribution."""
    data = np.random.default_rng(seed).normal(size=(rows, columns))
    with pm.Model() as model:
        length_scales = pm.HalfNormal("length_scales", shape=2)
        pm.MatrixNormal(
            "x",
            np.zeros((rows, columns)),
            rowcov=exponential_covariance(rows, length_scales[0]),
            colcov=exponential_covariance(columns, length_scales[1]),
            observed=data,
        )
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


def dense_compilation(label: str = "on", than: str = "off") -> tuple[Bar, Bar]:
    """The bar of every structure: compilation takes no longer than that of the dense model."""
    return first_gradient(1, label, than)


def scenarios(pick) -> Iterator[Scenario]:
    """Every scenario with a structure."""
    sizes = pick({"blocks": 200, "size": 5}, tiny={"blocks": 4, "size": 3})
    yield Scenario(
        "structures:block_diagonal",
        "block_diag of {blocks} blocks of {size} x {size}".format(**sizes),
        (
            model("on", "structures.block_diagonal", **sizes),
            model("as a batch, on", "structures.block_diagonal", form="batch", **sizes),
            model("dense, off", "structures.block_diagonal", False, form="dense", **sizes),
        ),
        (
            faster(200, than="dense, off"),
            Bar(
                "evaluation within 1.2 times that of the same model written as a batch",
                ("on", "evaluate"),
                ("as a batch, on", "evaluate"),
                at_most=1.2,
            ),
            *dense_compilation(than="dense, off"),
        ),
        reference="dense, off",
    )

    sizes = pick({"blocks": 20, "size": 3}, tiny={"blocks": 3, "size": 2})
    yield Scenario(
        "structures:indicator_krons",
        "sum of {blocks} krons of an indicator and a {size} x {size} block".format(**sizes),
        on_and_off("structures.indicator_krons", **sizes),
        dense_compilation(),
        reference="off",
    )

    sizes = pick({"rows": 40, "columns": 50}, tiny={"rows": 3, "columns": 4})
    for name, noise, times in (("kronecker", False, 300), ("kronecker_noise", True, 100)):
        yield Scenario(
            f"structures:{name}",
            "MvNormal(cov=kron({rows} x {rows}, {columns} x {columns})".format(**sizes)
            + (" + sigma**2 * eye)" if noise else ")"),
            on_and_off("structures.kronecker", form="dense", noise=noise, **sizes),
            (
                faster(times),
                *dense_compilation(),
                no_dense_matrix(sizes["rows"] * sizes["columns"]),
            ),
            reference="off",
            memory=True,
        )
    yield Scenario(
        "structures:kronecker_sum",
        "MvNormal(cov=kron(A, B) + kron(C, D)), {rows} x {columns}".format(**sizes),
        on_and_off("structures.kronecker_sum", **sizes),
        (faster(10), *dense_compilation(), no_dense_matrix(sizes["rows"] * sizes["columns"])),
        reference="off",
        memory=True,
    )
    yield Scenario(
        "structures:matrix_normal",
        "MatrixNormal, {rows} x {columns}".format(**sizes),
        on_and_off("structures.matrix_normal", **sizes),
        (faster(1),),
        reference="off",
    )
    for name, noise, bar in (
        ("kronecker_normal", False, faster(3)),
        ("kronecker_normal_noise", True, faster(1)),
    ):
        yield Scenario(
            f"structures:{name}",
            "KroneckerNormal, {rows} x {columns}".format(**sizes) + (", noise" if noise else ""),
            (
                *on_and_off("structures.kronecker", form="KroneckerNormal", noise=noise, **sizes),
                model(
                    "dense, off", "structures.kronecker", False, form="dense", noise=noise, **sizes
                ),
            ),
            (bar, *dense_compilation(than="dense, off")),
            reference="dense, off",
        )

    sizes = pick(
        {"groups": 10, "rows": 8, "columns": 8}, tiny={"groups": 2, "rows": 2, "columns": 2}
    )
    yield Scenario(
        "structures:grids",
        "a loop of {groups} groups of 2 to 5 grids, {rows} x {columns}".format(**sizes),
        on_and_off("structures.grids", **sizes),
        (faster(3), *dense_compilation()),
        reference="off",
    )
    sizes = pick({"rows": 20, "columns": 20, "rank": 3}, tiny={"rows": 2, "columns": 3, "rank": 1})
    yield Scenario(
        "structures:side_by_side",
        "a grid of {rows} x {columns} beside as many numbers of rank {rank}".format(**sizes),
        on_and_off("structures.side_by_side", **sizes),
        (faster(10), *dense_compilation()),
        reference="off",
    )

    sizes = pick({"n": 2000, "rank": 5}, tiny={"n": 6, "rank": 2})
    yield Scenario(
        "structures:low_rank",
        "W @ W.T + diag(d), rank {rank}, n={n}".format(**sizes),
        on_and_off("structures.low_rank", **sizes),
        (faster(200), *dense_compilation()),
        reference="off",
        memory=True,
    )
    n = pick(2000, tiny=4)
    yield Scenario(
        "structures:diagonal",
        f"diag(exp(log_diag)), n={n}",
        on_and_off("structures.diagonal", n=n),
        (faster(1000), *dense_compilation()),
        reference="off",
        memory=True,
    )
    n = pick(100, tiny=4)
    yield Scenario(
        "structures:matrix_exponential",
        f"expm((A + A.T) / 2), n={n}",
        on_and_off("structures.matrix_exponential", n=n),
        (faster(2), *dense_compilation()),
        reference="off",
    )

    n = pick(200, tiny=10)
    yield Scenario(
        "structures:kinship",
        f"a * K + b * eye, K constant, n={n}",
        on_and_off("structures.kinship", n=n),
        (faster(20), *dense_compilation()),
        reference="off",
    )
    sizes = pick({"rows": 200, "n": 4}, tiny={"rows": 5, "n": 2})
    yield Scenario(
        "structures:lkj_correlation",
        "corr of LKJCholeskyCov, and scaled, {rows} rows, n={n}".format(**sizes),
        on_and_off("structures.lkj_correlation", **sizes),
        (faster(4), *dense_compilation()),
        reference="off",
    )
    n = pick(2000, tiny=5)
    yield Scenario(
        "structures:ornstein_uhlenbeck",
        f"s * exp(-abs(t[:, None] - t) / l), n={n}",
        on_and_off("structures.ornstein_uhlenbeck", n=n),
        (faster(500), *dense_compilation()),
        reference="off",
        memory=True,
    )
    n = pick(100_000, tiny=5)
    yield Scenario(
        "structures:ornstein_uhlenbeck_long",
        f"the same, t in pm.Data, n={n}",
        (model("on", "structures.ornstein_uhlenbeck", n=n, data=True),),
        (Bar("an evaluation under 20 ms", ("on", "evaluate"), at_most=0.02),),
        memory=True,
    )


def no_dense_matrix(n: int, label: str = "on") -> Bar:
    """Evaluation needs less memory than one dense covariance."""
    return Bar(
        f"an evaluation raises the memory by less than half an n x n matrix of n={n}, in bytes",
        (label, "memory"),
        at_most=8 * n * n / 2,
    )
