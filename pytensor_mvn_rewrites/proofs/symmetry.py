"""The prover of symmetry.

The dense graph of a structured covariance may read more of its parts than their lower triangles: a
rule that factors the parts instead gives the same numbers, and the same gradients for what the
parts are made of, only if they are symmetric whatever the inputs of the graph are.
"""

from collections.abc import Iterator

import numpy as np
from pytensor.assumptions import (
    POSITIVE_DEFINITE,
    SYMMETRIC,
    FactState,
    SpecifyAssumptions,
    check_assumption,
)
from pytensor.graph.basic import Constant
from pytensor.graph.fg import FunctionGraph
from pytensor.scalar.basic import (
    Abs,
    Add,
    Cos,
    Cosh,
    Mul,
    Neg,
    Pow,
    Sin,
    Sinh,
    Sqr,
    Sub,
    Tan,
    Tanh,
    TrueDiv,
)
from pytensor.tensor.basic import Alloc, Join
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.linalg.constructors import BlockDiagonal
from pytensor.tensor.linalg.inverse import MatrixInverse, MatrixPinv
from pytensor.tensor.linalg.products import Expm, KroneckerProduct
from pytensor.tensor.math import Dot
from pytensor.tensor.shape import SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pytensor_mvn_rewrites.graph import Tensor, core_op, reduced_axes, takes_whole_matrices
from pytensor_mvn_rewrites.proofs.constants import scalar_constant
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of

#: No proof goes deeper into the graph.
MAX_DEPTH = 50

#: Products of products are looked at as one up to this depth.
MAX_NESTING = 6


def is_symmetric(fgraph: FunctionGraph | None, matrix: Tensor) -> bool:
    """Whether all matrices of the stack `matrix` are symmetric whatever the inputs of the graph.

    Proofs hold in exact arithmetic: ``A @ A.T`` and ``A @ S @ A.T`` are symmetric up to rounding.
    What nothing proves can be declared: ``pytensor.assumptions.assume(x, symmetric=True)``.
    """
    shape = matrix.type.shape
    if len(shape) < 2 or (None not in shape[-2:] and shape[-1] != shape[-2]):
        return False
    return _Mirrors(fgraph).holds(matrix, matrix) or any(
        check_assumption(fgraph, multiple, SYMMETRIC) for multiple in multiples(fgraph, matrix)
    )


def multiples(fgraph: FunctionGraph | None, matrix: Tensor) -> Iterator[Tensor]:
    """What the graph makes of `matrix` and scalars: it may be that the user declared that."""
    clients = fgraph.clients.get(matrix, ()) if fgraph is not None else ()
    for client, _ in clients:
        match client.op:
            case Elemwise(scalar_op=Mul()):
                others = [inp for inp in client.inputs if inp is not matrix]
                if all(all(inp.type.broadcastable[-2:]) for inp in others):
                    yield client.outputs[0]


def is_transpose(fgraph: FunctionGraph | None, one: Tensor, other: Tensor) -> bool:
    """Whether ``one == other.mT`` whatever the inputs of the graph are."""
    return _Mirrors(fgraph).holds(one, other)


