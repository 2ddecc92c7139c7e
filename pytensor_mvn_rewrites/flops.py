"""What linear algebra costs: floating-point operations by the standard counts.

To leading order, by the methods of LAPACK (Golub & Van Loan, Matrix Computations, 4th ed., 2013:
sections 3.1, 3.2, 4.2, 5.2, 8.3 and 8.6; an inverse by LU as in LAPACK Working Note 41). An
elementwise operation counts nothing.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.traversal import toposort
from pytensor.tensor.blockwise import Blockwise

from pytensor_mvn_rewrites.ops.gaussian import FusedOp

#: Name of an op -> the count for an (n, n) matrix and k columns on the right-hand side.
FACTORIZATIONS: dict[str, Callable[[int, int], float]] = {
    "Cholesky": lambda n, k: n**3 / 3,
    "Solve": lambda n, k: 2 * n**3 / 3 + 2 * n**2 * k,
    "Det": lambda n, k: 2 * n**3 / 3,
    "SLogDet": lambda n, k: 2 * n**3 / 3,
    "LU": lambda n, k: 2 * n**3 / 3,
    "LUFactor": lambda n, k: 2 * n**3 / 3,
    "MatrixInverse": lambda n, k: 2 * n**3,
    "QR": lambda n, k: 8 * n**3 / 3,
    "Eigh": lambda n, k: 9 * n**3,
    "Eigvalsh": lambda n, k: 4 * n**3 / 3,
    "SVD": lambda n, k: 21 * n**3,
}
#: The same for what takes a factor.
SOLVES: dict[str, Callable[[int, int], float]] = {
    "SolveTriangular": lambda n, k: n**2 * k,
    "CholeskySolve": lambda n, k: 2 * n**2 * k,
}
#: Those without a count: it depends on the entries.
UNCOUNTED = {"Expm", "Eig", "MatrixPinv", "Schur", "QZ", "Lstsq"}

#: Lengths, None where they are not known.
Shape = tuple[Any, ...]


def core_name(node: Apply) -> str:
    """Name of the op that works on one matrix."""
    op = node.op.core_op if isinstance(node.op, Blockwise) else node.op
    return type(op).__name__


def op_name(node: Apply) -> str:
    """The same, of an op of this package with its properties."""
    is_ours = type(node.op).__module__.startswith(__package__)
    return str(node.op) if is_ours else core_name(node)


def is_linear_algebra(node: Apply) -> bool:
    """Whether a node counts."""
    name = core_name(node)
    is_dense = name in FACTORIZATIONS or name in SOLVES or name in UNCOUNTED
    return is_dense or name == "Dot" or isinstance(node.op, FusedOp)


def static_shape(var: Variable) -> Shape:
    """What the type knows."""
    return getattr(var.type, "shape", ())


def flops(node: Apply, shape_of: Callable[[Variable], Shape] = static_shape) -> float | None:
    """The count of a node, or None if that is not known.

    That of an op of this package is the count of its reference graph.
    """
    is_lowered = hasattr(node.op, "reference_outputs")
    if not is_linear_algebra(node) and not is_lowered:
        return 0
    if is_lowered and getattr(getattr(node.op, "layout", None), "is_grouped", False):
        # a kernel factorizes once for each matrix, its reference once for each row
        return None
    shapes = [shape_of(inp) for inp in node.inputs]
    if any(n is None for shape in shapes for n in shape):
        return None
    if isinstance(node.op, FusedOp) or is_lowered:
        inputs = [
            pt.tensor(dtype=inp.type.dtype, shape=shape)
            for inp, shape in zip(node.inputs, shapes, strict=True)
        ]
        if is_lowered:
            outputs = node.op.reference_outputs(inputs)
        else:
            op = node.op(*inputs, return_list=True)[0].owner.op
            outputs = op.build_inner_graph(*inputs)
        inner = toposort(outputs if isinstance(outputs, Sequence) else [outputs])
        counts = [flops(own) for own in inner]
        return None if None in counts else sum(filter(None, counts))
    name, batch = core_name(node), 1
    if name in UNCOUNTED:
        return None
    if isinstance(node.op, Blockwise):
        [out] = node.outputs[:1]
        core_ndim = len(node.op.outputs_sig[0])
        outer = shape_of(out)[: out.type.ndim - core_ndim]
        if None in outer:
            return None
        batch = prod(outer)
        shapes = [
            shape[len(shape) - len(core) :]
            for shape, core in zip(shapes, node.op.inputs_sig, strict=True)
        ]
    if name == "Dot":
        left, right = shapes
        return 2 * batch * prod(left) * prod(right[1:])
    count = FACTORIZATIONS.get(name) or SOLVES[name]
    columns = prod(shapes[1][1:]) if len(shapes) > 1 else 1
    return batch * count(shapes[0][-1], columns)
