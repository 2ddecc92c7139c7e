"""Matrices that are diagonal by construction."""

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Constant, Variable
from pytensor.scalar.basic import Add, Mul, Neg, Sub, TrueDiv
from pytensor.tensor.basic import AllocDiag, Eye
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import Elemwise

from pytensor_mvn_rewrites.graph import (
    Tensor,
    dimshuffled,
    is_core_diagonal,
    matrix_view,
    spans_matrix,
)
from pytensor_mvn_rewrites.proofs.constants import scalar_constant


def diagonal_of(matrix: Variable) -> Tensor | None:
    """The diagonal, shape (..., n), of a stack of matrices that are diagonal by construction."""
    if matrix.type.ndim < 2:
        return None
    if isinstance(matrix, Constant):
        return _diagonal_of_constant(np.asarray(matrix.data))
    view = matrix_view(matrix)
    if view.core is not matrix:
        diag = diagonal_of(view.core)
        order = (*view.batch_order, view.core.type.ndim - 2)
        return None if diag is None else dimshuffled(diag, order)

    match matrix.owner_op_and_inputs:
        case (AllocDiag(offset=0, axis1=axis1, axis2=axis2), diag):
            return diag if axis2 == axis1 + 1 == matrix.type.ndim - 1 else None
        case (Blockwise(AllocDiag(offset=0, axis1=0, axis2=1)), diag):
            return diag
        case (Eye(dtype=dtype), n, m, k) if scalar_constant(k) == 0:
            same = n is m or (scalar_constant(n) or -1) == scalar_constant(m)
            if not same:
                return None
            length = scalar_constant(n)
            ones = pt.ones(n) if length is None else pt.constant(np.ones(int(length)))
            return ones.astype(dtype)
        case (Elemwise(scalar_op=Mul()), *inputs):
            # one diagonal matrix makes the product diagonal
            if any(
                spans_matrix(inp) and diagonal_of(inp) is not None for inp in dict.fromkeys(inputs)
            ):
                return product([entries_on_diagonal(inp) for inp in inputs])
        case (Elemwise(scalar_op=TrueDiv()), numerator, denominator):
            diag = diagonal_of(numerator) if spans_matrix(numerator) else None
            if diag is not None and all(denominator.type.broadcastable[-2:]):
                return diag / entries_on_diagonal(denominator)
        case (Elemwise(scalar_op=Add() | Sub() | Neg() as scalar_op), *inputs):
            diags: list[Tensor] = []
            for inp in inputs:
                diag = diagonal_of(inp) if spans_matrix(inp) else None
                if diag is None:
                    return None
                diags.append(diag)
            return Elemwise(scalar_op)(*diags)
    return None


def entries_on_diagonal(matrix: Variable) -> Tensor:
    """The part of an input of an elementwise op that goes to the diagonal of the result."""
    n_batch = matrix.type.ndim - 2
    row_broadcasts, column_broadcasts = matrix.type.broadcastable[-2:]
    if row_broadcasts or column_broadcasts:
        axis = n_batch if column_broadcasts else n_batch + 1
        return dimshuffled(matrix, (*range(n_batch), axis))
    diag = diagonal_of(matrix)
    return pt.diagonal(matrix, axis1=-2, axis2=-1) if diag is None else diag


def product(factors: list[Tensor]) -> Tensor:
    """The product of diagonals, without the ones of an identity where they are not needed."""
    others = [diag for diag in factors if scalar_constant(diag) != 1]
    if all(diag.type.broadcastable[-1] for diag in others):
        return pt.mul(*factors)
    same_dtype = pt.mul(*factors).type.dtype
    return (pt.mul(*others) if len(others) > 1 else others[0]).astype(same_dtype)


def without_round_trip(vector: Tensor) -> Tensor:
    """The v of ``diagonal(diag(v))``, which is what PyTensor makes of ``diag(v) @ R``."""
    if vector.owner is not None and is_core_diagonal(vector.owner):
        diag = diagonal_of(vector.owner.inputs[0])
        return vector if diag is None else diag
    return vector


def _diagonal_of_constant(data: np.ndarray) -> Tensor | None:
    n = data.shape[-1]
    if data.shape[-2] != n or np.any(data[..., ~np.eye(n, dtype=bool)]):
        return None
    return pt.constant(np.diagonal(data, axis1=-2, axis2=-1))
