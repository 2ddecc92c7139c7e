"""LAPACK and BLAS, for the sizes where their blocking pays.

Row-major storage read as LAPACK's column-major is the transpose: our lower triangle is its upper.
"""

import numba
import numpy as np
from numba.core import types
from numba.extending import get_cython_function_address
from pytensor.link.numba.dispatch.basic import numba_njit

from pytensor_mvn_rewrites._upstream import (
    _LAPACK,
    _call_cached_ptr,
    get_lapack_ptr,
    int_ptr_to_val,
    val_to_dptr,
    val_to_int_ptr,
)
from pytensor_mvn_rewrites.lower.numba.jit import njit_exact

_FLOAT64 = types.float64
_INT_PTR = types.CPointer(types.int32)
_FLOAT_PTR = types.CPointer(_FLOAT64)
_POTRI_TYPE = types.FunctionType(types.void(_INT_PTR, _INT_PTR, _FLOAT_PTR, _INT_PTR, _INT_PTR))

#: What BLAS is asked to do with a matrix first
AS_IS, TRANSPOSED = ord("N"), ord("T")

_TRTRI_TYPE = types.FunctionType(
    types.void(_INT_PTR, _INT_PTR, _INT_PTR, _FLOAT_PTR, _INT_PTR, _INT_PTR)
)
#: How to multiply, three sizes, a factor, two matrices, another factor, the result
_GEMM_TYPE = types.FunctionType(
    types.void(
        *(_INT_PTR,) * 5,
        *(_FLOAT_PTR, _FLOAT_PTR, _INT_PTR, _FLOAT_PTR, _INT_PTR),
        *(_FLOAT_PTR, _FLOAT_PTR, _INT_PTR),
    )
)

potrf = _LAPACK.numba_xpotrf(_FLOAT64)
geqrf = _LAPACK.numba_xgeqrf(_FLOAT64)
orgqr = _LAPACK.numba_xorgqr(_FLOAT64)
syevd = _LAPACK.numba_xsyevd(_FLOAT64)


@numba_njit
def _get_potri_pointer():
    with numba.objmode(ptr=types.intp):
        ptr = get_lapack_ptr(_FLOAT64, "potri")
    return ptr


@numba_njit
def potri(UPLO, N, A, LDA, INFO):
    """Call LAPACK's dpotri."""
    fn = _call_cached_ptr(_get_potri_pointer, _POTRI_TYPE, "scipy.lapack.dpotri")
    fn(UPLO, N, A, LDA, INFO)


@njit_exact
def lapack_factorize(chol):
    """Factorize the lower triangle of a C-contiguous matrix in place; False where it fails."""
    n = np.int32(chol.shape[0])
    info = val_to_int_ptr(0)
    potrf(val_to_int_ptr(ord("U")), val_to_int_ptr(n), chol.ctypes, val_to_int_ptr(n), info)
    return int_ptr_to_val(info) == 0


@njit_exact
def lapack_invert(chol, unused):
    """Replace a lower Cholesky factor by the lower triangle of (L L')^-1, in place."""
    n = np.int32(chol.shape[0])
    info = val_to_int_ptr(0)
    potri(val_to_int_ptr(ord("U")), val_to_int_ptr(n), chol.ctypes, val_to_int_ptr(n), info)


@numba_njit
def _get_trtri_pointer():
    with numba.objmode(ptr=types.intp):
        ptr = get_lapack_ptr(_FLOAT64, "trtri")
    return ptr


@numba_njit
def trtri(UPLO, DIAG, N, A, LDA, INFO):
    """Call LAPACK's dtrtri."""
    fn = _call_cached_ptr(_get_trtri_pointer, _TRTRI_TYPE, "scipy.lapack.dtrtri")
    fn(UPLO, DIAG, N, A, LDA, INFO)


