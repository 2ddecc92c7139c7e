"""Large batches in chunks, by several threads: the same numbers as by one thread, bit by bit.

The kernel of :mod:`.lanes` runs on chunks of `CHUNK` matrices; the threads take them as they come.
Nothing depends on who does which chunk: gradients belong to one matrix each, and the sums of the
chunks are added in their order, as one thread adds them.

The threads are Python's. The machine code of a kernel runs without the interpreter lock, and no
threading layer of Numba's is involved, some of which do not survive being called by several threads
at once, as samplers do.
"""

import ctypes
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

from pytensor_mvn_rewrites.lower.numba.jit import (
    TABLE_TYPE,
    Table,
    bind,
    call_kernel_by_table,
    call_python,
    kernel_address,
    njit_exact,
)
from pytensor_mvn_rewrites.lower.numba.lanes import CHUNK, LanesSpec

#: Matrices from which threads are worth starting: with fewer of size 3, one thread needs less than
#: the 100 microseconds that it takes to hand out the work
THREADS_MIN_M = 2 * CHUNK

TOTAL = Table.entry("total")

# a kernel by Numba's calling convention: status, (return value, exception, table)
_KERNEL_TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, *(ctypes.c_void_p,) * 3)


def threads_name(n_threads: int, spec: LanesSpec) -> str:
    """Name of the kernel that lets threads run another."""
    return f"threads {n_threads} {spec.name}"


def threads_kernel(name: str) -> Callable:
    """The kernel of a name, to be compiled."""
    _, n_threads, kernel = name.split(maxsplit=2)
    return bind(run_or_share, share=share_intrinsic(int(n_threads), kernel), KERNEL=kernel)


# what threads_kernel specialises
share: Callable = njit_exact
KERNEL = ""
N_M = Table.N_M


def run_or_share(table):
    """Run the kernel, in threads if the batch is large."""
    if table[N_M] < THREADS_MIN_M:
        call_kernel_by_table(KERNEL, table)
    else:
        share(table)


def share_intrinsic(n_threads: int, kernel: str) -> Callable:
    """Make ``share(table)``, which calls :func:`run_in_threads`."""

    @intrinsic
    def share(typingctx, table):
        def codegen(context, builder, signature, args):
            python = context.get_python_api(builder)
            gil = python.gil_ensure()
            address = builder.ptrtoint(args[0], context.get_value_type(types.intp))
            arguments = [
                python.string_from_string(context.insert_const_string(builder.module, kernel)),
                python.long_from_ssize_t(address.type(n_threads)),
                python.long_from_ssize_t(address),
            ]
            result = call_python(context, builder, __name__, "run_in_threads", arguments)
            failed = cgutils.alloca_once_value(builder, cgutils.is_null(builder, result))
            python.decref(result)
            python.gil_release(gil)
            with builder.if_then(builder.load(failed), likely=False):
                message = f"The kernel {kernel!r} failed in a thread, see the error above"
                context.call_conv.return_user_exc(builder, RuntimeError, (message,))
            return context.get_dummy_value()

        return types.void(TABLE_TYPE), codegen

    return share


def run_in_threads(kernel: str, n_threads: int, table: int) -> None:
    """Run a kernel on chunks of the batch.

    Parameters
    ----------
    kernel : str
        Name of a kernel of :mod:`.lanes`.
    n_threads : int
        Number of threads, this one included.
    table : int
        Address of the table that describes the whole batch.

    Raises
    ------
    RuntimeError
        If the kernel fails.
    """
    whole = np.ctypeslib.as_array((ctypes.c_ssize_t * Table.SIZE).from_address(table))
    tables, sums = chunk_tables(whole)
    function = _KERNEL_TYPE(kernel_address(kernel))
    # the first number of an iterator is taken by one thread only
    chunks = itertools.count()

    def work():
        result, error = ctypes.c_void_p(), ctypes.c_void_p()
        while (chunk := next(chunks)) < len(tables):
            address = tables.ctypes.data + chunk * tables.strides[0]
            if function(ctypes.byref(result), ctypes.byref(error), address):
                raise RuntimeError(f"{kernel!r} failed on chunk {chunk}")

    n_others = min(n_threads, len(tables)) - 1
    others = [pool(n_threads, os.getpid()).submit(work) for _ in range(n_others)]
    try:
        work()
    finally:
        for other in others:
            other.result()
    if whole[TOTAL]:
        total = ctypes.c_double.from_address(int(whole[TOTAL]))
        for number in sums:
            total.value += number


def chunk_tables(whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The table of each chunk, and the sums that the chunks write, at zero."""
    n_m = whole[N_M]
    starts = np.arange(0, n_m, CHUNK)
    tables = np.tile(whole, (len(starts), 1))
    tables[:, N_M] = np.minimum(CHUNK, n_m - starts)
    sums = np.zeros(len(starts))
    for entry in range(Table.FIRST, Table.SIZE, Table.STRIDES):
        if whole[entry]:
            tables[:, entry] += starts * whole[entry + 2]
    if whole[TOTAL]:
        tables[:, TOTAL] = sums.ctypes.data + 8 * np.arange(len(starts))
    return tables, sums


@lru_cache(maxsize=1)
def pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """The threads that help; after a fork, the child makes its own."""
    return ThreadPoolExecutor(max(1, n_threads - 1), thread_name_prefix="mvn_rewrites")
