"""The disk cache of kernels when it is shared, cold, full, read-only, cut off or of other code."""

import errno
import logging
import os
import pickle
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from numba.core.caching import IndexDataCacheFile
from pytensor.link.numba import cache

from pytensor_mvn_rewrites.lower.numba import jit
from pytensor_mvn_rewrites.ops import mvnormal_logp
from tests.harness import spd

X = np.linspace(-1.0, 1.0, 8).reshape(2, 4)
COV = spd(np.random.default_rng(1), n=4)

#: Writes the density of two rows and its gradient
SCRIPT = """
import pickle, sys
import numpy as np
import pytensor, pytensor.tensor as pt
from pytensor_mvn_rewrites.ops import mvnormal_logp

values = pickle.load(sys.stdin.buffer)
x, cov = pt.matrix("x", shape=(2, 4)), pt.matrix("cov", shape=(4, 4))
logp = mvnormal_logp(x, np.zeros(4), cov)[0].sum()
function = pytensor.function([x, cov], [logp, *pt.grad(logp, [x, cov])], mode="NUMBA")
sys.stdout.buffer.write(pickle.dumps(function(*values)))
"""


def graph():
    x, cov = pt.matrix("x", shape=(2, 4)), pt.matrix("cov", shape=(4, 4))
    logp = mvnormal_logp(x, np.zeros(4), cov)[0].sum()
    return [x, cov], [logp, *pt.grad(logp, [x, cov])]


@pytest.fixture(scope="module")
def expected():
    inputs, outputs = graph()
    with pytensor.config.change_flags(cxx=""):
        return pytensor.function(inputs, outputs, mode="FAST_COMPILE")(X, COV)


def assert_right(results, expected):
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


def test_two_processes_with_one_cold_cache(tmp_path, expected):
    flags = {"PYTENSOR_FLAGS": f"base_compiledir={tmp_path},cxx="}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | flags,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for process in processes:
        process.stdin.write(pickle.dumps((X, COV)))
        process.stdin.close()
        process.stdin = None
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err.decode()
        assert_right(pickle.loads(out), expected)
    assert list((tmp_path / "numba").glob("*.nbc"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cold cache for kernels, and no kernels in memory."""
    monkeypatch.setattr(cache, "NUMBA_CACHE_PATH", tmp_path)
    monkeypatch.setattr(jit, "_KERNELS", {})
    return tmp_path


def run():
    """A function of which the kernels alone use the disk cache."""
    njit = jit.kernel_address

    def cached(name):
        with pytensor.config.change_flags(numba__cache=True):
            return njit(name)

    with pytest.MonkeyPatch.context() as patch, pytensor.config.change_flags(numba__cache=False):
        patch.setattr(jit, "kernel_address", cached)
        patch.setattr("pytensor_mvn_rewrites.lower.numba.kernel_address", cached)
        inputs, outputs = graph()
        return pytensor.function(inputs, outputs, mode="NUMBA")(X, COV)


def forget():
    jit._KERNELS.clear()
    jit._functions.clear()


def test_a_kernel_is_found_again(folder, expected):
    assert_right(run(), expected)
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(files) == 2
    forget()
    assert_right(run(), expected)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_nothing_can_be_written(folder, expected, monkeypatch, caplog, number):
    @contextmanager
    def fails(self, path):
        raise OSError(number, os.strerror(number))
        yield

    monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", fails)
    with caplog.at_level(logging.WARNING):
        assert_right(run(), expected)
    assert os.strerror(number) in caplog.text
    assert not list(folder.iterdir())


def test_a_file_is_cut_off(folder, expected, caplog):
    run()
    forget()
    [path] = folder.glob("*.nbc")
    path.write_bytes(path.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert_right(run(), expected)
    assert "without the disk cache" in caplog.text


def test_kernels_of_other_sources_are_not_used(folder, expected, monkeypatch):
    monkeypatch.setattr(jit, "SOURCES", "others")
    run()
    stale = set(folder.iterdir())
    forget()
    monkeypatch.undo()
    monkeypatch.setattr(cache, "NUMBA_CACHE_PATH", folder)
    monkeypatch.setattr(jit, "_KERNELS", {})
    assert_right(run(), expected)
    assert len(set(folder.iterdir()) - stale) == 2
