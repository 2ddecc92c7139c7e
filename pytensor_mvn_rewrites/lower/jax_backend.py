"""MvNormalLogp, InvQuadLogdet and their pullbacks -> the op that has a JAX implementation.

This module holds the rewrite and the lowered op, and does not import JAX: the implementation in
``lower.jax`` loads when the rewrite finds something to lower.
"""

from pytensor.graph.basic import Apply
from pytensor.link.jax.linker import JAXLinker

from pytensor_mvn_rewrites.lower._lowered import LoweredOp, compiles_for
from pytensor_mvn_rewrites.lower._pairs import find_pairs
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp
from pytensor_mvn_rewrites.ops.gaussian import GaussianOp
from pytensor_mvn_rewrites.pipeline import lower


class JaxGaussianOp(LoweredOp):
    """A Gaussian op, its pullback, or both from one factorization, in a graph that JAX will run.

    Inputs are those of the last of the reference ops: the pullback's begin with those of the op
    itself. Outputs are those of all reference ops, one after the other. Other linkers run the
    reference graph, uncompiled.

    Parameters
    ----------
    references : tuple of type
        The classes of the ops that this one stands for: an op, a pullback, or an op and its
        pullback.
    param : {"cov", "chol", "tau"}
    """

    __props__ = ("references", "param")
    backend = "pytensor_mvn_rewrites.lower.jax"

    def __init__(self, *, references: tuple[type[GaussianOp], ...], param: str):
        self.references = references
        self.param = param

    def __str__(self):
        names = "+".join(reference.__name__ for reference in self.references)
        return f"Jax{names}{{{self.param}}}"

    def reference_nodes(self, inputs) -> list[Apply]:
        """The reference ops, applied to `inputs`."""
        return [
            reference(param=self.param)(*inputs[: len(reference.core_ndims)], return_list=True)[
                0
            ].owner
            for reference in self.references
        ]

    def reference_outputs(self, inputs):
        """Those of all reference ops, one after the other."""
        return [out for node in self.reference_nodes(inputs) for out in node.outputs]

    def make_node(self, *inputs):
        """The outputs have the types of the references."""
        nodes = self.reference_nodes(inputs)
        return Apply(self, nodes[-1].inputs, [out.type() for node in nodes for out in node.outputs])

    def infer_shape(self, node, shapes):
        """As the references."""
        return [
            shape
            for reference in self.reference_nodes(node.inputs)
            for shape in reference.op.infer_shape(reference, shapes[: len(reference.inputs)])
        ]


@lower("jax")
def lower_to_jax(fgraph):
    """MvNormalLogp, its pullback or both on the same inputs -> one JaxGaussianOp.

    The same for InvQuadLogdet. Cost: one factorization instead of two, where XLA does not find by
    itself what a density and its pullback share: it looks into no loop. A pair whose cotangent
    depends on the forward outputs stays two nodes: one would be a cycle.
    """
    if not compiles_for(fgraph, JAXLinker):
        return
    for _, *pair in list(find_pairs(fgraph, (MvNormalLogp, InvQuadLogdet))):
        nodes = [node for node in pair if node is not None]
        op = JaxGaussianOp(
            references=tuple(type(node.op) for node in nodes), param=nodes[0].op.param
        )
        old = [out for node in nodes for out in node.outputs]
        new = op(*nodes[-1].inputs, return_list=True)
        fgraph.replace_all(list(zip(old, new, strict=True)), reason="mvn_lower_to_jax")
