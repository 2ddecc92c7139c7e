"""The Gaussian formula through a Cholesky factor, as PyMC, textbooks and PyTensor write it."""

from dataclasses import dataclass, field
from itertools import chain

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.graph.rewriting.unify import OpPattern
from pytensor.scalar.basic import GT, Log
from pytensor.tensor.basic import ExtractDiag
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.linalg.decomposition.cholesky import Cholesky
from pytensor.tensor.linalg.solvers.triangular import SolveTriangular
from pytensor.tensor.math import All, Dot, Sum
from pytensor.tensor.rewriting.blockwise import blockwise_of

from pytensor_mvn_rewrites.graph import (
    Axis,
    MatrixView,
    Tensor,
    core_op,
    dimshuffled,
    drop_axis,
    is_core_diagonal,
    is_elementwise_function_of,
    is_real_float,
    is_square_of,
    matrix_view,
    reduced_axes,
    sum_over,
    transposed,
    uses,
    without_leading_ones,
)
from pytensor_mvn_rewrites.ops import inv_quad_logdet
from pytensor_mvn_rewrites.pipeline import recognize
from pytensor_mvn_rewrites.proofs.constants import scalar_constant


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

    A factor that comes from elsewhere gives ``InvQuadLogdet{chol}(d, L)``. Cost: the same flops,
    one node instead of 8, and a closed-form gradient instead of the one through the Cholesky.
    Declines when the factor has any other use (it would be computed twice), and when only one half
    of the pair is there.
    """
    view = matrix_view(node.inputs[0])
    matrix, param = parametrization(view)
    if not is_real_float(matrix, node.inputs[1]):
        return None
    formula = uses_of_factor(fgraph, view)
    if formula is None or not formula.quaddists or not formula.half_logdets:
        return None

    replacements: dict[Variable, Tensor] = {}
    halves = None
    for quaddist in formula.quaddists:
        rows = align(quaddist.solve, matrix)
        quad, half_logdet, posdef = inv_quad_logdet(rows.delta, rows.matrix, param)
        copy_stack_trace(quaddist.out, quad)
        if halves is None:
            halves = replace_halves(fgraph, formula, quaddist, rows, half_logdet, posdef)
            replacements |= halves or {}
        replacements[quaddist.out] = rows.reduced(quad, quaddist)
    return None if halves is None else replacements


def parametrization(view: MatrixView) -> tuple[Variable, str]:
    """The matrix behind a factor that is used as a lower one, and how it is parametrized."""
    match view.core.owner_op_and_inputs:
        case (Blockwise(Cholesky(lower=lower)), matrix) if lower is not view.transposed:
            # the upper factor is made from the upper triangle
            return (matrix if lower else transposed(matrix)), "cov"
    return (transposed(view.core) if view.transposed else view.core), "chol"


def uses_of_factor(fgraph, factor: MatrixView) -> Formula | None:
    """Sort the uses of the Cholesky factor; None when one of them is not part of the formula."""
    formula = Formula()
    for client, view in chain(*(uses(fgraph, twin) for twin in twins(fgraph, factor.core))):
        match client.op:
            case Blockwise(SolveTriangular(lower=True, unit_diagonal=False)):
                quaddist = match_quaddist(fgraph, client) if client.inputs[0] is view else None
                # L in one solve and L' in another are two factors
                if quaddist is None or matrix_view(view).transposed is not factor.transposed:
                    return None
                formula.quaddists.append(quaddist)
            case ExtractDiag() if matrix_view(view).core is view and is_core_diagonal(client):
                if not add_uses_of_diagonal(fgraph, client.outputs[0], formula):
                    return None
            case _:
                return None
    return formula


def twins(fgraph, factor: Variable) -> list[Variable]:
    """All nodes that compute the same Cholesky factor: they merge only after these rewrites."""
    if not isinstance(core_op(factor.owner_op), Cholesky):
        return [factor]
    [matrix] = factor.owner.inputs
    return [
        client.outputs[0] for client, _ in fgraph.clients[matrix] if client.op == factor.owner_op
    ]


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
                reduction: type[CAReduce] = Sum
                out, found = log_diag, formula.half_logdets
            case Apply(op=Elemwise(scalar_op=GT()), inputs=[left, right], outputs=[positive]) if (
                left is diag and scalar_constant(right) == 0
            ):
                reduction = All
                out, found = positive, formula.posdefs
            case _:
                return False
        for total, _ in fgraph.clients[out]:
            if not isinstance(total.op, reduction) or core_axis not in reduced_axes(total):
                return False
            found.append(Reduction(total.outputs[0], drop_axis(reduced_axes(total), core_axis)))
    return True


@dataclass
class AlignedRows:
    """The arguments of the op, and the way back to the batch dimensions of the formula."""

    delta: Variable
    matrix: Variable
    #: For each batch axis of the formula the batch axis of the matrix, or "x".
    positions: tuple[Axis, ...]
    #: The batch axes of the formula that the op has: the others have length 1.
    keep: tuple[int, ...]
    #: Which batch dimensions of the matrix have length 1.
    matrix_batch: tuple[bool, ...]

    def index(self, axis: int) -> Axis:
        """The batch axis of the op that is `axis` of the formula."""
        return self.keep.index(axis) if axis in self.keep else "x"

    def reduced(self, quad: Tensor, quaddist: Quaddist) -> Tensor:
        """`quad` with the batch dimensions of the formula, those of the reduction summed."""
        ndim = len(self.positions)
        axes = tuple(self.keep.index(axis) for axis in quaddist.axes if axis in self.keep)
        total = sum_over(quad, axes)
        left = [axis for axis in self.keep if axis not in quaddist.axes]
        order = tuple(
            left.index(axis) if axis in left else "x"
            for axis in range(ndim)
            if axis not in quaddist.axes
        )
        missing = quaddist.out.type.ndim - len(order)
        return dimshuffled(total, ("x",) * missing + order)

    def per_row(self, var: Tensor) -> Tensor:
        """An output of the op with all batch dimensions of the formula."""
        return dimshuffled(var, tuple(self.index(axis) for axis in range(len(self.positions))))

    def per_matrix(self, var: Tensor, *, of_first_row: bool = False) -> Tensor | None:
        """An output of the op with the batch dimensions of the matrix; None if it has more.

        With `of_first_row`, that of the first row of those that share a matrix, if there is
        provably one.
        """
        index: list[int | slice] = []
        for i, axis in enumerate(self.keep):
            position = self.positions[axis]
            if position != "x" and var.type.broadcastable[i] == self.matrix_batch[position]:
                index.append(slice(None))
            elif position == "x" and of_first_row and self.n_rows(i):
                index.append(0)
            else:
                return None
        var = var[tuple(index)] if 0 in index else var
        left = [self.positions[axis] for axis in self.keep if self.positions[axis] != "x"]
        order = (left.index(i) if i in left else "x" for i in range(len(self.matrix_batch)))
        return dimshuffled(var, tuple(order))

    def n_rows(self, i: int) -> int | None:
        """The length of the batch axis i of the op, along which only delta varies, if known."""
        return self.delta.type.shape[i - len(self.keep) - 1]


def align(solve: Apply, matrix: Variable) -> AlignedRows:
    """Right-hand sides of `solve` as rows, and the matrix with the batch dimensions to match.

    Dimensions of length 1 that neither needs are dropped.
    """
    delta = solve.inputs[1]
    positions = matrix_view(solve.inputs[0]).batch_order
    if solve.op.core_op.b_ndim == 2:
        delta = transposed(delta)
        positions = (*positions, "x")
    n_batch = len(positions)
    matrix_batch = tuple(matrix.type.broadcastable[:-2])
    keep = tuple(
        axis
        for axis, position in enumerate(positions)
        if not (delta.type.broadcastable[axis] and (position == "x" or matrix_batch[position]))
    )
    delta = without_leading_ones(dimshuffled(delta, (*keep, n_batch)), 1)
    core = matrix.type.ndim - 2
    matrix = dimshuffled(matrix, (*(positions[axis] for axis in keep), core, core + 1))
    return AlignedRows(delta, without_leading_ones(matrix, 2), positions, keep, matrix_batch)


def replace_halves(
    fgraph, formula: Formula, quaddist: Quaddist, rows: AlignedRows, half_logdet, posdef
):
    """Replacements for the log-determinants and checks by outputs of the op; None if impossible.

    The op gives one for each row of delta, the formula one for each matrix. Where there are more
    rows than matrices, the elementwise ops that combine it with the quadratic form take the rows'.
    """
    replacements: dict[Variable, Tensor] = {}
    per_matrix = rows.per_matrix(posdef, of_first_row=bool(quaddist.axes))
    for check in formula.posdefs:
        if check.out.type.ndim == 0:
            replacements[check.out] = posdef.all() if posdef.type.ndim else posdef
        elif per_matrix is None:
            return None
        else:
            replacements[check.out] = per_matrix.all(axis=check.axes) if check.axes else per_matrix
    per_matrix = rows.per_matrix(half_logdet, of_first_row=bool(quaddist.axes))
    for half in formula.half_logdets:
        if per_matrix is not None:
            replacements[half.out] = sum_over(per_matrix, half.axes)
            continue
        if half.axes or quaddist.axes:
            return None
        combined = combine_with_rows(fgraph, half.out, rows.per_row(half_logdet), quaddist.out)
        if combined is None:
            return None
        replacements |= combined
    return replacements


def combine_with_rows(fgraph, old, new, quad) -> dict[Variable, Tensor] | None:
    """Put `new`, of the shape of `quad`, in the place of `old`, which broadcasts to that shape."""
    replacements: dict[Variable, Tensor] = {}
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
