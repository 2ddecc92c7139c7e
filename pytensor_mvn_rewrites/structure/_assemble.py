"""From the parts that a structure gives back to the outputs of the op that it replaces."""

import math

import pytensor.tensor as pt
from pytensor.graph.basic import Apply
from pytensor.graph.rewriting.basic import copy_stack_trace

from pytensor_mvn_rewrites.graph import Tensor, lengths_of
from pytensor_mvn_rewrites.ops import MvNormalLogp


def split_inputs(node: Apply) -> tuple[Tensor, Tensor]:
    """The difference to the mean and the matrix of an ``MvNormalLogp`` or ``InvQuadLogdet``."""
    inputs: list[Tensor] = list(node.inputs)
    if isinstance(node.op, MvNormalLogp):
        value, mu, matrix = inputs
        return value - mu, matrix
    delta, matrix = inputs
    return delta, matrix


def from_parts(node: Apply, quaddist, half_logdet, posdef) -> list[Tensor] | None:
    """The outputs of `node`, all with the batch dimensions of `quaddist`; see `outputs_like`."""
    if isinstance(node.op, MvNormalLogp):
        value, mu, _ = list[Tensor](node.inputs)
        n = value.type.shape[-1]
        n = (value + mu).shape[-1].astype(quaddist.dtype) if n is None else float(n)
        norm = pt.constant(-0.5 * math.log(2 * math.pi), dtype=quaddist.dtype) * n
        logp = norm.astype(quaddist.dtype) - 0.5 * quaddist - half_logdet
        return outputs_like(node, [logp, broadcast_to_batch(posdef, logp)])
    half_logdet = broadcast_to_batch(half_logdet, quaddist)
    return outputs_like(node, [quaddist, half_logdet, broadcast_to_batch(posdef, quaddist)])


def broadcast_to_batch(var, like) -> Tensor:
    """`var` with the batch dimensions of `like`, where it has not got them already."""
    if var.type.broadcastable == like.type.broadcastable:
        return var
    return pt.broadcast_to(var, lengths_of(like))


def outputs_like(node: Apply, outputs: list[Tensor]) -> list[Tensor] | None:
    """`outputs`, if they can take the place of those of `node`: equal dtypes and dimensions."""
    outputs = [
        pt.atleast_Nd(new, n=old.type.ndim) for new, old in zip(outputs, node.outputs, strict=True)
    ]
    for new, old in zip(outputs, node.outputs, strict=True):
        if new.type.dtype != old.type.dtype or new.type.broadcastable != old.type.broadcastable:
            return None
    copy_stack_trace(node.outputs, outputs)
    return outputs
