"""Run a scenario: every variant in processes of its own, evaluations in interleaved rounds."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.measure import Worker, WorkerError
from benchmarks.scenarios import Bar, Scenario, Variant, agreement


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes
    ----------
    caches : Path
        Directory of the caches of compiled code.
    warm : int
        Runs of each variant after the first one, with the code that the first has left.
    rounds : int
        Rounds of evaluations, each some hundredths of a second or one call, whichever is longer.
    seconds : float
        Where rounds take longer than this together, three are enough.
    timeout : float
        Seconds after which a step of a variant is given up.
    clock : {"wall", "cpu"}
        What evaluations are timed by. On a machine with other work to do, the CPU time of a
        process says more than the time on the wall.
    """

    caches: Path
    warm: int = 1
    rounds: int = 15
    seconds: float = 60.0
    timeout: float = 3600.0
    clock: str = "wall"


@dataclass
class Measured:
    """What is known of a variant so far: every quantity as a list, one number for each run."""

    variant: Variant
    quantities: dict[str, list[float]]
    error: str = ""

    def add(self, **quantities) -> None:
        """Append one number to each quantity; None stands for a number that cannot be had."""
        for name, number in quantities.items():
            if number is not None:
                self.quantities.setdefault(name, []).append(number)

    def row(self) -> dict:
        """Medians, and the error if there is one."""
        row = {name: median(numbers) for name, numbers in self.quantities.items()}
        return {"variant": self.variant.label} | row | ({"error": self.error} if self.error else {})


def run_scenario(
    scenario: Scenario, effort: Effort, scratch: Path, say: Callable[[str], None]
) -> dict:
    """Measure all variants of a scenario.

    Parameters
    ----------
    scenario : Scenario
    effort : Effort
    scratch : Path
        Where the values may lie for a while.
    say : callable
        Told what happens next.

    Returns
    -------
    dict
        Of the scenario: `name`, `title`, `rows` (a dict for each variant) and `bars`.
    """
    found = {variant.label: Measured(variant, {}) for variant in scenario.variants}
    warm = effort.warm if scenario.warm is None else scenario.warm
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for run in range(1 + warm):
            order = list(found.values())
            for measured in order[::-1] if run % 2 else order:
                once = measured.variant.once
                if measured.error or (run and once):
                    continue
                say(f"{measured.variant.label}: run {run + 1} of {1 if once else 1 + warm}")
                worker = prepare(scenario, measured, effort, last=once or run == warm)
                if worker is not None:
                    workers[measured.variant.label] = stack.enter_context(worker)
        evaluate(found, workers, effort, scenario.clock or effort.clock, say)
        say("comparing the numbers")
        finish(scenario, found, workers, scratch)
    bars = (*scenario.bars, *agreement(scenario))
    return {
        "name": scenario.name,
        "title": scenario.title,
        "reference": scenario.reference,
        "facts": scenario.facts,
        "rows": [measured.row() for measured in found.values()],
        "bars": [judged(bar, found) for bar in bars],
    }


def prepare(scenario: Scenario, measured: Measured, effort: Effort, last: bool) -> Worker | None:
    """Prepare a variant in a fresh process; return the process if its evaluations are to come."""
    variant = measured.variant
    name = variant.cache or f"{scenario.name}-{variant.label}"
    # it becomes part of PYTENSOR_FLAGS, where a comma would end it
    cache = effort.caches / re.sub(r"\W+", "-", name)
    cold = not cache.exists()
    worker = Worker(cache, variant.contestant, variant.arguments, effort.timeout)
    try:
        quantities = worker.ask("prepare")
    except WorkerError as error:
        measured.error = str(error)
        worker.close()
        return None
    compiled = [name for name in ("compile", "prior", "posterior") if name in quantities]
    if cold and compiled:
        of_cold = {f"cold_{name}": quantities.pop(name) for name in compiled}
        # what does not depend on the cache comes from the warm runs, if there are any
        quantities = of_cold | quantities if last else of_cold
    measured.add(**quantities)
    if last:
        return worker
    worker.close()
    return None


def evaluate(found: dict[str, Measured], workers, effort: Effort, clock: str, say) -> None:
    """Time evaluations, one batch of each worker after the other, round after round."""
    timed = [label for label in workers if found[label].variant.timed]
    for i in range(effort.rounds):
        spent = sum(sum(found[label].quantities.get("evaluate", ())) for label in timed)
        if i >= 3 and spent > effort.seconds:
            return
        say(f"evaluations, round {i + 1} of {effort.rounds}")
        for label in timed[::-1] if i % 2 else timed:
            try:
                ask = workers[label].ask
                found[label].add(
                    evaluate=ask("time", clock=clock), inside=ask("inside", clock=clock)
                )
            except WorkerError as error:
                found[label].error = str(error)
                timed = [other for other in timed if other != label]


def finish(scenario: Scenario, found: dict[str, Measured], workers, scratch: Path) -> None:
    """Measure memory, and compare times and numbers with those of the reference."""
    for measured in found.values():
        own = measured.quantities.get("evaluate", [])
        if scenario.reference != measured.variant.label:
            measured.add(speedup=ratio(numbers_of((scenario.reference, "evaluate"), found), own))
        if measured.variant.label != "limit":
            measured.add(of_limit=ratio(own, numbers_of(("limit", "evaluate"), found)))
    if scenario.memory:
        for label, worker in workers.items():
            found[label].add(memory=worker.ask("memory"))
    reference = scenario.reference
    if reference not in workers:
        return
    files = {}
    for i, (label, worker) in enumerate(workers.items()):
        files[label] = scratch / f"{i}.npz"
        worker.ask("values", file=str(files[label]))
    for label, file in files.items():
        if label != reference:
            found[label].add(**differences(file, files[reference]))


def differences(values_file: Path, reference_file: Path) -> dict[str, float]:
    r"""Largest relative differences over the points.

    For the log-density :math:`|a - b| / |b|`; for the gradient
    :math:`\max_i |a_i - b_i| / \max_i |b_i|`.
    """
    with np.load(values_file) as values, np.load(reference_file) as reference:
        logp = np.abs(values["logp"] - reference["logp"]) / np.abs(reference["logp"])
        gradient = np.abs(values["gradient"] - reference["gradient"]).max(axis=1)
        gradient /= np.abs(reference["gradient"]).max(axis=1)
    return {"logp_difference": float(logp.max()), "gradient_difference": float(gradient.max())}


def judged(bar: Bar, found: dict[str, Measured]) -> dict:
    """The bar, what was measured, and whether it holds; None where it could not be measured."""
    measured = ratio(numbers_of(bar.over, found), numbers_of(bar.under, found))
    return {
        "asks": bar.asks,
        "measured": measured,
        "is_ratio": bar.under is not None,
        "holds": None if measured is None else bar.holds(measured),
    }


def numbers_of(which: tuple[str, str] | None, found: dict[str, Measured]) -> list[float] | None:
    """The numbers of (label, quantity)."""
    if which is None:
        return None
    label, quantity = which
    if label == "*":
        medians = [m.row()[quantity] for m in found.values() if quantity in m.quantities]
        return [max(medians)] if medians else []
    return found[label].quantities.get(quantity, []) if label in found else []


def ratio(over: list[float] | None, under: list[float] | None) -> float | None:
    """Median of the ratios round by round, where there are as many of one as of the other.

    A machine that slows down for a while then hits both sides.
    """
    if not over or under == []:
        return None
    if under is None:
        return median(over)
    if len(over) == len(under):
        return median(a / b for a, b in zip(over, under, strict=True))
    return median(over) / median(under)
