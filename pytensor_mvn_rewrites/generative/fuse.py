"""``fuse_model``: the same model with one variable for each loop, and ``unfuse``, the way back."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.distributions import transforms
from pymc.distributions.mixture import MixtureRV
from pymc.logprob import transforms as elementwise
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.type_other import NoneTypeT

from pytensor_mvn_rewrites._upstream import _LKJCholeskyCovRV
from pytensor_mvn_rewrites.generative._parts import Part, Parts, Unfusable, of_dtype
from pytensor_mvn_rewrites.generative.blocks import BlockBatch, split_blocks
from pytensor_mvn_rewrites.generative.loops import (
    Loop,
    find_loops,
    is_inverse_of_precision,
    places,
)
from pytensor_mvn_rewrites.graph import Tensor
from pytensor_mvn_rewrites.logprob import batched_lkj_cholesky_cov
from pytensor_mvn_rewrites.names import collapsed
from pytensor_mvn_rewrites.pipeline import Declined, Fired, record, recording
from pytensor_mvn_rewrites.reroll._signature import group_by

#: Transforms that work along the last axes, or on each number, whatever axes come before.
BATCHABLE_TRANSFORMS = (
    elementwise.LogTransform,
    elementwise.LogOddsTransform,
    transforms.LogExpM1,
    elementwise.IntervalTransform,
    elementwise.CircularTransform,
    elementwise.SimplexTransform,
    transforms.Ordered,
    transforms.CholeskyCovPacked,
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


@dataclass
class Made:
    """What :func:`fuse_model` made of a model."""

    loops: dict[str, Fusion] = field(default_factory=dict)
    blocks: dict[str, BlockBatch] = field(default_factory=dict)
    declined: list[Declined] = field(default_factory=list)


#: fused model -> what was made of the one that it comes from
_made: WeakKeyDictionary[pm.Model, Made] = WeakKeyDictionary()


def fuse_model(model: pm.Model, *, names: Sequence[str] | None = None) -> pm.Model:
    """Make one variable of each loop of random variables.

    A loop such as ``for n in range(N): pm.MvNormal(f"x_{n}", mu[n], cov[n])`` becomes one variable
    ``x`` with a new first dimension, whose coordinate holds what the names of the loop's variables
    differ in: 0 ... N - 1, or the names of groups. Observations of which each member has another
    number of rows become one variable over all rows, with the number of its member for each row in
    ``x_member``. Log-densities are the same; draws come from another stream of random numbers.

    A flat ``MvNormal`` vector ``y`` whose covariance, or its Cholesky factor, is block-diagonal
    with blocks of one size becomes a batch of as many vectors, with the dimensions ``y_block`` and
    ``y_entry``. What uses the flat vector gets the raveled batch.

    Data, dims, coordinates, deterministics, potentials, transforms and initial values are carried
    over. Variables stay as they are if they are not alike, depend on one another, hold other
    distributions (such as ``pm.Censored``, but not ``pm.Mixture`` and ``pm.LKJCholeskyCov``), or
    have no common name; :func:`explain` of the fused model says why.

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
    parts = Parts.of(model)
    crowded = crowded_names(list(parts.random))
    made, reasons = Made(), dict[str, str]()

    def stays(names: Sequence[str], why: str) -> None:
        reasons.update({name: reasons.get(name, why) for name in names})
        made.declined.append(_declined(names, why))

    while True:
        with recording() as looked:
            loop = _next_loop(parts, wanted.difference(reasons))
        if loop is None:
            break
        try:
            name, fusion = _fuse(parts, loop, crowded)
        except Unfusable as reason:
            stays([str(rv.name) for rv in loop.members], str(reason))
        else:
            made.loops[name] = fusion
            record(Fired("generative", "fuse_model", str(loop)))
    # the last look is that at all that stays
    made.declined += (seen := [event for event in looked if isinstance(event, Declined)])
    in_loops = {name for fusion in made.loops.values() for name in fusion.names}
    kind = stems(list(parts.random) + sorted(in_loops))
    for fusion in made.loops.values():
        rest = wanted.difference(in_loops, reasons)
        if odd := sorted(name for name in rest if kind[name] == kind[fusion.names[0]]):
            why = f"not like {fusion.names[0]} in distribution, shape, value or transform"
            stays(odd, why)
    for name in list(parts.random):
        if name not in wanted and name not in made.loops:
            continue
        try:
            batch = split_blocks(parts, name)
        except Unfusable as reason:
            stays([name], str(reason))
            continue
        if batch is not None:
            made.blocks[name] = batch
            record(Fired("generative", "fuse_model", f"{len(batch.positions)} blocks of {name}"))
    left = wanted.difference(made.blocks, in_loops)
    if names is not None and left:
        first = sorted(left)[0]
        unlike = [event.reason for event in seen] or ["there are no variables like it"]
        why = reasons.get(first, "; ".join(unlike))
        raise ValueError(f"{first} cannot be fused: {why}")
    for event in made.declined:
        record(event)
    fused = parts.model()
    _made[fused] = made
    return fused


