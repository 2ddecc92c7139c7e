"""Results: their file, which pyperf reads as well, and tables of them.

``python -m pyperf compare_to OLD.json NEW.json`` says what has changed between two runs, and
``python -m pyperf stats`` what one consists of.
"""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import pyperf
from rich.console import Console
from rich.table import Table

from benchmarks.runner import Outcome, Outcomes, measured, ratio
from benchmarks.scenarios import Bar, Scenario, agreement, all_scenarios

PACKAGES = ("pymc", "pytensor", "numba", "numpy", "scipy", "jax", "numpyro")


def machine() -> dict[str, str]:
    """Processor, cores, versions and date."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    versions = [f"{name} {found}" for name in PACKAGES if (found := installed(name))]
    return {
        "processor": f"{processor}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def installed(package: str) -> str:
    """Version of a distribution, "" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@dataclass
class Report:
    """What was measured: the machine, the size of the run, and the outcomes of each scenario."""

    machine: dict[str, str]
    size: str
    outcomes: dict[str, Outcomes]

    @property
    def scenarios(self) -> list[Scenario]:
        """Those that were run."""
        known = all_scenarios(self.size, ["*", "long:*"])
        return [scenario for scenario in known if scenario.name in self.outcomes]

    @property
    def headline(self) -> str:
        """Machine, versions and date in one line."""
        return "; ".join(self.machine[key] for key in ("processor", "versions", "date"))

    def save(self, file: Path) -> None:
        """Write a suite of pyperf: one benchmark for each quantity of each variant."""
        benchmarks = []
        for scenario, outcomes in self.outcomes.items():
            for label, outcome in outcomes.items():
                facts = {f"fact {name}": value for name, value in outcome.facts.items()}
                for quantity, times in outcome.times.items():
                    known = {"name": f"{scenario} | {label} | {quantity}", "unit": "second"}
                    metadata = known | self.machine | {"size": self.size} | facts
                    times = [float(f"{seconds:.6g}") for seconds in times]
                    run = pyperf.Run(times, metadata=metadata, collect_metadata=False)
                    benchmarks.append(pyperf.Benchmark([run]))
        if benchmarks:
            file.parent.mkdir(exist_ok=True)
            pyperf.BenchmarkSuite(benchmarks).dump(str(file), replace=True)

    @classmethod
    def load(cls, file: Path) -> "Report":
        """Read what `save` has written."""
        outcomes: dict[str, Outcomes] = {}
        metadata: dict = {}
        for benchmark in pyperf.BenchmarkSuite.load(str(file)).get_benchmarks():
            metadata = benchmark.get_metadata()
            scenario, label, quantity = benchmark.get_name().split(" | ")
            outcome = outcomes.setdefault(scenario, {}).setdefault(label, Outcome())
            outcome.times[quantity] = list(benchmark.get_values())
            outcome.facts |= {
                name.removeprefix("fact "): value
                for name, value in metadata.items()
                if name.startswith("fact ")
            }
        here = {key: metadata[key] for key in ("processor", "versions", "date")}
        return cls(here, metadata["size"], outcomes)


def seconds(value: float) -> str:
    """Three digits and a unit."""
    if value >= 600:
        return f"{value / 60:.3g} min"
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        # what rounds to 1000 is one of the next unit
        if float(f"{value * factor:.3g}") >= 1 or unit == "µs":
            return f"{value * factor:.3g} {unit}"
    raise AssertionError


#: Quantity -> (what it is, how to write it); a table shows those that at least one of its rows has
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "import": ("import", seconds),
    "build": ("build the model", seconds),
    "cold_compile": ("first gradient, cold", seconds),
    "compile": ("first gradient, warm", seconds),
    "logp": ("of which model.logp()", seconds),
    "evaluate": ("evaluation", seconds),
    "inside": ("from compiled code", seconds),
    "memory": ("memory of an evaluation", lambda size: f"{size / 1e6:.3g} MB"),
    "logp_difference": ("difference: logp", "{:.0e}".format),
    "gradient_difference": ("difference: gradient", "{:.0e}".format),
    **{
        prefix + name: (f"{title}, {kind}", seconds)
        for name, title in (
            ("prior", "prior predictive"),
            ("posterior", "posterior predictive"),
            ("draws", "prior and posterior predictive"),
        )
        for prefix, kind in (("cold_", "cold"), ("", "warm"))
    },
}

