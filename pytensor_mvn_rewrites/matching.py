"""What several rules match: factors and their uses, sums of squares, matrices proven definite."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, cast

import numpy as np
import pytensor.tensor as pt
from pytensor.assumptions import (
    POSITIVE_DEFINITE,
    AssumptionKey,
    FactState,
    SpecifyAssumptions,
    check_assumption,
)
from pytensor.assumptions.core import infer_assumption_for_node
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import ancestors
from pytensor.scalar.basic import Abs, Add, Exp, Mul, Pow, Sqr, Sqrt, Sub, TrueDiv
from pytensor.scalar.math import Sigmoid, Softplus
from pytensor.tensor.basic import (
    Alloc,
    AllocDiag,
    ExtractDiag,
    Join,
    MakeVector,
    get_underlying_scalar_constant_value,
)
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.exceptions import NotScalarConstantError
from pytensor.tensor.linalg.constructors import BlockDiagonal
from pytensor.tensor.linalg.decomposition.cholesky import Cholesky
from pytensor.tensor.linalg.inverse import MatrixInverse
from pytensor.tensor.linalg.products import KroneckerProduct
from pytensor.tensor.math import Dot
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.rewriting.basic import unconditional_constant_folding
from pytensor.tensor.shape import Reshape, SpecifyShape, specify_shape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor, indices_from_subtensor

from pytensor_mvn_rewrites._upstream import _is_provably_positive

#: An entry of the order of a `DimShuffle`: an axis, or "x" for a new one.
Axis = Any

#: A tensor variable: mypy does not see the methods that PyTensor gives it.
Tensor = Any


def is_real_float(*variables: Variable) -> bool:
    """Whether all variables are real floating-point tensors."""
    return all(var.type.dtype in ("float32", "float64") for var in variables)


#: A matrix with so many times more rows than columns is narrow.
NARROW_RATIO = 4

#: What :mod:`~pytensor_mvn_rewrites.logprob` notes of a parameter whose `dims` make it narrow when
#: the log-density is made. They may change later: only the cost may depend on it.
NARROW = AssumptionKey("mvn_rewrites_narrow", short_name="narrow")


def constant_value(var: Variable) -> np.ndarray | None:
    """The value of a graph that is made of constants alone, or None.

    A shared variable is no constant: it is data, the length of a dimension, another variable of a
    step method. Nor is a random draw, or what PyTensor itself would not fold. Cost: that of one
    evaluation.
    """
    if isinstance(var, Constant):
        return np.asarray(var.data)
    if var.owner is None or any(map(_may_change, ancestors([var]))):
        return None
    fgraph = FunctionGraph(outputs=[var], clone=True)
    nodes = fgraph.toposort()
    if not all(_may_be_folded(fgraph, node) for node in nodes):
        return None
    for node in nodes:
        try:
            folded = unconditional_constant_folding.transform(fgraph, node)
        except Exception:
            # it fails, as it will when the compiled function gets there
            return None
        if not folded:
            return None
        fgraph.replace_all(list(zip(node.outputs, folded, strict=True)), import_missing=True)
    [result] = fgraph.outputs
    return np.asarray(cast(Constant, result).data)


def _may_change(var: Variable) -> bool:
    is_input = var.owner is None and not isinstance(var, Constant)
    return is_input or isinstance(var.type, RandomType)


def _may_be_folded(fgraph: FunctionGraph, node: Apply) -> bool:
    """Whether evaluating `node` now has no effect but its value: no print, no failing check."""
    if node.op.destroy_map:
        return False
    # PyTensor keeps an `Alloc` for the rewrites that look for it, not for what it does
    return isinstance(node.op, Alloc) or node.op.do_constant_folding(fgraph, node)


def scalar_constant(var: Variable) -> float | None:
    """The number that `var` repeats, or None."""
    try:
        value = get_underlying_scalar_constant_value(var, raise_not_constant=True)
    except NotScalarConstantError:
        return None
    return float(value) if value.dtype.kind in "iufb" else None


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


def is_full_slice(index) -> bool:
    """Whether an index of one axis is ``:``."""
    return isinstance(index, slice) and index == slice(None)


def is_mask(index) -> bool:
    """Whether an index is an array of booleans, which stands for as many axes as it has."""
    return not isinstance(index, slice) and index.type.dtype == "bool"


def positions_of(index, length: int | None = None) -> np.ndarray | None:
    """The constant vector of integers that an index is; None for slices, masks and anything else.

    Negative ones count from the end of an axis of `length`, where it is given.
    """
    if isinstance(index, slice) or index.type.ndim != 1 or is_mask(index):
        return None
    positions = constant_value(index)
    if positions is None or length is None:
        return positions
    return np.where(positions < 0, positions + length, positions)


def reduced_axes(node: Apply[CAReduce]) -> tuple[int, ...]:
    """Axes over which a reduction such as `Sum` or `All` runs."""
    axis = node.op.axis
    return tuple(range(node.inputs[0].type.ndim)) if axis is None else tuple(axis)


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
    if isinstance(var, Constant) and order == tuple(
        range(var.type.ndim - len(order), var.type.ndim)
    ):
        # the same matrices without leading dimensions of length 1 are still constants to match
        data = np.asarray(var.data)
        return pt.constant(data.reshape(data.shape[-len(order) :] if order else ()))
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


def sum_over(var: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sum as canonicalization would write it."""
    if not axes:
        return var
    return var.sum(axis=None if len(axes) == var.type.ndim else axes)


