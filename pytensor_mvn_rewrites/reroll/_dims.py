"""Which dimensions of unknown length are provably equal.

With ``dims=`` or ``pm.Data`` most shapes are unknown while the gradient is prepared. What a graph
does with its variables still ties their lengths together: an elementwise op that gets two
dimensions of unknown length fails unless they are equal, a density whose covariance is 3 x 3 fails
unless its value has length 3. Every equation here has the form "if the graph evaluates at all,
these lengths are equal", so acting on it cannot change a result.

The values of a model's variables have the lengths of its dims, which the graph of a log-density
does not say: `declare_lengths` does. What is stacked because of it raises an error where a value
has another length.
"""

from collections.abc import Hashable, Iterable, Sequence

from pytensor.graph.basic import Variable
from pytensor.graph.traversal import toposort
from pytensor.raise_op import CheckAndRaise
from pytensor.tensor.basic import Alloc, Join
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.shape import SpecifyShape
from pytensor.tensor.subtensor import Subtensor

from pytensor_mvn_rewrites._upstream import IfElse
from pytensor_mvn_rewrites.graph import reduced_axes
from pytensor_mvn_rewrites.ops import PackedCholesky
from pytensor_mvn_rewrites.ops.gaussian import FusedOp, parse_signature
from pytensor_mvn_rewrites.ops.packed_cholesky import packed_length

Dim = tuple[Variable, int]


def declare_lengths(var: Variable, lengths: Sequence[Hashable | None]) -> None:
    """Say of each dimension what its length depends on: where it is equal, so are the lengths.

    Parameters
    ----------
    var : Variable
        An input of graphs.
    lengths : sequence of hashable or None
        None for dimensions of which nothing is known.
    """
    var.tag.mvn_rewrites_lengths = tuple(lengths)


class DimEquations:
    """Equations between the dimensions of all variables that `roots` depend on."""

    def __init__(self, roots: Sequence[Variable]):
        self._parent: dict[Dim, Dim] = {}
        self._length: dict[Dim, int] = {}
        nodes = list(toposort(roots))
        if lazy := [out for node in nodes if isinstance(node.op, IfElse) for out in node.outputs]:
            # a branch that is not taken says nothing
            nodes = list(toposort(roots, blockers=lazy))
        for node in nodes:
            _equate_node(self, node)
        declared: dict[Hashable, Dim] = {}
        for var in {*roots, *(inp for node in nodes for inp in node.inputs)}:
            for axis, length in enumerate(getattr(var.tag, "mvn_rewrites_lengths", ())):
                if length is not None:
                    self.equate((var, axis), declared.setdefault(length, (var, axis)))

    def length(self, var: Variable, axis: int) -> int | None:
        """Length of a dimension if it is known."""
        static = var.type.shape[axis]
        return static if static is not None else self._length.get(self._find((var, axis)))

    def all_equal(self, variables: Sequence[Variable], axis: int) -> bool:
        """Whether the dimension `axis` of all variables is provably of one length."""
        lengths = {self.length(var, axis) for var in variables}
        if lengths == {None}:
            return len({self._find((var, axis)) for var in variables}) == 1
        return len(lengths) == 1

    def equate(self, *dims: Dim) -> None:
        """Record that all these dimensions have one length."""
        first = self._find(dims[0])
        for dim in dims:
            root = self._find(dim)
            static = dim[0].type.shape[dim[1]]
            length = static if static is not None else self._length.get(root)
            self._parent[root] = first
            if length is not None:
                self._length.setdefault(first, length)

    def set_length(self, dim: Dim, length: int) -> None:
        """Record the length of a dimension."""
        self._length.setdefault(self._find(dim), length)

    def _find(self, dim: Dim) -> Dim:
        path = []
        while (parent := self._parent.get(dim, dim)) != dim:
            path.append(dim)
            dim = parent
        for step in path:
            self._parent[step] = dim
        return dim


