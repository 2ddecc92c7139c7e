"""What is done about a rewrite that fails or changes numbers: PyTensor's flags, DebugMode, ours."""

import logging

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.pytensorf import rewrite_pregrad
from pytensor.compile.debug.debugmode import BadOptimization, DebugMode
from pytensor.compile.mode import OPT_FAST_RUN

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.checks import RewriteDiffersError, check_rewrite
from pytensor_mvn_rewrites.config import verifies
from pytensor_mvn_rewrites.ops import mvnormal_logp
from pytensor_mvn_rewrites.structure.diagonal import Diagonal
from tests.harness import failing, guards, replaced, rewritten
from tests.test_failures import MODELS, built

X, D = pt.vector("x", shape=(4,)), pt.vector("d", shape=(4,))
VALUES = {X: np.arange(4.0), D: np.arange(1.0, 5.0)}


def logp():
    return mvnormal_logp(X, np.zeros(4), pt.diag(D))[0]


@pytest.fixture(autouse=True)
def no_log(monkeypatch):
    """PyTensor logs an error before it raises it."""
    monkeypatch.setattr(logging.getLogger("pytensor.graph.rewriting.basic"), "disabled", True)


@pytest.fixture
def wrong(monkeypatch):
    """The log-density of a diagonal covariance is off."""
    outputs = Diagonal.outputs

    def off(self, node):
        first, *others = outputs(self, node)
        return [first + 1, *others]

    monkeypatch.setattr(Diagonal, "outputs", off)


@pytest.fixture
def broken(monkeypatch):
    for guard in guards("structure", "Diagonal"):
        replaced(monkeypatch, guard, failing)


@pytest.fixture
def checked():
    with pytensor.config.change_flags(mvn_rewrites__verify=True, traceback__limit=0):
        yield


def test_failures_raise_on_request(broken):
    with pytensor.config.change_flags(on_opt_error="raise"), pytest.raises(ZeroDivisionError):
        rewritten([logp()])


@pytest.mark.parametrize("stage", ["reroll", "generative"])
def test_failures_of_whole_graphs_raise_on_request(stage, monkeypatch):
    names = {
        "reroll": "pytensor_mvn_rewrites.reroll._packs.LockStep.batch",
        "generative": "pytensor_mvn_rewrites.generative.densities.find_loops",
    }
    monkeypatch.setattr(names[stage], failing(None))
    name = {"reroll": "short_loop", "generative": "loop"}[stage]
    with pytest.raises(ZeroDivisionError):
        rewrite_pregrad(built(name)[0].logp())


def test_failures_are_ignored_on_request(broken):
    with pytensor.config.change_flags(on_opt_error="ignore"):
        [same] = rewritten([logp()])
    assert "MvNormalLogp" in str(same.owner.op)


def debug_mode():
    optimizer = OPT_FAST_RUN.excluding("fusion")
    return DebugMode(optimizer=optimizer, check_c_code=False, stability_patience=1)


def test_debug_mode_finds_nothing():
    function = pytensor.function([X, D], logp(), mode=debug_mode())
    with mvn.disable():
        expected = logp().eval(VALUES, mode="FAST_COMPILE")
    np.testing.assert_allclose(function(*VALUES.values()), expected, rtol=1e-12)


def test_debug_mode_finds_a_wrong_rule(wrong):
    function = pytensor.function([X, D], logp(), mode=debug_mode())
    with pytest.raises(BadOptimization):
        function(*VALUES.values())


def test_it_is_off():
    assert not verifies()


def test_a_wrong_rule_is_found(wrong, checked):
    with pytest.raises(RewriteDiffersError, match="'Diagonal' changes numbers"):
        rewritten([logp()])


def test_it_is_found_whatever_is_done_about_failures(wrong, checked):
    with pytensor.config.change_flags(on_opt_error="ignore"), pytest.raises(RewriteDiffersError):
        rewritten([logp()])


def test_a_wrong_rule_for_graphs_is_found(monkeypatch, checked):
    model, _ = built("short_loop")
    for guard in guards("reroll", "reroll_sums"):

        def wrong(fgraph, function=guard.function):
            function(fgraph)
            fgraph.replace_all([(out, out + 1) for out in fgraph.outputs], import_missing=True)

        monkeypatch.setattr(guard, "function", wrong)
    with pytest.raises(RewriteDiffersError, match="changes numbers"):
        rewrite_pregrad(model.logp())


@pytest.mark.parametrize("name", ["loop", "groups_of_matrices", "by_hand", "kron sum", "declared"])
def test_right_rules_pass(name, checked, caplog):
    assert name in MODELS
    model, _ = built(name)
    with caplog.at_level(logging.INFO, logger="pytensor_mvn_rewrites.checks"):
        rewrite_pregrad(model.logp())
    unchecked = {record.getMessage() for record in caplog.records}
    assert all("holds random variables" in text or name == "declared" for text in unchecked)


def test_unknown_lengths_are_tried_out(wrong, checked):
    with pm.Model(coords={"row": range(4)}) as model:
        d = pm.HalfNormal("d", dims="row")
        pm.MvNormal("y", np.zeros(4), cov=pt.diag(d), dims="row")
    with pytest.raises(RewriteDiffersError):
        rewrite_pregrad(model.logp())


def test_what_cannot_be_checked_is_said(caplog):
    x = pt.vector("x", shape=(2,))
    with caplog.at_level(logging.INFO, logger="pytensor_mvn_rewrites.checks"):
        check_rewrite("a rule", [pt.log(x - x - 1)], [x])
    assert "a rule goes unchecked: there is no finite value" in caplog.text
