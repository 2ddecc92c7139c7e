"""``NoisyKroneckerQuadLogdet``: a Kronecker product plus a multiple of the identity, as one op."""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pytensor.tensor as pt

from pytensor_mvn_rewrites.graph import length, lengths_of
from pytensor_mvn_rewrites.ops.eigen import EigenPullbackOp, SharedRows, eigh
from pytensor_mvn_rewrites.ops.gaussian import (
    GaussianOp,
    KernelOp,
    QuadLogdetOp,
    fold_lower,
    is_pullback_of,
    nan_unless,
    of_one_batch,
)
from pytensor_mvn_rewrites.ops.quadlogdet import inv_quad_logdet


class KroneckerOp(KernelOp, GaussianOp):
    """Base of the ops of Kronecker factors, of which there may be any number."""

    __props__ = ("n_factors",)
    is_inlined = True
    n_factors: int

    def __str__(self):
        return f"{type(self).__name__}{{{self.n_factors}}}"

    @property
    def parts(self) -> str:
        """The part ``(n),(),(n1,n1),...,(nm,nm)`` of the signature."""
        return "(n),()," + self._per_factor("(n{0},n{0})")

    @property
    def decomposed_parts(self) -> str:
        """All of them, the eigenvalues ``(n1),...,(nm)`` and the eigenvectors."""
        return f"{self.parts},{self._per_factor('(n{0})')},{self._per_factor('(n{0},n{0})')}"

    def _per_factor(self, labels: str) -> str:
        return ",".join(labels.format(k + 1) for k in range(self.n_factors))

    def eigendecompositions(self, inputs) -> tuple[Sequence, Sequence]:
        """The eigenvalues and the eigenvectors of all Kronecker factors."""
        m = self.n_factors
        return inputs[2 + m : 2 + 2 * m], inputs[2 + 2 * m : 2 + 3 * m]


class NoisyKroneckerQuadLogdet(KroneckerOp, QuadLogdetOp):
    r"""Quadratic form and half log-determinant of a Kronecker product plus noise.

    Of :math:`\Sigma = A_1 \otimes \cdots \otimes A_m + s I`, signature
    ``(n),(),(n1,n1),...,(nm,nm),(n1),...,(nm),(n1,n1),...,(nm,nm)->(),(),()``,

    .. math:: q = \delta^\top \Sigma^{-1} \delta, \qquad h = \tfrac12 \log|\Sigma|

    With :math:`A_k = Q_k \Lambda_k Q_k^\top` the eigenvalues e of :math:`\Sigma` are all products
    of one eigenvalue of each :math:`A_k`, plus s, and

    .. math:: q = \sum_i r_i^2 / e_i, \qquad r = \Big(\bigotimes_k Q_k^\top\Big) \delta, \qquad
              h = \tfrac12 \sum_i \log e_i

    Inputs
        delta : float, shape (..., n); noise : float, shape (...), the variance s;
        Kronecker factors : float, shape (..., n_k, n_k), symmetric, of any definiteness, then
        their eigenvalues and their eigenvectors. :math:`n = \prod_k n_k`.

    Outputs
        quaddist, half_logdet : float, shape (...), NaN where :math:`\Sigma` is not positive
        definite; posdef : bool, shape (...). An eigenvalue smaller than the rounding error of the
        largest one counts as zero, by the threshold of ``numpy.linalg.matrix_rank``.

    Source: Saatçi, Scalable inference for structured Gaussian process models, 2011, ch. 5.
    """

    @property
    def signature(self) -> str:  # type: ignore[override]
        """A vector, a scalar, the matrices, and their eigendecompositions."""
        return f"{self.decomposed_parts}->(),(),()"

    def build_inner_graph(self, *inputs):
        """The formula, in plain PyTensor."""
        delta, noise, *_ = inputs
        return quad_logdet_of_eigendecompositions(delta, noise, *self.eigendecompositions(inputs))


