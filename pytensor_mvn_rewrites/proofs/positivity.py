"""The prover of positive entries."""

from pytensor.graph.basic import Variable
from pytensor.scalar.basic import Abs, Add, Exp, Mul, Pow, Sqr, Sqrt, Sub, TrueDiv
from pytensor.scalar.math import Sigmoid, Softplus
from pytensor.tensor.basic import Alloc, ExtractDiag, Join, MakeVector
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.shape import Reshape, SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pytensor_mvn_rewrites._upstream import _is_provably_positive
from pytensor_mvn_rewrites.graph import gram_root, is_core_diagonal
from pytensor_mvn_rewrites.proofs.constants import scalar_constant


def is_sigmoid(var: Variable) -> bool:
    """Whether all entries lie between 0 and 1, by a sigmoid function."""
    match var.owner_op_and_inputs:
        case (DimShuffle(), inner):
            return is_sigmoid(inner)
        case (Elemwise(scalar_op=Sigmoid()), _):
            return True
    return False


def is_positive(var: Variable, *, strict: bool = True) -> bool:
    """Whether all entries are positive, or with ``strict=False`` not negative, in any graph."""
    match var.owner_op_and_inputs:
        case (Elemwise(scalar_op=Exp() | Softplus() | Sigmoid()), _):
            return True
        case (Elemwise(scalar_op=Sqr() | Abs()), inner):
            return not strict or is_positive(inner)
        case (Elemwise(scalar_op=Pow()), base, exponent):
            even = (scalar_constant(exponent) or 1) % 2 == 0
            return is_positive(base) or (even and not strict)
        case (Elemwise(scalar_op=Add()), *inputs):
            return all(is_positive(inp, strict=False) for inp in inputs) and (
                not strict or any(is_positive(inp) for inp in inputs)
            )
        case (Elemwise(scalar_op=Mul() | TrueDiv()), *inputs):
            return all(is_positive(inp, strict=strict) for inp in inputs)
        case (Elemwise(scalar_op=Sub()), one, other):
            # the other weight of a convex combination
            return (scalar_constant(one) or 0) >= 1 and is_sigmoid(other)
        case (Elemwise(scalar_op=Sqrt()), inner):
            return is_positive(inner, strict=strict)
        case (ExtractDiag(), product) if (
            is_core_diagonal(var.owner) and gram_root(product) is not None
        ):
            return not strict
        case (DimShuffle() | Subtensor() | AdvancedSubtensor() | ExtractDiag(), inner, *_):
            return is_positive(inner, strict=strict)
        case (Alloc() | SpecifyShape() | Reshape(), inner, *_):
            return is_positive(inner, strict=strict)
        case (Join() | MakeVector(), *inputs):
            return all(is_positive(inp, strict=strict) for inp in inputs)
    return var.type.dtype.startswith(("float", "int", "uint")) and _is_provably_positive(
        var, strict
    )
