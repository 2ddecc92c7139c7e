"""Reductions of a few numbers -> loops that Numba compiles in a tenth of the time."""

import math

from pytensor.graph.rewriting.basic import copy_stack_trace
from pytensor.scalar.basic import identity
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import All, Sum

from pytensor_mvn_rewrites.pipeline import lower

#: Larger arrays keep PyTensor's own reduction, which goes through them in the order in which they
#: lie in memory. That is what takes its code so long to compile, up to three seconds
MAX_SIZE = 10_000

#: After the fusion of elementwise operations, just before PyTensor makes reductions part of them
BEFORE_FUSED_REDUCTIONS = 99.0


@lower("numba", position=BEFORE_FUSED_REDUCTIONS, tidies=True)
def fuse_small_reductions(fgraph):
    """sum(x) -> sum(identity(x)), which PyTensor fuses into one loop. The same for all(x).

    Cost: the same work; 0.2 instead of 0.5 to 3 seconds of compilation for each of them.
    Declines for elementwise results, whose sums are fused anyway, and for arrays that are large or
    of unknown size.
    """
    for node in fgraph.toposort():
        if not isinstance(node.op, Sum | All):
            continue
        [x], [old] = node.inputs, node.outputs
        if x.owner is not None and isinstance(x.owner.op, Elemwise):
            continue
        if None in x.type.shape or not 0 < math.prod(x.type.shape) <= MAX_SIZE:
            continue
        new = node.op(Elemwise(identity)(x))
        copy_stack_trace(old, new)
        fgraph.replace(old, new, reason="mvn_fuse_small_reductions", import_missing=True)