@is_pullback_of(NoisyKroneckerQuadLogdet)
class NoisyKroneckerQuadLogdetPullback(KroneckerOp, EigenPullbackOp):
    r"""Gradient of :class:`NoisyKroneckerQuadLogdet`.

    Signature that of the inputs, then ``(),()->(n),(),(n1,n1),...,(nm,nm)``. With
    :math:`t = r / e`, and :math:`w_k` all products of the eigenvalues of the other Kronecker
    factors; :math:`T_k` and :math:`E_k` hold the entries of t and e in :math:`n_k` rows,

    .. math::

        \bar\delta &= 2 \bar q \Big(\bigotimes_k Q_k\Big) t \\
        \bar s &= -\bar q\, t^\top t + \tfrac12 \bar h \sum_i 1 / e_i \\
        \bar A_k &= Q_k \Big[ -\bar q\, T_k \,\mathrm{diag}(w_k)\, T_k^\top
            + \tfrac12 \bar h\, \mathrm{diag}\big(E_k^{-1} w_k\big) \Big] Q_k^\top

    These are partial traces of :math:`-\bar q\, a a^\top + \tfrac12 \bar h\, \Sigma^{-1}` with
    :math:`a = \Sigma^{-1} \delta`, the gradient for :math:`\Sigma`. Each :math:`\bar A_k` is folded
    into the lower triangle.

    Its own derivative is that of the dense formula, with matrices of n rows.
    """

    @property
    def signature(self) -> str:  # type: ignore[override]
        """The inputs of the forward op, and two cotangents."""
        return f"{self.decomposed_parts},(),()->{self.parts}"

    def build_inner_graph(self, *inputs):
        """The formulas, in plain PyTensor."""
        delta, noise, *_, g_quad, g_half_logdet = inputs
        eigenvalues, eigenvectors = self.eigendecompositions(inputs)
        delta = SharedRows(delta, batch_ndim(noise, eigenvectors))
        g_quad, g_half_logdet = delta.fold(g_quad, 0), delta.fold(g_half_logdet, 0).sum(axis=-1)
        spectrum, _ = noisy_spectrum(eigenvalues, noise)

        t = rows_times_kron(delta.rows, eigenvectors) / spectrum[..., :, None]
        weighted = g_quad[..., None, :] * t
        d_delta = delta.unfold(kron_times_columns(eigenvectors, 2 * weighted), 1)
        d_noise = 0.5 * g_half_logdet * (1 / spectrum).sum(axis=-1) - (weighted * t).sum((-2, -1))
        d_factors = []
        for k, q in enumerate(eigenvectors):
            ones = pt.ones_like(eigenvalues[k])
            others = kron_diagonal([*eigenvalues[:k], ones, *eigenvalues[k + 1 :]])
            inner = -matricize(weighted * others[..., :, None], eigenvectors, k) @ (
                matricize(t, eigenvectors, k).mT
            )
            partial_trace = matricize((others / spectrum)[..., None], eigenvectors, k).sum(axis=-1)
            half_inverse = 0.5 * g_half_logdet[..., None] * partial_trace
            d_factors.append(fold_lower(q @ inner @ q.mT + (q * half_inverse[..., None, :]) @ q.mT))
        return self.sum_to_inputs(inputs, [d_delta, d_noise, *d_factors])

    @staticmethod
    def formula(delta, noise, *factors):
        """By the dense covariance."""

        def kron(left, right):
            product = left[..., :, None, :, None] * right[..., None, :, None, :]
            sizes = (length(left) * length(right),) * 2
            return product.reshape((*lengths_of(product, 0, -4), *sizes))

        symmetric = [pt.tril(factor) + pt.tril(factor, -1).mT for factor in factors]
        dense = reduce(kron, symmetric)
        eye = pt.eye(length(dense), dtype=dense.type.dtype)
        return inv_quad_logdet(delta, dense + noise[..., None, None] * eye)


