"""Functions that SciPy calls hold no kernels, which Python would run."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.op import HasInnerGraph
from pytensor.tensor.optimize import ScipyWrapperOp, minimize, root

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites import pipeline
from pytensor_mvn_rewrites.graph import core_op, nodes_with
from pytensor_mvn_rewrites.lower import numba_backend
from pytensor_mvn_rewrites.lower._lowered import BackendOp
from pytensor_mvn_rewrites.ops import mvnormal_logp
from pytensor_mvn_rewrites.ops.gaussian import FusedOp

ROWS = np.random.default_rng(0).normal(size=(9, 3))
NUMBA = pytensor.compile.mode.get_mode("NUMBA")
TAU = np.diag([0.5, 1.0, 2.0])
START, MEAN = np.zeros(3), np.ones(3)
EXPECTED = (9 * ROWS.mean(axis=0) + MEAN) / 10

pytestmark = pytest.mark.filterwarnings("ignore:Numba will use object mode")


def minus_log_posterior(x, mean):
    """As PyMC's intermediate representation gives it: with fused densities."""
    prior, _ = mvnormal_logp(x, mean, pt.constant(TAU), "tau")
    rows, _ = mvnormal_logp(pt.constant(ROWS), x, pt.constant(TAU), "tau")
    return -(prior + rows.sum())


def ops_inside(fgraph) -> set:
    """All ops of a graph and of the graphs in it."""
    found = set()
    for node in fgraph.apply_nodes:
        found.add(node.op)
        if isinstance(core := core_op(node.op), HasInnerGraph):
            found |= ops_inside(core.fgraph)
    return found


def solved(by_root: bool, mode=NUMBA):
    """A function of the mean that gives the mode of the posterior."""
    x, mean = pt.vector("x", shape=(3,)), pt.vector("mean", shape=(3,))
    objective = minus_log_posterior(x, mean)
    if by_root:
        found, _ = root(pt.grad(objective, x), x)
    else:
        found, _ = minimize(objective, x, method="BFGS")
    return pytensor.function([x, mean], found, mode=mode)


@pytest.mark.parametrize("by_root", [False, True], ids=["minimize", "root"])
def test_no_kernels(by_root):
    function = solved(by_root)
    [inner] = [
        node.op.fgraph
        for node in function.maker.fgraph.apply_nodes
        if isinstance(node.op, ScipyWrapperOp)
    ]
    assert not any(isinstance(op, BackendOp) for op in ops_inside(inner))
    # those in the loop by which `root` computes a Jacobian stay: PyTensor rewrites their graphs
    assert by_root or not nodes_with(inner, FusedOp)
    np.testing.assert_allclose(function(START, MEAN), EXPECTED, atol=1e-6)


def test_failure_leaves_the_ops(monkeypatch):
    def failing(node):
        raise RuntimeError("injected")

    pipeline._failed.clear()
    monkeypatch.setattr(numba_backend, "inline_ofg_node", failing)
    flags = pytensor.config.change_flags(on_opt_error="warn")
    with flags, pytest.warns(mvn.RewriteFailedWarning, match="formulas_of_fused_ops"):
        function = solved(by_root=False)
    np.testing.assert_allclose(function(START, MEAN), EXPECTED, atol=1e-6)
