"""Reports: tables on the screen, in Markdown and in CSV, with the machine that they come from."""

import csv
import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

PACKAGES = ("pymc", "pytensor", "numba", "numpy", "scipy", "jax", "numpyro", "nutpie")


def machine() -> dict:
    """Processor, cores, versions and date."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def installed(package: str) -> str:
    """Version of a distribution, "" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def headline(here: dict) -> str:
    """Machine, versions and date in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    return (
        f"{here['processor']}, {here['cores']} cores; Python {here['python']}, {versions}; "
        f"{here['date']}"
    )


def explanation(report: dict) -> str:
    """What the columns mean."""
    return EXPLANATION + (
        " Evaluations are timed by the CPU time of their process." * (report["clock"] == "cpu")
    )


EXPLANATION = (
    "First gradient: model.logp_dlogp_function(ravel_inputs=True) and its first call, in a fresh "
    "process, with an empty cache of compiled code (cold, one run) or with that of an earlier "
    "process (warm, median). Evaluate: one log-density with its gradient, one thread, median of "
    "interleaved rounds. From compiled code: the same, called by a compiled loop as nutpie does, "
    "without the microseconds that a call from Python takes. Ratios of one run are worth more than "
    "times: all variants of a scenario take turns on the same machine."
)


def seconds(value: float) -> str:
    """Three digits and a unit."""
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def megabytes(value: float) -> str:
    """In units of 10^6 bytes."""
    return f"{value / 1e6:.3g} MB"


#: Quantity -> (heading, how to write it); a table shows those that at least one of its rows has
COLUMNS = {
    "build": ("build the model", seconds),
    "cold_compile": ("first gradient, cold", seconds),
    "compile": ("first gradient, warm", seconds),
    "logp": ("of which model.logp()", seconds),
    "evaluate": ("evaluate", seconds),
    "inside": ("from compiled code", seconds),
    "speedup": ("faster than the reference", "{:.3g}x".format),
    "of_limit": ("time / limit", "{:.3g}".format),
    "memory": ("memory of an evaluation", megabytes),
    "logp_difference": ("difference: logp", "{:.0e}".format),
    "gradient_difference": ("gradient", "{:.0e}".format),
    "pymc": ("import pymc", seconds),
    "plugin": ("then the plugin", seconds),
    "sampling": ("sample", seconds),
    "draws": ("draws", "{:.0f}".format),
    "divergences": ("divergences", "{:.0f}".format),
    "cold_prior": ("prior predictive, cold", seconds),
    "prior": ("prior predictive, warm", seconds),
    "cold_posterior": ("posterior predictive, cold", seconds),
    "posterior": ("posterior predictive, warm", seconds),
}


def modules(report: dict) -> dict[str, list[dict]]:
    """The scenarios by the first half of their names."""
    found: dict[str, list[dict]] = {}
    for scenario in report["scenarios"]:
        found.setdefault(scenario["name"].split(":")[0], []).append(scenario)
    return found


def results_table(scenarios: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of text: one row for each variant of each scenario."""
    rows = [row for scenario in scenarios for row in scenario["rows"]]
    columns = {name: column for name, column in COLUMNS.items() if any(name in row for row in rows)}
    lines = []
    for scenario in scenarios:
        name = scenario["name"].split(":")[1]
        for row in scenario["rows"]:
            cells = [write(row[key]) if key in row else "" for key, (_, write) in columns.items()]
            failed = " (failed)" if "error" in row else ""
            lines.append([name, row["variant"] + failed, *cells])
            name = ""
    return ["scenario", "variant", *(heading for heading, _ in columns.values())], lines


def legend(scenarios: list[dict]) -> list[str]:
    """What the names of the scenarios stand for."""
    return [
        f"{scenario['name'].split(':')[1]}: {scenario['title']}"
        + (f"; the reference is '{scenario['reference']}'" if scenario["reference"] else "")
        for scenario in scenarios
    ]


def bars_table(scenarios: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of text: one row for each bar."""
    lines = []
    for scenario in scenarios:
        for bar in scenario["bars"]:
            measured, holds = bar["measured"], {True: "yes", False: "NO", None: "not measured"}
            number = "" if measured is None else f"{measured:.3g}" + "x" * bar["is_ratio"]
            name = scenario["name"].split(":")[1]
            lines.append([name, bar["asks"], number, holds[bar["holds"]]])
    return ["scenario", "bar", "measured", "met"], lines


def show(console: Console, report: dict) -> None:
    """Show the tables."""
    for module, scenarios in modules(report).items():
        for title, (headings, rows) in {
            module: results_table(scenarios),
            f"{module}: bars": bars_table(scenarios),
        }.items():
            if rows:
                table = Table(*headings, title=title, title_justify="left")
                for row in rows:
                    table.add_row(*row, style="red" if row[-1] == "NO" else None)
                console.print(table)
        for line in legend(scenarios):
            console.print(line, highlight=False, markup=False)
        console.print()
    console.print(headline(report["machine"]), highlight=False)
    console.print(explanation(report), highlight=False)
    for scenario in report["scenarios"]:
        for row in scenario["rows"]:
            if "error" in row:
                console.print(
                    f"{scenario['name']}, {row['variant']}: {row['error']}",
                    style="red",
                    markup=False,
                )


def markdown(report: dict) -> str:
    """Write the report as Markdown."""
    lines = [headline(report["machine"]), "", explanation(report), ""]
    for module, scenarios in modules(report).items():
        lines += [f"## {module}", "", *(f"- {line}" for line in legend(scenarios)), ""]
        for table in (results_table(scenarios), bars_table(scenarios)):
            lines += [*markdown_table(*table), ""]
    return "\n".join(lines)


def markdown_table(headings: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of one table."""
    return [
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(headings),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def write(report: dict, stem: Path) -> None:
    """Write the report as JSON, Markdown and CSV."""
    stem.parent.mkdir(exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    rows = [
        {"scenario": scenario["name"]} | row
        for scenario in report["scenarios"]
        for row in scenario["rows"]
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)
