"""Equal nodes: computed once, and differentiated once."""

from collections import Counter

from pytensor.graph.rewriting.basic import MergeOptimizer

from pytensor_mvn_rewrites.graph import nodes_with
from pytensor_mvn_rewrites.ops.gaussian import FusedOp
from pytensor_mvn_rewrites.pipeline import reroll
from pytensor_mvn_rewrites.reroll._packs import holds_random_variables

#: With more ops that are alike, a loop is about to be re-rolled: merging all that its terms compute
#: would take longer than what it saves, and comes in the next pass.
MAX_ALIKE = 100


@reroll
def merge_duplicates(fgraph):
    """f(a), f(a) -> one f(a), for graphs that hold a fused op twice.

    Two packs that are re-rolled in different passes stack the same variables anew. PyTensor merges
    equal nodes when it compiles, but the pullbacks of two of them stay two. Cost: one pass over the
    graph. Declines in graphs without two fused ops that are alike, or with very many.
    """
    ops = Counter(node.op for node in nodes_with(fgraph, FusedOp))
    if 1 < max(ops.values(), default=0) <= MAX_ALIKE and not holds_random_variables(fgraph):
        MergeOptimizer().rewrite(fgraph)
