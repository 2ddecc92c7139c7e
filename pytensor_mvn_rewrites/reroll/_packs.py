"""From a list of terms to the packs among them that are worth re-rolling."""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from pymc.logprob.abstract import MeasurableOp
from pytensor.graph.basic import Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.random.op import RandomVariable

from pytensor_mvn_rewrites.graph import nodes_with, op_types
from pytensor_mvn_rewrites.names import SUFFIX, collapsed
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp
from pytensor_mvn_rewrites.ops.gaussian import FusedOp
from pytensor_mvn_rewrites.pipeline import Declined, Fired, record
from pytensor_mvn_rewrites.reroll._cost import WORTHWHILE, Cost
from pytensor_mvn_rewrites.reroll._lockstep import Batch, CannotReroll, LockStep
from pytensor_mvn_rewrites.reroll._signature import (
    Identities,
    Signatures,
    group_by,
    group_by_surface,
    is_anchor,
)
from pytensor_mvn_rewrites.reroll._terms import fewest_terms
from pytensor_mvn_rewrites.reroll._walk import expected
from pytensor_mvn_rewrites.structure._structure import large_structure


@dataclass
class Pack:
    """Terms that are re-rolled together: their positions, and their batched form.

    Terms of an `anchored` pack agree down to their densities only: one may depend on another.
    """

    positions: list[int]
    batch: Variable
    anchored: bool


class Memory:
    """What was rejected in earlier rounds of the rewriting of one graph.

    A question holds the identities of the terms: what they are computed from, and how. It is
    asked again when any of that has changed.
    """

    def __init__(self):
        self.identities = Identities()
        self.rejected: set[tuple] = set()


_memories: WeakKeyDictionary[FunctionGraph, Memory] = WeakKeyDictionary()


