"""What several rules match: factors and their uses, sums of squares, matrices proven definite."""

from collections.abc import Iterator

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.scalar.basic import Mul, Pow, Sqr
from pytensor.tensor.basic import ExtractDiag, get_underlying_scalar_constant_value
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.exceptions import NotScalarConstantError
from pytensor.tensor.shape import SpecifyShape, specify_shape


def is_real_float(*variables: Variable) -> bool:
    """Whether all variables are real floating-point tensors."""
    return all(var.type.dtype in ("float32", "float64") for var in variables)


def scalar_constant(var: Variable) -> float | None:
    """The number that `var` repeats, or None."""
    try:
        value = get_underlying_scalar_constant_value(var, raise_not_constant=True)
    except NotScalarConstantError:
        return None
    return float(value) if value.dtype.kind in "iufb" else None


def batch_ndim(matrix: Variable) -> int:
    """Number of batch dimensions of a stack of matrices."""
    return matrix.type.ndim - 2


def reduced_axes(node: Apply) -> tuple[int, ...] | None:
    """Axes over which a reduction such as `Sum` or `All` runs; None for any other node."""
    if not isinstance(node.op, CAReduce):
        return None
    axis = node.op.axis
    return tuple(range(node.inputs[0].type.ndim)) if axis is None else tuple(axis)


def is_core_diagonal(node: Apply) -> bool:
    """Whether `node` takes the main diagonal of the last two axes."""
    match node.op:
        case ExtractDiag(offset=0, axis1=axis1, axis2=axis2):
            ndim = node.inputs[0].type.ndim
            return {axis1 % ndim, axis2 % ndim} == {ndim - 2, ndim - 1}
    return False


def is_square_of(node: Apply, var: Variable) -> bool:
    """Whether `node` computes `var**2`, in any of its three spellings."""
    match node.op:
        case Elemwise(scalar_op=Sqr()):
            return True
        case Elemwise(scalar_op=Pow()):
            return node.inputs[0] is var and scalar_constant(node.inputs[1]) == 2
        case Elemwise(scalar_op=Mul()):
            return len(node.inputs) == 2 and all(inp is var for inp in node.inputs)
    return False


def uses(fgraph: FunctionGraph, var: Variable) -> Iterator[tuple[Apply, Variable]]:
    """Clients of `var` with the view they use, through added batch dimensions and transposes.

    A client that uses one view twice comes once.
    """
    seen: set[Apply] = set()
    for client, _ in fgraph.clients[var]:
        if client in seen:
            continue
        seen.add(client)
        match client.op:
            case DimShuffle(is_left_expand_dims=True) | DimShuffle(
                is_left_expanded_matrix_transpose=True
            ):
                yield from uses(fgraph, client.outputs[0])
            case _:
                yield client, var


def drop_axis(axes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The other `axes`, renumbered for a tensor without `axis`."""
    return tuple(a - (a > axis) for a in axes if a != axis)


def is_elementwise_function_of(var: Variable, source: Variable) -> bool:
    """Whether `var` is `source` seen through elementwise ops: then their batch shapes are equal."""
    if var is source:
        return True
    match var.owner_op:
        case Elemwise():
            return any(
                is_elementwise_function_of(inp, source)
                for inp in var.owner.inputs
                if inp.type.broadcastable == source.type.broadcastable
            )
    return False


def dimshuffled(var: Variable, order: tuple[int | str, ...]) -> Variable:
    """`var.dimshuffle(order)` with the op moved to the inputs of elementwise ops and merged there.

    Canonicalization would do the same, but it is over when the rules of this package run.
    """
    if order == tuple(range(var.type.ndim)):
        return var
    match var.owner_op_and_inputs:
        case (DimShuffle(new_order=inner_order), inner):
            return dimshuffled(inner, tuple(i if i == "x" else inner_order[i] for i in order))
        case (Elemwise() as op, *inputs) if len(var.owner.outputs) == 1:
            return op(*(dimshuffled(inp, order) for inp in inputs))
        case (SpecifyShape(), inner, *shape):
            new_shape = [1 if i == "x" else shape[i] for i in order]
            return specify_shape(dimshuffled(inner, order), new_shape)
    return var.dimshuffle(order)


def squeezed(var: Variable, axes: tuple[int, ...]) -> Variable:
    """`var` without `axes`, which have length 1, see `dimshuffled`."""
    return dimshuffled(var, tuple(i for i in range(var.type.ndim) if i not in axes))


def squeezed_left(var: Variable, limit: int | None = None) -> Variable:
    """`var` without its leading dimensions of length 1, at most `limit`; a matrix keeps two."""
    lead = var.type.broadcastable[: var.type.ndim - 2 if limit is None else limit]
    return squeezed(var, tuple(range(lead.index(False) if False in lead else len(lead))))
