"""What every test of a rule uses: `assert_rewrites_to` and `assert_declines`.

Everything here runs on the Python linker without optimizer, unless it is about the whole pipeline.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.logprob.rewriting import logprob_rewrites_db, specialization_ir_rewrites_db
from pymc.pytensorf import rewrite_pregrad
from pytensor.compile.mode import Mode, optdb
from pytensor.graph.basic import Variable, equal_computations
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.utils import rewrite_graph
from pytensor.graph.traversal import ancestors

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites._upstream import NAMES
from pytensor_mvn_rewrites.generative import densities
from pytensor_mvn_rewrites.generative.fuse import _made
from pytensor_mvn_rewrites.ops import mvnormal_logp
from pytensor_mvn_rewrites.ops.gaussian import GaussianOp
from pytensor_mvn_rewrites.pipeline import RULES, Fired, GuardedGraphRewriter, recording

ifelse = import_module(NAMES["IfElse"]).ifelse

#: What PyMC and nutpie do before they take the gradient.
PRE_GRADIENT = ("canonicalize", "stabilize")

#: The graph as it was written, evaluated node by node.
REFERENCE_MODE = Mode(linker="py", optimizer=None)

#: All rewrites of a compiled function, evaluated node by node; Python cannot run large fused loops.
PIPELINE_MODE = Mode(linker="py", optimizer="fast_run").excluding("fusion")

#: How many eps of the dtype two orders of evaluation may differ by, relative to the largest entry
#: of the result, for a matrix of condition number 1. One more derivative, one more solve.
ROUNDING = {"value": 2e2, "gradient": 2e3, "hessian": 2e4}


def rtol(quantity: str, dtype="float64", condition: float = 1.0) -> float:
    """Tolerance for `quantity`: `ROUNDING` times eps times the condition number of the matrix."""
    return ROUNDING[quantity] * float(np.finfo(dtype).eps) * condition


def assert_close(actual, expected, quantity: str, dtype="float64", condition: float = 1.0) -> None:
    """Compare two arrays with the tolerance of `quantity`, relative to the largest entry."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    tol = rtol(quantity, dtype, condition)
    finite = np.abs(expected[np.isfinite(expected)])
    scale = max(1.0, float(finite.max(initial=0.0))) if quantity != "value" else 1.0
    np.testing.assert_allclose(actual, expected, rtol=tol, atol=tol * scale)


def evaluate(outputs: Sequence[Variable], values: Mapping[Variable, object], mode=REFERENCE_MODE):
    """The values of `outputs` at `values`."""
    fn = pytensor.function(list(values), list(outputs), mode=mode, on_unused_input="ignore")
    return fn(*values.values())


def rewritten(graph: Sequence[Variable], include=PRE_GRADIENT) -> list[Variable]:
    """A copy of `graph` after the pre-gradient pass."""
    return rewrite_graph(list(graph), include=include, clone=True)


def gradient(graph: Sequence[Variable], wrt: Sequence[Variable]) -> list[Variable]:
    """Gradient of the sum of all float outputs."""
    total = sum(out.sum() for out in graph if out.type.dtype.startswith("float"))
    return pt.grad(total, list(wrt), disconnected_inputs="ignore")


def our_ops(graph: Sequence[Variable] | FunctionGraph) -> Counter:
    """How often each op of this package occurs, by the name that `dprint` shows."""
    if isinstance(graph, FunctionGraph):
        nodes = graph.apply_nodes
    else:
        nodes = {var.owner for var in ancestors(list(graph)) if var.owner}
    return Counter(str(node.op) for node in nodes if isinstance(node.op, GaussianOp))


def _as_list(graph) -> list[Variable]:
    return list(graph) if isinstance(graph, list | tuple) else [graph]


def same_graphs(left: Sequence[Variable], right: Sequence[Variable]) -> bool:
    return equal_computations(list(left), list(right), strict_dtype=False)


