"""Stacks: ``stack([f(a_1), ..., f(a_N)])`` and concatenations become one batched term."""

import math
from collections.abc import Sequence

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor.basic import Join, MakeVector

from pytensor_mvn_rewrites.graph import in_graph_order, lengths_of, nodes_with
from pytensor_mvn_rewrites.pipeline import reroll
from pytensor_mvn_rewrites.reroll._cost import WORTHWHILE_STACK
from pytensor_mvn_rewrites.reroll._packs import Pack, Rerolling, holds_random_variables
from pytensor_mvn_rewrites.reroll._terms import fewest_terms


@reroll
def reroll_stacks(fgraph):
    """join(f(a_1), ..., f(a_N)) -> F(A), F the batched f; the same for MakeVector.

    This serves hand-made stacks and mixtures over a list, and also what re-rolled sums leave
    behind: the stack of N value variables that are slices of one raveled vector is a reshape of
    that vector, and so is the gradient that is joined from N parts.

    Terms of several packs, or with others between them, are joined and put in order by one gather;
    their lengths must then be known. Declines on graphs of random variables, when shapes are not
    provably equal, and when nothing is saved.
    """
    fewest = fewest_terms(fgraph)
    stacks = [node for node in nodes_with(fgraph, Join, MakeVector) if _computed(node) >= fewest]
    if not stacks or holds_random_variables(fgraph):
        return
    rerolling = Rerolling("reroll_stacks", fgraph)
    replacements = []
    for node in in_graph_order(fgraph, stacks):
        packs = rerolling.packs(node.inputs, minimum=WORTHWHILE_STACK)
        if packs and (new := assemble(node, packs)) is not None:
            [old] = node.outputs
            # the whole stack may be a variable that has its own name, such as an input
            if new.owner is not None and new.name is None:
                new.name = old.name
            replacements.append((old, old.type.filter_variable(new)))
    fgraph.replace_all(replacements, reason="reroll_stacks", import_missing=True)


def _computed(node: Apply) -> int:
    return sum(inp.owner is not None for inp in node.inputs)


def assemble(node: Apply, packs: Sequence[Pack]) -> Variable | None:
    """The joined result, from batched packs and single terms; None if the order is not known."""
    axis = node.op.axis if isinstance(node.op, Join) else 0
    scalars = isinstance(node.op, MakeVector)
    packed = {position for pack in packs for position in pack.positions}
    chunks = [(pack.positions, merge_batch(pack.batch, axis, scalars=scalars)) for pack in packs]
    chunks += [
        ([position], pt.expand_dims(term, 0) if scalars else term)
        for position, term in enumerate(node.inputs)
        if position not in packed
    ]
    chunks.sort(key=lambda chunk: chunk[0][0])
    order = [position for positions, _ in chunks for position in positions]
    joined = chunks[0][1] if len(chunks) == 1 else pt.join(axis, *[var for _, var in chunks])
    joined = pt.cast(joined, node.outputs[0].type.dtype)
    if order == sorted(order):
        return joined
    lengths = [1 if scalars else term.type.shape[axis] for term in node.inputs]
    for pack in [] if scalars else packs:
        for position in pack.positions:
            # the batch may know what its members, such as parts of a split, do not
            lengths[position] = lengths[position] or pack.batch.type.shape[axis + 1]
    if None in lengths:
        return None
    starts = np.cumsum([0, *[lengths[position] for position in order]])[:-1]
    start_of = dict(zip(order, starts, strict=True))
    gather = np.concatenate(
        [start_of[position] + np.arange(length) for position, length in enumerate(lengths)]
    )
    return pt.take(joined, gather, axis=axis)


def merge_batch(batch, axis: int, *, scalars: bool) -> Variable:
    """A batch of terms -> the terms joined along `axis`."""
    if scalars:
        return batch
    batch = pt.moveaxis(batch, 0, axis)
    if batch.type.shape[axis + 1] == 1:
        return pt.squeeze(batch, axis + 1)
    shape = lengths_of(batch)
    merged = math.prod(shape[axis : axis + 2])
    return batch.reshape([*shape[:axis], merged, *shape[axis + 2 :]])
