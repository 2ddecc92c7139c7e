"""What is measured: scenarios, each a model in several variants, and the bars that it has to reach.

`pick` of the functions that yield scenarios chooses a size: ``pick(100, short=20, tiny=3)`` is 100
in a full run, 20 in a short one, and 3 in the tests.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch

#: The scenarios of a short run
SHORT = (
    "oplevel:cov_5000_3",
    "oplevel:cov_1000_10",
    "loops:10",
    "loops:1000",
    "groups:forum_answer",
    "groups:gathered",
    "structures:kronecker",
    "structures:low_rank",
)


@dataclass(frozen=True)
class Variant:
    """One contestant of a scenario.

    Attributes
    ----------
    label : str
        Its name in the tables.
    contestant : str
        A class of :mod:`benchmarks.contestants`.
    arguments : dict
        Arguments of the class.
    timed : bool
        False where there is nothing to evaluate in rounds, or no wish to.
    warm : int
        Runs after the first one, with the compiled code that the first has left.
    cache : str
        Name of the cache of compiled code, if it is not the variant's own.
    """

    label: str
    contestant: str
    arguments: dict
    timed: bool = True
    warm: int = 1
    cache: str = ""


@dataclass(frozen=True)
class Bar:
    """What a scenario has to reach: `over` / `under`, or `over` alone, at least or at most so much.

    Both are pairs (label of the variant, name of the quantity). The label ``"*"`` stands for the
    variant that has the largest number.
    """

    over: tuple[str, str]
    under: tuple[str, str] | None = None
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, measured: float) -> bool:
        """Whether `measured` reaches the bar."""
        if self.at_least is not None:
            return measured >= self.at_least
        return self.at_most is not None and measured <= self.at_most


@dataclass(frozen=True)
class Scenario:
    """Variants that are measured together.

    Attributes
    ----------
    name : str
        ``"module:name"``.
    title : str
        The model in words, with its sizes.
    variants : tuple of Variant
    bars : tuple of Bar
    reference : str
        Label of the variant whose log-density and gradient the others must have; "" for none.
    memory : bool
        Whether to measure the memory that an evaluation needs.
    alone : bool
        Whether to run it when nothing else runs, by the clock on the wall.
    facts : dict
        Sizes, for the plots.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    bars: tuple[Bar, ...] = ()
    reference: str = ""
    memory: bool = False
    alone: bool = False
    facts: dict = field(default_factory=dict)


def agreement(scenario: Scenario, tolerance: float = 1e-9) -> tuple[Bar, ...]:
    """The bars on log-density and gradient that every scenario with a reference has."""
    quantities = ("logp_difference", "gradient_difference") if scenario.reference else ()
    return tuple(Bar(("*", quantity), at_most=tolerance) for quantity in quantities)


def model(label: str, function: str, plugin: bool = True, warm: int = 1, **arguments) -> Variant:
    """A PyMC model, ``"module.function"`` of this package, as a variant."""
    described = {"model": function, "arguments": arguments, "plugin": plugin}
    return Variant(label, "PyMCModel", described, warm=warm)


def on_and_off(function: str, **arguments) -> tuple[Variant, Variant]:
    """The variants "on" and "off" of one model: with the plugin, and without its import."""
    return model("on", function, **arguments), model("off", function, False, **arguments)


def faster(times: float, label: str = "on", than: str = "off", by: str = "evaluate") -> Bar:
    """Evaluations that are at least so many times as fast."""
    return Bar((than, by), (label, by), at_least=times)


def first(factor: float, label: str = "on", than: str = "off") -> tuple[Bar, ...]:
    """Times to the first gradient, with an empty cache of compiled code and with a warm one."""
    quantities = ("cold_compile", "compile")
    return tuple(Bar((label, name), (than, name), at_most=factor) for name in quantities)


def per_build(factor: float, label: str = "on") -> Bar:
    """Time to the first gradient against the time that PyMC takes to build the model, warm."""
    return Bar((label, "compile"), (label, "build"), at_most=factor)


