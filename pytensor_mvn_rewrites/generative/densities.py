"""Log-densities of loops: PyMC derives one, and that is batched."""

from collections.abc import Collection, Mapping, Sequence
from functools import wraps

import numpy as np
from pymc.logprob.transforms import Transform
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor.basic import MakeVector
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.variable import TensorVariable

from pytensor_mvn_rewrites._upstream import _find_unallowed_rvs_in_graph
from pytensor_mvn_rewrites.config import is_active
from pytensor_mvn_rewrites.generative.loops import (
    MIN_MEMBERS,
    Loop,
    declined,
    find_loops,
    identity,
    is_drawn_alone,
    is_tensor,
    name_of,
    one_row,
    places,
    with_parameters,
)
from pytensor_mvn_rewrites.graph import Tensor, substituted
from pytensor_mvn_rewrites.names import SUFFIX, collapsed
from pytensor_mvn_rewrites.pipeline import Fired, derivation, record, warn_of_failure
from pytensor_mvn_rewrites.reroll._dims import declare_lengths
from pytensor_mvn_rewrites.reroll._vectorize import CannotBatch, vectorize_outputs
from pytensor_mvn_rewrites.reroll.partial_sums import with_whole_sums


@derivation("transformed_conditional_logp")
def loops_of_random_variables(derive):
    r"""logp(x_1 | a_1), ..., logp(x_N | a_N) -> l[0], ..., l[N-1], l = logp(X | A), derived once.

    Wraps PyMC's ``transformed_conditional_logp``.

    .. math:: \log p(x_n \mid \theta_n), \; n = 1 \ldots N \quad \to \quad
              \ell(X, \Theta)[n], \; \ell \text{ the batched log-density of one of them}

    Cost: PyMC derives one log-density instead of N, 10 ms each. The rest of the model, and loops
    whose members are not proven alike, go PyMC's way. Where part of the terms is asked for, the
    variables that these do not depend on are left out: ``pm.fit`` asks for the priors alone.
    """

    @wraps(derive)
    def transformed_conditional_logp(rvs, *, rvs_to_values, rvs_to_transforms, **kwargs):
        terms, failure = None, None
        if is_active("generative"):
            try:
                declare_dims(rvs_to_values, rvs_to_transforms)
                values = values_in_use(rvs, rvs_to_values)
                transforms = {rv: rvs_to_transforms.get(rv) for rv in values}
                terms = _terms(derive, rvs, values, transforms, kwargs)
                if terms is None and len(values) < len(rvs_to_values):
                    terms = derive(
                        rvs, rvs_to_values=values, rvs_to_transforms=transforms, **kwargs
                    )
            except Exception as error:
                failure = error
        if terms is None:
            terms = derive(
                rvs, rvs_to_values=rvs_to_values, rvs_to_transforms=rvs_to_transforms, **kwargs
            )
        if failure is not None:
            # of a model that PyMC derives: else it has said what is wrong
            warn_of_failure("loops_of_random_variables", failure)
        return terms

    return transformed_conditional_logp


@derivation("variadic_add")
def sums_of_loops(add):
    """l[0] + l[1] + ... + l[N-1] + rest -> sum(l) + rest, l the log-densities of a loop.

    Wraps the sum of a model's terms. So methods that take the gradient before the pre-gradient
    pass, such as ``pm.fit``, see one density, too.
    """

    @wraps(add)
    def variadic_add(*terms):
        if is_active("generative"):
            try:
                terms = with_whole_sums(terms)
            except Exception as error:
                warn_of_failure("sums_of_loops", error)
        return add(*terms)

    return variadic_add


