"""Covariances that are given through an upper triangular factor on the left, ``U @ U.T``."""

from dataclasses import dataclass
from typing import Self

import pytensor.tensor as pt
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.math import Dot

from pytensor_mvn_rewrites.graph import Tensor, matrix_view, static_size
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.symmetry import is_transpose
from pytensor_mvn_rewrites.proofs.triangularity import (
    Triangularity,
    is_upper_triangular,
    triangularity,
)
from pytensor_mvn_rewrites.structure._assemble import outputs_like
from pytensor_mvn_rewrites.structure._structure import Structure


@structure
@dataclass(frozen=True)
class UpperGram(Structure):
    r"""MvNormalLogp{cov}(x, mu, U @ U.T) -> MvNormalLogp{chol}(J x, J mu, J U J), J reversing.

    With the order of the variables reversed, an upper triangular U is lower triangular, and

    .. math:: J U U^\top J = (J U J)(J U J)^\top, \qquad
              \mathrm{chol}(J \Sigma J) = J U J\, \mathrm{sign}(\mathrm{diag}\, J U J)

    The same for ``InvQuadLogdet``, and for ``L.T @ L`` with a lower triangular L. Cost:
    :math:`O(n^3) \to O(n^2)`.

    Declines for ``A @ A.T`` with a full A. An LU factorization of A would do instead of the product
    and its Cholesky factorization, but saves little of the gradient, and it would give a number
    where the product of a nearly singular A is not positive definite in floating point.
    """

    #: The U, shape (..., n, n).
    upper: Tensor

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Prove the factor on the left upper triangular."""
        upper = given_upper_factor(fgraph, matrix)
        return cls(upper) if upper is not None and upper.type.dtype == matrix.type.dtype else None

    def outputs(self, node):
        """The same op of vectors in reverse order."""
        chol = self.upper[..., ::-1, ::-1]
        chol = chol * pt.sign(pt.diagonal(chol, axis1=-2, axis2=-1))[..., None, :]
        vectors = [vector[..., ::-1] for vector in node.inputs[:-1]]
        return outputs_like(node, type(node.op)(param="chol")(*vectors, chol, return_list=True))


def given_upper_factor(fgraph, cov) -> Tensor | None:
    """The upper triangular U of ``cov = U @ U.mT``, or None."""
    match cov.owner_op_and_inputs:
        case (Dot() | Blockwise(Dot()), upper, right) if is_transpose(fgraph, upper, right):
            pass
        case _:
            return None
    if static_size(upper) is None:
        return None
    view = matrix_view(upper)
    if view.transposed and triangularity(fgraph, view.core) is not Triangularity.UNKNOWN:
        return upper
    return upper if is_upper_triangular(fgraph, upper) else None
