"""Covariances and precisions that combine two constant matrices: kinship, phylogenies, CAR."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import pytensor.tensor as pt

from pytensor_mvn_rewrites.graph import Tensor, is_real_float, static_size
from pytensor_mvn_rewrites.ops.gaussian import nan_unless
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.proofs.constants import constant_value
from pytensor_mvn_rewrites.proofs.diagonals import diagonal_of
from pytensor_mvn_rewrites.structure._kron import kron_factors, split_scale
from pytensor_mvn_rewrites.structure._rowwise import NotRowwise, linear_in_rows, with_other_rows
from pytensor_mvn_rewrites.structure._structure import Structure
from pytensor_mvn_rewrites.structure._sums import repeated_entry, terms_of_sum
from pytensor_mvn_rewrites.structure.block_diagonal import blocks_of
from pytensor_mvn_rewrites.structure.low_rank import LowRankPlusDiagonal

#: Below it the kernel of the dense density is faster than the products with eigenvectors.
MIN_SIZE = 8

#: A definite matrix that is worse conditioned would cost too many digits.
MAX_CONDITION = 1e6


@structure
@dataclass(frozen=True)
class JointSpectrum(Structure):
    r"""InvQuadLogdet(delta, a * C + b * D), C and D constant -> sums over their joint spectrum.

    The two are diagonalized together when compiling. For symmetric C and positive definite D there
    is a V with :math:`V^\top D V = I` and :math:`V^\top C V = \Lambda`, the generalized
    eigenvectors of C and D, so that

    .. math:: (a C + b D)^{-1} = V (a \Lambda + b I)^{-1} V^\top, \qquad
              \log|a C + b D| = \sum_i \log(a \lambda_i + b) + \log|D|

    and for a precision :math:`\delta^\top (a C + b D)\, \delta = \sum_i (a \lambda_i + b)\,
    (V^\top D\, \delta)_i^2`. Cost: :math:`O(n^3) \to O(n^2)` per evaluation, and less where delta
    is linear in constant vectors: they are rotated when compiling.
    Not positive definite unless all :math:`a \lambda_i + b` are positive, up to rounding.
    Declines unless both matrices are constant and symmetric and the better conditioned one of them
    is positive definite, for small n, and for what is block-diagonal, a Kronecker product, or of
    small rank plus a diagonal.

    Source: Golub and Van Loan, Matrix Computations, 2013, section 8.7.
    """

    params: ClassVar = ("cov", "tau")

    #: Shape (...).
    a: Tensor
    b: Tensor
    #: Shape (n,).
    eigenvalues: np.ndarray
    #: Generalized eigenvectors, shape (n, n), and the definite matrix.
    eigenvectors: np.ndarray
    definite: np.ndarray

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Take the sum apart, and find the definite one of its matrices."""
        if (static_size(matrix) or 0) < MIN_SIZE or not is_real_float(matrix):
            return None
        found = combination(matrix)
        if found is None or len(found) != 2 or blocks_of(matrix) is not None:
            return None
        if LowRankPlusDiagonal.match(fgraph, matrix, n, param) is not None:
            return None
        from scipy.linalg import LinAlgError, eigh

        # the better conditioned one keeps more digits
        (b, D), (a, C) = sorted(found, key=lambda term: np.linalg.cond(term[1]))
        try:
            eigenvalues, eigenvectors = eigh(C, D)
        except LinAlgError:
            return None
        if not np.isfinite(eigenvalues).all() or np.linalg.cond(D) > MAX_CONDITION:
            return None
        dtype = matrix.type.dtype
        return cls(a.astype(dtype), b.astype(dtype), eigenvalues, eigenvectors, D)

    def quad_logdet(self, delta, param):
        """The identity."""
        n, dtype = len(self.definite), self.a.type.dtype
        if delta.type.shape[-1] != n:
            return None
        spectrum = self.a[..., None] * self.eigenvalues.astype(dtype) + self.b[..., None]
        threshold = n * float(np.finfo(dtype).eps) * abs(spectrum).max(axis=-1, keepdims=True)
        posdef = (spectrum > threshold).all(axis=-1)
        spectrum = nan_unless(posdef[..., None], spectrum)
        rotation = self.eigenvectors.T
        rotation = rotation @ self.definite if param == "tau" else rotation
        rotated = product_with_rows(rotation, delta)
        half_logdet_definite = 0.5 * np.linalg.slogdet(self.definite).logabsdet
        half_logdet = 0.5 * pt.log(spectrum).sum(axis=-1) + half_logdet_definite.astype(dtype)
        if param == "tau":
            return (rotated**2 * spectrum).sum(axis=-1), -half_logdet, posdef
        return (rotated**2 / spectrum).sum(axis=-1), half_logdet, posdef


def combination(matrix: Tensor) -> list[tuple[Tensor, np.ndarray]] | None:
    """The (a, C), (b, D), ... of ``a * C + b * D + ...`` with symmetric constants C, D."""
    scale, core = split_scale(matrix)
    found: list[tuple[Tensor, np.ndarray]] = []
    for sign, term in terms_of_sum(core):
        if len(kron_factors(term)[1]) > 1:
            return None
        parts = scaled_constant(term)
        if parts is None or parts[1].shape != matrix.type.shape[-2:]:
            return None
        factor, constant = parts
        factor = factor if scale is None else factor * scale[..., 0, 0]
        factor = factor if sign > 0 else -factor
        for k, (other, known) in enumerate(found):
            if np.array_equal(known, constant):
                found[k] = (other + factor, known)
                break
        else:
            found.append((factor, constant))
    return found


def scaled_constant(term: Tensor) -> tuple[Tensor, np.ndarray] | None:
    """The a, shape (...), and C of ``a * C``, C a constant symmetric matrix."""
    n = static_size(term)
    scale, core = split_scale(term)
    data = constant_value(core)
    if data is None:
        diag = diagonal_of(term)
        entry = None if diag is None else repeated_entry(diag)
        return None if entry is None or n is None else (entry, np.eye(n))
    data = np.asarray(data, dtype="float64")
    while data.ndim > 2 and len(data) == 1:
        [data] = data
    if data.ndim != 2 or not np.array_equal(data, data.T) or not np.isfinite(data).all():
        return None
    return (pt.ones((), dtype=term.type.dtype) if scale is None else scale[..., 0, 0]), data


def product_with_rows(rotation: np.ndarray, delta: Tensor) -> Tensor:
    """``rotation @ delta`` along the last axis, of constants where `delta` is linear in some."""
    axis = delta.type.ndim - 1
    try:
        columns, indices = linear_in_rows(delta, axis, len(rotation))
    except NotRowwise:
        return delta @ rotation.T.astype(delta.type.dtype)
    if indices.size or not np.isfinite(columns).all():
        return delta @ rotation.T.astype(delta.type.dtype)
    return with_other_rows(delta, axis, columns, rotation @ columns, [])