def _dprint(graph) -> str:
    return pytensor.dprint(list(graph), file="str", print_type=True)


def float_dtype(graph: Sequence[Variable]) -> str:
    """The least precise dtype of the float outputs."""
    return min((v.type.dtype for v in graph if v.type.dtype.startswith("float")), key=len)


def assert_settled(new: Sequence[Variable]) -> None:
    """No rule fires on what rules have made; PyTensor may tidy it up."""
    again = rewritten(new)
    if same_graphs(again, new):
        return
    with mvn.disable():
        tidy = rewritten(new)
    assert same_graphs(again, tidy), f"a second application changed the graph to\n{_dprint(again)}"


def assert_same_numbers(
    graph,
    new,
    values: Mapping[Variable, object],
    *,
    wrt: Sequence[Variable] | None = None,
    condition: float = 1.0,
) -> None:
    """`new` has the values and the gradients of `graph`, neither of them rewritten further."""
    graph, new = _as_list(graph), _as_list(new)
    dtype = float_dtype(graph)
    if wrt is None:
        wrt = [var for var in values if var.type.dtype.startswith("float")]
    quantities = ["value"] * len(graph) + ["gradient"] * len(wrt)
    results = [evaluate([*each, *gradient(each, wrt)], values) for each in (new, graph)]
    for quantity, got, want in zip(quantities, *results, strict=True):
        assert_close(got, want, quantity, dtype, condition)


def assert_rewrites_to(
    graph,
    expected,
    values: Mapping[Variable, object],
    *,
    wrt: Sequence[Variable] | None = None,
    condition: float = 1.0,
) -> None:
    """The rule fires, gives exactly `expected`, and changes no number.

    Parameters
    ----------
    graph : tensor or list of tensors
        As a user writes it.
    expected : tensor or list of tensors
        The graph after the rewrite, by hand. What PyTensor itself canonicalizes in it, such as the
        order of scalar products, does not matter.
    values : dict
        Every input of `graph` with its value.
    wrt : sequence of tensors, optional
        Inputs of the gradient check; all float inputs by default.
    condition : float
        Condition number of the worst matrix, for the tolerances.
    """
    graph, expected = _as_list(graph), _as_list(expected)
    dtype = float_dtype(graph)
    new = rewritten(graph)
    with mvn.disable():
        by_hand = rewritten(expected)
    assert same_graphs(new, by_hand), f"got\n{_dprint(new)}\nexpected\n{_dprint(by_hand)}"
    assert [v.type.dtype for v in new] == [v.type.dtype for v in graph]

    assert_settled(new)

    assert_same_numbers(graph, new, values, wrt=wrt, condition=condition)

    # the ops are there in a function compiled with all rewrites
    fn = pytensor.function(list(values), graph, mode=PIPELINE_MODE, on_unused_input="ignore")
    assert our_ops(fn.maker.fgraph) == our_ops(by_hand)
    for got, want in zip(fn(*values.values()), evaluate(graph, values), strict=True):
        assert_close(got, want, "value", dtype, condition)


def assert_declines(graph, values: Mapping[Variable, object] | None = None) -> None:
    """No rule fires: the graph after the pre-gradient pass is the one without the plugin.

    With `values`, also that a function compiled with all rewrites gives the unrewritten numbers.
    """
    graph = _as_list(graph)
    new = rewritten(graph)
    with mvn.disable():
        without = rewritten(graph)
    assert our_ops(new) == our_ops(without), _dprint(new)
    assert same_graphs(new, without), f"got\n{_dprint(new)}\nwithout the plugin\n{_dprint(without)}"
    if values is None:
        return
    fn = pytensor.function(list(values), graph, mode=PIPELINE_MODE, on_unused_input="ignore")
    assert our_ops(fn.maker.fgraph) == our_ops(without)
    with mvn.disable():
        reference = evaluate(graph, values)
    for got, want in zip(fn(*values.values()), reference, strict=True):
        assert_close(got, want, "value", np.asarray(want).dtype)


