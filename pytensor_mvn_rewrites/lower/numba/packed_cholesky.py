"""The kernels of ``PackedCholesky`` and its pullback: one packed triangle after the other.

Their sources are generated for a number of batch axes and of rows, so that a node reads its inputs
where they are, without a copy or another shape: for the few small triangles of a model, that would
take longer than the arithmetic. Each entry of a triangle is read and written once. The work on it
is a few multiplications and, on the diagonal, an exponential and a square root: there is nothing to
gain from vector lanes that the stores of the factor would not lose again.
"""

from textwrap import indent

from pytensor.compile.builders import OpFromGraph
from pytensor.link.numba.dispatch.basic import (
    numba_funcify_and_cache_key,
    register_funcify_and_cache_key,
)

from pytensor_mvn_rewrites.lower.numba.jit import compile_source
from pytensor_mvn_rewrites.ops import PackedCholesky, PackedCholeskyPullback
from pytensor_mvn_rewrites.ops.packed_cholesky import packed_length


@register_funcify_and_cache_key(PackedCholesky)
def numba_funcify_packed_cholesky(op, node, **kwargs):
    """The kernel, and a key that holds the properties of the op."""
    source = forward_source(op.n, op.log_diagonal, node.inputs[0].type.ndim - 1)
    return compile_source(source, "PackedCholesky", {})


@register_funcify_and_cache_key(PackedCholeskyPullback)
def numba_funcify_packed_cholesky_pullback(op, node, **kwargs):
    """The kernel, where no input is broadcast, and a key that holds the properties of the op."""
    batches = {
        inp.type.broadcastable[: inp.type.ndim - core]
        for inp, core in zip(node.inputs, op.core_ndims, strict=True)
    }
    if len(batches) > 1:
        return numba_funcify_and_cache_key.dispatch(OpFromGraph)(op, node, **kwargs)
    [batch] = batches
    return compile_source(
        pullback_source(op.n, op.log_diagonal, len(batch)), "PackedCholeskyPullback", {}
    )


def forward_source(n: int, log_diagonal: bool, batch_ndim: int) -> str:
    """The source of the kernel of ``PackedCholesky``."""
    batch, at = batch_of("packed", batch_ndim)
    triangle = f"""
k = 0
for i in range({n}):
    squares = packed.dtype.type(0)
    for j in range(i):
        entry = packed[{at}k]
        chol[{at}i, j] = entry
        squares += entry * entry
        k += 1
    diag[{at}i] = packed[{at}k]
    entry = {f"np.exp(packed[{at}k])" if log_diagonal else f"packed[{at}k]"}
    chol[{at}i, i] = entry
    for j in range(i + 1, {n}):
        chol[{at}i, j] = 0
    sd[{at}i] = np.sqrt(squares + entry * entry)
    corr_diag[{at}i] = entry / sd[{at}i]
    k += 1
"""
    return f"""
def PackedCholesky(packed):
    if packed.shape[{batch_ndim}] != {packed_length(n)}:
        raise ValueError("PackedCholesky: the packed vector has another length")
    chol = np.empty(({batch}{n}, {n}), packed.dtype)
    sd = np.empty(({batch}{n},), packed.dtype)
    corr_diag = np.empty(({batch}{n},), packed.dtype)
    diag = np.empty(({batch}{n},), packed.dtype)
{over_batch("packed", batch_ndim, triangle)}
    return chol, sd, corr_diag, diag
"""


def pullback_source(n: int, log_diagonal: bool, batch_ndim: int) -> str:
    """The source of the kernel of ``PackedCholeskyPullback``."""
    batch, at = batch_of("sd", batch_ndim)
    ndims = {"chol": 2, "corr_diag": 1, "g_chol": 2, "g_sd": 1, "g_corr_diag": 1, "g_diag": 1}
    disagree = [f"sd.shape[{batch_ndim}] != {n}"]
    disagree += [
        f"{name}.shape[{axis}] != {f'sd.shape[{axis}]' if axis < batch_ndim else n}"
        for name, ndim in ndims.items()
        for axis in range(batch_ndim + ndim)
    ]
    triangle = f"""
k = 0
for i in range({n}):
    per_diag = g_corr_diag[{at}i] / sd[{at}i]
    per_row = (g_sd[{at}i] - per_diag * corr_diag[{at}i]) / sd[{at}i]
    for j in range(i):
        g_packed[{at}k] = g_chol[{at}i, j] + chol[{at}i, j] * per_row
        k += 1
    entry = g_chol[{at}i, i] + chol[{at}i, i] * per_row + per_diag
    g_packed[{at}k] = g_diag[{at}i] + {f"entry * chol[{at}i, i]" if log_diagonal else "entry"}
    k += 1
"""
    return f"""
def PackedCholeskyPullback(chol, sd, corr_diag, g_chol, g_sd, g_corr_diag, g_diag):
    if {" or ".join(disagree)}:
        raise ValueError("PackedCholeskyPullback: the shapes of the inputs do not agree")
    g_packed = np.empty(({batch}{packed_length(n)},), sd.dtype)
{over_batch("sd", batch_ndim, triangle)}
    return g_packed
"""


def batch_of(name: str, batch_ndim: int) -> tuple[str, str]:
    """The batch shape of an array, and the batch index of the loops of `over_batch`."""
    axes = range(batch_ndim)
    return "".join(f"{name}.shape[{a}], " for a in axes), "".join(f"m{a}, " for a in axes)


def over_batch(name: str, batch_ndim: int, body: str) -> str:
    """`body` inside a loop for each batch axis of an array, as part of a function."""
    for axis in reversed(range(batch_ndim)):
        loop = f"for m{axis} in range({name}.shape[{axis}]):"
        body = f"{loop}\n{indent(body, '    ')}"
    return indent(body, "    ")
