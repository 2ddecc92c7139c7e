"""``explain``: what the rewrites did to a model, what they left alone, and why."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import prod
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.pytensorf import rewrite_pregrad
from pytensor.compile.builders import infer_shape
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import HasInnerGraph
from pytensor.graph.replace import clone_replace
from rich.console import Group
from rich.table import Table

from pytensor_mvn_rewrites.config import forced_here
from pytensor_mvn_rewrites.flops import (
    FACTORIZATIONS,
    UNCOUNTED,
    Shape,
    core_name,
    flops,
    is_linear_algebra,
    op_name,
    static_shape,
)
from pytensor_mvn_rewrites.generative.fuse import what_stays
from pytensor_mvn_rewrites.lower._lowered import BackendOp
from pytensor_mvn_rewrites.names import collapsed, densities_of, inputs_of
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp
from pytensor_mvn_rewrites.ops.gaussian import FusedOp, GaussianOp
from pytensor_mvn_rewrites.pipeline import Declined, Fired, recording
from pytensor_mvn_rewrites.reference import UNREWRITTEN, Reference

#: What can be done about a dense matrix.
REMEDY = (
    "write the matrix as what it is made of (kron, block_diag, a diagonal, low rank plus diagonal, "
    "a scale times a constant), or give its Cholesky factor"
)


@dataclass(frozen=True)
class Operation:
    """Linear algebra of one kind in a graph.

    Attributes
    ----------
    op : str
    variables : str
        Whose log-densities it is part of; where no name tells that, what it is computed from.
    size : str
        Shape of the matrices, "?" where a length is not known.
    count : int
        How many nodes there are of that kind and size.
    flops : float or None
        Floating-point operations of all of them, by the counts of
        :mod:`pytensor_mvn_rewrites.flops`; None where they are not known.
    bytes : int or None
        Size of all that they read and write.
    is_fused, is_dense : bool
        Whether it is a density of this package; whether it factorizes matrices, at each evaluation,
        of which nothing is known.
    kernel : str
        What runs it in a compiled function, if that is a kernel of this package.
    """

    op: str
    variables: str
    size: str
    count: int
    flops: float | None
    bytes: int | None
    is_fused: bool
    is_dense: bool
    kernel: str = ""


@dataclass(frozen=True)
class Explanation:
    """What happened to a log-density before its gradient was taken, or what a function runs.

    It prints as text, as tables by ``rich.print``, and is HTML in a notebook.

    Attributes
    ----------
    nodes_before, nodes_after : int
        Size of the graph as it was written, where what alike terms share counts once, and of the
        graph that the gradient is taken of, or that was compiled.
    before, after : tuple of Operation
        The linear algebra in them, without what is computed from constants alone. There is no
        `before` of a compiled function.
    fired : tuple of (Fired, int)
        What the rewrites did, and how often.
    declined : tuple of Declined
        What they left alone although it was nearly what they look for, why, and the remedy.
    """

    nodes_before: int
    nodes_after: int
    before: tuple[Operation, ...]
    after: tuple[Operation, ...]
    fired: tuple[tuple[Fired, int], ...] = ()
    declined: tuple[Declined, ...] = ()

    @property
    def fused(self) -> tuple[str, ...]:
        """The fused density ops in the rewritten graph."""
        return tuple(o.op for o in self.after if o.is_fused for _ in range(o.count))

    @property
    def dense(self) -> tuple[Operation, ...]:
        """What factorizes matrices of which nothing is known."""
        return tuple(operation for operation in self.after if operation.is_dense)

    def _summary(self) -> list[str]:
        fused = "fused densities: " + (", ".join(self.fused) or "none")
        if not self.nodes_before:
            return [f"{self.nodes_after} nodes", fused]
        nodes = f"{self.nodes_before} nodes -> {self.nodes_after} nodes"
        costs = f"{_cost(self.before)} -> {_cost(self.after)}"
        return [nodes, f"linear algebra: {costs}", fused]

    def _sections(self) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
        """Titles and rows."""
        if self.nodes_before:
            yield "before", [_row(operation) for operation in self.before]
        yield "after" if self.nodes_before else "runs", [_row(own) for own in self.after]
        if self.nodes_before:
            yield "fired", [_fired_row(*event) for event in self.fired]
            yield "declined", [_declined_row(event) for event in self.declined]
        explained = {event.variables for event in self.declined if event.remedy}
        is_above = all(operation.variables in explained for operation in self.dense)
        remedy = "see what was declined" if is_above else REMEDY
        dense: list[tuple[str, ...]] = [(o.op, o.variables, o.size) for o in self.dense]
        yield f"left dense (remedy: {remedy})" if dense else "left dense", dense

    def __str__(self) -> str:
        lines = self._summary()
        for title, rows in self._sections():
            lines.append(f"{title}:" if rows else f"{title}: nothing")
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            for row in rows:
                cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
                lines.append("  " + " ".join(cells).rstrip())
        return "\n".join(lines)

    __repr__ = __str__

    def __rich__(self) -> Group:
        """Tables, for ``rich.print``."""
        tables: list[Any] = self._summary()
        for title, rows in self._sections():
            table = Table(title=title if rows else f"{title}: nothing", title_justify="left")
            table.show_header = False
            for row in rows:
                table.add_row(*row)
            tables.append(table if rows else table.title)
        return Group(*tables)

    def _repr_html_(self) -> str:
        parts = [f"<p>{escape(line)}</p>" for line in self._summary()]
        for title, rows in self._sections():
            if not rows:
                parts.append(f"<p><b>{title}</b>: nothing</p>")
                continue
            cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
            body = "".join(f"<tr>{own}</tr>" for own in cells)
            parts.append(f"<table><caption>{title}</caption>{body}</table>")
        return "".join(parts)


def explain(model: Any) -> Explanation:
    """Say what the rewrites do to a model's log-density, what they decline to do, and at what cost.

    Of a model or a graph it runs PyMC's pre-gradient pass, and compiles nothing. Lengths that the
    graph does not know are those at the model's initial point; what it costs where they are not
    known is said to be unknown. Of a model that :func:`fuse_model` made it says, too, why variables
    were not fused.

    Parameters
    ----------
    model : pymc.Model, tensor variable, or compiled function
        A model, the graph of a log-density, or what PyTensor or PyMC compiled.

    Returns
    -------
    Explanation
        Prints as a report.

    Raises
    ------
    TypeError
        If `model` is something else, such as a list of graphs.

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> with pm.Model() as model:
    ...     for n in range(3):
    ...         x = pm.MvNormal(f"x_{n}", mu=np.full(2, n), cov=[[2, 1], [1, 2]])
    >>> explain(model).fused
    ('MvNormalLogp{chol}',)
    """
    if isinstance(model, pm.Model):
        nodes_before, before = _of_terms(model)
    elif isinstance(model, Variable):
        fgraph = FunctionGraph(outputs=[model], clone=True, copy_inputs=False)
        nodes_before, before = len(fgraph.apply_nodes), _operations(fgraph)
    else:
        for name in ("f", "_pytensor_function"):
            model = getattr(model, name, model)
        if not hasattr(model, "maker"):
            raise TypeError(f"{model!r} is no model, tensor variable or compiled function")
        fgraph = model.maker.fgraph
        return Explanation(0, len(fgraph.apply_nodes), (), tuple(_operations(fgraph)))
    with recording() as events:
        graph = model if isinstance(model, Variable) else model.logp()
        # a copy: PyMC's rewriting works in place
        [after] = rewrite_pregrad(clone_replace([graph]))
    fgraph = FunctionGraph(outputs=[after], clone=True, copy_inputs=False)
    stays = what_stays(model) if isinstance(model, pm.Model) else []
    return Explanation(
        nodes_before,
        len(fgraph.apply_nodes),
        tuple(before),
        tuple(_operations(fgraph, model if isinstance(model, pm.Model) else None)),
        tuple(_fired(events)),
        tuple(dict.fromkeys(_merged([*stays, *last_declined(events)]))),
    )


def last_declined(events: Sequence[Fired | Declined]) -> list[Declined]:
    """What is declined in the end: a stage that has fired looks at everything once more."""
    declined: list[Declined] = []
    fired = set()
    for event in reversed(events):
        if isinstance(event, Fired):
            fired.add(event.stage)
        elif event.stage not in fired:
            declined.append(event)
    return declined[::-1]


def _merged(events: Iterable[Any]) -> Iterator[Any]:
    """Events that differ in their variables only, once for each of them with all variables."""
    variables: dict[Any, list[str]] = {}
    events = list(events)
    for event in events:
        own = variables.setdefault(replace(event, variables=""), [])
        own += [event.variables] if event.variables else []
    for event in events:
        yield replace(event, variables=collapsed(variables[replace(event, variables="")]))


def _fired(events: Sequence[Fired | Declined]) -> Iterator[tuple[Fired, int]]:
    merged = list(_merged(event for event in events if isinstance(event, Fired)))
    for event in dict.fromkeys(merged):
        yield event, merged.count(event)


def _of_terms(model: pm.Model) -> tuple[int, list[Operation]]:
    """The number of nodes of a model as PyMC writes it, and its linear algebra."""
    with forced_here(False):
        groups = Reference(model).groups
    start, count = model.initial_point(), 0
    found: list[tuple[Operation, list[str]]] = []
    for group in groups:
        fgraph = FunctionGraph(outputs=[group.total], clone=False)
        own = set(group.leaves[: group.n_varying])
        for node in fgraph.toposort():
            if own.intersection(node.inputs):
                own.update(node.outputs)
        times = {
            node: group.n_terms if own.intersection(node.outputs) else 1
            for node in fgraph.apply_nodes
        }
        count += sum(times.values())
        constants = {group.leaves[k] for k in group.constants}
        nodes = [node for node, outer in _counted(fgraph, constants) if outer is None]

        def shapes_of(variables, group=group):
            return group.shapes(variables, start)

        shape_of = _known_shapes(nodes, shapes_of)
        for node in nodes:
            found.append((_operation(node, times[node], shape_of), group.names))
    return count, _summed(found)


def _operations(fgraph: FunctionGraph, model: pm.Model | None = None) -> list[Operation]:
    """The linear algebra of a graph."""

    def shapes_of(variables):
        if model is None:
            raise ValueError("there is no point")
        point = model.initial_point()
        shapes = [np.shape(point[var.name]) for var in model.value_vars]
        known = [tuple(pt.constant(n, dtype="int64") for n in shape) for shape in shapes]
        lengths = infer_shape(variables, model.value_vars, known)
        flat = [pt.as_tensor(length) for shape in lengths for length in shape]
        function = pytensor.function(
            model.value_vars, flat, mode=UNREWRITTEN, on_unused_input="ignore"
        )
        values = iter(function(*(point[var.name] for var in model.value_vars)))
        return [tuple(int(next(values)) for _ in shape) for shape in lengths]

    nodes = dict(_counted(fgraph, set()))
    shape_of = _known_shapes([node for node, outer in nodes.items() if outer is None], shapes_of)
    found = []
    for node, outer in nodes.items():
        operation = _operation(node, 1, shape_of)
        if outer is not None and not op_name(outer).endswith("WithCoreShape"):
            # how often it runs is not known
            operation = replace(operation, flops=None, bytes=None)
        own = outer or node
        found.append((operation, densities_of(fgraph, own) or inputs_of(own)))
    return _summed(found)


def _counted(
    fgraph: Any, constants: set[Variable], outer: Apply | None = None
) -> Iterator[tuple[Apply, Apply | None]]:
    """The nodes of linear algebra that constants are not enough for, and whose inner they are."""
    constants = set(constants)
    for node in fgraph.toposort():
        is_known = [inp in constants or isinstance(inp, Constant) for inp in node.inputs]
        if is_known and all(is_known):
            constants.update(node.outputs)
        elif is_linear_algebra(node) or isinstance(node.op, BackendOp):
            yield node, outer
        elif isinstance(node.op, HasInnerGraph) and not isinstance(node.op, FusedOp):
            yield from _counted(node.op.fgraph, set(), outer or node)


def _known_shapes(nodes: Sequence[Apply], shapes_of: Callable) -> Callable[[Any], Shape]:
    """What the types know of shapes, and otherwise `shapes_of` variables if it knows more."""
    variables = dict.fromkeys(var for node in nodes for var in (*node.inputs, *node.outputs))
    unknown = [var for var in variables if None in static_shape(var)]
    known: dict[Variable, Shape] = {}
    if unknown:
        try:
            known = dict(zip(unknown, shapes_of(unknown), strict=True))
        except Exception:
            # a graph without values, or one that cannot be evaluated there: it is not known
            known = {}
    return lambda var: known.get(var) or static_shape(var)


def _operation(node: Apply, times: int, shape_of: Callable) -> Operation:
    op = node.op
    is_density = isinstance(op, MvNormalLogp | InvQuadLogdet)
    is_lowered = isinstance(op, BackendOp) and hasattr(op, "param")
    matrix = node.inputs[-1 if isinstance(op, GaussianOp) else 0]
    if is_lowered:
        matrix = max(node.inputs, key=lambda inp: inp.type.ndim)
    dense = core_name(node) in FACTORIZATIONS or core_name(node) in UNCOUNTED
    shapes = [(var, shape_of(var)) for var in (*node.inputs, *node.outputs)]
    size = None
    if not any(n is None for _, shape in shapes for n in shape):
        size = times * sum(prod(shape) * _itemsize(var) for var, shape in shapes)
    own = flops(node, shape_of)
    return Operation(
        op=op_name(node),
        variables="",
        size=" x ".join("?" if n is None else str(n) for n in shape_of(matrix)),
        count=times,
        flops=None if own is None else own * times,
        bytes=size,
        is_fused=isinstance(op, GaussianOp) or is_lowered,
        is_dense=dense or ((is_density or is_lowered) and op.param != "chol"),
        kernel=_kernel(node),
    )


def _itemsize(var: Any) -> int:
    return np.dtype(getattr(var.type, "dtype", "int8")).itemsize


def _kernel(node: Apply) -> str:
    """The kernels that a node may call, if they are this package's."""
    if not hasattr(node.op, "layout") or node.op.backend != "pytensor_mvn_rewrites.lower.numba":
        return ""
    # Numba has been loaded: a function was compiled for it
    from pytensor_mvn_rewrites.lower.numba.frame import KernelSpec, kernels_by_condition

    names = [name for _, name in kernels_by_condition(KernelSpec.of(node.op, node))]
    return " or ".join(dict.fromkeys(name.split()[0] for name in names))