class Definiteness(IntEnum):
    """What is proven about a stack of symmetric matrices."""

    UNKNOWN = 0
    SEMIDEFINITE = 1
    DEFINITE = 2


def is_proven_posdef(fgraph: FunctionGraph, matrix: Variable) -> bool:
    """Whether `matrix` is symmetric and positive definite whatever the inputs of the graph are.

    Proofs hold in exact arithmetic: a scale such as ``exp(x)`` counts as positive although it can
    underflow to zero.
    """
    return definiteness(fgraph, matrix) is Definiteness.DEFINITE


def definiteness(fgraph: FunctionGraph | None, matrix: Variable) -> Definiteness:
    """Prove the definiteness of `matrix` from the ops that make it.

    Stricter than PyTensor's ``POSITIVE_DEFINITE``, which holds for every ``A @ A.T``: here a
    product is semidefinite, and definite only after something definite was added.
    """
    if matrix.type.ndim < 2:
        return Definiteness.UNKNOWN
    if isinstance(matrix, Constant):
        return _definiteness_of_constant(matrix)
    if is_declared(fgraph, matrix, POSITIVE_DEFINITE):
        return Definiteness.DEFINITE
    view = matrix_view(matrix)
    if view.core is not matrix:
        return definiteness(fgraph, view.core)

    match matrix.owner_op_and_inputs:
        case (Elemwise(scalar_op=Add()), *inputs):
            if any(True in inp.type.broadcastable[-2:] for inp in inputs):
                return Definiteness.UNKNOWN
            states = [definiteness(fgraph, inp) for inp in inputs]
            return max(states) if min(states) else Definiteness.UNKNOWN
        case (Elemwise(scalar_op=Mul()), *inputs):
            return _definiteness_of_product(fgraph, inputs)
        case (AllocDiag(offset=0), diagonal):
            if is_positive(diagonal):
                return Definiteness.DEFINITE
            return Definiteness(int(is_positive(diagonal, strict=False)))
        case (Dot() | Blockwise(Dot()), left, right):
            for one, other in ((left, right), (right, left)):
                match other.owner_op_and_inputs:
                    case (DimShuffle(is_left_expanded_matrix_transpose=True), inner) if (
                        inner is one
                    ):
                        # a Cholesky factor has full rank, or the product is NaN
                        factor = isinstance(one.owner_op, Blockwise) and isinstance(
                            one.owner_op.core_op, Cholesky
                        )
                        return Definiteness.DEFINITE if factor else Definiteness.SEMIDEFINITE
            return Definiteness.UNKNOWN
        case (Blockwise(MatrixInverse()), inner):
            state = definiteness(fgraph, inner)
            return state if state is Definiteness.DEFINITE else Definiteness.UNKNOWN
        case (Subtensor() | AdvancedSubtensor(), stack, *_) if takes_whole_matrices(matrix.owner):
            return definiteness(fgraph, stack)
        case (Join(axis=axis), *stacks) if axis in range(matrix.type.ndim - 2):
            return min(definiteness(fgraph, stack) for stack in stacks)
        case (KroneckerProduct() | BlockDiagonal() | Blockwise(BlockDiagonal()), *inputs):
            return min(definiteness(fgraph, inp) for inp in inputs)
        case (SpecifyAssumptions(assumptions=declared), inner):
            if (POSITIVE_DEFINITE, FactState.TRUE) in declared:
                return Definiteness.DEFINITE
            return definiteness(fgraph, inner)
    return Definiteness.UNKNOWN