def compared(name: str, title: str, function: str, sizes: dict, *bars: Bar, **options) -> Scenario:
    """A model with the plugin and without; the sizes are filled into the title."""
    variants = on_and_off(function, **sizes)
    return Scenario(name, title.format(**sizes), variants, bars, reference="off", **options)


def of_densities(pick) -> Iterator[Scenario]:
    """The bare density against other systems and the limit."""
    # (N, n) -> at least so many times as fast as by hand, at most so many times the limit
    bars = {
        (5000, 3): (120, 1.6),
        (100_000, 3): (120, 1.6),
        (1000, 10): (40, 1.5),
        (200, 30): (15, 1.5),
        (10, 100): (2, None),
        (1, 1000): (2, None),
    }
    for_plots = [(100, 3), (1000, 3), (20_000, 3), *((1000, n) for n in (2, 4, 8, 16, 30))]
    sizes = pick([*bars, *for_plots], short=[(5000, 3), (1000, 10)], tiny=[(9, 3)])
    for count, n, param in [*((*size, "cov") for size in sizes), (*sizes[0], "chol")]:
        size = {"count": count, "n": n, "param": param}

        def variant(label: str, contestant: str, size=size, **arguments) -> Variant:
            # one cache for all sizes: it is the evaluation that matters here
            return Variant(label, contestant, size | arguments, warm=0, cache=f"oplevel-{label}")

        variants = [
            variant("plugin", "PyTensorDensity", plugin=True),
            variant("by hand", "PyTensorDensity"),
            variant("plugin, JAX", "PyTensorDensity", plugin=True, mode="JAX"),
            variant("NumPyro", "NumPyroDensity"),
        ]
        times, of_limit = bars.get((count, n), (None, None)) if param == "cov" else (None, None)
        reach = [faster(times, "plugin", "by hand")] if times else []
        # the limit is about many small matrices
        if n <= 64:
            variants.append(variant("limit", "LimitDensity"))
            if of_limit:
                reach.append(Bar(("plugin", "evaluate"), ("limit", "evaluate"), at_most=of_limit))
        yield Scenario(
            f"oplevel:{param}_{count}_{n}",
            f"{count} vectors of length {n}, {'covariance' if param == 'cov' else 'factor'} given",
            tuple(variants),
            tuple(reach),
            reference="by hand",
            facts={"N": count, "n": n, "param": param},
        )
    size = pick({"count": 20_000, "n": 10}, tiny={"count": 9, "n": 3}) | {"param": "cov"}
    yield Scenario(
        "oplevel:threads",
        "{count} vectors of length {n}, by one thread and by two".format(**size),
        tuple(
            Variant(name, "PyTensorDensity", {**size, "plugin": True, "threads": k}, warm=0)
            for k, name in enumerate(("1 thread", "2 threads"), start=1)
        ),
        (faster(1.3, "2 threads", "1 thread"),),
        reference="1 thread",
        alone=True,
    )