def random_points(model: pm.Model, *, points: int = 2, seed: int = 0) -> list[dict]:
    """Points around the initial one, far enough to be in general position."""
    rng = np.random.default_rng(seed)
    start = model.initial_point()
    return [
        {
            name: (value + 0.3 * rng.normal(size=np.shape(value))).astype(value.dtype)
            for name, value in start.items()
        }
        for _ in range(points)
    ]


def logp_and_gradient(model: pm.Model, mode: Mode):
    """A function of a point: the log-density of a model and its gradient, a list of arrays.

    The gradient is that of the rewritten log-density, as PyMC takes it; in `REFERENCE_MODE` nothing
    is rewritten.
    """
    logp = model.logp() if mode is REFERENCE_MODE else rewrite_pregrad(model.logp())
    outputs = [logp, *pt.grad(logp, model.value_vars)]
    return model.compile_fn(outputs, inputs=model.value_vars, mode=mode)


def on_and_off(compile_function: Callable[[Mode], Callable], without: Mode = REFERENCE_MODE):
    """A function with the plugin and all rewrites, and as the graph was written.

    PyMC makes -inf of parameters that fail a check in a rewrite of its own: where there are such,
    the function `without` the plugin needs `PIPELINE_MODE`.
    """
    on = compile_function(PIPELINE_MODE)
    with mvn.disable():
        off = compile_function(without)
    return on, off


def assert_functions_agree(on, off, points: Sequence[dict], rtol: float = 1e-9) -> None:
    """Functions of :func:`logp_and_gradient` agree; `rtol` is that of the gradient."""
    for point in points:
        (logp, *gradients), (want, *expected) = on(point), off(point)
        assert np.isfinite(want)
        np.testing.assert_allclose(logp, want, rtol=0.1 * rtol)
        for got, wanted in zip(gradients, expected, strict=True):
            assert np.isfinite(wanted).all()
            np.testing.assert_allclose(got, wanted, rtol=rtol, atol=0.1 * rtol)


def assert_model_agrees(model: pm.Model, *, points: int = 2, rtol: float = 1e-9) -> None:
    """Log-density and gradient of a whole model are those of the graph as it was written."""
    on, off = on_and_off(lambda mode: logp_and_gradient(model, mode))
    assert_functions_agree(on, off, random_points(model, points=points), rtol)


