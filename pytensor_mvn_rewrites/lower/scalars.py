"""What is left to do when PyTensor has found the scalars of a graph for Numba."""

from pytensor.graph.basic import Constant
from pytensor.graph.rewriting.basic import MergeOptimizer
from pytensor.scalar.basic import ScalarConstant
from pytensor.tensor.basic import ScalarFromTensor
from pytensor.tensor.elemwise import DimShuffle

from pytensor_mvn_rewrites.pipeline import lower

#: After PyTensor has made scalars of the arrays with one element
AFTER_SCALARS = 101.0


@lower("numba", position=AFTER_SCALARS, tidies=True)
def fold_scalars(fgraph):
    """ScalarFromTensor(squeeze(constant)) -> the scalar; scalars that are equal -> one of them.

    PyTensor folds constants before it makes scalars of them. Cost: two or three nodes fewer for
    each constant that meets a scalar, up to half a second of compilation.
    """
    changed = False
    for node in fgraph.toposort():
        if not isinstance(node.op, ScalarFromTensor):
            continue
        [inner], [old] = node.inputs, node.outputs
        while inner.owner is not None and isinstance(inner.owner.op, DimShuffle):
            [inner] = inner.owner.inputs
        if isinstance(inner, Constant) and inner.data.size == 1:
            new = ScalarConstant(old.type, inner.data.reshape(())[()])
            fgraph.replace(old, new, reason="mvn_fold_scalars")
            changed = True
    if changed:
        MergeOptimizer().rewrite(fgraph)