def of_loops(pick) -> Iterator[Scenario]:
    """The loop of the forum thread, as it is and fused, by ADVI and by predictive draws."""
    for n in pick((10, 30, 100, 300, 1000, 2000, 5000), short=(10, 1000), tiny=(3,)):
        # by hand it is compiled for the same time whatever the size
        large = (per_build(0.6), first(1, than="by hand, off")[0])
        bars = {1000: large, 5000: (*large, faster(60, than="by hand, off"))}
        without = [model("off", "models.loop", False, n=n)] if n <= 30 else []
        yield Scenario(
            f"loops:{n}",
            f"one MvNormal per vector, N={n}, q=3",
            (
                model("on", "models.loop", n=n),
                model("by hand, off", "models.loop_by_hand", False, n=n),
                *without,
            ),
            bars.get(n, ()),
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
        (per_build(1),),
        reference="by hand, off",
    )

    yield Scenario(
        "loops:import",
        "the import of this package, after that of PyMC",
        (Variant("import", "Importing", {"plugin": False}, timed=False, warm=pick(10, tiny=1)),),
        (Bar(("import", "import"), at_most=0.3),),
    )

    n, warm = pick((300, 5), short=(30, 1), tiny=(3, 1))
    for name in ("loop", "latent_loop"):
        yield Scenario(
            f"loops:fused_{name}",
            f"fuse_model of the model '{name}', N={n}, q=3",
            (
                model("fused", "models.fused", warm=warm, model=name, n=n),
                model("by hand", f"models.{name}_by_hand", warm=warm, n=n),
                model("by hand, off", f"models.{name}_by_hand", False, 0, n=n),
            ),
            first(1.1, "fused", "by hand"),
            reference="by hand, off",
        )

    def other(contestant, label, function, plugin=True, warm=1, **arguments) -> Variant:
        draws = {"draws": arguments.pop("draws")} if "draws" in arguments else {}
        described = {"model": f"models.{function}", "arguments": arguments, "plugin": plugin}
        return Variant(label, contestant, described | draws, timed=not draws, warm=warm)

    yield Scenario(
        "loops:advi",
        f"ADVI, first step and steps, N={n}, q=3",
        (
            other("Fitting", "on", "loop", n=n),
            other("Fitting", "by hand", "loop_by_hand", n=n),
            other("Fitting", "by hand, off", "loop_by_hand", False, n=n),
        ),
        (*first(1.5, "on", "by hand"), *first(1.5, "on", "by hand, off")),
    )
    for name, finished in (
        ("loops:advi_off", pick(30, tiny=2)),
        ("long:advi_off", pick(200, tiny=2)),
    ):
        yield Scenario(
            name,
            f"ADVI where the loop without the plugin compiles, N={finished}, q=3",
            (
                other("Fitting", "on", "loop", n=finished),
                other("Fitting", "off", "loop", False, 0, n=finished),
            ),
            (faster(5),) if name.startswith("long") else (),
        )
    draws = pick(500, short=100, tiny=3)
    yield Scenario(
        "loops:predictive",
        f"{draws} draws of the prior and of the posterior predictive, N={n}, q=3",
        (
            other("Predictive", "fused", "fused", model="loop", n=n, draws=draws),
            other("Predictive", "off", "loop", False, n=n, draws=draws),
        ),
        tuple(
            Bar(("off", prefix + quantity), ("fused", prefix + quantity), at_least=20)
            for quantity in ("prior", "posterior", "draws")
            for prefix in ("cold_", "")
        ),
    )


