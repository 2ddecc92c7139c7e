"""MvNormalLogp, InvQuadLogdet and their pullbacks -> the op that has a JAX implementation.

This module holds the rewrite and the lowered op, and does not import JAX: the implementation in
``lower.jax`` loads when the rewrite finds something to lower.
"""

from functools import cached_property

import pytensor
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.link.jax.linker import JAXLinker

from pytensor_mvn_rewrites.lower._pairs import is_lowerable
from pytensor_mvn_rewrites.ops import (
    InvQuadLogdet,
    InvQuadLogdetPullback,
    MvNormalLogp,
    MvNormalLogpPullback,
)
from pytensor_mvn_rewrites.ops.gaussian import GaussianOp
from pytensor_mvn_rewrites.pipeline import lower

#: The ops that have a JAX implementation
REFERENCE_OPS: tuple[type[GaussianOp], ...] = (
    MvNormalLogp,
    MvNormalLogpPullback,
    InvQuadLogdet,
    InvQuadLogdetPullback,
)


class JaxGaussianOp(Op):
    """One of `REFERENCE_OPS` in a graph that JAX will run.

    Inputs and outputs are those of the reference op. Other linkers run its reference graph,
    uncompiled.

    Parameters
    ----------
    reference : type
        The class of the op that this one stands for.
    param : {"cov", "chol", "tau"}
    """

    __props__ = ("reference", "param")

    def __init__(self, *, reference: type[GaussianOp], param: str):
        self.reference = reference
        self.param = param

    def __str__(self):
        return f"Jax{self.reference.__name__}{{{self.param}}}"

    def reference_node(self, inputs) -> Apply:
        """The reference op, applied to `inputs`."""
        return self.reference(param=self.param)(*inputs, return_list=True)[0].owner

    def make_node(self, *inputs):
        """The outputs have the types of the reference."""
        node = self.reference_node(inputs)
        return Apply(self, node.inputs, [out.type() for out in node.outputs])

    def infer_shape(self, node, shapes):
        """As the reference."""
        return self.reference_node(node.inputs).op.infer_shape(node, shapes)

    @cached_property
    def _reference_functions(self) -> dict:
        return {}

    def perform(self, node, inputs, output_storage):
        """Run the reference graph."""
        key = tuple(inp.type for inp in node.inputs)
        if key not in self._reference_functions:
            dummies = [type_() for type_ in key]
            self._reference_functions[key] = pytensor.function(
                dummies,
                self.reference_node(dummies).outputs,
                mode=Mode(linker="py", optimizer=None),
            )
        results = self._reference_functions[key](*inputs)
        for storage, out in zip(output_storage, results, strict=True):
            storage[0] = out


@lower("jax")
def lower_to_jax(fgraph):
    """MvNormalLogp, InvQuadLogdet or a pullback -> JaxGaussianOp.

    Each node for itself: XLA finds that a density and its pullback share a factorization, except
    for the loop of the medium sizes, which runs once for each of them.
    """
    if not compiles_for_jax():
        return
    nodes = [
        node for node in fgraph.toposort() if type(node.op) in REFERENCE_OPS and is_lowerable(node)
    ]
    if not nodes:
        return
    # registers the implementation
    import pytensor_mvn_rewrites.lower.jax  # noqa: F401

    replacements = []
    for node in nodes:
        op = JaxGaussianOp(reference=type(node.op), param=node.op.param)
        replacements += zip(node.outputs, op(*node.inputs, return_list=True), strict=True)
    fgraph.replace_all(replacements, reason="mvn_lower_to_jax")


def compiles_for_jax() -> bool:
    """False in the modes of other backends, which reach the rewrite by the opt-in tag."""
    mode = pytensor.config.mode
    return not isinstance(mode, Mode) or isinstance(mode.linker, JAXLinker)
