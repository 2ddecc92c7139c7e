"""What a scenario is: variants of one model, the numbers they must agree on, and bars.

A module of scenarios has a function ``scenarios(pick)`` that yields them. `pick` chooses the size:
``pick(100, short=20, tiny=3)`` is 100 in a full run, 20 in a short one, and 3 in the tests.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import import_module

#: Modules of this package that have scenarios, in the order in which they run
MODULES = ("oplevel", "loops", "groups", "structures", "small")

#: The scenarios of a short run
SHORT = (
    "oplevel:cov_5000_3",
    "oplevel:cov_1000_10",
    "loops:thread_10",
    "loops:thread_100",
    "loops:import",
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
    once : bool
        One run, whatever the number of warm runs of the others.
    cache : str
        Name of the cache of compiled code, if it is not the variant's own.
    """

    label: str
    contestant: str
    arguments: dict
    timed: bool = True
    once: bool = False
    cache: str = ""


@dataclass(frozen=True)
class Bar:
    """What a scenario has to reach.

    ``over`` and ``under`` are pairs (label of the variant, name of the quantity). What is measured
    is their ratio, or `over` itself where `under` is None. The label ``"*"`` stands for the variant
    that has the largest number.
    """

    asks: str
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
    warm : int, optional
        Number of warm runs, if it is not that of the command line.
    memory : bool
        Whether to measure the memory that an evaluation needs.
    clock : {"", "wall", "cpu"}
        What evaluations are timed by, if it is not for the command line to say.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    bars: tuple[Bar, ...] = ()
    reference: str = ""
    warm: int | None = None
    memory: bool = False
    clock: str = ""
    facts: dict = field(default_factory=dict)


def model(
    label: str,
    function: str,
    plugin: bool = True,
    mode: str | None = None,
    skip: str = "",
    once: bool = False,
    **arguments,
) -> Variant:
    """A PyMC model, ``"module.function"`` of this package, as a variant."""
    described = {
        "model": function,
        "arguments": arguments,
        "plugin": plugin,
        "mode": mode,
        "skip": skip,
    }
    return Variant(label, "PyMCModel", described, once=once)


def on_and_off(function: str, **arguments) -> tuple[Variant, Variant]:
    """The variants "on" and "off" of one model: with the plugin and without its import."""
    return (
        model("on", function, True, **arguments),
        model("off", function, False, **arguments),
    )


def unrewritten(function: str, **arguments) -> Variant:
    """The variant "unrewritten": the numbers of a model that takes too long to compile."""
    described = {"model": function, "arguments": arguments, "plugin": False}
    return Variant("unrewritten", "UnrewrittenModel", described, timed=False, once=True)


def faster(times: float, label: str = "on", than: str = "off", *, inside: bool = False) -> Bar:
    """Evaluations that are at least so many times faster; `inside`: called from compiled code."""
    quantity = "inside" if inside else "evaluate"
    return Bar(
        f"evaluation of '{label}'{' from compiled code' * inside} at least {times:g} times faster "
        f"than of '{than}'",
        (than, quantity),
        (label, quantity),
        at_least=times,
    )


def faster_both(times: float) -> tuple[Bar, Bar]:
    """The bar for evaluations from Python, and for those from compiled code."""
    return faster(times), faster(times, inside=True)


def first_gradient(factor: float, label: str = "on", than: str = "off") -> tuple[Bar, Bar]:
    """Times to the first gradient, with a cold and with a warm cache of compiled code."""
    cold, warm = (
        Bar(
            f"time to the first gradient of '{label}' at most {factor:g} times that of '{than}', "
            + name,
            (label, quantity),
            (than, quantity),
            at_most=factor,
        )
        for name, quantity in (("cold", "cold_compile"), ("warm", "compile"))
    )
    return cold, warm


def per_build(factor: float, label: str = "on") -> tuple[Bar, Bar]:
    """Time to the first gradient against the time that PyMC takes to build the model."""
    cold, warm = (
        Bar(
            f"time to the first gradient of '{label}' at most {factor:g} times that to build the "
            f"model, {name}",
            (label, quantity),
            (label, "build"),
            at_most=factor,
        )
        for name, quantity in (("cold", "cold_compile"), ("warm", "compile"))
    )
    return cold, warm


def agreement(scenario: Scenario, tolerance: float = 1e-9) -> tuple[Bar, ...]:
    """The bars on log-density and gradient that every scenario with a reference has."""
    if not scenario.reference:
        return ()
    logp, gradient = (
        Bar(
            f"relative difference of the {quantity} from '{scenario.reference}' at most "
            f"{tolerance:g}",
            ("*", f"{quantity}_difference"),
            at_most=tolerance,
        )
        for quantity in ("logp", "gradient")
    )
    return logp, gradient


def all_scenarios(size: str, patterns=("*",)) -> Iterator[Scenario]:
    """Every scenario of that size whose name matches one of the shell-style patterns."""

    def pick(full, short=None, tiny=None):
        chosen = {"full": full, "short": short, "tiny": tiny}[size]
        return full if chosen is None else chosen

    for module in MODULES:
        for scenario in import_module(f"benchmarks.{module}").scenarios(pick):
            if any(fnmatch(scenario.name, pattern) for pattern in patterns):
                yield scenario
