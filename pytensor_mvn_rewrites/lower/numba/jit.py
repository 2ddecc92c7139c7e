"""Compile kernels once per machine: Numba functions that PyTensor's disk cache finds again."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256

import numba
import numpy as np
from pytensor.configdefaults import config
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS, compile_numba_function_src
from pytensor.link.numba.dispatch.basic import numba_njit

#: Part of every cache key. The keys also hold the sources of the kernels and of what they call:
#: raise it when the meaning of a source changes, through a compiler option for example.
KERNEL_VERSION = 1

#: The cache key of every function compiled here
KEYS: dict[Callable, str] = {}


def cache_key(*parts) -> str:
    """Hash of `parts`; kernels with equal keys share machine code."""
    return sha256(repr((KERNEL_VERSION, *parts)).encode()).hexdigest()


def compile_source(source: str, name: str, env: dict, *, reassociate: bool = False) -> Callable:
    """Compile the function `name` of `source`, whose globals are `env`.

    The key covers the source and the keys of the kernels in `env`, because Numba links the machine
    code of a callee into the cache entry of its caller.
    """
    callees = [(key, KEYS[value]) for key, value in env.items() if callable_key(value)]
    constants = [
        (key, repr(value))
        for key, value in env.items()
        if isinstance(value, int | float | np.number)
    ]
    key = cache_key(source, callees, constants, reassociate)
    # a cache entry names the module of its globals
    env = {"__name__": __name__, **env}
    function = compile_numba_function_src(source, name, global_env=env, cache_key=key)
    return _njit(function, key, reassociate)


def compile_packed(function: Callable, signature: tuple) -> Callable:
    """Compile now, with the LLVM pass that packs equal scalar statements into vectors.

    Numba leaves this pass out by default. Only the code of `function` itself is affected.
    """
    with _packing():
        function.compile(signature)
    return function


@contextmanager
def _packing() -> Iterator[None]:
    before = numba.config.SLP_VECTORIZE
    numba.config.SLP_VECTORIZE = 1
    try:
        yield
    finally:
        numba.config.SLP_VECTORIZE = before


def kernel(*, reassociate: bool = False) -> Callable:
    """Decorate a plain function: compiled and cached as :func:`compile_source` does."""

    def decorator(function):
        names = function.__code__.co_names
        env = {name: function.__globals__.get(name) for name in names}
        callees = [(name, KEYS[value]) for name, value in env.items() if callable_key(value)]
        constants = [
            (name, repr(value))
            for name, value in env.items()
            if isinstance(value, int | float | np.number)
        ]
        key = cache_key(inspect.getsource(function), callees, constants, reassociate)
        CACHED_SRC_FUNCTIONS[function] = key
        return _njit(function, key, reassociate)

    return decorator


def callable_key(value) -> bool:
    """Whether `value` is a function compiled here."""
    return callable(value) and value.__hash__ is not None and value in KEYS


def _njit(function, key: str, reassociate: bool):
    # contraction to fused multiply-adds is the only liberty, whatever config.numba__fastmath says:
    # NaN must stay NaN, and pivots must be compared as they are
    fastmath = {"contract", "reassoc"} if reassociate else {"contract"}
    compiled = numba_njit(
        function, fastmath=fastmath, error_model="numpy", cache=bool(config.numba__cache)
    )
    KEYS[compiled] = key
    return compiled