@contextmanager
def named(name: str) -> Iterator[None]:
    """What fails in this block tells the name of its case."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"case: {name}")
        raise


def spd(rng: np.random.Generator, *batch: int, n: int, condition: float | None = None):
    """Random symmetric positive definite matrices, shape (*batch, n, n).

    With `condition`, the eigenvalues are spaced evenly in the logarithm from 1 to 1 / condition.
    """
    a = rng.normal(size=(*batch, n, n))
    if condition is None:
        return a @ np.swapaxes(a, -1, -2) / n + np.eye(n)
    q, _ = np.linalg.qr(a)
    return (q * np.geomspace(1, 1 / condition, n)) @ np.swapaxes(q, -1, -2)


def compiled_beside_a_density(inputs, outputs, mode):
    """A function of `inputs` for `outputs`, with a density, for what tidies up around those."""
    y = pt.vector("y", shape=(2,))
    density, _ = mvnormal_logp(y, np.zeros(2), np.array([[2.0, 1.0], [1.0, 2.0]]))
    fn = pytensor.function([*inputs, y], [*outputs, density], mode=mode, on_unused_input="ignore")

    def called(*values):
        return fn(*values, np.ones(2))[:-1]

    called.fgraph = fn.maker.fgraph
    return called


def assert_leaves(rule, fgraph: FunctionGraph) -> None:
    """A whole-graph rule changes nothing in `fgraph`."""
    before = pytensor.dprint(fgraph, file="str")
    rule(fgraph)
    assert pytensor.dprint(fgraph, file="str") == before


def guards(stage: str, rule: str) -> list:
    """The entries of a rule in the databases that apply it."""
    databases = {
        "reroll": [optdb["canonicalize"]],
        "recognize": [optdb["stabilize"]],
        "structure": [optdb["canonicalize"], optdb["stabilize"]],
        "lower": [optdb],
        "logprob": [specialization_ir_rewrites_db, logprob_rewrites_db],
    }
    name = f"mvn_{rule}"
    return [database[name] for database in databases[stage] if name in database]


#: What the rules before any graph of log-densities do it by, and whether it has done anything
DERIVATIONS = {
    "loops_of_random_variables": ("_terms", lambda _, terms: terms is not None),
    "sums_of_loops": ("with_whole_sums", lambda terms, sums: len(sums) < len(terms)),
}


def replaced(monkeypatch, guard, wrap):
    """Put ``wrap(function)`` in the place of what a guard guards."""
    if isinstance(guard, GuardedGraphRewriter):
        monkeypatch.setattr(guard, "function", wrap(guard.function))
    else:
        monkeypatch.setattr(guard.rewriter, "transform", wrap(guard.rewriter.transform))


@contextmanager
def rules_that_run() -> Iterator[dict[str, bool]]:
    """The rules that run in this block, by name, and whether they change anything."""
    changed: dict[str, bool] = {}

    def noting(rule, is_changed):
        def wrap(function):
            def noted(*args, **kwargs):
                before = set(args[0].apply_nodes) if is_changed is None else args[0]
                result = function(*args, **kwargs)
                new = (
                    bool(result) or before != args[0].apply_nodes
                    if is_changed is None
                    else is_changed(before, result)
                )
                changed[rule] = changed.get(rule, False) or new
                return result

            return noted

        return wrap

    with pytest.MonkeyPatch.context() as monkeypatch:
        for stage, rules in RULES.items():
            for rule in rules:
                for guard in guards(stage, rule) if stage != "generative" else ():
                    replaced(monkeypatch, guard, noting(rule, None))
        for rule, (function, is_changed) in DERIVATIONS.items():
            wrapped = noting(rule, is_changed)(getattr(densities, function))
            monkeypatch.setattr(densities, function, wrapped)
        yield changed


def rules_that_fire(graph: Sequence[Variable]) -> set[str]:
    """The rules that say that they fire in the pre-gradient pass."""
    with recording() as events:
        rewritten(graph)
    return {event.rule for event in events if isinstance(event, Fired)}


@contextmanager
def warns_of_failures(match: str | None = None) -> Iterator[list]:
    """Rewrites fail in this block as they do for users: with a warning."""
    with (
        pytensor.config.change_flags(on_opt_error="warn"),
        pytest.warns(mvn.RewriteFailedWarning, match=match) as caught,
    ):
        yield caught


def failing(function):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("no such luck")

    return fail


def fused_point(model: pm.Model, fused: pm.Model, point: Mapping) -> dict:
    """The `point` of a model for the values of what ``fuse_model`` has made of it."""
    made, own = _made[fused], {}
    for value in fused.value_vars:
        name = fused.values_to_rvs[value].name
        fusion, batch = made.loops.get(name), made.blocks.get(name)
        if fusion is None:
            array = point[model.rvs_to_values[model[name]].name]
        else:
            members = [point[model.rvs_to_values[model[n]].name] for n in fusion.names]
            array = np.stack(members) if fusion.rows is None else np.concatenate(members)
        own[value.name] = array if batch is None else array[..., batch.positions]
    return own


def densities_by_name(model, point):
    """The log-density of each variable and potential as PyMC writes it, by its name."""
    names = [var.name for var in [*model.free_RVs, *model.observed_RVs, *model.potentials]]
    with mvn.disable():
        graphs = model.logp(sum=False)
    function = pytensor.function(
        model.value_vars, graphs, mode=REFERENCE_MODE, on_unused_input="ignore"
    )
    return dict(zip(names, function(*[point[v.name] for v in model.value_vars]), strict=True))
