r"""Linear functions of rows: constants with many rows, replaced by constants with few.

A mean that is linear in the parameters, with a constant design, has rows

.. math:: \mu_r = f(c_r), \qquad f \text{ linear},

where :math:`c_r` holds row r of every constant that has rows, and the number 1 for what all rows
share. Then :math:`f(C)` with the constants stacked to :math:`C` obeys
:math:`Q^\top f(C) = f(Q^\top C)`: the graph of f, applied to other constants.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.scalar.basic import Add, Cast, Mul, Neg, Sub, TrueDiv
from pytensor.tensor.basic import Alloc, Join
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.math import Dot, Sum
from pytensor.tensor.shape import SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor, indices_from_subtensor

from pytensor_mvn_rewrites.matching import Tensor, constant_value, is_real_float, reduced_axes


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

    def __call__(self, var: Tensor, axis: int) -> Tensor:
        """`var` with other rows along `axis`.

        Raises
        ------
        NotRowwise
            If `var` is not linear in rows of constants.
        """
        if var.type.shape[axis] == 1 and self.n_rows != 1:
            return self._ones(var.type.ndim, axis) * var
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
                denominator.type.shape[axis] == 1
            ):
                return self(numerator, axis) / denominator
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
            case (SpecifyShape() | Alloc(), inner, *_):
                return self._without_shape(var, inner, axis)
            case (Subtensor(idx_list=idx_list), inner, *indices):
                return self._subtensor(inner, indices_from_subtensor(indices, idx_list), axis)
            case (AdvancedSubtensor() as op, source, *_) if op._take_axis() == axis == 0:
                return self._take(var, source)
        name = var.owner.op if var.owner is not None else f"{var}, which is no constant"
        raise NotRowwise(f"not linear in constant rows: {name}")

    def _leaf(self, data: np.ndarray, axis: int) -> Tensor:
        if data.shape[axis] != self.n_rows or data.dtype.kind not in "iuf":
            raise NotRowwise("a constant of another length")
        return pt.moveaxis(self.leaf(np.moveaxis(data, axis, 0)), 0, axis)

    def _ones(self, ndim: int, axis: int) -> Tensor:
        """What all rows share is multiplied by it."""
        return self._leaf(np.ones([self.n_rows if i == axis else 1 for i in range(ndim)]), axis)

    def _only_one(self, inputs, axis: int) -> list[Tensor]:
        """The inputs of a product, of which one may differ from row to row."""
        varying = [k for k, inp in enumerate(inputs) if inp.type.shape[axis] != 1]
        if len(varying) != 1:
            raise NotRowwise("a product of two terms that differ from row to row")
        return [self(inp, axis) if k in varying else inp for k, inp in enumerate(inputs)]

    def _dot(self, left: Tensor, right: Tensor, axis: int) -> Tensor:
        if left.type.ndim == 2 and axis == 0:
            return pt.dot(self(left, 0), right)
        if right.type.ndim == 2 and axis == left.type.ndim - 1:
            return pt.dot(left, self(right, 1))
        raise NotRowwise("a product that sums over the rows")

    def _without_shape(self, var: Tensor, inner: Tensor, axis: int) -> Tensor:
        """A shape is known or broadcast: it has no part in the values."""
        missing = var.type.ndim - inner.type.ndim
        inner_axis = axis - missing
        if inner_axis < 0:
            inner, inner_axis = pt.expand_dims(inner, tuple(range(missing))), axis
        rows = self(inner, inner_axis)
        for other, length in enumerate(inner.type.shape):
            if other != inner_axis and length == 1 and var.type.shape[other + missing] != 1:
                raise NotRowwise("an axis besides the rows that is broadcast")
        return rows

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

    def _take(self, var: Tensor, source: Tensor) -> Tensor:
        index = constant_value(var.owner.inputs[1])
        if index is None or index.shape != (self.n_rows,):
            raise NotRowwise("an index that is no constant")
        return self._ones(var.type.ndim, 0) * source[self.gather(index)]


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
    columns: dict[bytes, np.ndarray] = {}
    indices: dict[bytes, np.ndarray] = {}

    def leaf(data: np.ndarray) -> Tensor:
        for column in data.reshape(n_rows, -1).T.astype("float64"):
            columns.setdefault(column.tobytes(), column)
        return pt.constant(data)

    def gather(index: np.ndarray) -> Tensor:
        indices.setdefault(index.tobytes(), index)
        return pt.constant(index)

    RowwiseGraph(n_rows, leaf, gather)(var, axis)
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
        dtype = data.dtype if data.dtype.kind == "f" else pytensor.config.floatX
        return pt.constant(new.reshape(new_rows, *data.shape[1:]).astype(dtype))

    return RowwiseGraph(n_rows, leaf, lambda index: pt.constant(index[representative]))(var, axis)
