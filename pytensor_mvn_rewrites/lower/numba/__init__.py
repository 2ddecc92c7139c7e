"""Numba kernels of the lowered ops; importing this package registers them with PyTensor.

=================  =============================================================================
`frame`            the function that a node calls: checks, outputs, choice of a kernel
`lanes`            the kernel for small and medium matrices, one per vector lane
`rows`             the kernel for small matrices with several rows each
`groups`           which rows belong to which matrix, when an index says so
`blas_rows`        the kernel for larger matrices with many rows each
`node`             the source of such functions
`places`           where `lanes` and `rows` find their operands: in place, or in a buffer
`threads`          lets several threads share the kernel of `lanes`
`formulas`         the formulas of small matrices; `lane_loops` those of medium ones
`general`          the kernel for every size, one matrix after the other
`single`           the formulas of `general`; `lapack` and BLAS where blocking pays
`interpreted`      runs what other kernels leave to `general` where compiling is not worth it
`packed_cholesky`  the kernels of ``PackedCholesky``
`finite_eigh`      the kernel of ``FiniteEigh``
`kronecker`        the kernel of Kronecker products plus noise
`low_rank`         the kernels of low rank plus diagonal
`whiten`           the kernel of ``Whiten``
`structured`       what the kernels of structured covariances share
`raveled`          the kernels of ``Unravel`` and ``Ravel``
`vectors`          the vectors that `lanes` is written in
`jit`              compiles and caches kernels, and calls them by their address
=================  =============================================================================
"""

from pytensor.link.numba.dispatch.basic import register_funcify_and_cache_key

from pytensor_mvn_rewrites.lower.numba import (
    blas_rows,
    finite_eigh,
    general,
    kronecker,
    lanes,
    low_rank,
    packed_cholesky,
    raveled,
    rows,
    threads,
    whiten,
)
from pytensor_mvn_rewrites.lower.numba.frame import KernelSpec, kernel_of_op
from pytensor_mvn_rewrites.lower.numba.jit import kernel_address
from pytensor_mvn_rewrites.lower.numba_backend import NumbaGaussianOp

__all__ = [
    "KernelSpec",
    "blas_rows",
    "finite_eigh",
    "general",
    "kronecker",
    "lanes",
    "low_rank",
    "packed_cholesky",
    "raveled",
    "rows",
    "threads",
    "whiten",
]


@register_funcify_and_cache_key(NumbaGaussianOp)
def numba_funcify_gaussian(op, node, **kwargs):
    """The kernel of a lowered op, and a key that holds all that it is specialised for."""
    spec = KernelSpec.of(op, node)
    if spec.kernel_name is not None and not spec.uses_blas_rows:
        # now, rather than in the first call, which knows which of two it needs
        kernel_address(spec.kernel_name)
    return kernel_of_op(spec)
