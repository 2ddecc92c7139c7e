"""Importing is enough, in any order, any number of times; failures leave the graph alone."""

import subprocess
import sys

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.pytensorf import rewrite_pregrad
from pytensor.assumptions import SpecifyAssumptions, assume
from pytensor.compile.mode import get_mode, optdb
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.graph.traversal import ancestors

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites import pipeline
from pytensor_mvn_rewrites.pipeline import GuardedGraphRewriter, GuardedNodeRewriter
from tests.harness import our_ops, warns_of_failures
from tests.zoo import thread_loop

COUNT_FUSED = """
import numpy as np
with pm.Model() as model:
    for n in range(3):
        pm.MvNormal(f"x_{n}", mu=np.zeros(2), cov=np.eye(2) + n)
from pymc.pytensorf import rewrite_pregrad
from pytensor.graph.traversal import ancestors
graph = rewrite_pregrad(model.logp())
ops = {str(v.owner.op) for v in ancestors([graph]) if v.owner}
print("MvNormalLogp{chol}" in ops, "numba" in sys.modules)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import pytensor_mvn_rewrites; import pymc as pm",
        "import pymc as pm; import pytensor_mvn_rewrites",
        "import pytensor; import pytensor_mvn_rewrites; import pymc as pm",
        "import pytensor_mvn_rewrites; import pytensor_mvn_rewrites as again; import pymc as pm",
    ],
)
def test_importing_is_enough_and_does_not_import_numba(imports):
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; {imports}{COUNT_FUSED}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["True", "False"]


def test_reloading_keeps_the_flags():
    from pytensor_mvn_rewrites.config import add_flags

    with pytensor.config.change_flags(mvn_rewrites__mode="off"):
        add_flags()
        assert pytensor.config.mvn_rewrites__mode == "off"


def test_rules_sit_where_the_gradient_is_taken_after_them():
    for stage, database in [
        ("reroll", "canonicalize"),
        ("recognize", "stabilize"),
        ("structure", "stabilize"),
    ]:
        assert pipeline.RULES[stage]
        for rule in pipeline.RULES[stage]:
            assert optdb[database][f"mvn_{rule}"]
            assert optdb[database][f"mvn_{rule}_opt_in"]


def raising(*args):
    raise RuntimeError("no such luck")


def test_failing_graph_rewrite_warns_once_and_leaves_the_graph():
    x = pt.vector("x")
    fgraph = pytensor.graph.fg.FunctionGraph([x], [x + x], clone=False)
    guarded = GuardedGraphRewriter(raising, "reroll")
    with warns_of_failures("'raising' failed with RuntimeError") as caught:
        guarded.apply(fgraph)
        guarded.apply(fgraph)
    assert len(caught) == 1
    assert [str(node.op) for node in fgraph.apply_nodes] == ["Add"]


def test_failing_node_rewrite_warns_once_and_leaves_the_node():
    @node_rewriter([pt.add])
    def raising_rule(fgraph, node):
        raise RuntimeError("no such luck")

    guarded = GuardedNodeRewriter(raising_rule, "structure")
    x = pt.vector("x")
    fgraph = pytensor.graph.fg.FunctionGraph([x], [x + x], clone=False)
    [node] = fgraph.apply_nodes
    with warns_of_failures("'raising_rule' failed") as caught:
        assert guarded.transform(fgraph, node) is None
        assert guarded.transform(fgraph, node) is None
    assert len(caught) == 1


def test_failing_stage_leaves_a_model_right(monkeypatch):
    """The whole way: reroll breaks down, the model compiles and gives the same numbers."""
    model, _ = thread_loop()
    point = model.initial_point()
    expected = model.compile_logp(mode="FAST_COMPILE")(point)
    monkeypatch.setattr("pytensor_mvn_rewrites.reroll._packs.LockStep.batch", raising, raising=True)
    with warns_of_failures("reroll_sums"):
        actual = model.compile_logp(mode="FAST_COMPILE")(point)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_second_application_changes_nothing():
    model, _ = thread_loop()
    once = rewrite_pregrad(model.logp())
    with pipeline.recording() as events:
        twice = rewrite_pregrad(once)
    assert not [event for event in events if isinstance(event, pipeline.Fired)]
    assert our_ops([once]) == our_ops([twice])


def test_models_without_normals_are_left_alone():
    with pm.Model() as model:
        a = pm.Normal("a")
        b = pm.HalfNormal("b")
        pm.Normal("y", a, b, observed=np.arange(5.0))
    with pipeline.recording() as events:
        rewrite_pregrad(model.logp())
    assert not events


@pytest.mark.parametrize("backend", ["NUMBA", "JAX"])
def test_graphs_without_our_ops_are_compiled_as_without_the_plugin(backend):
    """What tidies up around fused ops does not reorder the sums of other models."""
    x = pt.vector("x", shape=(9,))
    a, b, c = x[:3], x[3:6], x[np.array([0, 7, 8])]
    logp = pt.exp(a).sum() + pt.clip(a * b, 0, c).sum() + b.T[:, None].sum(0).sum()
    outputs = [logp, pt.concatenate([a, c, b])[np.arange(9)[::-1]], (x > 0).all()]

    def compiled():
        fgraph = FunctionGraph([x], [out.copy() for out in outputs], clone=True)
        get_mode(backend).excluding("inplace").optimizer.rewrite(fgraph)
        return pytensor.dprint(fgraph, file="str")

    on = compiled()
    with mvn.disable():
        assert on == compiled()


@pytest.mark.parametrize("what", ["nothing", "narrow", "wide", "declared", "no MvNormal"])
def test_models_are_marked_where_something_is_known(what):
    """By the markers of PyTensor's ``assume``, which the pre-gradient pass takes out again."""
    lengths = {"row": 8, "column": 2 if what in ("narrow", "no MvNormal") else 3}
    with pm.Model(coords={name: range(n) for name, n in lengths.items()}) as model:
        size = {"shape": (8, 2)} if what == "nothing" else {"dims": ("row", "column")}
        x = pm.Normal("x", **size)
        cov = x @ x.T + np.eye(8)
        if what == "declared":
            cov = assume(cov, positive_definite=True)
        if what == "no MvNormal":
            pm.Normal("y", cov, observed=np.zeros((8, 8)))
        else:
            pm.MvNormal("y", np.zeros(8), cov=cov, observed=np.zeros(8))

    def markers(graph):
        owners = {var.owner for var in ancestors([graph]) if var.owner}
        return [node.op for node in owners if isinstance(node.op, SpecifyAssumptions)]

    assert len(markers(model.logp())) == (1 if what in ("narrow", "declared") else 0)
    assert not markers(rewrite_pregrad(model.logp()))
