"""``fuse_model``: the same model with one variable for each loop, and ``unfuse``, the way back."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.distributions import transforms
from pymc.logprob import transforms as elementwise
from pymc.model.fgraph import (
    ModelFreeRV,
    ModelObservedRV,
    ModelVar,
    fgraph_from_model,
    model_free_rv,
    model_from_fgraph,
    model_named,
    model_observed_rv,
)
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.type_other import NoneTypeT

from pytensor_mvn_rewrites.generative.loops import Loop, declined, find_loops
from pytensor_mvn_rewrites.graph import Tensor
from pytensor_mvn_rewrites.pipeline import Fired, record

#: Transforms that work along the last axes, or on each number, whatever axes come before.
BATCHABLE_TRANSFORMS = (
    elementwise.LogTransform,
    elementwise.LogOddsTransform,
    transforms.LogExpM1,
    elementwise.IntervalTransform,
    elementwise.CircularTransform,
    elementwise.SimplexTransform,
    transforms.Ordered,
)


@dataclass(frozen=True)
class Fusion:
    """What one variable of a fused model stands for.

    Attributes
    ----------
    names : tuple of str
        The variables of the loop.
    dim : str
        The dimension that holds them, or their rows.
    rows : tuple of int or None
        How many rows each has, where they are joined.
    """

    names: tuple[str, ...]
    dim: str
    rows: tuple[int, ...] | None


#: fused model -> {name of a variable: what it stands for}
_fusions: WeakKeyDictionary[pm.Model, dict[str, Fusion]] = WeakKeyDictionary()


class Unfusable(Exception):
    """A loop stays as it is; the message says why."""


def fuse_model(model: pm.Model, *, names: Sequence[str] | None = None) -> pm.Model:
    """Make one variable of each loop of random variables.

    A loop such as ``for n in range(N): pm.MvNormal(f"x_{n}", mu[n], cov[n])`` becomes one variable
    ``x`` with a new first dimension, whose coordinate holds what the names of the loop's variables
    differ in: 0 ... N - 1, or the names of groups. Observations of which each member has another
    number of rows become one variable over all rows, with the number of its member for each row in
    ``x_member``. Log-densities are the same; draws come from another stream of random numbers.

    Data, dims, coordinates, deterministics, potentials, transforms and initial values are carried
    over. Variables stay as they are if they are not alike, depend on one another, hold other
    distributions (``pm.LKJCholeskyCov``, mixtures), or have no common name.

    Parameters
    ----------
    model : pymc.Model
        Is left alone.
    names : sequence of str, optional
        Fuse these variables only.

    Returns
    -------
    pymc.Model

    Raises
    ------
    ValueError
        If a variable in `names` is no random variable of the model, or cannot be fused.

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> with pm.Model() as model:
    ...     mu = pm.Normal("mu", shape=(3, 2))
    ...     for n in range(3):
    ...         x = pm.MvNormal(f"x_{n}", mu=mu[n], cov=np.eye(2))
    >>> fused = fuse_model(model)
    >>> [rv.name for rv in fused.free_RVs], fused.coords["x_loop"]
    (['mu', 'x'], (0, 1, 2))
    """
    known = {rv.name for rv in model.basic_RVs}
    wanted = known if names is None else set(names)
    if unknown := wanted - known:
        raise ValueError(f"{sorted(unknown)} are no random variables of the model")
    initial = {rv.name: value for rv, value in model.rvs_to_initial_values.items()}
    fgraph = _fgraph_without_initial_values(model)
    fusions: dict[str, Fusion] = {}
    reasons: dict[str, str] = {}
    while loop := _next_loop(fgraph, wanted.difference(reasons), reasons):
        own_names = [str(rv.name) for rv in loop.members]
        try:
            name, fusion = _fuse(fgraph, loop, initial)
        except Unfusable as reason:
            reasons |= dict.fromkeys(own_names, str(reason))
            declined(loop.members, str(reason))
        else:
            fusions[name] = fusion
            record(Fired("generative", "fuse_model", str(loop)))
    left = wanted.difference(*(fusion.names for fusion in fusions.values()))
    if names is not None and left:
        first = sorted(left)[0]
        why = reasons.get(first, "there are no variables like it")
        raise ValueError(f"{first} cannot be fused: {why}")
    fused = model_from_fgraph(fgraph, mutate_fgraph=True)
    for rv in fused.free_RVs:
        fused.set_initval(rv, initial.get(rv.name))
    _fusions[fused] = fusions
    return fused


def _fgraph_without_initial_values(model: pm.Model) -> FunctionGraph:
    """PyMC refuses to convert models with initial values; they are put back afterwards."""
    given = dict(model.rvs_to_initial_values)
    try:
        model.rvs_to_initial_values.update(dict.fromkeys(given))
        return fgraph_from_model(model)[0]
    finally:
        model.rvs_to_initial_values.update(given)


def _next_loop(fgraph: FunctionGraph, names: set[str], reasons: dict[str, str]) -> Loop | None:
    """A loop whose members depend on no other loop that can be fused."""
    # in the order of the model
    nodes = [out.owner for out in fgraph.outputs]
    valued = [n for n in nodes if isinstance(n.op, ModelFreeRV | ModelObservedRV)]
    wanted = [n for n in valued if n.op.name in names]
    values = {
        n.inputs[0]: n.inputs[1] if isinstance(n.op, ModelObservedRV) else None for n in valued
    }
    for node in valued:
        node.inputs[0].name = node.op.name
    known = stems([n.op.name for n in valued])
    loops = find_loops(
        [n.inputs[0] for n in wanted],
        values,
        {n.inputs[0]: n.op.transform for n in valued},
        valued={n.outputs[0] for n in nodes},
        kind=lambda name: known.get(str(name)),
        minimum=2,
        compressible=False,
    )
    # a model makes its variables before it uses them
    position = {node.inputs[0]: k for k, node in enumerate(nodes)}
    return min(loops, key=lambda loop: position[loop.members[0]], default=None)


def _fuse(fgraph: FunctionGraph, loop: Loop, initial: dict) -> tuple[str, Fusion]:
    """Put one variable in the place of a loop; returns its name."""
    nodes = [_model_node(fgraph, rv) for rv in loop.members]
    op, outputs = nodes[0].op, {node.outputs[0] for node in nodes}
    names = tuple(node.op.name for node in nodes)
    if len({(type(node.op), node.op.dims) for node in nodes}) > 1:
        raise Unfusable("their dims differ, or only some of them are observed")
    parts = [var for var in [*loop.batches, loop.value] if var is not None]
    if not outputs.isdisjoint(ancestors([*parts, *loop.parameters])):
        raise Unfusable("they depend on one another")
    if not isinstance(loop.members[0].owner.op, RandomVariable):
        raise Unfusable("distributions of this kind have no batches")
    if op.transform is not None and not isinstance(op.transform, BATCHABLE_TRANSFORMS):
        raise Unfusable(f"the transform {op.transform} is not known to work on a batch")
    start = _joint_initial_value([initial.get(name) for name in names])
    base, labels = common_name(names)
    taken = {out.name for out in fgraph.outputs} - set(names)
    if not base or base in taken:
        raise Unfusable(f"the name {base!r} is taken" if base else "their names have no pattern")

    dim = _loop_dim(fgraph, base, labels)
    index = None
    if loop.rows:
        # which member a row belongs to, for people and for the gathers
        dim, member = f"{base}_row", f"{base}_member"
        _add_dim(fgraph, dim, tuple(range(sum(loop.rows))))
        index = model_named(pytensor.shared(loop.member_of_row, name=member), member, dim)
    rv, own = _batched_rv(loop, index), nodes[0].inputs[1]
    value: Any = loop.value
    if isinstance(op, ModelFreeRV):
        value = own.type.clone(shape=(len(names), *own.type.shape))()
        value.name = base if op.transform is None else f"{base}_{op.transform.name}__"
    elif value is None:
        value = pt.alloc(own, len(names), *own.shape)
        value = pt.constant(value.eval()) if isinstance(own, Constant) else value
    dims = (dim, *(op.dims or _core_dims(fgraph, base, rv))[-(rv.type.ndim - 1) :])
    dims = dims if rv.type.ndim > 1 else (dim,)
    rv.name = base
    make = model_free_rv if isinstance(op, ModelFreeRV) else model_observed_rv
    transform = (op.transform,) if isinstance(op, ModelFreeRV) else ()
    new = make(rv, _of_dtype(value, rv), *transform, base, *dims)

    stops = np.cumsum(loop.rows).tolist() if loop.rows else []
    for k, node in enumerate(nodes):
        [old] = node.outputs
        if len(fgraph.clients[old]) > 1:
            part: Tensor = new[stops[k] - loop.rows[k] : stops[k]] if loop.rows else new[k]
            fgraph.replace(old, old.type.filter_variable(part), import_missing=True)
    gone = set(nodes)
    for position in reversed(range(len(fgraph.outputs))):
        owner = fgraph.outputs[position].owner
        if owner in gone or (owner is not None and not isinstance(owner.op, ModelVar)):
            fgraph.remove_output(position)
    for var in (index, new):
        if var is not None:
            fgraph.add_output(var, import_missing=True)
    initial[base] = start
    return base, Fusion(names, dim, tuple(loop.rows) if loop.rows else None)


def _model_node(fgraph: FunctionGraph, rv: Variable):
    [node] = {c for c, _ in fgraph.clients[rv] if isinstance(c.op, ModelVar)}
    return node


def _of_dtype(value: Variable, rv: Variable) -> Variable:
    return value if value.type.dtype == rv.type.dtype else pt.cast(value, rv.type.dtype)


def _batched_rv(loop: Loop, index: Variable | None) -> Tensor:
    """The random variable that holds all members, or all of their rows."""
    old = loop.members[0]
    op = old.owner.op
    rng, size = old.owner.inputs[:2]
    if index is not None:
        gathered = [
            own if new is None else new[index]
            for own, new in zip(loop.parameters[1:], loop.batches[1:], strict=True)
        ]
        return op.make_node(rng, pt.constant([len(loop.member_of_row)]), *gathered).outputs[1]
    n_batch = old.type.ndim - op.ndim_supp
    parameters = []
    for own, new, core in zip(loop.parameters[2:], loop.batches[2:], op.ndims_params, strict=True):
        missing = n_batch - (own.type.ndim - core)
        axes = tuple(range(1, 1 + missing))
        parameters.append(own if new is None else pt.expand_dims(new, axes) if axes else new)
    if not isinstance(size.type, NoneTypeT):
        size = pt.join(0, [len(loop.members)], size)
    elif n_batch == 0:
        size = pt.constant([len(loop.members)])
    elif all(new is None for new in loop.batches[2:]):
        raise Unfusable("their shape is that of parameters that they share")
    return op.make_node(rng, size, *parameters).outputs[1]


def _joint_initial_value(values: list[Any]) -> Any:
    """The initial value of a batch, from those of its members."""
    if all(value is None for value in values):
        return None
    if all(isinstance(value, str) and value == values[0] for value in values):
        return values[0]
    if any(value is None or isinstance(value, str | Variable) for value in values):
        raise Unfusable("initial values are given for some of them, or as graphs")
    return np.stack([np.asarray(value) for value in values])


def stems(names: Sequence[str]) -> dict[str, str]:
    """What is equal for the names of one loop: variables may be alike, and of several loops.

    All but the last number, or but the last word, or the first if no other name has this beginning.
    """
    own = {name: re.sub(r"\d+(?=\D*$)", "#", name) for name in names}
    words = {name: name.rpartition("_")[0] or name for name in names if own[name] == name}
    counts = Counter(words.values())
    return own | {
        name: stem if counts[stem] > 1 else "_" + name.partition("_")[2]
        for name, stem in words.items()
    }


def common_name(names: Sequence[str]) -> tuple[str, tuple]:
    """What names have in common, and what they differ in, as numbers if they are numbers.

    Examples
    --------
    >>> common_name(["x_0", "x_1", "x_10"])
    ('x', (0, 1, 10))
    >>> common_name(["north_rate", "south_rate"])
    ('rate', ('north', 'south'))
    """
    prefix = re.sub(r"(?<=_)[^_]*$|\d+$", "", commonprefix(names))
    rest = [name[len(prefix) :] for name in names]
    if not all(name.isdigit() for name in rest) and not prefix.endswith(("_", "[", "(")):
        prefix, rest = "", list(names)
    suffix = commonprefix([name[::-1] for name in rest])[::-1]
    suffix = re.sub(r"^\d+|^[^_\])]*", "", suffix)
    labels = [name[: len(name) - len(suffix)] for name in rest]
    if not all(labels) or len(set(labels)) < len(labels):
        return "", tuple(names)
    base = prefix.rstrip("_") + suffix if suffix.startswith("_") else prefix + suffix
    numbers = all(map(str.isdigit, labels))
    return base.strip("_[]():. "), tuple(map(int, labels) if numbers else labels)


def commonprefix(names: Sequence[str]) -> str:
    """The letters that all names begin with."""
    first, last = min(names), max(names)
    length = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return first if length is None else first[:length]


def _loop_dim(fgraph, base: str, labels: tuple) -> str:
    """The dimension of the members; loops with the same labels share it."""
    for name, known in fgraph._coords.items():
        if name.endswith("_loop") and known == labels:
            return name
    _add_dim(fgraph, f"{base}_loop", labels)
    return f"{base}_loop"


def _core_dims(fgraph, base: str, rv: Tensor) -> tuple[str, ...]:
    """Dims for the other axes of a variable without dims: PyMC names all or none."""
    names = [f"{base}_dim_{axis}" for axis in range(1, rv.type.ndim)]
    for axis, name in enumerate(names, start=1):
        length = rv.type.shape[axis]
        if length is None:
            raise Unfusable("the length of one of their dimensions is not known")
        _add_dim(fgraph, name, tuple(range(length)))
    return tuple(names)


def _add_dim(fgraph, name: str, values: tuple) -> None:
    """Add a dimension with a coordinate, as ``pm.Model.add_coord`` does."""
    if name in fgraph._dim_lengths:
        raise Unfusable(f"the dimension {name!r} is taken")
    fgraph._coords[name] = values
    fgraph._dim_lengths[name] = pytensor.shared(np.asarray(len(values)), name=name)


def unfuse(data, model: pm.Model):
    """Give the variables of a fused model back their original names.

    Parameters
    ----------
    data : xarray.DataTree or xarray.Dataset
        What PyMC sampled of the fused model.
    model : pymc.Model
        What :func:`fuse_model` returned.

    Returns
    -------
    xarray.DataTree or xarray.Dataset
        With ``x_0``, ``x_1``, ... in place of ``x``; everything else as it was.

    Raises
    ------
    ValueError
        If `model` was not made by :func:`fuse_model`.
    """
    import xarray as xr

    if model not in _fusions:
        raise ValueError("the model was not made by fuse_model")
    if isinstance(data, xr.Dataset):
        return _unfuse_dataset(data, _fusions[model])
    return data.map_over_datasets(lambda group: _unfuse_dataset(group, _fusions[model]))


def _unfuse_dataset(data, fusions: dict[str, Fusion]):
    variables = {}
    for name, array in data.data_vars.items():
        fusion = fusions.get(name)
        if fusion is None or fusion.dim not in array.dims:
            variables[name] = array
            continue
        bounds = np.cumsum([0, *(fusion.rows or ())])
        for k, own in enumerate(fusion.names):
            part = slice(bounds[k], bounds[k + 1]) if fusion.rows else k
            member = array.isel({fusion.dim: part}, drop=True)
            if fusion.rows:
                member = member.drop_vars(fusion.dim, errors="ignore")
                member = member.rename({fusion.dim: f"{own}_dim_0"})
            dims = {d: d.replace(f"{name}_dim_", f"{own}_dim_") for d in member.dims}
            variables[own] = member.rename({d: new for d, new in dims.items() if d != new})
    return (
        data.drop_vars(list(data.data_vars))
        .assign(variables)
        .drop_dims({fusion.dim for fusion in fusions.values()} & set(data.dims), errors="ignore")
    )