def what_stays(model: pm.Model) -> list[Declined]:
    """Why variables of a fused model are those of the model that it was made of."""
    return _made[model].declined if model in _made else []


def _declined(names: Sequence[str], reason: str) -> Declined:
    return Declined("generative", "fuse_model", reason, "", collapsed(names))


def _next_loop(parts: Parts, names: set[str]) -> Loop | None:
    """The first loop among the variables of these names."""
    random = parts.random
    loops = find_loops(
        [part.var for name, part in random.items() if name in names],
        {p.var: p.value if name in parts.observed else None for name, p in random.items()},
        {p.var: p.transform for p in random.values()},
        kind=stems(list(random)),
        minimum=2,
        compressible=False,
    )
    # a model makes its variables before it uses them
    position = {part.var: k for k, part in enumerate(random.values())}
    return min(loops, key=lambda loop: position[loop.members[0]], default=None)


def _fuse(parts: Parts, loop: Loop, crowded: set[str]) -> tuple[str, Fusion]:
    """Put one variable in the place of a loop; returns its name."""
    names = tuple(str(rv.name) for rv in loop.members)
    first, members = parts.random[names[0]], [parts.random[name] for name in names]
    is_free = names[0] in parts.free
    if any((name in parts.free) != is_free for name in names):
        raise Unfusable("only some of them are observed")
    if len({part.dims for part in members}) > 1:
        raise Unfusable("their dims differ")
    if not set(loop.members).isdisjoint(ancestors([v for v in loop.batches if v is not None])):
        raise Unfusable("they depend on one another")
    if not isinstance(first.var.owner.op, RandomVariable | _LKJCholeskyCovRV | MixtureRV):
        raise Unfusable("distributions of this kind have no batches")
    if first.transform is not None and not isinstance(first.transform, BATCHABLE_TRANSFORMS):
        raise Unfusable(f"the transform {first.transform} is not known to work on a batch")
    start = _joint_initial_value([part.initial for part in members])
    base, labels = common_name(names)
    if base in crowded:
        base, labels = common_name(names, longest=True)
    everything = {**parts.random, **parts.data, **parts.deterministics, **parts.potentials}
    if not base or base in everything.keys() - set(names):
        raise Unfusable(f"the name {base!r} is taken" if base else "their names have no pattern")

    index = None
    if loop.rows:
        # which member a row belongs to, for people and for the gathers
        index = pytensor.shared(loop.member_of_row, name=f"{base}_member")
    try:
        rv, own = _batched_rv(loop, index), first.value
    except Unfusable:
        raise
    except Exception as error:
        raise Unfusable(f"PyMC has no batch of them: {error}") from error
    value: Any = loop.value
    if is_free:
        value = own.type.clone(shape=(len(names), *own.type.shape))()
        value.name = base if first.transform is None else f"{base}_{first.transform.name}__"
    elif value is None:
        value = pt.alloc(own, len(names), *own.shape)
        value = pt.constant(value.eval()) if isinstance(own, Constant) else value
    core = tuple(first.dims or ())[bool(loop.rows) :]
    lengths = rv.type.shape[1:]
    if None in lengths and first.transform is None and not loop.rows:
        lengths = own.type.shape
    core = core or parts.add_dims(base, lengths, first=int(bool(loop.rows)))
    dim = _loop_dim(parts, base, labels, loop.rows)
    rv.name = base
    if index is not None:
        parts.data[index.name] = Part(index, (dim,))
    own_parts = parts.free if is_free else parts.observed
    new = Part(rv, (dim, *core), of_dtype(value, rv), first.transform, start)
    # in the place of the first of them
    before = dict(own_parts)
    own_parts.clear()
    for name, part in before.items():
        own_parts.update({base: new} if name in names else {name: part})

    members_of = zip(loop.members, places(len(names), loop.rows), strict=True)
    parts.replace(
        {old: old.type.filter_variable(rv[place], allow_convert=True) for old, place in members_of}
    )
    return base, Fusion(names, dim, tuple(loop.rows) if loop.rows else None)


