"""Proofs that a matrix is lower triangular, and that its diagonal is positive.

Tags and PyTensor's assumptions say only the first, and do not survive stacking, indexing and sums.
"""

from enum import IntEnum

import numpy as np
from pytensor.assumptions import LOWER_TRIANGULAR, UPPER_TRIANGULAR, check_assumption
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.scalar.basic import GE, Add, Cast, Mul, Neg, Sub, Switch, TrueDiv
from pytensor.tensor.basic import ARange
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.linalg.decomposition.cholesky import Cholesky
from pytensor.tensor.math import Dot
from pytensor.tensor.subtensor import AdvancedIncSubtensor, indices_from_subtensor

from pytensor_mvn_rewrites.graph import is_full_slice, positions_of, spans_matrix, stacks_of
from pytensor_mvn_rewrites.proofs.constants import constant_value, scalar_constant
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from pytensor_mvn_rewrites.proofs.positivity import is_positive


class Triangularity(IntEnum):
    """What is proven about a stack of matrices."""

    UNKNOWN = 0
    #: zeros above the diagonal
    LOWER = 1
    #: lower triangular with a positive diagonal: the Cholesky factor of L @ L.mT
    CHOLESKY = 2


def triangularity(
    fgraph: FunctionGraph | None, matrix: Variable, *, trusting: bool = True
) -> Triangularity:
    """Prove the triangularity of `matrix` from the ops that make it.

    With `trusting`, a matrix that a tag of PyMC or an assumption of PyTensor declares lower
    triangular counts as a Cholesky factor: PyTensor's own rewrites take it as one.
    """
    if matrix.type.ndim < 2:
        return Triangularity.UNKNOWN
    if (data := constant_value(matrix)) is not None:
        return _of_constant(data)
    if trusting and (
        getattr(matrix.tag, "lower_triangular", False)
        or check_assumption(fgraph, matrix, LOWER_TRIANGULAR)
    ):
        return Triangularity.CHOLESKY

    def proven(*matrices: Variable) -> Triangularity:
        return min(triangularity(fgraph, inp, trusting=trusting) for inp in matrices)

    if stacks := stacks_of(matrix):
        return proven(*stacks)
    if (diag := diagonal_of(matrix)) is not None:
        return Triangularity.CHOLESKY if is_positive(diag) else Triangularity.LOWER
    match matrix.owner_op_and_inputs:
        case (Blockwise(Cholesky(lower=True)), _):
            return Triangularity.CHOLESKY
        case (Elemwise(scalar_op=Add()), *inputs) if all(map(spans_matrix, inputs)):
            # positive scales keep convex combinations of Cholesky factors Cholesky factors
            return proven(*inputs)
        case (Elemwise(scalar_op=Sub() | Neg()), *inputs) if all(map(spans_matrix, inputs)):
            return min(proven(*inputs), Triangularity.LOWER)
        case (Elemwise(scalar_op=Cast()), mask) if isinstance(mask.owner_op, Elemwise):
            return Triangularity.LOWER if is_lower_mask(mask) else Triangularity.UNKNOWN
        case (Elemwise(scalar_op=Mul()), *inputs):
            return _of_product(inputs, proven)
        case (Elemwise(scalar_op=TrueDiv()), numerator, scale) if spans_matrix(numerator):
            state = proven(numerator)
            return state if is_positive(scale) else min(state, Triangularity.LOWER)
        case (Elemwise(scalar_op=Switch()), _, one, other) if spans_matrix(one) and spans_matrix(
            other
        ):
            return proven(one, other)
        case (Dot() | Blockwise(Dot()), left, right):
            return proven(left, right)
        case (AdvancedIncSubtensor(set_instead_of_inc=True) as op, zeros, entries, *indices):
            return _of_entries(op, zeros, entries, indices)
        case (OpFromGraph() as op, *_):
            # a fused op is what its graph of reference is
            inner = op.inner_outputs[matrix.owner.outputs.index(matrix)]
            return triangularity(None, inner, trusting=trusting)
    return Triangularity.UNKNOWN


