"""The function that a node of a lowered op calls, and the choice of its kernel."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pytensor.link.numba.dispatch.basic import numba_njit

from pytensor_mvn_rewrites.config import n_threads
from pytensor_mvn_rewrites.lower.numba.blas_rows import (
    BLAS_MIN_N,
    BLAS_MIN_R,
    BLAS_MIN_R_STRAIGHT,
)
from pytensor_mvn_rewrites.lower.numba.formulas import LaneSpec
from pytensor_mvn_rewrites.lower.numba.general import LAPACK_MIN_N
from pytensor_mvn_rewrites.lower.numba.groups import group_rows
from pytensor_mvn_rewrites.lower.numba.jit import (
    PARAM_CODES,
    Table,
    call_kernel,
    compile_source,
)
from pytensor_mvn_rewrites.lower.numba.lanes import (
    LANES_MAX_N,
    LANES_MIN_M,
    STRAIGHT_MAX_N,
)
from pytensor_mvn_rewrites.lower.numba.node import (
    Operand,
    allocation_lines,
    call_line,
    function_source,
    length_lines,
)
from pytensor_mvn_rewrites.lower.numba.threads import threads_name
from pytensor_mvn_rewrites.lower.numba_backend import (
    BatchLayout,
    NumbaGaussianOp,
    NumbaMvNormalLogp,
)

#: Where the inputs of an op stand in the table of a kernel; the index of groups comes last
INPUTS = {
    "NumbaMvNormalLogp": ("value", "mu", "matrix", "g_first"),
    "NumbaInvQuadLogdet": ("value", "matrix", "g_first", "g_second"),
}
#: Where outputs stand that have other names in the op
OUTPUTS = {
    "logp": "first",
    "logp_sum": "total",
    "checked_logp_sum": "total",
    "quaddist": "first",
    "half_logdet": "second",
    "ddelta": "dvalue",
}
#: Gradients, by the places of what they are for
GRADIENTS = {"dvalue": "value", "dmu": "mu", "dmatrix": "matrix"}
#: What the index of groups is sorted into
SORTED_INDEX = (Operand("start", "M"), Operand("order", "R"))


@dataclass(frozen=True)
class KernelSpec:
    """Everything that a kernel is specialised for, beside the types that Numba sees.

    Attributes
    ----------
    op : str
        Name of the lowered op.
    param : {"cov", "chol", "tau"}
    n : int or None
    layout : BatchLayout
    outputs : tuple of (str, str)
        Places in the table and dtypes.
    casts : tuple of str
        The inputs that are not float64.
    is_checked : bool
        Whether a matrix that is not positive definite adds minus infinity to the sum.
    n_threads : int
        How many threads may share a large batch.
    """

    op: str
    param: str
    n: int | None
    layout: BatchLayout
    outputs: tuple[tuple[str, str], ...]
    casts: tuple[str, ...]
    is_checked: bool
    n_threads: int = 1

    @classmethod
    def of(cls, op: NumbaGaussianOp, node) -> "KernelSpec":
        """The specification of the kernel of an Apply node."""
        name = type(op).__name__
        places = (OUTPUTS.get(out, out) for out in op.outputs)
        dtypes = (out.type.dtype for out in node.outputs)
        outputs = tuple(zip(places, dtypes, strict=True))
        inputs = zip(input_places(name, op.layout), node.inputs, strict=True)
        casts = tuple(key for key, inp in inputs if inp.type.dtype != "float64" and key != "index")
        is_checked = "checked_logp_sum" in op.outputs
        return cls(name, op.param, op.n, op.layout, outputs, casts, is_checked, n_threads())

    @property
    def is_logp(self) -> bool:
        """Whether the op computes a log-density rather than its two halves."""
        return self.op == NumbaMvNormalLogp.__name__

    @property
    def inputs(self) -> dict[str, str]:
        """Batch axes of each input, by place."""
        return dict(zip(input_places(self.op, self.layout), self.layout.operands, strict=True))

    @property
    def wanted(self) -> frozenset[str]:
        """Places of the outputs."""
        return frozenset(name for name, _ in self.outputs)

    @property
    def form(self) -> str:
        """What the forward outputs are: ``"logp"``, ``"sum"`` or ``"quad"``."""
        if not self.is_logp:
            return "quad"
        return "sum" if "total" in self.wanted else "logp"

    @property
    def kernel(self) -> LaneSpec | None:
        """The kernel with matrices or rows side by side, None for one matrix after the other."""
        has_rows, has_matrices = "R" in self.layout.joint, "M" in self.layout.joint
        if self.n is None or not 1 <= self.n <= LANES_MAX_N:
            return None
        is_straight = self.n <= STRAIGHT_MAX_N
        if not is_straight and (has_rows or not has_matrices):
            return None
        if has_rows and not self.can_redo_rows:
            return None
        gradients = dict.fromkeys(("dvalue", "dmu", "dmatrix"), "none")
        for name in self.wanted & GRADIENTS.keys():
            is_own = "R" in self.axes(name) or not has_rows
            gradients[name] = "own" if is_own else "sum"
        apart = ""
        if self.layout.is_grouped:
            own = [name for name, axes in self.inputs.items() if "R" in axes and name != "index"]
            apart = ",".join(own) or "none"
        kind, n = "rows" if has_rows else "lanes", self.n if is_straight else 0
        value, mu, matrix = gradients.values()
        return LaneSpec(kind, self.form, self.param, n, value, mu, matrix, apart)

    @property
    def can_redo_rows(self) -> bool:
        """Whether no bad row can add to a gradient that other matrices share.

        The kernels for rows could not undo that.
        """
        all_axes = (self.axes(name) for name in self.wanted & GRADIENTS.keys())
        return "M" not in self.layout.joint or all("M" in a or "R" not in a for a in all_axes)

    @property
    def uses_blas_rows(self) -> bool:
        """Whether matrices may be large, and have enough rows, for products of all their rows.

        Rows in groups must be gathered first: straight-line code is faster at any number of them.
        """
        is_large = self.n is None or self.n >= BLAS_MIN_N
        is_gathered = self.layout.is_grouped and self.kernel is not None
        has_rows = "R" in self.layout.joint and not is_gathered
        return is_large and has_rows and self.can_redo_rows

    @property
    def kernel_name(self) -> str | None:
        """Name of `kernel`, or of one that lets threads run it.

        They cannot add to the same gradient.
        """
        if self.kernel is None:
            return None
        sums = [name for name in self.wanted & GRADIENTS.keys() if self.accumulates(name)]
        if self.n_threads == 1 or sums or self.kernel.kind != "lanes":
            return self.kernel.name
        return threads_name(self.n_threads, self.kernel)

    def axes(self, name: str) -> str:
        """Batch axes of an input or output."""
        name = GRADIENTS.get(name, name)
        return "" if name == "total" else self.inputs.get(name, self.layout.joint)

    def accumulates(self, gradient: str) -> bool:
        """Whether several (m, r) add to the same element of a gradient for a vector."""
        return any(axis in "MR" and axis not in self.axes(gradient) for axis in self.layout.joint)

    def start(self, name: str) -> str:
        """What an output holds before a kernel writes to it: zeros where it is a sum.

        Flags of rows in groups are true, so that kernels need not look for all rows of a good
        matrix.
        """
        if name == "posdef" and self.layout.is_grouped:
            return "ones"
        is_written = name == "dmatrix" and not self.layout.is_grouped
        is_sum = name in GRADIENTS and self.accumulates(name) and not is_written
        return "zeros" if name == "total" or is_sum else "empty"

    def operand(self, name: str, dtype: str = "float64") -> Operand:
        """An input, or an output; kernels write float64."""
        place = Table.NAMES.index(name) if name in Table.NAMES else None
        core = () if place is None else ("n",) * Table.CORE_NDIMS[place]
        dtype = "bool_" if dtype == "bool" else "float64"
        return Operand(name, self.axes(name), core, dtype, self.start(name))


def input_places(op: str, layout: BatchLayout) -> list[str]:
    """Where the inputs of a lowered op stand in the table; the index of groups comes last."""
    places = INPUTS[op][: len(layout.operands) - layout.is_grouped]
    return [*places, "index"] if layout.is_grouped else [*places]


def kernel_of_op(spec: KernelSpec) -> tuple[Callable, str]:
    """The function that a node of `spec` calls, and its cache key.

    It checks the shapes, allocates the outputs and calls a kernel.
    """
    env = {
        "call_kernel": call_kernel,
        "as_float64": as_float64,
        "as_float32": as_float32,
        "group_rows": group_rows,
    }
    return compile_source(frame_source(spec), spec.op, env)


def frame_source(spec: KernelSpec) -> str:
    """The source of the function of an op."""
    inputs = [spec.operand(name) for name in spec.inputs]
    outputs = [spec.operand(name, dtype) for name, dtype in spec.outputs]
    condition = "True" if spec.n is None else f"n == {spec.n}"
    lines = [
        *(f"{name} = as_float64({name})" for name in spec.casts),
        *length_lines(spec.op, inputs, "MR", condition),
        *allocation_lines(outputs),
        *(["start, order = group_rows(index, M)"] if spec.layout.is_grouped else []),
        *call_lines(spec, [*inputs, *outputs]),
        *(f"{name} = as_float32({name})" for name, dtype in spec.outputs if "32" in dtype),
    ]
    return function_source(spec.op, inputs, outputs, lines)


def call_lines(spec: KernelSpec, operands: Sequence[Operand]) -> Iterator[str]:
    """Call the kernel for the core size and the layout."""
    found = {operand.name: operand for operand in operands}
    found |= {own.name: own for own in SORTED_INDEX if spec.layout.is_grouped}
    codes = int(spec.is_logp), int(spec.is_checked), PARAM_CODES[spec.param]
    header = f"R, M, n, {', '.join(map(str, codes))}, 0, M"
    opening = "if"
    for condition, kernel in kernels_by_condition(spec):
        yield f"{opening} {condition}:"
        yield f"    {call_line(kernel, map(found.get, Table.NAMES), header)}"
        opening = "elif"


def kernels_by_condition(spec: KernelSpec) -> Iterator[tuple[str, str]]:
    """The conditions on sizes on which kernels are called, the first that holds, and their names.

    The last one is True.
    """
    n = spec.n
    if spec.uses_blas_rows:
        rows = BLAS_MIN_R if spec.kernel is None else BLAS_MIN_R_STRAIGHT
        mean = " * M" if spec.layout.is_grouped else ""
        yield f"n >= {BLAS_MIN_N} and R >= {rows}{mean}", "blas_rows"
    if spec.kernel_name is not None:
        if n is not None and n <= STRAIGHT_MAX_N:
            yield "True", spec.kernel_name
            return
        yield f"M >= {LANES_MIN_M}", spec.kernel_name
    if n is None:
        yield f"n < {LAPACK_MIN_N}", "small"
    yield "True", "large" if n is None or n >= LAPACK_MIN_N else "small"


@numba_njit
def as_float64(array):
    """Copy of an array of another dtype; an assignment would take seconds to compile."""
    return array.astype(np.float64)


@numba_njit
def as_float32(array):
    """Copy of a result in the dtype of the reference."""
    return array.astype(np.float32)
