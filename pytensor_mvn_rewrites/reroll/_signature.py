"""Structural signatures: two terms with the same signature are candidates for one pack."""

from collections.abc import Callable, Container, Iterable, Sequence

from pytensor.graph.basic import Constant, Variable
from pytensor.scalar.basic import Add, Mul
from pytensor.tensor.basic import Join, MakeVector, Split
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor
from pytensor.tensor.type import TensorType

from pytensor_mvn_rewrites.ops.gaussian import FusedOp

#: Ops that can be batched when an integer constant differs from term to term. For all others an
#: integer says what to do (a shape, an axis) and counts by value.
TAKES_VARYING_INTEGERS = (Elemwise, Subtensor, AdvancedSubtensor, Join, MakeVector, DimShuffle)


class Signatures:
    """Assigns a small integer to each variable; equal integers mean equal structure.

    Structure is the op, the output index and the signatures of the inputs, down to leaves and
    tensor constants, which count by type alone. Inputs of commutative ops are compared in sorted
    order. Each node is visited once; the walk is iterative, because loops make deep graphs.

    Parameters
    ----------
    anchored : bool
        Look no further than the fused density ops: their inputs count by type alone. Terms that
        differ only in how, say, a mean was computed then have equal signatures.
    leaves : container of Variable
        What counts as a leaf, although it is computed.
    """

    def __init__(self, *, anchored: bool = False, leaves: Container[Variable] = ()):
        self.anchored = anchored
        self.leaves = leaves
        self._of: dict[Variable, int] = {}
        self._interned: dict[tuple, int] = {}

    def __call__(self, variable: Variable) -> int:
        """Signature of `variable`."""
        known = self._of
        stack = [variable]
        while stack:
            var = stack[-1]
            if var in known:
                stack.pop()
                continue
            if var.owner is None or var in self.leaves:
                known[var] = self._intern(self._leaf_key(var))
                stack.pop()
                continue
            if self.anchored and is_anchor(var.owner.op):
                types = tuple(inp.type for inp in var.owner.inputs)
                known[var] = self._intern((var.owner.op, var.owner.outputs.index(var), types))
                stack.pop()
                continue
            missing = [inp for inp in var.owner.inputs if inp not in known]
            if missing:
                stack.extend(missing)
                continue
            known[var] = self._intern(self._node_key(var))
            stack.pop()
        return known[variable]

    def in_canonical_order(self, inputs: Sequence[Variable]) -> list[Variable]:
        """The inputs of a commutative node in an order that isomorphic nodes share."""
        return sorted(inputs, key=self)

    def _leaf_key(self, var: Variable) -> tuple:
        if isinstance(var, Constant) and not isinstance(var.type, TensorType):
            # slices, None and index scalars: an index may differ from term to term, a None may not
            data = None if hasattr(var.type, "dtype") else var.signature()
            return ("constant", var.type, data)
        return ("constant" if isinstance(var, Constant) else "leaf", var.type)

    def _node_key(self, var: Variable) -> tuple:
        node = var.owner
        by_value = not isinstance(node.op, TAKES_VARYING_INTEGERS) or _makes_a_shape(node.op)
        inputs = [
            (inp.type, inp.data.tobytes())
            if by_value and isinstance(inp, Constant) and _is_integer(inp)
            else self._of[inp]
            for inp in node.inputs
        ]
        if is_commutative(node.op):
            inputs.sort()
        # the outputs of one Split are alike: slices of one variable
        index = None if isinstance(node.op, Split) else node.outputs.index(var)
        return (node.op, index, tuple(inputs))

    def _intern(self, key: tuple) -> int:
        return self._interned.setdefault(key, len(self._interned))


class Identities(Signatures):
    """Equal integers mean the same ops on the same leaves: whatever follows from them is the same.

    The integers stay valid while a graph is rewritten in place; see :meth:`forget_variables`.
    """

    def forget_variables(self) -> None:
        """Look again at how each variable is computed."""
        self._of.clear()

    def _leaf_key(self, var: Variable) -> tuple:
        return ("leaf", var)

    def _node_key(self, var: Variable) -> tuple:
        node = var.owner
        return (node.op, node.outputs.index(var), tuple(self._of[inp] for inp in node.inputs))


def _makes_a_shape(op) -> bool:
    return isinstance(op, MakeVector) and op.dtype.startswith("int")


def _is_integer(constant: Constant) -> bool:
    return isinstance(constant.type, TensorType) and constant.type.dtype.startswith(("int", "uint"))


def is_anchor(op) -> bool:
    """Whether batching `op` is worth stacking its inputs, however they were computed."""
    return isinstance(op, FusedOp)


def is_commutative(op) -> bool:
    """Whether the order of the inputs of `op` does not matter."""
    return isinstance(op, Elemwise) and isinstance(op.scalar_op, Add | Mul)


def group_by[T](items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    """The items in groups of equal keys, in order of appearance."""
    groups: dict[object, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def group_by_surface(variables: Sequence[Variable]) -> list[list[int]]:
    """Positions of the variables whose first two layers look alike; leaves are left out.

    Cheap, and necessary for equal signatures, anchored or not.
    """
    computed = [position for position, var in enumerate(variables) if var.owner is not None]
    return group_by(computed, lambda position: _surface(variables[position]))


def _surface(var: Variable) -> tuple:
    op = var.owner.op
    if is_anchor(op):
        return (type(op), var.type)
    below = [type(inp.owner.op) if inp.owner is not None else None for inp in var.owner.inputs]
    return (type(op), getattr(op, "scalar_op", None), var.type, tuple(sorted(map(id, below))))
