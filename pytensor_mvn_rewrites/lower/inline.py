"""Ops without kernels of their own -> their formulas, so that they share what they compute."""

from pytensor.compile.rewriting import inline_ofg_node
from pytensor.graph.rewriting.basic import MergeOptimizer, dfs_rewriter, get_active_mode
from pytensor.link.jax.linker import JAXLinker
from pytensor.tensor.rewriting.basic import constant_folding

from pytensor_mvn_rewrites.ops import (
    ExpmQuadLogdet,
    ExpmQuadLogdetPullback,
    LowRankQuadLogdet,
    LowRankQuadLogdetPullback,
    NoisyKroneckerQuadLogdet,
    NoisyKroneckerQuadLogdetPullback,
)
from pytensor_mvn_rewrites.ops.gaussian import GaussianOp
from pytensor_mvn_rewrites.pipeline import lower

INLINED_OPS: tuple[type[GaussianOp], ...] = (
    NoisyKroneckerQuadLogdet,
    NoisyKroneckerQuadLogdetPullback,
    ExpmQuadLogdet,
    ExpmQuadLogdetPullback,
    LowRankQuadLogdet,
    LowRankQuadLogdetPullback,
)


@lower("fast_run")
def inline_decompositions(fgraph):
    """NoisyKroneckerQuadLogdet, ExpmQuadLogdet, LowRankQuadLogdet, pullbacks -> their formulas.

    Cost: an op and its pullback decompose the same matrices, by eigenvalues or by QR; merged, they
    do it once, and those of constants never. Not for JAX: XLA finds what the two share.
    """
    if isinstance(get_active_mode(fgraph).linker, JAXLinker):
        return
    nodes = [node for node in fgraph.toposort() if type(node.op) in INLINED_OPS]
    if not nodes:
        return
    for node in nodes:
        replacements = zip(node.outputs, inline_ofg_node(node), strict=True)
        fgraph.replace_all(list(replacements), reason="mvn_inline_decompositions")
    dfs_rewriter(constant_folding).rewrite(fgraph)
    MergeOptimizer().rewrite(fgraph)
