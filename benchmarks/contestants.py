"""What a worker process can measure: one class each.

`prepare` does the work before the first evaluation and returns the CPU seconds that it took. What
can be evaluated also has `call`, on which the rest stands.
"""

import ctypes
import importlib
import os
import time
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np


@contextmanager
def stopwatch():
    """Time a block: the dict that it yields gets `wall` and `cpu` (compilers included), seconds."""
    times: dict[str, float] = {}
    wall, own, children = time.perf_counter(), time.process_time(), sum(os.times()[2:4])
    yield times
    times["wall"] = time.perf_counter() - wall
    times["cpu"] = time.process_time() - own + sum(os.times()[2:4]) - children


def build(name: str, arguments: dict):
    """Build the model that ``"module.function"`` of this package makes of `arguments`."""
    module, function = name.rsplit(".", 1)
    return getattr(importlib.import_module(f"benchmarks.{module}"), function)(**arguments)


class Contestant:
    """Something that is prepared, and then evaluated by `call`.

    Parameters
    ----------
    plugin : bool
        Import pytensor_mvn_rewrites or not.
    """

    _n_calls = 0

    def __init__(self, plugin: bool):
        import pymc  # noqa: F401

        if plugin:
            import pytensor_mvn_rewrites  # noqa: F401

    def call(self):
        """Evaluate once."""
        raise NotImplementedError

    def time(self, clock: str = "cpu", batch_seconds: float = 0.05) -> float:
        """Seconds of one call, the mean over a batch of calls that takes about `batch_seconds`."""
        if not self._n_calls:
            self.call()
            with stopwatch() as once:
                self.call()
            self._n_calls = max(1, round(batch_seconds / max(once["cpu"], 1e-7)))
        with stopwatch() as batch:
            for _ in range(self._n_calls):
                self.call()
        return batch[clock] / self._n_calls

    def inside(self) -> float | None:
        """CPU seconds of one evaluation that compiled code calls, if there is such code."""
        return None

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


class PyMCModel(Contestant):
    """Log-density and gradient of a PyMC model, compiled by PyMC.

    Parameters
    ----------
    model : str
        ``"module.function"`` of this package.
    arguments : dict
        Its arguments.
    plugin : bool
    mode : str, optional
        A mode of PyTensor.
    """

    def __init__(self, model: str, arguments: dict, plugin: bool, mode: str | None = None):
        super().__init__(plugin)
        self.model = model
        self.arguments = arguments
        self.mode = mode

    def prepare(self) -> dict:
        """Build the model (`build`) and compile its function with a first call (`compile`).

        `logp` is what PyMC takes of the latter for the graph of the log-density.
        """
        from pymc.blocking import DictToArrayBijection

        with stopwatch() as building:
            model = build(self.model, self.arguments)
        point = model.initial_point(0)
        self.start = DictToArrayBijection.map(point).data
        logp_of, deriving = model.logp, {}

        def logp(*args, **kwargs):
            nonlocal deriving
            with stopwatch() as deriving:
                return logp_of(*args, **kwargs)

        model.logp = logp
        with stopwatch() as compiling:
            self.function = model.logp_dlogp_function(
                ravel_inputs=True, initial_point=point, mode=self.mode
            )
            self.call()
        return {"build": building["cpu"], "compile": compiling["cpu"], "logp": deriving["cpu"]}

    def call(self):
        """Log-density and gradient at the initial point."""
        return self.function(self.start)

    @cached_property
    def _compiled_loop(self):
        """A function of Numba's that evaluates at a point so many times; None without Numba."""
        compiled = getattr(self.function._pytensor_function.vm, "jit_fn", None)
        if compiled is None or "numba" not in type(compiled).__module__:
            return None
        import numba

        # the storages of the function: the point comes first, what is shared follows
        _, *shared = (cell.storage[0] for cell in self.function._pytensor_function.input_storage)

        @numba.njit
        def loop(n_calls, point, shared):
            for _ in range(n_calls):
                compiled(point, *shared)

        return lambda n_calls: loop(n_calls, self.start, tuple(shared))

    def inside(self, batch_seconds: float = 0.05) -> float | None:
        """CPU seconds of one evaluation that compiled code calls, as nutpie does.

        A call from Python takes some microseconds more, whatever the model. None without Numba.
        """
        if self._compiled_loop is None:
            return None
        self._compiled_loop(1)
        with stopwatch() as once:
            self._compiled_loop(10)
        n_calls = max(1, round(10 * batch_seconds / max(once["cpu"], 1e-7)))
        with stopwatch() as batch:
            self._compiled_loop(n_calls)
        return batch["cpu"] / n_calls

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
        return {}


class Density(Contestant):
    """The bare density: N vectors of length n, log-densities summed, and all gradients.

    Value, mean and covariance (or Cholesky factor) are the inputs, so nothing can be precomputed.
    `prepare` measures nothing: these share their compiled code between sizes.

    Parameters
    ----------
    count, n : int
        Number of vectors and length of each.
    param : {"cov", "chol"}
    plugin : bool
    """

    def __init__(self, count: int, n: int, param: str, plugin: bool = False):
        super().__init__(plugin)
        self.n = n
        self.param = param
        rng = np.random.default_rng(0)
        value, mu = rng.normal(size=(2, count, n))
        roots = rng.normal(size=(count, n, n))
        covs = roots @ roots.mT / n + np.eye(n)
        self.inputs = [value, mu, np.linalg.cholesky(covs) if param == "chol" else covs]

    def call(self):
        """Evaluate, and wait for the result: the sum and the three gradients."""
        logp, *gradients = self.function(*self.inputs)
        return [np.asarray(out) for out in (logp, *gradients)]

    def values(self, file: str) -> None:
        """Save log-density and gradients; that for a covariance as the symmetric matrix."""
        logp, *vectors, matrix = self.call()
        if self.param == "cov":
            # some systems give the gradient for the lower triangle
            matrix = (matrix + matrix.mT) / 2
        gradient = np.concatenate([part.ravel() for part in (*vectors, np.tril(matrix))])
        np.savez(file, logp=[logp], gradient=[gradient])