def is_declared(fgraph: FunctionGraph | None, var: Variable, fact: AssumptionKey) -> bool:
    """Whether the user declared `fact` of `var`, which no rule of PyTensor's says of its op.

    PyTensor calls every ``X @ X.T`` positive definite. What the user declares it remembers with
    the graph, and drops the marker.
    """
    if fgraph is None or not check_assumption(fgraph, var, fact):
        return False
    if var.owner is None:
        return not isinstance(var, Constant)
    feature = fgraph.assumption_feature
    states = [feature.get(inp, fact) for inp in var.owner.inputs]
    by_rule = infer_assumption_for_node(fact, var.owner.op, feature, fgraph, var.owner, states)
    return by_rule[var.owner.outputs.index(var)] is not FactState.TRUE


def _definiteness_of_product(fgraph, inputs) -> Definiteness:
    """A definite matrix times positive scalars, or a diagonal constant times positive entries."""
    matrices = [inp for inp in inputs if False in inp.type.broadcastable[-2:]]
    scales = [inp for inp in inputs if inp not in matrices]
    diagonals = [m for m in matrices if isinstance(m, Constant) and _is_diagonal(m.data)]
    if len(matrices) > 1 and len(diagonals) == 1:
        scales += [m for m in matrices if m not in diagonals]
        matrices = diagonals
    if len(matrices) != 1:
        return Definiteness.UNKNOWN
    state = definiteness(fgraph, matrices[0])
    if all(is_positive(scale) for scale in scales):
        return state
    if all(is_positive(scale, strict=False) for scale in scales):
        return min(state, Definiteness.SEMIDEFINITE)
    return Definiteness.UNKNOWN


def _is_diagonal(data: np.ndarray) -> bool:
    n = data.shape[-1]
    return data.shape[-2] == n and not np.any(data[..., ~np.eye(n, dtype=bool)])


def _definiteness_of_constant(constant: Constant) -> Definiteness:
    """By a Cholesky factorization, once for each constant."""
    known = getattr(constant.tag, "definiteness", None)
    if known is None:
        known = constant.tag.definiteness = _numerical_definiteness(np.asarray(constant.data))
    return known


def _numerical_definiteness(data: np.ndarray) -> Definiteness:
    if data.shape[-1] != data.shape[-2] or data.size == 0 or data.dtype.kind not in "iuf":
        return Definiteness.UNKNOWN
    if not np.array_equal(data, np.swapaxes(data, -1, -2)):
        return Definiteness.UNKNOWN
    try:
        np.linalg.cholesky(data.astype("float64"))
    except np.linalg.LinAlgError:
        return Definiteness(int(_is_diagonal(data) and bool((data >= 0).all())))
    return Definiteness(2 * bool(np.isfinite(data).all()))


def is_sigmoid(var: Variable) -> bool:
    """Whether all entries lie between 0 and 1, by a sigmoid function."""
    match var.owner_op_and_inputs:
        case (DimShuffle(), inner):
            return is_sigmoid(inner)
        case (Elemwise(scalar_op=Sigmoid()), _):
            return True
    return False


def is_positive(var: Variable, *, strict: bool = True) -> bool:
    """Whether all entries are positive, or with ``strict=False`` not negative, in any graph."""
    match var.owner_op_and_inputs:
        case (Elemwise(scalar_op=Exp() | Softplus() | Sigmoid()), _):
            return True
        case (Elemwise(scalar_op=Sqr() | Abs()), inner):
            return not strict or is_positive(inner)
        case (Elemwise(scalar_op=Pow()), base, exponent):
            even = (scalar_constant(exponent) or 1) % 2 == 0
            return is_positive(base) or (even and not strict)
        case (Elemwise(scalar_op=Add()), *inputs):
            return all(is_positive(inp, strict=False) for inp in inputs) and (
                not strict or any(is_positive(inp) for inp in inputs)
            )
        case (Elemwise(scalar_op=Mul() | TrueDiv()), *inputs):
            return all(is_positive(inp, strict=strict) for inp in inputs)
        case (Elemwise(scalar_op=Sub()), one, other):
            # the other weight of a convex combination
            return (scalar_constant(one) or 0) >= 1 and is_sigmoid(other)
        case (Elemwise(scalar_op=Sqrt()), inner):
            return is_positive(inner, strict=strict)
        case (DimShuffle() | Subtensor() | AdvancedSubtensor(), inner, *_):
            return is_positive(inner, strict=strict)
        case (Alloc() | SpecifyShape() | Reshape(), inner, *_):
            return is_positive(inner, strict=strict)
        case (Join() | MakeVector(), *inputs):
            return all(is_positive(inp, strict=strict) for inp in inputs)
        case (ExtractDiag(), matrix) if is_core_diagonal(var.owner):
            return not strict and definiteness(None, matrix) is not Definiteness.UNKNOWN
    return var.type.dtype.startswith(("float", "int", "uint")) and _is_provably_positive(
        var, strict
    )