def of_groups(pick) -> Iterator[Scenario]:
    """Models with a covariance for each group of rows, and models with next to nothing to gain."""
    rows = {"rows": pick(1000, tiny=9)}
    yield compared(
        "groups:forum_answer",
        "an LKJCholeskyCov and an MvNormal for each of 2 groups, {rows} rows each, n=2",
        "models.forum_answer",
        rows,
        *(faster(20), faster(20, by="inside"), *first(1)),
    )
    yield compared(
        "groups:forum_question",
        "one factor, mean per group by an index, 2 groups of {rows} rows, n=2",
        "models.forum_question",
        rows,
    )
    few, many = pick((10_000, 1_000_000), tiny=(9, 18))
    yield compared(
        "groups:one_factor",
        "MvNormal('obs', mu, chol=chol, observed=data), {rows} rows, n=2",
        "models.one_factor",
        {"rows": few},
        *(faster(40), faster(40, by="inside")),
    )
    yield Scenario(
        "groups:one_factor_rows",
        f"the same with {few} and with {many} rows",
        (
            model("few", "models.one_factor", warm=0, rows=few),
            model("many", "models.one_factor", warm=0, rows=many),
        ),
        (Bar(("many", "evaluate"), ("few", "evaluate"), at_most=1.2),),
    )
    yield compared(
        "groups:ragged",
        "{groups} groups of different sizes in a loop, {rows} rows, n={n}",
        "models.lkj_loop",
        pick({"groups": 20, "rows": 100_000, "n": 5}, tiny={"groups": 3, "rows": 20, "n": 3})
        | {"ragged": True},
        *(faster(200), faster(200, by="inside"), *first(1)),
    )
    sizes = pick({"groups": 20, "rows": 2000, "n": 3}, tiny={"groups": 3, "rows": 9, "n": 3})
    title = "chols[idx]: {rows} rows, {groups} groups, n={n}"
    yield compared(
        "groups:gathered",
        title,
        "models.gathered_factors",
        sizes,
        *(faster(30), faster(30, by="inside")),
    )
    yield compared(
        "groups:gathered_data",
        title + ", idx in pm.Data",
        "models.gathered_factors",
        sizes | {"changing": True},
    )
    yield compared(
        "groups:hierarchical_var",
        "hierarchical VAR(2) of {countries} countries, 3 equations, about {rows} rows each",
        "models.hierarchical_var",
        pick({"countries": 8, "rows": 40}, tiny={"countries": 2, "rows": 5}),
        *(*first(1 / 5), faster(3), faster(3, by="inside")),
    )
    sizes = pick(
        {"groups": 100, "rows": 2000, "n": 3},
        short={"groups": 30, "rows": 600, "n": 3},
        tiny={"groups": 3, "rows": 9, "n": 3},
    )
    on = model("on", "models.lkj_loop", **sizes)
    numbers = Variant("unrewritten", "UnrewrittenModel", on.arguments | {"plugin": False}, False, 0)
    yield Scenario(
        "groups:lkj_100",
        "{groups} groups in a loop, LKJ and all, {rows} rows, n={n}".format(**sizes),
        (on, numbers),
        (per_build(6),),
        reference="unrewritten",
    )
    for name, title, sizes in (
        (
            "lkj_effects",
            "{effects} crossed effects with LKJ priors, non-centred, {groups} groups, no MvNormal",
            {"effects": 3, "groups": 10, "rows": 100},
        ),
        ("latent_gp", "a latent Gaussian process of {points} points", {"points": 10}),
        ("one_mvnormal", "{rows} rows under one LKJ prior", {"rows": 8}),
    ):
        bars = (faster(1), faster(1, by="inside"), *first(1))
        yield compared(f"small:{name}", title, f"models.{name}", sizes, *bars)


