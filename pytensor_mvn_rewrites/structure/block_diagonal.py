"""Covariances that are block-diagonal, in every form in which they are written."""

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import ClassVar, Self

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Constant, Variable
from pytensor.scalar.basic import Add
from pytensor.tensor.basic import Join
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.linalg.constructors import BlockDiagonal as BlockDiag
from pytensor.tensor.linalg.inverse import MatrixInverse
from pytensor.tensor.math import Dot, Sum
from pytensor.tensor.shape import specify_shape
from pytensor.tensor.subtensor import IncSubtensor, indices_from_subtensor

from pytensor_mvn_rewrites.graph import (
    Tensor,
    is_full_slice,
    is_real_float,
    matrix_view,
    positions_of,
    spans_matrix,
    static_size,
    without_leading_ones,
)
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.constants import scalar_constant
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from pytensor_mvn_rewrites.structure._assemble import outputs_like
from pytensor_mvn_rewrites.structure._kron import (
    kron_factors,
    kron_operands,
    multiple_of_identity,
    split_scale,
)
from pytensor_mvn_rewrites.structure._structure import Structure

#: A constant matrix of blocks of several sizes is split from this size on: each size is a node.
MIN_RAGGED_CONSTANT = 32


@dataclass
class Blocks:
    """Blocks of one size: where they are, and what they are."""

    #: The rows of the whole matrix that each block takes, shape (K, n).
    positions: np.ndarray
    #: Shape (..., K, n, n), or (..., 1, n, n) if they are all the same.
    matrices: Tensor


@structure
@dataclass(frozen=True)
class BlockDiagonal(Structure):
    r"""MvNormalLogp(x, mu, block_diag(S_1, ..., S_B)) -> sum(MvNormalLogp(X, M, S)), S the stack.

    .. math:: \log N(x \mid \mu, \oplus_b \Sigma_b) = \sum_b \log N(x_b \mid \mu_b, \Sigma_b)

    The same for both outputs of ``InvQuadLogdet``, and for block-diagonal Cholesky factors and
    precisions. Equal sizes become one batched node, so there is one node for each size. Cost:
    :math:`O((\sum n_b)^3) \to O(\sum n_b^3)`. NaN as soon as one block is not positive definite,
    which is when the whole matrix is not.
    Declines unless every block is provably square and of known size, and for overlapping blocks.
    """

    params: ClassVar = ("cov", "chol", "tau")

    n: int
    dtype: str
    stacks: list[Blocks]

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """In any of the forms that `blocks_of` knows."""
        stacks = blocks_of(matrix)
        if stacks is None or not is_real_float(matrix):
            return None
        return cls(matrix.type.shape[-1], matrix.type.dtype, stacks)

    def outputs(self, node):
        """The same op for each size of blocks."""
        vectors = node.inputs[:-1]
        if any(vector.type.shape[-1] not in (None, self.n) for vector in vectors):
            return None
        results = []
        for blocks in self.stacks:
            outputs = type(node.op)(param=node.op.param)(
                *(take(vector, blocks.positions, self.n) for vector in vectors),
                without_leading_ones(blocks.matrices.astype(self.dtype), 2),
                return_list=True,
            )
            results.append(
                [
                    out.all(axis=-1) if out.type.dtype == "bool" else out.sum(axis=-1)
                    for out in outputs
                ]
            )
        totals = [
            reduce(pt.and_ if parts[0].type.dtype == "bool" else pt.add, parts)
            for parts in zip(*results, strict=True)
        ]
        return outputs_like(node, totals)


def take(vector: Tensor, positions: np.ndarray, n: int) -> Tensor:
    """``vector[..., positions]``, as a reshape where the order allows it."""
    if vector.type.shape[-1] is None:
        # a gather or a slice would accept a vector that is too long
        vector = specify_shape(vector, (*(None,) * (vector.type.ndim - 1), n))
    first, count = int(positions.min()), positions.size
    batch = tuple(vector.shape)[:-1]
    for order in (positions, positions.T):
        if np.array_equal(order.ravel(), np.arange(first, first + count)):
            if count < n:
                vector = vector[..., first : first + count]
            taken = vector.reshape((*batch, *order.shape))
            return taken if order is positions else taken.mT
    return vector[..., positions]


