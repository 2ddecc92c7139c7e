"""LAPACK and BLAS, for the sizes where their blocking pays.

Row-major storage read as LAPACK's column-major is the transpose: our lower triangle is its upper.
"""

import numba
import numpy as np
from numba.core import types
from pytensor.link.numba.cache import _call_cached_ptr
from pytensor.link.numba.dispatch.basic import numba_njit
from pytensor.link.numba.dispatch.linalg._BLAS import _BLAS
from pytensor.link.numba.dispatch.linalg._LAPACK import (
    _LAPACK,
    get_lapack_ptr,
    int_ptr_to_val,
    val_to_dptr,
    val_to_int_ptr,
)

from pytensor_mvn_rewrites.lower.numba.jit import njit_exact

_FLOAT64 = types.float64
_INT_PTR = types.CPointer(types.int32)
_POTRI_TYPE = types.FunctionType(
    types.void(_INT_PTR, _INT_PTR, types.CPointer(types.float64), _INT_PTR, _INT_PTR)
)

#: What BLAS is asked to do with a matrix first
AS_IS, TRANSPOSED = ord("N"), ord("T")

_TRTRI_TYPE = types.FunctionType(
    types.void(_INT_PTR, _INT_PTR, _INT_PTR, types.CPointer(types.float64), _INT_PTR, _INT_PTR)
)

potrf = _LAPACK.numba_xpotrf(_FLOAT64)
gemm = _BLAS.numba_xgemm(_FLOAT64)


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


@njit_exact
def multiply(rows, matrix, count, out):
    """Multiply the first rows of an array by a square matrix: ``out[:count] = rows @ matrix``."""
    _gemm(AS_IS, AS_IS, matrix.shape[0], count, matrix.shape[0], matrix, rows, 0.0, out)


@njit_exact
def multiply_transposed(rows, matrix, count, out):
    """The same with ``matrix.T``."""
    _gemm(TRANSPOSED, AS_IS, matrix.shape[0], count, matrix.shape[0], matrix, rows, 0.0, out)


@njit_exact
def multiply_columns(left, right, count, beta, out):
    """The sum of the outer products of rows: ``out = left.T @ right + beta * out``."""
    _gemm(AS_IS, TRANSPOSED, out.shape[0], out.shape[0], count, right, left, beta, out)


@njit_exact
def _gemm(how_a, how_b, m, n, k, a, b, beta, c):
    """BLAS's dgemm on arrays whose rows are its columns, all of the length of those of `c`."""
    length = np.int32(c.shape[1])
    gemm(
        val_to_int_ptr(how_a),
        val_to_int_ptr(how_b),
        val_to_int_ptr(np.int32(m)),
        val_to_int_ptr(np.int32(n)),
        val_to_int_ptr(np.int32(k)),
        val_to_dptr(1.0),
        a.ctypes,
        val_to_int_ptr(length),
        b.ctypes,
        val_to_int_ptr(length),
        val_to_dptr(beta),
        c.ctypes,
        val_to_int_ptr(length),
    )
