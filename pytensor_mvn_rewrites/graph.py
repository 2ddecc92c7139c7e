"""Small predicates on graphs, and builders of what canonicalization would write."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant, Variable, clone_get_equiv
from pytensor.graph.features import Feature
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.scalar.basic import Mul, Pow, Sqr
from pytensor.tensor.basic import Alloc, ExtractDiag, Join
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.math import Dot
from pytensor.tensor.shape import SpecifyShape, specify_shape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor, indices_from_subtensor

from pytensor_mvn_rewrites.proofs.constants import constant_value, scalar_constant

#: An entry of the order of a `DimShuffle`: an axis, or "x" for a new one.
Axis = Any

#: A tensor variable: mypy does not see the methods that PyTensor gives it.
Tensor = Any


def is_real_float(*variables: Variable) -> bool:
    """Whether all variables are real floating-point tensors."""
    return all(var.type.dtype in ("float32", "float64") for var in variables)


def core_op(op: Op | None) -> Op | None:
    """What `op` does to each member of a batch: itself, if it is no `Blockwise`."""
    return op.core_op if isinstance(op, Blockwise) else op


def takes_whole_matrices(node: Apply) -> bool:
    """Whether an indexing node chooses among the matrices of a stack, each of them as it is.

    Its indices are those of batch axes: full slices may follow, a mask of k dimensions indexes k
    axes, and advanced indices apart from each other move among the batch axes only.
    """
    source, *variables = node.inputs
    indices: list[Any] = list(indices_from_subtensor(variables, node.op.idx_list))
    while indices and is_full_slice(indices[-1]):
        indices.pop()
    n_indexed: int = sum(index.type.ndim if is_mask(index) else 1 for index in indices)
    return n_indexed <= source.type.ndim - 2


def stacks_of(matrix: Tensor) -> list[Tensor]:
    """The stacks whose matrices `matrix` holds, each as it is; none where it computes others.

    What is said of a batch is said of every member: what holds for all matrices of all these stacks
    holds for `matrix`.
    """
    match matrix.owner_op_and_inputs:
        case (Subtensor() | AdvancedSubtensor(), stack, *_) if takes_whole_matrices(matrix.owner):
            return [stack]
        case (Join(axis=axis), *stacks) if axis in range(matrix.type.ndim - 2):
            return stacks
        case (SpecifyShape(), inner, *_):
            return [inner]
        case (Alloc(), inner, *_) if inner.type.ndim >= 2 and spans_matrix(inner):
            return [inner]
    view = matrix_view(matrix)
    return [] if view.core is matrix or view.transposed else [view.core]


def is_full_slice(index) -> bool:
    """Whether an index of one axis is ``:``."""
    return isinstance(index, slice) and index == slice(None)


def is_mask(index) -> bool:
    """Whether an index is an array of booleans, which stands for as many axes as it has."""
    return not isinstance(index, slice) and index.type.dtype == "bool"


def positions_of(index, length: int | None = None) -> np.ndarray | None:
    """The positions that a constant slice or vector of integers takes; None for anything else.

    A slice needs the `length` of its axis; with it negative integers count from the end.
    """
    if isinstance(index, slice):
        bounds = (index.start, index.stop, index.step)
        numbers = [None if bound is None else constant_value(bound) for bound in bounds]
        unknown = [number is None for number in numbers] != [bound is None for bound in bounds]
        return None if unknown or length is None else np.arange(length)[slice(*numbers)]
    if index.type.ndim != 1 or is_mask(index):
        return None
    positions = constant_value(index)
    if positions is None or length is None:
        return positions
    return np.where(positions < 0, positions + length, positions)


def reduced_axes(node: Apply[CAReduce]) -> tuple[int, ...]:
    """Axes over which a reduction such as `Sum` or `All` runs."""
    axis = node.op.axis
    return tuple(range(node.inputs[0].type.ndim)) if axis is None else tuple(sorted(axis))


def is_core_diagonal(node: Apply) -> bool:
    """Whether `node` takes the main diagonal of the last two axes."""
    match node.op:
        case ExtractDiag(offset=0, axis1=axis1, axis2=axis2):
            ndim = node.inputs[0].type.ndim
            return {axis1 % ndim, axis2 % ndim} == {ndim - 2, ndim - 1}
    return False


def is_square_of(node: Apply, var: Variable) -> bool:
    """Whether `node` computes `var**2`, in any of its three spellings."""
    match node.op:
        case Elemwise(scalar_op=Sqr()):
            return True
        case Elemwise(scalar_op=Pow()):
            return node.inputs[0] is var and scalar_constant(node.inputs[1]) == 2
        case Elemwise(scalar_op=Mul()):
            return len(node.inputs) == 2 and all(inp is var for inp in node.inputs)
    return False


@dataclass(frozen=True)
class MatrixView:
    """A stack of matrices seen with more batch dimensions, or transposed."""

    core: Variable
    #: For each batch axis of the view the batch axis of `core`, or "x" where it was added.
    batch_order: tuple[Axis, ...]
    transposed: bool


def matrix_view(var: Variable) -> MatrixView:
    """Look through one `DimShuffle` that adds batch dimensions or transposes the matrices."""
    match var.owner_op_and_inputs:
        case (DimShuffle(new_order=order), core) if core.type.ndim >= 2:
            n_batch = core.type.ndim - 2
            axes: tuple[Axis, ...] = tuple(order)
            batch_order, last_two = axes[:-2], axes[-2:]
            if tuple(i for i in batch_order if i != "x") == tuple(range(n_batch)) and last_two in (
                (n_batch, n_batch + 1),
                (n_batch + 1, n_batch),
            ):
                return MatrixView(core, batch_order, last_two[0] > last_two[1])
    return MatrixView(var, tuple(range(var.type.ndim - 2)), False)


def uses(fgraph: FunctionGraph, matrix: Variable) -> Iterator[tuple[Apply, Variable]]:
    """Clients of `matrix`, each once, with the view they use; see `matrix_view`."""
    for client in dict.fromkeys(client for client, _ in fgraph.clients[matrix]):
        if isinstance(client.op, DimShuffle) and matrix_view(client.outputs[0]).core is matrix:
            [view] = client.outputs
            for user in dict.fromkeys(user for user, _ in fgraph.clients[view]):
                yield user, view
        else:
            yield client, matrix


def nodes_with(fgraph: FunctionGraph, *kinds: type) -> list[Apply]:
    """The nodes whose op is of one of these classes.

    Asks once for each class of ops: most graphs have none, and to ask each op takes longer than all
    else that a rule does in such a graph.
    """
    wanted = {op for op in op_types(fgraph) if issubclass(op, kinds)}
    return [node for node in fgraph.apply_nodes if type(node.op) in wanted] if wanted else []


#: How many nodes had entered a graph, and the classes of its ops then
_op_types: WeakKeyDictionary[Feature, tuple[int, set[type]]] = WeakKeyDictionary()


def op_types(fgraph: FunctionGraph) -> set[type]:
    """The classes of the ops of a graph, and at times some that have just left it.

    While rewrites are repeated until nothing changes, PyTensor counts the nodes that enter a graph:
    rules that run one after the other need not look at all nodes again.
    """
    tracker = getattr(fgraph, "change_tracker", None)
    if tracker is None:
        return {type(node.op) for node in fgraph.apply_nodes}
    entered, found = _op_types.get(tracker, (-1, set()))
    if entered != tracker.nb_imported:
        found = {type(node.op) for node in fgraph.apply_nodes}
        _op_types[tracker] = tracker.nb_imported, found
    return found


def in_graph_order(fgraph: FunctionGraph, nodes: list[Apply]) -> list[Apply]:
    """Nodes of a set in an order that is the same in every process.

    Compiled code is cached by the order of the nodes of a graph.
    """
    if len(nodes) < 2:
        return nodes
    wanted = set(nodes)
    return [node for node in fgraph.toposort() if node in wanted]


def drop_axis(axes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The other `axes`, renumbered for a tensor without `axis`."""
    return tuple(a - (a > axis) for a in axes if a != axis)


