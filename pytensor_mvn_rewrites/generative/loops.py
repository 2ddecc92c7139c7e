"""Loops of random variables: N alike ones, found before PyMC derives N log-densities."""

import math
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import FunctionType
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pymc.distributions.distribution import SymbolicRandomVariable
from pymc.logprob.abstract import MeasurableOp
from pymc.logprob.transforms import Transform
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.traversal import toposort
from pytensor.tensor.linalg.inverse import MatrixInverse
from pytensor.tensor.random.basic import MvNormalRV
from pytensor.tensor.random.op import RandomVariable, RNGConsumerOp
from pytensor.tensor.type import TensorType
from pytensor.tensor.type_other import NoneConst

from pytensor_mvn_rewrites.graph import core_op, without_leading_ones
from pytensor_mvn_rewrites.names import collapsed
from pytensor_mvn_rewrites.pipeline import Declined, record
from pytensor_mvn_rewrites.proofs.constants import constant_value
from pytensor_mvn_rewrites.reroll._joins import join
from pytensor_mvn_rewrites.reroll._lockstep import CannotReroll, LockStep
from pytensor_mvn_rewrites.reroll._signature import Signatures, group_by

#: Fewer variables than these are no loop: PyMC derives their log-densities one by one.
MIN_MEMBERS = 8


@dataclass
class Loop:
    """Random variables that differ in their numbers only.

    Attributes
    ----------
    members : list of Variable
        At least `MIN_MEMBERS`.
    parameters : list of Variable
        What the first member takes in, see :func:`parameters_of`.
    batches : list of Variable or None
        The batched form of each parameter, of N entries along the first dimension; None where the
        members share it.
    value : Variable or None
        The same for their values.
    rows : list of int or None
        Where the members are rows that share their parameters: how many rows each member has. The
        values then follow one after the other.
    """

    members: list[Variable]
    parameters: list[Variable]
    batches: list[Any]
    value: Variable | None
    rows: list[int] | None = None

    @property
    def member_of_row(self) -> np.ndarray:
        """For each row the number of its member."""
        return np.repeat(np.arange(len(self.members)), self.rows or 1)

    def __str__(self):
        return f"{len(self.members)} variables {collapsed(map(name_of, self.members))}"


def places(count: int, rows: Sequence[int] | None) -> list[int] | list[slice]:
    """Where each member of a loop is in what holds all of them, or all of their rows."""
    if rows is None:
        return list(range(count))
    stops = np.cumsum([0, *rows]).tolist()
    return [slice(*bounds) for bounds in pairwise(stops)]


def find_loops(
    rvs: Sequence[Variable],
    rvs_to_values: Mapping[Variable, Variable | None],
    rvs_to_transforms: Mapping[Variable, Transform | None],
    *,
    kind: Mapping[Any, str] | None = None,
    minimum: int = MIN_MEMBERS,
    compressible: bool = True,
) -> list[Loop]:
    """The loops among `rvs`.

    What their parameters are computed from is alike down to other random variables. Whether one of
    them depends on another does not matter to densities, which are conditional on all values.

    Parameters
    ----------
    rvs : sequence of Variable
        Where to look.
    rvs_to_values, rvs_to_transforms : mapping
        Of all random variables of the model. The values may be None: then they do not count.
    kind : mapping, optional
        From a name to what is equal for the members of one loop.
    minimum : int
        The number of members that make a loop.
    compressible : bool
        Whether constant rows are taken together because there are many of them.
    """
    valued, kind = set(rvs_to_values), kind or {}
    single = [rv for rv in rvs if is_drawn_alone(rv, valued)]
    if len(single) < minimum:
        return []

    def surface(rv):
        value, transform = rvs_to_values[rv], identity(rvs_to_transforms.get(rv))
        value_type = None if value is None else value.type
        return (_surface(rv, valued), value_type, kind.get(rv.name), transform)

    in_rows = {
        rv: (found, kind.get(rv.name))
        for rv in single
        if (found := _rows(rv, rvs_to_values[rv], rvs_to_transforms.get(rv))) is not None
    }
    row_groups = [
        group
        for group in group_by(list(in_rows), in_rows.__getitem__)
        if len(group) >= minimum and are_rows([rvs_to_values[rv] for rv in group], compressible)
    ]
    taken = {rv for group in row_groups for rv in group}
    groups = [
        group
        for group in group_by([rv for rv in single if rv not in taken], surface)
        if len(group) >= minimum
    ]
    if not groups and not row_groups:
        return []
    signatures = Signatures(leaves=valued)
    stacks: dict[tuple[int, ...], Variable] = {}

    def depth(rv):
        if rv in taken:
            return tuple(map(signatures, shared_by_rows(rv)))
        numbers = [rvs_to_values[rv], *parameters_of(rv, valued)]
        return tuple(signatures(var) for var in numbers if var is not None and is_tensor(var))

    def batched(members):
        values = [rvs_to_values[rv] for rv in members]
        return _batched(members, values, valued, signatures, stacks, rows=members[0] in taken)

    return [
        loop
        for group in [*row_groups, *groups]
        for members in group_by(group, depth)
        if len(members) >= minimum and (loop := batched(members))
    ]


