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

Compiled with the gradient for the point of a sampler, three slopes of a regression are 29 nodes as
they are and 31 in a batch, eight are 104 and 29. So a pack of them must be long, while what
factorizes a matrix in each term pays from two terms on.
Terms of slices of one variable, as of the point of a sampler, need no stack: three priors of LKJ
factors without a density run in 22.1 us as a batch of three, and in 18.2 us one by one. The two
lags of an autoregression, each a sum over slices of its coefficients, are a part of the mean of a
density: its gradient puts the slices together again, and it runs in 10.3 us with them one by one,
and in 9.3 us with a batch of two.
"""

from dataclasses import dataclass

from pytensor.tensor.basic import Join, MakeVector, ScalarFromTensor, TensorFromScalar
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.linalg import Cholesky, Det, Eigh, MatrixInverse, SLogDet
from pytensor.tensor.linalg.solvers.core import SolveBase
from pytensor.tensor.shape import Reshape
from pytensor.tensor.subtensor import Subtensor

from pytensor_mvn_rewrites.graph import core_op
from pytensor_mvn_rewrites.ops.gaussian import GaussianOp

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

#: A stack disappears together with its terms, in exchange for one that they need: even a small
#: saving is worth it.
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
    sums_arrays : bool
        Whether the terms are arrays, and a sum in each keeps them from being fused into one loop.
    """

    count: int
    nodes: int
    stacks: frozenset[tuple[int, ...]]
    new_stacks: int
    factorizes: bool
    sums_arrays: bool = False

    @property
    def saved(self) -> int:
        """Weight of the nodes that the graph loses."""
        return (self.count - 1) * self.nodes - self.count * self.new_stacks

    @property
    def may_be_view(self) -> bool:
        """Whether nothing is computed and nothing stacked."""
        return not self.nodes and not self.stacks

    def pays(self, minimum: int, *, beside_density: bool = False) -> bool:
        """Whether at least `minimum` nodes are saved, by a pack that is not too short for it.

        Sums over slices, as the lags of an autoregression, pay `beside_density` however few.
        """
        if beside_density and self.sums_arrays and not self.new_stacks:
            minimum = WORTHWHILE_STACK
        is_stack = minimum <= WORTHWHILE_STACK
        few = FEW if self.new_stacks else 2 if is_stack and beside_density else FEW_SLICES
        if not self.factorizes and self.count < few:
            return False
        exchanged = self.count if is_stack and self.new_stacks else 0
        return self.saved + exchanged >= minimum

    def is_short(self, minimum: int, fewest: int, *, are_scalars: bool) -> bool:
        """Whether a sum has too few of them, be they views or share the stacks of others.

        Scalars are slices of the point of a sampler, and a view of them is no more than a sum.
        """
        if self.factorizes or minimum <= WORTHWHILE_STACK:
            return False
        is_plain = fewest >= FEW_SLICES
        return self.count < (FEW if is_plain and are_scalars and self.may_be_view else fewest)


def weight(op) -> int:
    """What one node of `op` costs."""
    if isinstance(op, FREE_OPS):
        return 0
    return 1 if isinstance(op, LIGHT_OPS) else HEAVY


def factorizes(op) -> bool:
    """Whether `op` factorizes a matrix, or works with a factor."""
    return isinstance(core_op(op), FACTORIZING_OPS)
