"""Ops without kernels of their own -> their formulas, so that they share what they compute."""

from pytensor.compile.rewriting import inline_ofg_node
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.rewriting.basic import MergeOptimizer, dfs_rewriter
from pytensor.link.jax.linker import JAXLinker
from pytensor.link.numba.linker import NumbaLinker
from pytensor.tensor.rewriting.basic import constant_folding

from pytensor_mvn_rewrites.lower._lowered import compiles_for
from pytensor_mvn_rewrites.lower.numba_backend import STRUCTURED_OPS, has_kernel
from pytensor_mvn_rewrites.ops import (
    ExpmQuadLogdet,
    ExpmQuadLogdetPullback,
    LowRankQuadLogdet,
    LowRankQuadLogdetPullback,
    NoisyKroneckerQuadLogdet,
    NoisyKroneckerQuadLogdetPullback,
)
from pytensor_mvn_rewrites.ops.gaussian import FusedOp
from pytensor_mvn_rewrites.pipeline import lower

INLINED_OPS: tuple[type[FusedOp], ...] = (
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
    do it once, and those of constants never. The parts of the formulas that are ops are inlined as
    well, unless they have a kernel. Not for JAX: XLA finds what the two share.
    """
    if compiles_for(fgraph, JAXLinker):
        return
    for_numba = compiles_for(fgraph, NumbaLinker)
    changed = False
    while nodes := [node for node in fgraph.toposort() if is_inlined(node, for_numba)]:
        for node in nodes:
            replacements = zip(node.outputs, inline_ofg_node(node), strict=True)
            fgraph.replace_all(list(replacements), reason="mvn_inline_decompositions")
        changed = True
    if changed:
        dfs_rewriter(constant_folding).rewrite(fgraph)
        MergeOptimizer().rewrite(fgraph)


def is_inlined(node: Apply, for_numba: bool) -> bool:
    """Whether an op is there for its formula only, or has no kernel."""
    if type(node.op) in STRUCTURED_OPS:
        # what is constant is computed once
        is_constant = all(isinstance(inp, Constant) for inp in node.inputs)
        return is_constant or not for_numba or not has_kernel(node)
    return type(node.op) in INLINED_OPS
