"""Write the figures of a run into the pages: ``python -m benchmarks.publish [FILE ...]``.

Pages say where: between ``<!-- figures: NAME -->`` and ``<!-- end of figures -->`` stands what the
function NAME of this module makes of the run. The run becomes ``benchmarks/published.json``, of
which a test makes the figures again; without FILE that is the run. Several files are taken
together: that of a full run, and those of the scenarios called ``"long:..."``.

Digits, calibration, models without a normal, generated models and the tests of others have results
of their own, which their modules keep.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import COLUMNS, Report, bars_of, cell
from benchmarks.runner import Outcome, ratio
from benchmarks.scenarios import Scenario, all_scenarios

ROOT = Path(__file__).parent.parent
PUBLISHED = Path(__file__).parent / "published.json"
PLOT = Path(__file__).parent / "plot.svg"
DIGITS = Path(__file__).parent / "digits.md"
CALIBRATION = Path(__file__).parent / "calibration.json"
PLAIN = Path(__file__).parent / "plain.json"
GENERATED = Path(__file__).parent / "generated.json"
HOSTS = Path(__file__).parent / "hosts.json"
PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("performance.md", "guarantee.md"))]

#: The same colour and marker for a contestant in all plots
STYLES = {
    "plugin": ("#0072B2", "o"),
    "by hand": ("#D55E00", "s"),
    "plugin, JAX": ("#56B4E9", "^"),
    "NumPyro": ("#CC79A7", "D"),
    "limit": ("#000000", "x"),
}

Points = dict[str, list[tuple[float, float]]]


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    rows = [headings, ["---"] * len(headings), *lines]
    return ["| " + " | ".join(row) + " |" for row in rows]


def pairs(
    report: Report, scenarios: Sequence[Scenario], quantities: Sequence[str], **titles: str
) -> list[str]:
    """A line for each scenario, with its title or another: each quantity without and with it."""
    lines = []
    for scenario in scenarios:
        outcomes = report.outcomes[scenario.name]
        if "on" not in outcomes:
            continue
        off = outcomes.get("off") or outcomes.get("by hand, off")
        texts = [titles.get(scenario.name, scenario.title)]
        for quantity in quantities:
            numbers = [cell(outcome, quantity) for outcome in (off, outcomes["on"])]
            texts.append(", ".join(filter(None, numbers)))
        lines.append(texts)
    return table(["model", *(COLUMNS[quantity][0] for quantity in quantities)], lines)


def matching(report: Report, pattern: str) -> list[Scenario]:
    """Scenarios by a shell-style pattern."""
    return [scenario for scenario in report.scenarios if fnmatch(scenario.name, pattern)]


def variants(report: Report, pattern: str, quantities: Sequence[str]) -> list[str]:
    """A line for each variant of each scenario, which the first of its lines names."""
    lines = [
        ["" if k else scenario.title, label, *(cell(outcome, name) for name in quantities)]
        for scenario in matching(report, pattern)
        for k, (label, outcome) in enumerate(report.outcomes[scenario.name].items())
    ]
    headings = (COLUMNS[quantity][0] for quantity in quantities)
    return table(["model", "variant", *headings], lines)


def readme(report: Report) -> list[str]:
    """Four models, and where they were measured."""
    names = ("loops:1000", "groups:ragged", "structures:kronecker", "structures:block_diagonal")
    scenarios = [found for name in names for found in matching(report, name)]
    titles = {names[0]: "the loop above, N=1000, q=3 (without: vectorised by hand)"}
    return [
        *pairs(report, scenarios, ["evaluate", "cold_compile"], **titles),
        "",
        f"Without and with this package, CPU time of one thread: {report.headline}.",
    ]


def machine(report: Report) -> list[str]:
    """Where and when."""
    return [f"Measured on {report.headline}."]


def missing(report: Report) -> list[str]:
    """The scenarios that were not run."""
    known = all_scenarios(report.size, ["*", "long:*"])
    names = [f"`{found.name}`" for found in known if found.name not in report.outcomes]
    return [f"Not run this time: {', '.join(names)}."] if names else []


def loops(report: Report) -> list[str]:
    """Compile and evaluation times of the loop."""
    quantities = ["build", "cold_compile", "compile", "logp", "evaluate", "inside"]
    return variants(report, "loops:[0-9l]*", quantities)


def fused(report: Report) -> list[str]:
    """Fused models, and ADVI."""
    return [
        *variants(report, "loops:fused_*", ["cold_compile", "compile", "evaluate"]),
        "",
        *variants(report, "lo*:advi*", ["cold_compile", "compile", "evaluate"]),
    ]


def importing(report: Report) -> list[str]:
    """The import of the package."""
    return variants(report, "loops:import", ["import"])


def predictive(report: Report) -> list[str]:
    """Predictive draws."""
    quantities = ["cold_prior", "prior", "cold_posterior", "posterior", "draws"]
    return variants(report, "loops:predictive", quantities)


def densities(report: Report) -> list[str]:
    """The bare density, a column for each system."""
    lines = [
        [scenario.title, *(cell(outcomes.get(name), "evaluate") for name in STYLES)]
        for scenario in matching(report, "oplevel:c*")
        for outcomes in [report.outcomes[scenario.name]]
    ]
    return table(["", *STYLES], lines)


def threads(report: Report) -> list[str]:
    """One thread and two."""
    return variants(report, "oplevel:threads", ["evaluate"])


def groups(report: Report) -> list[str]:
    """Models with groups, and those with next to nothing to gain."""
    scenarios = [*matching(report, "groups:*"), *matching(report, "small:*")]
    return pairs(report, scenarios, ["evaluate", "inside", "cold_compile", "compile"])


def structures(report: Report) -> list[str]:
    """Structured covariances."""
    scenarios = matching(report, "structures:*")
    return pairs(report, scenarios, ["evaluate", "inside", "cold_compile", "compile"])


def bars(report: Report) -> list[str]:
    """What was asked of each scenario, and whether it holds."""
    return table(*bars_of(report, report.scenarios))


def digits(report: Report) -> list[str]:
    """What :mod:`benchmarks.digits` has found, which is no part of the run."""
    return DIGITS.read_text(encoding="utf-8").splitlines()


def calibration(report: Report) -> list[str]:
    """What :mod:`benchmarks.calibration` has found."""
    found = json.loads(CALIBRATION.read_text(encoding="utf-8"))
    lines = [
        [
            f"`{name}`",
            ", ".join(f"`{op}`" for op in dict.fromkeys(figures["fused"])),
            f"{figures['replicates']}",
            f"{len(figures['p'])}",
            f"{figures['outside']} of {figures['bins']}",
            f"{min(figures['p'].values())}",
        ]
        for name, figures in found["models"].items()
    ]
    headings = ["model", "became", "replicates", "parameters"]
    headings += ["bins outside of the band", "smallest p of a parameter"]
    p_values = [p for figures in found["models"].values() for p in figures["p"].values()]
    outside, bins = (
        sum(figures[key] for figures in found["models"].values()) for key in ("outside", "bins")
    )
    return [
        *table(headings, lines),
        "",
        f"Of {bins} bins {outside} lie outside, where {bins / 100:.1f} are expected; of "
        f"{len(p_values)} p-values {sum(p < 0.05 for p in p_values)} are below 0.05, where "
        f"{len(p_values) / 20:.1f} are expected, and the smallest is {min(p_values)}. "
        f"{found['machine']['versions']}; {found['machine']['date']}.",
    ]


def plain(report: Report) -> list[str]:
    """What :mod:`benchmarks.plain` has found."""
    found = json.loads(PLAIN.read_text(encoding="utf-8"))
    ratios = sorted(found["ratios"].values())
    return [
        f"Of {len(ratios)} models the median is {median(ratios):.3f}, the least {ratios[0]:.3f} "
        f"and the largest {ratios[-1]:.3f} ({found['machine']['versions']}; "
        f"{found['machine']['date']})."
    ]


def generated(report: Report) -> list[str]:
    """What runs of ``tests.generated.fuzz`` have found, one line for each."""
    runs = json.loads(GENERATED.read_text(encoding="utf-8"))
    headings = ["commit", "date", "seed", "models", "disagreements", "not finite"]
    headings += ["PyTensor itself differs", "rules that fired", "pairs of rules that met"]
    counts = ("models", "disagreements", "not_finite", "upstream")
    lines = [
        [
            *(f"{run[key]}" for key in ("commit", "date", "seed", *counts)),
            f"{run['fired']} of {run['rules']}",
            f"{run['met']} of {run['pairs']}",
        ]
        for run in runs
    ]
    total = [f"{sum(run[key] for run in runs)}" for key in counts]
    return table(headings, [*lines, ["together", "", "", *total, "", ""]])


def hosts(report: Report) -> list[str]:
    """What ``tests/hosts.py`` has found, one line for each run."""
    runs = json.loads(HOSTS.read_text(encoding="utf-8"))
    return table([*runs[0]], [[*map(str, run.values())] for run in runs])


#: A place for figures, and its name
BLOCK = re.compile(r"<!-- figures: (\w+) -->\n.*?<!-- end of figures -->", flags=re.DOTALL)


def filled(page: str, report: Report) -> str:
    """The page with the figures of a run."""

    def figures(match: re.Match) -> str:
        first, *_, last = match[0].splitlines()
        return "\n".join([first, *globals()[match[1]](report), last])

    return BLOCK.sub(figures, page)


def curves(report: Report, x: str, **fixed) -> Iterator[tuple[str, Points]]:
    """Times against `x` of the densities with these facts: seconds, and times the limit."""
    seconds: Points = {}
    relative: Points = {}
    found = [s for s in report.scenarios if s.facts and fixed.items() <= s.facts.items()]
    for scenario in sorted(found, key=lambda s: s.facts[x]):
        outcomes = report.outcomes[scenario.name]
        times = {label: outcomes.get(label, Outcome()).numbers("evaluate") for label in STYLES}
        for label in filter(times.get, times):
            at = scenario.facts[x]
            seconds.setdefault(label, []).append((at, median(times[label])))
            if (of_limit := ratio(times[label], times["limit"])) is not None:
                relative.setdefault(label, []).append((at, of_limit))
    yield "seconds", seconds
    yield "times the limit in C++", relative


def draw(axes: Axes, points: Points, title: str, x: str, y: str) -> None:
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


def plot(report: Report, file: Path) -> None:
    """Draw the bare density against N and n."""
    drawing = Figure(figsize=(9.5, 6.9), layout="constrained")
    grid = drawing.subplots(2, 2)
    for column, x, title, fixed in (
        (0, "N", "N vectors of length 3: value and gradients", {"n": 3}),
        (1, "n", "1000 vectors: value and gradients", {"N": 1000}),
    ):
        for row, (y, points) in enumerate(curves(report, x, param="cov", **fixed)):
            draw(grid[row, column], points, title, x, y)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    drawing.suptitle(f"{report.headline}, one thread", fontsize=7, x=0.01, ha="left")
    # text as text and no random identifiers: small files that differ only where the numbers do
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"}):
        drawing.savefig(file, metadata={"Date": None})


def joined(reports: Sequence[Report]) -> Report:
    """One report of all; what a later one has measured again replaces the older numbers.

    Raises
    ------
    ValueError
        If they are not of one machine, with the same versions.
    """
    first, *others = reports
    outcomes = {name: dict(found) for name, found in first.outcomes.items()}
    for other in others:
        if any(other.machine[key] != first.machine[key] for key in ("processor", "versions")):
            raise ValueError("the reports are of different machines or versions")
        for name, found in other.outcomes.items():
            known = outcomes.setdefault(name, {})
            for label, new in found.items():
                old = known.get(label, Outcome())
                known[label] = Outcome(old.times | new.times, old.facts | new.facts)
    return Report(first.machine, first.size, outcomes)


def main() -> None:
    """Keep the runs that the command line names, fill all pages, and draw."""
    if sys.argv[1:]:
        joined([Report.load(Path(file)) for file in sys.argv[1:]]).save(PUBLISHED)
    report = Report.load(PUBLISHED)
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), report), encoding="utf-8")
    plot(report, PLOT)


if __name__ == "__main__":
    main()
