"""Run a scenario: every variant in processes of its own, evaluations in interleaved rounds."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Lock

import numpy as np

from benchmarks.scenarios import Bar, Scenario, Variant
from benchmarks.worker import Worker, WorkerError

#: One scenario at a time is evaluated, whatever another compiles meanwhile
EVALUATING = Lock()


@dataclass
class Outcome:
    """What is known of a variant.

    Attributes
    ----------
    times : dict of str to list of float
        Seconds: one number for each run, or for each round of evaluations.
    facts : dict of str to float
        Memory in bytes, relative differences from the reference.
    error : str
        What a process wrote before it failed; "" if none did.
    """

    times: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def add(self, **seconds: float | None) -> None:
        """Append one number to each quantity; None stands for a number that cannot be had."""
        for name, number in seconds.items():
            if number is not None:
                self.times.setdefault(name, []).append(number)

    def numbers(self, quantity: str) -> list[float]:
        """All that were measured of a quantity."""
        return [self.facts[quantity]] if quantity in self.facts else self.times.get(quantity, [])


Outcomes = dict[str, Outcome]


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes
    ----------
    caches : Path
        Directory of the caches of compiled code.
    warm : int, optional
        Warm runs of each variant, if not as many as it asks for.
    rounds : int
        Rounds of evaluations, each some hundredths of a second or one call, whichever is longer.
    seconds : float
        Where rounds take longer than this together, three are enough.
    timeout : float
        Seconds after which a step of a variant is given up.
    """

    caches: Path
    warm: int | None = None
    rounds: int = 11
    seconds: float = 20.0
    timeout: float = 3600.0


def run_scenario(
    scenario: Scenario, effort: Effort, scratch: Path, say: Callable[[str], None]
) -> Outcomes:
    """Measure all variants of a scenario.

    Parameters
    ----------
    scenario : Scenario
    effort : Effort
    scratch : Path
        Where the values may lie for a while.
    say : callable
        Told what happens next.
    """
    found = {variant.label: Outcome() for variant in scenario.variants}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for variant in scenario.variants:
            outcome = found[variant.label]
            warm = variant.warm if effort.warm is None else effort.warm
            for run in range(1 + warm):
                say(f"{variant.label}: run {run + 1} of {1 + warm}")
                worker = prepare(scenario.name, variant, outcome, effort)
                if worker is None:
                    break
                if run == warm:
                    workers[variant.label] = stack.enter_context(worker)
                else:
                    worker.close()
        with EVALUATING:
            say("evaluations")
            evaluate(scenario, found, workers, effort)
            finish(scenario, found, workers, scratch)
    return found


def prepare(name: str, variant: Variant, outcome: Outcome, effort: Effort) -> Worker | None:
    """Prepare a variant in a fresh process; None if it fails."""
    # it becomes part of PYTENSOR_FLAGS, where a comma would end it
    cache = effort.caches / re.sub(r"\W+", "-", variant.cache or f"{name}-{variant.label}")
    cold = not cache.exists()
    worker = Worker(cache, variant.contestant, variant.arguments, effort.timeout)
    try:
        seconds = worker.ask("prepare")
    except WorkerError as error:
        outcome.error = str(error)
        worker.close()
        return None
    # neither of these depends on the cache
    outcome.add(**{key: seconds.pop(key) for key in ("build", "logp") if key in seconds})
    outcome.add(**{f"cold_{key}" if cold else key: value for key, value in seconds.items()})
    return worker


def evaluate(scenario: Scenario, found: Outcomes, workers: dict[str, Worker], effort: Effort):
    """Time evaluations, one batch of each worker after the other, round after round."""
    timed = [variant.label for variant in scenario.variants if variant.timed]
    timed = [label for label in timed if label in workers]
    for i in range(effort.rounds):
        if (
            i >= 3
            and sum(sum(found[label].numbers("evaluate")) for label in timed) > effort.seconds
        ):
            return
        for label in timed[::-1] if i % 2 else timed:
            try:
                evaluated = workers[label].ask("time", clock="wall" if scenario.alone else "cpu")
                found[label].add(evaluate=evaluated, inside=workers[label].ask("inside"))
            except WorkerError as error:
                found[label].error = str(error)
                timed = [other for other in timed if other != label]


def finish(scenario: Scenario, found: Outcomes, workers: dict[str, Worker], scratch: Path) -> None:
    """Measure memory, and compare numbers with those of the reference."""
    if scenario.memory:
        for label, worker in workers.items():
            if (memory := worker.ask("memory")) is not None:
                found[label].facts["memory"] = memory
    if scenario.reference not in workers:
        return
    files = {label: scratch / f"{i}.npz" for i, label in enumerate(workers)}
    for label, worker in workers.items():
        worker.ask("values", file=str(files[label]))
    reference = files.pop(scenario.reference)
    for label, file in files.items():
        found[label].facts |= differences(file, reference)


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


def measured(bar: Bar, found: Outcomes) -> float | None:
    """What a bar is about; None where it could not be measured."""
    over = numbers_of(bar.over, found)
    if bar.under is None:
        return median(over) if over else None
    return ratio(over, numbers_of(bar.under, found))


def numbers_of(which: tuple[str, str], found: Outcomes) -> list[float]:
    """The numbers of (label, quantity)."""
    label, quantity = which
    if label == "*":
        return sorted(number for out in found.values() for number in out.numbers(quantity))[-1:]
    return found[label].numbers(quantity) if label in found else []


def ratio(over: list[float], under: list[float]) -> float | None:
    """Median of the ratios round by round, where there are as many of one as of the other.

    A machine that slows down for a while then hits both sides.
    """
    if not over or not under:
        return None
    if len(over) == len(under):
        return median(a / b for a, b in zip(over, under, strict=True))
    return median(over) / median(under)
