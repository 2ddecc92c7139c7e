"""What the structures have in common: scales, and Kronecker products in all their forms."""

import math
from functools import reduce
from operator import mul

import numpy as np
from pytensor.graph.basic import Constant
from pytensor.scalar.basic import Mul, TrueDiv
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.linalg.products import KroneckerProduct
from pytensor.tensor.shape import Reshape

from pytensor_mvn_rewrites.graph import Tensor, dimshuffled, length, matrix_view, static_size
from pytensor_mvn_rewrites.proofs.constants import scalar_constant
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from pytensor_mvn_rewrites.proofs.symmetry import is_symmetric


def without_batch_dims(matrix: Tensor) -> Tensor:
    """`matrix` without leading dimensions of length 1 that were added: they broadcast anyway."""
    view = matrix_view(matrix)
    added = len([axis for axis in view.batch_order if axis == "x"])
    leading = view.batch_order[:added] == ("x",) * added
    return view.core if leading and not view.transposed else matrix


def split_scale(matrix: Tensor) -> tuple[Tensor | None, Tensor]:
    """The c and A of ``c * A`` with a scalar c for each matrix of the stack, shape (..., 1, 1)."""
    matrix = without_batch_dims(matrix)
    match matrix.owner_op_and_inputs:
        case (Elemwise(scalar_op=Mul() | TrueDiv() as scalar_op), *inputs):
            matrices = [inp for inp in inputs if not all(inp.type.broadcastable[-2:])]
            if len(matrices) != 1 or static_size(matrices[0]) != static_size(matrix):
                return None, matrix
            if isinstance(scalar_op, TrueDiv):
                numerator, denominator = inputs
                return (1 / denominator, numerator) if matrices[0] is numerator else (None, matrix)
            inner_scale, inner = split_scale(matrices[0])
            scales = [inp for inp in inputs if inp is not matrices[0]]
            scales += [] if inner_scale is None else [inner_scale]
            return reduce(mul, scales), inner
    return None, matrix


def kron_operands(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """The A and B of a stack of ``kron(A, B)``, each of shape (..., n, n)."""
    match matrix.owner_op_and_inputs:
        case (KroneckerProduct(), left, right) if left.type.ndim == right.type.ndim == 2:
            return left, right
        case (Blockwise(KroneckerProduct()), left, right):
            return left, right
        case (Reshape(), outer, _):
            return _operands_of_outer(matrix, outer)
    return None


def _operands_of_outer(matrix, outer) -> tuple[Tensor, Tensor] | None:
    """The same for ``(A[:, None, :, None] * B[None, :, None, :]).reshape(...)``, as re-rolled."""
    match outer.owner_op_and_inputs:
        case (Elemwise(scalar_op=Mul()), left, right) if matrix.type.ndim == outer.type.ndim - 2:
            pass
        case _:
            return None
    *batch, m, n, m_too, n_too = outer.type.shape
    if None in (m, n) or (m, n) != (m_too, n_too) or 1 in (m, n):
        return None
    if matrix.type.shape != (*batch, m * n, m * n) or batch.count(None) > 1:
        return None
    if left.type.broadcastable[-3:] != (True, False, True):
        left, right = right, left
    if left.type.broadcastable[-4:] != (False, True, False, True):
        return None
    if right.type.broadcastable[-4:] != (True, False, True, False):
        return None
    return _without_axes(left, -3, -1), _without_axes(right, -4, -2)


def _without_axes(var: Tensor, *axes: int) -> Tensor:
    if isinstance(var, Constant):
        return type(var)(*_squeezed_constant(var, axes))
    gone = {axis % var.type.ndim for axis in axes}
    return dimshuffled(var, tuple(axis for axis in range(var.type.ndim) if axis not in gone))


def _squeezed_constant(var: Constant, axes: tuple[int, ...]):
    data = np.squeeze(np.asarray(var.data), axis=axes)
    return var.type.clone(shape=data.shape), data


def kron_factors(matrix: Tensor) -> tuple[Tensor | None, list[Tensor]]:
    """The c and [A, B, ...] of ``c * kron(A, B, ...)``, nested or not; [matrix] if it is none."""
    scale, core = split_scale(matrix)
    operands = kron_operands(core)
    if operands is None:
        return scale, [core]
    parts = [kron_factors(operand) for operand in operands]
    scales = [part for part in (scale, parts[0][0], parts[1][0]) if part is not None]
    joint = reduce(mul, scales) if scales else None
    return joint, [*parts[0][1], *parts[1][1]]


def multiple_of_identity(matrix: Tensor) -> float | None:
    """The w of ``w * eye(n)``, n > 1."""
    diag = diagonal_of(matrix) if static_size(matrix) not in (None, 1) else None
    return None if diag is None else scalar_constant(diag)


def sizes_of(fgraph, factors: list[Tensor], total: int | None) -> list[Tensor | int] | None:
    """The sizes of Kronecker factors, numbers where the types tell them; None if unproven.

    Where one is known at run time only, the wrong one is an error as in the dense graph.
    """
    sizes: list = [static_size(factor) for factor in factors]
    if None not in sizes:
        product = math.prod(sizes)
        return sizes if product != 0 and total in (None, product) else None
    proven = (
        size is not None or is_symmetric(fgraph, factor)
        for size, factor in zip(sizes, factors, strict=True)
    )
    return [length(factor) for factor in factors] if total and all(proven) else None
