"""Traces of a solve with a Gram matrix, as the matrix normal distribution has them."""

from pytensor.graph.basic import Apply
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.tensor.basic import ExtractDiag
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.linalg.solvers.triangular import SolveTriangular, solve_triangular
from pytensor.tensor.math import Dot, Sum

from pytensor_mvn_rewrites.graph import (
    is_core_diagonal,
    is_real_float,
    reduced_axes,
    sum_over,
    transposed,
)
from pytensor_mvn_rewrites.pipeline import recognize
from pytensor_mvn_rewrites.proofs.symmetry import is_transpose


@recognize
@node_rewriter([ExtractDiag])
def trace_of_solve_with_gram_matrix(fgraph, node):
    r"""trace(solve(L.T, solve(L, R.T @ R))) -> sum(solve(L, R.T)**2), L lower triangular.

    .. math:: \mathrm{tr}\big[ (L L^\top)^{-1} R^\top R \big] = \| L^{-1} R^\top \|_F^2

    It is how ``pm.MatrixNormal`` computes its quadratic form. With R of shape (m, n), the cost
    falls from :math:`2 n^3 + m n^2` to :math:`m n^2`, and ``quad_logdet_of_cholesky`` recognizes
    the sum of squares. Declines unless the trace is all that the matrix is for.
    """
    if not is_core_diagonal(node):
        return None
    match fgraph.clients[node.outputs[0]]:
        case [(Apply(op=Sum(), outputs=[trace]) as total, _)]:
            pass
        case _:
            return None
    axes, core_axis = reduced_axes(total), node.outputs[0].type.ndim - 1
    solution = triangular_solve(node.inputs[0], lower=False)
    if core_axis not in axes or solution is None:
        return None
    upper, inner = solution
    solution = triangular_solve(inner, lower=True)
    if solution is None:
        return None
    lower, gram = solution
    match gram.owner_op_and_inputs:
        case (Dot() | Blockwise(Dot()), left, right) if is_transpose(fgraph, left, right):
            pass
        case _:
            return None
    if not is_real_float(lower, right) or not is_transpose(fgraph, upper, lower):
        return None
    z = solve_triangular(lower, transposed(right), lower=True, b_ndim=2)
    new = sum_over(z**2, (*axes, core_axis + 1))
    copy_stack_trace(trace, new)
    return {trace: new}


def triangular_solve(var, *, lower: bool):
    """The A and b of ``solve_triangular(A, b, lower=lower)`` with a matrix b, or None."""
    match var.owner_op_and_inputs:
        case (Blockwise(SolveTriangular(unit_diagonal=False, b_ndim=2) as core), matrix, b) if (
            core.lower is lower
        ):
            return matrix, b
    return None
