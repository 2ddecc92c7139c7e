"""Numbers that decide between two derivatives are computed once, in a graph that JAX will run.

This module holds the rewrite and its op, and does not import JAX, as `lower.jax_backend`.
"""

from pytensor.graph.basic import Apply, Variable
from pytensor.link.jax.linker import JAXLinker
from pytensor.scalar.basic import Clip, ScalarMaximum, ScalarMinimum
from pytensor.tensor.elemwise import Elemwise

from pytensor_mvn_rewrites.lower._lowered import BackendOp, compiles_for
from pytensor_mvn_rewrites.pipeline import lower

#: Functions whose derivative jumps where their arguments are equal
KINKS = (Clip, ScalarMaximum, ScalarMinimum)


class Materialized(BackendOp):
    """The identity. In JAX all that uses its result reads the same digits from memory."""

    __props__ = ()
    backend = "pytensor_mvn_rewrites.lower.jax"
    view_map = {0: [0]}  # noqa: RUF012

    def make_node(self, x):
        """A variable of the same type."""
        return Apply(self, [x], [x.type()])

    def infer_shape(self, node, shapes):
        """That of the input."""
        return shapes

    def perform(self, node, inputs, output_storage):
        """Pass the input on."""
        output_storage[0][0] = inputs[0]


@lower("jax", tidies=True)
def materialize_at_kinks(fgraph):
    """clip(x, a, b), maximum(x, y), minimum(x, y) -> the same of a materialized x.

    Their derivative is a comparison of x. XLA computes x, and the comparison, anew in every loop
    that uses it, and rounds differently in each, because it contracts other products to
    multiply-adds: in a tie the terms of one gradient may take different sides. PyMC's covariance
    functions clip the squared distances ``x'x + y'y - 2 x'y`` at zero; on the diagonal the
    derivatives of these terms are large and cancel only if all are present.

    Cost: x is stored and read again.
    """
    if not compiles_for(fgraph, JAXLinker):
        return
    arguments = {
        arg: None
        for node in fgraph.toposort()
        if isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, KINKS)
        for arg in node.inputs
        if is_computed_float(arg)
    }
    for arg in arguments:
        clients = list(fgraph.clients[arg])
        new = Materialized()(arg)
        for client, i in clients:
            fgraph.change_node_input(client, i, new, reason="mvn_materialize_at_kinks")


def is_computed_float(var: Variable) -> bool:
    """True unless the same digits are in memory already."""
    return (
        var.owner is not None
        and not isinstance(var.owner.op, Materialized)
        and var.type.dtype.startswith("float")
    )