def blocks_of(matrix: Tensor) -> list[Blocks] | None:
    """The blocks of a block-diagonal matrix, one entry for each size; None for any other matrix."""
    if static_size(matrix) is None or diagonal_of(matrix) is not None:
        return None
    scale, core = split_scale(matrix)
    finders = (
        blocks_of_block_diag,
        blocks_of_kron_with_identity,
        blocks_of_sum_of_krons,
        blocks_of_sum_with_diagonals,
        blocks_of_assignments,
        blocks_of_constant,
    )
    stacks = next((found for find in finders if (found := find(core)) is not None), None)
    if scale is None or stacks is None:
        return stacks
    return [Blocks(blocks.positions, scale[..., None, :, :] * blocks.matrices) for blocks in stacks]


def stacked_by_size(blocks: list[Tensor]) -> list[Blocks] | None:
    """Blocks one after the other, those that are alike in one stack."""
    sizes = [static_size(block) for block in blocks]
    if None in sizes:
        return None
    starts = np.cumsum([0, *sizes])
    alike = defaultdict(list)
    for start, block in zip(starts, blocks, strict=False):
        alike[block.type.shape[-1], block.type.broadcastable, layout(block)].append((start, block))
    stacks = []
    for (n, *_), members in alike.items():
        first_rows, matrices = zip(*members, strict=True)
        if all(block is matrices[0] for block in matrices):
            matrices = matrices[:1]
        stacked = pt.stack(matrices, axis=matrices[0].type.ndim - 2)
        stacks.append(Blocks(np.add.outer(first_rows, np.arange(n)), stacked))
    return stacks


def layout(block: Tensor) -> tuple:
    """What the rules of this stage look at: a stack of blocks that differ here would hide it."""
    core = matrix_view(split_scale(block)[1]).core
    match core.owner_op_and_inputs:
        case (Blockwise(MatrixInverse()), inverted):
            return ("inverse", layout(inverted))
        case (Elemwise(scalar_op=Add()), *terms) if all(map(spans_matrix, terms)):
            return tuple(sorted((term for term in map(layout, terms) if term), key=repr))
        case (Dot() | Blockwise(Dot()), left, _) if left.type.shape[-1] != core.type.shape[-1]:
            return ("product", left.type.shape[-1])
    _, factors = kron_factors(core)
    return ("kron", *map(static_size, factors)) if len(factors) > 1 else ()


def blocks_of_block_diag(matrix: Tensor) -> list[Blocks] | None:
    """``block_diag(S_1, ..., S_B)``."""
    blocks = flattened(matrix)
    return None if blocks[0] is matrix else stacked_by_size(blocks)


def flattened(matrix: Tensor) -> list[Tensor]:
    """The blocks of a ``block_diag`` with those of a ``block_diag`` among them in its place."""
    match matrix.owner_op_and_inputs:
        case (BlockDiag() | Blockwise(BlockDiag()), *blocks):
            return [inner for block in blocks for inner in flattened(block)]
    return [matrix]


def blocks_of_kron_with_identity(matrix: Tensor) -> list[Blocks] | None:
    """``kron(A, eye(K), B)``: K times kron(A, B), which take every K-th group of rows."""
    scale, factors = kron_factors(matrix)
    sizes = [static_size(factor) or 0 for factor in factors]
    if len(factors) == 1 or 0 in sizes:
        return None
    weights = [multiple_of_identity(factor) for factor in factors]
    if all(weight is None for weight in weights):
        return None
    i, weight = next((i, weight) for i, weight in enumerate(weights) if weight is not None)
    rest = [*factors[:i], *factors[i + 1 :]]
    if len(rest) > 1 and any(other.type.ndim > 2 for other in rest):
        return None
    block = rest[0]
    for other in rest[1:]:
        block = pt.linalg.kron(block, other)
    if weight != 1:
        block = np.asarray(weight, dtype=block.type.dtype) * block
    if scale is not None:
        block = scale * block
    left, k = math.prod(sizes[:i]), sizes[i]
    positions = np.arange(math.prod(sizes)).reshape(left, k, -1)
    return [Blocks(positions.swapaxes(0, 1).reshape(k, -1), block[..., None, :, :])]


