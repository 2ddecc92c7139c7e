"""The prover of definiteness."""

from enum import IntEnum

import numpy as np
from pytensor.assumptions import POSITIVE_DEFINITE, FactState, SpecifyAssumptions
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.scalar.basic import Add, Mul
from pytensor.tensor.basic import AllocDiag, Join
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.linalg.constructors import BlockDiagonal
from pytensor.tensor.linalg.decomposition.cholesky import Cholesky
from pytensor.tensor.linalg.inverse import MatrixInverse
from pytensor.tensor.linalg.products import KroneckerProduct
from pytensor.tensor.math import Dot
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pytensor_mvn_rewrites.graph import matrix_view, takes_whole_matrices
from pytensor_mvn_rewrites.proofs.declared import is_declared
from pytensor_mvn_rewrites.proofs.positivity import is_positive


class Definiteness(IntEnum):
    """What is proven about a stack of symmetric matrices."""

    UNKNOWN = 0
    SEMIDEFINITE = 1
    DEFINITE = 2


def is_proven_posdef(fgraph: FunctionGraph, matrix: Variable) -> bool:
    """Whether `matrix` is symmetric and positive definite whatever the inputs of the graph are.

    Proofs hold in exact arithmetic: a scale such as ``exp(x)`` counts as positive although it can
    underflow to zero.
    """
    return definiteness(fgraph, matrix) is Definiteness.DEFINITE


def definiteness(fgraph: FunctionGraph, matrix: Variable) -> Definiteness:
    """Prove the definiteness of `matrix` from the ops that make it.

    Stricter than PyTensor's ``POSITIVE_DEFINITE``, which holds for every ``A @ A.T``: here a
    product is semidefinite, and definite only after something definite was added.
    """
    if matrix.type.ndim < 2:
        return Definiteness.UNKNOWN
    if isinstance(matrix, Constant):
        return _definiteness_of_constant(matrix)
    if is_declared(fgraph, matrix, POSITIVE_DEFINITE):
        return Definiteness.DEFINITE
    view = matrix_view(matrix)
    if view.core is not matrix:
        return definiteness(fgraph, view.core)

    match matrix.owner_op_and_inputs:
        case (Elemwise(scalar_op=Add()), *inputs):
            if any(True in inp.type.broadcastable[-2:] for inp in inputs):
                return Definiteness.UNKNOWN
            states = [definiteness(fgraph, inp) for inp in inputs]
            return max(states) if min(states) else Definiteness.UNKNOWN
        case (Elemwise(scalar_op=Mul()), *inputs):
            return _definiteness_of_product(fgraph, inputs)
        case (AllocDiag(offset=0), diagonal):
            if is_positive(diagonal):
                return Definiteness.DEFINITE
            return Definiteness(int(is_positive(diagonal, strict=False)))
        case (Dot() | Blockwise(Dot()), left, right):
            for one, other in ((left, right), (right, left)):
                match other.owner_op_and_inputs:
                    case (DimShuffle(is_left_expanded_matrix_transpose=True), inner) if (
                        inner is one
                    ):
                        # a Cholesky factor has full rank, or the product is NaN
                        factor = isinstance(one.owner_op, Blockwise) and isinstance(
                            one.owner_op.core_op, Cholesky
                        )
                        return Definiteness.DEFINITE if factor else Definiteness.SEMIDEFINITE
            return Definiteness.UNKNOWN
        case (Blockwise(MatrixInverse()), inner):
            state = definiteness(fgraph, inner)
            return state if state is Definiteness.DEFINITE else Definiteness.UNKNOWN
        case (Subtensor() | AdvancedSubtensor(), stack, *_) if takes_whole_matrices(matrix.owner):
            return definiteness(fgraph, stack)
        case (Join(axis=axis), *stacks) if axis in range(matrix.type.ndim - 2):
            return min(definiteness(fgraph, stack) for stack in stacks)
        case (KroneckerProduct() | BlockDiagonal() | Blockwise(BlockDiagonal()), *inputs):
            return min(definiteness(fgraph, inp) for inp in inputs)
        case (SpecifyAssumptions(assumptions=declared), inner):
            if (POSITIVE_DEFINITE, FactState.TRUE) in declared:
                return Definiteness.DEFINITE
            return definiteness(fgraph, inner)
    return Definiteness.UNKNOWN


def _definiteness_of_product(fgraph, inputs) -> Definiteness:
    """A definite matrix times positive scalars, or a diagonal constant times positive entries."""
    matrices = [inp for inp in inputs if False in inp.type.broadcastable[-2:]]
    scales = [inp for inp in inputs if inp not in matrices]
    diagonals = [m for m in matrices if isinstance(m, Constant) and _is_diagonal(m.data)]
    if len(matrices) > 1 and len(diagonals) == 1:
        scales += [m for m in matrices if m not in diagonals]
        matrices = diagonals
    if len(matrices) != 1:
        return Definiteness.UNKNOWN
    state = definiteness(fgraph, matrices[0])
    if all(is_positive(scale) for scale in scales):
        return state
    if all(is_positive(scale, strict=False) for scale in scales):
        return min(state, Definiteness.SEMIDEFINITE)
    return Definiteness.UNKNOWN


def _is_diagonal(data: np.ndarray) -> bool:
    n = data.shape[-1]
    return data.shape[-2] == n and not np.any(data[..., ~np.eye(n, dtype=bool)])


def _definiteness_of_constant(constant: Constant) -> Definiteness:
    """By a Cholesky factorization, once for each constant."""
    known = getattr(constant.tag, "definiteness", None)
    if known is None:
        known = constant.tag.definiteness = _numerical_definiteness(np.asarray(constant.data))
    return known


def _numerical_definiteness(data: np.ndarray) -> Definiteness:
    if data.shape[-1] != data.shape[-2] or data.size == 0 or data.dtype.kind not in "iuf":
        return Definiteness.UNKNOWN
    if not np.array_equal(data, np.swapaxes(data, -1, -2)):
        return Definiteness.UNKNOWN
    try:
        np.linalg.cholesky(data.astype("float64"))
    except np.linalg.LinAlgError:
        return Definiteness(int(_is_diagonal(data) and bool((data >= 0).all())))
    return Definiteness(2 * bool(np.isfinite(data).all()))