def declare_dims(rvs_to_values, rvs_to_transforms) -> None:
    """Say of the values which lengths are those of the dims: only the random variables know."""
    for rv, value in rvs_to_values.items():
        op = rv.owner and rv.owner.op
        if not isinstance(op, RandomVariable) or not is_given_later(value):
            continue
        size = op.size_param(rv.owner)
        if size.owner is None or not isinstance(size.owner.op, MakeVector):
            continue
        transform = rvs_to_transforms.get(rv)
        dims = tuple(dim if isinstance(dim, SharedVariable) else None for dim in size.owner.inputs)
        if transform is None:
            declare_lengths(value, dims)
        elif None not in dims and op.ndim_supp == 0:
            # a transform may change lengths: those of equal ones stay equal
            own = (dims, identity(transform))
            declare_lengths(value, [(*own, axis) for axis in range(value.type.ndim)])


def values_in_use(
    rvs: Sequence[Variable], rvs_to_values: Mapping[Variable, Variable]
) -> Mapping[Variable, Variable]:
    """The values that the log-densities of `rvs` may take, without those of unused loops.

    PyMC derives the log-densities of all variables, and drops those that nobody has asked for.
    """
    others = set(rvs_to_values).difference(rvs)
    drawn = {rv for rv in others if is_drawn_alone(rv, rvs_to_values)}
    if len(drawn) < MIN_MEMBERS:
        return rvs_to_values
    unused = drawn.difference(ancestors([rv for rv in rvs_to_values if rv not in drawn]))
    if len(unused) < MIN_MEMBERS:
        return rvs_to_values
    return {rv: value for rv, value in rvs_to_values.items() if rv not in unused}


def is_given_later(value: Variable | None) -> bool:
    """Whether a value is an input of the log-density, and not observed."""
    is_known = isinstance(value, Constant | SharedVariable)
    return isinstance(value, TensorVariable) and value.owner is None and not is_known


def _terms(derive, rvs, rvs_to_values, rvs_to_transforms, kwargs) -> list[Variable] | None:
    """The terms of `rvs`, or None where there is no loop."""
    loops, densities = [], []
    for loop in find_loops(rvs, rvs_to_values, rvs_to_transforms):
        value = rvs_to_values[loop.members[0]]
        transform = rvs_to_transforms.get(loop.members[0])
        try:
            densities.append(density_of_loop(derive, loop, value, transform, rvs_to_values, kwargs))
        except CannotBatch as reason:
            declined(loop.members, str(reason))
            continue
        loops.append(loop)
    if not loops:
        return None
    members = {rv for loop in loops for rv in loop.members}
    others = [rv for rv in rvs if rv not in members]
    terms = _rest(derive, others, members, rvs_to_values, rvs_to_transforms, kwargs)
    graphs = in_values([*densities, *terms.values()], rvs_to_values, rvs_to_transforms)
    if _find_unallowed_rvs_in_graph(graphs):
        # PyMC says what is wrong
        return None
    terms = dict(zip(terms, graphs[len(densities) :], strict=True))
    for loop, density in zip(loops, graphs, strict=False):
        terms |= zip(loop.members, members_of(density, loop), strict=True)
        record(Fired("generative", "loops_of_random_variables", str(loop)))
    for rv in rvs:
        terms[rv].name = f"{rvs_to_values[rv].name}_logprob" if rvs_to_values[rv].name else None
    return [terms[rv] for rv in rvs]


def density_of_loop(
    derive, loop: Loop, value: Tensor, transform, rvs: Collection[Variable], kwargs
) -> Tensor:
    """The log-densities of all members, one after the other along the first dimension.

    Their parameters are still computed from `rvs`, all random variables of the model.
    """
    batches = loop.batches
    if loop.rows:
        batches = [new if new is None else new[loop.member_of_row] for new in batches]
    originals = [*loop.parameters, value[0] if loop.rows else value]
    batches = [*batches, loop.value]
    if all(new is None for new in batches):
        raise CannotBatch("they are the same")
    own = [
        var if new is None and is_given(var) else var.type(name=var.name)
        for var, new in zip(originals, batches, strict=True)
    ]
    *parameters, own_value = own
    rv = loop.members[0]
    rv = one_row(rv, parameters) if loop.rows else with_parameters(rv, iter(parameters), rvs)
    try:
        [logp] = derive(
            [rv], rvs_to_values={rv: own_value}, rvs_to_transforms={rv: transform}, **kwargs
        )
    except Exception as error:
        # PyMC wants to know more of a parameter, or says what is wrong with the model
        raise CannotBatch(str(error)) from error
    batched = {var: new for var, new in zip(own, batches, strict=True) if new is not None}
    first_term = {a: b for a, b in zip(own, originals, strict=True) if a is not b}
    [density] = vectorize_outputs([logp], batched, len(loop.member_of_row), rvs, first_term)
    if density.name is None:
        density.name = collapsed(map(name_of, loop.members)) + SUFFIX
    return density


