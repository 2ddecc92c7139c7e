"""Sums of matrices: their terms, and what is a multiple of the identity among them."""

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Constant
from pytensor.scalar.basic import Add, Sub
from pytensor.tensor.basic import Alloc
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.subtensor import AdvancedIncSubtensor

from pytensor_mvn_rewrites.graph import Tensor, dimshuffled, positions_of, spans_matrix, static_size
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from pytensor_mvn_rewrites.structure._kron import split_scale, without_batch_dims


def split_noise(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """The s, shape (...), and A of ``A + s * eye(n)``; None for any other matrix."""
    scale, matrix = split_scale(matrix)
    matrix = without_batch_dims(matrix)
    noises, others = [], []
    for sign, term in terms_of_sum(matrix):
        if not spans_matrix(term):
            return None
        noise, known = noise_variance(term), static_size(term) == static_size(matrix)
        if noise is None and (known or term.type.shape[-2:] == (None, None)):
            others.append(term)
        elif noise is not None and known:
            noises.append(noise if sign > 0 else -noise)
        else:
            return None
        if noise is None and (sign < 0 or len(others) > 1):
            return None
    if not noises or not others:
        return None
    noise, other = pt.add(*noises) if len(noises) > 1 else noises[0], others[0]
    return (noise, other) if scale is None else (scale[..., 0, 0] * noise, scale * other)


def terms_of_sum(matrix: Tensor, sign: int = 1) -> list[tuple[int, Tensor]]:
    """The terms of a sum of matrices, each with its sign."""
    match matrix.owner_op_and_inputs:
        case (Elemwise(scalar_op=Add()), *inputs):
            return [term for inp in inputs for term in terms_of_sum(inp, sign)]
        case (Elemwise(scalar_op=Sub()), left, right):
            return [*terms_of_sum(left, sign), *terms_of_sum(right, -sign)]
        case (AdvancedIncSubtensor(set_instead_of_inc=False), inner, increment, *index) if (
            increment.type.ndim == 0 and adds_to_diagonal(matrix.owner.op, inner, index)
        ):
            increment_matrix = increment * pt.eye(inner.type.shape[-1], dtype=inner.type.dtype)
            return [*terms_of_sum(inner, sign), (sign, increment_matrix)]
    return [(sign, matrix)]


def adds_to_diagonal(op: AdvancedIncSubtensor, matrix: Tensor, index: list[Tensor]) -> bool:
    """Whether ``matrix[index].inc(x)`` adds x to the main diagonal, in any order of its entries."""
    n = static_size(matrix)
    if n is None or op.idx_list != (0, 1) or matrix.type.ndim != 2:
        return False
    rows, columns = map(positions_of, index)
    if rows is None or columns is None:
        return False
    return np.array_equal(rows, columns) and np.array_equal(np.sort(rows), np.arange(n))


def noise_variance(matrix: Tensor) -> Tensor | None:
    """The s, shape (...), of a stack of ``s * eye(n)``."""
    diagonal = diagonal_of(matrix)
    return None if diagonal is None else repeated_entry(diagonal)


def repeated_entry(vector: Tensor) -> Tensor | None:
    """The x, shape (...), of vectors whose entries are all x, by construction."""
    ndim = vector.type.ndim
    if ndim == 0:
        return vector
    if isinstance(vector, Constant):
        data = np.asarray(vector.data)
        same = data.shape[-1] > 0 and bool((data == data[..., :1]).all())
        return pt.constant(data[..., 0]) if same else None
    if vector.type.broadcastable[-1]:
        return dimshuffled(vector, tuple(range(ndim - 1)))
    match vector.owner_op_and_inputs:
        case (Elemwise() as op, *inputs):
            entries = [repeated_entry(inp) for inp in inputs]
            return None if any(entry is None for entry in entries) else op(*entries)
        case (Alloc(), fill, *shape) if fill.type.ndim == 0 or fill.type.broadcastable[-1]:
            entry = repeated_entry(fill)
            return entry if ndim == 1 else pt.alloc(entry, *shape[:-1])
        case (DimShuffle(new_order=order), inner) if inner.type.ndim and order[-1] == (
            inner.type.ndim - 1
        ):
            entry = repeated_entry(inner)
            return None if entry is None else dimshuffled(entry, order[:-1])
    return None
