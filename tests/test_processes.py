"""What is pickled works in a process that has imported nothing: spawned workers, other machines."""

import multiprocessing
import operator
import os
import pickle
import subprocess
import sys
from functools import cache

import cloudpickle
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import equal_computations

from pytensor_mvn_rewrites.lower._lowered import BackendOp
from pytensor_mvn_rewrites.ops import mvnormal_logp, packed_cholesky
from pytensor_mvn_rewrites.ops.gaussian import KernelOp
from tests.harness import PIPELINE_MODE, evaluate, rewritten

PACKAGE = "pytensor_mvn_rewrites"
X = np.linspace(-1.0, 1.0, 9)

#: Reads (function or graph, X, name of a mode or None), and writes the values and the names of what
#: implements our ops
READ = """
import pickle, sys, warnings

warnings.simplefilter("error", UserWarning)
warnings.filterwarnings("ignore", "PyTensor could not link to a BLAS installation")
function, x, mode = pickle.load(sys.stdin.buffer)
import pytensor

if mode is not None:
    function = pytensor.function(*function, mode=mode)
ops = {type(node.op) for node in function.maker.fgraph.apply_nodes}
ours = [op for op in ops if op.__module__.startswith("pytensor_mvn_rewrites")]
linker = type(function.maker.linker).__name__
if linker == "NumbaLinker":
    from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key as implementations
elif linker == "JAXLinker":
    from pytensor.link.jax.dispatch import jax_funcify as implementations
else:
    implementations = None
found = {op.__name__: implementations and implementations.dispatch(op).__module__ for op in ours}
sys.stdout.buffer.write(pickle.dumps((function(x), found)))
"""


def in_a_fresh_process(*what):
    result = subprocess.run(
        [sys.executable, "-c", READ],
        env=os.environ | {"PYTENSOR_FLAGS": "cxx="},
        input=cloudpickle.dumps(what),
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr.decode()
    return pickle.loads(result.stdout)


def graph():
    """A density with an unpacked factor, and its gradient, of one vector."""
    x = pt.vector("x", shape=(9,))
    chol = packed_cholesky(x[3:], 3, log_diagonal=True)[0]
    logp, _ = mvnormal_logp(x[:3], np.zeros(3), chol, "chol")
    return x, [logp, pt.grad(logp, x)]


@pytest.fixture(scope="module")
def expected():
    x, outputs = graph()
    return evaluate(outputs, {x: X})


@cache
def compiled(mode):
    x, outputs = graph()
    with pytensor.config.change_flags(cxx=""):
        return pytensor.function([x], outputs, mode=mode)


def assert_all_close(actual, expected):
    for got, want in zip(actual, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_python_functions_in_a_fresh_process(expected):
    values, _ = in_a_fresh_process(compiled(PIPELINE_MODE), X, None)
    assert_all_close(values, expected)


def test_numba_functions_in_a_fresh_process(expected):
    values, found = in_a_fresh_process(compiled("NUMBA"), X, None)
    assert_all_close(values, expected)
    assert found == {
        "NumbaMvNormalLogp": f"{PACKAGE}.lower.numba",
        "PackedCholesky": f"{PACKAGE}.lower.numba.packed_cholesky",
        "PackedCholeskyPullback": f"{PACKAGE}.lower.numba.packed_cholesky",
        "Unravel": f"{PACKAGE}.lower.numba.raveled",
    }


@pytest.mark.parametrize("mode", ["NUMBA", "JAX"])
def test_compiled_functions_in_a_spawned_worker(mode, expected):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert_all_close(pool.apply(operator.call, (compiled(mode), X)), expected)


def test_graphs_are_pickled_before_they_are_compiled(expected):
    x, outputs = graph()
    values, found = in_a_fresh_process(([x], rewritten(outputs)), X, "NUMBA")
    assert_all_close(values, expected)
    assert found["NumbaMvNormalLogp"] == f"{PACKAGE}.lower.numba"


def test_every_op_with_an_implementation_loads_it():
    from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key

    ours = {
        op
        for op, implementation in numba_funcify_and_cache_key.registry.items()
        if implementation.__module__.startswith(PACKAGE)
    }
    assert len(ours) > 10
    assert all(issubclass(op, BackendOp | KernelOp) for op in ours)


def test_what_pytensor_keeps_on_an_op_is_not_pickled():
    """Functions and derivatives hold closures, and instances are shared among graphs."""
    x, outputs = graph()
    evaluate([*outputs, pt.grad(outputs[1][-1], x)], {x: X})
    again = pickle.loads(pickle.dumps([x, *outputs]))
    assert equal_computations(again[1:], outputs, again[:1], [x])
