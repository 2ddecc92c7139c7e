"""What the sources of all kernels share: operands, run-time checks, allocation of the outputs.

A kernel is a function of the operands that returns the wanted outputs. Its source is generated
because the number of batch axes differs from graph to graph; everything else in it is as one
would write it by hand.
"""

from dataclasses import dataclass
from textwrap import indent

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
}
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
    """

    op: str
    param: str
    n: int | None
    layout: BatchLayout
    outputs: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, op: NumbaGaussianOp, node) -> "KernelSpec":
        """The specification of the kernel of an Apply node."""
        dtypes = (out.type.dtype for out in node.outputs)
        outputs = tuple(zip(op.outputs, dtypes, strict=True))
        return cls(type(op).__name__, op.param, op.n, op.layout, outputs)

    @property
    def is_logp(self) -> bool:
        """Whether the op computes a log-density rather than its two halves."""
        return self.op == NumbaMvNormalLogp.__name__

    @property
    def inputs(self) -> dict[str, str]:
        """Batch axes of each input, by name."""
        return dict(zip(INPUT_NAMES[self.op], self.layout.operands, strict=False))

    @property
    def wanted(self) -> frozenset[str]:
        """Names of the outputs."""
        return frozenset(name for name, _ in self.outputs)

    @property
    def wants_vectors(self) -> bool:
        """Whether a gradient for a vector is wanted."""
        return not self.wanted.isdisjoint({"dvalue", "dmu", "ddelta"})

    @property
    def wants_matrix(self) -> bool:
        """Whether the gradient for the matrix is wanted."""
        return "dmatrix" in self.wanted

    @property
    def wants_gradient(self) -> bool:
        """Whether any gradient is wanted."""
        return self.wants_vectors or self.wants_matrix

    def at(self, name: str, *core) -> str:
        """Expression for one element of an operand or output, in loops over ``m`` and ``r``."""
        axes = self.axes(name)
        index = [{"M": "m", "R": "r", "1": "0"}[axis] for axis in axes]
        return f"{name}[{', '.join([*index, *map(str, core)]) or '()'}]"

    def axes(self, name: str) -> str:
        """Batch axes of an operand or output."""
        name = GRADIENTS.get(name, name)
        return self.inputs.get(name, self.layout.joint)

    def delta(self, i) -> str:
        """Expression for one element of the difference to the mean."""
        if self.is_logp:
            return f"np.float64({self.at('value', i)}) - np.float64({self.at('mu', i)})"
        return f"np.float64({self.at('delta', i)})"

    @property
    def cotangents(self) -> tuple[str, str]:
        """Expressions for the cotangents of quaddist and half_logdet."""
        if self.is_logp:
            g_logp = f"np.float64({self.at('g_logp')})"
            return f"-0.5 * {g_logp}", f"-{g_logp}"
        return f"np.float64({self.at('g_quad')})", f"np.float64({self.at('g_half_logdet')})"

    def accumulates(self, gradient: str) -> bool:
        """Whether several (m, r) add to the same element of a gradient for a vector."""
        return any(axis in "MR" and axis not in self.axes(gradient) for axis in self.layout.joint)

    def is_shared(self, name: str) -> bool:
        """Whether all matrices and rows use the same element of an operand."""
        return not set(self.axes(name)) & {"M", "R"}


def kernel_source(spec: KernelSpec, body: str) -> str:
    """The source of a kernel: `body` between the checks and the return."""
    lines = [
        f"def {spec.op}({', '.join(spec.inputs)}):",
        # strided inputs are copied once per call: the loops are compiled for contiguous arrays only
        *(
            f"    {name} = np.ascontiguousarray({name})"
            for name, axes in spec.inputs.items()
            if CORE_NDIMS[name] + len(axes)
        ),
        *("    " + line for line in check_lines(spec)),
        *("    " + line for line in allocation_lines(spec)),
        indent(body, "    ").rstrip(),
        f"    return {', '.join(name for name, _ in spec.outputs)}",
    ]
    return "\n".join(lines) + "\n"


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
    """Allocate the outputs; gradients that are sums over the batch start at zero."""
    sizes = {"M": "n_m", "R": "n_r", "1": "1"}
    for name, dtype in spec.outputs:
        if name in GRADIENTS:
            shape = f"{GRADIENTS[name]}.shape"
            function = "zeros" if name != "dmatrix" and spec.accumulates(name) else "empty"
        else:
            shape = "(" + "".join(f"{sizes[axis]}, " for axis in spec.layout.joint) + ")"
            function = "empty"
        yield f"{name} = np.{function}({shape}, dtype=np.{'bool_' if dtype == 'bool' else dtype})"


def vector_gradient_lines(spec: KernelSpec, i, g_delta: str):
    """Write or add one element of the gradients for the vectors."""
    for name, sign in (("dvalue", ""), ("dmu", "-"), ("ddelta", "")):
        if name in spec.wanted:
            if spec.accumulates(name):
                assignment = "-=" if sign else "+="
                yield f"{spec.at(name, i)} {assignment} {g_delta}"
            else:
                yield f"{spec.at(name, i)} = {sign}{g_delta}"


def forward_lines(spec: KernelSpec, n, quad: str, half_logdet: str, posdef: str):
    """Write the wanted forward outputs of one row."""
    values = {
        "logp": f"-0.9189385332046727 * {n} - 0.5 * {quad} - {half_logdet}",
        "quaddist": quad,
        "half_logdet": half_logdet,
        "posdef": posdef,
    }
    for name, value in values.items():
        if name in spec.wanted:
            yield f"{spec.at(name)} = {value}"