def of_structures(pick) -> Iterator[Scenario]:
    """Covariances with a structure; none may compile for longer than the dense model."""

    def structure(name, title, sizes, *bars, function=None, memory=False, **arguments) -> Scenario:
        function = f"structures.{function or name}"
        if memory:
            n = sizes.get("n") or sizes["rows"] * sizes["columns"]
            # half a dense covariance, in bytes
            bars = (*bars, Bar(("on", "memory"), at_most=8 * n * n / 2))
        return compared(
            f"structures:{name}",
            title.format(**sizes),
            function,
            sizes | arguments,
            *bars,
            *first(1),
            memory=memory,
        )

    sizes = pick({"blocks": 200, "size": 5}, tiny={"blocks": 4, "size": 3})
    yield Scenario(
        "structures:block_diagonal",
        "block_diag(*blocks), {blocks} blocks of {size} x {size}".format(**sizes),
        (
            model("on", "structures.block_diagonal", **sizes),
            model("as a batch, on", "structures.block_diagonal", warm=0, form="batch", **sizes),
            model("off", "structures.block_diagonal", False, form="dense", **sizes),
        ),
        (
            faster(200),
            Bar(("on", "evaluate"), ("as a batch, on", "evaluate"), at_most=1.2),
            *first(1),
        ),
        reference="off",
    )
    sizes = pick({"blocks": 20, "size": 3}, tiny={"blocks": 3, "size": 2})
    yield structure(
        "indicator_krons",
        "sum of {blocks} krons of an indicator and a {size} x {size} block",
        sizes,
    )
    grid = pick({"rows": 40, "columns": 50}, tiny={"rows": 3, "columns": 4})
    size = "{rows} x {columns}"
    kron = f"kron(A, B), {size}"
    dense = {"function": "kronecker", "form": "dense", "memory": True}
    yield structure("kronecker", kron, grid, faster(300), **dense)
    yield structure(
        "kronecker_noise", kron + ", + sigma**2 * eye(n)", grid, faster(100), noise=True, **dense
    )
    yield structure(
        "kronecker_sum", f"kron(A, B) + kron(C, D), {size}", grid, faster(10), memory=True
    )
    normal = {"function": "kronecker", "form": "KroneckerNormal"}
    yield structure("kronecker_normal", f"pm.KroneckerNormal, {size}", grid, faster(3), **normal)
    yield Scenario(
        "structures:kronecker_normal_noise",
        f"the same with noise, {size}".format(**grid),
        (
            *on_and_off("structures.kronecker", form="KroneckerNormal", noise=True, **grid),
            model("dense, off", "structures.kronecker", False, form="dense", noise=True, **grid),
        ),
        (faster(1), *first(1, than="dense, off")),
        # PyMC's gradient is wrong
        reference="dense, off",
    )
    yield structure("matrix_normal", f"pm.MatrixNormal, {size}", grid, faster(1))
    grids = pick(
        {"groups": 10, "rows": 8, "columns": 8}, tiny={"groups": 2, "rows": 2, "columns": 2}
    )
    yield structure(
        "grids",
        "a loop of {groups} groups of 2 to 5 rows, a kron(A, B) of {rows} x {columns} for each",
        grids,
        faster(3),
    )
    yield structure(
        "side_by_side",
        f"kron(A, B), {size}, beside W @ W.T + s * eye(n) of rank {{rank}}",
        pick({"rows": 20, "columns": 20, "rank": 3}, tiny={"rows": 2, "columns": 3, "rank": 1}),
        faster(10),
    )
    yield structure(
        "low_rank",
        "W @ W.T + diag(d), rank {rank}, n={n}",
        pick({"n": 2000, "rank": 5}, tiny={"n": 6, "rank": 2}),
        faster(200),
        memory=True,
    )
    for name, title, n, times in (
        ("diagonal", "diag(exp(log_diag)), n={n}", pick(2000, tiny=4), 1000),
        ("matrix_exponential", "expm((A + A.T) / 2), n={n}", pick(100, tiny=4), 2),
        ("kinship", "a * K + b * eye(n), K constant, n={n}", pick(200, tiny=10), 20),
        (
            "ornstein_uhlenbeck",
            "s * exp(-abs(t[:, None] - t) / l), n={n}",
            pick(2000, tiny=5),
            500,
        ),
    ):
        memory = name in ("diagonal", "ornstein_uhlenbeck")
        yield structure(name, title, {"n": n}, faster(times), memory=memory)
    yield structure(
        "lkj_correlation",
        "corr of LKJCholeskyCov, and scaled, {rows} rows, n={n}",
        pick({"rows": 200, "n": 4}, tiny={"rows": 5, "n": 2}),
        faster(4),
    )
    n = pick(100_000, tiny=5)
    yield Scenario(
        "structures:ornstein_uhlenbeck_long",
        f"the same process, t in pm.Data, n={n}",
        (model("on", "structures.ornstein_uhlenbeck", n=n, data=True),),
        (Bar(("on", "evaluate"), at_most=0.02),),
    )


def all_scenarios(size: str, patterns=("*",)) -> Iterator[Scenario]:
    """Every scenario of that size whose name matches one of the shell-style patterns.

    Those called ``"long:..."``, an hour and more for each, have to be asked for by a pattern that
    starts so.
    """

    def pick(full, short=None, tiny=None):
        chosen = {"full": full, "short": short, "tiny": tiny}[size]
        return full if chosen is None else chosen

    # what takes long first: two run at the same time
    for scenarios in (of_loops, of_groups, of_structures, of_densities):
        for scenario in scenarios(pick):
            is_long = scenario.name.startswith("long:")
            if any(
                fnmatch(scenario.name, pattern)
                for pattern in patterns
                if pattern.startswith("long") or not is_long
            ):
                yield scenario
