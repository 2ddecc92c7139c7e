"""Scenarios of the loop of the forum thread, of models without it, and of sampling."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks import models
from benchmarks.models import loop_data
from benchmarks.scenarios import (
    Bar,
    Scenario,
    Variant,
    faster,
    first_gradient,
    model,
    on_and_off,
    per_build,
)

#: Where the loop without the plugin is still bearable
UNREWRITTEN_UP_TO = 30

#: Sizes at which the other systems run as well
WITH_OTHERS = (10, 100, 1000, 5000)


def numpyro_loop(n: int, q: int = 3, seed: int = 0):
    """The model of :func:`benchmarks.models.loop_by_hand` in NumPyro."""
    import numpyro
    from numpyro import distributions as dist

    covs, data = loop_data(n, q, seed)

    def model():
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        mu = numpyro.sample("mu", dist.Normal(0, 1).expand((n, q)).to_event(2))
        numpyro.sample("x", dist.MultivariateNormal(mu, covariance_matrix=scale * covs), obs=data)

    return model, ("scale", "mu")


def fused(model: str, **arguments):
    """What ``fuse_model`` makes of a model of :mod:`benchmarks.models`."""
    from pytensor_mvn_rewrites import fuse_model

    return fuse_model(models.MODELS[model](**arguments))


def of_fused(n: int) -> Iterator[Scenario]:
    """Compilation of fused models against those that are vectorised by hand."""
    for name in ("loop", "latent_loop"):
        by_hand = f"models.{name}_by_hand"
        yield Scenario(
            f"loops:fused_{name}",
            f"fuse_model of the model '{name}', N={n}, q=3",
            (
                model("fused", "loops.fused", model=name, n=n),
                model("by hand", by_hand, n=n),
                model("by hand, off", by_hand, False, n=n),
            ),
            first_gradient(1.1, "fused", "by hand"),
            reference="by hand, off",
        )


def of_advi(n: int, bearable: int) -> Iterator[Scenario]:
    """ADVI: its compilation at `n`, and its steps where the loop without the plugin compiles."""

    def fitting(label: str, function: str, plugin: bool = True, **arguments) -> Variant:
        described = {"model": f"models.{function}", "arguments": arguments, "plugin": plugin}
        return Variant(label, "Fitting", described)

    yield Scenario(
        "loops:advi",
        f"ADVI, first step and steps, N={n}, q=3",
        (
            fitting("on", "loop", n=n),
            fitting("by hand", "loop_by_hand", n=n),
            fitting("by hand, off", "loop_by_hand", plugin=False, n=n),
        ),
        (*first_gradient(1.5, "on", "by hand"), *first_gradient(1.5, "on", "by hand, off")),
    )
    yield Scenario(
        "loops:advi_off",
        f"the same without the plugin, N={bearable}",
        (
            fitting("on", "loop", n=bearable),
            replace(fitting("off", "loop", plugin=False, n=bearable), once=True),
        ),
        (faster(5),),
    )


def of_predictive(n: int, draws: int) -> Scenario:
    """Prior and posterior predictive of a loop, fused and as it is."""

    def predictive(label: str, function: str, plugin: bool = True, **arguments) -> Variant:
        described = {"model": function, "arguments": arguments, "plugin": plugin, "draws": draws}
        return Variant(label, "Predictive", described, timed=False)

    bars = [
        Bar(
            f"{kind} predictive of 'fused' at least 20 times faster than of 'off', compilation "
            f"included, {name}",
            ("off", prefix + quantity),
            ("fused", prefix + quantity),
            at_least=20,
        )
        for kind, quantity in (
            ("prior", "prior"),
            ("posterior", "posterior"),
            ("prior and posterior", "draws"),
        )
        for name, prefix in (("cold", "cold_"), ("warm", ""))
    ]
    exact = Bar(
        "unfuse gives back what was drawn (1: exactly)", ("fused", "round_trip"), at_least=1
    )
    return Scenario(
        "loops:predictive",
        f"{draws} draws of the prior and of the posterior predictive, N={n}, q=3",
        (
            predictive("fused", "loops.fused", model="loop", n=n),
            predictive("off", "models.loop", plugin=False, n=n),
        ),
        (*bars, exact),
        warm=1,
    )


def variants(n: int, q: int = 3) -> Iterator[Variant]:
    """All contestants at one size."""
    size = {"n": n, "q": q}
    yield model("on", "models.loop", **size)
    yield model("by hand, off", "models.loop_by_hand", False, **size)
    if n <= UNREWRITTEN_UP_TO:
        yield model("off", "models.loop", False, **size)
    if n in WITH_OTHERS:
        yield model("reference graph", "models.loop", skip="lower", once=True, **size)
        yield model("on, JAX", "models.loop", mode="JAX", once=True, **size)
        yield model("by hand, JAX, off", "models.loop_by_hand", False, "JAX", once=True, **size)
        described = {"model": "loops.numpyro_loop", "arguments": size}
        yield Variant("NumPyro", "NumPyroModel", described, once=True)


def loop_bars(n: int) -> tuple[Bar, ...]:
    """The bars of the loop at one size."""
    shorter = Bar(
        "time to the first gradient of 'on' shorter than that of 'by hand, off', cold",
        ("on", "cold_compile"),
        ("by hand, off", "cold_compile"),
        at_most=1,
    )
    _, warm = per_build(0.6)
    if n == 1000:
        return warm, shorter
    if n == 5000:
        return warm, shorter, faster(60, than="by hand, off")
    return ()


def scenarios(pick) -> Iterator[Scenario]:
    """The loop at all sizes, then the rest."""
    for n in pick((10, 30, 100, 300, 1000, 2000, 5000), short=(10, 100, 1000), tiny=(3,)):
        yield Scenario(
            f"loops:thread_{n}",
            f"one MvNormal per vector, N={n}, q=3",
            tuple(variants(n)),
            loop_bars(n),
            reference="by hand, off",
            facts={"N": n},
        )
    n = pick(1000, short=100, tiny=3)
    yield Scenario(
        "loops:latent",
        f"the same with latent vectors, observed with noise, N={n}",
        (
            model("on", "models.latent_loop", n=n),
            model("by hand, off", "models.latent_loop_by_hand", False, n=n),
        ),
        per_build(1)[1:],
        reference="by hand, off",
    )

    n = pick(300, short=30, tiny=3)
    yield from of_fused(n)
    yield from of_advi(n, bearable=pick(60, short=10, tiny=2))
    yield of_predictive(n, draws=pick(500, short=100, tiny=3))

    for name in ("eight_schools", "logistic"):
        yield Scenario(
            f"loops:{name}",
            "nothing for the plugin to do",
            on_and_off(f"models.{name}"),
            (
                Bar(
                    "time to the first gradient at most 1.02 times that without the plugin, warm",
                    ("on", "compile"),
                    ("off", "compile"),
                    at_most=1.02,
                ),
            ),
            reference="off",
            warm=pick(15, short=3),
        )
    yield Scenario(
        "loops:import",
        "importing PyMC, then the plugin",
        (Variant("imports", "Imports", {}, timed=False),),
        (Bar("the import adds less than 0.3 s", ("imports", "plugin"), at_most=0.3),),
        warm=pick(10, short=3),
    )
    n, draws = pick((1000, 200), short=(30, 50), tiny=(3, 10))
    for sampler in ("nutpie", "pymc"):
        described = {
            "model": "models.loop",
            "arguments": {"n": n},
            "sampler": sampler,
            "draws": draws,
        }
        yield Scenario(
            f"loops:sample_{sampler}",
            f"pm.sample with {sampler}, 2 chains of {draws} draws, compilation included, N={n}",
            (Variant("on", "Sampling", described, timed=False, once=True),),
            (Bar("it finishes: draws", ("on", "draws"), at_least=1),),
        )
