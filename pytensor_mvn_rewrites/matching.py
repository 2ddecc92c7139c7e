"""What several rules match: factors and their uses, sums of squares, matrices proven definite."""

from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class MatrixView:
    """A stack of matrices seen with more batch dimensions, or transposed."""

    core: Variable
    #: For each batch axis of the view the batch axis of `core`, or "x" where it was added.
    batch_order: tuple[int | str, ...]
    transposed: bool


def matrix_view(var: Variable) -> MatrixView:
    """Look through one `DimShuffle` that adds batch dimensions or transposes the matrices."""
    match var.owner_op_and_inputs:
        case (DimShuffle(new_order=order), core) if core.type.ndim >= 2:
            n_batch = core.type.ndim - 2
            batch_order, last_two = tuple(order[:-2]), tuple(order[-2:])
            if tuple(i for i in batch_order if i != "x") == tuple(range(n_batch)) and last_two in (
                (n_batch, n_batch + 1),
                (n_batch + 1, n_batch),
            ):
                return MatrixView(core, batch_order, last_two[0] > last_two[1])
    return MatrixView(var, tuple(range(var.type.ndim - 2)), False)


def uses(fgraph: FunctionGraph, matrix: Variable) -> Iterator[tuple[Apply, Variable]]:
    """Clients of `matrix`, each once, with the view they use; see `matrix_view`."""
    for client in dict.fromkeys(client for client, _ in fgraph.clients[matrix]):
        if isinstance(client.op, DimShuffle) and matrix_view(client.outputs[0]).core is matrix:
            [view] = client.outputs
            for user in dict.fromkeys(user for user, _ in fgraph.clients[view]):
                yield user, view
        else:
            yield client, matrix


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


def transposed(var: Variable) -> Variable:
    """`var.mT`, see `dimshuffled`."""
    n = var.type.ndim
    return dimshuffled(var, (*range(n - 2), n - 1, n - 2))


def without_leading_ones(var: Variable, core_ndim: int) -> Variable:
    """`var` without its leading batch dimensions of length 1, which broadcast anyway."""
    batch = var.type.broadcastable[: var.type.ndim - core_ndim]
    lead = batch.index(False) if False in batch else len(batch)
    return dimshuffled(var, tuple(range(lead, var.type.ndim)))
