"""Kernels that the Python interpreter runs, so that nobody waits for their compilation.

Other kernels leave bad input to that of :mod:`.general`: a NaN, a Cholesky factor with a negative
diagonal, numbers out of range. That happens now and then in the middle of sampling, or never, and
compiling it takes about three seconds. One matrix of n = 3 is interpreted in 0.06 milliseconds, one
of n = 30 in 2.4. What would take longer altogether than the compilation is compiled.
"""

import ctypes
import time
from collections.abc import Callable
from functools import cache

import numpy as np
from numba.core.dispatcher import Dispatcher

from pytensor_mvn_rewrites.lower.numba import jit
from pytensor_mvn_rewrites.lower.numba.jit import INTERPRETED, Table, bind

#: Seconds that the interpreter may take altogether: as long as the compilation would
PATIENCE = 3.0

#: Seconds that one step of an innermost loop takes
STEP = 1e-7

_seconds_spent = 0.0


def interpret_or_compile(name: str, table: int) -> int:
    """Run a kernel and return `INTERPRETED`, or return the address of the kernel, to be called.

    Parameters
    ----------
    name : str
        Name of a kernel of :mod:`.general`.
    table : int
        Address of its table.
    """
    global _seconds_spent
    numbers = (ctypes.c_ssize_t * Table.SIZE).from_address(table)
    n, n_rows = numbers[Table.N], numbers[Table.N_R]
    n_matrices = numbers[Table.M_STOP] - numbers[Table.M_START]
    expected = STEP * n_matrices * (n**3 + 4 * n_rows * n**2)
    if name in jit._KERNELS or _seconds_spent + expected > PATIENCE:
        return jit.kernel_address(name)
    start = time.perf_counter()
    with np.errstate(all="ignore"):
        interpreted(jit.kernel_function(name))(numbers)
    _seconds_spent += time.perf_counter() - start
    return INTERPRETED


@cache
def interpreted(function: Callable) -> Callable:
    """A copy of a function that calls no machine code, and neither does what it calls."""
    function = getattr(function, "py_func", function)
    own: dict[str, Callable] = {}
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, Dispatcher):
            own[name] = interpreted(value)
        elif name in MEMORY:
            own[name] = MEMORY[name]
    return bind(function, **own)


def load(address: int) -> np.float64:
    """The number at an address; divisions by it do not raise."""
    return np.float64(ctypes.c_double.from_address(address).value)


def store(address: int, number: float) -> None:
    """Write a number."""
    ctypes.c_double.from_address(address).value = number


def load_int(address: int) -> int:
    """The integer at an address."""
    return ctypes.c_int64.from_address(address).value


def store_bool(address: int, flag: bool) -> None:
    """Write a flag."""
    ctypes.c_bool.from_address(address).value = flag


#: What stands for the intrinsics of :mod:`.vectors`
MEMORY = {function.__name__: function for function in (load, store, load_int, store_bool)}
