"""A parameter check with one condition per term of a batch, and what `vectorize_graph` makes of it.

PyMC's checks read a condition without dimensions through ``ScalarFromTensor``.
"""

import numpy as np
import pytensor.tensor as pt
from pymc.logprob.utils import CheckParameterValue
from pytensor.compile.mode import optdb
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.rewriting.basic import dfs_rewriter, node_rewriter
from pytensor.raise_op import Assert
from pytensor.tensor.basic import ScalarFromTensor, scalar_from_tensor, tensor_copy
from pytensor.tensor.shape import SpecifyShape
from pytensor.tensor.type_other import NoneTypeT

from pytensor_mvn_rewrites._upstream import _vectorize_node


class BatchedCheck(CheckParameterValue):
    """N checks ``CheckParameterValue(value_i, condition_i)`` in one node.

    Compiled by PyMC it becomes ``switch(condition, value, -inf)`` as PyMC's own check does, here
    term by term: a bad parameter of one term of a loop leaves the other terms alone.

    Inputs
        value : shape (N, ...); condition : bool, broadcastable against value.
    """

    def make_node(self, value, condition):
        """Unlike the parent, accept a condition with dimensions."""
        value, condition = pt.as_tensor_variable(value), pt.as_tensor_variable(condition)
        if condition.type.ndim != value.type.ndim:
            raise TypeError("value and condition must have the same number of dimensions")
        return Apply(self, [value, condition.astype("bool")], [value.type()])

    def perform(self, node, inputs, outputs):
        """Raise if any of the conditions fails."""
        value, condition = inputs
        if not np.all(condition):
            raise self.exc_type(self.msg)
        outputs[0][0] = value

    def do_constant_folding(self, fgraph, node):
        """Fold only if no condition fails: a check raises when it runs, not when it compiles."""
        condition = node.inputs[1]
        return isinstance(condition, Constant) and bool(np.all(condition.data))

    def infer_shape(self, node, shapes):
        """The shape of the value."""
        return [shapes[0]]

    def c_code(self, *args, **kwargs):
        """No C implementation: :func:`local_unbatch_check` replaces the op before."""
        raise NotImplementedError


def batched_check(op: CheckParameterValue, value, condition, lacking: int):
    """Vectorize a check: in one term, `condition` has `lacking` dimensions less than `value`."""
    if condition.type.ndim == 0:
        return op(value, condition)
    condition = pt.shape_padright(condition, lacking)
    missing = condition.type.ndim - value.type.ndim
    if missing > 0:
        value = pt.broadcast_to(value, (*tuple(condition.shape)[:missing], *value.shape))
    elif missing < 0:
        condition = pt.shape_padleft(condition, -missing)
    return BatchedCheck(op.msg, op.can_be_replaced_by_ninf)(value, condition)


@_vectorize_node.register(BatchedCheck)
def _vectorize_batched_check(op, node, value, condition) -> Apply:
    """Each term of each batch has a condition of its own."""
    if value.type.ndim < condition.type.ndim:
        value = value + pt.zeros_like(condition, dtype=value.type.dtype)
    condition = pt.shape_padleft(condition, value.type.ndim - condition.type.ndim)
    return op.make_node(value, condition)


@_vectorize_node.register(ScalarFromTensor)
def _vectorize_scalar_from_tensor(op, node, value) -> Apply:
    """The batch itself, as PyTensor has it, from a node that has no other outputs.

    PyTensor returns the node that made the batch: here that has several outputs, such as `posdef`
    beside a log-density.
    """
    own = scalar_from_tensor if value.type.ndim == 0 else tensor_copy
    return own.make_node(value)


@_vectorize_node.register(SpecifyShape)
def _vectorize_specify_shape(op, node, x, *lengths) -> Apply:
    """The same lengths for all of the batch.

    PyTensor refuses lengths that were computed, such as that of a variable in the batch: there are
    as many of them as the batch has members, and they must be equal.
    """
    n_new = x.type.ndim - node.inputs[0].type.ndim
    return op.make_node(x, *(None,) * n_new, *map(_common_length, lengths))


def _common_length(length):
    if isinstance(length.type, NoneTypeT):
        return None
    if length.type.ndim == 0:
        return length
    first, same = length.max(), pt.eq(length, length.max()).all()
    return Assert("The members of a batch must have equal lengths")(first, same)


@node_rewriter([BatchedCheck])
def local_unbatch_check(fgraph, node):
    """BatchedCheck(value, condition) -> CheckParameterValue(value, all(condition)).

    The two raise alike; the backends implement the second.
    """
    value, condition = node.inputs
    check = CheckParameterValue(node.op.msg, node.op.can_be_replaced_by_ninf)
    return [check(value, condition.all())]


# after PyMC's checks have become switches (canonicalize), before any backend compiles
optdb.register(
    "mvn_unbatch_check", dfs_rewriter(local_unbatch_check), "fast_run", "fast_compile", position=2.8
)
