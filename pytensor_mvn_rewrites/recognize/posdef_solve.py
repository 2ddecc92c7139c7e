"""Quadratic forms by ``solve`` and ``inv``, where the matrix is proven positive definite."""

import pytensor.tensor as pt
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.graph.rewriting.unify import OpPattern
from pytensor.tensor.linalg.decomposition.cholesky import Cholesky
from pytensor.tensor.linalg.solvers.general import Solve
from pytensor.tensor.linalg.summary import Det
from pytensor.tensor.rewriting.blockwise import blockwise_of

from pytensor_mvn_rewrites.graph import core_op, dimshuffled, is_real_float, matrix_view, uses
from pytensor_mvn_rewrites.pipeline import recognize
from pytensor_mvn_rewrites.proofs.definiteness import is_proven_posdef


@recognize
@node_rewriter([blockwise_of(OpPattern(Solve, assume_a=kind)) for kind in ("gen", "sym")])
def solve_of_proven_posdef(fgraph, node):
    r"""solve(S, b) -> solve(S, b, assume_a="pos"), beside log(det(S)).

    PyTensor turns it into triangular solves with the Cholesky factor, and the quadratic form around
    it into a sum of squares, which ``quad_logdet_of_cholesky`` recognizes. PyTensor has already
    made ``solve(S, b)`` of ``inv(S) @ b``.

    .. math:: b^\top \Sigma^{-1} b = \|L^{-1} b\|^2, \qquad \Sigma = L L^\top

    Cost: :math:`\tfrac23 n^3 \to \tfrac13 n^3`. Declines unless the matrix is proven symmetric and
    positive definite: a Cholesky factorization of any other gives NaN. Declines without a
    determinant or a Cholesky factor of the same matrix.
    """
    matrix, b = node.inputs
    if not is_real_float(matrix, b):
        return None
    view = matrix_view(matrix)
    if not any(
        isinstance(core_op(client.op), Det | Cholesky) for client, _ in uses(fgraph, view.core)
    ):
        return None
    if not is_proven_posdef(fgraph, view.core):
        return None
    n = view.core.type.ndim
    symmetric = dimshuffled(view.core, (*view.batch_order, n - 2, n - 1))
    solution = pt.linalg.solve(symmetric, b, assume_a="pos", b_ndim=node.op.core_op.b_ndim)
    copy_stack_trace(node.outputs[0], solution)
    return [solution]
