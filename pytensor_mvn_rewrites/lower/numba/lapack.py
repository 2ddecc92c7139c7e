"""LAPACK on one matrix, for the sizes where its blocking pays.

Row-major storage read as LAPACK's column-major is the transpose: our lower triangle is its upper.
"""

import numba
import numpy as np
from numba.core import types
from pytensor.link.numba.cache import _call_cached_ptr
from pytensor.link.numba.dispatch.basic import numba_njit
from pytensor.link.numba.dispatch.linalg._LAPACK import (
    _LAPACK,
    get_lapack_ptr,
    int_ptr_to_val,
    val_to_int_ptr,
)

from pytensor_mvn_rewrites.lower.numba.jit import njit_exact

_FLOAT64 = types.float64
_INT_PTR = types.CPointer(types.int32)
_POTRI_TYPE = types.FunctionType(
    types.void(_INT_PTR, _INT_PTR, types.CPointer(types.float64), _INT_PTR, _INT_PTR)
)

potrf = _LAPACK.numba_xpotrf(_FLOAT64)


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
