"""Covariances that are scaled by standard deviations, ``D @ R @ D``."""

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar, Self

import pytensor.tensor as pt
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.math import Dot

from pytensor_mvn_rewrites.graph import Tensor, dimshuffled, is_real_float
from pytensor_mvn_rewrites.ops import inv_quad_logdet
from pytensor_mvn_rewrites.ops.gaussian import nan_unless
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.constants import constant_value
from pytensor_mvn_rewrites.proofs.diagonals import without_round_trip
from pytensor_mvn_rewrites.proofs.positivity import is_positive
from pytensor_mvn_rewrites.proofs.symmetry import elementwise_factors, is_transpose
from pytensor_mvn_rewrites.structure._structure import Structure, describe, known_cholesky_factor


@structure
@dataclass(frozen=True)
class Rescaled(Structure):
    r"""InvQuadLogdet(delta, diag(s) @ R @ diag(s)) -> InvQuadLogdet(delta / s, R), R structured.

    .. math:: \delta^\top (D R D)^{-1} \delta = (D^{-1} \delta)^\top R^{-1} (D^{-1} \delta), \qquad
              \tfrac12 \log|D R D| = \tfrac12 \log|R| + \sum_i \log|s_i|

    The same for ``MvNormalLogp``, for precisions, for ``outer(s, s) * R`` and ``R / outer(s, s)``,
    which is how ``pm.LKJCholeskyCov`` computes its correlation matrix. Where the Cholesky factor L
    of R is known, the matrix gets D L, of columns with the signs of s, and delta is left alone.
    Cost: the structure of R is found, where the dense product hides it. A negative entry of s
    changes signs of R only; with a zero the matrix is singular, and the result NaN.
    Declines unless R has a structure: the scaling alone would save little, and the difference to
    the mean would hold the parameters s.
    """

    params: ClassVar = ("cov", "tau")

    #: The s, shape (..., n).
    scale: Tensor
    #: The R, shape (..., n, n), and its Cholesky factor where that is known.
    inner: Tensor
    inner_chol: Tensor | None

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Take the scales off."""
        found = split_scaling(fgraph, matrix)
        if found is None:
            return None
        scale, inner = found
        if not is_real_float(scale, inner) or inner.type.dtype != matrix.type.dtype:
            return None
        chol = known_cholesky_factor(fgraph, inner)
        if chol is None and describe(fgraph, inner, n, param) is None:
            return None
        return cls(scale.astype(matrix.type.dtype), inner, chol)

    def cholesky(self):
        """None where there are many scales of one Cholesky factor, or it has no gradient."""
        if self.inner_chol is None or constant_value(self.inner_chol) is not None:
            return None
        chol = self.scale[..., :, None] * self.inner_chol
        if chol.type.broadcastable != self.inner_chol.type.broadcastable:
            return None
        # a zero makes the row zero, whatever its sign
        if is_positive(self.scale, strict=False):
            return chol
        return chol * pt.sign(self.scale)[..., None, :]

    def quad_logdet(self, delta, param):
        """The identity."""
        if delta.type.broadcastable[-1]:
            return None
        nonzero = pt.abs(self.scale) > 0
        scale = nan_unless(nonzero, self.scale)
        delta, sign = (delta * scale, -1) if param == "tau" else (delta / scale, 1)
        quaddist, half_logdet, posdef = inv_quad_logdet(delta, self.inner, param)
        half_logdet = half_logdet + sign * pt.log(pt.abs(scale)).sum(axis=-1)
        return quaddist, half_logdet, posdef & nonzero.all(axis=-1)


def split_scaling(fgraph, matrix) -> tuple[Tensor, Tensor] | None:
    """The s, shape (..., n), and R of ``s[..., :, None] * R * s[..., None, :]``."""
    columns, rows, inner = peel(matrix)
    if not columns or len(columns) != len(rows):
        return None
    n_batch = matrix.type.ndim - 2
    scale = None
    for column, power in columns:
        for row in rows:
            if row[1] == power and is_transpose(fgraph, column, row[0]):
                break
        else:
            return None
        rows.remove(row)
        vector = without_round_trip(dimshuffled(column, tuple(range(n_batch + 1))))
        vector = vector if power == 1 else 1 / vector
        scale = vector if scale is None else scale * vector
    return scale, inner


#: A factor of a product, and its power: 1 or -1.
Factor = tuple[Tensor, int]


def peel(matrix: Tensor) -> tuple[list[Factor], list[Factor], Tensor]:
    """The columns and rows that scale the rows and columns of a matrix, and the matrix itself."""
    factors = elementwise_factors(matrix)
    if len(factors) > 1 and not any(transposed for _, transposed, _ in factors):
        kinds: dict[tuple[bool, bool], list[Factor]] = defaultdict(list)
        for factor, _, power in factors:
            kinds[factor.type.broadcastable[-2:]].append((factor, power))
        matrices = kinds[False, False]
        if len(matrices) == 1 and matrices[0][1] == 1:
            columns, rows, core = peel(matrices[0][0])
            for other, power in kinds[True, True]:
                core = core * other if power == 1 else core / other
            return kinds[False, True] + columns, kinds[True, False] + rows, core
    match matrix.owner_op_and_inputs:
        case (Dot() | Blockwise(Dot()), left, right):
            # (diag(s) @ A) @ (B @ diag(s))
            columns, inner_rows, left_core = peel(left)
            inner_columns, rows, right_core = peel(right)
            if (columns or rows) and not inner_rows and not inner_columns:
                return columns, rows, left_core @ right_core
    return [], [], matrix