def is_tensor(var: Variable) -> bool:
    """Whether `var` holds numbers: no random generator, no None."""
    return isinstance(var.type, TensorType)


def is_draw(var: Variable) -> bool:
    """Whether `var` is drawn from a distribution."""
    return var.owner is not None and isinstance(
        var.owner.op, RandomVariable | SymbolicRandomVariable
    )


def is_drawn_alone(rv: Variable, valued: Container[Variable]) -> bool:
    """Whether `rv` is drawn, and has the only value among the outputs of its node."""
    return is_draw(rv) and sum(out in valued for out in rv.owner.outputs) == 1


def is_part(var: Variable, node: Apply, valued: Container[Variable]) -> bool:
    """Whether what `node` takes in is a part of its distribution, with parameters of its own.

    That is a draw that has no value, and the inverse of a precision.
    """
    return (is_draw(var) and var not in valued) or is_inverse_of_precision(var, node)


def is_inverse_of_precision(var: Variable, node: Apply) -> bool:
    """Whether `var` is the covariance of an ``MvNormal``, and the inverse of what is not constant.

    PyMC takes such a density, also of a user's own kind of it, for that of a precision: it has to
    be an inverse in the density of a loop, too.
    """
    return (
        isinstance(node.op, MvNormalRV)
        and var is node.inputs[-1]
        and var.owner is not None
        and isinstance(core_op(var.owner.op), MatrixInverse)
        and constant_value(var.owner.inputs[0]) is None
    )


def parameters_of(rv: Variable, valued: Container[Variable]) -> list[Variable]:
    """What the node of a random variable takes in.

    In place of a part of the distribution, such as a component of a mixture, the standard
    deviations of an LKJ prior or the inverse of a precision, what that takes in.
    """
    parameters: list[Variable] = []
    for inp in rv.owner.inputs:
        parameters += parameters_of(inp, valued) if is_part(inp, rv.owner, valued) else [inp]
    return parameters


def one_row(rv: Variable, parameters: Sequence[Variable]) -> Variable:
    """One row of a random variable that is several which share these parameters."""
    rng, *parameters = parameters
    op = rv.owner.op
    for k, own in enumerate(op.dist_params(rv.owner)):
        if is_inverse_of_precision(own, rv.owner):
            parameters[k] = own.owner.op(parameters[k])
    return op.make_node(rng, NoneConst.clone(), *parameters).outputs[1]


def with_parameters(
    rv: Variable, parameters: Iterator[Variable], valued: Container[Variable]
) -> Variable:
    """The random variable with other parameters, of the same types and in the same order."""
    node = rv.owner
    inputs = [
        with_parameters(inp, parameters, valued) if is_part(inp, node, valued) else next(parameters)
        for inp in node.inputs
    ]
    new = Apply(node.op, inputs, [out.type() for out in node.outputs])
    return new.outputs[node.outputs.index(rv)]


def _surface(rv: Variable, valued: Container[Variable]) -> tuple:
    """Equal for variables whose distributions differ in their parameters only."""
    node = rv.owner
    inputs = [
        _surface(inp, valued)
        if is_part(inp, node, valued)
        else inp.signature()
        if fixed and isinstance(inp, Constant)
        else inp.type
        for inp, fixed in zip(node.inputs, _is_fixed(node), strict=True)
    ]
    return (node.op, node.outputs.index(rv), rv.type, *inputs)


def _is_fixed(node: Apply) -> list[bool]:
    """Which inputs say what to do, not with which numbers: these must be the same for all."""
    if isinstance(node.op, RandomVariable):
        return [inp is node.op.size_param(node) for inp in node.inputs]
    return [is_tensor(inp) and not inp.type.dtype.startswith("float") for inp in node.inputs]


def _fixed_parameters(rv: Variable, valued: Container[Variable]) -> list[bool]:
    fixed = []
    for inp, own in zip(rv.owner.inputs, _is_fixed(rv.owner), strict=True):
        fixed += _fixed_parameters(inp, valued) if is_part(inp, rv.owner, valued) else [own]
    return fixed


def shared_by_rows(rv: Variable) -> list[Variable]:
    """The parameters of a random variable whose rows share them: those of one row."""
    op = rv.owner.op
    parameters = zip(op.dist_params(rv.owner), op.ndims_params, strict=True)
    return [
        var.owner.inputs[0]
        if is_inverse_of_precision(var, rv.owner)
        else without_leading_ones(var, core)
        for var, core in parameters
    ]


def _rows(rv: Variable, value: Variable | None, transform: Transform | None) -> tuple | None:
    """Equal for variables that differ in their parameters, and in how many rows share them."""
    op = rv.owner.op
    if not isinstance(op, RandomVariable) or rv.type.ndim != op.ndim_supp + 1:
        return None
    parameters = op.dist_params(rv.owner)
    if transform is not None or any(map(is_draw, parameters)):
        return None
    for var, core in zip(parameters, op.ndims_params, strict=True):
        n_batch = var.type.ndim - core
        inverted = is_inverse_of_precision(var, rv.owner)
        if not all(var.type.broadcastable[:n_batch]) or (n_batch and inverted):
            return None
    if value is None or value.type.ndim != rv.type.ndim or None in value.type.shape:
        return None
    types = tuple((var.type, is_inverse_of_precision(var, rv.owner)) for var in parameters)
    kind = (isinstance(value, Constant), value.type.dtype, value.type.shape[1:])
    return (op, rv.type.dtype, rv.type.shape[1:], types, kind)


