"""The flags, and what every rewriter asks them: whether it is switched on.

Flags live in ``pytensor.config``, so ``PYTENSOR_FLAGS`` and ``pytensor.config.change_flags`` work:

``mvn_rewrites__mode``
    ``auto`` (default): on after the import. ``opt_in``: only inside :func:`enable`, or in modes
    that include the tag ``mvn_rewrites``. ``off``: never.
``mvn_rewrites__skip``
    Comma-separated names of stages to leave out: ``logprob``, ``reroll``, ``recognize``,
    ``structure``, ``lower``.

``mvn_rewrites__threads``
    How many threads may share the densities of one large batch (from 8192 matrices on, useful from
    about 100 000) in code that is compiled from now on; 0 for one per core. The numbers are the
    same, bit by bit. The default is 1 because samplers run their chains in parallel. Numba only.

They are read when a graph is rewritten, not when the package is imported, because PyMC's
pre-gradient pass and modes given by name ignore ``excluding(...)``.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytensor
from pytensor.configparser import EnumStr, IntParam, StrParam

STAGES = ("logprob", "reroll", "recognize", "structure", "lower")
OPT_IN_TAG = "mvn_rewrites"

# PyTensor creates the flags as attributes at run time: mypy cannot know them
_config: Any = pytensor.config
_forced: ContextVar[bool | None] = ContextVar("mvn_rewrites_forced", default=None)


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
    forced = _forced.get()
    if forced is not None:
        return forced
    mode = _config.mvn_rewrites__mode
    return mode == "auto" or (mode == "opt_in" and opted_in)


@contextmanager
def enable() -> Iterator[None]:
    """Rewrite inside this block, whatever ``mvn_rewrites__mode`` says.

    Examples
    --------
    >>> import pytensor
    >>> with pytensor.config.change_flags(mvn_rewrites__mode="opt_in"), enable():
    ...     is_active("reroll")
    True
    """
    token = _forced.set(True)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def disable() -> Iterator[None]:
    """Leave all graphs as they are inside this block.

    Examples
    --------
    >>> with disable():
    ...     is_active("reroll")
    False
    """
    token = _forced.set(False)
    try:
        yield
    finally:
        _forced.reset(token)
