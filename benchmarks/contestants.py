"""What a worker process can measure: one class each.

Every contestant has `prepare`, which does the work before the first evaluation and returns the
quantities that it measured. Those that can be evaluated also have `time` and `values`.
"""

import ctypes
import importlib
import time
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np


@contextmanager
def stopwatch():
    """Time a block: the dict that it yields gets `wall` and `cpu`, in seconds."""
    times: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield times
    times["wall"] = time.perf_counter() - wall
    times["cpu"] = time.process_time() - cpu


def build(name: str, arguments: dict):
    """Build the model that ``"module.function"`` of this package makes of `arguments`."""
    module, function = name.rsplit(".", 1)
    return getattr(importlib.import_module(f"benchmarks.{module}"), function)(**arguments)


def import_packages(plugin: bool, skip: str) -> None:
    """Import PyMC, and the plugin without some of its stages."""
    import pymc  # noqa: F401
    import pytensor

    if plugin:
        import pytensor_mvn_rewrites  # noqa: F401

        pytensor.config.mvn_rewrites__skip = skip


class Evaluated:
    """Base of the contestants that have a function to evaluate; `call` evaluates it once."""

    _n_calls = 0

    def call(self):
        """Evaluate once."""
        raise NotImplementedError

    def time(self, clock: str = "wall", batch_seconds: float = 0.05) -> float:
        """Seconds of one call, the mean over a batch of calls that takes about `batch_seconds`.

        Parameters
        ----------
        clock : {"wall", "cpu"}
        batch_seconds : float
        """
        if not self._n_calls:
            self.call()
            with stopwatch() as once:
                self.call()
            self._n_calls = max(1, round(batch_seconds / max(once["cpu"], 1e-7)))
        with stopwatch() as batch:
            for _ in range(self._n_calls):
                self.call()
        return batch[clock] / self._n_calls

    def inside(self, clock: str = "wall") -> float | None:
        """Seconds of one evaluation that compiled code calls, if there is such code."""
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
    skip : str
        Stages of the plugin to leave out.
    """

    def __init__(
        self, model: str, arguments: dict, plugin: bool, mode: str | None = None, skip: str = ""
    ):
        import_packages(plugin, skip)
        self.model = model
        self.arguments = arguments
        self.mode = mode

    def prepare(self) -> dict:
        """Build the model and compile its function: `build`, `compile` with the first call...

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
        graph = self.function._pytensor_function.maker.fgraph
        return {
            "build": building["wall"],
            "compile": compiling["wall"],
            "compile_cpu": compiling["cpu"],
            "logp": deriving["wall"],
            "nodes": len(graph.apply_nodes),
            "dimensions": int(self.start.size),
            "largest_constant": largest_constant(graph),
        }

    def call(self):
        """Log-density and gradient at the initial point; JAX has to be waited for."""
        outputs = self.function(self.start)
        return [np.asarray(out) for out in outputs] if self.mode == "JAX" else outputs

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

    def inside(self, clock: str = "wall", batch_seconds: float = 0.05) -> float | None:
        """Seconds of one evaluation that compiled code calls, as nutpie does; None without Numba.

        A call from Python takes some microseconds more, whatever the model.
        """
        if self._compiled_loop is None:
            return None
        self._compiled_loop(1)
        with stopwatch() as once:
            self._compiled_loop(10)
        n_calls = max(1, round(10 * batch_seconds / max(once["cpu"], 1e-7)))
        with stopwatch() as batch:
            self._compiled_loop(n_calls)
        return batch[clock] / n_calls

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


class Density(Evaluated):
    """Base of the contestants of :mod:`benchmarks.oplevel`.

    `call` returns the sum of the log-densities and the gradients for value, mean and matrix.
    `prepare` measures nothing: these share their compiled code between sizes.

    Parameters
    ----------
    count, n : int
        Number of vectors and length of each.
    param : {"cov", "chol"}
    """

    def __init__(self, count: int, n: int, param: str):
        from benchmarks.oplevel import inputs

        self.n = n
        self.param = param
        self.inputs = inputs(count, n, param)

    def values(self, file: str) -> None:
        """Save log-density and gradients; that for a covariance as the symmetric matrix."""
        logp, *vectors, matrix = (np.asarray(out) for out in self.call())
        if self.param == "cov":
            # some systems give the gradient for the lower triangle
            matrix = (matrix + matrix.mT) / 2
        gradient = np.concatenate([part.ravel() for part in (*vectors, np.tril(matrix))])
        np.savez(file, logp=[logp], gradient=[gradient])


