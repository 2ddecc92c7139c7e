"""The flags, and what every rewriter asks them: whether it is switched on.

Flags live in ``pytensor.config``, so ``PYTENSOR_FLAGS`` and ``pytensor.config.change_flags`` work:

``mvn_rewrites__mode``
    ``auto`` (default): on after the import. ``opt_in``: only inside :func:`enable`, or in modes
    that include the tag ``mvn_rewrites``. ``off``: never.
``mvn_rewrites__skip``
    Comma-separated names of stages to leave out: ``generative``, ``logprob``, ``reroll``,
    ``recognize``, ``structure``, ``lower``.

``mvn_rewrites__threads``
    How many threads may share the densities of one large batch (from 8192 matrices on, useful from
    about 100 000) in code that is compiled from now on; 0 for one per core. The numbers are the
    same, bit by bit. The default is 1 because samplers run their chains in parallel. Numba only.

``mvn_rewrites__verify``
    Whether to evaluate what each rewrite replaces, before and after, at random inputs, and to raise
    where the two differ. It is slow. See :mod:`~pytensor_mvn_rewrites.checks`.

They are read when a graph is rewritten, not when the package is imported, because PyMC's
pre-gradient pass and modes given by name ignore ``excluding(...)``.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import pytensor
from pytensor.configparser import BoolParam, EnumStr, IntParam, StrParam

STAGES = ("generative", "logprob", "reroll", "recognize", "structure", "lower")
OPT_IN_TAG = "mvn_rewrites"

# PyTensor creates the flags as attributes at run time: mypy cannot know them
_config: Any = pytensor.config

# the innermost block of this context, and how many blocks of each kind are open in the process
_own: ContextVar[bool | None] = ContextVar("mvn_rewrites_forced", default=None)
_open = {True: 0, False: 0}
_lock = Lock()


def _names(value: str) -> set[str]:
    return {name.strip() for name in value.split(",")} - {""}


def _valid_stages(value: str) -> bool:
    return _names(value) <= set(STAGES)


def add_flags() -> None:
    """Add the flags to ``pytensor.config``; a second call keeps the values that were set."""
    if hasattr(_config, "mvn_rewrites__mode"):
        return
    _config.add(
        "mvn_rewrites__mode",
        "When to rewrite MvNormal graphs: always, only where asked, or never.",
        EnumStr("auto", ["opt_in", "off"]),
        in_c_key=False,
    )
    _config.add(
        "mvn_rewrites__skip",
        f"Comma-separated stages of the MvNormal rewrites to leave out, among {STAGES}.",
        StrParam("", validate=_valid_stages),
        in_c_key=False,
    )
    _config.add(
        "mvn_rewrites__threads",
        "How many threads may share the densities of one large batch; 0 for one per core.",
        IntParam(1, validate=lambda number: number >= 0),
        in_c_key=False,
    )
    _config.add(
        "mvn_rewrites__verify",
        "Whether to evaluate what each MvNormal rewrite replaces, before and after.",
        BoolParam(False),
        in_c_key=False,
    )


def verifies() -> bool:
    """Whether each rewrite is checked as it happens, see :mod:`~pytensor_mvn_rewrites.checks`."""
    return _config.mvn_rewrites__verify


def n_threads() -> int:
    """The number of threads that may share a batch."""
    return _config.mvn_rewrites__threads or os.cpu_count() or 1


def is_active(stage: str, *, opted_in: bool = False) -> bool:
    """Whether `stage` may rewrite now.

    Parameters
    ----------
    stage : str
        One of `STAGES`.
    opted_in : bool
        True when the rewriter was reached through the tag ``mvn_rewrites`` of a mode.
    """
    if stage in _names(_config.mvn_rewrites__skip):
        return False
    if (forced := _forced()) is not None:
        return forced
    mode = _config.mvn_rewrites__mode
    return mode == "auto" or (mode == "opt_in" and opted_in)


def _forced() -> bool | None:
    """What the blocks say: that of this context, or else those that are open in other threads."""
    own = _own.get()
    if own is not None:
        return own
    if _open[False]:
        return False
    return True if _open[True] else None


@contextmanager
def forced_here(active: bool) -> Iterator[None]:
    """Rewrite, or do not, inside this block and in this context only."""
    token = _own.set(active)
    try:
        yield
    finally:
        _own.reset(token)


@contextmanager
def _forced_in_threads(active: bool) -> Iterator[None]:
    """The same, and in threads that have no block of their own."""
    with _lock:
        _open[active] += 1
    try:
        with forced_here(active):
            yield
    finally:
        with _lock:
            _open[active] -= 1


def enable() -> AbstractContextManager[None]:
    """Rewrite inside this block, whatever ``mvn_rewrites__mode`` says.

    The block also holds for the graphs that other threads compile while it is open, whether they
    were started in it or before, unless they are in a block of their own. Where :func:`enable` and
    :func:`disable` are open in different threads, those without a block leave their graphs alone.
    A forked process continues in the block; one that is spawned begins with the flags.

    Examples
    --------
    >>> import pytensor
    >>> with pytensor.config.change_flags(mvn_rewrites__mode="opt_in"), enable():
    ...     is_active("reroll")
    True
    """
    return _forced_in_threads(True)


def disable() -> AbstractContextManager[None]:
    """Leave all graphs as they are inside this block.

    In threads it holds as :func:`enable` does.

    Examples
    --------
    >>> with disable():
    ...     is_active("reroll")
    False
    """
    return _forced_in_threads(False)
