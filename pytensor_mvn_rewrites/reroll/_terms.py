"""The sums of a graph, their terms, and what they are made for."""

from collections.abc import Callable

from pytensor.assumptions import SpecifyAssumptions
from pytensor.graph.basic import Apply, Variable
from pytensor.raise_op import CheckAndRaise
from pytensor.scalar.basic import Add
from pytensor.tensor.basic import Join
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.linalg.constructors import BlockDiagonal
from pytensor.tensor.linalg.products import KroneckerProduct
from pytensor.tensor.shape import SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pytensor_mvn_rewrites.graph import core_op, in_graph_order, nodes_with
from pytensor_mvn_rewrites.ops.gaussian import FusedOp
from pytensor_mvn_rewrites.reroll._cost import FACTORIZING_OPS, FEW_SLICES, factorizes

#: Ops whose result has the structure of what they take in, which the rules of stage 3 look through.
STRUCTURAL_OPS = (
    Elemwise,
    DimShuffle,
    KroneckerProduct,
    BlockDiagonal,
    SpecifyAssumptions,
    SpecifyShape,
    CheckAndRaise,
    Subtensor,
    AdvancedSubtensor,
)


def structured_matrices(fgraph) -> set[Variable]:
    """The matrices that a factorization or a density takes in, and those that they are made of.

    What such a matrix is the sum of is its structure, for the rules of stage 3 to see: a sum of
    Kronecker products, a scaled matrix and a jitter.
    """
    pending = [inp for node in factorizations(fgraph) for inp in factorized(node)]
    found: set[Variable] = set()
    while pending:
        var = pending.pop()
        if var in found:
            continue
        found.add(var)
        if var.owner is None:
            continue
        if isinstance(core_op(var.owner.op), STRUCTURAL_OPS) or is_stack(var.owner):
            pending += matrices_of(var.owner)
    return found


def factorized(node: Apply) -> list[Variable]:
    """The matrices that a factorization or a density takes in, and not rows of vectors."""
    if not isinstance(node.op, FusedOp):
        return matrices_of(node)
    return [inp for inp, core in zip(node.inputs, node.op.core_ndims, strict=True) if core == 2]


def matrices_of(node: Apply) -> list[Variable]:
    """The inputs of `node` that may be matrices."""
    return [inp for inp in node.inputs if getattr(inp.type, "ndim", 0) >= 2]


def is_stack(node: Apply) -> bool:
    """Whether `node` joins whole matrices: along none of their own two axes."""
    return isinstance(node.op, Join) and node.op.axis < node.outputs[0].type.ndim - 2


def outer_sums(
    fgraph, wanted: Callable[[list[Variable]], object]
) -> list[tuple[Apply, list[Variable]]]:
    """The sums that are no part of larger ones, with their terms: those of `wanted` terms."""
    sums = {
        node: terms
        for node in nodes_with(fgraph, Elemwise)
        if is_add(node) and not _is_inner(fgraph, node)
        if wanted(terms := flatten(fgraph, node))
    }
    return [(node, sums[node]) for node in in_graph_order(fgraph, list(sums))]


def fewest_terms(fgraph) -> int:
    """How many terms must be alike: two where matrices are factorized, more where none is."""
    return 2 if factorizations(fgraph) else FEW_SLICES


def factorizations(fgraph) -> list[Apply]:
    """The nodes that factorize a matrix, or work with a factor."""
    nodes = nodes_with(fgraph, Blockwise, *FACTORIZING_OPS)
    return [node for node in nodes if factorizes(node.op)]


def is_add(node: Apply) -> bool:
    """Whether `node` is an elementwise addition of numbers; that of bools is a logical or."""
    op = node.op
    is_sum = isinstance(op, Elemwise) and isinstance(op.scalar_op, Add)
    return is_sum and node.outputs[0].type.dtype != "bool"


def _is_inner(fgraph, node) -> bool:
    """Whether the sum is only a part of a larger sum."""
    clients = fgraph.clients[node.outputs[0]]
    return len(clients) == 1 and is_add(clients[0][0]) and _same_type(clients[0][0], node)


def _same_type(outer: Apply, inner: Apply) -> bool:
    return outer.outputs[0].type == inner.outputs[0].type


def flatten(fgraph, node: Apply) -> list[Variable]:
    """The terms of a sum, through nested sums that have no other use."""
    terms = []
    pending = list(reversed(node.inputs))
    while pending:
        term = pending.pop()
        inner = term.owner
        if inner is not None and is_add(inner) and _is_inner(fgraph, inner):
            pending.extend(reversed(inner.inputs))
        else:
            terms.append(term)
    return terms
