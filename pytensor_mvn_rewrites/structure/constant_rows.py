"""Rows of constant data that share a covariance."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pymc.logprob.utils import CheckParameterValue
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Apply, Constant
from pytensor.scalar.basic import Cast
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import All, Sum
from pytensor.tensor.subtensor import AdvancedSubtensor

from pytensor_mvn_rewrites.graph import Tensor, in_graph_order, nodes_with, reduced_axes
from pytensor_mvn_rewrites.names import collapsed, densities_of
from pytensor_mvn_rewrites.ops import MvNormalLogp, inv_quad_logdet
from pytensor_mvn_rewrites.ops.check import BatchedCheck
from pytensor_mvn_rewrites.pipeline import FREEZE, Declined, Fired, record, structure
from pytensor_mvn_rewrites.proofs.constants import constant_value
from pytensor_mvn_rewrites.structure._gathers import gathered
from pytensor_mvn_rewrites.structure._rowwise import NotRowwise, linear_in_rows, with_other_rows

#: Do not spend more multiplications than this on the QR factorizations of one density.
MAX_WORK = 2e10


@structure
def constant_rows_are_compressed(fgraph):
    r"""Sum over R rows of MvNormalLogp(Y, f(C), S), Y and C constant -> at most c rows and weights.

    With the rows of the mean linear in the rows of constants, :math:`\mu_r = f(c_r)`, stack
    :math:`[C, Y] = Q T` (QR) and :math:`Y = Q T_Y`:

    .. math:: \sum_{r=1}^R \log N(y_r \mid f(c_r), \Sigma) = -\tfrac12
              \sum_{i=1}^{c} \|L^{-1} (T_{Y,i} - f(T_{C,i}))\|^2
              - R \left(\tfrac12 \log|\Sigma| + \tfrac n2 \log 2\pi\right)

    because :math:`\|Q A\| = \|A\|` for each whitened column. The same for each group of rows when
    the covariance is ``batch[index]`` with a constant index, or the mean holds ``mu[index]``.
    QR, not :math:`C^\top C`: the condition number is not squared.

    An infinite parameter makes the result minus infinity or NaN as it does without the rule: the
    zeros of T are too small a number instead (see :func:`without_new_zeros`). Several at once may
    exchange the two, because infinities of different signs meet in other rows.

    Cost: R rows become at most c, the number of columns of C and Y; an evaluation no longer
    depends on the number of observations. Densities of equal n and c get equally many rows, by
    rows of zeros where needed, so that ragged loops can be re-rolled.

    Declines when the value is not constant (``pm.Data`` may change), the mean not linear, a
    constant not finite, log-densities are wanted row by row, or nothing gets smaller.
    """
    candidates = []
    for node in in_graph_order(fgraph, nodes_with(fgraph, MvNormalLogp)):
        try:
            if (candidate := ConstantRows.of(fgraph, node)) is not None:
                candidates.append(candidate)
        except NotRowwise as reason:
            of = collapsed(densities_of(fgraph, node))
            name = "constant_rows_are_compressed"
            record(Declined("structure", name, *reason.args, variables=of))
    alike = defaultdict(list)
    for candidate in candidates:
        alike[candidate.n_groups, candidate.columns.shape[1], candidate.n].append(candidate)
    replacements = []
    for bucket in alike.values():
        n_new = max(candidate.n_needed for candidate in bucket)
        if sum(c.n_rows for c in bucket) <= sum(c.n_groups * n_new for c in bucket):
            continue
        for candidate in bucket:
            replacements += candidate.replacements(n_new)
            record(Fired("structure", "constant_rows_are_compressed", candidate.describe(n_new)))
    fgraph.replace_all(replacements, reason="constant_rows_are_compressed", import_missing=True)


@dataclass
class ConstantRows:
    """The log-density of constant rows, summed.

    Attributes
    ----------
    node : Apply
        The ``MvNormalLogp``.
    total : tensor
        The sum of its log-densities.
    checks : list of tensor
        The conditions ``all(posdef)``.
    matrix : tensor, shape (n, n) or (G, 1, n, n)
        One matrix, or one for each of the `n_groups` groups that have rows.
    columns : ndarray, shape (n_rows, c)
        The constants that the differences to the mean are a linear function of.
    cells : list of list of ndarray of int
        For each group the rows of each of its cells. The rows of a cell have all indices alike.
    """

    node: Apply
    total: Tensor
    checks: list[Tensor]
    matrix: Tensor
    columns: np.ndarray
    cells: list[list[np.ndarray]]

    @classmethod
    def of(cls, fgraph, node: Apply) -> "ConstantRows | None":
        """The rows of `node`; None or NotRowwise if they are not what the rule takes."""
        value, mu, matrix = list[Tensor](node.inputs)
        if value.type.ndim != 2 or mu.type.ndim > 2:
            return None
        if isinstance(value, SharedVariable):
            raise NotRowwise("the value may change (pm.Data)", FREEZE)
        if not isinstance(value, Constant) or (n_rows := value.type.shape[0]) < 2:
            return None
        total, checks = summed(fgraph, node), conditions(fgraph, node)
        if total is None or checks is None:
            raise NotRowwise("log-densities row by row are used")
        if not np.isfinite(value.data).all():
            raise NotRowwise("the value is not finite")
        groups = np.zeros(n_rows, int)
        if matrix.type.ndim == 3 and matrix.type.shape[0] != 1:
            found = gathered(matrix)
            index = None if found is None else constant_value(found.rows)
            if found is None:
                # a batch: each row has a covariance of its own
                return None
            if index is None or index.shape != (n_rows,):
                raise NotRowwise("the covariance of each row depends on data or parameters")
            present, groups = np.unique(index, return_inverse=True)
            matrix = found.batch
            if not np.array_equal(present, np.arange(matrix.type.shape[0] or -1)):
                matrix = matrix[present]
            matrix = matrix[:, None]
        elif matrix.type.ndim == 3:
            matrix = matrix[0]
        elif matrix.type.ndim != 2:
            return None
        columns, indices = linear_in_rows(difference(value, mu), 0, n_rows)
        if not np.isfinite(columns).all():
            raise NotRowwise("a constant of the mean is not finite")
        if n_rows * columns.shape[1] ** 2 > MAX_WORK:
            raise NotRowwise(f"{columns.shape[1]} columns are too many")
        return cls(node, total, checks, matrix, columns, cells_of(groups, indices))

    @property
    def n(self) -> int:
        """Length of the vectors."""
        return self.node.inputs[0].type.shape[-1]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.columns)

    @property
    def n_groups(self) -> int:
        """Number of matrices that have rows."""
        return len(self.cells)

    @property
    def n_needed(self) -> int:
        """The number of rows that the largest group needs."""
        c = self.columns.shape[1]
        return max(sum(min(len(cell), c) for cell in cells) for cells in self.cells)

    def describe(self, n_new: int) -> str:
        """What is compressed, for people."""
        name = self.node.inputs[0].name or "value"
        return f"{name}: {self.n_rows} rows -> {self.n_groups * n_new}"

    def replacements(self, n_new: int) -> list[tuple[Tensor, Tensor]]:
        """(Old, new) variables: the sum, with `n_new` rows for each group, and the checks."""
        value, mu, _ = list[Tensor](self.node.inputs)
        new_columns, representative = self.compressed(n_new)
        delta = with_other_rows(difference(value, mu), 0, self.columns, new_columns, representative)
        dtype = delta.type.dtype
        weights = np.array([[sum(map(len, cells))] for cells in self.cells]) / n_new
        if self.matrix.type.ndim == 2:
            [weights] = weights
        else:
            delta = in_groups(delta, (self.n_groups, n_new))
        quaddist, half_logdet, posdef = inv_quad_logdet(delta, self.matrix, self.node.op.param)
        norm = pt.constant(-0.5 * math.log(2 * math.pi) * self.n_rows * self.n, dtype=dtype)
        total = (-0.5 * quaddist - pt.constant(weights, dtype=dtype) * half_logdet).sum() + norm
        return [
            *((check, posdef.all()) for check in self.checks),
            (
                self.total,
                rewrap(self.total.owner.inputs[0], self.node.outputs[0], total, posdef.all()),
            ),
        ]

    def compressed(self, n_new: int) -> tuple[np.ndarray, np.ndarray]:
        """The new columns, and for each of their rows an old row of its cell."""
        dtype = self.node.outputs[0].type.dtype
        new_columns = np.zeros((self.n_groups, n_new, self.columns.shape[1]))
        representative = np.zeros((self.n_groups, n_new), int)
        for g, cells in enumerate(self.cells):
            stop = 0
            for cell in cells:
                rows = self.columns[cell]
                if len(rows) > rows.shape[1]:
                    rows = np.linalg.qr(rows, mode="r")
                start, stop = stop, stop + len(rows)
                new_columns[g, start:stop] = without_new_zeros(rows, self.columns[cell], dtype)
                representative[g, start:stop] = cell[0]
            padding, [cell, *_] = new_columns[g, stop:], cells
            new_columns[g, stop:] = without_new_zeros(padding, self.columns[cell], dtype)
            representative[g, stop:] = cell[0]
        return new_columns.reshape(-1, new_columns.shape[-1]), representative.reshape(-1)


def without_new_zeros(rows: np.ndarray, old_rows: np.ndarray, dtype: str) -> np.ndarray:
    """Replace zeros in columns that had none before by a number that changes no result.

    Zero times an infinite parameter is NaN, where the old rows have infinity. The number vanishes
    next to any other, and its square is not subnormal, which would be slow.
    """
    is_new = (rows == 0) & (old_rows != 0).all(axis=0)
    return np.where(is_new, np.sqrt(np.finfo(dtype).tiny), rows)


def in_groups(rows: Tensor, shape: tuple[int, int]) -> Tensor:
    """`rows`, shape (G * k, n), as shape (G, k, n), without copies of what a group shares."""
    if rows.type.shape[0] == 1:
        return rows[None]
    match rows.owner_op_and_inputs:
        case (Elemwise() as op, *inputs):
            return op(*[in_groups(inp, shape) for inp in inputs])
        case (AdvancedSubtensor(idx_list=(0,)), batch, Constant() as index) if (
            index.type.ndim == 1 and index.type.dtype != "bool"
        ):
            of_group = index.data.reshape(shape)
            if (of_group == of_group[:, :1]).all():
                is_all = np.array_equal(of_group[:, 0], np.arange(batch.type.shape[0] or -1))
                return (batch if is_all else batch[of_group[:, 0]])[:, None]
    return rows.reshape((*shape, rows.type.shape[1] or rows.shape[1]))


def difference(value: Tensor, mu: Tensor) -> Tensor:
    """The difference to the mean, shape (R, n)."""
    return value - (mu if mu.type.ndim == 2 else mu[None, :])


def summed(fgraph, node: Apply) -> Tensor | None:
    """The only thing that the log-densities are used for, if that is their sum."""
    var = node.outputs[0]
    while len(clients := fgraph.clients[var]) == 1:
        client, position = clients[0]
        match client.op:
            case Sum() if len(reduced_axes(client)) == var.type.ndim:
                return client.outputs[0]
            case Elemwise(scalar_op=Cast()):
                var = client.outputs[0]
            case CheckParameterValue() if position == 0 and all(
                inp.type.ndim == 0 or inp is node.outputs[1] for inp in client.inputs[1:]
            ):
                var = client.outputs[0]
            case _:
                return None
    return None


def conditions(fgraph, node: Apply) -> list[Tensor] | None:
    """The uses of `posdef`, if they ask only whether all matrices are positive definite."""
    # a check of each row is part of what is summed
    clients = [c for c, _ in fgraph.clients[node.outputs[1]] if not isinstance(c.op, BatchedCheck)]
    if not all(isinstance(c.op, All) and len(reduced_axes(c)) == 1 for c in clients):
        return None
    return [client.outputs[0] for client in clients]


def rewrap(var: Tensor, inner: Tensor, new: Tensor, posdef: Tensor) -> Tensor:
    """The checks and casts between `inner` and `var`, around `new`."""
    if var is inner:
        return new
    below, *others = var.owner.inputs
    op = var.owner.op
    if isinstance(op, BatchedCheck):
        op, others = CheckParameterValue(op.msg, op.can_be_replaced_by_ninf), [posdef]
    return op(rewrap(below, inner, new, posdef), *others)


def cells_of(groups: np.ndarray, indices: np.ndarray) -> list[list[np.ndarray]]:
    """Rows with equal group and indices, cell by cell, for each group."""
    keys = np.column_stack([groups, indices])
    _, cell_of_row = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(cell_of_row, kind="stable")
    cells: list[list[np.ndarray]] = [[] for _ in range(groups.max() + 1)]
    for cell in np.split(order, np.flatnonzero(np.diff(cell_of_row[order])) + 1):
        cells[groups[cell[0]]].append(cell)
    return cells