class _Mirrors:
    """Proofs that one variable is the transpose of another, each attempted once."""

    def __init__(self, fgraph):
        self.fgraph = fgraph
        self.known: dict[tuple[Tensor, Tensor], bool] = {}
        self.depth = 0

    def holds(self, one: Tensor, other: Tensor) -> bool:
        """Whether ``one == other.mT``, both of them stacks of matrices or broadcast to be ones."""
        if one.type.ndim != other.type.ndim or one.type.ndim < 2:
            return False
        if (one, other) not in self.known:
            self.known[one, other] = False
            self.depth += 1
            self.known[one, other] = self.depth < MAX_DEPTH and self._prove(one, other)
            self.depth -= 1
        return self.known[one, other]

    def _prove(self, one, other) -> bool:
        if one is other and self._is_symmetric_alone(one):
            return True
        if isinstance(one, Constant) and isinstance(other, Constant):
            return np.array_equal(one.data, np.swapaxes(other.data, -1, -2))
        for view, var in ((one, other), (other, one)):
            match view.owner_op_and_inputs:
                case (DimShuffle(is_matrix_transpose=True), inner) if inner is var:
                    return True
                case (DimShuffle(new_order=("x", 0)), inner) if inner is var:
                    # a column without its axis of length 1
                    return True
        if one.owner is None or other.owner is None:
            return False
        if len(factors := dot_chain(one)) > 1:
            return self._products(one, other) or self._all_hold(factors, dot_chain(other)[::-1])
        if len(scaled := elementwise_factors(one)) > 1:
            return self._elementwise_products(scaled, elementwise_factors(other))
        if type(one.owner.op) is not type(other.owner.op):
            return False
        if isinstance(one.owner.op, DimShuffle):
            return self._dimshuffles(one, other)
        return one.owner.op == other.owner.op and self._same_ops(one, other)

    def _is_symmetric_alone(self, matrix) -> bool:
        if all(matrix.type.broadcastable[-2:]) or diagonal_of(matrix) is not None:
            return True
        if check_assumption(self.fgraph, matrix, SYMMETRIC):
            # PyTensor drops the markers of what was declared, and remembers the facts
            return True
        match matrix.owner_op_and_inputs:
            case (SpecifyAssumptions(assumptions=declared), _):
                return any(
                    (key, FactState.TRUE) in declared for key in (SYMMETRIC, POSITIVE_DEFINITE)
                )
            case (Alloc(), value, *_):
                return all(value.type.broadcastable[-2:])
            case (Elemwise(scalar_op=Sqr() | Abs() | Cos() | Cosh()), inner):
                return self._is_antisymmetric(inner)
            case (Elemwise(scalar_op=Pow()), inner, exponent):
                return (scalar_constant(exponent) or 1) % 2 == 0 and self._is_antisymmetric(inner)
        return False

    def _same_ops(self, one, other) -> bool:
        """The proof for two nodes of one op, which transposes as its inputs do."""
        ours, theirs = one.owner.inputs, other.owner.inputs
        match core_op(one.owner.op):
            case Elemwise(scalar_op=Add()):
                return match_in_any_order(ours, theirs, self.holds)
            case Elemwise() | KroneckerProduct() | BlockDiagonal():
                return self._all_hold(ours, theirs)
            case MatrixInverse() | MatrixPinv() | Expm():
                return self._all_hold(ours, theirs)
            case Join(axis=axis) if axis in range(one.type.ndim - 2):
                return self._all_hold(ours, theirs)
            case Subtensor() | AdvancedSubtensor():
                whole = takes_whole_matrices(one.owner)
                return whole and ours[1:] == theirs[1:] and self.holds(ours[0], theirs[0])
            case CAReduce():
                batch = range(ours[0].type.ndim - 2)
                kept = all(axis in batch for axis in reduced_axes(one.owner))
                return kept and self.holds(ours[0], theirs[0])
            case SpecifyShape() | SpecifyAssumptions():
                return self.holds(ours[0], theirs[0])
        return False

    def _all_hold(self, ours, theirs) -> bool:
        return len(ours) == len(theirs) and all(map(self.holds, ours, theirs))

    def _elementwise_products(self, ours, theirs) -> bool:
        """Two products of the same factors, each transposed."""

        def mirrored(one, other) -> bool:
            (left, left_transposed, left_power), (right, right_transposed, right_power) = one, other
            if left_power != right_power:
                return False
            if left is right and all(left.type.broadcastable[-2:]):
                return True
            if left_transposed != right_transposed:
                return left is right
            return self.holds(left, right)

        return match_in_any_order(ours, theirs, mirrored)

    def _is_antisymmetric(self, matrix) -> bool:
        """Whether ``matrix == -matrix.mT``, such as the differences of all pairs of numbers."""
        if isinstance(matrix, Constant):
            return np.array_equal(matrix.data, -np.swapaxes(matrix.data, -1, -2))
        match matrix.owner_op_and_inputs:
            case (Elemwise(scalar_op=Sub()), left, right):
                return self.holds(left, right)
            case (Elemwise(scalar_op=Neg() | Sin() | Sinh() | Tan() | Tanh()), inner):
                return self._is_antisymmetric(inner)
            case (Elemwise(scalar_op=TrueDiv()), numerator, denominator):
                return self.holds(denominator, denominator) and self._is_antisymmetric(numerator)
            case (Elemwise(scalar_op=Mul()), *inputs):
                others = [inp for inp in inputs if not self.holds(inp, inp)]
                return len(others) == 1 and self._is_antisymmetric(others[0])
        return False

    def _products(self, one, other) -> bool:
        """``A @ B`` and ``B.T @ A.T``."""
        return len(dot_chain(other)) > 1 and self._all_hold(
            one.owner.inputs, other.owner.inputs[::-1]
        )

    def _dimshuffles(self, one, other) -> bool:
        """Two rearrangements of the axes of one variable, or of two with the matrices kept."""
        [ours], [theirs] = one.owner.inputs, other.owner.inputs
        order, other_order = list(one.owner.op.new_order), list(other.owner.op.new_order)
        if ours is theirs and order == [*other_order[:-2], other_order[-1], other_order[-2]]:
            return True
        last_two = {ours.type.ndim - 2, ours.type.ndim - 1}
        return order == other_order and set(order[-2:]) == last_two and self.holds(ours, theirs)


def match_in_any_order(ours, theirs, match) -> bool:
    """Whether each of `ours` matches another one of `theirs`, and none is left."""
    left = list(theirs)
    for inp in ours:
        partner = next((i for i, candidate in enumerate(left) if match(inp, candidate)), None)
        if partner is None:
            return False
        del left[partner]
    return not left


def elementwise_factors(
    matrix: Tensor, transposed: bool = False, power: int = 1, depth: int = MAX_NESTING
) -> list[tuple[Tensor, bool, int]]:
    """The factors of products and quotients: (factor, whether it is transposed, 1 or -1)."""
    if depth:
        match matrix.owner_op_and_inputs:
            case (Elemwise(scalar_op=Mul()), *inputs):
                parts = [(inp, transposed, power) for inp in inputs]
            case (Elemwise(scalar_op=TrueDiv()), numerator, denominator):
                parts = [(numerator, transposed, power), (denominator, transposed, -power)]
            case (DimShuffle(is_matrix_transpose=True), inner):
                parts = [(inner, not transposed, power)]
            case _:
                return [(matrix, transposed, power)]
        return [factor for part in parts for factor in elementwise_factors(*part, depth - 1)]
    return [(matrix, transposed, power)]


def dot_chain(matrix: Tensor) -> list[Tensor]:
    """The A, B, C, ... of the product ``A @ B @ C @ ...``, in whatever order it is computed."""
    match matrix.owner_op_and_inputs:
        case (Dot() | Blockwise(Dot()), left, right):
            return [*dot_chain(left), *dot_chain(right)]
    return [matrix]
