"""From a list of terms to the packs among them that are worth re-rolling."""

from collections.abc import Sequence
from dataclasses import dataclass

from pymc.logprob.abstract import MeasurableOp
from pytensor.graph.basic import Variable
from pytensor.tensor.random.op import RandomVariable

from pytensor_mvn_rewrites.reroll._lockstep import WORTHWHILE, Declined, LockStep
from pytensor_mvn_rewrites.reroll._signature import Signatures, group_by_signature


@dataclass
class Pack:
    """Terms that are re-rolled together: their positions, and their batched form."""

    positions: list[int]
    batch: Variable
    is_view: bool


class Rerolling:
    """One pass over a graph: signatures and stacks are shared by all its roots."""

    def __init__(self):
        self.signatures = Signatures()
        self.stacks: dict[tuple[int, ...], Variable] = {}
        self.declined: list[str] = []

    def packs(self, terms: Sequence[Variable], minimum: int = WORTHWHILE) -> list[Pack]:
        """The packs among `terms` that save at least `minimum` nodes, or are views."""
        found = []
        for positions in group_by_signature(terms, self.signatures).values():
            if len(positions) > 1 and (pack := self._pack(terms, positions, minimum)):
                found.append(pack)
        return found

    def _pack(self, terms, positions, minimum) -> Pack | None:
        members = [terms[position] for position in positions]
        try:
            batch = LockStep(members, self.signatures, self.stacks).batch()
        except Declined as reason:
            self.declined.append(str(reason))
            return None
        if batch.variable is None or not (batch.is_view or batch.saved >= minimum):
            return None
        return Pack(positions, batch.variable, batch.is_view)


def holds_random_variables(fgraph) -> bool:
    """Whether the graph draws random variables, or is PyMC's intermediate representation."""
    return any(
        isinstance(node.op, RandomVariable | MeasurableOp) or hasattr(node.op, "default_output_rng")
        for node in fgraph.apply_nodes
    )