def blocks_of_sum_of_krons(matrix: Tensor) -> list[Blocks] | None:
    """``kron(e_1 e_1', S_1) + ... + kron(e_B e_B', S_B)``, as a sum of terms or over a stack.

    Or ``kron(S_1, e_1 e_1') + ...``, where each block takes every B-th row.
    """
    for indicator_side in (0, 1):
        found = operands_of_sum(matrix, indicator_side)
        if found is not None:
            break
    else:
        return None
    indicators, terms = found
    if any(np.any(indicator * (1 - np.eye(len(indicator)))) for indicator in indicators):
        return None
    # weights[t, k]: how often term t goes into block k
    weights = np.diagonal(indicators, axis1=-2, axis2=-1)
    if not np.all(np.count_nonzero(weights, axis=0) == 1):
        return None
    k = weights.shape[1]
    source = np.argmax(weights != 0, axis=0)
    if isinstance(terms, list):
        matrices = pt.stack([terms[t] for t in source])
    else:
        matrices = terms if np.array_equal(source, np.arange(len(weights))) else terms[source]
    weight = weights[source, np.arange(k)]
    if np.any(weight != 1):
        matrices = weight[:, None, None].astype(matrices.type.dtype) * matrices
    rows = np.arange(matrix.type.shape[-1])
    positions = rows.reshape(k, -1) if indicator_side == 0 else rows.reshape(-1, k).T
    return [Blocks(positions, matrices)]


def blocks_of_sum_with_diagonals(matrix: Tensor) -> list[Blocks] | None:
    """``block_diag(S_1, ..., S_B) + diag(d)``: each block gets its part of the diagonal."""
    match without_leading_ones(matrix, 2).owner_op_and_inputs:
        case (Elemwise(scalar_op=Add()), *terms) if all(map(spans_matrix, terms)):
            pass
        case _:
            return None
    diags = [diagonal_of(term) for term in terms]
    others = [term for term, diag in zip(terms, diags, strict=True) if diag is None]
    if len(others) in (0, len(terms)):
        return None
    stacks = blocks_of(others[0] if len(others) == 1 else pt.add(*others))
    if stacks is None:
        return None
    diag = reduce(add, (diag for diag in diags if diag is not None))
    n = static_size(matrix)
    if n is None or diag.type.shape[-1] != n:
        return None
    results = []
    for blocks in stacks:
        eye = np.eye(blocks.positions.shape[-1], dtype=diag.type.dtype)
        part = take(diag, blocks.positions, n)[..., None] * eye
        results.append(Blocks(blocks.positions, blocks.matrices + part))
    return results


def operands_of_sum(
    matrix: Tensor, indicator_side: int
) -> tuple[np.ndarray, list[Tensor] | Tensor] | None:
    """The constant operands, shape (T, K, K), and the T other ones: a list or a stack.

    The constant ones are those on the left if `indicator_side` is 0, on the right if it is 1.
    """
    match matrix.owner_op_and_inputs:
        case (Elemwise(scalar_op=Add()), *terms):
            pass
        case (Sum(axis=(0,)), Variable() as stack) if stack.type.ndim == 3:
            match stack.owner_op_and_inputs:
                case (Join(axis=0), *terms):
                    terms = [without_stacking(term) for term in terms]
                case _:
                    operands = kron_operands(stack)
                    if operands is None or not all(op.type.ndim == 3 for op in operands):
                        return None
                    if any(None in operand.type.shape for operand in operands):
                        return None
                    return as_operands(operands[indicator_side], operands[1 - indicator_side])
        case _:
            return None
    indicators, others = [], []
    for term in terms:
        if term is None:
            return None
        scale, core = split_scale(term)
        operands = kron_operands(core)
        if operands is None:
            return None
        indicator, other = operands[indicator_side], operands[1 - indicator_side]
        if not isinstance(indicator, Constant) or static_size(other) is None:
            return None
        if other.type.ndim != 2 or indicator.type.ndim != 2:
            return None
        indicators.append(np.asarray(indicator.data))
        others.append(other if scale is None else scale * other)
    if len({(*i.shape, *o.type.shape) for i, o in zip(indicators, others, strict=True)}) != 1:
        return None
    return np.stack(indicators), others


