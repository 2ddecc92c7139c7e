"""Equal nodes: computed once, and differentiated once."""

from collections import Counter

from pytensor.graph.rewriting.basic import MergeOptimizer

from pytensor_mvn_rewrites.ops.gaussian import FusedOp
from pytensor_mvn_rewrites.pipeline import reroll
from pytensor_mvn_rewrites.reroll._packs import holds_random_variables


@reroll
def merge_twins(fgraph):
    """f(a), f(a) -> one f(a), for graphs that hold a fused op twice.

    Two packs that are re-rolled in different passes stack the same variables anew. PyTensor merges
    equal nodes when it compiles, but the pullbacks of two of them stay two. Cost: one pass over the
    graph, after the other rules of this stage, by the name of its file: what they have re-rolled is
    small. Does nothing in graphs without two fused ops that are alike.
    """
    ops = Counter(node.op for node in fgraph.apply_nodes if isinstance(node.op, FusedOp))
    if max(ops.values(), default=0) > 1 and not holds_random_variables(fgraph):
        MergeOptimizer().rewrite(fgraph)
