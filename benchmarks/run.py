"""Run the benchmark.

    python -m benchmarks.run --short                        # a quarter of an hour
    python -m benchmarks.run                                # everything, some hours
    python -m benchmarks.run --only groups:lkj_100          # one scenario
    python -m benchmarks.run --only 'structures:*' --warm 3
    python -m benchmarks.run --list

A scenario is a model in several variants, among them the plugin imported ("on") and not imported
("off"). Each run of a variant is a process of its own. Its first run finds an empty cache of
compiled code (cold), the following ones the code of the first (warm). Evaluations are timed in
rounds in which the variants take turns; ratios are medians over the rounds.

Tables go to the screen; tables, numbers and plots into ``benchmarks/results/``.
"""

import argparse
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import plots
from benchmarks import report as reports
from benchmarks.runner import Effort, run_scenario
from benchmarks.scenarios import SHORT, Scenario, all_scenarios

RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--short", action="store_true", help="some scenarios, one cold and one warm run each")
    add("--only", nargs="+", metavar="NAME", help="these scenarios; shell-style patterns")
    add("--variants", nargs="+", metavar="LABEL", help="only these variants of each scenario")
    add("--list", action="store_true", help="show the names of the scenarios and stop")
    add("--warm", type=int, help="warm runs of each variant; 0: none, evaluate in the cold one")
    add("--rounds", type=int, default=15, help="rounds of evaluations")
    add("--timeout", type=float, default=3600, help="seconds that a step of a variant may take")
    add("--clock", choices=("wall", "cpu"), default="wall", help="how to time evaluations")
    add("--caches", type=Path, help="keep the caches of compiled code here; nothing is cold then")
    return parser.parse_args()


def main() -> None:
    """Measure, show, and write the results."""
    options = arguments()
    console = Console()
    console.width = max(console.width, 120)
    names = options.only or (SHORT if options.short else ["*"])
    scenarios = list(all_scenarios("short" if options.short else "full", names))
    if options.variants:
        scenarios = [with_variants(scenario, options.variants) for scenario in scenarios]
    if options.list or not scenarios:
        for scenario in scenarios or all_scenarios("full"):
            console.print(f"{scenario.name:35} {scenario.title}", highlight=False)
        if not scenarios:
            raise SystemExit(f"no scenario is called {' or '.join(names)}; there are these")
        return

    report: dict = {"machine": reports.machine(), "clock": options.clock, "scenarios": []}
    stem = RESULTS / datetime.now(UTC).strftime("%Y-%m-%d-%H%M%S")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        warm = options.warm if options.warm is not None else 1 if options.short else 3
        effort = Effort(
            options.caches or scratch / "caches",
            warm,
            options.rounds,
            timeout=options.timeout,
            clock=options.clock,
        )
        with progress_bar(console) as progress:
            task = progress.add_task("", total=len(scenarios))
            for scenario in scenarios:

                def say(what: str, name=scenario.name):
                    progress.update(task, description=f"{name}, {what}")
                    if not console.is_terminal and "round" not in what:
                        console.print(f"{name}, {what}", highlight=False)

                report["scenarios"].append(run_scenario(scenario, effort, scratch, say))
                progress.advance(task)
                # a run that is interrupted leaves what it has measured
                reports.write(report, stem)
    reports.show(console, report)
    written = [
        ".json",
        ".md",
        ".csv",
        *([".svg"] if plots.save(report, stem.with_suffix(".svg")) else []),
    ]
    console.print(
        f"Written to {stem.relative_to(Path.cwd(), walk_up=True)} as {', '.join(written)}"
    )


def with_variants(scenario: Scenario, labels: list[str]) -> Scenario:
    """The same scenario, the other variants left out."""
    kept = tuple(variant for variant in scenario.variants if variant.label in labels)
    return replace(scenario, variants=kept)


def progress_bar(console: Console) -> Progress:
    """How many scenarios are done, the time that it took, and what happens now."""
    return Progress(
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


if __name__ == "__main__":
    main()