def _summed(found: Iterable[tuple[Operation, Iterable[str]]]) -> list[Operation]:
    """One operation for each kind and size, with the names of all."""
    groups: dict[Any, list[tuple[Operation, Iterable[str]]]] = {}
    for operation, names in found:
        key = replace(operation, count=0, flops=None, bytes=None)
        groups.setdefault(key, []).append((operation, names))
    return [
        replace(
            key,
            variables=collapsed(name for _, names in own for name in names),
            count=sum(o.count for o, _ in own),
            flops=_total(o.flops for o, _ in own),
            bytes=_total(o.bytes for o, _ in own),
        )
        for key, own in groups.items()
    ]


def _total(numbers: Iterable[Any]) -> Any:
    numbers = list(numbers)
    return None if None in numbers else sum(numbers)


def _row(own: Operation) -> tuple[str, ...]:
    times = f"{own.count} of " if own.count > 1 else ""
    kernel = f" by {own.kernel}" if own.kernel else ""
    return own.op + kernel, own.variables, times + own.size, _cost([own])


def _cost(operations: Sequence[Operation]) -> str:
    """Operations and bytes of all."""
    count, size = _total(o.flops for o in operations), _total(o.bytes for o in operations)
    return f"{_number(count)}flops, {_number(size)}B"


def _number(number: float | None) -> str:
    """With a prefix of the SI, to two digits at least."""
    if number is None:
        return "unknown "
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} T"


def _fired_row(event: Fired, times: int) -> tuple[str, ...]:
    what = [event.detail or event.variables, f"-> {event.became}" if event.became else ""]
    what.append(f"(x{times})" if times > 1 else "")
    return event.stage, event.rule, " ".join(filter(None, what))


def _declined_row(event: Declined) -> tuple[str, ...]:
    reason = f"{event.variables}: {event.reason}" if event.variables else event.reason
    remedy = f"; remedy: {event.remedy}" if event.remedy else ""
    return event.stage, event.rule, reason + remedy
