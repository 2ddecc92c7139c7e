"""``python -m tests.generated.fuzz``: as many generated models as fit into a time.

Ends with status 1 when a model disagrees with the graph as written; what it found is in a file,
each as Python that builds the model again. The variables `FUZZ_SECONDS` or `FUZZ_MODELS` say how
long, `FUZZ_SEED` where to start.
"""

import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis.errors import Flaky
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits

from tests.generated.fresh import Worker
from tests.generated.grammar import Model
from tests.generated.oracles import Verdict, check
from tests.generated.strategies import models

FOUND = Path("fuzz-found.py")
#: New seeds often: the examples of one seed resemble each other.
MODELS_PER_SEED = 8


class Disagreement(AssertionError):
    """A model does not have the numbers of the graph as written."""


@dataclass
class Summary:
    """What was seen."""

    models: int = 0
    invalid: Counter = field(default_factory=Counter)
    not_finite: int = 0
    fired: Counter = field(default_factory=Counter)
    upstream: list[tuple[Model, dict[str, str]]] = field(default_factory=list)
    found: list[tuple[Model, dict[str, str]]] = field(default_factory=list)

    def add(self, spec: Model, verdict: Verdict) -> None:
        if verdict.invalid:
            self.invalid[verdict.invalid.splitlines()[0][:100]] += 1
            return
        self.models += 1
        self.not_finite += not verdict.finite
        self.fired += verdict.fired
        if verdict.upstream:
            self.upstream.append((spec, verdict.upstream))

    def __str__(self) -> str:
        lines = [
            f"{self.models} models, {self.not_finite} of them with a density that is not finite, "
            f"{len(self.found)} disagreements; {sum(self.invalid.values())} others are no models"
        ]
        lines += [f"  {count:6d} {rule}" for rule, count in self.fired.most_common()]
        lines.append(
            f"{len(self.upstream)} where PyTensor itself differs from the graph as written"
        )
        kinds = Counter(
            next(iter(found.values())).partition(", expected")[0][:90] for _, found in self.upstream
        )
        lines += [f"  {count:6d} {kind}" for kind, count in kinds.most_common(12)]
        return "\n".join(lines)


def hunt(
    number: int,
    summary: Summary,
    worker: Worker | None = None,
    examples: int = MODELS_PER_SEED,
    shrink_seconds: float = 20.0,
) -> None:
    """Check some models; stop at the first that disagrees, and make it small.

    `number` is a seed: the models are the same each time.
    """
    best: tuple[Model, dict[str, str]] | None = None
    until = float("inf")

    @with_seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(models())
    def run(spec):
        nonlocal best, until
        if time.monotonic() > until:
            return
        verdict = check(spec, worker)
        if best is None:
            summary.add(spec, verdict)
        if not verdict.disagreements:
            return
        if best is None:
            until = time.monotonic() + shrink_seconds
        if best is None or len(repr(spec)) < len(repr(best[0])):
            best = spec, verdict.disagreements
        raise Disagreement

    try:
        run()
    except* (Disagreement, Flaky):
        pass
    if best is not None:
        summary.found.append(best)


def report(found: list[tuple[Model, dict[str, str]]]) -> str:
    """The models, as Python."""
    lines = ["from tests.generated.grammar import *", "from tests.generated.oracles import check"]
    for spec, differences in found:
        lines.append("")
        lines += [f"# {path}: {text}" for path, text in differences.items()]
        lines.append(f"print(check({spec!r}).disagreements)")
    return "\n".join(lines) + "\n"


def main() -> int:
    console = Console(markup=False, highlight=False, soft_wrap=True)
    models_wanted = int(os.environ.get("FUZZ_MODELS") or 0)
    seconds = float(os.environ.get("FUZZ_SECONDS") or 600)
    number = int(os.environ.get("FUZZ_SEED") or time.time())
    summary, worker, start = Summary(), Worker(), time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    console.print(f"FUZZ_SEED={number}")
    # threads only get in each other's way on matrices this small
    with threadpool_limits(1), Progress(*columns, console=console) as progress:
        task = progress.add_task("models", total=models_wanted or seconds)
        done = 0.0
        while done < (models_wanted or seconds):
            hunt(number, summary, worker)
            number += 1
            done = summary.models if models_wanted else time.monotonic() - start
            text = f"{summary.models} models, {len(summary.found)} disagreements"
            progress.update(task, completed=done, description=text)
            if summary.found:
                FOUND.write_text(report(summary.found))
    worker.close()
    console.print(str(summary))
    for spec, differences in summary.found:
        console.print(
            repr(spec), *(f"    {path}: {text}" for path, text in differences.items()), sep="\n"
        )
    if summary.found:
        console.print(f"{len(summary.found)} disagreements, as Python, in {FOUND}")
    return bool(summary.found)


if __name__ == "__main__":
    sys.exit(main())
