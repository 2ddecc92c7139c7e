"""What the pages of the gallery measure, as they are built."""

import time
from statistics import median

import numpy as np
import pymc as pm
from pymc.blocking import DictToArrayBijection

import pytensor_mvn_rewrites
from benchmarks.report import seconds

EVALUATIONS = 50


def times(**models: pm.Model) -> str:
    """Compile and evaluate the log-density with its gradient, and compare the numbers.

    Parameters
    ----------
    **models : pymc.Model
        Up to two: the model with the plugin, ``on``, and a model without it, ``off``. Their
        parameters are the same.

    Returns
    -------
    str
        A table of process CPU times: that to compile includes the derivation of the graph, and that
        to evaluate is the median of 50 calls. Below it the largest relative difference of the two
        log-densities, and of the two gradients, at the initial point.
    """
    lines = [f"{'plugin':8}{'compile':>10}{'evaluate':>12}"]
    results = []
    for label, model in models.items():
        switch = {"on": pytensor_mvn_rewrites.enable, "off": pytensor_mvn_rewrites.disable}[label]
        with switch():
            compiled, evaluated, result = measure(model)
        lines.append(f"{label:8}{seconds(compiled):>10}{seconds(evaluated):>12}")
        results.append(result)
    if len(results) == 2:
        logp, gradient = (relative_difference(*pair) for pair in zip(*results, strict=True))
        lines.append(f"difference: log-density {logp:.1e}, gradient {gradient:.1e}")
    return "\n".join(lines)


def measure(model: pm.Model):
    """CPU seconds to compile, CPU seconds of an evaluation, and what it returns."""
    point = DictToArrayBijection.map(model.initial_point(0))
    start = time.process_time()
    function = model.logp_dlogp_function(ravel_inputs=True)
    function.set_extra_values({})
    result = function(point)
    compiled = time.process_time() - start
    calls = []
    for _ in range(EVALUATIONS):
        start = time.process_time()
        function(point)
        calls.append(time.process_time() - start)
    return compiled, median(calls), result


def relative_difference(value, reference) -> float:
    """Largest difference, relative to the largest number of the reference."""
    return float(np.max(np.abs(np.subtract(value, reference))) / np.max(np.abs(reference)))
