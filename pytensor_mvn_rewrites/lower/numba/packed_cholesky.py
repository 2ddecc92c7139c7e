"""The kernels of ``PackedCholesky`` and its pullback: one packed triangle after the other.

The batch axes become one, and each row of a triangle is read and written once. The work on a row is
a few multiplications and, on the diagonal, one exponential and one square root: there is nothing to
gain from vector lanes that the stores of the factor would not lose again.
"""

import numpy as np
from pytensor.compile.builders import OpFromGraph
from pytensor.link.numba.dispatch.basic import (
    numba_funcify_and_cache_key,
    numba_njit,
    register_funcify_and_cache_key,
)

from pytensor_mvn_rewrites.lower.numba.jit import compile_source
from pytensor_mvn_rewrites.ops import PackedCholesky, PackedCholeskyPullback


@register_funcify_and_cache_key(PackedCholesky)
def numba_funcify_packed_cholesky(op, node, **kwargs):
    """The kernel, and a key that holds the properties of the op."""
    source = f"""
def PackedCholesky(packed):
    return unpack(packed, {op.n}, {op.log_diagonal})
"""
    return compile_source(source, "PackedCholesky", {"unpack": unpack})


@register_funcify_and_cache_key(PackedCholeskyPullback)
def numba_funcify_packed_cholesky_pullback(op, node, **kwargs):
    """The kernel, where no input is broadcast, and a key that holds the properties of the op."""
    batches = {
        inp.type.broadcastable[: inp.type.ndim - core]
        for inp, core in zip(node.inputs, op.core_ndims, strict=True)
    }
    if len(batches) > 1:
        return numba_funcify_and_cache_key.dispatch(OpFromGraph)(op, node, **kwargs)
    source = f"""
def PackedCholeskyPullback(chol, sd, corr_diag, g_chol, g_sd, g_corr_diag, g_diag):
    return pull_back(
        chol, sd, corr_diag, g_chol, g_sd, g_corr_diag, g_diag, {op.n}, {op.log_diagonal}
    )
"""
    return compile_source(source, "PackedCholeskyPullback", {"pull_back": pull_back})


@numba_njit
def unpack(packed, n, log_diagonal):
    """The outputs of ``PackedCholesky``."""
    p = n * (n + 1) // 2
    batch = packed.shape[:-1]
    if packed.shape[-1] != p:
        raise ValueError("PackedCholesky: the packed vector has another length")
    count = packed.size // p
    triangles = np.ascontiguousarray(packed).reshape((count, p))
    chol = np.zeros((count, n, n), packed.dtype)
    sd = np.empty((count, n), packed.dtype)
    corr_diag = np.empty((count, n), packed.dtype)
    diag = np.empty((count, n), packed.dtype)
    for m in range(count):
        k = 0
        for i in range(n):
            squares = packed.dtype.type(0)
            for j in range(i):
                entry = triangles[m, k]
                chol[m, i, j] = entry
                squares += entry * entry
                k += 1
            entry = triangles[m, k]
            diag[m, i] = entry
            if log_diagonal:
                entry = np.exp(entry)
            chol[m, i, i] = entry
            sd[m, i] = np.sqrt(squares + entry * entry)
            corr_diag[m, i] = entry / sd[m, i]
            k += 1
    vectors = (*batch, n)
    return (
        chol.reshape((*vectors, n)),
        sd.reshape(vectors),
        corr_diag.reshape(vectors),
        diag.reshape(vectors),
    )


@numba_njit
def pull_back(chol, sd, corr_diag, g_chol, g_sd, g_corr_diag, g_diag, n, log_diagonal):
    """The output of ``PackedCholeskyPullback``."""
    batch = sd.shape[:-1]
    shapes_agree = (
        chol.shape == g_chol.shape == (*batch, n, n)
        and corr_diag.shape == g_sd.shape == g_corr_diag.shape == g_diag.shape == (*batch, n)
        and sd.shape[-1] == n
    )
    if not shapes_agree:
        raise ValueError("PackedCholeskyPullback: the shapes of the inputs do not agree")
    p = n * (n + 1) // 2
    count = sd.size // n
    L, g_L = as_batch(chol, (count, n, n)), as_batch(g_chol, (count, n, n))
    s, r = as_batch(sd, (count, n)), as_batch(corr_diag, (count, n))
    g_s, g_r = as_batch(g_sd, (count, n)), as_batch(g_corr_diag, (count, n))
    g_d = as_batch(g_diag, (count, n))
    g_packed = np.empty((count, p), sd.dtype)
    for m in range(count):
        k = 0
        for i in range(n):
            per_row = (g_s[m, i] - g_r[m, i] * r[m, i] / s[m, i]) / s[m, i]
            for j in range(i):
                g_packed[m, k] = g_L[m, i, j] + L[m, i, j] * per_row
                k += 1
            entry = g_L[m, i, i] + L[m, i, i] * per_row + g_r[m, i] / s[m, i]
            if log_diagonal:
                entry *= L[m, i, i]
            g_packed[m, k] = entry + g_d[m, i]
            k += 1
    return g_packed.reshape((*batch, p))


@numba_njit
def as_batch(array, shape):
    """`array` with one batch axis."""
    return np.ascontiguousarray(array).reshape(shape)
