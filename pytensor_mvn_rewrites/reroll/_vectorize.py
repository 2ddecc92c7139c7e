"""Batching one node: PyTensor's ``_vectorize_node``, minus what it does badly in a log-density."""

import pytensor.tensor as pt
from pymc.logprob.utils import CheckParameterValue
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op
from pytensor.graph.replace import _vectorize_node
from pytensor.graph.traversal import toposort
from pytensor.tensor.basic import Alloc, ScalarFromTensor, TensorFromScalar
from pytensor.tensor.blockwise import vectorize_node_fallback
from pytensor.tensor.shape import Reshape, Shape, Shape_i, SpecifyShape
from pytensor.tensor.subtensor import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    IncSubtensor,
    Subtensor,
)

from pytensor_mvn_rewrites.matching import is_mask
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
        case CheckParameterValue():
            return [_check(node, inputs)]
        case Reshape() | Alloc() | SpecifyShape() if any(new is not None for new in batched[1:]):
            raise CannotBatch("the shape differs from term to term")
        case Subtensor() if any(new is not None for new in batched[1:]):
            return [_subtensor_batched_index(node, inputs, batched, count)]
        case AdvancedSubtensor() if _masks_differ(node, batched):
            raise CannotBatch("masks that differ from term to term select different lengths")
        case IncSubtensor() | AdvancedIncSubtensor():
            return [_inc_subtensor(node, inputs, batched, count)]
        case OpFromGraph() if not isinstance(node.op, FusedOp) and _has_fallback_only(node.op):
            return _inner_graph(node, batched, count)
        case op if _has_fallback_only(op) and not hasattr(op, "gufunc_signature"):
            raise CannotBatch(f"{op} has no batched form")
    outputs = _vectorize_node(node.op, node, *inputs)
    return list(outputs.outputs if isinstance(outputs, Apply) else outputs)


def _has_fallback_only(op: Op) -> bool:
    return _vectorize_node.dispatch(type(op)) is vectorize_node_fallback


def _masks_differ(node, batched) -> bool:
    return any(
        new is not None and index.type.dtype == "bool"
        for index, new in zip(node.inputs[1:], batched[1:], strict=True)
    )


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


def _subtensor_batched_index(node, inputs, batched, count: int) -> Variable:
    """``x[i]`` where the integer index differs from term to term: a gather."""
    entries = node.op.idx_list
    if any(isinstance(entry, slice) and entry != slice(None) for entry in entries):
        raise CannotBatch("slices differ from term to term")
    ints = [axis for axis, entry in enumerate(entries) if isinstance(entry, int)]
    if ints != list(range(len(ints))):
        raise CannotBatch("only leading integer indices are gathered")
    x, *indices = inputs
    rows = [pt.as_tensor_variable(indices[entry]) for entry in entries if isinstance(entry, int)]
    if batched[0] is not None:
        rows = [pt.arange(count), *rows]
    return x[tuple(rows)]


def _inc_subtensor(node, inputs, batched, count: int) -> Variable:
    """``x[i].set(y)``: the same with a full slice over the batch first."""
    x, y, *indices = inputs
    if any(new is not None for new in batched[2:]):
        raise CannotBatch("indices differ from term to term")
    props = node.op._props_dict()
    if batched[0] is None:
        x = pt.broadcast_to(x, (count, *x.shape))
    if batched[1] is not None:
        # align the core dimensions of y, which may have fewer of them than x[i]
        indexed_ndim = _indexed_ndim(node)
        missing = indexed_ndim - node.inputs[1].type.ndim
        y = pt.expand_dims(y, tuple(range(1, 1 + missing))) if missing > 0 else y
    idx_list = (slice(None), *props.pop("idx_list"))
    if isinstance(node.op, AdvancedIncSubtensor) and not _adjacent(node):
        raise CannotBatch("the indexed dimensions are not adjacent")
    return type(node.op)(idx_list=idx_list, **props)(x, y, *indices)


def _indexed_ndim(node) -> int:
    """Number of dimensions of ``x[i]``."""
    x, _, *indices = node.inputs
    int_entries = [entry for entry in node.op.idx_list if isinstance(entry, int)]
    if isinstance(node.op, IncSubtensor):
        return x.type.ndim - len(int_entries)
    advanced = [indices[entry] for entry in int_entries]
    # a mask stands for as many vectors as it has dimensions
    n_indexed = sum(index.type.ndim if is_mask(index) else 1 for index in advanced)
    index_ndim = max(1 if is_mask(index) else index.type.ndim for index in advanced)
    return x.type.ndim - n_indexed + index_ndim


def _adjacent(node) -> bool:
    ints = [axis for axis, entry in enumerate(node.op.idx_list) if isinstance(entry, int)]
    return ints == list(range(ints[0], ints[0] + len(ints)))


def _inner_graph(node, batched, count: int) -> list[Variable]:
    """Batch the inner graph of an OpFromGraph node by node."""
    outputs = node.op.fgraph.bind(dict(zip(node.op.fgraph.inputs, node.inputs, strict=True)))
    known: dict[Variable, Variable] = {
        own: new for own, new in zip(node.inputs, batched, strict=True) if new is not None
    }
    for inner in toposort(outputs, blockers=node.inputs):
        new_inputs = [known.get(inp) for inp in inner.inputs]
        if any(new is not None for new in new_inputs):
            results = vectorize(inner, new_inputs, count)
            # what stays as it is, such as a shape, is not batched
            pairs = zip(inner.outputs, results, strict=True)
            known.update({own: new for own, new in pairs if new is not own})
    if not all(out in known for out in outputs):
        raise CannotBatch(f"an output of {node.op} does not depend on what is batched")
    return [known[out] for out in outputs]
