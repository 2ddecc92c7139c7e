"""The walk of a pack: all its terms together, position by position.

At each position, the N variables found there, themselves a pack, are

- one variable, or equal constants: shared by all terms;
- different constants, or slices of one variable: batched as they are;
- results of the same op: the op is batched, once its inputs are;
- anything else, such as the value variables of a loop or the results of a Scan: stacked.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.tensor.basic import Split
from pytensor.tensor.elemwise import CAReduce
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pytensor_mvn_rewrites.reroll._cost import ARRANGING_OPS, Cost, factorizes, weight
from pytensor_mvn_rewrites.reroll._signature import Signatures, is_anchor, is_commutative

#: What is found at one position of all terms.
type Members = tuple[Variable, ...]

#: What a pack is known by: the identities of its members.
type Key = tuple[int, ...]


class Walk:
    """Counts what a pack would become, and builds nothing; `LockStep` builds it.

    Finds what each pack becomes, inputs first; None stands for what all terms share.

    Parameters
    ----------
    terms : sequence of Variable
        At least two, with equal signatures.
    signatures : Signatures
    strict : Signatures, optional
        Given when `signatures` are anchored: an input of an anchor whose strict signatures differ
        is stacked as it is.
    """

    def __init__(
        self, terms: Sequence[Variable], signatures: Signatures, strict: Signatures | None = None
    ):
        self.terms = tuple(terms)
        self.signatures, self.strict = signatures, strict
        self.start()

    def start(self) -> None:
        """Forget what was found and counted."""
        self.results: dict[Key, Any] = {}
        self.outputs: dict[Key, Sequence] = {}
        self.nodes, self.computes, self.factorizes, self.reduces = 0, False, False, False
        self.used_stacks: set[Key] = set()

    def cost(self, used: Collection[Key]) -> Cost:
        """What the pack costs where other packs use the stacks `used`."""
        nodes = self.nodes if self.computes else 0
        new = len(self.used_stacks.difference(used))
        sums_arrays = self.reduces and getattr(self.terms[0].type, "ndim", 0) > 0
        stacks = frozenset(self.used_stacks)
        return Cost(len(self.terms), nodes, stacks, new, self.factorizes, sums_arrays)

    def count(self, op) -> None:
        """Count a node of each term."""
        self.nodes += weight(op)
        self.computes |= not isinstance(op, ARRANGING_OPS)
        self.factorizes |= factorizes(op)
        self.reduces |= isinstance(op, CAReduce)

    def constants(self, pack: Members) -> Any:
        """A pack of constants."""
        return True

    def slices(self, pack: Members) -> Any:
        """A pack that may turn out to be slices of one variable; None for any other."""
        first = pack[0].owner
        may_be = (
            first is not None
            and isinstance(first.op, Subtensor | AdvancedSubtensor | Split)
            and all(var.owner and var.owner.inputs[0] is first.inputs[0] for var in pack)
            and all(type(var.owner.op) is type(first.op) for var in pack)
        )
        return may_be or None

    def stack(self, pack: Members) -> Any:
        """A pack of different variables."""
        self.used_stacks.add(key_of(pack))
        return True

    def node(self, nodes: Sequence[Apply], inputs: list[Members], batched: list) -> Sequence:
        """The outputs of a pack of nodes, some of whose `inputs` are batched."""
        self.count(nodes[0].op)
        return [True] * len(nodes[0].outputs)

    def walk(self) -> Any:
        """What the pack of the terms becomes."""
        pending = [self.terms]
        while pending:
            pack = pending[-1]
            key = key_of(pack)
            if key in self.results or self._resolve(pack, key):
                pending.pop()
                continue
            inputs = self.inputs(pack)
            missing = [inp for inp in inputs if key_of(inp) not in self.results]
            pending.extend(missing)
            if not missing:
                self.results[key] = self.output(pack, inputs)
        return self.results[key_of(self.terms)]

    def _resolve(self, pack: Members, key: Key) -> bool:
        """Whether it needs no look at the inputs of `pack` to say what it becomes."""
        if all(var is pack[0] for var in pack) or _is_repeated(pack):
            self.results[key] = None
        elif all(isinstance(var, Constant) for var in pack):
            self.results[key] = self.constants(pack)
        elif (slices := self.slices(pack)) is not None:
            self.results[key] = slices
        elif pack[0] in self.signatures.leaves or not have_same_op(pack):
            self.results[key] = self.stack(pack)
        else:
            return False
        return True

    def inputs(self, pack: Members) -> list[Members]:
        """The packs that the nodes take in; those of commutative nodes in canonical order."""
        op = nodes_of(pack)[0].op
        rows = [node.inputs for node in nodes_of(pack)]
        if is_commutative(op):
            rows = [self.signatures.in_canonical_order(row) for row in rows]
        packs = list(zip(*rows, strict=True))
        if self.strict is not None and is_anchor(op):
            for inputs in packs:
                if len({self.strict(var) for var in inputs}) > 1:
                    self.results[key_of(inputs)] = self.stack(inputs)
        return packs

    def output(self, pack: Members, inputs: list[Members]) -> Any:
        """What a pack of results of one op becomes."""
        nodes = nodes_of(pack)
        batched = [self.results[key_of(inp)] for inp in inputs]
        if all(new is None for new in batched):
            return None
        key = key_of(nodes)
        if key not in self.outputs:
            self.outputs[key] = self.node(nodes, inputs, batched)
        new = self.outputs[key][nodes[0].outputs.index(pack[0])]
        return None if new is pack[0] else new


def expected(
    terms: Sequence[Variable],
    signatures: Signatures,
    used: Collection[Key],
    strict: Signatures | None = None,
) -> Cost:
    """The cost of a pack if everything can be batched, found without building a node."""
    walk = Walk(terms, signatures, strict)
    walk.walk()
    return walk.cost(used)


def key_of(pack: Iterable[Variable | Apply]) -> Key:
    """The identities of the members of a pack."""
    return tuple(map(id, pack))


def nodes_of(pack: Sequence[Variable]) -> list[Any]:
    """The nodes that compute the variables of `pack`, which all have one."""
    return [var.owner for var in pack]


def have_same_op(pack: Sequence[Variable]) -> bool:
    """Whether all are the same output of the same op."""
    first = pack[0].owner
    if first is None:
        return False
    index = first.outputs.index(pack[0])
    return all(
        var.owner is not None
        and var.owner.op == first.op
        and len(var.owner.inputs) == len(first.inputs)
        and var.owner.outputs.index(var) == index
        for var in pack
    )


def _is_repeated(pack: Sequence[Variable]) -> bool:
    """Whether the pack holds one slice several times, each time as a node of its own."""
    first = pack[0].owner
    if first is None or not isinstance(first.op, Subtensor):
        return False
    return have_same_op(pack) and all(
        own is other or (isinstance(own, Constant) and own.equals(other))
        for node in nodes_of(pack)
        for own, other in zip(first.inputs, node.inputs, strict=True)
    )
