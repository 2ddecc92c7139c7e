"""One measurement in a process of its own: ``python -m benchmarks.measure SPEC``.

SPEC is a JSON object with a `kind` (the name of a function below) and that function's arguments.
The last line of the output is the result, as JSON. Every measurement gets a fresh process so that
nothing which an earlier one left in memory can help it; what may be shared is the disk cache of
compiled code, and :func:`run` says which one.
"""

import json
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


@contextmanager
def stopwatch():
    """Time a block: the dict that it yields gets `wall` and `cpu`, in seconds."""
    times: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield times
    times["wall"] = time.perf_counter() - wall
    times["cpu"] = time.process_time() - cpu


def run(compiledir, kind: str, **arguments) -> dict:
    """Measure in a fresh process.

    Parameters
    ----------
    compiledir : path
        Directory for the compiled code of PyTensor and Numba. An empty one makes a cold run, and
        one that the same measurement has used before a warm run.
    kind : str
        Name of a function of this module.
    **arguments
        Its arguments.

    Raises
    ------
    RuntimeError
        If the process fails, with the end of what it wrote.
    """
    flags = [os.environ.get("PYTENSOR_FLAGS", ""), f"base_compiledir={compiledir}"]
    environment = os.environ | {"PYTENSOR_FLAGS": ",".join(filter(None, flags))}
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", json.dumps({"kind": kind} | arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(f"{kind} {arguments} failed:\n{process.stderr[-3000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def compile_and_evaluate(
    model: str,
    plugin: bool,
    arguments: dict,
    values_file: str = "",
    n_points: int = 5,
    again: int = 0,
) -> dict:
    """Build `model`, compile its log-density and gradient, and evaluate them at random points.

    Parameters
    ----------
    model : str
        Name in `benchmarks.models.MODELS`.
    plugin : bool
        Import pytensor_mvn_rewrites or not.
    arguments : dict
        Arguments of the model.
    values_file : str
        Where to save the log-densities (n_points,) and gradients (n_points, dimensions) as npz.
    n_points : int
        The initial point, and this number less one of random ones around it.
    again : int
        How often to build and compile the model again afterwards, in the same process.

    Returns
    -------
    dict
        `build`, `compile` (with the first call), `compile_again` (a list) and `evaluate` in
        seconds, `nodes` of the compiled graph, `max_rss` in bytes.
    """
    import numpy as np

    with stopwatch() as imports:
        import pymc  # noqa: F401

        if plugin:
            import pytensor_mvn_rewrites  # noqa: F401
    from pymc.blocking import DictToArrayBijection

    from benchmarks.models import MODELS

    with stopwatch() as build:
        pm_model = MODELS[model](**arguments)
    point = pm_model.initial_point(0)
    start = DictToArrayBijection.map(point).data

    def compile_function(pm_model):
        with stopwatch() as times:
            function = pm_model.logp_dlogp_function(ravel_inputs=True, initial_point=point)
            function(start)
        return function, times

    function, compilation = compile_function(pm_model)
    recompilations = [compile_function(MODELS[model](**arguments))[1] for _ in range(again)]

    noise = np.random.default_rng(1).normal(scale=0.3, size=(n_points, start.size))
    noise[0] = 0
    values = [[np.array(output) for output in function(start + step)] for step in noise]
    if values_file:
        logps, gradients = zip(*values, strict=True)
        np.savez(values_file, logp=logps, gradient=gradients)
    return {
        "imports": imports["wall"],
        "build": build["wall"],
        "compile": compilation["wall"],
        "compile_cpu": compilation["cpu"],
        "compile_again": [times["wall"] for times in recompilations],
        "evaluate": seconds_per_call(lambda: function(start)),
        "nodes": len(function._pytensor_function.maker.fgraph.apply_nodes),
        "dimensions": int(start.size),
        "max_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def seconds_per_call(call, *, batch_seconds: float = 0.05, batches: int = 15) -> float:
    """Median over batches of calls that take about `batch_seconds` each."""
    call()
    with stopwatch() as once:
        call()
    n_calls = max(1, round(batch_seconds / max(once["wall"], 1e-9)))
    medians = []
    for _ in range(batches):
        with stopwatch() as batch:
            for _ in range(n_calls):
                call()
        medians.append(batch["wall"] / n_calls)
    return sorted(medians)[batches // 2]


def import_time() -> dict:
    """Import PyMC, then the plugin; seconds for each."""
    with stopwatch() as pymc_import:
        import pymc  # noqa: F401
    with stopwatch() as plugin_import:
        import pytensor_mvn_rewrites  # noqa: F401
    return {"pymc": pymc_import["wall"], "plugin": plugin_import["wall"]}


def sample(n: int, sampler: str, draws: int, tune: int) -> dict:
    """Run ``pm.sample`` on the loop model, with the plugin."""
    import pymc as pm

    import pytensor_mvn_rewrites  # noqa: F401
    from benchmarks.models import loop

    model = loop(n)
    with stopwatch() as sampling, model:
        trace = pm.sample(
            draws=draws,
            tune=tune,
            chains=2,
            cores=2,
            nuts_sampler=sampler,
            random_seed=1,
            progressbar=False,
        )
    posterior = trace["posterior"]
    return {
        "seconds": sampling["wall"],
        "draws": int(posterior.sizes["chain"] * posterior.sizes["draw"]),
        "divergences": int(trace["sample_stats"]["diverging"].sum()),
        "scale_mean": float(posterior["scale"].mean()),
    }


KINDS = {function.__name__: function for function in (compile_and_evaluate, import_time, sample)}


def main():
    """Do what the specification on the command line says."""
    specification = json.loads(sys.argv[1])
    result = KINDS[specification.pop("kind")](**specification)
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