def _of_product(inputs, proven) -> Triangularity:
    """Zeros stay zeros; scales of rows, columns or whole matrices keep a positive diagonal."""
    matrices = [inp for inp in inputs if spans_matrix(inp)]
    states = [proven(inp) for inp in matrices]
    if not any(states):
        return Triangularity.UNKNOWN
    positive = all(inp in matrices or is_positive(inp) for inp in inputs) and all(
        state is Triangularity.CHOLESKY or is_positive(inp)
        for inp, state in zip(matrices, states, strict=True)
    )
    return Triangularity.CHOLESKY if positive else Triangularity.LOWER


def is_lower_mask(mask: Variable) -> bool:
    """Whether `mask` is ``arange(n)[:, None] >= arange(k, ...)`` with k >= 0, as ``tril`` makes."""
    match mask.owner_op_and_inputs:
        case (
            Elemwise(scalar_op=GE()),
            Variable(owner=Apply(op=DimShuffle(new_order=(*batch, 0, "x")), inputs=[rows])),
            Variable(owner=Apply(op=DimShuffle(new_order=(*_, "x", 0)), inputs=[columns])),
        ) if set(batch) <= {"x"}:
            pass
        case _:
            return False
    match rows.owner_op_and_inputs, columns.owner_op_and_inputs:
        case (ARange(), start, _, step), (ARange(), k, _, other_step):
            numbers = [scalar_constant(var) for var in (start, step, other_step)]
            first = scalar_constant(k)
            return numbers == [0, 1, 1] and first is not None and first >= 0
    return False


def _of_constant(data: np.ndarray) -> Triangularity:
    if data.shape[-1] != data.shape[-2] or data.dtype.kind not in "iuf" or np.triu(data, 1).any():
        return Triangularity.UNKNOWN
    positive = (np.diagonal(data, axis1=-2, axis2=-1) > 0).all()
    return Triangularity.CHOLESKY if positive else Triangularity.LOWER


def _of_entries(op, zeros: Variable, entries: Variable, indices) -> Triangularity:
    """``zeros[..., rows, columns].set(entries)`` with constant rows >= columns, as PyMC unpacks."""
    n = zeros.type.shape[-1]
    index = indices_from_subtensor(indices, op.idx_list)
    if n is None or scalar_constant(zeros) != 0 or len(index) != zeros.type.ndim:
        return Triangularity.UNKNOWN
    if not all(map(is_full_slice, index[:-2])):
        return Triangularity.UNKNOWN
    rows, columns = map(positions_of, index[-2:])
    if rows is None or columns is None:
        return Triangularity.UNKNOWN
    rows, columns = np.broadcast_arrays(rows % n, columns % n)
    if (rows < columns).any():
        return Triangularity.UNKNOWN
    diagonal = np.flatnonzero(rows == columns)
    if len(set(rows[diagonal])) == n and _has_positive_entries(entries, diagonal):
        return Triangularity.CHOLESKY
    return Triangularity.LOWER


def _has_positive_entries(entries: Variable, positions: np.ndarray) -> bool:
    """Whether the entries at `positions` of the last axis are positive."""
    if is_positive(entries):
        return True
    match entries.owner_op_and_inputs:
        case (AdvancedIncSubtensor(set_instead_of_inc=True) as op, _, values, *indices):
            index = indices_from_subtensor(indices, op.idx_list)
            if len(index) != entries.type.ndim or not all(map(is_full_slice, index[:-1])):
                return False
            where = positions_of(index[-1])
            return where is not None and set(positions) <= set(where) and is_positive(values)
    return False


def is_upper_triangular(fgraph, matrix) -> bool:
    """Whether PyTensor, or a tag that PyMC sets, says so."""
    return getattr(matrix.tag, "upper_triangular", False) or check_assumption(
        fgraph, matrix, UPPER_TRIANGULAR
    )
