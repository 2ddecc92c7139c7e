"""The bare density: N vectors of length n, log-densities summed, and all gradients.

Value, mean and covariance (or Cholesky factor) are the inputs, so nothing can be precomputed.
"""

from collections.abc import Iterator

import numpy as np

from benchmarks.scenarios import Bar, Scenario, Variant, faster

#: (N, n) -> (at least so many times faster than by hand, at most so many times the limit)
BARS = {
    (5000, 3): (120, 1.6),
    (5000, 4): (120, 1.6),
    (100_000, 3): (120, 1.6),
    (1000, 10): (40, 1.5),
    (200, 30): (15, 1.5),
    (10, 100): (2, None),
    (1, 1000): (2, None),
}

#: Sizes for the plots: N at n = 3, n at N = 1000
OTHER_SIZES = (
    *((count, 3) for count in (10, 100, 1000, 30_000)),
    *((1000, n) for n in (2, 4, 6, 8, 12, 16, 20, 30)),
)


def inputs(count: int, n: int, param: str, seed: int = 0) -> list[np.ndarray]:
    """Value, mean and matrix, shapes (count, n), (count, n) and (count, n, n)."""
    rng = np.random.default_rng(seed)
    value, mu = rng.normal(size=(2, count, n))
    roots = rng.normal(size=(count, n, n))
    covs = roots @ roots.mT / n + np.eye(n)
    return [value, mu, np.linalg.cholesky(covs) if param == "chol" else covs]


def variants(count: int, n: int, param: str) -> Iterator[Variant]:
    """All contestants."""
    size = {"count": count, "n": n, "param": param}

    def variant(label: str, contestant: str, **arguments) -> Variant:
        # one cache for all sizes: it is the evaluation that matters here
        return Variant(label, contestant, size | arguments, once=True, cache=f"oplevel-{label}")

    yield variant("plugin", "PyTensorDensity", plugin=True)
    yield variant("by hand", "PyTensorDensity", plugin=False)
    yield variant("reference graph", "PyTensorDensity", plugin=True, skip="lower")
    yield variant("plugin, JAX", "PyTensorDensity", plugin=True, mode="JAX")
    yield variant("NumPyro", "NumPyroDensity")
    # the limit is about many small matrices, those with a factor very small
    if n <= (12 if param == "chol" else 64):
        yield variant("limit", "LimitDensity")


def scenario(count: int, n: int, param: str) -> Scenario:
    """All contestants at one size."""
    found = tuple(variants(count, n, param))
    bars: tuple[Bar, ...] = ()
    if param == "cov" and (count, n) in BARS:
        times, of_limit = BARS[count, n]
        bars = (faster(times, "plugin", "by hand"),)
        if of_limit is not None:
            bars += (
                Bar(
                    f"at most {of_limit} times the time of the limit",
                    ("plugin", "evaluate"),
                    ("limit", "evaluate"),
                    at_most=of_limit,
                ),
            )
    return Scenario(
        f"oplevel:{param}_{count}_{n}",
        f"{count} vectors of length {n}, {'covariance' if param == 'cov' else 'factor'} given",
        found,
        bars,
        reference="by hand",
        facts={"N": count, "n": n, "param": param},
    )


def of_threads(count: int, n: int) -> Scenario:
    """One thread and two, by the clock on the wall: it takes a machine with nothing else to do."""
    size = {"count": count, "n": n, "param": "cov", "plugin": True}
    names = ("1 thread", "2 threads")
    return Scenario(
        f"oplevel:threads_{count}_{n}",
        f"{count} vectors of length {n}, covariance given, by one thread and by two",
        tuple(
            Variant(
                name, "PyTensorDensity", size | {"threads": k}, once=True, cache="oplevel-plugin"
            )
            for k, name in enumerate(names, start=1)
        ),
        (faster(1.3, "2 threads", "1 thread"),),
        reference="1 thread",
        clock="wall",
    )


def scenarios(pick) -> Iterator[Scenario]:
    """The sizes of the bars and of the plots with a covariance, some with a Cholesky factor."""
    sizes = pick((*BARS, *OTHER_SIZES), short=((5000, 3), (1000, 10), (10, 100)), tiny=((9, 3),))
    for count, n in dict.fromkeys(sizes):
        yield scenario(count, n, "cov")
    for count, n in pick(((5000, 3), (5000, 4), (1000, 10)), short=((5000, 3),), tiny=((9, 2),)):
        yield scenario(count, n, "chol")
    for count, n in pick(((100_000, 3), (20_000, 10)), short=(), tiny=((9, 3),)):
        yield of_threads(count, n)