def _batched_rv(loop: Loop, index: Variable | None) -> Tensor:
    """The random variable that holds all members, or all of their rows."""
    old = loop.members[0]
    op = old.owner.op
    _require_covariance(old)
    if index is not None:
        rng = old.owner.inputs[0]
        gathered = [
            own if new is None else new[index]
            for own, new in zip(loop.parameters[1:], loop.batches[1:], strict=True)
        ]
        return op.make_node(rng, pt.constant([len(loop.member_of_row)]), *gathered).outputs[1]
    if isinstance(op, _LKJCholeskyCovRV):
        rv = _batched_lkj(loop)
    elif isinstance(op, MixtureRV):
        rv = _batched_mixture(loop)
    else:
        rv = _batched_draw(old, loop.parameters, loop.batches, len(loop.members))
    # what has draws in batches may have no density of them: then this raises
    pm.logp(rv, rv.type())
    return rv


def _batched_lkj(loop: Loop) -> Tensor:
    """One ``LKJCholeskyCov`` of N packed factors, of a type that has a density of them."""
    sd_dist = loop.members[0].owner.inputs[-1]
    (rng, n, eta, *parameters), (_, _, eta_varies, *batches) = loop.parameters, loop.batches
    if eta_varies is not None:
        raise Unfusable("they differ in eta")
    if not isinstance(sd_dist.owner.op, RandomVariable):
        raise Unfusable("distributions like that of their standard deviations have no batches")
    count = len(loop.members)
    sds = _batched_draw(sd_dist, parameters, batches, count)
    return batched_lkj_cholesky_cov(n, eta, sds, count, rng)


def _batched_mixture(loop: Loop) -> Tensor:
    """One ``Mixture``, of batches of the components and of the weights."""
    old = loop.members[0]
    _, weights, *components = old.owner.inputs
    of_components = [own for part in components for own in part.owner.inputs]
    if not all(isinstance(part.owner.op, RandomVariable) for part in components) or len(
        loop.parameters
    ) != 2 + len(of_components):
        # or with draws among their parameters
        raise Unfusable("distributions like that of their components have no batches")
    missing = old.type.ndim - components[0].owner.op.ndim_supp - (weights.type.ndim - 1)
    if (own := loop.batches[1]) is not None:
        weights = pt.expand_dims(own, tuple(range(1, 1 + missing)))
    batches, start = [], 2
    for part in components:
        stop = start + len(part.owner.inputs)
        given = loop.parameters[start:stop], loop.batches[start:stop]
        batches.append(_batched_draw(part, *given, len(loop.members)))
        start = stop
    return MixtureRV.rv_op(weights, *batches)


def _batched_draw(
    old: Tensor, parameters: Sequence[Variable], batches: Sequence[Any], count: int
) -> Tensor:
    """Draws like `old`, whose node takes in `parameters`, of which some are batches."""
    _require_covariance(old)
    op, (rng, size) = old.owner.op, parameters[:2]
    n_batch = old.type.ndim - op.ndim_supp
    new_parameters = []
    for own, new, core in zip(parameters[2:], batches[2:], op.ndims_params, strict=True):
        missing = n_batch - (own.type.ndim - core)
        axes = tuple(range(1, 1 + missing))
        new_parameters.append(own if new is None else pt.expand_dims(new, axes) if axes else new)
    if not isinstance(size.type, NoneTypeT):
        size = pt.join(0, [count], size)
    elif n_batch == 0:
        size = pt.constant([count])
    elif all(new is None for new in batches[2:]):
        raise Unfusable("their shape is that of parameters that they share")
    return op.make_node(rng, size, *new_parameters).outputs[1]


