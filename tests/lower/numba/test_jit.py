"""Keys of the disk cache: what a kernel's machine code depends on, and Numba does not look at."""

import hashlib
from pathlib import Path

import llvmlite
import numba
import pytensor
import pytest

from pytensor_mvn_rewrites.lower.numba import jit


def test_versions_are_those_that_are_installed():
    assert jit.VERSIONS == {
        "pytensor": pytensor.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
    }


def test_sources_are_those_of_all_kernels():
    files = sorted(Path(jit.__file__).parent.rglob("*.py"))
    assert jit.SOURCES == hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


@pytest.mark.parametrize("package", ["pytensor", "numba", "llvmlite"])
def test_another_version_is_another_key(package, monkeypatch):
    before = jit.cache_key("general")
    assert jit.cache_key("general") == before
    monkeypatch.setitem(jit.VERSIONS, package, "0.0")
    assert jit.cache_key("general") != before


def test_other_sources_are_another_key(monkeypatch):
    before = jit.cache_key("general")
    monkeypatch.setattr(jit, "SOURCES", "")
    assert jit.cache_key("general") != before


def test_other_arithmetic_is_another_key():
    """Functions that a node calls are compiled as ``config.numba__fastmath`` says."""
    keys = set()
    for fastmath in (True, False):
        with pytensor.config.change_flags(numba__fastmath=fastmath):
            keys.add(jit.compile_source("def double(x):\n    return x + x\n", "double", {})[1])
    assert len(keys) == 2
