"""The prover of definiteness."""

from enum import IntEnum

import numpy as np
from pytensor.assumptions import POSITIVE_DEFINITE, FactState, SpecifyAssumptions
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.scalar.basic import Add, Mul
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.linalg.constructors import BlockDiagonal
from pytensor.tensor.linalg.decomposition.cholesky import Cholesky
from pytensor.tensor.linalg.inverse import MatrixInverse
from pytensor.tensor.linalg.products import KroneckerProduct
from pytensor.tensor.math import Dot

from pytensor_mvn_rewrites.graph import core_op, gram_root, stacks_of
from pytensor_mvn_rewrites.proofs.declared import is_declared
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
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
    diag = diagonal_of(matrix)
    if diag is not None and is_positive(diag, strict=False):
        return Definiteness.DEFINITE if is_positive(diag) else Definiteness.SEMIDEFINITE
    if stacks := stacks_of(matrix):
        return min(definiteness(fgraph, stack) for stack in stacks)

    match matrix.owner_op_and_inputs:
        case (Elemwise(scalar_op=Add()), *inputs):
            if any(True in inp.type.broadcastable[-2:] for inp in inputs):
                return Definiteness.UNKNOWN
            states = [definiteness(fgraph, inp) for inp in inputs]
            return max(states) if min(states) else Definiteness.UNKNOWN
        case (Elemwise(scalar_op=Mul()), *inputs):
            return _definiteness_of_product(fgraph, inputs)
        case (DimShuffle(is_left_expanded_matrix_transpose=True), inner):
            return definiteness(fgraph, inner)
        case (Dot() | Blockwise(Dot()), *_) if (root := gram_root(matrix)) is not None:
            # a Cholesky factor has full rank, or the product is NaN
            has_full_rank = isinstance(core_op(root.owner_op), Cholesky)
            return Definiteness.DEFINITE if has_full_rank else Definiteness.SEMIDEFINITE
        case (Blockwise(MatrixInverse()), inner):
            state = definiteness(fgraph, inner)
            return state if state is Definiteness.DEFINITE else Definiteness.UNKNOWN
        case (KroneckerProduct() | BlockDiagonal() | Blockwise(BlockDiagonal()), *inputs):
            return min(definiteness(fgraph, inp) for inp in inputs)
        case (SpecifyAssumptions(assumptions=declared), inner):
            if (POSITIVE_DEFINITE, FactState.TRUE) in declared:
                return Definiteness.DEFINITE
            return definiteness(fgraph, inner)
    return Definiteness.UNKNOWN


def _definiteness_of_product(fgraph, inputs) -> Definiteness:
    """A definite matrix times positive scalars."""
    matrices = [inp for inp in inputs if False in inp.type.broadcastable[-2:]]
    scales = [inp for inp in inputs if inp not in matrices]
    if len(matrices) != 1:
        return Definiteness.UNKNOWN
    state = definiteness(fgraph, matrices[0])
    if all(is_positive(scale) for scale in scales):
        return state
    if all(is_positive(scale, strict=False) for scale in scales):
        return min(state, Definiteness.SEMIDEFINITE)
    return Definiteness.UNKNOWN


def _definiteness_of_constant(constant: Constant) -> Definiteness:
    """By a Cholesky factorization, once for each constant."""
    known = getattr(constant.tag, "definiteness", None)
    if known is None:
        known = constant.tag.definiteness = _numerical_definiteness(constant)
    return known


def _numerical_definiteness(constant: Constant) -> Definiteness:
    data = np.asarray(constant.data)
    if data.shape[-1] != data.shape[-2] or data.size == 0 or data.dtype.kind not in "iuf":
        return Definiteness.UNKNOWN
    if not np.array_equal(data, np.swapaxes(data, -1, -2)):
        return Definiteness.UNKNOWN
    try:
        np.linalg.cholesky(data.astype("float64"))
    except np.linalg.LinAlgError:
        diag = diagonal_of(constant)
        return Definiteness(int(diag is not None and is_positive(diag, strict=False)))
    return Definiteness(2 * bool(np.isfinite(data).all()))
