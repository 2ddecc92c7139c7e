"""What the plugin costs models it has nothing to do for: their compile time with and without it.

    python -m benchmarks.plain              # the models of tests/plain_zoo.py, some minutes
    python -m benchmarks.plain hsgp ar      # some of them

Each round derives and compiles the log-density with its gradient of each model anew, on and off in
turns, in CPU seconds of this process. Functions are compiled for the Python linker: what Numba or
a C compiler takes comes on top, with and without the plugin.

A run of all models is kept in ``plain.json``, where :mod:`benchmarks.publish` finds it.
"""

import gc
import json
import statistics
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytensor
from pytensor.compile.mode import Mode

import pytensor_mvn_rewrites as mvn
from benchmarks.report import machine
from tests.plain_zoo import PLAIN_MODELS

RESULTS = Path(__file__).parent / "plain.json"
ROUNDS = 7

MODE = Mode(linker="py", optimizer="fast_run")


def compile_seconds(build, plugin: bool) -> float:
    """CPU seconds until the function of a new model has been compiled."""
    model = build()
    with nullcontext() if plugin else mvn.disable():
        # the garbage of earlier models is not this one's time, nor is it looked for meanwhile
        gc.collect()
        gc.disable()
        start = time.process_time()
        model.logp_dlogp_function(ravel_inputs=True, mode=MODE)
        seconds = time.process_time() - start
        gc.enable()
        return seconds


def main() -> None:
    """Print the seconds of each model off and on, the median ratio of its rounds, and of all."""
    names = sys.argv[1:] or list(PLAIN_MODELS)
    ratios = {}
    for name in names:
        compile_seconds(PLAIN_MODELS[name], plugin=True)  # imports and caches
        seconds = []
        for turn in range(ROUNDS):
            order = (False, True) if turn % 2 else (True, False)
            taken = {plugin: compile_seconds(PLAIN_MODELS[name], plugin) for plugin in order}
            seconds.append((taken[False], taken[True]))
        ratios[name] = round(statistics.median(on / off for off, on in seconds), 3)
        off, on = (statistics.median(column) for column in zip(*seconds, strict=True))
        print(f"{name:30} {off:6.2f} s {on:6.2f} s {ratios[name]:6.3f}", flush=True)  # noqa: T201
    print(f"median of {len(names)} models: {statistics.median(ratios.values()):.3f}")  # noqa: T201
    if ratios.keys() == PLAIN_MODELS.keys():
        RESULTS.write_text(json.dumps({"machine": machine(), "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    pytensor.config.cxx = ""
    warnings.simplefilter("ignore")
    main()
