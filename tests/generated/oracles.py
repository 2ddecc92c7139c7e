"""Compare a generated model with the graph as it was written, on every path that a user takes.

The reference is the log-density as PyMC writes it and its gradient, evaluated node by node without
any rewrite. Where PyTensor's own rewrites, with the plugin off, differ from it as well, the fault
is upstream: told apart, not failed.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import pytensor
import pytensor.tensor as pt
from pymc.logprob.utils import local_check_parameter_to_ninf_switch
from pymc.pytensorf import rewrite_pregrad
from pytensor.compile.mode import get_mode
from pytensor.graph.destroyhandler import DestroyHandler
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace, vectorize_graph
from pytensor.graph.rewriting.basic import dfs_rewriter

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites import fuse_model, pipeline
from pytensor_mvn_rewrites.generative.fuse import _made
from pytensor_mvn_rewrites.reference import split_wide_sum
from pytensor_mvn_rewrites.structure import _structure
from pytensor_mvn_rewrites.structure._structure import DENSE_IS_CHEAP
from tests.generated.grammar import Building, Model
from tests.harness import REFERENCE_MODE, densities_by_name, fused_point

#: Relative to the largest entry of a result.
RTOL = {False: 1e-7, True: 2e-3}

#: No compiler, no swallowed errors, and no time spent on where in the grammar a variable was made.
FLAGS = {"cxx": "", "on_opt_error": "warn", "traceback__limit": 0}

#: How many points are tried in each state of a model.
POINTS = 2


@dataclass
class Verdict:
    """What a check found; `upstream` names the paths on which PyTensor itself is wrong."""

    fired: Counter = field(default_factory=Counter)
    disagreements: dict[str, str] = field(default_factory=dict)
    upstream: dict[str, str] = field(default_factory=dict)
    #: why nothing could be compared: the model fails as written
    invalid: str = ""
    finite: bool = True


class _Errors(logging.Handler):
    def __init__(self):
        super().__init__(level=logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collect failing rewrites: our warnings, and what PyTensor logs."""
    handler, found = _Errors(), []
    logger = logging.getLogger("pytensor.graph")
    pipeline._failed.clear()
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)
    found += [str(w.message) for w in caught if issubclass(w.category, mvn.RewriteFailedWarning)]
    found += [message.strip().splitlines()[-1] for message in handler.messages]


@contextmanager
def changes_of_graphs() -> Iterator[Counter]:
    """Count the whole-graph rules that change a graph: not all of them say so themselves."""
    counted, apply = Counter(), pipeline.GuardedGraphRewriter.apply

    def counting(rule, fgraph):
        before = fgraph.apply_nodes.copy()
        apply(rule, fgraph)
        # a note about a graph is no node of it
        if before != fgraph.apply_nodes:
            counted[f"{rule.stage}/{rule.__name__}"] += 1

    pipeline.GuardedGraphRewriter.apply = counting
    try:
        yield counted
    finally:
        pipeline.GuardedGraphRewriter.apply = apply


@contextmanager
def quiet():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def density_and_gradient(inputs, logp, wrt=None):
    """A function of `inputs`, evaluated node by node."""
    return compiled(inputs, [logp, *gradient_of(logp, inputs if wrt is None else wrt)])


def gradient_of(logp, wrt):
    """The gradient as PyMC takes it, from a constant one."""
    one = {logp: pt.ones_like(logp) if logp.type.ndim else pt.ones((), dtype=logp.type.dtype)}
    return pytensor.grad(None, wrt, known_grads=one, disconnected_inputs="ignore")


def compiled(inputs, outputs):
    """A function, evaluated node by node."""
    return evaluated(inputs, checked(outputs))


def evaluated(inputs, outputs):
    return pytensor.function(inputs, outputs, mode=REFERENCE_MODE, on_unused_input="ignore")


def checked(outputs):
    """What PyMC does with parameter checks when it compiles, and nothing else."""
    fgraph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False)
    dfs_rewriter(local_check_parameter_to_ninf_switch, split_wide_sum).rewrite(fgraph)
    return list(fgraph.outputs)


