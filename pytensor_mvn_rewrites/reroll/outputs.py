"""Outputs: isomorphic outputs of one function become slices of one batched term."""

from collections.abc import Sequence

from pytensor.graph.basic import Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor.basic import Alloc, Join, MakeVector, ScalarFromTensor, Split, TensorFromScalar
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.reshape import JoinDims, SplitDims
from pytensor.tensor.shape import Reshape, Shape, Shape_i, SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pytensor_mvn_rewrites.pipeline import reroll
from pytensor_mvn_rewrites.reroll._packs import Pack, Rerolling, holds_random_variables

#: Ops that only move data. PyTensor lifts ``[i]`` through them, back onto each term.
LAYOUT_OPS = (
    AdvancedSubtensor,
    Alloc,
    DimShuffle,
    Join,
    JoinDims,
    MakeVector,
    Reshape,
    ScalarFromTensor,
    Shape,
    Shape_i,
    SpecifyShape,
    Split,
    SplitDims,
    Subtensor,
    TensorFromScalar,
)


@reroll
def reroll_outputs(fgraph):
    """(f(a_1), ..., f(a_N)) -> (F(A)[0], ..., F(A)[N-1]), F the batched f.

    For functions that return one log-density for each term of a loop, such as
    ``compile_logp(sum=False)``. Declines on graphs of random variables, when shapes are not
    provably equal, when it would save next to nothing, and when nothing is computed but data
    moved: the slices would be lifted back onto each term.
    """
    if len(fgraph.outputs) < 2 or holds_random_variables(fgraph):
        return
    packs = Rerolling("reroll_outputs", fgraph).packs(fgraph.outputs)
    replacements = [
        (fgraph.outputs[position], pack.batch[index])
        for pack in without_cycles(packs, fgraph.outputs)
        if computes(fgraph, pack.batch)
        for index, position in enumerate(pack.positions)
    ]
    for old, new in replacements:
        new.name = old.name
    fgraph.replace_all(
        [(old, old.type.filter_variable(new)) for old, new in replacements],
        reason="reroll_outputs",
        import_missing=True,
    )


def without_cycles(packs: Sequence[Pack], outputs: Sequence[Variable]) -> list[Pack]:
    """The packs that can all be replaced at once.

    Terms of equal structure are equally deep, so none of them depends on another. Terms that agree
    only down to their densities might: such a pack must not depend on any output to be replaced.
    """
    replaced = {outputs[position] for pack in packs for position in pack.positions}

    def depends_on_replaced(pack: Pack) -> bool:
        nodes = [outputs[position].owner for position in pack.positions]
        inputs = [inp for node in nodes if node is not None for inp in node.inputs]
        return not replaced.isdisjoint(ancestors(inputs))

    return [pack for pack in packs if not (pack.anchored and depends_on_replaced(pack))]


def computes(fgraph, batch: Variable) -> bool:
    """Whether any of the nodes that are new with `batch` does more than to move data."""
    pending, seen = [batch], {batch}
    while pending:
        var = pending.pop()
        if var.owner is None or var.owner in fgraph.apply_nodes:
            continue
        if not isinstance(var.owner.op, LAYOUT_OPS):
            return True
        new = [inp for inp in var.owner.inputs if inp not in seen]
        seen.update(new)
        pending.extend(new)
    return False