def is_elementwise_function_of(var: Variable, source: Variable) -> bool:
    """Whether `var` is `source` seen through elementwise ops: then their batch shapes are equal."""
    if var is source:
        return True
    match var.owner_op:
        case Elemwise():
            return any(
                is_elementwise_function_of(inp, source)
                for inp in var.owner.inputs
                if inp.type.broadcastable == source.type.broadcastable
            )
    return False


def dimshuffled(var: Tensor, order: tuple[Axis, ...]) -> Tensor:
    """`var.dimshuffle(order)` with the op moved to the inputs of elementwise ops and merged there.

    Canonicalization would do the same, but it is over when the rules of this package run.
    """
    if order == tuple(range(var.type.ndim)):
        return var
    if isinstance(var, Constant) and "x" not in order and list(order) == sorted(order):
        # the same matrices without dimensions of length 1 are still constants to match
        data = np.asarray(var.data)
        return pt.constant(data.reshape([data.shape[axis] for axis in order]))
    match var.owner_op_and_inputs:
        case (DimShuffle(new_order=inner_order), inner):
            return dimshuffled(inner, tuple(i if i == "x" else inner_order[i] for i in order))
        case (Elemwise() as op, *inputs) if len(var.owner.outputs) == 1:
            return op(*(dimshuffled(inp, order) for inp in inputs))
        case (SpecifyShape(), inner, *shape):
            new_shape = [1 if i == "x" else shape[i] for i in order]
            return specify_shape(dimshuffled(inner, order), new_shape)
    return var.dimshuffle(order)