class Paths:
    """The paths of one model through the rewriter: each is compiled once, and called many times."""

    def __init__(self, b: Building, context, worker=None):
        self.b, self.context, self.worker = b, context, worker
        self.functions: dict[str, object] = {}
        with context():
            self.prepare("whole", self.whole)
            # one of the others in each model: a rewrite is most of the time of a check
            other = ("step", "batch", "step", "lowered", "batch", "step")[b.spec.seed % 6]
            # where rules are to meet, those of the backend as well
            other = "lowered" if b.spec.parts else other
            self.prepare(other, getattr(self, other))

    def prepare(self, name, path):
        try:
            self.functions[name] = path()
        except Exception as error:
            self.functions[name] = error

    def whole(self):
        """All value variables are inputs: gradient-based samplers."""
        self.inputs = self.b.model.value_vars
        self.as_written = self.b.model.logp()
        # rewrites work in place
        copy = FunctionGraph(outputs=[self.as_written], clone=True, copy_inputs=False)
        [self.logp] = rewrite_pregrad(copy).outputs
        graph = checked([self.logp, *gradient_of(self.logp, self.inputs)])
        # a sample: a round trip takes as long as all else
        if self.worker is not None and self.b.spec.seed % 4 == 0:
            self.prepare("fresh", lambda: self.worker.send(self.inputs, graph))
            # what Python's linker has run before, inside of an op that is cached, keeps closures
            if "Can't pickle local object" in str(self.functions["fresh"]):
                del self.functions["fresh"]
        function = evaluated(self.inputs, graph)
        return lambda points: [function(*point) for point in points]

    def step(self):
        """One variable is an input, the others are shared: step methods."""
        inputs, first = self.b.model.value_vars, self.b.point(0)
        kept = self.b.spec.seed % len(inputs)
        shared = {
            var: pytensor.shared(value, f"{var.name}_shared", shape=var.type.shape)
            for var, value in zip(inputs, first, strict=True)
            if var is not inputs[kept]
        }
        logp = clone_replace([self.as_written], replace=shared, rebuild_strict=False)[0]
        function = density_and_gradient([inputs[kept]], rewrite_pregrad(logp))

        def call(points):
            results = []
            for point in points:
                for var, value in zip(inputs, point, strict=True):
                    if var in shared:
                        shared[var].set_value(value)
                logp, gradient = function(point[kept])
                results.append([logp, *[None] * kept, gradient])
            return results

        return call

    def batch(self):
        """The rewritten log-density of many points at once; variational inference, Pathfinder."""
        inputs = self.inputs
        batched = [pt.tensor(dtype=v.type.dtype, shape=(None, *v.type.shape)) for v in inputs]
        if self.b.spec.seed % 2:
            graph = vectorize_graph(
                [self.logp, *gradient_of(self.logp, inputs)],
                dict(zip(inputs, batched, strict=True)),
            )
        else:
            logp = vectorize_graph(self.logp, dict(zip(inputs, batched, strict=True)))
            graph = [logp, *gradient_of(logp, batched)]
        function = compiled(batched, graph)

        def call(points):
            results = function(*[np.stack(values) for values in zip(*points, strict=True)])
            n = len(points)
            results = [np.broadcast_to(r, np.shape(r) or (n,)) for r in results]
            return [[result[i] for result in results] for i in range(n)]

        return call

    def lowered(self):
        """All rewrites of a function that is compiled for Numba, run by Python."""
        mode = get_mode("NUMBA").excluding("fusion", "inplace")
        inputs = self.inputs
        graph = checked([self.logp, *gradient_of(self.logp, inputs)])
        fgraph = FunctionGraph(outputs=graph, clone=True, copy_inputs=False)
        # as when a function is compiled: PyTensor fuses some operations with work in place
        fgraph.attach_feature(DestroyHandler())
        with pytensor.config.change_flags(mode=mode):
            mode.optimizer.rewrite(fgraph)
        function = pytensor.function(
            inputs,
            fgraph.outputs,
            mode=REFERENCE_MODE,
            on_unused_input="ignore",
            accept_inplace=True,
        )
        return lambda points: [function(*point) for point in points]

    def call(self, name, points):
        """The results of one path at all points, or the exception."""
        function = self.functions[name]
        if isinstance(function, Exception):
            return function
        try:
            return function(points)
        except Exception as error:
            return error


def states(b: Building):
    """The states of a model: as built, with other data, with other sizes."""
    if b.spec.sizes:
        b.resize(b.spec.sizes[0], version=0)
    else:
        b.change_data(0)
    yield "as built"
    if b.makers:
        b.change_data(1)
        yield "other data"
    if b.spec.sizes:
        b.resize(b.spec.sizes[1], version=2)
        yield "other sizes"


def same(got, want, rtol) -> bool:
    """Whether the log-density and the gradient at one point agree."""
    finite = np.isfinite(want[0])
    for k, (one, other) in enumerate(zip(got, want, strict=False)):
        if one is None:
            continue
        one, other = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
        if one.shape != other.shape:
            return False
        if k and not finite:
            # the gradient of minus infinity is what it is
            continue
        scale = max(1.0, np.abs(other[np.isfinite(other)]).max(initial=0.0))
        if not np.allclose(one, other, rtol=rtol, atol=rtol * scale, equal_nan=True):
            return False
    return True


