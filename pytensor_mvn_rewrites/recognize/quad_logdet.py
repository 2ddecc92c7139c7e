"""The Gaussian formula through a Cholesky factor, as PyMC, textbooks and PyTensor write it."""

from dataclasses import dataclass, field

import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.graph.rewriting.unify import OpPattern
from pytensor.scalar.basic import GT, Log
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.linalg.decomposition.cholesky import Cholesky
from pytensor.tensor.linalg.solvers.triangular import SolveTriangular
from pytensor.tensor.math import All, Dot, Sum
from pytensor.tensor.rewriting.blockwise import blockwise_of
from pytensor.tensor.rewriting.linalg.utils import strip_left_expand_dims_and_transpose

from pytensor_mvn_rewrites.matching import (
    dimshuffled,
    drop_axis,
    is_core_diagonal,
    is_elementwise_function_of,
    is_real_float,
    is_square_of,
    reduced_axes,
    scalar_constant,
    squeezed,
    squeezed_left,
    uses,
)
from pytensor_mvn_rewrites.ops import inv_quad_logdet
from pytensor_mvn_rewrites.pipeline import recognize


@dataclass
class Reduction:
    """A reduction over the core axis and perhaps over batch axes."""

    out: Variable
    #: Batch axes over which it runs too.
    axes: tuple[int, ...]


@dataclass
class Quaddist(Reduction):
    """The sum of squares of a whitened vector."""

    solve: Apply


@dataclass
class Formula:
    """All uses of one Cholesky factor."""

    quaddists: list[Quaddist] = field(default_factory=list)
    half_logdets: list[Reduction] = field(default_factory=list)
    posdefs: list[Reduction] = field(default_factory=list)


@recognize
@node_rewriter([blockwise_of(OpPattern(SolveTriangular, lower=True, unit_diagonal=False))])
def quad_logdet_of_cholesky(fgraph, node):
    r"""sum((L^-1 d)**2), sum(log(diag(L))), all(diag(L) > 0) -> InvQuadLogdet(d, S), L = chol(S).

    .. math:: d^\top \Sigma^{-1} d = \|L^{-1} d\|^2, \qquad
              \tfrac12 \log|\Sigma| = \sum_i \log L_{ii}, \qquad \Sigma = L L^\top

    A factor that comes from elsewhere gives ``InvQuadLogdet{chol}(d, L)``. Cost: the same flops, one
    node instead of 8, and a closed-form gradient instead of the one through the Cholesky.
    Declines when the factor has any other use (it would be computed twice), and when only one half
    of the pair is there.
    """
    matrix, param, factor = matrix_of_factor(node.inputs[0])
    if not is_real_float(matrix, node.inputs[1]):
        return None
    formula = uses_of_factor(fgraph, factor)
    if formula is None or not formula.quaddists or not formula.half_logdets:
        return None

    replacements: dict[Variable, Variable] = {}
    halves_done = False
    for quaddist in formula.quaddists:
        quad, half_logdet, posdef = inv_quad_logdet(*aligned(quaddist.solve, matrix), param)
        copy_stack_trace(quaddist.out, quad)
        if not halves_done:
            halves = replace_halves(
                fgraph, formula, quaddist, factor.type.broadcastable[:-2], half_logdet, posdef
            )
            if halves is not None:
                replacements |= halves
                halves_done = True
        replacements[quaddist.out] = reduced(quad, quaddist)
    return replacements if halves_done else None


def matrix_of_factor(factor: Variable) -> tuple[Variable, str, Variable]:
    """The matrix, its parametrization, and the variable whose uses are those of the factor."""
    core, transposed = strip_left_expand_dims_and_transpose(factor)
    match core.owner_op_and_inputs:
        case (Blockwise(Cholesky(lower=lower)), matrix) if lower is not transposed:
            matrix = squeezed_left(matrix)
            # the upper factor is made from the upper triangle
            return (matrix if lower else matrix.mT), "cov", core
    return (core.mT if transposed else core), "chol", core