def is_given(var: Variable) -> bool:
    """Whether `var` is known when a density is derived: a constant, a random generator."""
    return isinstance(var, Constant) or not is_tensor(var)


def in_values(
    graphs: Sequence[Variable],
    rvs_to_values: Mapping[Variable, Variable],
    rvs_to_transforms: Mapping[Variable, Transform | None],
) -> list[Variable]:
    """Copies of graphs of random variables as graphs of their values.

    As PyMC's ``replace_rvs_by_values`` writes them, which puts in one variable after the other:
    half the time of a loop's log-density. Here each node is copied once.
    """
    of: dict[Variable, Variable] = {}
    in_place: dict[Variable, Variable] = {}
    stack = list(graphs)
    while stack:
        var = stack[-1]
        if var in rvs_to_values and var not in in_place:
            in_place[var] = _as_drawn(var, rvs_to_values[var], rvs_to_transforms.get(var))
        value, node = in_place.get(var), var.owner
        below = [value] if value is not None else node.inputs if node is not None else []
        if missing := [inp for inp in below if inp not in of]:
            stack += missing
            continue
        stack.pop()
        if value is not None:
            of[var] = of[value]
        elif node is None:
            of[var] = var
        elif var not in of:
            copy = node.clone_with_new_inputs([of[inp] for inp in node.inputs])
            of.update(zip(node.outputs, copy.outputs, strict=True))
    return [of[graph] for graph in graphs]


def _as_drawn(rv: Variable, value: Variable, transform: Transform | None) -> Variable:
    """What stands for `rv` where others use it."""
    if transform is not None:
        value = transform.backward(value, *rv.owner.inputs)
    value = rv.type.filter_variable(value, allow_convert=True)
    if transform is not None:
        value.name = rv.name
    return value


def members_of(density: Tensor, loop: Loop) -> list[Variable]:
    """``density[0], density[1], ...``, made by hand: there are thousands of them."""
    node = density[1:2].owner if loop.rows else density[1].owner
    [old] = node.outputs

    def part(place: int | slice) -> Variable:
        numbers, shape = [place], old.type.shape
        if isinstance(place, slice):
            numbers, shape = [place.start, place.stop], (place.stop - place.start,)
        index = [
            type(own)(own.type, np.asarray(number, dtype=own.type.dtype))
            for own, number in zip(node.inputs[1:], numbers, strict=True)
        ]
        out = old.type.clone(shape=shape).make_variable()
        return Apply(node.op, [density, *index], [out]).outputs[0]

    return [part(place) for place in places(len(loop.members), loop.rows)]


def _rest(derive, rvs, members, rvs_to_values, rvs_to_transforms, kwargs) -> dict:
    """The terms of the other variables, by the variables; the members of loops stay in them."""
    if not rvs:
        return {}
    given = [rv for rv in rvs_to_values if rv not in members]
    stand_ins = {var: var.type() for var in ancestors(given) if var in members}
    # what is conditioned on has a value, and needs no density
    clones = dict(zip(given, substituted(given, stand_ins, ()), strict=True)) if stand_ins else {}
    terms = derive(
        [clones.get(rv, rv) for rv in rvs],
        rvs_to_values={clones.get(rv, rv): rvs_to_values[rv] for rv in given},
        rvs_to_transforms={clones.get(rv, rv): rvs_to_transforms.get(rv) for rv in given},
        **kwargs,
    )
    terms = substituted(terms, {new: old for old, new in stand_ins.items()}, rvs_to_values)
    return dict(zip(rvs, terms, strict=True))
