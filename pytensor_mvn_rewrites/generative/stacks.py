"""The stack of the values of a loop, whose gradient is taken apart at once."""

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor.basic import Join, Split


class JoinOfKnownLengths(Join):
    """A ``Join`` of parts whose lengths along its axis are known.

    Its gradient is one ``Split`` by these lengths. That of ``Join`` asks each part for its shape,
    and finds out that it is known, which takes longer than all the rest of the gradient of a loop.
    """

    def pullback(self, inputs, outputs, grads):
        """The parts of the gradient."""
        [gradient] = grads
        lengths = [var.type.shape[self.axis] for var in inputs]
        if None in lengths:
            # other inputs have been put in since
            return super().pullback(inputs, outputs, grads)
        lengths = pt.constant(lengths, dtype="int64")
        parts = [gradient.type.clone(shape=var.type.shape).make_variable() for var in inputs]
        return Apply(Split(len(inputs), self.axis), [gradient, lengths], parts).outputs


def copied(node: Apply, inputs: list[Variable], minimum: int) -> Apply:
    """The node with other inputs; a long join of known lengths as :class:`JoinOfKnownLengths`."""
    copy = node.clone_with_new_inputs(inputs)
    if type(node.op) is Join and len(inputs) >= minimum:
        types = [var.type for var in [*inputs, *copy.outputs]]
        floats = all(np.issubdtype(own.dtype, np.floating) for own in types)
        if floats and all(own.shape[node.op.axis] is not None for own in types):
            copy.op = JoinOfKnownLengths(node.op.axis)
    return copy