def uses_of_factor(fgraph, factor: Variable) -> Formula | None:
    """Sort the uses of the Cholesky factor; None when one of them is not part of the formula."""
    formula = Formula()
    for client, view in uses(fgraph, factor):
        match client.op:
            case Blockwise(SolveTriangular(lower=True, unit_diagonal=False)):
                quaddist = match_quaddist(fgraph, client) if client.inputs[0] is view else None
                if quaddist is None:
                    return None
                formula.quaddists.append(quaddist)
            case _ if is_core_diagonal(client):
                if not add_uses_of_diagonal(fgraph, client.outputs[0], formula):
                    return None
            case _:
                return None
    # L in one solve and L' in another are two factors
    solved = [quaddist.solve.inputs[0] for quaddist in formula.quaddists]
    if len({strip_left_expand_dims_and_transpose(view)[1] for view in solved}) > 1:
        return None
    return formula


def match_quaddist(fgraph, solve: Apply) -> Quaddist | None:
    """The sum of squares of the whitened vectors, if that is all they are for."""
    z = solve.outputs[0]
    core_axis = z.type.ndim - solve.op.core_op.b_ndim
    clients = {client for client, _ in fgraph.clients[z]}
    if len(clients) == 1 and isinstance((client := next(iter(clients))).op, DimShuffle):
        if not client.op.is_matrix_transpose or solve.op.core_op.b_ndim != 2:
            return None
        z, core_axis = client.outputs[0], z.type.ndim - 1
        clients = {client for client, _ in fgraph.clients[z]}
    if len(clients) != 1 or not is_square_of(client := clients.pop(), z):
        return match_inner_product(fgraph, solve)
    match fgraph.clients[client.outputs[0]]:
        case [(Apply(op=Sum()) as total, _)] if core_axis in (axes := reduced_axes(total)):
            return Quaddist(total.outputs[0], drop_axis(axes, core_axis), solve)
    return None


def match_inner_product(fgraph, solve: Apply) -> Quaddist | None:
    """``z @ z`` of one vector: PyTensor makes it a product of a row and a column."""
    [z] = solve.outputs
    if z.type.ndim != 1:
        return None
    views = [client for client, _ in fgraph.clients[z]]
    if not all(isinstance(view.op, DimShuffle) and view.op.is_expand_dims for view in views):
        return None
    products = {client for view in views for client, _ in fgraph.clients[view.outputs[0]]}
    match list(products):
        case [Apply(op=Dot() | Blockwise(Dot()), inputs=[left, right], outputs=[out])] if (
            left.type.shape[0] == 1 and right.type.shape[1] == 1 and left.owner and right.owner
        ):
            if left.owner in views and right.owner in views:
                # the inner product is a matrix of shape (1, 1)
                return Quaddist(out, (), solve)
    return None


def add_uses_of_diagonal(fgraph, diag: Variable, formula: Formula) -> bool:
    """Add the log-determinants and checks that use the diagonal; False when it has other uses."""
    core_axis = diag.type.ndim - 1
    for client, _ in fgraph.clients[diag]:
        match client:
            case Apply(op=Elemwise(scalar_op=Log()), outputs=[log_diag]):
                reduction, found = Sum, formula.half_logdets
                out = log_diag
            case Apply(op=Elemwise(scalar_op=GT()), inputs=[left, right], outputs=[positive]) if (
                left is diag and scalar_constant(right) == 0
            ):
                reduction, found = All, formula.posdefs
                out = positive
            case _:
                return False
        for total, _ in fgraph.clients[out]:
            if not isinstance(total.op, reduction) or core_axis not in reduced_axes(total):
                return False
            found.append(Reduction(total.outputs[0], drop_axis(reduced_axes(total), core_axis)))
    return True


