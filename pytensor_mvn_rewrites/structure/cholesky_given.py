"""Covariances that are given through their Cholesky factor."""

from dataclasses import dataclass
from typing import Self

import pytensor.tensor as pt
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.math import Dot

from pytensor_mvn_rewrites.graph import (
    Tensor,
    dimshuffled,
    is_transpose_of,
    matrix_view,
    static_size,
    without_leading_ones,
)
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.triangularity import (
    Triangularity,
    is_upper_triangular,
    triangularity,
)
from pytensor_mvn_rewrites.structure._structure import Structure


@structure
@dataclass(frozen=True)
class Gram(Structure):
    r"""MvNormalLogp{cov}(x, mu, L @ L.T) -> MvNormalLogp{chol}(x, mu, L), L lower triangular.

    .. math:: \mathrm{chol}(L L^\top) = L

    The same for ``InvQuadLogdet``, and for U.T @ U with an upper triangular U. Cost:
    :math:`O(n^3) \to O(n^2)`. Where L is declared lower triangular, by PyMC's tag or PyTensor's
    assumption, a negative diagonal counts as not positive definite, as in PyTensor's own rule
    ``cholesky_ldotlt``. Where L is proven lower triangular, and no more, the factor is
    :math:`L\,\mathrm{sign}(\mathrm{diag}\, L)`.
    Declines unless L is declared or proven triangular (see ``proofs/triangularity.py``: through
    stacks, gathers, scaling, sums and products).
    """

    #: Shape (..., n, n).
    chol: Tensor

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """With the signs of its diagonal taken out of its columns, any triangular matrix is one."""
        view = matrix_view(matrix)
        match view.core.owner_op_and_inputs:
            case (Dot() | Blockwise(Dot()), left, right):
                pass
            case _:
                return None
        chol = left
        if is_transpose_of(right, left):
            state = triangularity(fgraph, left)
            if state is Triangularity.UNKNOWN:
                return None
            if state is Triangularity.LOWER:
                if static_size(left) is None:
                    # a lower triangle may have more rows than columns, or fewer
                    return None
                signs = pt.sign(pt.diagonal(left, axis1=-2, axis2=-1))
                chol = left * signs[..., None, :]
        elif not (is_transpose_of(left, right) and is_upper_triangular(fgraph, right)):
            return None
        n_batch = view.core.type.ndim - 2
        order = (*view.batch_order, n_batch, n_batch + 1)
        return cls(without_leading_ones(dimshuffled(chol, order), 2))

    def cholesky(self):
        """The L."""
        return self.chol