class Rerolling:
    """One pass over a graph: signatures and stacks are shared by all its roots.

    Parameters
    ----------
    rule : str
        Name of the rewrite, for :func:`~pytensor_mvn_rewrites.explain`.
    fgraph : FunctionGraph
        The graph.
    """

    def __init__(self, rule: str, fgraph: FunctionGraph):
        self.rule, self.fgraph = rule, fgraph
        self.has_anchors = bool(nodes_with(fgraph, FusedOp))
        self.fewest = fewest_terms(fgraph)
        self.signatures = Signatures()
        self.anchored = Signatures(anchored=True)
        self.memory = _memories.setdefault(fgraph, Memory())
        self.memory.identities.forget_variables()
        self.stacks: dict[tuple[int, ...], Variable] = {}
        #: The stacks that the packs use which are re-rolled
        self.used: set[tuple[int, ...]] = set()

    def packs(self, terms: Sequence[Variable], minimum: int = WORTHWHILE) -> list[Pack]:
        """The packs among `terms` that save at least `minimum` nodes, or are views.

        Terms of one structure go first. Of what is left, terms go together that agree down to
        their fused density ops; what these take in is stacked, large matrices only if that hides
        nothing of what they are made of.
        """
        # most graphs have no two terms alike: a look at the surface says so at no cost
        buckets = group_by_surface(terms) if len(terms) >= self.fewest else []
        alike = [p for bucket in buckets if len(bucket) >= self.fewest for p in bucket]
        if not alike:
            return []
        groups = [g for g in group_by(alike, lambda p: self.signatures(terms[p])) if len(g) > 1]
        packs = [self._pack(terms, group, minimum) for group in groups]
        found = [pack for pack in packs if pack]
        if found:
            for pack, group in zip(packs, groups, strict=True):
                found += [] if pack else self._sharing(terms, group, minimum)
        packed = {position for pack in found for position in pack.positions}
        left = [p for p in alike if p not in packed]
        if not self.has_anchors or len(left) < 2:
            return found
        for group in group_by(left, lambda p: self.anchored(terms[p])):
            # what agrees all the way down has had its chance
            if len({self.signatures(terms[p]) for p in group}) == 1:
                continue
            for positions in group_by(group, lambda p: self._structures(terms[p])):
                if len(positions) > 1 and (
                    pack := self._pack(terms, positions, minimum, anchored=True)
                ):
                    found.append(pack)
        return found

    def _structures(self, term: Variable) -> tuple[int, ...]:
        """The signatures of the large matrices of `term` that are made of something.

        Where these differ, the stack of the matrices would be dense.
        """
        found, pending, seen = [], [term], {term}
        while pending:
            node = pending.pop().owner
            if node is None:
                continue
            is_density = isinstance(node.op, MvNormalLogp | InvQuadLogdet)
            if is_density and large_structure(self.fgraph, node) is not None:
                found.append(self.signatures(node.inputs[-1]))
            if not is_anchor(node.op):
                below = [inp for inp in reversed(node.inputs) if inp not in seen]
                seen.update(below)
                pending += below
        return tuple(found)

    def _sharing(self, terms, positions, minimum) -> list[Pack]:
        """Packs of terms that look at the stacks of other packs: they need none of their own.

        Where one more term is of the same structure, such as the prior of a group that all others
        share, the rest go together.
        """
        if pack := self._pack(terms, positions, minimum, shares=True):
            return [pack]
        found: list[Pack] = []
        shorter = [used for used in self.used if len(used) < len(positions)]
        if not shorter:
            return found
        stacks = expected([terms[p] for p in positions], self.signatures, self.used).stacks
        for used in sorted(shorter, key=len, reverse=True):
            for stack in stacks:
                some = [positions[stack.index(own)] for own in used if own in stack]
                packed = {p for pack in found for p in pack.positions}
                if len(some) < len(used) or packed.intersection(some):
                    continue
                if pack := self._pack(terms, some, minimum, shares=True):
                    found.append(pack)
        return found

    def _pack(
        self, terms, positions, minimum, *, anchored: bool = False, shares: bool = False
    ) -> Pack | None:
        members = [terms[position] for position in positions]
        question = (self.rule, minimum, anchored, tuple(map(self.memory.identities, members)))
        if question in self.memory.rejected and not shares:
            return None
        batch = self._batch(members, minimum, anchored=anchored, shares=shares)
        if batch is None or batch.variable is None:
            self.memory.rejected.add(question)
            return None
        self.used |= batch.cost.stacks
        names = [var.name for var in members if var.name and var.name.endswith(SUFFIX)]
        if len(names) == len(members) and batch.variable.name is None:
            of_all = collapsed(name.removesuffix(SUFFIX) for name in names)
            batch.variable.name = of_all + SUFFIX
        record(Fired("reroll", self.rule, _describe(members)))
        return Pack(positions, batch.variable, anchored)

    def _batch(self, members, minimum: int, *, anchored: bool, shares: bool) -> Batch | None:
        """The batch of the members if it pays; what is sure not to is not built."""
        signatures = self.anchored if anchored else self.signatures
        strict = self.signatures if anchored else None

        def pays(cost: Cost) -> bool:
            if shares and cost.stacks <= self.used:
                return cost.saved >= 1
            return cost.pays(minimum, beside_density=self.has_anchors)

        guess = expected(members, signatures, self.used, strict)
        if not (pays(guess) or guess.may_be_view):
            return None
        are_scalars = not getattr(members[0].type, "ndim", 0)
        if guess.is_short(minimum, self.fewest, are_scalars=are_scalars):
            return None
        try:
            batch = LockStep(members, signatures, self.stacks, self.used, strict).batch()
        except CannotReroll as reason:
            what = f"{_describe(members)}: {reason}"
            record(Declined("reroll", self.rule, what, reason.remedy))
            return None
        return batch if batch.is_view or pays(batch.cost) else None


def _describe(members: Sequence[Variable]) -> str:
    """What a pack is, for people: the number of terms and their names or op."""
    first = members[0]
    names = [var.name.removesuffix(SUFFIX) for var in members if var.name]
    if len(names) == len(members):
        return f"{len(members)} terms {collapsed(names)}"
    return f"{len(members)} terms like {first.name or _named_input(first) or first.owner.op}"


def _named_input(var: Variable) -> str | None:
    """Name of the nearest named variable below `var`, going down first inputs."""
    while var.owner is not None and var.name is None:
        var = var.owner.inputs[0]
    return var.name


def holds_random_variables(fgraph) -> bool:
    """Whether the graph draws random variables, or is PyMC's intermediate representation."""
    return any(issubclass(kind, RandomVariable | MeasurableOp) for kind in op_types(fgraph))
