"""The log-density of the multivariate normal, written out."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.scalar.basic import Add, Cast, Mul, Neg, Sub
from pytensor.tensor.basic import ScalarFromTensor, TensorFromScalar
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.shape import Shape, Shape_i
from pytensor.tensor.subtensor import Subtensor

from pytensor_mvn_rewrites.graph import without_leading_ones
from pytensor_mvn_rewrites.ops import InvQuadLogdet, mvnormal_logp
from pytensor_mvn_rewrites.pipeline import recognize
from pytensor_mvn_rewrites.proofs.constants import scalar_constant

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

#: The formula is short: do not flatten the sum of all terms of a model once for each of them.
MAX_TERMS = 12


@dataclass
class LinearCombination:
    """``constant + sum(coefficient * term)``."""

    constant: float = 0.0
    terms: defaultdict[Variable, float] = field(default_factory=lambda: defaultdict(float))


@recognize
@node_rewriter([InvQuadLogdet])
def mvnormal_logp_of_quad_logdet(fgraph, node):
    r"""-n/2 log(2 pi) - quaddist / 2 - half_logdet -> MvNormalLogp(value, mu, matrix).

    .. math:: \log N(x \mid \mu, \Sigma) = -\tfrac n2 \log 2\pi
              - \tfrac12 (x-\mu)^\top \Sigma^{-1} (x-\mu) - \tfrac12 \log|\Sigma|

    Cost: the same, one node instead of 8; further terms of the sum stay. Declines when the
    constant is missing, and when no difference to a mean is visible.
    """
    delta, matrix = node.inputs
    quaddist, half_logdet, posdef = node.outputs
    match delta.owner_op_and_inputs:
        case (Elemwise(scalar_op=Sub()), value, mu):
            pass
        case _:
            return None
    if value.type.shape[-1] == 1 or mu.type.shape[-1] == 1:
        # a core dimension that broadcasts: the op would not
        return None
    value, mu = without_leading_ones(value, 1), without_leading_ones(mu, 1)
    above_half = set(expressions_above(fgraph, half_logdet))
    for root in expressions_above(fgraph, quaddist):
        if root not in above_half:
            continue
        rest = without_density(linear_combination(root), node, value)
        if rest is not None:
            break
    else:
        return None

    logp, new_posdef = mvnormal_logp(value, mu, matrix, node.op.param)
    if logp.type.broadcastable != quaddist.type.broadcastable:
        return None
    copy_stack_trace(root, logp)
    for term, coefficient in rest.terms.items():
        logp = logp + (term if coefficient == 1 else coefficient * term)
    if rest.constant:
        logp = logp + np.asarray(rest.constant, dtype=logp.type.dtype)
    if logp.type.broadcastable != root.type.broadcastable:
        return None
    return {root: logp.astype(root.type.dtype), posdef: new_posdef}


def expressions_above(fgraph, var: Variable) -> list[Variable]:
    """The linear expressions that `var` alone goes into, innermost first."""
    found = []
    while len(fgraph.clients[var]) == 1:
        [(client, _)] = fgraph.clients[var]
        match client.op:
            case Elemwise(scalar_op=Add() | Sub() | Mul() | Neg()) if (
                len(client.inputs) <= MAX_TERMS
            ):
                var = client.outputs[0]
                found.append(var)
            case _:
                break
    return found


def without_density(
    density: LinearCombination, node: Apply, value: Variable
) -> LinearCombination | None:
    """What is left of a sum without the three terms of the log-density; None if one is missing."""
    delta = node.inputs[0]
    quaddist, half_logdet, _ = node.outputs
    if density.terms.pop(quaddist, None) != -0.5 or density.terms.pop(half_logdet, None) != -1:
        return None
    return density if remove_norm(density, value, delta) else None


def linear_combination(var: Variable) -> LinearCombination:
    """Flatten sums, differences and products with constants."""
    result = LinearCombination()

    def add(var: Variable, coefficient: float) -> None:
        constant = scalar_constant(var)
        if constant is not None:
            result.constant += coefficient * constant
            return
        match var.owner_op_and_inputs:
            case (Elemwise(scalar_op=Add()), *inputs):
                for inp in inputs:
                    add(inp, coefficient)
            case (Elemwise(scalar_op=Sub()), left, right):
                add(left, coefficient)
                add(right, -coefficient)
            case (Elemwise(scalar_op=Neg()), inner):
                add(inner, -coefficient)
            case (Elemwise(scalar_op=Mul()), *inputs):
                constants = [scalar_constant(inp) for inp in inputs]
                others = [inp for inp, c in zip(inputs, constants, strict=True) if c is None]
                factor = coefficient * math.prod(c for c in constants if c is not None)
                if len(others) == 1:
                    add(others[0], factor)
                else:
                    result.terms[var] += coefficient
            case _:
                result.terms[var] += coefficient

    add(var, 1.0)
    return result


def remove_norm(density: LinearCombination, value: Variable, delta: Variable) -> bool:
    """Remove ``-n/2 log(2 pi)`` from the sum; False when it is not there."""
    tolerance = 8 * float(np.finfo(delta.type.dtype).eps)
    n = delta.type.shape[-1]
    for term, coefficient in density.terms.items():
        if math.isclose(coefficient, -HALF_LOG_2PI, rel_tol=tolerance) and is_length_of(
            term, value
        ):
            del density.terms[term]
            return True
    if n and math.isclose(density.constant, -n * HALF_LOG_2PI, rel_tol=tolerance):
        density.constant = 0.0
        return True
    return False


def is_length_of(length: Variable, vector: Variable) -> bool:
    """Whether `length` is the length of the last axis of `vector`."""
    last = vector.type.ndim - 1
    match length.owner_op_and_inputs:
        case (Elemwise(scalar_op=Cast()) | ScalarFromTensor() | TensorFromScalar(), inner):
            return is_length_of(inner, vector)
        case (Shape(), source):
            return last == 0 and source is vector
        case (DimShuffle(), inner):
            return is_length_of(inner, vector)
        case (Subtensor(idx_list=[int()]), Variable(owner=Apply(op=Shape(), inputs=[source])), i):
            return source is vector and scalar_constant(i) in (-1, last)
        case (Shape_i(i=i), source):
            return source is vector and i == last
    return False
