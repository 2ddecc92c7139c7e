"""The loop of MvNormal and Fisher's iris, with the plugin and without.

Run it with ``python -m benchmarks.demo``. It shows the graph of which the gradient is taken before
and after the rewrites, the times to compile and to evaluate, and the largest differences in
log-density and gradient. Every time comes from a process of its own. Compiled code is cached on
disk, in one cache for all runs with the plugin and one for all without, both empty at the start.
"""

import inspect
import re
import tempfile
from pathlib import Path
from statistics import median

import pytensor
from pymc.pytensorf import rewrite_pregrad
from pytensor.graph.traversal import ancestors
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table

import pytensor_mvn_rewrites
from benchmarks import models
from benchmarks.contestants import PyMCModel
from benchmarks.measure import Worker
from benchmarks.report import machine, seconds
from benchmarks.runner import differences

SMALL = 20  # the unrewritten loop of this size compiles in about a minute
LARGE = 1000


def main() -> None:
    """Show everything."""
    console = Console()
    console.width = max(console.width, 100)
    console.print(Panel(f"pytensor_mvn_rewrites on {describe_machine()}", expand=False))
    with tempfile.TemporaryDirectory() as scratch:
        show_loop(console, Demo(console, Path(scratch)))
        show_iris(console, Demo(console, Path(scratch)))


def show_loop(console: Console, demo: "Demo") -> None:
    """Run the loop model: both ways at a small size, then a large size with the plugin."""
    console.rule("One MvNormal per vector, in a Python loop")
    console.print(Syntax(inspect.getsource(models.loop), "python", background_color="default"))
    show_graphs(console, lambda: models.loop(SMALL), f"N={SMALL}")

    console.print(
        f"\nThe loop without the plugin is timed at N={SMALL}, which it can finish: its compile "
        "time grows faster than N."
    )
    demo.measure(f"loop, N={SMALL}", "plugin off", "loop", False, n=SMALL)
    demo.measure(f"loop, N={SMALL}", "plugin on", "loop", True, n=SMALL)
    demo.compare()
    demo.measure(f"by hand, N={LARGE}", "plugin off", "loop_by_hand", False, n=LARGE)
    demo.measure(f"loop, N={LARGE}", "plugin on", "loop", True, n=LARGE)
    demo.compare()
    demo.show("The loop, and the same model vectorised by hand: pm.MvNormal of shape (N, 3)")


def show_iris(console: Console, demo: "Demo") -> None:
    """Run the iris model both ways."""
    console.rule("Fisher's iris: a mean and a covariance per species, in a loop over the species")
    console.print(Syntax(inspect.getsource(models.iris), "python", background_color="default"))
    show_graphs(console, models.iris, "iris")
    demo.measure("iris", "plugin off", "iris", False)
    demo.measure("iris", "plugin on", "iris", True)
    demo.compare()
    demo.show("Iris: 3 species x 50 flowers x 4 features")


class Demo:
    """Measures variants of a model, one after the other, and collects the rows of a table."""

    def __init__(self, console: Console, scratch: Path):
        self.console = console
        self.scratch = scratch
        self.rows: list[list[str]] = []
        self.values: list[Path] = []
        self.notes: list[str] = []

    def measure(self, label: str, plugin_label: str, model: str, plugin: bool, **arguments):
        """Measure one variant, showing that it is being measured."""
        values = self.scratch / f"{model}-{plugin}-{arguments}.npz"
        cache = self.scratch / f"cache-{plugin}"
        cache_was = "of the rows before" if cache.exists() else "empty"
        doing = f"{label}, {plugin_label}: building, compiling, evaluating"
        spinner = Progress(
            SpinnerColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        if spinner.disable:
            self.console.print(doing, highlight=False)
        with spinner:
            spinner.add_task(doing)
            result = measured(cache, f"models.{model}", plugin, arguments, values)
        self.console.print(
            f"  {label}, {plugin_label}: compiled in {seconds(result['compile'])}, "
            f"one evaluation {seconds(result['evaluate'])}",
            highlight=False,
        )
        self.values.append(values)
        self.rows.append(
            [label, plugin_label, cache_was]
            + [seconds(result[key]) for key in ("build", "compile", "evaluate")]
        )

    def compare(self) -> None:
        """Compare the last variant with the first since the last comparison."""
        reference, *_, last = self.values
        worst = differences(last, reference)
        self.notes.append(
            f"{self.rows[-1][0]} with the plugin against {self.rows[-len(self.values)][0]} "
            "without it, at 5 points: largest relative difference "
            f"{worst['logp_difference']:.1e} in the log-density, "
            f"{worst['gradient_difference']:.1e} in the gradient"
        )
        self.values = []

    def show(self, title: str) -> None:
        """Show the table and the differences."""
        table = Table(
            "model",
            "",
            "code cache",
            "build the model",
            "compile logp + gradient",
            "evaluate both",
            title=title,
            title_justify="left",
        )
        for row in self.rows:
            table.add_row(*row)
        self.console.print(table)
        for note in self.notes:
            self.console.print(note, highlight=False)
        self.console.print()


def measured(cache: Path, model: str, plugin: bool, arguments: dict, values: Path) -> dict:
    """Build, compile and evaluate a model in a fresh process."""
    described = {"model": model, "arguments": arguments, "plugin": plugin}
    with Worker(cache, PyMCModel.__name__, described) as worker:
        result = worker.ask("prepare")
        result["evaluate"] = median(worker.ask("time") for _ in range(15))
        worker.ask("values", file=str(values))
    return result


def show_graphs(console: Console, build, title: str) -> None:
    """Show the log-density before and after the rewrites, as PyMC differentiates it."""
    for label, switch in (
        ("before", pytensor_mvn_rewrites.disable),
        ("after", pytensor_mvn_rewrites.enable),
    ):
        with switch(), console.status(f"{title}: rewriting the graph"):
            logp = rewrite_pregrad(build().logp())
        n_nodes = sum(variable.owner is not None for variable in ancestors([logp]))
        console.print(
            Panel(
                shorten(pytensor.dprint(logp, file="str", id_type="")),
                title=f"{title}, {label}: {n_nodes} nodes",
                title_align="left",
                expand=False,
            ),
            highlight=False,
            markup=False,
        )


def shorten(printed: str, max_lines: int = 14) -> str:
    """Keep the first of the terms with a multivariate normal, and say how many there are."""
    terms: list[list[str]] = []
    root, *lines = re.sub(r"Blockwise{(\w+){[^}]*}[^}]*}", r"Blockwise{\1}", printed).splitlines()
    for line in lines:
        if line.startswith((" ├─", " └─")):
            terms.append([])
        terms[-1].append(line)
    normals = [term for term in terms if any("posdef" in line for line in term)]
    others = len(terms) - len(normals)
    first = normals[0]
    shown = [root, f" ├─ ... ({others} terms without a multivariate normal)", *first[:max_lines]]
    if len(first) > max_lines:
        shown.append(f" │  ... ({len(first) - max_lines} more lines)")
    if len(normals) > 1:
        shown.append(f" └─ ... ({len(normals) - 1} more terms like this one)")
    return "\n".join(shown)


def describe_machine() -> str:
    """Processor and versions in one line."""
    here = machine()
    versions = here["versions"]
    return (
        f"{here['processor']}, {here['cores']} cores, Python {here['python']}, "
        f"PyMC {versions['pymc']}, PyTensor {versions['pytensor']}, {here['date']}"
    )


if __name__ == "__main__":
    main()
