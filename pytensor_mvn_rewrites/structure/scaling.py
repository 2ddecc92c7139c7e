"""Covariances that are scaled by standard deviations, ``D @ R @ D``."""

from functools import reduce
from operator import mul

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.scalar.basic import Mul
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import Dot

from pytensor_mvn_rewrites.matching import (
    Tensor,
    constant_value,
    dimshuffled,
    is_real_float,
    without_leading_ones,
)
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp, inv_quad_logdet
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.structure._assemble import from_parts, split_inputs
from pytensor_mvn_rewrites.structure._kron import kron_factors
from pytensor_mvn_rewrites.structure._symmetry import is_symmetric, is_transpose
from pytensor_mvn_rewrites.structure.block_diagonal import blocks_of
from pytensor_mvn_rewrites.structure.cholesky_given import given_cholesky_factor
from pytensor_mvn_rewrites.structure.diagonal import without_round_trip
from pytensor_mvn_rewrites.structure.kronecker_noise import split_noise
from pytensor_mvn_rewrites.structure.kronecker_sum import kron_terms
from pytensor_mvn_rewrites.structure.low_rank import low_rank_plus_diagonal
from pytensor_mvn_rewrites.structure.precision import inverted_matrix


@structure
@node_rewriter([MvNormalLogp, InvQuadLogdet])
def matrix_is_scaled(fgraph, node):
    r"""InvQuadLogdet(delta, diag(s) @ R @ diag(s)) -> InvQuadLogdet(delta / s, R), R structured.

    .. math:: \delta^\top (D R D)^{-1} \delta = (D^{-1} \delta)^\top R^{-1} (D^{-1} \delta), \qquad
              \tfrac12 \log|D R D| = \tfrac12 \log|R| + \sum_i \log|s_i|

    The same for ``MvNormalLogp``, for precisions, and for ``outer(s, s) * R``. Cost: the structure
    of R is found, where the dense product hides it. A negative entry of s changes signs of R
    only; with a zero the matrix is singular, and the result NaN.
    Declines unless R has a structure: the scaling alone would save little, and the difference to
    the mean would hold the parameters s.
    """
    if node.op.param == "chol":
        return None
    delta, matrix = split_inputs(node)
    found = split_scaling(fgraph, without_leading_ones(matrix, 2))
    if found is None:
        return None
    scale, inner = found
    if not is_real_float(scale, inner) or inner.type.dtype != matrix.type.dtype:
        return None
    if delta.type.broadcastable[-1] or not is_structured(fgraph, inner):
        return None
    nonzero = pt.abs(scale) > 0
    scale = pt.switch(nonzero, scale, np.asarray(np.nan, dtype=scale.type.dtype))
    posdef, sign = nonzero.all(axis=-1), -1 if node.op.param == "tau" else 1
    delta = delta * scale if node.op.param == "tau" else delta / scale
    quaddist, half_logdet, inner_posdef = inv_quad_logdet(delta, inner, node.op.param)
    half_logdet = half_logdet + sign * pt.log(pt.abs(scale)).sum(axis=-1)
    return from_parts(node, quaddist, half_logdet, posdef & inner_posdef)


def split_scaling(fgraph, matrix) -> tuple[Tensor, Tensor] | None:
    """The s, shape (..., n), and R of ``s[..., :, None] * R * s[..., None, :]``."""
    columns, rows, inner = peel(matrix)
    if not columns or len(columns) != len(rows):
        return None
    for column in columns:
        partner = next((row for row in rows if is_transpose(fgraph, column, row)), None)
        if partner is None:
            return None
        rows.remove(partner)
    n_batch = matrix.type.ndim - 2
    vectors = [dimshuffled(column, tuple(range(n_batch + 1))) for column in columns]
    return reduce(mul, map(without_round_trip, vectors)), inner


def peel(matrix) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The columns and rows that scale the rows and columns of a matrix, and the matrix itself."""
    match matrix.owner_op_and_inputs:
        case (Elemwise(scalar_op=Mul()), *inputs):
            kinds = [inp.type.broadcastable[-2:] for inp in inputs]
            pairs = list(zip(inputs, kinds, strict=True))
            columns = [inp for inp, kind in pairs if kind == (False, True)]
            rows = [inp for inp, kind in pairs if kind == (True, False)]
            matrices = [inp for inp, kind in pairs if kind == (False, False)]
            others = [inp for inp, kind in pairs if kind == (True, True)]
            if len(matrices) == 1:
                more_columns, more_rows, core = peel(matrices[0])
                return columns + more_columns, rows + more_rows, reduce(mul, others, core)
        case (Dot() | Blockwise(Dot()), left, right):
            # (diag(s) @ A) @ (B @ diag(s))
            columns, inner_rows, left_core = peel(left)
            inner_columns, rows, right_core = peel(right)
            if (columns or rows) and not inner_rows and not inner_columns:
                return columns, rows, left_core @ right_core
    return [], [], matrix


def is_structured(fgraph, matrix) -> bool:
    """Whether another rule of this stage takes `matrix` apart."""
    inverted = inverted_matrix(matrix)
    if inverted is not None:
        return is_symmetric(fgraph, inverted)
    noisy = split_noise(matrix)
    product = matrix if noisy is None else noisy[1]
    return (
        constant_value(matrix) is not None
        or blocks_of(matrix) is not None
        or len(kron_factors(product)[1]) > 1
        or given_cholesky_factor(fgraph, matrix) is not None
        or low_rank_plus_diagonal(fgraph, matrix) is not None
        or kron_terms(matrix) is not None
    )
