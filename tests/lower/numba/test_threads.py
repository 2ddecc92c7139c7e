"""Threads share a batch and give the same numbers, bit by bit."""

import os
import threading
from functools import cache

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_array_equal

from pytensor_mvn_rewrites.config import n_threads
from pytensor_mvn_rewrites.lower.numba import threads
from pytensor_mvn_rewrites.lower.numba.frame import KernelSpec
from pytensor_mvn_rewrites.lower.numba.lanes import CHUNK
from pytensor_mvn_rewrites.lower.numba.threads import THREADS_MIN_NUMBERS
from pytensor_mvn_rewrites.ops import mvnormal_logp
from tests.lower.test_numba_backend import lowered_nodes, random_inputs

SHAPES = ((None, 2), (None, 2), (None, 2, 2))
THREADS_MIN_M = THREADS_MIN_NUMBERS // 4
SIZE = THREADS_MIN_M + 4 * CHUNK + 3


@cache
def function(number, form="sum", shapes=SHAPES):
    with pytensor.config.change_flags(mvn_rewrites__threads=number):
        inputs = [pt.tensor(shape=shape) for shape in shapes]
        logp, posdef = mvnormal_logp(*inputs)
        outputs = [logp.sum()] if form == "sum" else [logp, posdef]
        outputs += pytensor.grad(logp.sum(), inputs)
        return pytensor.function(inputs, outputs, mode="NUMBA")


def kernel_name(function):
    [node] = lowered_nodes(function)
    with pytensor.config.change_flags(mvn_rewrites__threads=2):
        return KernelSpec.of(node.op, node).kernel_name


def inputs(size, shapes=SHAPES):
    sizes = [
        tuple(size if length is None else length for length in shape[: len(shape) - core])
        + shape[-core:]
        for shape, core in zip(shapes, (1, 1, 2), strict=True)
    ]
    return random_inputs(mvnormal_logp, "cov", tuple(sizes))[:3]


@pytest.mark.parametrize("form", ["sum", "each"])
def test_equal_bit_by_bit(form):
    for size in (THREADS_MIN_M, SIZE):
        arguments = inputs(size)
        expected = function(1, form)(*arguments)
        for number in (2, 3):
            for _ in range(3):
                for a, d in zip(function(number, form)(*arguments), expected, strict=True):
                    assert_array_equal(a, d)
    # bad matrices, in several chunks
    arguments[2][[5, CHUNK + 7, SIZE - 1], 0, 0] = [-1.0, np.nan, -1.0]
    expected = function(1, form)(*arguments)
    assert np.isnan(expected[0]).any()
    for a, d in zip(function(2, form)(*arguments), expected, strict=True):
        assert_array_equal(a, d)


def test_strided_inputs():
    arguments = [np.repeat(x, 2, axis=0)[::2] for x in inputs(SIZE)]
    for a, d in zip(function(2)(*arguments), function(1)(*arguments), strict=True):
        assert_array_equal(a, d)


@pytest.mark.parametrize("late", ["main", "helper", "neither"])
def test_threads_share_the_work(late, monkeypatch):
    """Both threads run; whoever comes first does the work, and the result is the same."""
    ran = set()
    helper_is_done = threading.Event()
    kernel_type = threads._KERNEL_TYPE

    def watched(address):
        run = kernel_type(address)

        def call(*arguments):
            is_main = threading.current_thread() is threading.main_thread()
            if late == "main" and is_main:
                assert helper_is_done.wait(60)
            if late == "helper" and not is_main:
                assert helper_is_done.wait(60)
            status = run(*arguments)
            ran.add("main" if is_main else "helper")
            if not is_main:
                helper_is_done.set()
            return status

        return call

    arguments = inputs(SIZE)
    expected = function(1)(*arguments)
    shared = function(2)
    monkeypatch.setattr(threads, "_KERNEL_TYPE", watched)
    for a, d in zip(shared(*arguments), expected, strict=True):
        assert_array_equal(a, d)
    if late == "helper":
        # nobody has waited for it, and what it finds is over
        assert ran == {"main"}
        helper_is_done.set()
    threads.pool(2, os.getpid()).submit(int).result(60)
    assert ran == {"main", "helper"}


def test_small_batches_stay_in_one_thread(monkeypatch):
    def fail(*arguments):
        raise AssertionError("called")

    arguments = inputs(THREADS_MIN_M - 1)
    expected = function(1)(*arguments)
    shared = function(2)
    monkeypatch.setattr(threads, "run_in_threads", fail)
    for a, d in zip(shared(*arguments), expected, strict=True):
        assert_array_equal(a, d)


def test_failure_is_reported(monkeypatch):
    def fail(*arguments):
        raise LookupError

    reported = []
    monkeypatch.setattr(threads, "run_in_threads", fail)
    monkeypatch.setattr("sys.unraisablehook", lambda error: reported.append(error.exc_type))
    with pytest.raises(RuntimeError, match="failed in a thread"):
        function(2)(*inputs(SIZE))
    assert reported == [LookupError]


def test_gradient_that_all_matrices_share():
    """Threads cannot add to one gradient: the kernel runs in one."""
    shared = function(2, "sum", ((None, 2), (2,), (None, 2, 2)))
    assert kernel_name(shared).startswith("lanes")
    assert kernel_name(function(2)).startswith("threads 2 lanes")


def test_number_of_threads():
    assert n_threads() == 1
    with pytensor.config.change_flags(mvn_rewrites__threads=0):
        assert n_threads() == os.cpu_count()
    with pytest.raises(ValueError, match="Invalid"):
        pytensor.config.mvn_rewrites__threads = -1
