"""What the kernels of structured covariances share: one covariance, and rows that may share it.

The function that a node calls is generated from the names of the axes of its operands: it checks
the lengths, allocates the outputs, and calls a kernel with a table of addresses. There is one
kernel for value and gradient, and for all sizes: its compilation costs more than a decision at run
time in each of the thousands of evaluations that a sampler needs.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from pytensor.compile.builders import OpFromGraph
from pytensor.link.numba.dispatch.basic import (
    numba_funcify_and_cache_key,
    register_funcify_and_cache_key,
)

from pytensor_mvn_rewrites.lower.numba.jit import (
    Table,
    call_kernel,
    compile_source,
    kernel_address,
    njit_exact,
)
from pytensor_mvn_rewrites.lower.numba.vectors import load, store
from pytensor_mvn_rewrites.lower.numba_backend import has_kernel
from pytensor_mvn_rewrites.ops.gaussian import parse_signature

#: The header of the table: number of rows, their length, and how many other sizes follow
N_ROWS, N, N_SIZES, SIZES = range(4)
STRIDES = Table.STRIDES


class Operand(NamedTuple):
    """An input or output.

    Attributes
    ----------
    name : str
    rows : str
        ``"R"`` with one entry for each row, ``"1"`` with one for all of them, ``""`` without such
        an axis.
    core : tuple of str
        Names of the other axes.
    dtype : str
    """

    name: str
    rows: str
    core: tuple[str, ...] = ()
    dtype: str = "float64"

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of all axes."""
        return (*self.rows, *self.core)


def rows_of(var, core_ndim: int) -> str:
    """The `rows` of an operand that stands for a variable."""
    return "".join(
        "1" if one else "R" for one in var.type.broadcastable[: var.type.ndim - core_ndim]
    )


class NodeFunction(NamedTuple):
    """The function that a node calls.

    Attributes
    ----------
    kernel : str
    inputs, outputs : sequence of Operand
    places : sequence of str
        Names of the operands in the order of the table; the kernel sees those that this node does
        not have as not wanted.
    sizes : sequence of str
        What follows the number of rows and their length in the header, by names of axes.
    condition : str
        What must hold for the lengths of axes besides.
    """

    kernel: str
    inputs: Sequence[Operand]
    outputs: Sequence[Operand]
    places: Sequence[str]
    sizes: Sequence[str] = ()
    condition: str = "True"

    @classmethod
    def of(cls, op, node, kernel: str, names: str, places, condition="True") -> "NodeFunction":
        """The function of a node, by the signature of its op.

        Parameters
        ----------
        op : FusedOp
            Its labels are the names of the axes; all but n are sizes, in the order of appearance.
        node : Apply
            Rows are those of the first input.
        names : str
            The names of the operands, ``"inputs -> outputs"``.
        kernel, places, condition
            As the attributes.
        """
        rows = rows_of(node.inputs[0], op.core_ndims[0])
        operands: list[list[Operand]] = []
        sizes: dict[str, None] = {}
        sides = zip(
            names.split("->"),
            (node.inputs, node.outputs),
            parse_signature(op.signature),
            strict=True,
        )
        for side, variables, labels in sides:
            own = []
            for name, var, core in zip(side.split(), variables, labels, strict=True):
                batch = rows_of(var, len(core))
                if variables is node.outputs:
                    # their types may know less of the rows
                    batch = rows[: len(batch)]
                dtype = "bool_" if var.type.dtype == "bool" else "float64"
                own.append(Operand(name, batch, core, dtype))
                sizes |= dict.fromkeys(label for label in core if label != "n")
            operands.append(own)
        inputs, outputs = operands
        return cls(kernel, inputs, outputs, places, tuple(sizes), condition)

    def source(self, name: str) -> str:
        """Its source."""
        rows = {operand.name: operand.rows for operand in (*self.inputs, *self.outputs)}
        axes = ",".join(rows.get(place, "") for place in self.places)
        header = ", ".join(("R", "n", str(len(self.sizes)), *self.sizes))
        operands = ", ".join(place if place in rows else "None" for place in self.places)
        lines = [
            *self._lengths(name),
            *(
                f"{out.name} = np.empty(({''.join(f'{a}, ' for a in out.axes)}), np.{out.dtype})"
                for out in self.outputs
            ),
            f'call_kernel("{self.kernel}", "{axes}", ({header}), ({operands}))',
            f"return {', '.join(out.name for out in self.outputs)}",
        ]
        arguments = ", ".join(operand.name for operand in self.inputs)
        return "\n    ".join([f"def {name}({arguments}):", *lines]) + "\n"

    def _lengths(self, name: str) -> Iterator[str]:
        """The lengths of the axes; ValueError where operands disagree."""
        known = {"1"}
        agree = [self.condition]
        for operand in self.inputs:
            for position, axis in enumerate(operand.axes):
                length = f"{operand.name}.shape[{position}]"
                if axis in known:
                    agree.append(f"{length} == {axis}")
                else:
                    known.add(axis)
                    yield f"{axis} = {length}"
        if "R" not in known:
            yield "R = 1"
        yield f"if not ({' and '.join(agree)}):"
        yield f'    raise ValueError("{name}: the shapes of the inputs do not agree")'


def compiled_by(*ops: type):
    """Compile nodes of `ops` to what the decorated function says of them.

    Nodes that no kernel covers run their inner graphs.
    """

    def register(function: Callable[..., NodeFunction]):
        def funcify(op, node, **kwargs):
            if not has_kernel(node):
                return numba_funcify_and_cache_key.dispatch(OpFromGraph)(op, node, **kwargs)
            described = function(op, node)
            # now, rather than in the first call
            kernel_address(described.kernel)
            name = type(op).__name__
            return _compiled(described.source(name), name)

        for op in ops:
            register_funcify_and_cache_key(op)(funcify)
        return function

    return register


@lru_cache(maxsize=1024)
def _compiled(source: str, name: str) -> tuple[Callable, str]:
    """One function for all nodes of the same source: Numba compiles it once."""
    return compile_source(source, name, {"call_kernel": call_kernel})


@njit_exact
def start_of(table, operand):
    """Where the numbers of the operand of a place start in the table."""
    return SIZES + table[N_SIZES] + STRIDES * operand


@njit_exact
def is_wanted(table, operand):
    """Whether the node has an operand."""
    return table[start_of(table, operand)] != 0


@njit_exact
def number(table, operand, row):
    """The address of the number of a row, or of one that has no rows."""
    start = start_of(table, operand)
    return table[start] + row * table[start + 1]


@njit_exact
def copy_in(table, operand, rows, columns, out):
    """Copy a matrix, a vector or the vectors of all rows to contiguous scratch."""
    start = start_of(table, operand)
    # matrices have no batch axis, vectors no second core axis: one of the distances is zero
    address, row, column = table[start], table[start + 1] + table[start + 3], table[start + 4]
    for i in range(rows):
        for j in range(columns):
            out[i * columns + j] = load(address + i * row + j * column)


@njit_exact
def copy_out(table, operand, rows, columns, numbers):
    """The reverse."""
    start = start_of(table, operand)
    address, row, column = table[start], table[start + 1] + table[start + 3], table[start + 4]
    for i in range(rows):
        for j in range(columns):
            store(address + i * row + j * column, numbers[i * columns + j])