def quad_logdet_of_eigendecompositions(delta, noise, eigenvalues: Sequence, eigenvectors: Sequence):
    """The outputs of :class:`NoisyKroneckerQuadLogdet` of Kronecker factors that are decomposed."""
    delta = SharedRows(delta, batch_ndim(noise, eigenvectors))
    spectrum, posdef = noisy_spectrum(eigenvalues, noise)
    rotated = rows_times_kron(delta.rows, eigenvectors)
    quaddist = delta.unfold((rotated**2 / spectrum[..., :, None]).sum(axis=-2), 0)
    half_logdet = 0.5 * pt.log(spectrum).sum(axis=-1)
    return of_one_batch(quaddist, half_logdet, posdef)


def batch_ndim(noise, factors: Sequence) -> int:
    """Number of batch dimensions that the parts of the covariance have together."""
    return max(noise.type.ndim, *(factor.type.ndim - 2 for factor in factors))


def kron_diagonal(diagonals: Sequence):
    """The diagonal of a Kronecker product of diagonal matrices."""

    def outer(left, right):
        product = left[..., :, None] * right[..., None, :]
        return product.reshape((*lengths_of(product, 0, -2), length(left) * length(right)))

    return reduce(outer, diagonals)


def noisy_spectrum(eigenvalues: Sequence, noise):
    """The eigenvalues of the covariance, NaN where one is not positive, and whether all are."""
    spectrum = kron_diagonal(eigenvalues) + noise[..., None]
    eps = float(np.finfo(spectrum.type.dtype).eps)
    size = reduce(pt.maximum, [values.shape[-1] for values in eigenvalues])
    threshold = eps * size.astype(spectrum.dtype) * abs(spectrum).max(axis=-1, keepdims=True)
    posdef = (spectrum > threshold).all(axis=-1)
    return nan_unless(posdef[..., None], spectrum), posdef


def rows_times_kron(rows, matrices: Sequence):
    """The Kronecker product, transposed, times each row: (..., r, n) -> columns, (..., n, r)."""
    n_rows, n = length(rows, -2), length(rows)
    # invariant: the axis of the next matrix comes last, those before it were moved to the front
    for matrix in reversed(matrices):
        size = length(matrix)
        rows = rows.reshape((*lengths_of(rows, 0, -2), n_rows * n // size, size)) @ matrix
        rows = rows.mT
    return rows.reshape((*lengths_of(rows, 0, -2), n, n_rows))


def kron_times_columns(matrices: Sequence, columns):
    """The Kronecker product times each column: (..., n, r) -> rows, (..., r, n)."""
    n, n_columns = length(columns, -2), length(columns)
    # invariant: the axis of the next matrix comes first, those after it were moved to the back
    for matrix in matrices:
        size = length(matrix)
        shape = (*lengths_of(columns, 0, -2), size, n * n_columns // size)
        columns = (matrix @ columns.reshape(shape)).mT
    return columns.reshape((*lengths_of(columns, 0, -2), n_columns, n))


def matricize(columns, matrices: Sequence, k: int):
    """Entries of columns, shape (..., n, r), by their index along axis k: shape (..., n_k, -1)."""
    size = length(matrices[k])
    batch = lengths_of(columns, 0, -2)
    if k == 0:
        return columns.reshape((*batch, size, -1))
    left = reduce(lambda total, matrix: total * length(matrix), matrices[:k], 1)
    blocks = columns.reshape((*batch, left, size, -1))
    return pt.swapaxes(blocks, -3, -2).reshape((*batch, size, -1))


def noisy_kronecker_quad_logdet(delta, noise, factors: Sequence):
    """Apply :class:`NoisyKroneckerQuadLogdet`; returns (quaddist, half_logdet, posdef).

    Parameters
    ----------
    delta : tensor_like of float, shape (..., n)
    noise : tensor_like of float, shape (...)
        The variance that is added to the diagonal.
    factors : sequence of tensor_like of float, shape (..., n_k, n_k)
        Their lower triangles are read.

    Raises
    ------
    ValueError
        If an input has too few dimensions.
    """
    eigenvalues, eigenvectors = zip(*map(eigh, factors), strict=True)
    op = NoisyKroneckerQuadLogdet(n_factors=len(factors))
    return op(delta, noise, *factors, *eigenvalues, *eigenvectors, return_list=True)
