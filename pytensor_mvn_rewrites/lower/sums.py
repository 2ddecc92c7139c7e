"""Sums of sums -> fewer sums, each of which Numba compiles as a loop of its own."""

from collections.abc import Iterator

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.rewriting.basic import copy_stack_trace
from pytensor.scalar.basic import Add
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.math import Sum, add

from pytensor_mvn_rewrites.graph import Tensor, reduced_axes
from pytensor_mvn_rewrites.pipeline import LOWER_POSITION, lower


@lower("numba", position=LOWER_POSITION + 0.06, tidies=True)
def merge_sums(fgraph):
    """sum(x) + sum(y) -> sum(x + y), sum(sum(x, axis)) -> sum(x), for x and y of equal shapes.

    The same for ``sum(c + sum(x, axis))`` with a constant c, and with axes added or permuted
    between the sums. They are what is left of the joint log-density of re-rolled terms and of its
    gradient. Cost: the same additions in other order; one loop for each sum that goes away.
    Declines for sums that something else needs, for shapes that are not known, and for sums that
    change the dtype.
    """
    changed = any(is_sum(node) for node in fgraph.apply_nodes)
    while changed:
        changed = False
        for node in fgraph.toposort():
            if node not in fgraph.apply_nodes:
                continue
            [old, *others] = node.outputs
            new = None
            if is_sum(node):
                new = sum_of_sum(fgraph, node)
                if new is None:
                    new = sum_of_constant_and_sum(fgraph, node)
            elif is_addition(node):
                new = sum_of_sums(fgraph, node)
            if new is None or others or not old.type.is_super(new.type):
                continue
            copy_stack_trace(old, new)
            fgraph.replace(old, new, reason="mvn_merge_sums", import_missing=True)
            changed = True
            merge_dimshuffles(fgraph, new)


def merge_dimshuffles(fgraph, var: Tensor) -> None:
    """Axes that are moved after `var` has moved some -> one move."""
    if var.owner is None or not isinstance(var.owner.op, DimShuffle):
        return
    order = var.owner.op.new_order
    for client, _ in list(fgraph.clients[var]):
        if isinstance(client.op, DimShuffle) and not client.op.drop:
            both = ["x" if axis == "x" else order[axis] for axis in client.op.new_order]
            new = var.owner.inputs[0].dimshuffle(both)
            fgraph.replace(client.outputs[0], new, reason="mvn_merge_sums", import_missing=True)


def is_sum(node: Apply) -> bool:
    """Whether a node is a sum of floats in their own precision."""
    if not isinstance(node.op, Sum):
        return False
    dtype = node.outputs[0].type.dtype
    return dtype in ("float32", "float64") and dtype == node.inputs[0].type.dtype


def is_addition(node: Apply) -> bool:
    """Whether a node adds arrays."""
    return isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, Add)


def own_sum(fgraph, var: Variable) -> Apply | None:
    """The sum that `var` is, if it has one client."""
    node = var.owner
    is_own = node is not None and is_sum(node) and len(fgraph.clients[var]) == 1
    return node if is_own else None


def total(x: Tensor, axes, node: Apply) -> Tensor:
    """The sum of x over `axes` in the precision of a sum."""
    return Sum(axis=tuple(sorted(axes)), dtype=node.op.dtype, acc_dtype=node.op.acc_dtype)(x)


def sum_of_sum(fgraph, node: Apply) -> Tensor | None:
    """One sum of x for ``sum(dimshuffle(sum(x, axis)), axis)``."""
    [middle] = node.inputs
    order: list = list(range(middle.type.ndim))
    if middle.owner is not None and isinstance(middle.owner.op, DimShuffle):
        if middle.owner.op.drop or len(fgraph.clients[middle]) != 1:
            return None
        order = list(middle.owner.op.new_order)
        [middle] = middle.owner.inputs
    inner = own_sum(fgraph, middle)
    if inner is None:
        return None
    [x] = inner.inputs
    kept = [axis for axis in range(x.type.ndim) if axis not in reduced_axes(inner)]
    outer_axes = reduced_axes(node)
    summed = {kept[order[i]] for i in outer_axes if order[i] != "x"}
    new = total(x, {*reduced_axes(inner), *summed}, node)
    left = [axis for axis in kept if axis not in summed]
    new_order = [
        "x" if axis == "x" else left.index(kept[axis])
        for i, axis in enumerate(order)
        if i not in outer_axes
    ]
    return new if new_order == list(range(new.type.ndim)) else new.dimshuffle(new_order)


def sum_of_constant_and_sum(fgraph, node: Apply) -> Tensor | None:
    """A constant and one sum of x for ``sum(c + sum(x, axis))``."""
    [added] = node.inputs
    if added.owner is None or not is_addition(added.owner) or len(fgraph.clients[added]) != 1:
        return None
    constants = [term for term in added.owner.inputs if isinstance(term, Constant)]
    others = [term for term in added.owner.inputs if not isinstance(term, Constant)]
    if len(others) != 1 or not constants or (inner := own_sum(fgraph, others[0])) is None:
        return None
    [x] = inner.inputs
    axes = reduced_axes(node)
    if None in added.type.shape or others[0].type.shape != added.type.shape:
        return None
    kept = [axis for axis in range(x.type.ndim) if axis not in reduced_axes(inner)]
    constant = np.broadcast_to(sum(c.data for c in constants), added.type.shape).sum(axes)
    new = total(x, {*reduced_axes(inner), *(kept[axis] for axis in axes)}, node)
    return add(pt.constant(constant, dtype=new.type.dtype), new)


def sum_of_sums(fgraph, node: Apply) -> Tensor | None:
    """One sum for those of arrays of equal shapes over the same axes."""
    alike: dict[tuple, list[Apply]] = {}
    terms: list[Variable] = []
    for inp in added_terms(fgraph, node):
        inner = own_sum(fgraph, inp)
        if inner is None or None in inner.inputs[0].type.shape:
            terms.append(inp)
            continue
        key = (reduced_axes(inner), inner.inputs[0].type.shape, inner.op.dtype, inner.op.acc_dtype)
        alike.setdefault(key, []).append(inner)
    if all(len(sums) == 1 for sums in alike.values()):
        return None
    for (axes, *_), sums in alike.items():
        arrays = [inner.inputs[0] for inner in sums]
        terms.append(total(add(*arrays), axes, sums[0]) if len(sums) > 1 else sums[0].outputs[0])
    return add(*terms) if len(terms) > 1 else terms[0]


def added_terms(fgraph, node: Apply) -> Iterator[Variable]:
    """What a node adds, and what is added to it in nodes of its own."""
    for inp in node.inputs:
        if inp.owner is not None and is_addition(inp.owner) and len(fgraph.clients[inp]) == 1:
            yield from added_terms(fgraph, inp.owner)
        else:
            yield inp
