"""The lock-step walk: a pack of isomorphic terms becomes one batched term.

All terms of a pack are walked together. At each position, the N variables found there are

- one variable, or equal constants: shared, left unbatched;
- different constants: one stacked constant;
- slices of one variable: the variable itself, a slice or a gather of it (``_indexing.py``);
- results of the same op: the op is batched, once its inputs are;
- anything else, such as the value variables of a loop or the results of a Scan: stacked, if their
  shapes are provably equal.

The batch dimension always comes first.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.scalar.basic import ScalarType
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor
from pytensor.tensor.type import DenseTensorType

from pytensor_mvn_rewrites.reroll._cost import (
    ARRANGING_OPS,
    Cost,
    factorizes,
    have_same_op,
    input_packs,
    weight,
)
from pytensor_mvn_rewrites.reroll._dims import DimEquations
from pytensor_mvn_rewrites.reroll._indexing import batch_of_indices, batch_of_slices
from pytensor_mvn_rewrites.reroll._signature import Signatures, is_anchor, is_commutative
from pytensor_mvn_rewrites.reroll._vectorize import CannotBatch, vectorize


class CannotReroll(Exception):
    """The pack stays as it is; the message says why."""


class _NoBatchedForm(Exception):
    """The results of this op are stacked instead."""

    def __init__(self, reason: str, pack: tuple[Variable, ...]):
        super().__init__(reason)
        self.pack = pack


@dataclass
class Batch:
    """A re-rolled pack.

    Attributes
    ----------
    variable : Variable or None
        Batched over the first dimension; None if all terms of the pack are one.
    cost : Cost
    """

    variable: Variable | None
    cost: Cost

    @property
    def is_view(self) -> bool:
        """Whether nothing is computed and nothing stacked: the terms are slices of one variable."""
        return self.variable is not None and self.cost.may_be_view


@dataclass
class LockStep:
    """Walks one pack of isomorphic terms.

    Parameters
    ----------
    terms : sequence of Variable
        At least two, with equal signatures.
    signatures : Signatures
    stacks : dict
        Stacks already built in this pass, shared between packs.
    used : collection of tuple of int
        Those of them that other packs use: they are for free.
    strict : Signatures, optional
        Given when `signatures` are anchored: an input of an anchor whose strict signatures differ
        is stacked as it is.
    """

    terms: Sequence[Variable]
    signatures: Signatures
    stacks: dict[tuple[int, ...], Variable]
    used: Collection[tuple[int, ...]] = ()
    strict: Signatures | None = None
    nodes: int = 0
    computes: bool = False
    factorizes: bool = False
    _variables: dict[tuple[int, ...], Variable | None] = field(default_factory=dict)
    _outputs: dict[tuple[int, ...], list[Variable] | None] = field(default_factory=dict)
    _unbatchable: dict[tuple[int, ...], Variable | None] = field(default_factory=dict)
    _unstackable: dict[tuple[int, ...], str] = field(default_factory=dict)
    _used_stacks: set[tuple[int, ...]] = field(default_factory=set)
    _dims: DimEquations | None = None

    def batch(self) -> Batch:
        """Re-roll the pack.

        Raises
        ------
        CannotReroll
            If the terms cannot be batched.
        """
        while True:
            # what was batched below an op that turned out to have no batched form does not count
            self.nodes, self.computes, self.factorizes = 0, False, False
            self._used_stacks.clear()
            self._variables, self._outputs = dict(self._unbatchable), {}
            try:
                return self._walk()
            except _NoBatchedForm as stop:
                if stop.pack == tuple(self.terms):
                    raise CannotReroll(str(stop)) from stop
                try:
                    self._unbatchable[_key(stop.pack)] = self._stack(stop.pack)
                except CannotReroll as reason:
                    # perhaps what is computed from it has a known shape
                    self._unstackable[_key(stop.pack)] = str(reason)

    def _walk(self) -> Batch:
        top = tuple(self.terms)
        pending = [top]
        while pending:
            pack = pending[-1]
            key = _key(pack)
            if key in self._variables:
                pending.pop()
                continue
            if self._resolve_without_inputs(pack, key):
                pending.pop()
                continue
            inputs = self._input_packs(pack)
            for inp in inputs:
                if (reason := self._unstackable.get(_key(inp))) is not None:
                    raise _NoBatchedForm(reason, pack)
            missing = [inp for inp in inputs if _key(inp) not in self._variables]
            if missing:
                pending.extend(missing)
                continue
            self._variables[key] = self._batch_node(pack, inputs)
            pending.pop()
        nodes = self.nodes if self.computes else 0
        stacks = frozenset(self._used_stacks)
        cost = Cost(len(top), nodes, stacks, len(stacks.difference(self.used)), self.factorizes)
        return Batch(self._variables[_key(top)], cost)

    def _resolve_without_inputs(self, pack, key) -> bool:
        """Resolve packs that are shared, constant, slices of one variable, or not isomorphic."""
        first = pack[0]
        if all(var is first for var in pack) or _is_repeated(pack):
            self._variables[key] = None
        elif all(isinstance(var, Constant) for var in pack):
            self._variables[key] = _stack_constants(pack)
        elif (slices := batch_of_slices(pack)) is not None:
            self._variables[key] = slices
        elif first in self.signatures.leaves or not have_same_op(pack):
            self._variables[key] = self._stack(pack)
        else:
            return False
        return True

    def _input_packs(self, pack) -> list[tuple[Variable, ...]]:
        packs = input_packs(pack, self.signatures)
        if self.strict is not None and is_anchor(pack[0].owner.op):
            for inputs in packs:
                if len({self.strict(var) for var in inputs}) > 1:
                    self._variables[_key(inputs)] = self._stack(inputs)
        return packs

    def _batch_node(self, pack, inputs) -> Variable | None:
        index = pack[0].owner.outputs.index(pack[0])
        key = tuple(id(var.owner) for var in pack)
        if key not in self._outputs:
            try:
                self._outputs[key] = self._vectorize([var.owner for var in pack], inputs)
            except CannotBatch as reason:
                raise _NoBatchedForm(str(reason), pack) from reason
        outputs = self._outputs[key]
        if outputs is None:
            return None
        batched = outputs[index]
        return None if batched is pack[0] else batched

    def _vectorize(self, nodes: Sequence[Apply], inputs) -> list[Variable] | None:
        node = nodes[0]
        batched = [self._variables[_key(pack)] for pack in inputs]
        if all(new is None for new in batched):
            return None
        if isinstance(node.op, Subtensor | AdvancedSubtensor) and batched[0] is None:
            # each term has indexed its own copy of one variable
            indices = list(zip(*inputs[1:], strict=True))
            if (slices := batch_of_indices(node.op, node.inputs[0], indices)) is not None:
                return [slices]
        walked = node
        if is_commutative(node.op):
            # the inputs were walked in canonical order: rebuild the node in that order
            walked = node.op.make_node(*[pack[0] for pack in inputs])
        outputs = vectorize(walked, batched, len(self.terms))
        self.nodes += weight(node.op)
        self.computes |= not isinstance(node.op, ARRANGING_OPS)
        self.factorizes |= factorizes(node.op)
        for index, new in enumerate(outputs):
            _keep_common_facts([node.outputs[index] for node in nodes], new)
        return outputs

    def _stack(self, pack) -> Variable:
        """Stack different variables; their shapes must be provably equal."""
        key = _key(pack)
        self._used_stacks.add(key)
        if key in self.stacks:
            return self.stacks[key]
        _require_dense(pack)
        shape = pack[0].type.shape
        if any(var.type.ndim != len(shape) or var.type.dtype != pack[0].type.dtype for var in pack):
            raise CannotReroll("the terms differ in rank or dtype")
        for axis in range(len(shape)):
            lengths = {var.type.shape[axis] for var in pack}
            if len(lengths) == 1 and None not in lengths:
                continue
            if not self._equations().all_equal(pack, axis):
                raise CannotReroll(
                    f"lengths of dimension {axis} of {pack[0]} and others may differ"
                )
        self.stacks[key] = stack_variables(pack)
        return self.stacks[key]

    def _equations(self) -> DimEquations:
        if self._dims is None:
            self._dims = DimEquations(self.terms)
        return self._dims


def _require_dense(pack) -> None:
    if not all(isinstance(var.type, DenseTensorType | ScalarType) for var in pack):
        raise CannotReroll(f"variables of type {pack[0].type} cannot be stacked")


def stack_variables(pack: Sequence[Variable]) -> Variable:
    """Stack variables of equal shape along a new first dimension, with as few nodes as possible."""
    shape = pack[0].type.shape
    if shape and all(var.type.shape == shape for var in pack) and None not in shape:
        # the types guarantee the shapes: one Join and one Reshape instead of N + 1 nodes
        return pt.join(0, *pack).reshape((len(pack), *shape))
    return pt.stack(list(pack))


def _stack_constants(pack) -> Variable | None:
    _require_dense(pack)
    data = [np.asarray(var.data) for var in pack]
    if any(value.shape != data[0].shape or value.dtype != data[0].dtype for value in data):
        raise CannotReroll("constants differ in shape or dtype")
    # by bytes: NaN equals itself, -0.0 does not equal 0.0
    if len({value.tobytes() for value in data}) == 1:
        return None
    return pt.constant(np.stack(data))


def _is_repeated(pack) -> bool:
    """Whether the pack holds one slice several times, each time as a node of its own."""
    first = pack[0].owner
    if first is None or not isinstance(first.op, Subtensor):
        return False
    return have_same_op(pack) and all(
        _is_same(own, other)
        for var in pack
        for own, other in zip(first.inputs, var.owner.inputs, strict=True)
    )


def _is_same(a: Variable, b: Variable) -> bool:
    return a is b or (isinstance(a, Constant) and isinstance(b, Constant) and a.equals(b))


def _keep_common_facts(members: Sequence[Variable], batch: Variable) -> None:
    """Keep the tags from which PyTensor's linear algebra rewrites know about triangularity.

    What a tag says of the batch it says of every member; signatures do not look at tags.
    """
    for fact in ("lower_triangular", "upper_triangular"):
        if all(getattr(member.tag, fact, False) for member in members):
            setattr(batch.tag, fact, True)


def _key(pack) -> tuple[int, ...]:
    return tuple(map(id, pack))