def aligned(solve: Apply, matrix: Variable) -> tuple[Variable, Variable]:
    """Right-hand sides of `solve` as rows, and the matrix with a batch dimension for them.

    Leading batch dimensions of length 1 that the matrix lacks are dropped from the rows.
    """
    delta = solve.inputs[1]
    ndim = delta.type.ndim
    if solve.op.core_op.b_ndim == 2:
        delta = dimshuffled(delta, (*range(ndim - 2), ndim - 1, ndim - 2))
        if matrix.type.ndim > 2:
            matrix = pt.expand_dims(matrix, -3)
    return squeezed_left(delta, max(0, (ndim - 1) - (matrix.type.ndim - 2))), matrix


def sum_over(var: Variable, axes: tuple[int, ...]) -> Variable:
    """Sum as canonicalization would write it."""
    if not axes:
        return var
    return var.sum(axis=None if len(axes) == var.type.ndim else axes)


def reduced(quad: Variable, quaddist: Quaddist) -> Variable:
    """Sum `quad` over the batch axes of the reduction, in the shape of the variable it replaces."""
    z_batch_ndim = quaddist.solve.outputs[0].type.ndim - 1
    dropped = z_batch_ndim - quad.type.ndim
    axes = tuple(axis - dropped for axis in quaddist.axes if axis >= dropped)
    out = sum_over(quad, axes)
    missing = quaddist.out.type.ndim - out.type.ndim
    return pt.expand_dims(out, tuple(range(missing))) if missing else out


def replace_halves(fgraph, formula, quaddist, batch, half_logdet, posdef):
    """Replacements for the log-determinants and checks by outputs of the op; None if impossible.

    The op gives one for each row of delta, the formula one for each matrix. Where there are more
    rows than matrices, the elementwise ops that combine it with the quadratic form take the rows'.
    """
    extra = half_logdet.type.ndim - len(batch)
    full = (True,) * -extra + half_logdet.type.broadcastable
    same_batch = all(full[: max(extra, 0)]) and full[max(extra, 0) :] == batch
    if same_batch and extra > 0:
        half_logdet, posdef = (squeezed(v, tuple(range(extra))) for v in (half_logdet, posdef))
    elif same_batch and extra < 0:
        half_logdet, posdef = (
            pt.expand_dims(v, tuple(range(-extra))) for v in (half_logdet, posdef)
        )

    replacements: dict[Variable, Variable] = {}
    for check in formula.posdefs:
        if check.out.type.ndim == 0:
            replacements[check.out] = posdef.all() if posdef.type.ndim else posdef
        elif same_batch:
            replacements[check.out] = posdef.all(axis=check.axes) if check.axes else posdef
        else:
            return None
    for half in formula.half_logdets:
        if same_batch:
            replacements[half.out] = sum_over(half_logdet, half.axes)
            continue
        if half.axes or quaddist.axes:
            return None
        combined = combine_with_rows(fgraph, half.out, half_logdet, quaddist.out)
        if combined is None:
            return None
        replacements |= combined
    return replacements


def combine_with_rows(fgraph, old, new, quad) -> dict[Variable, Variable] | None:
    """Put `new`, of the shape of `quad`, in the place of `old`, which broadcasts to that shape."""
    replacements: dict[Variable, Variable] = {}
    for client, index in fgraph.clients[old]:
        match client.op:
            case DimShuffle(is_left_expand_dims=True):
                combined = combine_with_rows(fgraph, client.outputs[0], new, quad)
            case Elemwise():
                inputs = [inp if inp is not old else new for inp in client.inputs]
                if len([inp for inp in client.inputs if inp is old]) > 1 or len(client.outputs) > 1:
                    return None
                [out] = client.outputs
                others = [inp for i, inp in enumerate(client.inputs) if i != index]
                if any(is_elementwise_function_of(inp, quad) for inp in others):
                    combined = {out: client.op(*inputs)}
                elif out.type.broadcastable == old.type.broadcastable:
                    combined = combine_with_rows(fgraph, out, client.op(*inputs), quad)
                else:
                    return None
            case _:
                return None
        if combined is None:
            return None
        replacements |= combined
    return replacements
