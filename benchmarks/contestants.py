"""What a worker process can measure: one class each.

Every contestant has `prepare`, which does the work before the first evaluation and returns the
quantities that it measured. Those that can be evaluated also have `time` and `values`.
"""

import ctypes
import importlib
from pathlib import Path

import numpy as np

from benchmarks.measure import stopwatch


def build(name: str, arguments: dict):
    """Build the model that ``"module.function"`` of this package makes of `arguments`."""
    module, function = name.rsplit(".", 1)
    return getattr(importlib.import_module(f"benchmarks.{module}"), function)(**arguments)


class Evaluated:
    """Base of the contestants that have a function to evaluate; `call` evaluates it once."""

    _n_calls = 0

    def call(self):
        """Evaluate once."""
        raise NotImplementedError

    def time(self, batch_seconds: float = 0.05) -> float:
        """Seconds of one call, the mean over a batch of calls that takes about `batch_seconds`."""
        if not self._n_calls:
            self.call()
            with stopwatch() as once:
                self.call()
            self._n_calls = max(1, round(batch_seconds / max(once["wall"], 1e-7)))
        with stopwatch() as batch:
            for _ in range(self._n_calls):
                self.call()
        return batch["wall"] / self._n_calls

    def memory(self) -> int | None:
        """Bytes by which calls raise the resident memory above its rest; None if not on Linux."""
        clear_refs = Path("/proc/self/clear_refs")
        if not clear_refs.exists():
            return None
        self.call()
        # give back what is free, or the calls find room in it
        ctypes.CDLL(None).malloc_trim(0)
        before = resident_memory("VmRSS")
        clear_refs.write_text("5")
        for _ in range(3):
            self.call()
        return resident_memory("VmHWM") - before


def resident_memory(field: str) -> int:
    """Bytes of a field of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [size] = [line.split()[1] for line in lines if line.startswith(field)]
    return int(size) * 1024


class PyMCModel(Evaluated):
    """Log-density and gradient of a PyMC model, compiled by PyMC.

    Parameters
    ----------
    model : str
        ``"module.function"`` of this package.
    arguments : dict
        Its arguments.
    plugin : bool
        Import pytensor_mvn_rewrites or not.
    mode : str, optional
        A mode of PyTensor.
    """

    def __init__(self, model: str, arguments: dict, plugin: bool, mode: str | None = None):
        import pymc  # noqa: F401

        if plugin:
            import pytensor_mvn_rewrites  # noqa: F401
        self.model = model
        self.arguments = arguments
        self.mode = mode

    def prepare(self) -> dict:
        """Build the model and compile its function: `build`, `compile` with the first call..."""
        from pymc.blocking import DictToArrayBijection

        with stopwatch() as building:
            model = build(self.model, self.arguments)
        point = model.initial_point(0)
        self.start = DictToArrayBijection.map(point).data
        with stopwatch() as compiling:
            self.function = model.logp_dlogp_function(
                ravel_inputs=True, initial_point=point, mode=self.mode
            )
            self.call()
        graph = self.function._pytensor_function.maker.fgraph
        return {
            "build": building["wall"],
            "compile": compiling["wall"],
            "compile_cpu": compiling["cpu"],
            "nodes": len(graph.apply_nodes),
            "dimensions": int(self.start.size),
            "largest_constant": largest_constant(graph),
        }

    def call(self):
        """Log-density and gradient at the initial point."""
        return self.function(self.start)

    def values(self, file: str, points: int = 5) -> None:
        """Save log-densities and gradients at the initial point and at random ones around it."""
        noise = np.random.default_rng(1).normal(scale=0.3, size=(points, self.start.size))
        noise[0] = 0
        found = [[np.array(out) for out in self.function(self.start + step)] for step in noise]
        logps, gradients = zip(*found, strict=True)
        np.savez(file, logp=logps, gradient=gradients)


class UnrewrittenModel(PyMCModel):
    """The same without any rewriting, evaluated node by node in Python: slow, and the numbers.

    It compiles nothing, and is ready when the compilation of a long loop would take hours.
    """

    def prepare(self) -> dict:
        """Build the model and differentiate the sum of its terms as they are."""
        import pytensor
        import pytensor.tensor as pt
        from pymc.blocking import DictToArrayBijection
        from pytensor.compile.mode import Mode

        model = build(self.model, self.arguments)
        raveled = DictToArrayBijection.map(model.initial_point(0))
        self.start = raveled.data
        by_name = {variable.name: variable for variable in model.value_vars}
        variables = [by_name[name] for name, *_ in raveled.point_map_info]
        # one by one: Python cannot add more than 32 arrays at a time
        total = sum(term.sum() for term in model.logp(sum=False))
        compiled = pytensor.function(
            variables, [total, *pt.grad(total, variables)], mode=Mode("py", optimizer=None)
        )

        def function(point):
            parts = DictToArrayBijection.rmap(type(raveled)(point, raveled.point_map_info))
            logp, *gradient = compiled(**parts)
            return logp, np.concatenate([part.ravel() for part in gradient])

        self.function = function
        return {"dimensions": int(self.start.size)}


def largest_constant(graph) -> int:
    """Bytes of the largest array that a compiled graph keeps."""
    kept = [v.data for v in graph.variables if hasattr(v, "data")]
    kept += [v.get_value(borrow=True) for v in graph.inputs if hasattr(v, "get_value")]
    return max((array.nbytes for array in kept if isinstance(array, np.ndarray)), default=0)


class Imports:
    """The import of the plugin after that of PyMC."""

    def prepare(self) -> dict:
        """Seconds for each."""
        with stopwatch() as first:
            import pymc  # noqa: F401
        with stopwatch() as second:
            import pytensor_mvn_rewrites  # noqa: F401
        return {"pymc": first["wall"], "plugin": second["wall"]}


class Sampling:
    """``pm.sample`` with the plugin, two chains on two cores."""

    def __init__(self, model: str, arguments: dict, sampler: str, draws: int):
        self.model = model
        self.arguments = arguments
        self.sampler = sampler
        self.draws = draws

    def prepare(self) -> dict:
        """Seconds from the model to the trace, draws and divergences."""
        import pymc as pm

        import pytensor_mvn_rewrites  # noqa: F401

        model = build(self.model, self.arguments)
        with stopwatch() as sampling, model:
            trace = pm.sample(
                draws=self.draws,
                tune=self.draws,
                chains=2,
                cores=2,
                nuts_sampler=self.sampler,
                random_seed=1,
                progressbar=False,
            )
        sizes = trace["posterior"].sizes
        return {
            "sampling": sampling["wall"],
            "draws": int(sizes["chain"] * sizes["draw"]),
            "divergences": int(trace["sample_stats"]["diverging"].sum()),
        }
