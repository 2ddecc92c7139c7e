"""Log-determinants by ``slogdet`` and ``log(det)``, where the matrix is proven definite."""

import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.scalar.basic import Abs
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.linalg.decomposition.cholesky import Cholesky
from pytensor.tensor.linalg.solvers.general import Solve
from pytensor.tensor.linalg.summary import Det
from pytensor.tensor.math import Prod, log

from pytensor_mvn_rewrites.graph import (
    core_op,
    dimshuffled,
    is_core_diagonal,
    is_real_float,
    matrix_view,
    reduced_axes,
    sum_over,
    uses,
)
from pytensor_mvn_rewrites.pipeline import recognize
from pytensor_mvn_rewrites.proofs.definiteness import is_proven_posdef


@recognize
@node_rewriter([log])
def logdet_of_proven_posdef(fgraph, node):
    r"""log(det(S)), log(abs(det(S))) -> 2 * sum(log(diag(cholesky(S)))), beside solve(S, b).

    .. math:: \log|\Sigma| = 2 \sum_i \log L_{ii}, \qquad \Sigma = L L^\top

    ``slogdet(S)[1]`` is ``log(abs(det(S)))`` here. Cost: :math:`\tfrac23 n^3 \to \tfrac13 n^3`, or
    nothing where the Cholesky factor is needed anyway; no overflow. Declines unless the matrix is
    proven positive definite, and without a solve or a Cholesky factor of the same matrix.
    """
    det, order = _through_dimshuffle(_without_abs(node.inputs[0]))
    match det.owner_op_and_inputs:
        case (Blockwise(Det()), matrix) if is_real_float(matrix):
            pass
        case _:
            return None
    core = matrix_view(matrix).core
    partners = [
        client
        for client, _ in uses(fgraph, core)
        if isinstance(core_op(client.op), Solve | Cholesky)
    ]
    if not partners or not is_proven_posdef(fgraph, core):
        return None
    chol = pt.linalg.cholesky(matrix)
    chol = next((c.outputs[0] for c in partners if equal_nodes(c, chol.owner)), chol)
    diag = pt.diagonal(chol, axis1=-2, axis2=-1)
    logdet = dimshuffled(2.0 * sum_over(pt.log(diag), (diag.type.ndim - 1,)), order)
    copy_stack_trace(node.outputs[0], logdet)
    return [logdet.astype(node.outputs[0].type.dtype)]


@recognize
@node_rewriter([log])
def log_prod_of_cholesky_diagonal(fgraph, node):
    r"""log(expand_dims(prod(diag(L)))) -> expand_dims(sum(log(diag(L)))), L a Cholesky factor.

    PyTensor does this for the bare product; broadcasting against rows puts the expansion between.
    Declines for any other product, whose entries may be negative.
    """
    prod, order = _through_dimshuffle(node.inputs[0])
    if prod is node.inputs[0] or prod.owner is None or not isinstance(prod.owner.op, Prod):
        return None
    [diag] = prod.owner.inputs
    if diag.owner is None or not is_core_diagonal(diag.owner):
        return None
    if not isinstance(core_op(diag.owner.inputs[0].owner_op), Cholesky):
        return None
    total = sum_over(pt.log(diag), reduced_axes(prod.owner))
    copy_stack_trace(node.outputs[0], total)
    return [dimshuffled(total, order)]


def equal_nodes(left: Apply, right: Apply) -> bool:
    """Whether two nodes compute the same."""
    return left.op == right.op and left.inputs == right.inputs


def _without_abs(var: Variable) -> Variable:
    match var.owner_op_and_inputs:
        case (Elemwise(scalar_op=Abs()), inner):
            return inner
    return var


def _through_dimshuffle(var: Variable) -> tuple[Variable, tuple[int | str, ...]]:
    """The variable below an expansion of dimensions, perhaps under ``abs``, and the expansion."""
    match var.owner_op_and_inputs:
        case (DimShuffle(new_order=order), inner):
            return _without_abs(inner), tuple(order)
    return var, tuple(range(var.type.ndim))
