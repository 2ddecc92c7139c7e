"""What it costs to re-roll a pack, and what it saves: the one place that decides whether it pays.

Costs are counted in light nodes, such as an elementwise one. Of N terms one is left, which saves
N - 1 times the nodes of a term; each stack that must be built costs N (its inputs in the forward
pass, a slice for each in the gradient).

Elementwise nodes of scalars are fused into one loop when a function is compiled. Terms made of
such nodes alone, like the priors of a few scales, run no faster in a batch, and a stack stands in
the way of the fusion. Independent ``Normal(mu_i, s_i)`` of 5 data with priors of their own, Numba,
nodes before compilation is fused, microseconds of one call and CPU seconds of a cold compilation:

====== ======================= =======================
terms  as written              re-rolled
====== ======================= =======================
2      2.9 us, 3.4 s           3.4 us, 3.7 s
4      2.9 us, 4.4 s           3.6 us, 4.3 s
8      3.0 us, 5.5 s           3.8 us, 4.3 s
16     3.2 us, 10.4 s          4.1 us, 6.0 s
32     3.7 us, 19.1 s          4.7 us, 6.9 s
====== ======================= =======================

So a pack of them must be long, while what factorizes a matrix in each term pays from two terms on.
Terms of slices of one variable, as of the point of a sampler, need no stack: three priors of LKJ
factors without a density run in 22.1 us as a batch of three, and in 18.2 us one by one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pytensor.graph.basic import Constant, Variable
from pytensor.tensor.basic import Join, MakeVector, ScalarFromTensor, Split, TensorFromScalar
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.linalg import Cholesky, Det, Eigh, MatrixInverse, SLogDet
from pytensor.tensor.linalg.solvers.core import SolveBase
from pytensor.tensor.shape import Reshape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pytensor_mvn_rewrites.ops.gaussian import GaussianOp
from pytensor_mvn_rewrites.reroll._signature import Signatures, is_anchor, is_commutative

#: Ops that disappear when they are batched.
FREE_OPS = (ScalarFromTensor, TensorFromScalar)

#: Compiling a node of these ops costs little; any other op counts as `HEAVY` nodes.
LIGHT_OPS = (Elemwise, DimShuffle, CAReduce, Subtensor, MakeVector)
HEAVY = 20

#: Ops that compute nothing. A stack of stacks is not re-rolled for their sake: it would become
#: another stack of stacks, and so on for ever.
ARRANGING_OPS = (*FREE_OPS, DimShuffle, Join, MakeVector, Reshape)

#: Ops that factorize a matrix, or work with a factor: what this package is about.
FACTORIZING_OPS = (GaussianOp, Cholesky, SolveBase, MatrixInverse, Det, SLogDet, Eigh)

#: A pack is re-rolled if that saves at least this many nodes.
WORTHWHILE = 24

#: A stack disappears together with its terms: even a small saving is worth it.
WORTHWHILE_STACK = 2

#: Fewer terms that factorize nothing, and must be stacked, stay as they are.
FEW = 8

#: The same for those that are slices of variables already.
FEW_SLICES = 4


@dataclass(frozen=True)
class Cost:
    """What re-rolling a pack costs and saves.

    Attributes
    ----------
    count : int
        Number of terms.
    nodes : int
        Weight of the nodes of one term that are batched; 0 if they only arrange.
    stacks : frozenset of tuple of int
        The stacks that are needed.
    new_stacks : int
        How many of them nothing else uses.
    factorizes : bool
        Whether a matrix is factorized in each term.
    """

    count: int
    nodes: int
    stacks: frozenset[tuple[int, ...]]
    new_stacks: int
    factorizes: bool

    @property
    def saved(self) -> int:
        """Weight of the nodes that the graph loses."""
        return (self.count - 1) * self.nodes - self.count * self.new_stacks

    @property
    def may_be_view(self) -> bool:
        """Whether nothing is computed and nothing stacked."""
        return not self.nodes and not self.stacks

    def pays(self, minimum: int) -> bool:
        """Whether at least `minimum` nodes are saved, by a pack that is not too short for it."""
        few = FEW if self.new_stacks else FEW_SLICES
        is_stack = not self.new_stacks and minimum <= WORTHWHILE_STACK
        if not self.factorizes and not is_stack and self.count < few:
            return False
        return self.saved >= minimum


def weight(op) -> int:
    """What one node of `op` costs."""
    if isinstance(op, FREE_OPS):
        return 0
    return 1 if isinstance(op, LIGHT_OPS) else HEAVY


def factorizes(op) -> bool:
    """Whether `op` factorizes a matrix, or works with a factor."""
    return isinstance(op.core_op if isinstance(op, Blockwise) else op, FACTORIZING_OPS)


def expected(
    terms: Sequence[Variable],
    signatures: Signatures,
    used: Collection[tuple[int, ...]],
    strict: Signatures | None = None,
) -> Cost:
    """The cost of a pack if everything can be batched, found without building a node.

    Parameters
    ----------
    terms, signatures, strict
        As :class:`~pytensor_mvn_rewrites.reroll._lockstep.LockStep` takes them.
    used : collection of tuple of int
        The stacks that other packs use.
    """
    walk = _DryWalk(signatures, strict)
    walk.visit(tuple(terms))
    new = len(walk.stacks.difference(used))
    nodes = walk.nodes if walk.computes else 0
    return Cost(len(terms), nodes, frozenset(walk.stacks), new, walk.factorizes)


class _DryWalk:
    """The steps of the lock-step walk; for each pack only whether it is batched."""

    def __init__(self, signatures: Signatures, strict: Signatures | None):
        self.signatures, self.strict = signatures, strict
        self.nodes, self.computes, self.factorizes = 0, False, False
        self.stacks: set[tuple[int, ...]] = set()
        self._batched: dict[tuple[int, ...], bool] = {}
        self._counted: set[tuple[int, ...]] = set()

    def visit(self, top: tuple[Variable, ...]) -> None:
        pending = [top]
        while pending:
            pack = pending[-1]
            key = tuple(map(id, pack))
            if key in self._batched:
                pending.pop()
            elif (batched := self._without_inputs(pack, key)) is not None:
                self._batched[key] = batched
            else:
                inputs = self._inputs(pack)
                missing = [inp for inp in inputs if tuple(map(id, inp)) not in self._batched]
                pending.extend(missing)
                if not missing:
                    self._batched[key] = self._node(pack, inputs)

    def _without_inputs(self, pack, key) -> bool | None:
        if all(var is pack[0] for var in pack):
            return False
        if all(isinstance(var, Constant) for var in pack) or are_slices(pack):
            return True
        if not have_same_op(pack):
            self.stacks.add(key)
            return True
        return None

    def _inputs(self, pack) -> list[tuple[Variable, ...]]:
        packs = input_packs(pack, self.signatures)
        if self.strict is not None and is_anchor(pack[0].owner.op):
            for inputs in packs:
                if len({self.strict(var) for var in inputs}) > 1:
                    key = tuple(map(id, inputs))
                    self.stacks.add(key)
                    self._batched[key] = True
        return packs

    def _node(self, pack, inputs) -> bool:
        if not any(self._batched[tuple(map(id, inp))] for inp in inputs):
            return False
        op = pack[0].owner.op
        key = tuple(id(var.owner) for var in pack)
        if key not in self._counted:
            self._counted.add(key)
            self.nodes += weight(op)
            self.computes |= not isinstance(op, ARRANGING_OPS)
            self.factorizes |= factorizes(op)
        return True


def are_slices(pack: Sequence[Variable]) -> bool:
    """Whether the pack may turn out to be slices of one variable."""
    first = pack[0].owner
    return (
        first is not None
        and isinstance(first.op, Subtensor | AdvancedSubtensor | Split)
        and all(var.owner and var.owner.inputs[0] is first.inputs[0] for var in pack)
        and all(type(var.owner.op) is type(first.op) for var in pack)
    )


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


def input_packs(pack: Sequence[Variable], signatures: Signatures) -> list[tuple[Variable, ...]]:
    """The packs that the nodes of `pack` take in; those of commutative nodes in canonical order."""
    rows = [var.owner.inputs for var in pack]
    if is_commutative(pack[0].owner.op):
        rows = [signatures.in_canonical_order(row) for row in rows]
    return list(zip(*rows, strict=True))
