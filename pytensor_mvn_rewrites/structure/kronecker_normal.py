"""What ``pm.KroneckerNormal`` allows: no noise, and eigendecompositions that are given."""

from typing import NamedTuple

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.scalar.basic import Mul
from pytensor.tensor.basic import AllocDiag, ExtractDiag
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.linalg.decomposition.eigen import Eigh
from pytensor.tensor.math import Dot

from pytensor_mvn_rewrites.graph import Tensor, dimshuffled, static_size
from pytensor_mvn_rewrites.ops import NoisyKroneckerQuadLogdet, noisy_kronecker_quad_logdet
from pytensor_mvn_rewrites.ops.kronecker import quad_logdet_of_eigendecompositions
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.constants import scalar_constant
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from pytensor_mvn_rewrites.proofs.symmetry import is_transpose
from pytensor_mvn_rewrites.structure._assemble import from_parts, outputs_like
from pytensor_mvn_rewrites.structure.kronecker import whiten_along_axes, with_positive_signs


@structure
@node_rewriter([NoisyKroneckerQuadLogdet])
def noise_is_zero(fgraph, node):
    r"""NoisyKroneckerQuadLogdet(delta, 0, A_1, ..., A_m) -> one Cholesky per Kronecker factor.

    The identity is that of :func:`~.kronecker.Kronecker`. Cost: a Cholesky
    factorization instead of an eigendecomposition, which takes about 20 times as long. Declines
    unless the noise is the constant 0 and all sizes are known.
    """
    delta, noise, *factors = node.inputs[: node.op.n_parts]
    sizes = [static_size(factor) for factor in factors]
    if scalar_constant(noise) != 0 or None in sizes or 0 in sizes:
        return None
    if any(given_eigendecomposition(fgraph, factor) is not None for factor in factors):
        # the other rules of this file know better
        return None
    factors = with_positive_signs(fgraph, None, factors, "cov")
    return from_parts(node, *whiten_along_axes(fgraph, delta, factors, sizes, "cov"))


@structure
@node_rewriter([NoisyKroneckerQuadLogdet])
def eigendecompositions_are_given(fgraph, node):
    r"""NoisyKroneckerQuadLogdet(delta, s, Q_1 @ diag(l_1) @ Q_1.T, ...) -> its formula.

    For orthogonal :math:`Q_k` the :math:`\lambda_k` are the eigenvalues, and nothing is left to
    decompose. Cost: :math:`O(\sum_k n_k^3 + N \sum_k n_k) \to O(N \sum_k n_k)`. Declines unless all
    :math:`Q_k` are constant and orthogonal, or the whole Kronecker factor is constant.
    """
    delta, noise, *factors = node.inputs[: node.op.n_parts]
    # of constants the cost comes last, and if all are, nothing needs this rule
    order = sorted(factors, key=lambda factor: isinstance(factor, Constant))
    if isinstance(order[0], Constant):
        return None
    given = {}
    for factor in order:
        given[factor] = constant_eigenvectors(fgraph, factor)
        if given[factor] is None:
            return None
    eigenvalues, eigenvectors = zip(*(given[factor] for factor in factors), strict=True)
    outputs = quad_logdet_of_eigendecompositions(delta, noise, eigenvalues, eigenvectors)
    return outputs_like(node, outputs)


@structure
@node_rewriter([NoisyKroneckerQuadLogdet])
def eigendecomposition_is_undone(fgraph, node):
    r"""NoisyKroneckerQuadLogdet(delta, s, Q @ diag(l) @ Q.T), (l, Q) = eigh(A) -> the same of A.

    .. math:: A = Q \Lambda Q^\top

    Cost: one eigendecomposition less, and its derivative, which is not defined where eigenvalues
    coincide. Both ops read the lower triangle.
    """
    delta, noise, *factors = node.inputs[: node.op.n_parts]
    undone = [decomposed_matrix(fgraph, factor) for factor in factors]
    if all(matrix is None for matrix in undone):
        return None
    factors = [old if new is None else new for old, new in zip(factors, undone, strict=True)]
    return outputs_like(node, noisy_kronecker_quad_logdet(delta, noise, factors))


class Eigendecomposition(NamedTuple):
    """The l and Q of ``Q @ diag(l) @ Q.T``."""

    eigenvalues: Tensor
    eigenvectors: Tensor


def given_eigendecomposition(fgraph, matrix: Tensor) -> Eigendecomposition | None:
    """The parts of ``Q @ diag(l) @ Q.T``, also of ``(Q * l) @ Q.T``, Q any matrix."""
    match matrix.owner_op_and_inputs:
        case (Dot() | Blockwise(Dot()), left, right) if matrix.type.ndim == 2:
            pass
        case _:
            return None
    if (scaled := scaled_along(right, axis=0)) is not None:
        eigenvalues, right = scaled
    elif (scaled := scaled_along(left, axis=1)) is not None:
        eigenvalues, left = scaled
    if scaled is None or not is_transpose(fgraph, left, right):
        return None
    match eigenvalues.owner_op_and_inputs:
        case (ExtractDiag(offset=0), Variable(owner=Apply(op=AllocDiag(offset=0), inputs=[inner]))):
            eigenvalues = inner
    return Eigendecomposition(eigenvalues, left)


def scaled_along(matrix: Tensor, axis: int) -> tuple[Tensor, Tensor] | None:
    """The l and A of ``diag(l) @ A`` (axis 0) or ``A @ diag(l)`` (axis 1), in either spelling."""
    match matrix.owner_op_and_inputs:
        case (Dot() | Blockwise(Dot()), *operands):
            entries = diagonal_of(operands[axis])
            return None if entries is None else (entries, operands[1 - axis])
        case (Elemwise(scalar_op=Mul()), one, other):
            for scale, rest in ((one, other), (other, one)):
                if scale.type.broadcastable == (axis == 1, axis == 0):
                    return dimshuffled(scale, (axis,)), rest
    return None


def constant_eigenvectors(fgraph, matrix: Tensor) -> Eigendecomposition | None:
    """The eigendecomposition of a matrix whose eigenvectors are constant."""
    if isinstance(matrix, Constant):
        if matrix.type.ndim > 2 or not np.isfinite(matrix.data).all():
            return None
        return Eigendecomposition(*map(pt.constant, np.linalg.eigh(matrix.data)))
    given = given_eigendecomposition(fgraph, matrix)
    return given if given and is_orthogonal_constant(given.eigenvectors) else None


def is_orthogonal_constant(matrix: Tensor) -> bool:
    """Whether `matrix` is a constant orthogonal matrix, up to rounding."""
    if not isinstance(matrix, Constant) or static_size(matrix) is None:
        return False
    data = np.asarray(matrix.data)
    n, eps = len(data), float(np.finfo(data.dtype).eps)
    return bool(np.allclose(data @ data.T, np.eye(n), rtol=0, atol=8 * n * eps))


def decomposed_matrix(fgraph, matrix: Tensor) -> Tensor | None:
    """The A of ``Q @ diag(l) @ Q.T`` with ``l, Q = eigh(A)``."""
    given = given_eigendecomposition(fgraph, matrix)
    if given is None:
        return None
    match given.eigenvectors.owner_op_and_inputs:
        case (Eigh(lower=True) | Blockwise(Eigh(lower=True)), decomposed):
            if given.eigenvalues.owner is given.eigenvectors.owner:
                return decomposed
    return None