def _equate_node(dims: DimEquations, node) -> None:
    match node.op:
        case Elemwise():
            _equate_aligned(dims, [*node.inputs, *node.outputs])
        case CheckAndRaise():
            _equate_aligned(dims, [node.inputs[0], node.outputs[0]])
        case SpecifyShape():
            _equate_aligned(dims, [node.inputs[0], node.outputs[0]])
        case DimShuffle():
            for axis, source in enumerate(node.op.new_order):
                if source != "x":
                    dims.equate((node.inputs[0], source), (node.outputs[0], axis))
        case CAReduce():
            ndim = node.inputs[0].type.ndim
            reduced = {axis % ndim for axis in reduced_axes(node)}
            kept = [axis for axis in range(ndim) if axis not in reduced]
            for axis, source in enumerate(kept):
                dims.equate((node.inputs[0], source), (node.outputs[0], axis))
        case Join(axis=axis):
            for other in range(node.outputs[0].type.ndim):
                if other != axis:
                    dims.equate(*[(var, other) for var in [*node.inputs, *node.outputs]])
        case Alloc():
            # Alloc stretches only what is statically of length 1
            value, *_ = node.inputs
            _equate_aligned(dims, [value, node.outputs[0]])
        case Subtensor(idx_list=idx_list):
            _equate_subtensor(dims, node, idx_list)
        case PackedCholesky(n=n):
            [packed] = node.inputs
            dims.set_length((packed, packed.type.ndim - 1), packed_length(n))
            _equate_gufunc(dims, node, *parse_signature(node.op.signature))
        case FusedOp():
            _equate_gufunc(dims, node, *parse_signature(node.op.signature))
        case Blockwise():
            _equate_gufunc(dims, node, node.op.inputs_sig, node.op.outputs_sig)
        case _ if (signature := getattr(node.op, "gufunc_signature", None)) is not None:
            _equate_gufunc(dims, node, *parse_signature(signature))


def _equate_aligned(
    dims: DimEquations, variables: Iterable[Variable], core_ndims: Iterable[int] | None = None
) -> None:
    """Equate dimensions aligned from the right; dimensions of static length 1 may be stretched."""
    variables = list(variables)
    cores = [0] * len(variables) if core_ndims is None else list(core_ndims)
    batch_ndims = [var.type.ndim - core for var, core in zip(variables, cores, strict=True)]
    for back in range(1, max(batch_ndims) + 1):
        aligned = [
            (var, ndim - back)
            for var, ndim in zip(variables, batch_ndims, strict=True)
            if ndim >= back and var.type.shape[ndim - back] != 1
        ]
        if len(aligned) > 1:
            dims.equate(*aligned)


def _equate_subtensor(dims: DimEquations, node, idx_list) -> None:
    source, [out] = node.inputs[0], node.outputs
    out_axis = 0
    for axis in range(source.type.ndim):
        entry = idx_list[axis] if axis < len(idx_list) else slice(None)
        if not isinstance(entry, slice):
            continue
        if entry == slice(None):
            dims.equate((source, axis), (out, out_axis))
        out_axis += 1


def _equate_gufunc(dims: DimEquations, node, inputs_sig, outputs_sig) -> None:
    """Core dimensions with one label have one length, and the batch dimensions are aligned.

    Ops are written in terms of others, which may stretch what is statically of length 1.
    """
    by_label: dict[str, list[Dim]] = {}
    variables = [*node.inputs, *node.outputs]
    signatures = [*inputs_sig, *outputs_sig]
    for var, labels in zip(variables, signatures, strict=True):
        for i, label in enumerate(labels):
            axis = var.type.ndim - len(labels) + i
            if isinstance(node.op, Blockwise) or var.type.shape[axis] != 1:
                by_label.setdefault(label, []).append((var, axis))
    for same in by_label.values():
        dims.equate(*same)
    _equate_aligned(dims, variables, [len(labels) for labels in signatures])
