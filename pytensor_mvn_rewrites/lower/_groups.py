"""Rows in groups: densities whose matrices are gathered, and their gradients scattered.

The derivative of the gather ``batch[index]`` adds the gradients of the rows to zeros, at `index`.
Between the two, a density has one matrix for each row. A kernel that takes `batch` and `index`
needs no more than one for each group. Where only the means are gathered, each group gets the
matrix that all share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.tensor.basic import Alloc
from pytensor.tensor.subtensor import AdvancedIncSubtensor, AdvancedSubtensor

from pytensor_mvn_rewrites.graph import Tensor

#: Matrices with fewer rows each, by their known numbers, are gathered. Measured on one core with
#: all gradients, n = 3: 5000 rows of 5000 matrices take 307 us by groups and 247 us gathered, 2000
#: of 1000 take 83 and 81, 1000 of 100 take 30 and 33, 2000 of 20 take 18 and 57
MIN_ROWS = 4

#: The same for medium matrices, whose rows are no longer side by side. At n = 20, 400 rows of 100
#: matrices take 824 us by groups and 585 us gathered, 800 take 863 and 988
MIN_ROWS_MEDIUM, MEDIUM_N = 8, 17


#: Fewer rows for each group do not pay for copies of a matrix that all rows share, and larger
#: matrices do not either. Measured on one core with all gradients, means gathered and by groups,
#: 2000 rows: with 2 groups in order and n = 2, 12 us and 5 us, in disorder 14 and 9; with 20 groups
#: in disorder 9.3 and 9.1 for n = 2, 18 and 14 for n = 3, 40 and 39 for n = 8
MIN_ROWS_SHARED = 100
MAX_N_SHARED = 8


@dataclass(frozen=True)
class RowGroups:
    """What a density takes instead of gathers, and gives instead of what is scattered.

    Attributes
    ----------
    index : tensor of int, shape (R,)
        The group of each row.
    batches : dict of int to tensor
        Of each input that is gathered, by its position, the batch; all have equal lengths.
    scatters : dict of int to Apply
        Of those whose gradient is wanted, the node that scatters it.
    shared : int or None
        The position of a matrix that is not gathered: its batch repeats it.
    """

    index: Variable
    batches: dict[int, Variable]
    scatters: dict[int, Apply]
    shared: int | None = None

    def gradient(self, position: int, of_batch: Tensor) -> tuple[Tensor, Tensor]:
        """(Old, new) result of a scatter, given the gradient for the batch."""
        base, *_ = self.scatters[position].inputs
        [old] = self.scatters[position].outputs
        return old, of_batch if is_zero(base) else base + of_batch


def find_row_groups(
    fgraph,
    inputs: Sequence[Variable],
    core_ndims: Sequence[int],
    gradients: Mapping[int, Variable],
) -> RowGroups | None:
    """The groups of rows that a density has, or None if there are none, or gathers are cheaper.

    Parameters
    ----------
    fgraph : FunctionGraph
    inputs : sequence of tensor
        Of the density, and the cotangents.
    core_ndims : sequence of int
    gradients : dict of int to tensor
        The wanted gradients, by the position of their inputs.
    """
    matrix = list(core_ndims).index(2)
    if any(inp.type.ndim - core > 1 for inp, core in zip(inputs, core_ndims, strict=True)):
        return None
    found = gathered_rows(inputs[matrix])
    if found is None:
        return groups_of_means(fgraph, inputs, core_ndims, gradients)
    batch, index = found
    length, n_rows = batch.type.shape[0], known_rows(inputs, core_ndims, index)
    is_medium = (inputs[matrix].type.shape[-1] or 0) >= MEDIUM_N
    min_rows = MIN_ROWS_MEDIUM if is_medium else MIN_ROWS
    if n_rows and length is not None and n_rows < min_rows * length:
        return None
    batches: dict[int, Variable] = {}
    scatters: dict[int, Apply] = {}
    for position, inp in enumerate(inputs):
        found = gathered_rows(inp)
        if found is None or not is_same(found[1], index):
            continue
        batch, _ = found
        if position != matrix and (length is None or batch.type.shape[0] != length):
            continue
        if position in gradients:
            scatter = scattered(fgraph, gradients[position], batch, index)
            if scatter is None:
                continue
            scatters[position] = scatter
        batches[position] = batch
    return RowGroups(index, batches, scatters) if matrix in batches else None


def groups_of_means(fgraph, inputs, core_ndims, gradients) -> RowGroups | None:
    """The groups of rows of which each has a mean, and all have one matrix."""
    matrix = list(core_ndims).index(2)
    gathers = {k: rows for k, inp in enumerate(inputs) if (rows := gathered_rows(inp))}
    if len(gathers) != 1 or inputs[matrix].type.ndim != 2:
        return None
    [(position, (batch, index))] = gathers.items()
    if core_ndims[position] != 1 or batch.type.ndim != 2:
        return None
    n_groups, n = batch.type.shape
    n_rows = known_rows(inputs, core_ndims, index)
    if not n_groups or not n or n > MAX_N_SHARED:
        return None
    if n_rows and n_rows < MIN_ROWS_SHARED * n_groups:
        return None
    scatters = {}
    if position in gradients:
        scatter = scattered(fgraph, gradients[position], batch, index)
        if scatter is None:
            return None
        scatters[position] = scatter
    repeated: Tensor = pt.alloc(inputs[matrix], n_groups, n, n)
    return RowGroups(index, {position: batch, matrix: repeated}, scatters, shared=matrix)


def known_rows(inputs, core_ndims, index) -> int:
    """The number of rows, 0 where it is not known."""
    has_rows = [inp for inp, core in zip(inputs, core_ndims, strict=True) if inp.type.ndim > core]
    return max(inp.type.shape[0] or 0 for inp in (*has_rows, index))


def gathered_rows(var: Variable) -> tuple[Variable, Variable] | None:
    """(batch, index) if `var` is ``batch[index]`` for a vector of integers."""
    match var.owner_op_and_inputs:
        case (AdvancedSubtensor() as op, batch, index) if (
            op._take_axis() == 0 and index.type.ndim == 1
        ):
            is_integer = np.dtype(index.type.dtype).kind in "iu"
            return (batch, index) if is_integer and index.type.shape != (1,) else None
    return None


def scattered(fgraph, gradient: Variable, batch: Variable, index: Variable) -> Apply | None:
    """The node that adds the gradients of rows to those of `batch`, if it alone needs them."""
    clients = fgraph.clients.get(gradient, ())
    if len(clients) != 1:
        return None
    [(node, position)] = clients
    op = node.op
    if not isinstance(op, AdvancedIncSubtensor) or position != 1 or op.idx_list != (0,):
        return None
    if op.set_instead_of_inc or op.ignore_duplicates or not is_same(node.inputs[2], index):
        return None
    [out] = node.outputs
    # it may add them to something longer than the batch
    is_alike = out.type.shape[0] == batch.type.shape[0] is not None
    return node if is_alike and out.type.dtype == gradient.type.dtype else None


def is_same(one: Variable, other: Variable) -> bool:
    """Whether two indices are known to be equal."""
    return one is other or (isinstance(one, Constant) and one.equals(other))


def is_zero(base: Variable) -> bool:
    """Whether all elements are zero."""
    if base.owner is not None and isinstance(base.owner.op, Alloc):
        base = base.owner.inputs[0]
    return isinstance(base, Constant) and not np.any(base.data)
