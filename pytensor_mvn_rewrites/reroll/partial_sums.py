"""Sums of the parts of one variable -> the sum of the variable."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import pytensor.tensor as pt
from pytensor.graph.basic import Constant, Variable
from pytensor.tensor.math import Sum
from pytensor.tensor.subtensor import Subtensor

from pytensor_mvn_rewrites.graph import Tensor, reduced_axes
from pytensor_mvn_rewrites.pipeline import reroll
from pytensor_mvn_rewrites.reroll._packs import holds_random_variables
from pytensor_mvn_rewrites.reroll._terms import outer_sums


@reroll
def sums_of_parts_are_one_sum(fgraph):
    r"""sum(x[0]) + sum(x[1:4]) + ... + sum(x[m:]) -> sum(x).

    .. math:: \sum_k \sum_{i \in I_k} x_i = \sum_i x_i, \qquad I_1, I_2, \ldots
              \text{ a partition}

    The log-densities of a loop that was re-rolled as random variables come in parts, one for each
    of them. Cost: N slices and N sums become one sum. Declines unless the parts follow one after
    the other without gaps or overlaps, and unless the length of x is known.
    """
    sums = outer_sums(fgraph, has_parts)
    if not sums or holds_random_variables(fgraph):
        return
    replacements = []
    for node, terms in sums:
        total = with_whole_sums(terms)
        [old] = node.outputs
        new = (pt.add(*total) if len(total) > 1 else total[0]).astype(old.type.dtype)
        new.name = old.name
        replacements.append((old, old.type.filter_variable(new)))
    fgraph.replace_all(replacements, reason="sums_of_parts_are_one_sum", import_missing=True)


def has_parts(terms: Sequence[Variable]) -> bool:
    """Whether some of the terms are all parts of one variable."""
    return len(with_whole_sums(terms)) < len(terms)


def with_whole_sums(terms: Sequence[Variable]) -> list[Tensor]:
    """The terms of a sum, with one in place of all parts of a variable."""
    parts: dict[Variable, list[tuple[int, int, Variable]]] = defaultdict(list)
    for term in terms:
        if (found := part_of(term)) is not None:
            x, start, stop = found
            parts[x].append((start, stop, term))
    wholes = {x: whole for x, own in parts.items() if (whole := joined(x, own)) is not None}
    gone = {term for x in wholes for _, _, term in parts[x]}
    return [*(term for term in terms if term not in gone), *wholes.values()]


def part_of(term: Tensor) -> tuple[Tensor, int, int] | None:
    """The x, start and stop of ``sum(x[start:stop])``, or of ``x[start]``, a number."""
    if term.type.ndim:
        return None
    var = term
    match term.owner_op_and_inputs:
        case (Sum(), inner) if len(reduced_axes(term.owner)) == inner.type.ndim:
            var = inner
    match var.owner_op_and_inputs:
        case (Subtensor(idx_list=(index,)), x, *bounds) if x.type.shape[0] is not None and all(
            isinstance(bound, Constant) for bound in bounds
        ):
            pass
        case _:
            return None
    if x.type.dtype != term.type.dtype:
        return None
    values = [int(bound.data) for bound in bounds if isinstance(bound, Constant)]
    if isinstance(index, slice):
        entries = [None if e is None else values[e] for e in (index.start, index.stop, index.step)]
        start, stop, step = slice(*entries).indices(x.type.shape[0])
        return (x, start, max(start, stop)) if step == 1 else None
    start = values[index] if values[index] >= 0 else values[index] + x.type.shape[0]
    return x, start, start + 1


def joined(x: Tensor, parts: list[tuple[int, int, Variable]]) -> Variable | None:
    """The sum of all parts of x, of which there are at least two."""
    if len(parts) < 2:
        return None
    parts = sorted(parts, key=lambda part: part[:2])
    if any(before[1] != after[0] for before, after in pairwise(parts)):
        return None
    start, stop = parts[0][0], parts[-1][1]
    return (x if (start, stop) == (0, x.type.shape[0]) else x[start:stop]).sum()
