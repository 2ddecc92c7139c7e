"""Numba kernels of the lowered ops; importing this package registers them with PyTensor.

=================  =============================================================================
`frame`            the function that a node calls: checks, outputs, choice of a kernel
`lanes`            the kernel for small and medium matrices, one per vector lane
`rows`             the kernel for small matrices with several rows each
`groups`           which rows belong to which matrix, when an index says so
`blas_rows`        the kernel for larger matrices with many rows each
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

from collections.abc import Callable
from functools import lru_cache

from pytensor.link.numba.dispatch.basic import register_funcify_and_cache_key

from pytensor_mvn_rewrites.lower.numba import packed_cholesky, raveled
from pytensor_mvn_rewrites.lower.numba.blas_rows import blas_rows_kernel
from pytensor_mvn_rewrites.lower.numba.finite_eigh import finite_eigh_kernel
from pytensor_mvn_rewrites.lower.numba.formulas import LaneSpec
from pytensor_mvn_rewrites.lower.numba.frame import KernelSpec, kernel_of_op
from pytensor_mvn_rewrites.lower.numba.general import general_kernel
from pytensor_mvn_rewrites.lower.numba.jit import kernel_address
from pytensor_mvn_rewrites.lower.numba.kronecker import kronecker_kernel
from pytensor_mvn_rewrites.lower.numba.lanes import lanes_kernel
from pytensor_mvn_rewrites.lower.numba.low_rank import factorization_kernel, low_rank_kernel
from pytensor_mvn_rewrites.lower.numba.rows import rows_kernel
from pytensor_mvn_rewrites.lower.numba.threads import threads_kernel
from pytensor_mvn_rewrites.lower.numba.whiten import whiten_kernel
from pytensor_mvn_rewrites.lower.numba_backend import NumbaGaussianOp

__all__ = ["KernelSpec", "build_kernel", "packed_cholesky", "raveled"]


def build_kernel(name: str) -> Callable:
    """The kernel of a name, to be compiled: that of a specification, or one that has none."""
    match name.split()[0]:
        case "lanes":
            return lanes_kernel(LaneSpec.parse(name))
        case "rows":
            return rows_kernel(LaneSpec.parse(name))
        case "blas_rows":
            return blas_rows_kernel()
        case "threads" | "chunks":
            return threads_kernel(name)
        case "finite_eigh":
            return finite_eigh_kernel()
        case "kronecker":
            return kronecker_kernel()
        case "whiten":
            return whiten_kernel()
        case "low_rank_factorization":
            return factorization_kernel()
        case "low_rank":
            return low_rank_kernel()
        case _:
            return general_kernel(lapack=name == "large")


_kernel_of_op = lru_cache(maxsize=1024)(kernel_of_op)


@register_funcify_and_cache_key(NumbaGaussianOp)
def numba_funcify_gaussian(op, node, **kwargs):
    """The kernel of a lowered op, and a key that holds all that it is specialised for."""
    spec = KernelSpec.of(op, node)
    if spec.kernel_name is not None and not spec.uses_blas_rows:
        # now, rather than in the first call, which knows which of two it needs
        kernel_address(spec.kernel_name)
    return _kernel_of_op(spec)
