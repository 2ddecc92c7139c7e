"""Run the benchmark.

    python -m benchmarks.run --short                        # some minutes
    python -m benchmarks.run                                # everything, under an hour and a half
    python -m benchmarks.run --only groups:ragged           # one scenario
    python -m benchmarks.run --only 'structures:*' --warm 3
    python -m benchmarks.run --list
    python -m benchmarks.publish RESULTS.json               # its tables and plots, into the pages

A scenario is a model in several variants, among them the plugin imported ("on") and not imported
("off"). Each run of a variant is a process of its own. Its first run finds an empty cache of
compiled code (cold), the following ones the code of the first (warm). Two scenarios compile at the
same time, and one at a time is evaluated, in rounds in which its variants take turns. All times are
CPU times of one thread; ratios are medians over the rounds.

Tables go to the screen, numbers into ``benchmarks/results/``, from where pyperf compares runs.
"""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.report import Report, machine, show
from benchmarks.runner import Effort, run_scenario
from benchmarks.scenarios import SHORT, all_scenarios

RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--short", action="store_true", help="some scenarios, at smaller sizes")
    add("--only", nargs="+", metavar="NAME", help="these scenarios; shell-style patterns")
    add("--list", action="store_true", help="show the names of the scenarios and stop")
    add("--warm", type=int, help="warm runs of each variant")
    add("--rounds", type=int, default=11, help="rounds of evaluations")
    add("--timeout", type=float, default=3600, help="seconds that a step of a variant may take")
    add("--jobs", type=int, default=2, help="scenarios that compile at the same time")
    add("--caches", type=Path, help="keep the caches of compiled code here; nothing is cold then")
    return parser.parse_args()


def main() -> None:
    """Measure, show, and write the results."""
    options = arguments()
    console = Console()
    console.width = max(console.width, 120)
    size = "short" if options.short else "full"
    names = options.only or (SHORT if options.short else ["*"])
    scenarios = list(all_scenarios(size, names))
    if options.list or not scenarios:
        for scenario in scenarios or all_scenarios("full"):
            console.print(f"{scenario.name:35} {scenario.title}", highlight=False)
        if not scenarios:
            raise SystemExit(f"no scenario is called {' or '.join(names)}; there are these")
        return

    report = Report(machine(), size, {})
    file = RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}.json"
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(
            *columns,
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as progress,
    ):
        caches = options.caches or Path(folder) / "caches"
        effort = Effort(caches, options.warm, options.rounds, timeout=options.timeout)
        saving = Lock()
        task = progress.add_task("", total=len(scenarios))

        def measure(scenario) -> None:
            def say(what: str) -> None:
                progress.update(task, description=f"{scenario.name}, {what}")
                if not console.is_terminal:
                    console.print(f"{scenario.name}, {what}", highlight=False)

            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                found = run_scenario(scenario, effort, Path(scratch), say)
            with saving:
                report.outcomes[scenario.name] = found
                # a run that is interrupted leaves what it has measured
                report.save(file)
            progress.advance(task)

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(measure, [scenario for scenario in scenarios if not scenario.alone]))
        for scenario in scenarios:
            if scenario.alone:
                measure(scenario)
    show(console, report)
    console.print(f"Written to {file.relative_to(Path.cwd(), walk_up=True)}")


if __name__ == "__main__":
    main()