def as_operands(indicators: Tensor, others: Tensor):
    """The operands of a stack of Kronecker products, if the first ones are constants."""
    if not isinstance(indicators, Constant) or static_size(others) is None:
        return None
    data = np.asarray(indicators.data)
    if len(data) != others.type.shape[0] or data.shape[-1] != data.shape[-2]:
        return None
    return data, others


def without_stacking(term: Tensor) -> Tensor | None:
    """The matrix that is one entry of a stack."""
    match term.owner_op_and_inputs:
        case (DimShuffle(new_order=("x", 0, 1)), matrix):
            return matrix
    return None


def blocks_of_assignments(matrix: Tensor) -> list[Blocks] | None:
    """``zeros[a:b, a:b].set(S_1)[b:c, b:c].set(S_2)``..."""
    n = matrix.type.shape[-1]
    blocks: list[tuple[int, Tensor]] = []
    base = matrix
    while isinstance(base.owner_op, IncSubtensor):
        inner, block, *variables = base.owner.inputs
        index = indices_from_subtensor(variables, base.owner.op.idx_list)
        if len(index) != base.type.ndim or not all(isinstance(i, slice) for i in index):
            return None
        *batch, rows, columns = index
        taken, also_taken = positions_of(rows, n), positions_of(columns, n)
        if taken is None or also_taken is None or not np.array_equal(taken, also_taken):
            return None
        if not all(map(is_full_slice, batch)) or block.type.ndim < 2:
            return None
        # a value of another shape would be broadcast
        if static_size(block) != len(taken) or not len(taken) or np.any(np.diff(taken) != 1):
            return None
        blocks.append((taken[0], block))
        base = inner
    if not blocks or scalar_constant(base) != 0:
        return None
    blocks.sort(key=lambda block: block[0])
    ends = [start + block.type.shape[-1] for start, block in blocks]
    if [start for start, _ in blocks] != [0, *ends[:-1]] or ends[-1] != n or len(blocks) == 1:
        return None
    return stacked_by_size([block for _, block in blocks])


def blocks_of_constant(matrix: Tensor) -> list[Blocks] | None:
    """A constant that is block-diagonal after a permutation of its rows and columns."""
    if not isinstance(matrix, Constant):
        return None
    data = np.asarray(matrix.data)
    n = data.shape[-1]
    n_blocks, label = components(matrix)
    by_size = defaultdict(list)
    for block in range(n_blocks):
        rows = np.flatnonzero(label == block)
        by_size[len(rows)].append(rows)
    if n_blocks < 2 or (len(by_size) > 1 and n < MIN_RAGGED_CONSTANT):
        return None
    stacks = []
    for members in by_size.values():
        positions = np.stack(members)
        matrices = data[..., positions[:, :, None], positions[:, None, :]]
        stacks.append(Blocks(positions, pt.constant(matrices)))
    return stacks


def components(matrix: Constant) -> tuple[int, np.ndarray]:
    """Connected components of the nonzero pattern: their number, and that of each row; kept."""
    # loads most of SciPy's sparse matrices, which few models need
    from scipy.sparse.csgraph import connected_components

    known = getattr(matrix.tag, "components", None)
    if known is None:
        data = np.asarray(matrix.data)
        # only the lower triangle is read
        pattern = np.tril((data != 0).any(axis=tuple(range(data.ndim - 2))))
        known = matrix.tag.components = connected_components(pattern, directed=False)
    return known
