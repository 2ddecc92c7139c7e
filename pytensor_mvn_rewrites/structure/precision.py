"""Covariances that are given as the inverse of a precision matrix."""

from dataclasses import dataclass
from typing import ClassVar, Self

from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.linalg.inverse import MatrixInverse
from pytensor.tensor.linalg.solvers.general import Solve

from pytensor_mvn_rewrites.graph import Tensor, dimshuffled, matrix_view, without_leading_ones
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.constants import scalar_constant
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from pytensor_mvn_rewrites.proofs.symmetry import is_symmetric
from pytensor_mvn_rewrites.structure._assemble import outputs_like
from pytensor_mvn_rewrites.structure._kron import split_scale
from pytensor_mvn_rewrites.structure._structure import DECLARE_SYMMETRIC, Structure


@structure
@dataclass(frozen=True)
class Inverse(Structure):
    r"""MvNormalLogp{cov}(x, mu, c * inv(T)) -> MvNormalLogp{tau}(x, mu, T / c), and back.

    .. math:: d^\top (T^{-1})^{-1} d = \|L^\top d\|^2, \qquad
              \log|T^{-1}| = -2 \sum_i \log L_{ii}, \qquad T = L L^\top

    The same for ``InvQuadLogdet`` and for ``solve(T, eye)``. Cost: an inverse, a factorization and
    a solve become a factorization and a product.

    Declines unless T is proven symmetric: the dense graph reads the lower triangle of the inverse,
    which depends on both triangles of T. Declines for pseudo-inverses, whose T may be singular,
    and for sums and products of inverses.
    """

    params: ClassVar = ("cov", "tau")

    #: The T, shape (..., n, n).
    inverted: Tensor

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Find what is inverted, and prove it symmetric."""
        inverted = inverted_matrix(matrix)
        if inverted is None or inverted.type.dtype != matrix.type.dtype:
            return None
        if not is_symmetric(fgraph, inverted):
            return cls.declined("the precision is not proven symmetric", DECLARE_SYMMETRIC)
        return cls(without_leading_ones(inverted, 2))

    def outputs(self, node):
        """The same op in the other parametrization."""
        other = {"cov": "tau", "tau": "cov"}[node.op.param]
        op = type(node.op)(param=other)
        return outputs_like(node, op(*node.inputs[:-1], self.inverted, return_list=True))


def inverted_matrix(matrix: Tensor) -> Tensor | None:
    """The T of a `matrix` that is its inverse, perhaps transposed, or a scalar times that."""
    scale, core = split_scale(matrix)
    view = matrix_view(core)
    match view.core.owner_op_and_inputs:
        case (MatrixInverse() | Blockwise(MatrixInverse()), inverted):
            pass
        case (Solve() | Blockwise(Solve()), inverted, rhs) if is_identity(rhs):
            pass
        case _:
            return None
    n_batch = inverted.type.ndim - 2
    last_two = (n_batch, n_batch + 1)
    core_order = tuple(reversed(last_two)) if view.transposed else last_two
    inverted = dimshuffled(inverted, (*view.batch_order, *core_order))
    return inverted if scale is None else inverted / scale


def is_identity(matrix: Tensor) -> bool:
    """Whether all matrices of the stack are identities by construction."""
    diag = diagonal_of(matrix)
    return diag is not None and scalar_constant(diag) == 1