def describe(result) -> str:
    if isinstance(result, Exception):
        [text, *_] = str(result).splitlines() or [""]
        return f"{type(result).__name__}: {text[:200]}"
    logp, *gradient = result
    with np.printoptions(precision=5, threshold=6, suppress=True):
        parts = ["-" if g is None else str(np.asarray(g).ravel()) for g in gradient]
    return f"{np.asarray(logp).item():.8g} [{', '.join(parts)}]".replace("\n", " ")


def compare(b, paths: Paths, reference, only=None):
    """{state/path: (got, want)} where they differ, and whether all densities were finite."""
    rtol = RTOL[any(loop.float32 for loop in b.spec.loops)]
    found, finite = {}, True
    for number, state in enumerate(states(b)):
        points = [b.point(10 * number + i) for i in range(POINTS)]
        try:
            want = [reference(*point) for point in points]
        except Exception as error:
            want = error
        if not isinstance(want, Exception):
            finite &= all(np.isfinite(w[0]).all() for w in want)
        for name in list(paths.functions):
            if name == "fresh" and number:
                continue
            if only is not None and f"{state}/{name}" not in only:
                continue
            # what is pickled gives elsewhere what it gives here
            expected = paths.call("whole", points) if name == "fresh" else want
            got = paths.call(name, points)
            if isinstance(expected, Exception):
                continue
            if isinstance(got, Exception):
                found[f"{state}/{name}"] = describe(got), describe(expected[0])
                continue
            for one, other in zip(got, expected, strict=True):
                if not same(one, other, rtol):
                    found[f"{state}/{name}"] = describe(one), describe(other)
    return found, finite


def fused_differs(b: Building) -> str:
    """Where the model of ``fuse_model`` has another log-density at the same point, if anywhere."""
    fused = fuse_model(b.model)
    made = _made[fused].loops
    if not made and not _made[fused].blocks:
        return ""
    point = {v.name: value for v, value in zip(b.model.value_vars, b.point(0), strict=True)}
    try:
        want = densities_by_name(b.model, point)
    except Exception:
        return ""
    got = densities_by_name(fused, fused_point(b.model, fused, point))
    rtol = 1e-4 if any(loop.float32 for loop in b.spec.loops) else 1e-12
    for name, density in got.items():
        members = made[name].names if name in made else [name]
        terms = np.concatenate([np.ravel(want.pop(member)) for member in members])
        if not abs(density.sum() - terms.sum()) <= rtol * max(1.0, np.abs(terms).sum()):
            return f"{name}: got {density.sum()!r}, expected {terms.sum()!r}"
    return f"no density of {sorted(want)}" if want else ""


def check(spec: Model, worker=None) -> Verdict:
    """Build `spec` and compare all paths in all states with the graph as written."""
    verdict = Verdict()
    with pytensor.config.change_flags(**FLAGS):
        with quiet():
            try:
                b = spec.build()
                if not b.model.value_vars:
                    verdict.invalid = "no parameters"
                    return verdict
                with mvn.disable():
                    reference = density_and_gradient(b.model.value_vars, b.model.logp())
                reference(*b.point(0))
            except Exception as error:
                verdict.invalid = f"{type(error).__name__}: {str(error)[:300]}"
                return verdict
        with (
            watched() as failed,
            np.errstate(all="ignore"),
            pipeline.recording() as events,
            changes_of_graphs() as changed,
            # the small matrices of several parts would be one dense batch
            patch.object(_structure, "DENSE_IS_CHEAP", 0 if spec.parts else DENSE_IS_CHEAP),
        ):
            paths = Paths(b, nullcontext, worker)
            found, verdict.finite = compare(b, paths, reference)
        noted = (f"{e.stage}/{e.rule}" for e in events if isinstance(e, pipeline.Fired))
        # a rule that does both counts once
        verdict.fired = Counter(noted) | changed
        with quiet(), np.errstate(all="ignore"):
            try:
                fused = fused_differs(b)
            except Exception as error:
                fused = describe(error)
        if fused:
            verdict.disagreements["fused"] = fused
        if not found and not failed:
            return verdict
        with watched() as failed_without, np.errstate(all="ignore"):
            without, _ = compare(b, Paths(b, mvn.disable, worker), reference, only=found)
        for i, message in enumerate(failed):
            kind = verdict.upstream if message in failed_without else verdict.disagreements
            kind[f"warning {i}"] = message
        for name, (got, want) in found.items():
            kind = verdict.upstream if name in without else verdict.disagreements
            kind[name] = f"got {got}, expected {want}"
            if name in without:
                kind[name] += f", and without the plugin {without[name][0]}"
    return verdict
