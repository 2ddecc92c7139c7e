"""Large batches in chunks, by several threads: the same numbers as by one thread, bit by bit.

The kernel of :mod:`.lanes` runs on chunks of `CHUNK` matrices; the threads take them as they come.
Nothing depends on who does which chunk: gradients belong to one matrix each, and the sums of the
chunks are added in their order, as one thread adds them.

The threads are Python's. The machine code of a kernel runs without the interpreter lock, and no
threading layer of Numba's is involved, some of which do not survive being called by several threads
at once, as samplers do.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

from pytensor_mvn_rewrites.lower.numba.formulas import LaneSpec
from pytensor_mvn_rewrites.lower.numba.jit import (
    TABLE_TYPE,
    Table,
    bind,
    builds_kernel,
    call_kernel_by_table,
    call_python,
    copy_table,
    kernel_address,
    njit_exact,
    words,
)
from pytensor_mvn_rewrites.lower.numba.lanes import CHUNK

#: Numbers in all matrices together from which threads are worth starting: it takes about 100
#: microseconds to hand out the work
THREADS_MIN_NUMBERS = 600_000

TOTAL = Table.entry("total")

# a kernel by Numba's calling convention: status, (return value, exception, table)
_KERNEL_TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, *(ctypes.c_void_p,) * 3)


def threads_name(n_threads: int, spec: LaneSpec) -> str:
    """Name of the kernel that lets threads run another."""
    return f"threads {n_threads} {spec.name}"


def chunks_name(kernel: str) -> str:
    """Name of the kernel that a thread runs."""
    return f"chunks {kernel}"


@builds_kernel("threads", "chunks")
def threads_kernel(name: str) -> Callable:
    """The function of the kernel of one of these names."""
    kind, rest = name.split(maxsplit=1)
    if kind == "chunks":
        return bind(run_chunks, KERNEL=rest)
    n_threads, kernel = rest.split(maxsplit=1)
    return bind(run_or_share, share=share_intrinsic(int(n_threads), kernel), KERNEL=kernel)


# what threads_kernel specialises
share: Callable = njit_exact
KERNEL = ""
N_M, N, M_START, M_STOP = Table.N_M, Table.N, Table.M_START, Table.M_STOP


def run_or_share(table):
    """Run the kernel, in threads if the batch is large."""
    n_m, n = table[N_M], table[N]
    if n_m < 2 * CHUNK or n_m * n * n < THREADS_MIN_NUMBERS:
        call_kernel_by_table(KERNEL, table)
    else:
        share(table)


#: What the threads share: the number of the next chunk, how many are done, how many there are, the
#: table of the whole batch, and where the sum of each chunk goes
NEXT, DONE, N_CHUNKS, TABLE, SUMS, WORK_SIZE = range(6)

#: How often a thread that finds no chunk left looks whether the others are done, about 50
#: microseconds; to be woken up takes as long
SPINS = 2000


def run_chunks(work):
    """Run the kernel on chunks that no other thread has taken; wait a while for the others.

    All in one function without the interpreter lock: a thread that waits for that lock between
    two chunks sleeps for longer than a chunk takes.
    """
    n_chunks = work[N_CHUNKS]
    own_table = words()
    while True:
        chunk = fetch_add(work, NEXT, 1)
        # the table is gone when all is done
        if chunk >= n_chunks:
            break
        table = table_at(work[TABLE])
        copy_table(own_table, table)
        own_table[M_START] = chunk * CHUNK
        own_table[M_STOP] = min(table[N_M], own_table[M_START] + CHUNK)
        if own_table[TOTAL] != 0:
            own_table[TOTAL] = work[SUMS] + 8 * chunk
        call_kernel_by_table(KERNEL, own_table)
        fetch_add(work, DONE, 1)
    for _ in range(SPINS):
        if fetch_add(work, DONE, 0) >= n_chunks:
            break


@intrinsic
def fetch_add(typingctx, work, position, number):
    """Add to one of the numbers that threads share; return what it was."""

    def codegen(context, builder, signature, args):
        work, position, number = args
        return builder.atomic_rmw("add", builder.gep(work, [position]), number, "seq_cst")

    return types.intp(TABLE_TYPE, types.intp, types.intp), codegen


@intrinsic
def table_at(typingctx, address):
    """The table at an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(TABLE_TYPE))

    return TABLE_TYPE(types.intp), codegen


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
    n_chunks = -(-ctypes.c_ssize_t.from_address(table + 8 * N_M).value // CHUNK)
    sums = np.zeros(n_chunks)
    work = np.zeros(WORK_SIZE, dtype=np.intp)
    work[N_CHUNKS], work[TABLE], work[SUMS] = n_chunks, table, sums.ctypes.data
    function = _KERNEL_TYPE(kernel_address(chunks_name(kernel)))

    def help_out():
        result, error = ctypes.c_void_p(), ctypes.c_void_p()
        if function(ctypes.byref(result), ctypes.byref(error), work.ctypes.data):
            raise RuntimeError(f"{kernel!r} failed in a thread")

    n_others = min(n_threads, n_chunks) - 1
    others = [pool(n_threads, os.getpid()).submit(help_out) for _ in range(n_others)]
    try:
        help_out()
    finally:
        # a thread that comes too late finds nothing to do: nobody waits for it
        if work[DONE] < n_chunks:
            for other in others:
                other.result()
    sum_address = ctypes.c_ssize_t.from_address(table + 8 * TOTAL).value
    if sum_address:
        total = ctypes.c_double.from_address(sum_address)
        for number in sums:
            total.value += number


@lru_cache(maxsize=1)
def pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """The threads that help; after a fork, the child makes its own."""
    return ThreadPoolExecutor(max(1, n_threads - 1), thread_name_prefix="mvn_rewrites")
