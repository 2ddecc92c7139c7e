"""Keys of the disk cache: what a kernel's machine code depends on, and Numba does not look at."""

import gc
import hashlib
import weakref
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


DOUBLE = "def double(x):\n    return x + x\n", "double", {}


@pytest.mark.parametrize("flag", ["numba__fastmath", "numba__cache"])
def test_flags_hold_when_a_function_is_made_again(flag):
    """Functions that a node calls are compiled as the flags say, whenever that is."""
    functions = []
    for value in (True, False, True):
        with pytensor.config.change_flags(**{flag: value}):
            functions.append(jit.compile_source(*DOUBLE))
    first, other, again = functions
    assert first[0] is again[0] is not other[0]
    assert (first[1] == other[1]) == (flag == "numba__cache")


def test_functions_live_as_long_as_they_are_used():
    function = weakref.ref(jit.compile_source(DOUBLE[0] + "# once\n", *DOUBLE[1:])[0])
    gc.collect()
    assert function() is None