def _require_covariance(rv: Tensor) -> None:
    """Raise where PyMC would take the density for that of a precision."""
    if is_inverse_of_precision(rv.owner.inputs[-1], rv.owner):
        raise Unfusable("PyMC's density of an MvNormal with a precision has no batches")


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


def crowded_names(names: Sequence[str]) -> set[str]:
    """The names that several loops would get: theirs must be longer."""
    kinds = stems(names)
    loops = group_by(names, kinds.__getitem__)
    counts = Counter(common_name(loop)[0] for loop in loops if len(loop) > 1)
    return {base for base, count in counts.items() if count > 1}


def common_name(names: Sequence[str], *, longest: bool = False) -> tuple[str, tuple]:
    """What names have in common, and what they differ in, as numbers if they are numbers.

    Up to the last ``_``, where the rest is no number, or all of it if it is to be the `longest`.

    Examples
    --------
    >>> common_name(["x_0", "x_1", "x_10"])
    ('x', (0, 1, 10))
    >>> common_name(["north_rate", "south_rate"])
    ('rate', ('north', 'south'))
    >>> common_name(["x_F01", "x_F02"]), common_name(["x_F01", "x_F02"], longest=True)
    (('x', ('F01', 'F02')), ('x_F', (1, 2)))
    """
    prefix = re.sub(r"\d+$" if longest else r"(?<=_)[^_]*$|\d+$", "", commonprefix(names))
    rest = [name[len(prefix) :] for name in names]
    if not all(name.isdigit() for name in rest) and not prefix.endswith(("_", "[", "(")):
        prefix, rest = "", list(names)
    suffix = commonprefix([name[::-1] for name in rest])[::-1]
    suffix = re.sub(r"^\d+|^[^_\])]*", "", suffix)
    labels = [name[: len(name) - len(suffix)] for name in rest]
    if not all(labels) or len(set(labels)) < len(labels):
        return "", tuple(names)
    base = prefix.rstrip("_") + suffix if suffix.startswith("_") else prefix + suffix
    numbers = list(map(int, labels)) if all(map(str.isdigit, labels)) else []
    are_numbers = len(set(numbers)) == len(labels)
    return base.strip("_[]():. "), tuple(numbers if are_numbers else labels)


def commonprefix(names: Sequence[str]) -> str:
    """The letters that all names begin with."""
    first, last = min(names), max(names)
    length = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return first if length is None else first[:length]


def _loop_dim(parts: Parts, base: str, labels: tuple, rows: Sequence[int] | None) -> str:
    """The dimension of the members, which loops with the same labels share, or of their rows."""
    if rows:
        return parts.add_dim(f"{base}_row", tuple(range(sum(rows))))
    for name, known in parts.coords.items():
        if name.endswith("_loop") and known == labels:
            return name
    return parts.add_dim(f"{base}_loop", labels)


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

    if model not in _made:
        raise ValueError("the model was not made by fuse_model")
    if isinstance(data, xr.Dataset):
        return _unfuse_dataset(data, _made[model])
    return data.map_over_datasets(lambda group: _unfuse_dataset(group, _made[model]))


def _unfuse_dataset(data, made: Made):
    variables = {}
    for name, array in data.data_vars.items():
        fusion, batch = made.loops.get(name), made.blocks.get(name)
        if batch is not None:
            array = batch.flat_array(array)
        if fusion is None or fusion.dim not in array.dims:
            variables[name] = array
            continue
        own_places = places(len(fusion.names), fusion.rows)
        for own, place in zip(fusion.names, own_places, strict=True):
            member = array.isel({fusion.dim: place}, drop=True)
            if fusion.rows:
                member = member.drop_vars(fusion.dim, errors="ignore")
                member = member.rename({fusion.dim: f"{own}_dim_0"})
            dims = {d: d.replace(f"{name}_dim_", f"{own}_dim_") for d in member.dims}
            variables[own] = member.rename({d: new for d, new in dims.items() if d != new})
    new = {fusion.dim for fusion in made.loops.values()}
    new.update(*(batch.dims for batch in made.blocks.values()))
    data = data.drop_vars(list(data.data_vars)).assign(variables)
    return data.drop_dims(new & set(data.dims), errors="ignore")