#: Headings and lines of text
Cells = tuple[list[str], list[list[str]]]


def cell(outcome: Outcome | None, quantity: str) -> str:
    """The median of a quantity, "" where there is none."""
    numbers = outcome.numbers(quantity) if outcome else []
    return COLUMNS[quantity][1](median(numbers)) if numbers else ""


def table_of(report: Report, scenarios: Sequence[Scenario]) -> Cells:
    """One line for each variant of each scenario, with the ratio to its reference."""
    found = [(scenario, report.outcomes[scenario.name]) for scenario in scenarios]
    columns = [
        name
        for name in COLUMNS
        if any(out.numbers(name) for _, outcomes in found for out in outcomes.values())
    ]
    lines = []
    for scenario, outcomes in found:
        reference = outcomes.get(scenario.reference, Outcome()).numbers("evaluate")
        for label, outcome in outcomes.items():
            times = ratio(reference, outcome.numbers("evaluate"))
            lines.append(
                [
                    scenario.name,
                    label + " (failed)" * bool(outcome.error),
                    *(cell(outcome, name) for name in columns),
                    "" if times is None else f"{times:.3g}",
                ]
            )
    headings = [COLUMNS[name][0] for name in columns]
    return ["scenario", "variant", *headings, "times as fast"], lines


def asked(bar: Bar) -> str:
    """A bar in words."""
    label, quantity = bar.over
    what = COLUMNS[quantity][0]
    limit = f"at least {bar.at_least:g}" if bar.at_least is not None else f"at most {bar.at_most:g}"
    if bar.under is None:
        unit = {"evaluate": " s", "memory": " bytes"}.get(quantity, "")
        return f"{what} {'of ' + repr(label) if label != '*' else ''} {limit}{unit}".replace(
            "  ", " "
        )
    other, denominator = bar.under
    under = (
        f"{COLUMNS[denominator][0]} of {other!r}" if denominator != quantity else f"of {other!r}"
    )
    return f"{what} of {label!r} / {under}: {limit}"


def bars_of(report: Report, scenarios: Sequence[Scenario]) -> Cells:
    """One line for each bar."""
    lines = []
    for scenario in scenarios:
        for bar in (*scenario.bars, *agreement(scenario)):
            number = measured(bar, report.outcomes[scenario.name])
            holds = "not measured" if number is None else "yes" if bar.holds(number) else "NO"
            lines.append(
                [scenario.name, asked(bar), "" if number is None else f"{number:.3g}", holds]
            )
    return ["scenario", "bar", "measured", "met"], lines


def show(console: Console, report: Report) -> None:
    """Show the tables."""
    for module in dict.fromkeys(s.name.partition(":")[0] for s in report.scenarios):
        scenarios = [s for s in report.scenarios if s.name.startswith(f"{module}:")]
        for headings, lines in (table_of(report, scenarios), bars_of(report, scenarios)):
            table = Table(*headings)
            for line in lines:
                table.add_row(*line, style="red" if line[-1] == "NO" else None)
            if lines:
                console.print(table)
        for scenario in scenarios:
            line = f"{scenario.name}: {scenario.title}"
            console.print(line + f" (reference: {scenario.reference})" * bool(scenario.reference))
    console.print(report.headline, highlight=False)
    for name, outcomes in report.outcomes.items():
        for label, outcome in outcomes.items():
            if outcome.error:
                console.print(f"{name}, {label}: {outcome.error}", style="red", markup=False)