class PyTensorDensity(Density):
    """PyMC's MvNormal, differentiated and compiled as PyMC does it.

    Parameters
    ----------
    mode : str, optional
        A mode of PyTensor.
    threads : int
        How many threads the plugin may use.
    **size
        As of :class:`Density`.
    """

    def __init__(self, mode: str | None = None, threads: int = 1, **size):
        super().__init__(**size)
        self.mode = mode
        self.threads = threads

    def prepare(self) -> dict:
        """Compile a function of the three inputs; only their core size is known to it."""
        import pymc as pm
        import pytensor
        import pytensor.tensor as pt
        from pymc.pytensorf import rewrite_pregrad

        variables = [
            pt.tensor(shape=(None, *core)) for core in ((self.n,), (self.n,), (self.n, self.n))
        ]
        value, mu, matrix = variables
        logp = pm.logp(pm.MvNormal.dist(mu, **{self.param: matrix}), value).sum()
        logp = rewrite_pregrad(logp)
        flags = {"mvn_rewrites__threads": self.threads} if self.threads > 1 else {}
        with pytensor.config.change_flags(**flags):
            self.function = pytensor.function(
                variables, [logp, *pt.grad(logp, variables)], mode=self.mode
            )
        self.function.trust_input = True
        self.call()
        return {}


class NumPyroDensity(Density):
    """NumPyro's MultivariateNormal, jitted with its gradients, in double precision."""

    def prepare(self) -> dict:
        """Compile."""
        import jax

        jax.config.update("jax_enable_x64", True)
        from numpyro.distributions import MultivariateNormal

        keyword = {"cov": "covariance_matrix", "chol": "scale_tril"}[self.param]

        def logp(value, mu, matrix):
            return MultivariateNormal(mu, **{keyword: matrix}).log_prob(value).sum()

        jitted = jax.jit(jax.value_and_grad(logp, argnums=(0, 1, 2)))

        def function(*inputs):
            value, gradients = jitted(*inputs)
            return value, *gradients

        self.function = function
        self.call()
        return {}


class LimitDensity(Density):
    """The C++ kernel of ``limit.cpp``; its gradients go to the same arrays each time."""

    def prepare(self) -> dict:
        """Compile."""
        from benchmarks.limit import build

        self.inputs = [np.ascontiguousarray(array) for array in self.inputs]
        self.outputs = [np.empty_like(array) for array in self.inputs]
        # ctypes takes longer to look at six arrays than the kernel for a few hundred matrices
        self.addresses = [array.ctypes.data for array in (*self.inputs, *self.outputs)]
        self.kernel = build(self.n, self.param)
        self.call()
        return {}

    def call(self):
        """Evaluate."""
        logp = self.kernel(len(self.inputs[0]), *self.addresses)
        return [logp, *self.outputs]


class Importing(Contestant):
    """The import of the plugin, in a process that has imported PyMC."""

    def prepare(self) -> dict:
        """CPU seconds."""
        with stopwatch() as importing:
            import pytensor_mvn_rewrites  # noqa: F401
        return {"import": importing["cpu"]}


class Fitting(PyMCModel):
    """ADVI of a PyMC model; `call` is one step."""

    def prepare(self) -> dict:
        """Build the model, and compile with the first step."""
        import pymc as pm

        with stopwatch() as building:
            model = build(self.model, self.arguments)
        with stopwatch() as compiling, model:
            advi = pm.ADVI(random_seed=1)
            advi.fit(1, progressbar=False)
        self.call = advi.state.step
        return {"build": building["cpu"], "compile": compiling["cpu"]}

    def inside(self) -> None:
        """Steps are called from Python."""


class Predictive(PyMCModel):
    """Prior and posterior predictive of a PyMC model, compilation included.

    Parameters
    ----------
    draws : int
    **described
        As of :class:`PyMCModel`.
    """

    def __init__(self, draws: int, **described):
        super().__init__(**described)
        self.draws = draws

    def prepare(self) -> dict:
        """CPU seconds of each and of both; a fused loop has to come back exactly by ``unfuse``.

        Before, Numba loads what it takes to run anything: as long as the rest of a fused model.
        """
        import pymc as pm

        pm.draw(pm.Normal.dist())
        model = build(self.model, self.arguments)
        options = {"model": model, "random_seed": 1}
        with stopwatch() as prior:
            samples = pm.sample_prior_predictive(self.draws, **options)
        samples["posterior"] = samples["prior"]
        with stopwatch() as posterior:
            predictive = pm.sample_posterior_predictive(samples, progressbar=False, **options)
        drawn = predictive["posterior_predictive"].to_dataset()
        if list(drawn.data_vars) == ["x"] and not comes_back(drawn, model):
            raise AssertionError("unfuse does not give back what was drawn")
        return {
            "prior": prior["cpu"],
            "posterior": posterior["cpu"],
            "draws": prior["cpu"] + posterior["cpu"],
        }


def comes_back(drawn, model) -> bool:
    """Whether the batch of a fused loop is what its members have."""
    from pytensor_mvn_rewrites import unfuse

    back = unfuse(drawn, model)
    names = [f"x_{label}" for label in model.coords["x_loop"]]
    if sorted(back.data_vars) != sorted(names):
        return False
    return np.array_equal(np.stack([back[name] for name in names], axis=2), drawn["x"])