class PyTensorDensity(Density):
    """PyMC's MvNormal, differentiated and compiled as PyMC does it.

    Parameters
    ----------
    count, n, param
        As :class:`Density`.
    plugin : bool
        Import pytensor_mvn_rewrites or not.
    mode : str, optional
        A mode of PyTensor.
    skip : str
        Stages of the plugin to leave out.
    threads : int
        How many threads the plugin may use.
    """

    def __init__(
        self, plugin: bool, mode: str | None = None, skip: str = "", threads: int = 1, **size
    ):
        super().__init__(**size)
        import_packages(plugin, skip)
        self.mode = mode
        self.threads = threads

    def prepare(self) -> dict:
        """Compile a function of the three inputs; only their core size is known to it."""
        import pymc as pm
        import pytensor
        import pytensor.tensor as pt
        from pymc.pytensorf import rewrite_pregrad

        n = self.n
        variables = [pt.tensor(shape=(None, *core)) for core in ((n,), (n,), (n, n))]
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

    def call(self):
        """Evaluate, and wait for the result."""
        outputs = self.function(*self.inputs)
        return [np.asarray(out) for out in outputs]


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

        self.function = jax.jit(jax.value_and_grad(logp, argnums=(0, 1, 2)))
        self.call()
        return {}

    def call(self):
        """Evaluate, and wait for the result."""
        logp, gradients = self.function(*self.inputs)
        return [np.asarray(out) for out in (logp, *gradients)]


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


class NumPyroModel(Evaluated):
    """Log-density and gradient of a NumPyro model on the unconstrained space, jitted.

    Parameters
    ----------
    model : str
        ``"module.function"`` of this package. The function returns a NumPyro model and the names of
        its variables in the order of the raveled point.
    arguments : dict
        Its arguments.
    """

    def __init__(self, model: str, arguments: dict):
        self.model = model
        self.arguments = arguments

    def prepare(self) -> dict:
        """Build, and compile with the first call."""
        import jax

        jax.config.update("jax_enable_x64", True)
        from numpyro.infer.util import initialize_model

        with stopwatch() as building:
            model, names = build(self.model, self.arguments)
            info = initialize_model(jax.random.key(0), model)
        shapes = {name: info.param_info.z[name].shape for name in names}
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
        # where PyMC starts: one for positive variables, zero for the others
        self.start = np.zeros(ends[-1])

        def logp(point):
            parts = jax.numpy.split(point, ends[:-1])
            named = zip(shapes.items(), parts, strict=True)
            return -info.potential_fn({name: part.reshape(shape) for (name, shape), part in named})

        jitted = jax.jit(jax.value_and_grad(logp))
        self.function = lambda point: [np.asarray(out) for out in jitted(point)]
        with stopwatch() as compiling:
            self.call()
        return {
            "build": building["wall"],
            "compile": compiling["wall"],
            "dimensions": int(self.start.size),
        }

    def call(self):
        """Log-density and gradient at the start."""
        return self.function(self.start)

    values = PyMCModel.values


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


class Fitting(Evaluated):
    """ADVI of a PyMC model; `call` is one step.

    Parameters
    ----------
    model, arguments, plugin
        As :class:`PyMCModel`.
    """

    def __init__(self, model: str, arguments: dict, plugin: bool):
        import_packages(plugin, "")
        self.model = model
        self.arguments = arguments

    def prepare(self) -> dict:
        """Build the model, and compile with the first step."""
        import pymc as pm

        with stopwatch() as building:
            model = build(self.model, self.arguments)
        with stopwatch() as compiling, model:
            advi = pm.ADVI(random_seed=1)
            advi.fit(1, progressbar=False)
        self.call = advi.state.step
        return {
            "build": building["wall"],
            "compile": compiling["wall"],
            "compile_cpu": compiling["cpu"],
        }


class Predictive:
    """Prior and posterior predictive of a PyMC model, compilation included.

    Parameters
    ----------
    model, arguments, plugin
        As :class:`PyMCModel`.
    draws : int
    """

    def __init__(self, model: str, arguments: dict, plugin: bool, draws: int):
        import_packages(plugin, "")
        self.model = model
        self.arguments = arguments
        self.draws = draws

    def prepare(self) -> dict:
        """Seconds for each and for both, and whether ``unfuse`` gives back what was drawn."""
        import pymc as pm

        with stopwatch() as building:
            model = build(self.model, self.arguments)
        options = {"model": model, "random_seed": 1}
        with stopwatch() as prior:
            samples = pm.sample_prior_predictive(self.draws, **options)
        samples["posterior"] = samples["prior"]
        with stopwatch() as posterior:
            predictive = pm.sample_posterior_predictive(samples, progressbar=False, **options)
        quantities = {
            "build": building["wall"],
            "prior": prior["wall"],
            "posterior": posterior["wall"],
            "draws": prior["wall"] + posterior["wall"],
        }
        drawn = predictive["posterior_predictive"].to_dataset()
        if list(drawn.data_vars) == ["x"]:
            quantities["round_trip"] = float(self.comes_back(drawn, model))
        return quantities

    def comes_back(self, drawn, model) -> bool:
        """Whether the batch of a fused loop is what its members have."""
        from pytensor_mvn_rewrites import unfuse

        back = unfuse(drawn, model)
        names = [f"x_{label}" for label in model.coords["x_loop"]]
        if sorted(back.data_vars) != sorted(names):
            return False
        return np.array_equal(np.stack([back[name] for name in names], axis=2), drawn["x"])