@njit_exact
def lapack_invert_factor(chol):
    """Replace a lower triangle without zeros on its diagonal by its inverse, in place."""
    n = np.int32(chol.shape[0])
    info = val_to_int_ptr(0)
    upper, not_unit = val_to_int_ptr(ord("U")), val_to_int_ptr(ord("N"))
    trtri(upper, not_unit, val_to_int_ptr(n), chol.ctypes, val_to_int_ptr(n), info)


@numba_njit
def _get_gemm_pointer():
    with numba.objmode(ptr=types.intp):
        ptr = get_cython_function_address("scipy.linalg.cython_blas", "dgemm")
    return ptr


@numba_njit
def gemm(TRANSA, TRANSB, M, N, K, ALPHA, A, LDA, B, LDB, BETA, C, LDC):
    """Call BLAS's dgemm."""
    fn = _call_cached_ptr(_get_gemm_pointer, _GEMM_TYPE, "scipy.blas.dgemm")
    fn(TRANSA, TRANSB, M, N, K, ALPHA, A, LDA, B, LDB, BETA, C, LDC)


@njit_exact
def eigh(matrix, eigenvalues):
    """Replace a symmetric matrix by its eigenvectors, as rows; False where LAPACK fails.

    The lower triangle of the C-contiguous matrix is read.
    """
    n = np.int32(eigenvalues.size)
    info = val_to_int_ptr(0)
    # the least that LAPACK's documentation asks for
    work, integers = np.empty(1 + 6 * n + 2 * n * n), np.empty(3 + 5 * n, np.int32)
    syevd(
        val_to_int_ptr(ord("V")),
        val_to_int_ptr(ord("U")),
        val_to_int_ptr(n),
        matrix.ctypes,
        val_to_int_ptr(max(np.int32(1), n)),
        eigenvalues.ctypes,
        work.ctypes,
        val_to_int_ptr(np.int32(work.size)),
        integers.ctypes,
        val_to_int_ptr(np.int32(integers.size)),
        info,
    )
    return int_ptr_to_val(info) == 0


@njit_exact
def orthonormalize(rows, diagonal):
    """Replace rows by orthonormal ones with the same spans, and write the diagonal of the R.

    The QR factorization of the transpose of a C-contiguous matrix of at least as many columns.
    """
    count, length = np.int32(rows.shape[0]), np.int32(rows.shape[1])
    info = val_to_int_ptr(0)
    # room for LAPACK's blocks of columns
    tau, work = np.empty(count), np.empty(64 * max(1, count))
    m, n, lwork = val_to_int_ptr(length), val_to_int_ptr(count), val_to_int_ptr(np.int32(work.size))
    geqrf(m, n, rows.ctypes, m, tau.ctypes, work.ctypes, lwork, info)
    for j in range(count):
        diagonal[j] = rows[j, j]
    orgqr(m, n, n, rows.ctypes, m, tau.ctypes, work.ctypes, lwork, info)


@njit_exact
def matmul(rows, columns, inner, how_left, left, how_right, right, beta, out):
    """BLAS's dgemm on C-contiguous arrays of any shapes: ``out = left @ right + beta * out``.

    The factors have the shapes (rows, inner) and (inner, columns), after they are transposed if
    `how_left` or `how_right` says so.
    """
    # BLAS sees all arrays transposed, and multiplies them in the other order
    gemm(
        val_to_int_ptr(how_right),
        val_to_int_ptr(how_left),
        val_to_int_ptr(np.int32(columns)),
        val_to_int_ptr(np.int32(rows)),
        val_to_int_ptr(np.int32(inner)),
        val_to_dptr(1.0),
        right.ctypes,
        val_to_int_ptr(np.int32(max(1, columns if how_right == AS_IS else inner))),
        left.ctypes,
        val_to_int_ptr(np.int32(max(1, inner if how_left == AS_IS else rows))),
        val_to_dptr(beta),
        out.ctypes,
        val_to_int_ptr(np.int32(max(1, columns))),
    )
