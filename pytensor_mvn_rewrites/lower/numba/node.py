"""The source of the function that a node calls: checks of shapes, outputs, and calls of kernels.

It is generated because the axes differ from graph to graph; everything else in it is as one would
write it by hand. It is compiled for every graph, so it is small: all that differs between graphs
and not between matrices is passed to the kernel as numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Operand(NamedTuple):
    """An input or output.

    Attributes
    ----------
    name : str
    batch : str
        One letter for each batch axis: ``"R"`` along which rows vary, ``"M"`` for matrices, ``"1"``
        for an axis of length one.
    core : tuple of str
        Names of the other axes.
    dtype : str
    start : {"empty", "zeros", "ones"}
        What an output holds before a kernel writes or adds to it.
    """

    name: str
    batch: str
    core: tuple[str, ...] = ()
    dtype: str = "float64"
    start: str = "empty"

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of all axes."""
        return (*self.batch, *self.core)


def length_lines(
    name: str, inputs: Sequence[Operand], batch_axes: str, condition: str = "True"
) -> Iterator[str]:
    """Find the lengths of the axes; ValueError where the inputs of the function `name` disagree.

    A batch axis that no input has gets the length one. `condition` is what must hold besides.
    """
    known = {"1"}
    agree = {"core": [condition], "batch": []}
    for operand in inputs:
        for position, axis in enumerate(operand.axes):
            length = f"{operand.name}.shape[{position}]"
            if axis in known:
                kind = "batch" if position < len(operand.batch) else "core"
                agree[kind].append(f"{length} == {axis}")
            else:
                known.add(axis)
                yield f"{axis} = {length}"
    yield from (f"{axis} = 1" for axis in batch_axes if axis not in known)
    for kind, conditions in agree.items():
        if conditions:
            yield f"if not ({' and '.join(conditions)}):"
            yield f"    raise ValueError('{name}: the {kind} shapes of the inputs do not agree')"


def allocation_lines(outputs: Iterable[Operand]) -> Iterator[str]:
    """Allocate the outputs."""
    for out in outputs:
        shape = "".join(f"{axis}, " for axis in out.axes)
        yield f"{out.name} = np.{out.start}(({shape}), np.{out.dtype})"


def call_line(kernel: str, places: Iterable[Operand | None], header: str) -> str:
    """Call a kernel with what stands at the places of its table, None for what there is not."""
    names, axes = zip(*((p.name, p.batch) if p else ("None", "") for p in places), strict=True)
    return f'call_kernel("{kernel}", "{",".join(axes)}", ({header}), ({", ".join(names)}))'


def function_source(
    name: str, inputs: Iterable[Operand], outputs: Iterable[Operand], lines: Iterable[str]
) -> str:
    """The source of a function of these lines."""
    arguments, results = (", ".join(op.name for op in side) for side in (inputs, outputs))
    return "\n    ".join([f"def {name}({arguments}):", *lines, f"return {results}"]) + "\n"
