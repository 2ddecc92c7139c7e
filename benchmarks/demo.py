"""The loop of MvNormal and Fisher's iris, with the plugin and without.

Run it with ``python -m benchmarks.demo``. It shows the graph of which the gradient is taken before
and after the rewrites, the CPU times to compile and to evaluate, and the largest differences in
log-density and gradient. Every time comes from a process of its own. Compiled code is cached on
disk, in one cache for all runs with the plugin and one for all without, both empty at the start.
"""

import inspect
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import pytensor
from pymc.pytensorf import rewrite_pregrad
from pytensor.graph.traversal import ancestors
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table

import pytensor_mvn_rewrites
from benchmarks import models
from benchmarks.report import machine, seconds
from benchmarks.runner import differences
from benchmarks.worker import Worker

SMALL = 10  # a size that the loop without the plugin can compile: the time grows faster than N
LARGE = 1000

#: What is compared: a variant without the plugin and one with it, by label, model and arguments
LOOP = [
    ((f"loop, N={SMALL}", "loop", {"n": SMALL}), (f"loop, N={SMALL}", "loop", {"n": SMALL})),
    (
        (f"by hand, N={LARGE}", "loop_by_hand", {"n": LARGE}),
        (f"loop, N={LARGE}", "loop", {"n": LARGE}),
    ),
]
IRIS = [(("iris", "iris", {}), ("iris", "iris", {}))]


def main() -> None:
    """Show everything."""
    console = Console()
    console.width = max(console.width, 100)
    here = machine()
    headline = f"pytensor_mvn_rewrites on {here['processor']}\n{here['versions']}; {here['date']}"
    console.print(Panel(headline, expand=False), highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        console.rule("One MvNormal per vector, in a Python loop")
        show_source(console, models.loop)
        show_graphs(console, lambda: models.loop(SMALL), f"N={SMALL}")
        title = "The loop, and the same model vectorised by hand: pm.MvNormal of shape (N, 3)"
        compare(console, Path(folder), title, LOOP)
        console.rule(
            "Fisher's iris: a mean and a covariance per species, in a loop over the species"
        )
        show_source(console, models.iris)
        show_graphs(console, models.iris, "iris")
        compare(console, Path(folder), "Iris: 3 species x 50 flowers x 4 features", IRIS)


def show_source(console: Console, function) -> None:
    """Show how a model is built."""
    console.print(Syntax(inspect.getsource(function), "python", background_color="default"))


def compare(console: Console, folder: Path, title: str, pairs) -> None:
    """Compile and evaluate each pair of variants, and compare their numbers."""
    headings = ("model", "plugin", "build the model", "compile logp + gradient", "evaluate both")
    table = Table(*headings, title=f"{title} (CPU times)", title_justify="left")
    notes = []
    for pair in pairs:
        files = []
        with ExitStack() as stack:
            for (label, function, arguments), plugin in zip(pair, (False, True), strict=True):
                name = "on" if plugin else "off"
                described = {"model": f"models.{function}", "arguments": arguments}
                described |= {"plugin": plugin}
                cache = folder / f"cache-{name}"
                worker = stack.enter_context(Worker(cache, "PyMCModel", described))
                with console.status(f"{label}, plugin {name}: building, compiling, evaluating"):
                    times = worker.ask("prepare")
                    times["evaluate"] = median(worker.ask("time") for _ in range(15))
                    files.append(folder / f"{name}.npz")
                    worker.ask("values", file=str(files[-1]))
                numbers = [seconds(times[key]) for key in ("build", "compile", "evaluate")]
                table.add_row(label, name, *numbers)
        worst = differences(files[1], files[0])
        notes.append(
            f"{pair[1][0]} with the plugin against {pair[0][0]} without it, at 5 points: largest "
            f"relative difference {worst['logp_difference']:.1e} in the log-density, "
            f"{worst['gradient_difference']:.1e} in the gradient"
        )
    console.print(table)
    console.print(*notes, sep="\n", highlight=False)
    console.print()


def show_graphs(console: Console, build, title: str) -> None:
    """Show the log-density before and after the rewrites, as PyMC differentiates it."""
    for label, switch in (
        ("before", pytensor_mvn_rewrites.disable),
        ("after", pytensor_mvn_rewrites.enable),
    ):
        with switch(), console.status(f"{title}: rewriting the graph"):
            logp = rewrite_pregrad(build().logp())
        n_nodes = sum(variable.owner is not None for variable in ancestors([logp]))
        printed = shorten(pytensor.dprint(logp, file="str", id_type=""))
        heading = f"{title}, {label}: {n_nodes} nodes"
        panel = Panel(printed, title=heading, title_align="left", expand=False)
        console.print(panel, highlight=False, markup=False)


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


if __name__ == "__main__":
    main()