def are_rows(values: Sequence[Any], compressible: bool) -> bool:
    """Whether the rows of all members are best taken together, by an index of the members.

    They must be where their numbers differ. Many rows that are constant are compressed to as many
    as they have entries, see ``structure/constant_rows.py``, and that rule wants the index.
    """
    counts = [value.type.shape[0] for value in values]
    size = math.prod(values[0].type.shape[1:])
    many = isinstance(values[0], Constant) and sum(counts) > 2 * size * len(counts)
    return len(set(counts)) > 1 or (many and compressible)


def _batched(
    members, values: list[Any], valued, signatures: Signatures, stacks: dict, *, rows: bool
) -> Loop | None:
    def batch(pack) -> Variable | None:
        return LockStep(pack, signatures, stacks).batch().variable

    def parameters(rv) -> list[Variable]:
        # of rows the size is that of the values
        if rows:
            return [rv.owner.inputs[0], *shared_by_rows(rv)]
        return parameters_of(rv, valued)

    packs = list(zip(*map(parameters, members), strict=True))
    if any(draws(pack[0], valued) for pack in packs if is_tensor(pack[0])):
        return declined(members, "a parameter is drawn anew")
    fixed = [False] * len(packs) if rows else _fixed_parameters(members[0], valued)
    batches: list[Any] = []
    value = None
    try:
        for pack, is_fixed in zip(packs, fixed, strict=True):
            batches.append(batch(pack) if is_tensor(pack[0]) else None)
            if is_fixed and batches[-1] is not None:
                return declined(
                    members,
                    f"they differ in {pack[0]}, which is no parameter",
                    "let all members of the loop have the same",
                )
            if batches[-1] is not None and not are_finite(pack):
                # PyMC leaves out the terms of a bound that is a constant infinity
                return declined(
                    members,
                    "a parameter is infinite in some of them",
                    "write a loop for each kind of bounds",
                )
        if values[0] is not None:
            value = join_rows(values) if rows else batch(values)
    except CannotReroll as reason:
        return declined(members, str(reason), reason.remedy)
    of_first = [pack[0] for pack in packs]
    if not rows:
        return Loop(members, of_first, batches, value)
    counts = [value.type.shape[0] for value in values]
    return Loop(members, of_first, batches, value, counts)


def are_finite(variables: Iterable[Variable]) -> bool:
    """Whether none of them is a constant that holds infinities or NaN."""
    data = [constant_value(var) for var in variables]
    return all(value is None or np.isfinite(value).all() for value in data)


def join_rows(values: Sequence[Variable]) -> Variable:
    """All rows, one after the other."""
    data = [value.data for value in values if isinstance(value, Constant)]
    if len(data) == len(values):
        return pt.constant(np.concatenate(data))
    return join(values)


def draws(var: Variable, valued: Collection[Variable]) -> bool:
    """Whether `var` is computed from a draw that is not `valued`."""
    nodes = toposort([var], blockers=valued)
    return any(isinstance(node.op, RNGConsumerOp | MeasurableOp) for node in nodes)


def declined(members: Sequence[Variable], reason: str, remedy: str = "") -> Any:
    """Note that a loop is left to PyMC."""
    variables = collapsed(map(name_of, members))
    record(Declined("generative", "loops_of_random_variables", reason, remedy, variables))


def name_of(var: Variable) -> str:
    """The name of a variable, or what it is."""
    return var.name or str(var)


def identity(thing: Any) -> Any:
    """Equal for what does the same: transforms and functions are made anew for each variable."""
    try:
        return _identity(thing)
    except (RecursionError, ValueError):
        # it holds itself, or what is not there yet
        return id(thing)


def _identity(thing: Any) -> Any:
    match thing:
        case Transform():
            # the attributes, in slots or not
            return (type(thing), _identity(object.__getstate__(thing) or {}))
        case Variable() if (value := constant_value(thing)) is not None:
            return _identity(value)
        case FunctionType():
            cells = [cell.cell_contents for cell in thing.__closure__ or ()]
            parts = (thing.__defaults__, thing.__kwdefaults__, vars(thing), cells)
            return (thing.__code__, id(thing.__globals__), _identity(parts))
        case tuple() | list():
            return (type(thing), *map(_identity, thing))
        case dict():
            own = [(key, value) for key, value in thing.items() if key != "__doc__"]
            return (dict, *sorted((key, _identity(value)) for key, value in own))
        case np.ndarray():
            return (thing.shape, thing.dtype.str, thing.tobytes())
        case None | bool() | int() | float() | str() | np.generic():
            return (type(thing), thing)
    return id(thing)
