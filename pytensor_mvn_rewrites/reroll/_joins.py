"""Joins of many parts, whose gradient is taken apart at once."""

from collections.abc import Sequence

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply
from pytensor.tensor.basic import Join, Split

from pytensor_mvn_rewrites.graph import Tensor

#: Fewer parts cost next to nothing: an op of PyTensor is what its own rewrites know best.
MANY = 8


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


def join(parts: Sequence[Tensor]) -> Tensor:
    """``pt.join(0, *parts)``; of many floats of known lengths, a :class:`JoinOfKnownLengths`.

    All stacks are made here, so that those of the same parts are merged.
    """
    known = all(part.type.shape[0] is not None for part in parts)
    floats = all(np.issubdtype(part.type.dtype, np.floating) for part in parts)
    if known and floats and len(parts) >= MANY:
        joined: Tensor = JoinOfKnownLengths(0)(*parts)
        return joined
    return pt.join(0, *parts)
