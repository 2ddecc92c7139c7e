"""Numba kernels of the lowered ops; importing this package registers them with PyTensor.

============  =================================================================================
`lanes`       matrices up to medium size, one per vector lane, straight-line code where small
`lane_loops`  the same with loops over the elements
`general`     every size, one matrix after the other
`single`      the formulas for one matrix that both call; `lapack` where blocking pays
`frame`       what the generated sources share; `jit` compiles and caches them
============  =================================================================================
"""

from collections.abc import Callable
from functools import lru_cache

from pytensor.link.numba.dispatch.basic import register_funcify_and_cache_key

from pytensor_mvn_rewrites.lower.numba.frame import KernelSpec
from pytensor_mvn_rewrites.lower.numba.general import general_kernel
from pytensor_mvn_rewrites.lower.numba.jit import KEYS
from pytensor_mvn_rewrites.lower.numba.lanes import LANES_MAX_N, lanes_kernel
from pytensor_mvn_rewrites.lower.numba_backend import NumbaGaussianOp

__all__ = ["KernelSpec", "make_kernel"]


@lru_cache(maxsize=1024)
def make_kernel(spec: KernelSpec) -> Callable:
    """Choose and build the kernel of `spec`; Numba compiles it when it is first called."""
    if spec.n is not None and 1 <= spec.n <= LANES_MAX_N and "R" not in spec.layout.joint:
        return lanes_kernel(spec)
    return general_kernel(spec)


@register_funcify_and_cache_key(NumbaGaussianOp)
def numba_funcify_gaussian(op, node, **kwargs):
    """The kernel of a lowered op, and a key that holds all that it is specialised for."""
    kernel = make_kernel(KernelSpec.of(op, node))
    return kernel, KEYS[kernel]