def transposed(var: Tensor) -> Tensor:
    """`var.mT`, see `dimshuffled`."""
    n = var.type.ndim
    return dimshuffled(var, (*range(n - 2), n - 1, n - 2))


def without_leading_ones(var: Tensor, core_ndim: int) -> Tensor:
    """`var` without its leading batch dimensions of length 1, which broadcast anyway."""
    batch = var.type.broadcastable[: var.type.ndim - core_ndim]
    lead = batch.index(False) if False in batch else len(batch)
    return dimshuffled(var, tuple(range(lead, var.type.ndim)))


def shared_axes(matrix: Tensor) -> tuple[int, ...]:
    """The batch axes of length 1 of a stack of matrices."""
    return tuple(axis for axis in range(matrix.type.ndim - 2) if matrix.type.broadcastable[axis])


def without_shared_axes(matrix: Tensor) -> Tensor:
    """A stack of matrices without its batch dimensions of length 1, wherever they are."""
    shared = shared_axes(matrix)
    kept = tuple(axis for axis in range(matrix.type.ndim) if axis not in shared)
    return dimshuffled(matrix, kept)


def sum_over(var: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sum as canonicalization would write it."""
    if not axes:
        return var
    return var.sum(axis=None if len(axes) == var.type.ndim else axes)


def spans_matrix(matrix: Variable) -> bool:
    """Whether the last two axes of an input of an elementwise op do not broadcast."""
    return not any(matrix.type.broadcastable[-2:])


def is_transpose_of(var, other) -> bool:
    """Whether `var` is `other.mT`, seen through PyTensor's expansion of batch dimensions."""
    match var.owner_op_and_inputs:
        case (DimShuffle(is_left_expanded_matrix_transpose=True), inner):
            return inner is other
    return False


def gram_root(product: Variable) -> Tensor | None:
    """The X of ``X @ X.mT`` or ``X.mT @ X``."""
    match product.owner_op_and_inputs:
        case (Dot() | Blockwise(Dot()), left, right):
            if is_transpose_of(right, left):
                return left
            return right if is_transpose_of(left, right) else None
    return None


def substituted(
    graphs: Sequence[Variable], new: Mapping[Variable, Variable], kept: Iterable[Variable]
) -> list[Variable]:
    """Copies of graphs with other variables in place of some; what is `kept` is not copied."""
    if not new:
        return list(graphs)
    memo: dict[Any, Any] = dict(new)
    clone_get_equiv([*new, *kept], graphs, copy_inputs=False, copy_orphans=False, memo=memo)
    return [memo[graph] for graph in graphs]


def length(x: Tensor, axis: int = -1):
    """The length of an axis, an integer where the type tells it."""
    static = x.type.shape[axis]
    return x.shape[axis] if static is None else static


def lengths_of(x: Tensor, start: int | None = None, stop: int | None = None) -> list:
    """The shape of the axes `start` to `stop`, in integers as far as it is known."""
    return [length(x, axis) for axis in range(x.type.ndim)[start:stop]]


def static_size(matrix: Tensor) -> int | None:
    """The n of a stack of n x n matrices, if it is known and the matrices are square."""
    rows, columns = matrix.type.shape[-2:]
    return rows if rows == columns else None
