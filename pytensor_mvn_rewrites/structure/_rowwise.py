r"""Linear functions of rows: constants with many rows, replaced by constants with few.

A mean that is linear in the parameters, with a constant design, has rows

.. math:: \mu_r = f(c_r), \qquad f \text{ linear},

where :math:`c_r` holds row r of every constant that has rows, and the number 1 for what all rows
share. Then :math:`f(C)` with the constants stacked to :math:`C` obeys
:math:`Q^\top f(C) = f(Q^\top C)`: the graph of f, applied to other constants.

Parameters that are gathered with a constant index are the same for all rows of a *cell*: those rows
that agree in every index. f may contain products with them, and the identity holds cell by cell.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.scalar.basic import Add, Cast, Mul, Neg, Sub, TrueDiv
from pytensor.tensor.basic import Alloc, Join
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.math import Dot, Sum
from pytensor.tensor.shape import SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor, indices_from_subtensor

from pytensor_mvn_rewrites.graph import Tensor, is_real_float, positions_of, reduced_axes
from pytensor_mvn_rewrites.proofs.constants import constant_value


class NotRowwise(Exception):
    """The rows are not a linear function of rows of constants; the message says why."""


@dataclass
class RowwiseGraph:
    """Rebuilds a graph whose rows are a linear function of rows of constants.

    Attributes
    ----------
    n_rows : int
        Number of rows.
    leaf : callable
        Gets a constant as an array of shape (n_rows, ...), rows first, and returns its
        replacement, rows first.
    gather : callable
        Gets a constant vector of n_rows indices and returns its replacement.
    """

    n_rows: int
    leaf: Callable[[np.ndarray], Tensor]
    gather: Callable[[np.ndarray], Tensor]
    _rows: dict = field(default_factory=dict)
    _same: dict = field(default_factory=dict)

    def __call__(self, var: Tensor, axis: int) -> Tensor:
        """`var` with other rows along `axis`.

        Raises
        ------
        NotRowwise
            If `var` is not linear in rows of constants.
        """
        key = var, axis
        if key not in self._rows:
            self._rows[key] = self._with_other_rows(var, axis)
        return self._rows[key]

    def _with_other_rows(self, var: Tensor, axis: int) -> Tensor:
        if (same := self._same_in_cell(var, axis)) is not None:
            # linear in a column of ones
            return self._ones(var.type.ndim, axis) * same
        if (data := constant_value(var)) is not None:
            return self._leaf(data, axis)
        match var.owner_op_and_inputs:
            case (Elemwise(scalar_op=Add() | Sub() | Neg()) as op, *inputs):
                return op(*[self(inp, axis) for inp in inputs])
            case (Elemwise(scalar_op=Cast()), inner) if is_real_float(inner, var):
                return self(inner, axis).astype(var.type.dtype)
            case (Elemwise(scalar_op=Mul()) as op, *inputs):
                return op(*self._only_one(inputs, axis))
            case (Elemwise(scalar_op=TrueDiv()), numerator, denominator) if (
                same := self._same_in_cell(denominator, axis)
            ) is not None:
                return self(numerator, axis) / same
            case (DimShuffle(new_order=order) as op, inner):
                return op(self(inner, int(order[axis])))
            case (Sum(), inner):
                axes = reduced_axes(var.owner)
                kept = [i for i in range(inner.type.ndim) if i not in axes]
                return self(inner, kept[axis]).sum(axis=axes)
            case (Join(axis=joined), *inputs) if joined != axis:
                return pt.join(joined, *[self(inp, axis) for inp in inputs])
            case (Dot() | Blockwise(core_op=Dot()), left, right) if left.type.ndim <= 2:
                return self._dot(left, right, axis)
            case (SpecifyShape(), inner, *_):
                return self(inner, axis)
            case (Alloc(), inner, *shape):
                return self._alloc(inner, shape, axis)
            case (Subtensor(idx_list=idx_list), inner, *indices):
                return self._subtensor(inner, indices_from_subtensor(indices, idx_list), axis)
        name = var.owner.op if var.owner is not None else f"{var}, which is no constant"
        raise NotRowwise(f"not linear in constant rows: {name}")

    def _leaf(self, data: np.ndarray, axis: int) -> Tensor:
        if data.shape[axis] != self.n_rows or data.dtype.kind not in "iuf":
            raise NotRowwise("a constant of another length")
        return pt.moveaxis(self.leaf(np.moveaxis(data, axis, 0)), 0, axis)

    def _ones(self, ndim: int, axis: int) -> Tensor:
        return self._leaf(np.ones([self.n_rows if i == axis else 1 for i in range(ndim)]), axis)

    def _same_in_cell(self, var: Tensor, axis: int) -> Tensor | None:
        """`var` with other rows, if it does not differ among the rows of a cell; else None."""
        key = var, axis
        if key not in self._same:
            self._same[key] = self._with_rows_of_cells(var, axis)
        return self._same[key]

    def _with_rows_of_cells(self, var: Tensor, axis: int) -> Tensor | None:
        if var.type.shape[axis] == 1:
            return var
        match var.owner_op_and_inputs:
            case (AdvancedSubtensor(idx_list=idx_list), source, *indices) if axis == 0:
                first, *others = indices_from_subtensor(indices, idx_list)
                index = positions_of(first)
                if (
                    index is not None
                    and len(index) == self.n_rows
                    and all(isinstance(i, slice) or i.type.ndim == 0 for i in others)
                ):
                    return source[(self.gather(index), *others)]
            case (Elemwise() as op, *inputs) if len(var.owner.outputs) == 1:
                same = [self._same_in_cell(inp, axis) for inp in inputs]
                return None if any(inp is None for inp in same) else op(*same)
            case (DimShuffle(new_order=order) as op, inner):
                below = self._same_in_cell(inner, int(order[axis]))
                return None if below is None else op(below)
        return None

    def _only_one(self, inputs, axis: int) -> list[Tensor]:
        """The inputs of a product, of which one may differ among the rows of a cell."""
        same = [self._same_in_cell(inp, axis) for inp in inputs]
        if sum(other is None for other in same) != 1:
            raise NotRowwise("a product of two terms that differ from row to row")
        return [
            self(inp, axis) if other is None else other
            for inp, other in zip(inputs, same, strict=True)
        ]

    def _dot(self, left: Tensor, right: Tensor, axis: int) -> Tensor:
        """The rows of a product are those of the left matrix, its columns those of the right."""
        if axis == 0 and left.type.ndim == 2:
            return pt.dot(self(left, 0), right)
        return pt.dot(left, self(right, 1))

    def _alloc(self, inner: Tensor, shape, axis: int) -> Tensor:
        rows = self(pt.expand_dims(inner, tuple(range(len(shape) - inner.type.ndim))), axis)
        return pt.alloc(rows, *shape[:axis], rows.shape[axis], *shape[axis + 1 :])

    def _subtensor(self, inner: Tensor, indices, axis: int) -> Tensor:
        """Indices that leave the rows whole."""
        position = -1
        for inner_axis in range(inner.type.ndim):
            index = indices[inner_axis] if inner_axis < len(indices) else slice(None)
            position += isinstance(index, slice)
            if isinstance(index, slice) and position == axis:
                if index != slice(None):
                    break
                return self(inner, inner_axis)[tuple(indices)]
        raise NotRowwise("a part of the rows")


def linear_in_rows(var: Variable, axis: int, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The constants that the rows of `var` are a linear function of.

    Returns
    -------
    columns : ndarray, shape (n_rows, c)
        All columns of all constants, each different one once.
    indices : ndarray of int, shape (n_rows, k)
        The constant vectors that parameters are indexed by.

    Raises
    ------
    NotRowwise
        If `var` is not linear in rows of constants.
    """
    if not n_rows:
        raise NotRowwise("no rows")
    columns: dict[bytes, np.ndarray] = {}
    indices: dict[bytes, np.ndarray] = {}

    def leaf(data: np.ndarray) -> Tensor:
        for column in data.reshape(n_rows, -1).T.astype("float64"):
            columns.setdefault(column.tobytes(), column)
        return pt.constant(data)

    def gather(index: np.ndarray) -> Tensor:
        indices.setdefault(index.tobytes(), index)
        return pt.constant(index)

    try:
        RowwiseGraph(n_rows, leaf, gather)(var, axis)
    except RecursionError:
        # canonicalization makes long sums flat
        raise NotRowwise("too deep a graph") from None
    return (
        np.stack(list(columns.values()), axis=1),
        np.stack(list(indices.values()), axis=1) if indices else np.zeros((n_rows, 0), int),
    )


def with_other_rows(
    var: Variable, axis: int, columns: np.ndarray, new_columns: np.ndarray, representative
) -> Tensor:
    """`var` as the same function of other rows.

    Parameters
    ----------
    var : tensor variable
    axis : int
        Axis of the rows.
    columns : ndarray, shape (n_rows, c)
        From `linear_in_rows`.
    new_columns : ndarray, shape (new_rows, c)
    representative : ndarray of int, shape (new_rows,)
        For each new row an old one with the same indices.
    """
    n_rows, new_rows = len(columns), len(new_columns)
    position = {column.tobytes(): k for k, column in enumerate(np.ascontiguousarray(columns.T))}

    def leaf(data: np.ndarray) -> Tensor:
        flat = data.reshape(n_rows, -1).T.astype("float64")
        new = new_columns[:, [position[column.tobytes()] for column in flat]]
        # the R of integers has fractions, and that of short floats more digits than these
        return pt.constant(new.reshape(new_rows, *data.shape[1:]).astype(var.type.dtype))

    def gather(index: np.ndarray) -> Tensor:
        return pt.constant(index[representative])

    return RowwiseGraph(n_rows, leaf, gather)(var, axis).astype(var.type.dtype)
