"""The lock-step walk: a pack of isomorphic terms becomes one batched term.

Constants are stacked into one, slices of one variable become the variable itself, a slice or a
gather of it (``_indexing.py``), ops are batched (``_vectorize.py``), and what is left is stacked if
the shapes are provably equal (``_dims.py``).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.scalar.basic import ScalarType
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor
from pytensor.tensor.type import DenseTensorType

from pytensor_mvn_rewrites.pipeline import FREEZE
from pytensor_mvn_rewrites.reroll._cost import Cost
from pytensor_mvn_rewrites.reroll._dims import DimEquations
from pytensor_mvn_rewrites.reroll._indexing import batch_of_indices, batch_of_slices
from pytensor_mvn_rewrites.reroll._joins import join
from pytensor_mvn_rewrites.reroll._signature import Signatures, is_commutative
from pytensor_mvn_rewrites.reroll._vectorize import CannotBatch, vectorize
from pytensor_mvn_rewrites.reroll._walk import Key, Walk, key_of


class CannotReroll(Exception):
    """The pack stays as it is; the message says why, and `remedy` what a user can do."""

    def __init__(self, reason: str, remedy: str = ""):
        super().__init__(reason)
        self.remedy = remedy


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
    stacks_results : bool
        Whether the results of an op without a batched form are stacked.
    """

    variable: Variable | None
    cost: Cost
    stacks_results: bool = False

    @property
    def is_view(self) -> bool:
        """Whether nothing is computed and nothing stacked: the terms are slices of one variable."""
        is_view = self.cost.may_be_view and not self.stacks_results
        return self.variable is not None and is_view


class LockStep(Walk):
    """Re-rolls one pack: builds what each of its positions becomes, batch dimension first.

    Parameters
    ----------
    terms, signatures, strict
        As :class:`~pytensor_mvn_rewrites.reroll._walk.Walk` takes them.
    stacks : dict
        Stacks already built in this pass, shared between packs.
    used : collection of tuple of int
        Those of them that other packs use: they are for free.
    """

    def __init__(
        self,
        terms: Sequence[Variable],
        signatures: Signatures,
        stacks: dict[Key, Variable],
        used: Collection[Key] = (),
        strict: Signatures | None = None,
    ):
        super().__init__(terms, signatures, strict)
        self.stacks, self.used = stacks, used
        self._unbatchable: dict[Key, Variable | None] = {}
        self._unstackable: dict[Key, str] = {}

    def batch(self) -> Batch:
        """Re-roll the pack.

        Raises
        ------
        CannotReroll
            If the terms cannot be batched.
        """
        while True:
            # what was batched below an op that turned out to have no batched form does not count
            self.start()
            self.results.update(self._unbatchable)
            try:
                variable = self.walk()
                return Batch(variable, self.cost(self.used), bool(self._unbatchable))
            except _NoBatchedForm as stop:
                if stop.pack == self.terms:
                    raise CannotReroll(str(stop)) from stop
                try:
                    self._unbatchable[key_of(stop.pack)] = self.stack(stop.pack)
                except CannotReroll as reason:
                    # perhaps what is computed from it has a known shape
                    self._unstackable[key_of(stop.pack)] = str(reason)

    def inputs(self, pack):
        """The packs that the nodes take in, if there is a way to batch each of them."""
        packs = super().inputs(pack)
        for inp in packs:
            if (reason := self._unstackable.get(key_of(inp))) is not None:
                raise _NoBatchedForm(reason, pack)
        return packs

    def output(self, pack, inputs):
        """The batched results of one op."""
        try:
            return super().output(pack, inputs)
        except CannotBatch as reason:
            raise _NoBatchedForm(str(reason), pack) from reason

    def node(self, nodes, inputs, batched):
        """The outputs of a batched node."""
        node = nodes[0]
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
        self.count(node.op)
        for index, new in enumerate(outputs):
            _keep_common_facts([own.outputs[index] for own in nodes], new)
        return outputs

    def slices(self, pack):
        """The slices of one variable as one indexing."""
        return batch_of_slices(pack)

    def constants(self, pack):
        """One stacked constant, or None if all are equal."""
        _require_dense(pack)
        data = [np.asarray(var.data) for var in pack]
        if any(value.shape != data[0].shape or value.dtype != data[0].dtype for value in data):
            raise CannotReroll("constants differ in shape or dtype")
        # by bytes: NaN equals itself, -0.0 does not equal 0.0
        if len({value.tobytes() for value in data}) == 1:
            return None
        return pt.constant(np.stack(data))

    def stack(self, pack):
        """Stack different variables; their shapes must be provably equal."""
        super().stack(pack)
        key = key_of(pack)
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
            if not self._equations.all_equal(pack, axis):
                raise CannotReroll(
                    f"lengths of dimension {axis} of {pack[0]} and others may differ",
                    f"give them a shape, or {FREEZE}",
                )
        self.stacks[key] = stack_variables(pack)
        return self.stacks[key]

    @cached_property
    def _equations(self) -> DimEquations:
        return DimEquations(self.terms)


def _require_dense(pack) -> None:
    if not all(isinstance(var.type, DenseTensorType | ScalarType) for var in pack):
        raise CannotReroll(f"variables of type {pack[0].type} cannot be stacked")


def stack_variables(pack: Sequence[Variable]) -> Variable:
    """Stack variables of equal shape along a new first dimension, with as few nodes as possible."""
    shape = pack[0].type.shape
    if shape and all(var.type.shape == shape for var in pack) and None not in shape:
        # the types guarantee the shapes: one Join and one Reshape instead of N + 1 nodes
        return join(pack).reshape((len(pack), *shape))
    if any(isinstance(var.type, ScalarType) or not var.type.ndim for var in pack):
        return pt.stack(list(pack))
    return join([pt.expand_dims(var, 0) for var in pack])


def _keep_common_facts(members: Sequence[Variable], batch: Variable) -> None:
    """Keep the tags from which PyTensor's linear algebra rewrites know about triangularity.

    What a tag says of the batch it says of every member; signatures do not look at tags.
    """
    for fact in ("lower_triangular", "upper_triangular"):
        if all(getattr(member.tag, fact, False) for member in members):
            setattr(batch.tag, fact, True)
