"""Plots of the reports of a machine: ``python -m benchmarks.plots RESULTS.json ... PLOT.svg``."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: The same colour and marker for a contestant in all plots
STYLES = {
    "plugin": ("#0072B2", "o"),
    "by hand": ("#D55E00", "s"),
    "reference graph": ("#999999", "v"),
    "plugin, JAX": ("#56B4E9", "^"),
    "by hand, JAX": ("#E69F00", "<"),
    "NumPyro": ("#CC79A7", "D"),
    "limit": ("#000000", "x"),
    "loop without the plugin": ("#009E73", "P"),
}

#: Names of the variants of the loop -> the names above
LOOP_NAMES = {
    "on": "plugin",
    "on, JAX": "plugin, JAX",
    "by hand, off": "by hand",
    "by hand, JAX, off": "by hand, JAX",
    "off": "loop without the plugin",
}

Lines = dict[str, list[tuple[float, float]]]


def lines(
    report: dict, module: str, x: str, quantity: str, where: Callable[[dict], bool]
) -> tuple[Lines, Lines]:
    """Points (x, quantity) of each contestant, and the same divided by those of the limit.

    Parameters
    ----------
    report : dict
    module : str
        First half of the names of the scenarios.
    x : str
        Name of the fact on the horizontal axis.
    quantity : str
    where : callable
        Which scenarios, by their facts.
    """
    found: Lines = {}
    relative: Lines = {}
    scenarios = [s for s in report["scenarios"] if s["name"].startswith(f"{module}:")]
    scenarios = [s for s in scenarios if x in s["facts"] and where(s["facts"])]
    for scenario in sorted(scenarios, key=lambda s: s["facts"][x]):
        position = scenario["facts"][x]
        limit = next((r.get(quantity) for r in scenario["rows"] if r["variant"] == "limit"), None)
        for row in scenario["rows"]:
            if quantity not in row:
                continue
            name = LOOP_NAMES.get(row["variant"], row["variant"])
            found.setdefault(name, []).append((position, row[quantity]))
            if limit:
                relative.setdefault(name, []).append((position, row[quantity] / limit))
    return found, relative


def draw(axes: Axes, points: Lines, title: str, x: str, y: str) -> None:
    """Draw one line for each contestant, on logarithmic axes."""
    for name, line in points.items():
        colour, marker = STYLES[name]
        axes.loglog(*zip(*line, strict=True), color=colour, marker=marker, ms=4, lw=1.3, label=name)
    if x == "n":
        lengths = sorted({position for line in points.values() for position, _ in line})
        axes.set_xticks(lengths, [f"{length:g}" for length in lengths])
        axes.minorticks_off()
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, which="major", lw=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def figure(report: dict) -> Figure | None:
    """Everything that the report has points for; None if it has none."""

    def density(x, where):
        return lines(report, "oplevel", x, "evaluate", where)

    by_count, count_to_limit = density("N", lambda f: f["param"] == "cov" and f["n"] == 3)
    by_length, length_to_limit = density("n", lambda f: f["param"] == "cov" and f["N"] == 1000)
    loop, _ = lines(report, "loops", "N", "evaluate", lambda f: True)
    compilation, _ = lines(report, "loops", "N", "cold_compile", lambda f: True)
    panels = [
        (by_count, "N Gaussians with n = 3: value and gradients", "N", "seconds"),
        (by_length, "1000 Gaussians: value and gradients", "n", "seconds"),
        (count_to_limit, "n = 3, divided by the C++ limit", "N", "times the limit"),
        (length_to_limit, "N = 1000, divided by the C++ limit", "n", "times the limit"),
        (loop, "PyMC loop of N MvNormals: log-density and gradient", "N", "seconds"),
        (compilation, "The same: time to the first gradient, cold", "N", "seconds"),
    ]
    panels = [panel for panel in panels if any(len(line) > 1 for line in panel[0].values())]
    if not panels:
        return None

    rows = (len(panels) + 1) // 2
    drawing = Figure(figsize=(9.5, 3.1 * rows + 0.7), layout="constrained")
    grid = drawing.subplots(rows, 2, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        draw(axes, *panel)
    for axes in grid[len(panels) :]:
        axes.remove()
    handles = {
        label: handle
        for axes in grid[: len(panels)]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    drawing.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    here = report["machine"]
    drawing.suptitle(
        f"{here['processor']}, one thread, {here['date']}", fontsize=9, x=0.01, ha="left"
    )
    return drawing


def save(report: dict, file: Path) -> bool:
    """Draw the report to an SVG or PNG file; False if there is nothing to draw."""
    drawing = figure(report)
    if drawing is None:
        return False
    # text as text and no random identifiers: small files that differ only where the numbers do
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"}):
        metadata = {"Date": None} if file.suffix == ".svg" else None
        drawing.savefig(file, metadata=metadata, dpi=110)
    return True


def joined(reports: list[dict]) -> dict:
    """One report of all scenarios; ValueError if they were not measured alike."""
    first, *others = reports
    for other in others:
        if other["clock"] != first["clock"]:
            raise ValueError("the reports were measured by different clocks")
        for key in ("processor", "cores", "versions"):
            if other["machine"][key] != first["machine"][key]:
                raise ValueError(f"the reports are of different machines: {key} differ")
    scenarios = [scenario for report in reports for scenario in report["scenarios"]]
    return {**reports[-1], "scenarios": scenarios}


if __name__ == "__main__":
    *results, plot = map(Path, sys.argv[1:])
    if not save(joined([json.loads(f.read_text(encoding="utf-8")) for f in results]), plot):
        raise SystemExit("the reports have no scenarios of different sizes")
