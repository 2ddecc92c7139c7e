"""Batching one node: PyTensor's ``_vectorize_node``, minus what it does badly in a log-density."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pymc.logprob.utils import CheckParameterValue
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.op import Op
from pytensor.graph.traversal import toposort
from pytensor.tensor.basic import Alloc, AllocDiag, Join, ScalarFromTensor, TensorFromScalar
from pytensor.tensor.blockwise import Blockwise, vectorize_node_fallback
from pytensor.tensor.linalg.constructors import BlockDiagonal
from pytensor.tensor.shape import Reshape, Shape, Shape_i, SpecifyShape
from pytensor.tensor.subtensor import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    IncSubtensor,
    Subtensor,
    indices_from_subtensor,
)
from pytensor.tensor.type import TensorType

from pytensor_mvn_rewrites._upstream import _vectorize_node
from pytensor_mvn_rewrites.graph import is_mask, lengths_of, substituted
from pytensor_mvn_rewrites.ops.check import batched_check
from pytensor_mvn_rewrites.ops.gaussian import FusedOp


class CannotBatch(Exception):
    """The node has no batched form that is known to be good."""


def vectorize(node: Apply, batched: list[Variable | None], count: int) -> list[Variable]:
    """Outputs of `node` for a batch of `count` terms, batch dimension first.

    Parameters
    ----------
    node : Apply
        The node of the first term.
    batched : list of Variable or None
        For each input its batched form, or None where all terms share it.
    count : int
        Number of terms, at least one of whose inputs is batched.

    Raises
    ------
    CannotBatch
        If the op has no good batched form.
    """
    inputs = [own if new is None else new for own, new in zip(node.inputs, batched, strict=True)]
    match node.op:
        case Shape() | Shape_i():
            # the terms of a pack have equal shapes: the first term's is everybody's
            return node.outputs
        case ScalarFromTensor() | TensorFromScalar():
            return inputs
        case Alloc() if is_of_known_shape(node.inputs[0], node.outputs[0].type.shape):
            return inputs[:1]
        case CheckParameterValue():
            return [_check(node, inputs)]
        case Reshape() | Alloc() | SpecifyShape() if any(new is not None for new in batched[1:]):
            raise CannotBatch("the shape differs from term to term")
        case Subtensor() | AdvancedSubtensor() if _needs_gather(node, batched):
            return [_gather(node, batched, count)]
        case IncSubtensor() | AdvancedIncSubtensor():
            return [_inc_subtensor(node, inputs, batched, count)]
        case Join():
            return [_join(node, batched, count)]
        case BlockDiagonal() | Blockwise(core_op=BlockDiagonal()):
            return [_block_diagonal(node, inputs, count)]
        case AllocDiag(offset=offset, axis1=axis1, axis2=axis2):
            # its inner graph, batched, is no diagonal matrix that any rule knows
            return [AllocDiag(axis1=axis1 + 1, axis2=axis2 + 1, offset=offset)(inputs[0])]
        case OpFromGraph() if not isinstance(node.op, FusedOp) and _has_fallback_only(node.op):
            return _inner_graph(node, batched, count)
        case op if _has_fallback_only(op) and not hasattr(op, "gufunc_signature"):
            raise CannotBatch(f"{op} has no batched form")
    try:
        outputs = _vectorize_node(node.op, node, *inputs)
    except Exception as error:
        # such as an op of PyMC's that is no tensor op, or a sum over an axis that is not there
        raise CannotBatch(f"{node.op} has no batched form: {error}") from error
    return list(outputs.outputs if isinstance(outputs, Apply) else outputs)


def is_of_known_shape(var: Variable, shape: Sequence[int | None]) -> bool:
    """Whether `var` has this shape, with no length unknown."""
    return None not in shape and var.type.shape == shape


def _has_fallback_only(op: Op) -> bool:
    return _vectorize_node.dispatch(type(op)) is vectorize_node_fallback


def _block_diagonal(node, inputs, count: int) -> Variable:
    """Blocks that are set into zeros: PyTensor's rules for a batched ``block_diag`` are wrong.

    Its determinant is another number, and its diagonal an error.
    """
    if any(None in block.type.shape[-2:] or block.type.ndim > 2 for block in node.inputs):
        raise CannotBatch("block_diag of blocks of unknown size, or of stacks of them")
    shapes = [block.type.shape for block in node.inputs]
    ends = np.cumsum(shapes, axis=0)
    result = pt.zeros((count, *ends[-1].tolist()), dtype=node.outputs[0].type.dtype)
    for block, shape, end in zip(inputs, shapes, ends, strict=True):
        rows, columns = (slice(e - n, e) for e, n in zip(end.tolist(), shape, strict=True))
        result = result[:, rows, columns].set(block)
    return result


def _join(node, batched, count: int) -> Variable:
    """The parts that all terms share are repeated: PyTensor's Blockwise computes shapes for that.

    In a batch of such batches it forgets which lengths are 1.
    """
    parts = [
        pt.broadcast_to(own, (count, *lengths_of(own))) if new is None else new
        for own, new in zip(node.inputs, batched, strict=True)
    ]
    return pt.join(node.op.axis % node.inputs[0].type.ndim + 1, *parts)


def _check(node, inputs) -> Variable:
    value, *conditions = inputs
    # an unbatched condition is a 0d scalar of PyTensor's scalar type
    conditions = [pt.as_tensor_variable(condition) for condition in conditions]
    condition = conditions[0]
    for other in conditions[1:]:
        condition = pt.and_(condition, other)
    # the condition of a check that is batched already has the dimensions of its value
    lacking = node.inputs[0].type.ndim - node.inputs[1].type.ndim
    return batched_check(node.op, value, condition, lacking)


def _needs_gather(node, batched) -> bool:
    """Whether more is needed than a full slice over the batch before the indices."""
    if any(new is not None for new in batched[1:]):
        return True
    arrays = [index for index in node.inputs[1:] if isinstance(index.type, TensorType)]
    is_mask = any(index.type.dtype == "bool" for index in arrays)
    unequal = len({index.type.ndim for index in arrays}) > 1 and not is_mask
    return isinstance(node.op, AdvancedSubtensor) and (unequal or not _adjacent(node.op))


def _gather(node, batched, count: int) -> Variable:
    """``x[i, j]`` where an index differs from term to term, or `x` does: one indexing.

    The index arrays get equal rank: the gradient of PyTensor's Blockwise and its rewrite of an
    indexed batch of products are wrong for others.
    """
    x, *own = node.inputs
    if any(index.type.dtype == "bool" for index in own):
        raise CannotBatch("masks that differ from term to term select different lengths")
    arrays = [entry for entry in node.op.idx_list if isinstance(entry, int)]
    ndim = max((own[entry].type.ndim for entry in arrays), default=0)
    vary = any(index is not None for index in batched[1:])
    new = list(own)
    for entry, index in enumerate(batched[1:]):
        if index is not None and entry not in arrays:
            raise CannotBatch("slices differ from term to term")
        if index is not None or entry in arrays:
            new[entry] = _of_rank(own[entry], index, ndim)
    indices = indices_from_subtensor(new, node.op.idx_list)
    # numpy puts the dimensions of the index arrays first unless the arrays are adjacent
    axes = [axis for axis, index in enumerate(indices) if not isinstance(index, slice)]
    position = axes[0] if _adjacent(node.op) else 0
    if batched[0] is None:
        return pt.moveaxis(x[tuple(indices)], position, 0)
    if not vary and _adjacent(node.op):
        return batched[0][(slice(None), *indices)]
    terms = pt.shape_padright(pt.arange(count), ndim)
    rows = batched[0][(terms, *indices)]
    return pt.moveaxis(rows, range(1, 1 + ndim), range(1 + position, 1 + position + ndim))


def _of_rank(own, batched, ndim: int) -> Variable:
    """An index array of a term, or of all of them, with `ndim` dimensions for each term."""
    index = pt.as_tensor_variable(own if batched is None else batched)
    n_batch = index.type.ndim - own.type.ndim
    return pt.expand_dims(index, tuple(range(n_batch, n_batch + ndim - own.type.ndim)))


def _inc_subtensor(node, inputs, batched, count: int) -> Variable:
    """``x[i].set(y)``: the same with a full slice over the batch first."""
    x, y, *indices = inputs
    if any(new is not None for new in batched[2:]):
        raise CannotBatch("indices differ from term to term")
    props = node.op._props_dict()
    if batched[0] is None:
        x = pt.broadcast_to(x, (count, *lengths_of(x)))
    if batched[1] is not None:
        # align the core dimensions of y, which may have fewer of them than x[i]
        indexed_ndim = _indexed_ndim(node)
        missing = indexed_ndim - node.inputs[1].type.ndim
        y = pt.expand_dims(y, tuple(range(1, 1 + missing))) if missing > 0 else y
    idx_list = (slice(None), *props.pop("idx_list"))
    if isinstance(node.op, AdvancedIncSubtensor) and not _adjacent(node.op):
        raise CannotBatch("the indexed dimensions are not adjacent")
    return type(node.op)(idx_list=idx_list, **props)(x, y, *indices)


def _indexed_ndim(node) -> int:
    """Number of dimensions of ``x[i]``."""
    x, _, *indices = node.inputs
    arrays = [indices[entry] for entry in node.op.idx_list if isinstance(entry, int)]
    if isinstance(node.op, IncSubtensor):
        return x.type.ndim - len(arrays)
    # a mask stands for as many vectors as it has dimensions
    n_indexed = sum(index.type.ndim if is_mask(index) else 1 for index in arrays)
    index_ndim = max(1 if is_mask(index) else index.type.ndim for index in arrays)
    return x.type.ndim - n_indexed + index_ndim


def _adjacent(op) -> bool:
    ints = [axis for axis, entry in enumerate(op.idx_list) if isinstance(entry, int)]
    return not ints or ints == list(range(ints[0], ints[0] + len(ints)))


def _inner_graph(node, batched, count: int) -> list[Variable]:
    """Batch the inner graph of an OpFromGraph node by node."""
    outputs = node.op.fgraph.bind(dict(zip(node.op.fgraph.inputs, node.inputs, strict=True)))
    outputs = _with_known_lengths(outputs, node.inputs)
    known = {own: new for own, new in zip(node.inputs, batched, strict=True) if new is not None}
    return vectorize_outputs(outputs, known, count, blockers=node.inputs)


def _with_known_lengths(outputs, inputs) -> list[Variable]:
    """Lengths that are known as constants: they stay known when `inputs` become a batch."""
    known = {}
    for node in toposort(outputs, blockers=inputs):
        match node.op, node.inputs:
            case Subtensor(idx_list=(int(),)), [shape, Constant(data=axis)]:
                if isinstance(shape.owner_op, Shape):
                    length = shape.owner.inputs[0].type.shape[int(axis)]
                    if length is not None:
                        known[node.outputs[0]] = pt.constant(length, dtype="int64")
    return substituted(outputs, known, inputs)


def vectorize_outputs(
    outputs: Sequence[Variable],
    batched: Mapping[Variable, Variable],
    count: Any,
    blockers: Collection[Variable] = (),
    first_term: Mapping[Variable, Variable] | None = None,
) -> list[Variable]:
    """Batch a graph node by node.

    Parameters
    ----------
    outputs : sequence of Variable
        Of the graph of one term.
    batched : mapping
        The batched forms of its inputs.
    count : int or tensor, shape ()
        Number of terms.
    blockers : collection of Variable
        Where the graph ends, and what the batched forms are computed from.
    first_term : mapping
        Where inputs only stand for those of a term: those of the first. Its shapes are everybody's.

    Raises
    ------
    CannotBatch
        If an op has no good batched form, or an output does not depend on what is batched.
    """
    known = dict(batched)
    for node in toposort(outputs, blockers=[*blockers, *batched]):
        inputs = [known.get(inp) for inp in node.inputs]
        if any(new is not None for new in inputs):
            # what stays as it is, such as a shape, is not batched
            pairs = zip(node.outputs, vectorize(node, inputs, count), strict=True)
            known.update({own: new for own, new in pairs if new is not own})
    if not all(out in known for out in outputs):
        raise CannotBatch("an output does not depend on what is batched")
    return substituted([known[out] for out in outputs], first_term or {}, blockers)
