"""The function that a node calls: run-time checks, allocation of the outputs, choice of a kernel.

Its source is generated because the number of batch axes differs from graph to graph; everything
else in it is as one would write it by hand. It is compiled for every graph, so it is small: all
that differs between graphs and not between matrices is passed to the kernel as numbers.
"""

from collections.abc import Callable, Iterator
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
from pytensor_mvn_rewrites.lower.numba.threads import threads_name
from pytensor_mvn_rewrites.lower.numba_backend import (
    BatchLayout,
    NumbaGaussianOp,
    NumbaMvNormalLogp,
)

INPUT_NAMES = {
    "NumbaMvNormalLogp": ("value", "mu", "matrix", "g_logp"),
    "NumbaInvQuadLogdet": ("delta", "matrix", "g_quad", "g_half_logdet"),
}
CORE_NDIMS = {
    "value": 1,
    "mu": 1,
    "delta": 1,
    "matrix": 2,
    "g_logp": 0,
    "g_quad": 0,
    "g_half_logdet": 0,
    "index": 0,
}
#: Where the operands and outputs of an op stand in the table of a kernel
TABLE_INPUTS = {
    "NumbaMvNormalLogp": ("value", "mu", "matrix", "g_first"),
    "NumbaInvQuadLogdet": ("value", "matrix", "g_first", "g_second"),
}
TABLE_OUTPUTS = {
    "logp": "first",
    "logp_sum": "total",
    "checked_logp_sum": "total",
    "quaddist": "first",
    "half_logdet": "second",
    "ddelta": "dvalue",
}
#: What the index of groups is sorted into, and along which axis it lies
INDEX_AXES = {"start": "M", "order": "R"}
#: Outputs that are sums over the batch
SUMS = ("logp_sum", "checked_logp_sum")
GRADIENTS = {"dvalue": "value", "dmu": "mu", "ddelta": "delta", "dmatrix": "matrix"}


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
        Names and dtypes.
    casts : tuple of str
        Names of the inputs that are not float64.
    n_threads : int
        How many threads may share a large batch.
    """

    op: str
    param: str
    n: int | None
    layout: BatchLayout
    outputs: tuple[tuple[str, str], ...]
    casts: tuple[str, ...]
    n_threads: int = 1

    @classmethod
    def of(cls, op: NumbaGaussianOp, node) -> "KernelSpec":
        """The specification of the kernel of an Apply node."""
        name = type(op).__name__
        dtypes = (out.type.dtype for out in node.outputs)
        outputs = tuple(zip(op.outputs, dtypes, strict=True))
        inputs = zip(input_names(name, op.layout), node.inputs, strict=True)
        casts = tuple(key for key, inp in inputs if inp.type.dtype != "float64" and key != "index")
        return cls(name, op.param, op.n, op.layout, outputs, casts, n_threads())

    @property
    def is_logp(self) -> bool:
        """Whether the op computes a log-density rather than its two halves."""
        return self.op == NumbaMvNormalLogp.__name__

    @property
    def inputs(self) -> dict[str, str]:
        """Batch axes of each input, by name."""
        return dict(zip(input_names(self.op, self.layout), self.layout.operands, strict=True))

    @property
    def operands(self) -> dict[str, str]:
        """Names of the inputs that kernels get, by their names in the table."""
        names = (name for name in self.inputs if name != "index")
        return dict(zip(TABLE_INPUTS[self.op], names, strict=False))

    @property
    def wanted(self) -> frozenset[str]:
        """Names of the outputs."""
        return frozenset(name for name, _ in self.outputs)

    @property
    def form(self) -> str:
        """What the forward outputs are: ``"logp"``, ``"sum"`` or ``"quad"``."""
        if not self.is_logp:
            return "quad"
        return "logp" if self.wanted.isdisjoint(SUMS) else "sum"

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
            gradients[TABLE_OUTPUTS.get(name, name)] = "own" if is_own else "sum"
        apart = ""
        if self.layout.is_grouped:
            own = [place for place, name in self.operands.items() if "R" in self.axes(name)]
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
        """Batch axes of an operand or output."""
        if name in SUMS:
            return ""
        if name in INDEX_AXES:
            return INDEX_AXES[name]
        name = GRADIENTS.get(name, name)
        return self.inputs.get(name, self.layout.joint)

    def accumulates(self, gradient: str) -> bool:
        """Whether several (m, r) add to the same element of a gradient for a vector."""
        return any(axis in "MR" and axis not in self.axes(gradient) for axis in self.layout.joint)


def input_names(op: str, layout: BatchLayout) -> list[str]:
    """Names of the inputs of a lowered op; the index of groups comes last."""
    names = INPUT_NAMES[op][: len(layout.operands) - layout.is_grouped]
    return [*names, "index"] if layout.is_grouped else [*names]


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
    outputs = [name for name, _ in spec.outputs]
    casts = [f"    {name} = as_float32({name})" for name, dtype in spec.outputs if "32" in dtype]
    lines = [
        f"def {spec.op}({', '.join(spec.inputs)}):",
        *(f"    {name} = as_float64({name})" for name in spec.inputs if name in spec.casts),
        *("    " + line for line in check_lines(spec)),
        *("    " + line for line in allocation_lines(spec)),
        *(["    start, order = group_rows(index, n_m)"] if spec.layout.is_grouped else []),
        *("    " + line for line in call_lines(spec)),
        *casts,
        f"    return {', '.join(outputs)}",
    ]
    return "\n".join(lines) + "\n"


def call_lines(spec: KernelSpec):
    """Call the kernel for the core size and the layout."""
    places = dict.fromkeys(Table.NAMES)
    places |= spec.operands
    places |= {name: name for name in INDEX_AXES if spec.layout.is_grouped}
    places |= {TABLE_OUTPUTS.get(name, name): name for name in sorted(spec.wanted)}
    axes = ",".join(spec.axes(name) if name else "" for name in places.values())
    is_checked = "checked_logp_sum" in spec.wanted
    codes = int(spec.is_logp), int(is_checked), PARAM_CODES[spec.param]
    header = f"(n_r, n_m, n, {', '.join(map(str, codes))}, 0, n_m)"
    arguments = f'"{axes}", {header}, ({", ".join(map(str, places.values()))})'
    opening = "if"
    for condition, kernel in kernels_by_condition(spec):
        yield f"{opening} {condition}:"
        yield f'    call_kernel("{kernel}", {arguments})'
        opening = "elif"


def kernels_by_condition(spec: KernelSpec) -> Iterator[tuple[str, str]]:
    """The conditions on sizes on which kernels are called, the first that holds, and their names.

    The last one is True.
    """
    n = spec.n
    if spec.uses_blas_rows:
        rows = BLAS_MIN_R if spec.kernel is None else BLAS_MIN_R_STRAIGHT
        mean = " * n_m" if spec.layout.is_grouped else ""
        yield f"n >= {BLAS_MIN_N} and n_r >= {rows}{mean}", "blas_rows"
    if spec.kernel_name is not None:
        if n is not None and n <= STRAIGHT_MAX_N:
            yield "True", spec.kernel_name
            return
        yield f"n_m >= {LANES_MIN_M}", spec.kernel_name
    if n is None:
        yield f"n < {LAPACK_MIN_N}", "small"
    yield "True", "large" if n is None or n >= LAPACK_MIN_N else "small"


@numba_njit
def as_float64(array):
    """Copy of an array of another dtype."""
    out = np.empty(array.shape, np.float64)
    out[...] = array
    return out


@numba_njit
def as_float32(array):
    """Copy of a result in the dtype of the reference."""
    out = np.empty(array.shape, np.float32)
    out[...] = array
    return out


def check_lines(spec: KernelSpec):
    """Find the sizes ``n``, ``n_m`` and ``n_r``; raise ValueError where operands disagree."""
    yield "n = matrix.shape[-1]"
    core = ["matrix.shape[-2] != n"]
    core += [f"{name}.shape[-1] != n" for name in spec.inputs if CORE_NDIMS[name] == 1]
    core += [] if spec.n is None else [f"n != {spec.n}"]
    yield f"if {' or '.join(core)}:"
    yield f"    raise ValueError('{spec.op}: the core shapes of the inputs do not agree')"

    sizes: dict[str, str] = {}
    batch = []
    for name, axes in spec.inputs.items():
        for position, axis in enumerate(axes):
            length = f"{name}.shape[{position}]"
            if axis == "1":
                batch.append(f"{length} != 1")
            elif axis in sizes:
                batch.append(f"{length} != n_{axis.lower()}")
            else:
                sizes[axis] = length
    for axis in "MR":
        yield f"n_{axis.lower()} = {sizes.get(axis, 1)}"
    if batch:
        yield f"if {' or '.join(batch)}:"
        yield f"    raise ValueError('{spec.op}: the batch shapes of the inputs do not agree')"


def allocation_lines(spec: KernelSpec):
    """Allocate the outputs; those that are sums over the batch or of groups start at zero.

    Flags of rows in groups are true, so that kernels need not look for all rows of a good matrix.
    """
    sizes = {"M": "n_m", "R": "n_r", "1": "1"}
    for name, dtype in spec.outputs:
        if name in GRADIENTS:
            shape = f"{GRADIENTS[name]}.shape"
            is_written = name == "dmatrix" and not spec.layout.is_grouped
            function = "zeros" if spec.accumulates(name) and not is_written else "empty"
        else:
            shape = "(" + "".join(f"{sizes[axis]}, " for axis in spec.axes(name)) + ")"
            function = "zeros" if name in SUMS else "empty"
            if name == "posdef" and spec.layout.is_grouped:
                function = "ones"
        # kernels write float64
        dtype = "bool_" if dtype == "bool" else "float64"
        yield f"{name} = np.{function}({shape}, dtype=np.{dtype})"
