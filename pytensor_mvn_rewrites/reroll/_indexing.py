"""Packs of slices of one variable: ``x[0], x[1], ...`` is ``x``, a slice of it, or a gather."""

from collections.abc import Sequence

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Constant, Variable
from pytensor.tensor.basic import Split
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor
from pytensor.tensor.variable import TensorVariable

from pytensor_mvn_rewrites.graph import lengths_of


def batch_of_slices(pack: Sequence[Variable]) -> Variable | None:
    """The pack as one indexing of a shared source, batch dimension first; None if it is not one.

    Handles ``x[i]`` with constant integers or equally long constant slices, ``x[[...]]`` with
    constant integer vectors, and the outputs of one Split.
    """
    nodes = [var.owner for var in pack]
    first = nodes[0]
    if first is None or any(node is None for node in nodes):
        return None
    if isinstance(first.op, Split):
        return _batch_of_split(pack, first)
    if not isinstance(first.op, Subtensor | AdvancedSubtensor):
        return None
    source = first.inputs[0]
    if any(node.op != first.op or node.inputs[0] is not source for node in nodes):
        return None
    return batch_of_indices(first.op, source, [node.inputs[1:] for node in nodes])


def batch_of_indices(op, source, indices: Sequence[Sequence]) -> Variable | None:
    """The same for a `source` and the index variables of each member of the pack."""
    if not all(isinstance(index, Constant) for row in indices for index in row):
        return None
    values = [[np.asarray(index.data) for index in row] for row in indices]
    if isinstance(op, AdvancedSubtensor):
        return _gather_rows(source, op.idx_list, values)
    table = np.array(values, dtype="int64").reshape(len(values), len(values[0]))
    return _batch_of_basic(source, op.idx_list, table)


def _batch_of_split(pack, node) -> Variable | None:
    """Outputs i, i+1, ... of one Split, of equal length: a reshape of a slice of what was split."""
    if any(var.owner is not node for var in pack):
        return None
    axis = node.op.axis
    first, last = node.outputs.index(pack[0]), node.outputs.index(pack[-1])
    if list(pack) != node.outputs[first : last + 1]:
        return None
    lengths = [out.type.shape[axis] for out in node.outputs]
    if isinstance(node.inputs[1], Constant):
        lengths = [int(length) for length in node.inputs[1].data]
    if None in lengths or len(set(lengths[first : last + 1])) != 1:
        return None
    whole, total = node.inputs[0], sum(lengths)
    if whole.type.shape[axis] is None:
        # a Split raises if it does not split everything, which a slice would not notice
        whole = specify_length(whole, total, axis)
    if whole.type.shape[axis] != total:
        return None
    count, length = len(pack), lengths[first]
    start = sum(lengths[:first])
    part = slice(start, start + count * length)
    return _split_axis(_slice_axis(whole, axis, part), axis, count, length)


def _slice_axis(x, axis: int, part: slice) -> TensorVariable:
    if (part.start, part.stop) == (0, x.type.shape[axis]):
        return x
    return x[(*(slice(None),) * axis, part)]


def _split_axis(x, axis: int, count: int, length: int) -> TensorVariable:
    """Axis of length count * length -> a batch dimension `count` first, `length` in its place."""
    shape = [x.type.shape[i] if x.type.shape[i] is not None else x.shape[i] for i in range(x.ndim)]
    split = pt.reshape(x, [*shape[:axis], count, length, *shape[axis + 1 :]])
    return pt.moveaxis(split, axis, 0)


def _gather_rows(source, idx_list, values) -> Variable | None:
    """``x[[1, 2]], x[[0, 3]], ...`` -> ``x[[[1, 2], [0, 3], ...]]``, rows along the first axis."""
    if idx_list[0] != 0 or any(entry != slice(None) for entry in idx_list[1:]):
        return None
    rows = [row[0] for row in values]
    if rows[0].dtype == bool or len({row.shape for row in rows}) != 1:
        return None
    return source[np.stack(rows)]


