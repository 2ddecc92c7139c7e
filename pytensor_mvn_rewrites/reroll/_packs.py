"""From a list of terms to the packs among them that are worth re-rolling."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pymc.logprob.abstract import MeasurableOp
from pytensor.graph.basic import Variable
from pytensor.graph.op import Op
from pytensor.graph.traversal import toposort
from pytensor.tensor.random.op import RandomVariable

from pytensor_mvn_rewrites.pipeline import Declined, Fired, record
from pytensor_mvn_rewrites.reroll._lockstep import WORTHWHILE, CannotReroll, LockStep
from pytensor_mvn_rewrites.reroll._signature import (
    Signatures,
    group_by_signature,
    is_anchor,
)


@dataclass
class Pack:
    """Terms that are re-rolled together: their positions, and their batched form.

    Terms of an `anchored` pack agree down to their densities only: one may depend on another.
    """

    positions: list[int]
    batch: Variable
    is_view: bool
    anchored: bool


class Rerolling:
    """One pass over a graph: signatures and stacks are shared by all its roots.

    Parameters
    ----------
    rule : str
        Name of the rewrite, for :func:`~pytensor_mvn_rewrites.explain`.
    """

    def __init__(self, rule: str):
        self.rule = rule
        self.signatures = Signatures()
        self.anchored = Signatures(anchored=True)
        self.stacks: dict[tuple[int, ...], Variable] = {}

    def packs(self, terms: Sequence[Variable], minimum: int = WORTHWHILE) -> list[Pack]:
        """The packs among `terms` that save at least `minimum` nodes, or are views.

        Terms of one structure go first. Of what is left, terms go together that agree down to
        their fused density ops; what these take in is stacked.
        """
        groups = group_by_signature(terms, self.signatures)
        found = [
            pack
            for positions in groups.values()
            if len(positions) > 1 and (pack := self._pack(terms, positions, minimum))
        ]
        packed = {position for pack in found for position in pack.positions}
        left = [p for positions in groups.values() for p in positions if p not in packed]
        if len(left) < 2 or not any(map(is_anchor, _ops_of(terms[p] for p in left))):
            return found
        by_anchor = group_by_signature([terms[p] for p in left], self.anchored)
        for indices in by_anchor.values():
            positions = [left[index] for index in indices]
            if len({self.signatures(terms[p]) for p in positions}) > 1 and (
                pack := self._pack(terms, positions, minimum, anchored=True)
            ):
                found.append(pack)
        return found

    def _pack(self, terms, positions, minimum, *, anchored: bool = False) -> Pack | None:
        members = [terms[position] for position in positions]
        try:
            if anchored:
                walk = LockStep(members, self.anchored, self.stacks, strict=self.signatures)
            else:
                walk = LockStep(members, self.signatures, self.stacks)
            batch = walk.batch()
        except CannotReroll as reason:
            record(Declined("reroll", self.rule, f"{_describe(members)}: {reason}"))
            return None
        if batch.variable is None or not (batch.is_view or batch.saved >= minimum):
            return None
        record(Fired("reroll", self.rule, _describe(members)))
        return Pack(positions, batch.variable, batch.is_view, anchored)


def _describe(members: Sequence[Variable]) -> str:
    """What a pack is, for people: the number of terms and their name or op."""
    first = members[0]
    return f"{len(members)} terms like {first.name or _named_input(first) or first.owner.op}"


def _named_input(var: Variable) -> str | None:
    """Name of the nearest named variable below `var`, going down first inputs."""
    while var.owner is not None and var.name is None:
        var = var.owner.inputs[0]
    return var.name


def _ops_of(terms: Iterable[Variable]) -> Iterator[Op]:
    return (node.op for node in toposort(list(terms)))


def holds_random_variables(fgraph) -> bool:
    """Whether the graph draws random variables, or is PyMC's intermediate representation."""
    return any(
        isinstance(node.op, RandomVariable | MeasurableOp) or hasattr(node.op, "default_output_rng")
        for node in fgraph.apply_nodes
    )
