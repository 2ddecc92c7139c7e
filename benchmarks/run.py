"""Measure the plugin against the same models without it.

    python -m benchmarks.run --short     # small sizes, some minutes
    python -m benchmarks.run             # all sizes, about an hour on two cores

Three variants of the model of N vectors run at every size: the loop with the plugin; the model
that a user vectorised by hand, without it; and the loop without it, at the sizes that it can
finish. The last two never import the plugin. Each measurement is a process of its own, see
`benchmarks.measure`. A variant's first process finds an empty cache of compiled code (cold); the
following ones, in rounds that interleave the variants, find the code of the first (warm). Times
are medians over the rounds; evaluation is the median within and over the processes.

Writes ``benchmarks/results/DATE.json`` and ``.md``.
"""

import argparse
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.measure import run

RESULTS = Path(__file__).parent / "results"

PLAIN_MODELS = ("eight_schools", "logistic")


class Bench:
    """Runs measurements, shows which one is running, and keeps the caches apart."""

    def __init__(self, console: Console, scratch: Path):
        self.console = console
        self.scratch = scratch
        self.progress = Progress(
            SpinnerColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __call__(self, label: str, kind: str, *, cache: str, **arguments) -> dict:
        """Measure in a fresh process that keeps its compiled code in the cache called `cache`."""
        if self.progress.disable:
            self.console.print(label, highlight=False)
        task = self.progress.add_task(label)
        try:
            return run(self.scratch / "caches" / cache, kind, **arguments)
        finally:
            self.progress.remove_task(task)


def measure_sizes(
    bench: Bench, loop: str, sizes, unrewritten_up_to: int, rounds: int, q: int
) -> list[dict]:
    """Build, compile and evaluate every variant of `loop` at every size; one row for each."""
    by_hand = f"{loop}_by_hand"
    # name in the tables -> (model of `benchmarks.models`, plugin imported)
    variants = {"loop, plugin": (loop, True), "by hand": (by_hand, False), "loop": (loop, False)}
    rows = []
    for n in sizes:
        runs: dict[str, list[dict]] = {
            name: [] for name in variants if name != "loop" or n <= unrewritten_up_to
        }
        for round_number in range(rounds + 1):
            for name, results in runs.items():
                model, plugin = variants[name]
                label = "cold" if round_number == 0 else f"warm {round_number} of {rounds}"
                result = bench(
                    f"N={n}, {name}, {label}",
                    "compile_and_evaluate",
                    cache=f"{model}-{plugin}-{n}",
                    model=model,
                    plugin=plugin,
                    arguments={"n": n, "q": q},
                    values_file=str(bench.scratch / f"{model}-{plugin}-{n}.npz"),
                )
                results.append(result)
        for name, results in runs.items():
            model, plugin = variants[name]
            rows.append(
                {"n": n, "q": q, "variant": name}
                | summary(results)
                | differences(
                    bench.scratch / f"{model}-{plugin}-{n}.npz",
                    bench.scratch / f"{by_hand}-False-{n}.npz",
                )
            )
    return rows


def summary(results: list[dict]) -> dict:
    """Medians of the warm runs, and the one cold run."""
    cold, *warm = results

    def middle(key):
        return median(result[key] for result in warm)

    return {
        "build": middle("build"),
        "compile": middle("compile"),
        "compile_per_build": median(result["compile"] / result["build"] for result in warm),
        "cold_compile": cold["compile"],
        "cold_compile_per_build": cold["compile"] / cold["build"],
        "evaluate": middle("evaluate"),
        "nodes": cold["nodes"],
        "dimensions": cold["dimensions"],
        "max_rss": middle("max_rss"),
        "runs": results,
    }


def differences(values_file: Path, reference_file: Path) -> dict:
    r"""Largest relative differences over the points.

    For the log-density :math:`|a - b| / |b|`; for the gradient
    :math:`\max_i |a_i - b_i| / \max_i |b_i|`.
    """
    with np.load(values_file) as values, np.load(reference_file) as reference:
        logp = np.abs(values["logp"] - reference["logp"]) / np.abs(reference["logp"])
        gradient = np.abs(values["gradient"] - reference["gradient"]).max(axis=1)
        gradient /= np.abs(reference["gradient"]).max(axis=1)
    return {"logp_difference": float(logp.max()), "gradient_difference": float(gradient.max())}


def measure_import(bench: Bench, rounds: int) -> dict:
    """Seconds that importing the plugin adds to importing PyMC: medians over the rounds."""
    results = [
        bench(f"imports, {i + 1} of {rounds}", "import_time", cache="import") for i in range(rounds)
    ]
    return {key: median(result[key] for result in results) for key in ("pymc", "plugin")}


def measure_plain_models(bench: Bench, rounds: int) -> list[dict]:
    """Compile times of models that the plugin has nothing to do for, with and without it.

    Both read the same warm cache. The order within a round alternates, and the ratio is the median
    over the rounds of the ratio within a round, so that a machine that slows down hits both.
    """
    rows = []
    for model in PLAIN_MODELS:
        times: dict[bool, list[dict]] = {False: [], True: []}
        for i in range(-1, rounds):
            for plugin in (False, True) if i % 2 else (True, False):
                result = bench(
                    f"{model}, plugin {'imported' if plugin else 'not imported'}, "
                    + (f"{i + 1} of {rounds}" if i >= 0 else "warming the cache"),
                    "compile_and_evaluate",
                    cache=model,
                    model=model,
                    plugin=plugin,
                    arguments={},
                    again=3,
                )
                if i >= 0:
                    result["again"] = median(result["compile_again"])
                    times[plugin].append(result)

        def ratio(key, times=times):
            pairs = zip(times[True], times[False], strict=True)
            return median(with_[key] / without[key] for with_, without in pairs)

        rows.append(
            {
                "model": model,
                "without": median(result["compile"] for result in times[False]),
                "with": median(result["compile"] for result in times[True]),
                "ratio": ratio("compile"),
                "cpu_ratio": ratio("compile_cpu"),
                "again_ratio": ratio("again"),
                "rounds": rounds,
            }
        )
    return rows


def measure_sampling(bench: Bench, n: int, draws: int) -> list[dict]:
    """Sample the loop of `n` with nutpie and with PyMC's own NUTS; a failure is a result too."""
    rows = []
    for sampler in ("nutpie", "pymc"):
        row = {"n": n, "sampler": sampler}
        try:
            row |= bench(
                f"pm.sample, {sampler}, N={n}",
                "sample",
                cache="sample",
                n=n,
                sampler=sampler,
                draws=draws,
                tune=draws,
            )
        except RuntimeError as error:
            row |= {"draws": 0, "error": str(error)}
        rows.append(row)
    return rows


def machine() -> dict:
    """Processor, cores, versions and date."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    packages = ("pymc", "pytensor", "numba", "numpy", "scipy", "nutpie")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages if is_installed(package)},
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def is_installed(package: str) -> bool:
    """Whether the distribution `package` is installed."""
    try:
        version(package)
    except ModuleNotFoundError:
        return False
    return True


def bars(report: dict) -> list[tuple[str, str, bool]]:
    """Every bar that this run could measure: what it asks, what was measured, whether it holds."""
    cells = {(row["variant"], row["n"]): row for row in report["sizes"]}
    found = []
    for n, limit in ((1000, 6), (5000, 8)):
        if row := cells.get(("loop, plugin", n)):
            ratio = row["compile_per_build"]
            text = f"{ratio:.2f} (cold {row['cold_compile_per_build']:.2f})"
            asks = f"N={n}: compile time / time to build the model <= {limit}"
            found.append((asks, text, ratio <= limit))
    if row := cells.get(("loop, plugin", 5000)):
        speedup = cells["by hand", 5000]["evaluate"] / row["evaluate"]
        asks = "N=5000: evaluation at least 20 times faster than by hand"
        found.append((asks, f"{speedup:.1f} times", speedup >= 20))
    plugin_rows = [row for row in report["sizes"] if row["variant"] == "loop, plugin"]
    for quantity in ("logp", "gradient"):
        worst = max(row[f"{quantity}_difference"] for row in plugin_rows)
        asks = f"all N: relative difference of the {quantity} from by hand <= 1e-9"
        found.append((asks, f"{worst:.1e}", worst <= 1e-9))
    added = report["import"]["plugin"]
    found.append(("import adds < 0.3 s", f"{added:.3f} s", added < 0.3))
    for row in report["plain_models"]:
        asks = f"{row['model']}: compile time with / without the plugin <= 1.02"
        found.append((asks, f"{row['ratio']:.3f}", row["ratio"] <= 1.02))
    for row in report["sampling"]:
        asks = f"pm.sample with {row['sampler']} finishes, N={row['n']}"
        measured = f"{row['draws']} draws in {row['seconds']:.0f} s" if row["draws"] else "failed"
        found.append((asks, measured, row["draws"] > 0))
    return found


def seconds(value: float) -> str:
    """Three digits and a unit."""
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def tables(report: dict) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Every table of the report: title -> (column names, rows of text)."""
    by_hand = {row["n"]: row["evaluate"] for row in report["sizes"] if row["variant"] == "by hand"}
    return {
        f"{report['model']}: N vectors of length q={report['q']}": (
            [
                "N",
                "variant",
                "build the model",
                "compile, cold",
                "compile, warm",
                "warm / build",
                "evaluate",
                "vs by hand",
                "difference logp",
                "gradient",
            ],
            [
                [
                    str(row["n"]),
                    row["variant"],
                    seconds(row["build"]),
                    seconds(row["cold_compile"]),
                    seconds(row["compile"]),
                    f"{row['compile_per_build']:.2f}",
                    seconds(row["evaluate"]),
                    f"{by_hand[row['n']] / row['evaluate']:.1f}x",
                    f"{row['logp_difference']:.0e}",
                    f"{row['gradient_difference']:.0e}",
                ]
                for row in report["sizes"]
            ],
        ),
        "Models without a multivariate normal: compile time, warm": (
            [
                "model",
                "plugin not imported",
                "imported",
                "ratio",
                "ratio of CPU times",
                "ratio, compiled again",
            ],
            [
                [
                    row["model"],
                    seconds(row["without"]),
                    seconds(row["with"]),
                    f"{row['ratio']:.3f}",
                    f"{row['cpu_ratio']:.3f}",
                    f"{row['again_ratio']:.3f}",
                ]
                for row in report["plain_models"]
            ],
        ),
        "Bars": (
            ["bar", "measured", "holds"],
            [[asks, measured, "yes" if holds else "NO"] for asks, measured, holds in bars(report)],
        ),
    }


def headline(report: dict) -> str:
    """Machine, versions, date, and what the times mean."""
    here = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    text = (
        f"{here['processor']}, {here['cores']} cores; Python {here['python']}, {versions}; "
        f"{here['date']}. Compile: model.logp_dlogp_function(ravel_inputs=True) and its first "
        "call. Evaluate: one log-density with its gradient. Import: PyMC "
        f"{seconds(report['import']['pymc'])}, the plugin adds "
        f"{seconds(report['import']['plugin'])}. The loop without the plugin ran up to "
        f"N={report['unrewritten_up_to']} only."
    )
    if growth := compile_growth(report["sizes"]):
        text += f" {growth}"
    return text


def compile_growth(rows: list[dict]) -> str:
    """How the loop's build and compile times grow between the two largest decades measured."""
    cells = {row["n"]: row for row in rows if row["variant"] == "loop, plugin"}
    if not {1000, 5000} <= cells.keys():
        return ""
    growth = {key: cells[5000][key] / cells[1000][key] for key in ("build", "compile", "evaluate")}
    return "From N=1000 to N=5000 with the plugin, " + ", ".join(
        f"{key} grows {factor:.1f} times" for key, factor in growth.items()
    )


def markdown(report: dict) -> str:
    """Write the report as Markdown."""
    lines = [headline(report), ""]
    for title, (columns, rows) in tables(report).items():
        lines += [f"### {title}", "", "| " + " | ".join(columns) + " |"]
        lines.append("|" + "---|" * len(columns))
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def show(console: Console, report: dict) -> None:
    """Show the tables."""
    for title, (columns, rows) in tables(report).items():
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row, style="red" if row[-1] == "NO" else None)
        console.print(table)
    console.print(headline(report), highlight=False)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="small sizes and few rounds")
    parser.add_argument(
        "--model", choices=("loop", "latent_loop"), default="loop", help="which loop"
    )
    parser.add_argument("--sizes", type=int, nargs="+", help="values of N")
    parser.add_argument("--q", type=int, default=3, help="length of each vector")
    parser.add_argument("--rounds", type=int, help="warm rounds at each size")
    parser.add_argument(
        "--unrewritten-up-to", type=int, help="largest N of the loop without the plugin"
    )
    parser.add_argument("--plain-rounds", type=int, help="rounds of the models without MvNormal")
    parser.add_argument("--sample", type=int, help="N of the sampled loop; 0 leaves it out")
    parser.add_argument("--draws", type=int, help="draws per chain, and as many to tune")
    options = parser.parse_args()
    defaults = {
        "sizes": [10, 30] if options.short else [10, 30, 100, 300, 1000, 2000, 5000],
        "rounds": 1 if options.short else 3,
        "unrewritten_up_to": 10 if options.short else 30,
        "plain_rounds": 3 if options.short else 15,
        "sample": 0 if options.short else 1000,
        "draws": 200,
    }
    for name, default in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


def main() -> None:
    """Measure, show, and write the results."""
    options = arguments()
    console = Console()
    console.width = max(console.width, 120)
    report: dict = {
        "machine": machine(),
        "model": options.model,
        "q": options.q,
        "unrewritten_up_to": options.unrewritten_up_to,
    }
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(console, Path(scratch))
        with bench.progress:
            report["import"] = measure_import(bench, rounds=3 if options.short else 11)
            report["plain_models"] = measure_plain_models(bench, options.plain_rounds)
            report["sizes"] = measure_sizes(
                bench,
                options.model,
                options.sizes,
                options.unrewritten_up_to,
                options.rounds,
                options.q,
            )
            report["sampling"] = (
                measure_sampling(bench, options.sample, options.draws) if options.sample else []
            )
    show(console, report)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / datetime.now(UTC).strftime("%Y-%m-%d-%H%M%S")
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    console.print(f"Written to {stem.relative_to(Path.cwd(), walk_up=True)}.json and .md")


if __name__ == "__main__":
    main()
