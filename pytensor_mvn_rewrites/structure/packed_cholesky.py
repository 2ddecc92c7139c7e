"""The packed Cholesky factor of ``pm.LKJCholeskyCov``: transform, prior and matrix in one op."""

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.graph.rewriting.basic import copy_stack_trace, node_rewriter
from pytensor.scalar.basic import Exp, Sqrt
from pytensor.tensor.basic import ExtractDiag
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.math import Dot
from pytensor.tensor.shape import SpecifyShape
from pytensor.tensor.subtensor import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    IncSubtensor,
    Subtensor,
    indices_from_subtensor,
)

from pytensor_mvn_rewrites.graph import (
    Tensor,
    core_op,
    is_core_diagonal,
    is_full_slice,
    is_transpose_of,
    positions_of,
)
from pytensor_mvn_rewrites.ops import PackedCholesky, packed_cholesky
from pytensor_mvn_rewrites.ops.packed_cholesky import diagonal_positions, packed_length
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.constants import scalar_constant
from pytensor_mvn_rewrites.structure._assemble import outputs_like


@structure
@node_rewriter([PackedCholesky])
def packed_diagonal_is_exponential(fgraph, node):
    r"""PackedCholesky(u[diagonal].set(exp(u[diagonal]))) -> PackedCholesky{log_diagonal}(u).

    What PyMC's transform ``CholeskyCovPacked`` computes from the unconstrained vector u. Cost: the
    same work in one node instead of four, and one pullback instead of five.
    Declines unless the exponentials are those of the diagonal and of u itself.
    """
    if node.op.log_diagonal:
        return None
    log_packed = log_diagonal_of(node.inputs[0], node.op.n)
    if log_packed is None:
        return None
    *others, diag = packed_cholesky(log_packed, node.op.n, log_diagonal=True)
    return outputs_like(node, [*others, pt.exp(diag)])


@structure
@node_rewriter([AdvancedIncSubtensor])
def packed_cholesky_is_unpacked(fgraph, node):
    """zeros((n, n))[tril_indices(n)].set(u[diagonal].set(exp(u[diagonal]))) -> PackedCholesky(u).

    So ``pm.expand_packed_triangular`` unpacks the factor of ``pm.LKJCholeskyCov`` in a model: the
    prior looks at the same node. Cost: one node instead of six, one pullback instead of six.
    Declines for vectors of another form, see `packed_diagonal_is_exponential`.
    """
    zeros, packed, *indices = node.inputs
    n = zeros.type.shape[-1]
    if not node.op.set_instead_of_inc or n is None or zeros.type.ndim < 2:
        return None
    index = indices_from_subtensor(indices, node.op.idx_list)
    if len(index) != zeros.type.ndim or not all(map(is_full_slice, index[:-2])):
        return None
    positions = [positions_of(i, n) for i in index[-2:]]
    if any(own is None for own in positions) or not np.array_equal(positions, np.tril_indices(n)):
        return None
    if scalar_constant(zeros) != 0 or packed.type.ndim != zeros.type.ndim - 1:
        return None
    log_packed = log_diagonal_of(packed, n)
    if log_packed is None:
        return None
    chol = packed_cholesky(log_packed, n, log_diagonal=True)[0]
    [old] = node.outputs
    if chol.type.dtype != old.type.dtype or chol.type.broadcastable != old.type.broadcastable:
        return None
    chol.tag.lower_triangular = True
    copy_stack_trace(old, chol)
    return [chol]


@structure
@node_rewriter([PackedCholesky])
def packed_diagonal_is_known(fgraph, node):
    """u[diagonal], beside PackedCholesky{log_diagonal}(u) -> its output `diag`.

    So the Jacobian of PyMC's transform reads it. Cost: one cotangent more of a pullback that is
    there, instead of two nodes. Declines for other indices.
    """
    [packed], diag = node.inputs, node.outputs[3]
    if not node.op.log_diagonal:
        return None
    read = [
        client.outputs[0]
        for client, position in fgraph.clients[packed]
        if isinstance(client.op, Subtensor | AdvancedSubtensor)
        and position == 0
        and takes(client, node.op.n)
        and client.outputs[0].type.broadcastable == diag.type.broadcastable
    ]
    copy_stack_trace(read, diag)
    return dict.fromkeys(read, diag) or None


@structure
@node_rewriter([PackedCholesky])
def packed_standard_deviations_are_known(fgraph, node):
    r"""sqrt(diag(L @ L.T)), beside PackedCholesky.L -> its output `sd`.

    So ``pm.LKJCholeskyCov`` computes its standard deviations. Cost: no product of the factor, where
    its correlation matrix is all that is left to use it.
    """
    chol, sd, *_ = node.outputs
    variances = [
        diagonal.outputs[0]
        for product, _ in fgraph.clients[chol]
        if isinstance(core_op(product.op), Dot)
        if product.inputs[0] is chol and is_transpose_of(product.inputs[1], chol)
        for diagonal, _ in fgraph.clients[product.outputs[0]]
        if isinstance(diagonal.op, ExtractDiag) and is_core_diagonal(diagonal)
    ]
    replacements = {}
    for variance in variances:
        if variance.type.broadcastable != sd.type.broadcastable:
            continue
        for client, _ in fgraph.clients[variance]:
            [out] = client.outputs
            if is_root(client):
                replacements[out] = sd
            elif isinstance(client.op, DimShuffle):
                roots = [root.outputs[0] for root, _ in fgraph.clients[out] if is_root(root)]
                replacements |= dict.fromkeys(roots, client.op(sd))
    for old, new in replacements.items():
        copy_stack_trace(old, new)
    return replacements or None


def is_root(node) -> bool:
    """Whether `node` takes square roots."""
    return isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, Sqrt)


def log_diagonal_of(packed: Tensor, n: int) -> Tensor | None:
    """The vector u of ``packed = u[diagonal].set(exp(u[diagonal]))``, or None."""
    match packed.owner_op_and_inputs:
        case (SpecifyShape(), inner, *_):
            return log_diagonal_of(inner, n)
        case (
            (IncSubtensor() | AdvancedIncSubtensor()) as op,
            log_packed,
            Variable(owner_op_and_inputs=(Elemwise(scalar_op=Exp()), exponents)),
            *_,
        ) if op.set_instead_of_inc and takes(packed.owner, n):
            pass
        case _:
            return None
    match exponents.owner_op_and_inputs:
        case (Subtensor() | AdvancedSubtensor(), inner, *_) if inner is log_packed:
            return log_packed if takes(exponents.owner, n) else None
        case (PackedCholesky(log_diagonal=True, n=own_n), inner) if inner is log_packed:
            is_diagonal = exponents is exponents.owner.outputs[3] and own_n == n
            return log_packed if is_diagonal else None
    return None


def takes(node, n: int) -> bool:
    """Whether an indexing node takes (or sets) the diagonal of packed triangles of n rows."""
    packed = node.inputs[0]
    n_before = 1 if isinstance(node.op, Subtensor | AdvancedSubtensor) else 2
    index = indices_from_subtensor(node.inputs[n_before:], node.op.idx_list)
    if len(index) != packed.type.ndim or not all(map(is_full_slice, index[:-1])):
        return False
    positions = positions_of(index[-1], packed_length(n))
    return positions is not None and np.array_equal(positions, diagonal_positions(n))
