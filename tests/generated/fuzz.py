"""``python -m tests.generated.fuzz``: as many generated models as fit into a time.

Ends with status 1 when a model disagrees with the graph as written; what it found is in a file,
each as Python that builds the model again. The variables `FUZZ_SECONDS` or `FUZZ_MODELS` say how
long, `FUZZ_SEED` where to start, and `FUZZ_RESULTS` the file of results to add to, which
``benchmarks.publish`` makes a table of.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis.errors import Flaky
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits

from pytensor_mvn_rewrites.pipeline import RULES
from tests.generated.fresh import Worker
from tests.generated.grammar import Model
from tests.generated.oracles import Verdict, check
from tests.generated.strategies import models

FOUND = Path("fuzz-found.py")
#: New seeds often: the examples of one seed resemble each other.
MODELS_PER_SEED = 8

#: Rules that cannot be seen here, and why; all others can meet, as parts of a model share nothing
UNSEEN = {
    "lower_to_jax": "functions are lowered for Numba",
    "materialize_at_kinks": "functions are lowered for Numba",
    "note_declarations": "looks at a graph and changes nothing",
    "sums_of_loops": "adds what loops_of_random_variables has found",
    "join_slices": "is for slices of a raveled point, and variables are inputs of their own",
}
#: How many of the pairs that have not met are named
PAIRS_SHOWN = 30


def seen_rules() -> list[str]:
    """``stage/rule`` of each rule that counts."""
    return [f"{stage}/{rule}" for stage in RULES for rule in RULES[stage] if rule not in UNSEEN]


class Disagreement(AssertionError):
    """A model does not have the numbers of the graph as written."""


@dataclass
class Summary:
    """What was seen; rules, and pairs of them, with the number of models in which they fired."""

    models: int = 0
    invalid: Counter = field(default_factory=Counter)
    not_finite: int = 0
    fired: Counter = field(default_factory=Counter)
    met: Counter = field(default_factory=Counter)
    upstream: list[tuple[Model, dict[str, str]]] = field(default_factory=list)
    found: list[tuple[Model, dict[str, str]]] = field(default_factory=list)

    def add(self, spec: Model, verdict: Verdict) -> None:
        if verdict.invalid:
            self.invalid[verdict.invalid.splitlines()[0][:100]] += 1
            return
        self.models += 1
        self.not_finite += not verdict.finite
        rules = [rule for rule in seen_rules() if verdict.fired[rule]]
        self.fired.update(rules)
        self.met.update(combinations(rules, 2))
        if verdict.upstream:
            self.upstream.append((spec, verdict.upstream))

    def __str__(self) -> str:
        lines = [
            f"{self.models} models, {self.not_finite} of them with a density that is not finite, "
            f"{len(self.found)} disagreements; {sum(self.invalid.values())} others are no models"
        ]
        lines += [f"  {count:6d} {rule}" for rule, count in self.fired.most_common()]
        lines += self.coverage()
        lines.append(
            f"{len(self.upstream)} where PyTensor itself differs from the graph as written"
        )
        kinds = Counter(
            next(iter(found.values())).partition(", expected")[0][:90] for _, found in self.upstream
        )
        lines += [f"  {count:6d} {kind}" for kind, count in kinds.most_common(12)]
        return "\n".join(lines)

    def counts(self) -> dict[str, int]:
        """What is kept of a run."""
        rules = seen_rules()
        return {
            "models": self.models,
            "disagreements": len(self.found),
            "not_finite": self.not_finite,
            "upstream": len(self.upstream),
            "fired": sum(self.fired[rule] > 0 for rule in rules),
            "rules": len(rules),
            "met": len(self.met),
            "pairs": len(list(combinations(rules, 2))),
        }

    def coverage(self) -> list[str]:
        """Which rules have not fired, and which pairs of the others have not met."""
        rules = seen_rules()
        never = [rule for rule in rules if not self.fired[rule]]
        pairs = list(combinations(rules, 2))
        apart = [pair for pair in pairs if not self.met[pair] and not {*pair} & {*never}]
        shown = [f"  {one} and {other}" for one, other in apart[:PAIRS_SHOWN]]
        if len(apart) > PAIRS_SHOWN:
            shown.append(f"  and {len(apart) - PAIRS_SHOWN} others")
        once = sum(count == 1 for count in self.met.values())
        return [
            f"{len(rules) - len(never)} of {len(rules)} rules fired"
            + (f", and never: {', '.join(never)}" if never else ""),
            f"{len(self.met)} of {len(pairs)} pairs of rules have met in a model "
            f"({len(self.met) / len(pairs):.0%}), {once} of them in one only",
            *(["apart, of rules that fired:", *shown] if apart else []),
        ]


def hunt(
    number: int,
    summary: Summary,
    worker: Worker | None = None,
    examples: int = MODELS_PER_SEED,
    shrink_seconds: float = 20.0,
    parts: bool = True,
) -> None:
    """Check some models; stop at the first that disagrees, and make it small.

    `number` is a seed: the models are the same each time. Some are `parts` side by side, which take
    several times as long as others.
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
    @given(models(number, parts))
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
        summary.found.append(with_fewer_parts(*best, worker))


def with_fewer_parts(
    spec: Model, differences: dict[str, str], worker: Worker | None = None
) -> tuple[Model, dict[str, str]]:
    """Leave out each part without which the model disagrees all the same."""
    for part in spec.parts:
        fewer = replace(spec, parts=tuple(other for other in spec.parts if other != part))
        if fewer.parts and (found := check(fewer, worker).disagreements):
            spec, differences = fewer, found
    return spec, differences


def report(found: list[tuple[Model, dict[str, str]]]) -> str:
    """The models, as Python."""
    lines = ["from tests.generated.grammar import *", "from tests.generated.oracles import check"]
    for spec, differences in found:
        lines.append("")
        lines += [f"# {path}: {text}" for path, text in differences.items()]
        lines.append(f"print(check({spec!r}).disagreements)")
    return "\n".join(lines) + "\n"


def keep(file: Path, seed: int, summary: Summary) -> None:
    """Add a run to the file of results."""
    command = ["git", "describe", "--always", "--dirty"]
    described = subprocess.run(command, capture_output=True, text=True, check=True)
    runs = json.loads(file.read_text()) if file.exists() else []
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    runs.append({"commit": described.stdout.strip(), "date": date, "seed": seed})
    runs[-1] |= summary.counts()
    file.write_text(json.dumps(runs, indent=1) + "\n")


def main() -> int:
    console = Console(markup=False, highlight=False, soft_wrap=True)
    models_wanted = int(os.environ.get("FUZZ_MODELS") or 0)
    seconds = float(os.environ.get("FUZZ_SECONDS") or 600)
    number = seed = int(os.environ.get("FUZZ_SEED") or time.time())
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
    if results := os.environ.get("FUZZ_RESULTS"):
        keep(Path(results), seed, summary)
    for spec, differences in summary.found:
        console.print(
            repr(spec), *(f"    {path}: {text}" for path, text in differences.items()), sep="\n"
        )
    if summary.found:
        console.print(f"{len(summary.found)} disagreements, as Python, in {FOUND}")
    return bool(summary.found)


if __name__ == "__main__":
    sys.exit(main())