def _batch_of_basic(source, idx_list, table: np.ndarray) -> Variable | None:
    """Basic indexing; `table` holds one row of index values for each member of the pack."""
    count = len(table)
    varies = (table != table[:1]).any(axis=0)
    int_axes = {axis: entry for axis, entry in enumerate(idx_list) if isinstance(entry, int)}
    slice_axes = {axis: entry for axis, entry in enumerate(idx_list) if isinstance(entry, slice)}
    varying_ints = [axis for axis, column in int_axes.items() if varies[column]]
    varying_slices = [
        axis
        for axis, entry in slice_axes.items()
        if any(varies[column] for column in _slice_columns(entry))
    ]

    def index(axis, row=0):
        entry = idx_list[axis]
        if isinstance(entry, int):
            return int(table[row, entry])
        return slice(*[None if c is None else int(table[row, c]) for c in _slice_parts(entry)])

    indices = [index(axis) for axis in range(len(idx_list))]
    if not varying_slices and len(varying_ints) == 1:
        [axis] = varying_ints
        positions, size = table[:, int_axes[axis]], source.type.shape[axis]
        # in an axis of unknown length only an ascending slice notices that there is too little
        backwards = size is None and positions[-1] < positions[0]
        progression = _as_slice(positions[::-1] if backwards else positions, size)
        if progression is not None:
            indices[axis] = progression
            batch = _index(source, indices)
            position = sum(isinstance(entry, slice) for entry in idx_list[:axis])
            batch = pt.moveaxis(batch, position, 0)
            # a shorter source must fail, as indexing it did
            batch = batch if batch.type.shape[0] == count else specify_length(batch, count)
            return batch[::-1] if backwards else batch
    if not varying_slices:
        for axis, column in int_axes.items():
            indices[axis] = table[:, column]
        return _index_first(source, indices, list(int_axes))
    if varying_ints or len(varying_slices) != 1:
        return None
    [axis] = varying_slices
    return _batch_of_ranges(source, indices, axis, [index(axis, row) for row in range(count)])


def _batch_of_ranges(source, indices, axis: int, slices: Sequence[slice]) -> Variable | None:
    """Slices ``start:stop`` of one length along one axis of known size."""
    size = source.type.shape[axis]
    if size is None or any(s.step not in (None, 1) for s in slices):
        return None
    ranges = [s.indices(size) for s in slices]
    lengths = {stop - start for start, stop, _ in ranges}
    if len(lengths) != 1 or (length := lengths.pop()) < 1:
        return None
    starts = np.array([start for start, _, _ in ranges])
    count = len(starts)
    position = sum(isinstance(entry, slice) for entry in indices[:axis])
    if (np.diff(starts) == length).all():
        start, stop = int(starts[0]), int(starts[0]) + count * length
        indices[axis] = slice(None) if (start, stop) == (0, size) else slice(start, stop)
        return _split_axis(_index(source, indices), position, count, length)
    indices[axis] = slice(None)
    rows = starts[:, None] + np.arange(length)
    batch = pt.take(_index(source, indices), rows, axis=position)
    return pt.moveaxis(batch, position, 0)


def _as_slice(positions: np.ndarray, size: int | None) -> slice | None:
    """Integer indices as one slice: an arithmetic progression inside the axis, or None."""
    if size is not None:
        positions = np.where(positions < 0, positions + size, positions)
        if (positions < 0).any() or (positions >= size).any():
            return None
    steps = np.diff(positions)
    if (positions < 0).any() or len(steps) == 0 or (steps != steps[0]).any() or steps[0] == 0:
        return None
    start, step, count = int(positions[0]), int(steps[0]), len(positions)
    if (start, step, count) == (0, 1, size):
        return slice(None)
    stop = start + step * count
    return slice(start, stop if stop >= 0 else None, None if step == 1 else step)


def _index(source, indices) -> TensorVariable:
    """``source[indices]``, without a node where it takes everything."""
    if all(isinstance(i, slice) and i == slice(None) for i in indices):
        return source
    return source[tuple(indices)]


def _index_first(source, indices, int_axes: Sequence[int]) -> TensorVariable:
    """Gather with the batch dimension first: numpy puts it there unless the axes are adjacent."""
    batch = source[tuple(indices)]
    adjacent = int_axes == list(range(int_axes[0], int_axes[0] + len(int_axes)))
    return pt.moveaxis(batch, int_axes[0], 0) if adjacent and int_axes[0] else batch


def specify_length(x, length, axis: int = 0) -> TensorVariable:
    """`x`, whose axis must have this length when the graph runs."""
    # not None where a length is unknown: PyTensor's local_subtensor_SpecifyShape_lift fails on it
    shape = _lengths(x)
    shape[axis] = length
    return pt.specify_shape(x, shape)


def _lengths(x) -> list:
    """The shape of `x`; of a slice in terms of what it is a slice of, as for its neighbours."""
    match x.owner_op_and_inputs:
        case (DimShuffle(new_order=order), source):
            of_source = _lengths(source)
            return [1 if axis == "x" else of_source[axis] for axis in order]
        case (Subtensor(idx_list=entries), source, *_):
            of_source = _lengths(source)
            entries = (*entries, *(slice(None),) * (len(of_source) - len(entries)))
            kept = [(e, n) for e, n in zip(entries, of_source, strict=True) if isinstance(e, slice)]
            own = lengths_of(x)
            return [n if e == slice(None) else own[i] for i, (e, n) in enumerate(kept)]
    return lengths_of(x)


def _slice_parts(entry: slice):
    return (entry.start, entry.stop, entry.step)


def _slice_columns(entry: slice):
    return [column for column in _slice_parts(entry) if column is not None]
