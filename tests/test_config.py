"""The flags: where they take effect, and that they do nothing else."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pymc as pm
import pytensor
import pytest
from pymc.pytensorf import rewrite_pregrad
from pytensor.compile.mode import get_mode

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites import reference
from pytensor_mvn_rewrites.config import STAGES, is_active
from pytensor_mvn_rewrites.pipeline import recording
from tests.harness import PIPELINE_MODE, our_ops
from tests.zoo import python_sum_of_potentials, thread_loop

FLAGS = pytensor.config.change_flags


def fused_before_gradient(model) -> int:
    return sum(our_ops([rewrite_pregrad(model.logp())]).values())


def fused_in_function(model, mode) -> int:
    function = model.compile_logp(mode=mode)
    return sum(our_ops(function.f.maker.fgraph.outputs).values())


def test_auto_is_the_default():
    model, _ = thread_loop()
    assert pytensor.config.mvn_rewrites__mode == "auto"
    assert fused_before_gradient(model) == 1
    assert fused_in_function(model, PIPELINE_MODE) == 1


def test_off_everywhere():
    model, _ = thread_loop()
    with FLAGS(mvn_rewrites__mode="off"):
        assert fused_before_gradient(model) == 0
        assert fused_in_function(model, PIPELINE_MODE) == 0
        assert fused_in_function(model, PIPELINE_MODE.including("mvn_rewrites")) == 0


def test_opt_in_by_context_manager():
    model, _ = thread_loop()
    with FLAGS(mvn_rewrites__mode="opt_in"):
        assert fused_before_gradient(model) == 0
        with mvn.enable():
            assert fused_before_gradient(model) == 1
        assert fused_before_gradient(model) == 0


def test_opt_in_by_mode_tag():
    # a formula, because PyMC's intermediate representation does not know the mode
    model, _ = python_sum_of_potentials()
    with FLAGS(mvn_rewrites__mode="opt_in"):
        assert fused_in_function(model, PIPELINE_MODE) == 0
        assert fused_in_function(model, PIPELINE_MODE.including("mvn_rewrites")) == 1


def test_disable_wins_over_auto_and_enable_over_off():
    model, _ = thread_loop()
    with mvn.disable():
        assert fused_before_gradient(model) == 0
    with FLAGS(mvn_rewrites__mode="off"), mvn.enable():
        assert fused_before_gradient(model) == 1


def test_named_modes():
    """Named modes ignore ``excluding``; they do not ignore the flag."""
    model, _ = thread_loop()
    with FLAGS(mvn_rewrites__mode="off", cxx=""):
        assert fused_in_function(model, "FAST_COMPILE") == 0
    with FLAGS(cxx=""):
        assert fused_in_function(model, "FAST_COMPILE") == 1


@pytest.mark.parametrize("stage", STAGES)
def test_skip_one_stage(stage):
    with FLAGS(mvn_rewrites__skip=stage):
        assert not is_active(stage)
        assert all(is_active(other) for other in STAGES if other != stage)


def test_skipping_stages_changes_the_graph():
    model, _ = thread_loop()
    with FLAGS(mvn_rewrites__skip="reroll"):
        assert fused_before_gradient(model) == 6
    with FLAGS(mvn_rewrites__skip="logprob, recognize"):
        assert fused_before_gradient(model) == 0


def test_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="Invalid value"), FLAGS(mvn_rewrites__skip="rerol"):
        pass


def test_flags_from_the_environment():
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import pytensor_mvn_rewrites, pytensor\n"
        "print(pytensor.config.mvn_rewrites__mode)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTENSOR_FLAGS": "mvn_rewrites__mode=opt_in"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "opt_in"


def test_opt_in_tag_reaches_modes_given_by_name():
    model, _ = python_sum_of_potentials()
    mode = get_mode("FAST_COMPILE").including("mvn_rewrites")
    with FLAGS(mvn_rewrites__mode="opt_in", cxx=""):
        assert fused_in_function(model, "FAST_COMPILE") == 0
        assert fused_in_function(model, mode) == 1


def in_a_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.mark.parametrize(("mode", "block"), [("auto", mvn.disable), ("opt_in", mvn.enable)])
def test_a_block_holds_in_threads_while_it_is_open(mode, block):
    with FLAGS(mvn_rewrites__mode=mode), ThreadPoolExecutor(1) as older:

        def in_threads():
            return older.submit(is_active, "reroll").result(), in_a_thread(
                lambda: is_active("lower")
            )

        outside = is_active("reroll")
        assert in_threads() == (outside, outside)
        with block():
            assert is_active("reroll") != outside
            assert in_threads() == (not outside, not outside)
        assert in_threads() == (outside, outside)


def test_models_are_compiled_in_threads_as_the_block_says():
    model, _ = thread_loop()
    with mvn.disable():
        assert in_a_thread(lambda: fused_before_gradient(model)) == 0
    assert in_a_thread(lambda: fused_before_gradient(model)) == 1


def test_a_block_of_the_thread_itself_wins():
    def own():
        with mvn.enable():
            return is_active("reroll")

    with mvn.disable():
        assert in_a_thread(own)
        # the block that the thread has closed is gone, this one is not
        assert not in_a_thread(lambda: is_active("reroll"))
        assert not is_active("reroll")


def test_blocks_of_threads_may_overlap():
    """They may close in any order; while both kinds are open, other threads leave graphs alone."""
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        disabled, enabled = mvn.disable(), mvn.enable()
        with FLAGS(mvn_rewrites__mode="opt_in"):
            second.submit(enabled.__enter__).result()
            assert is_active("reroll")
            first.submit(disabled.__enter__).result()
            assert not is_active("reroll")
            assert second.submit(is_active, "reroll").result()
            second.submit(enabled.__exit__, None, None, None).result()
            assert not is_active("reroll")
        assert not is_active("reroll")
        first.submit(disabled.__exit__, None, None, None).result()
        assert is_active("reroll")


def test_an_error_closes_a_block():
    with pytest.raises(RuntimeError), mvn.disable():
        raise RuntimeError
    assert is_active("reroll")
    assert in_a_thread(lambda: is_active("reroll"))


def test_what_explain_compares_with_is_no_matter_of_other_threads(monkeypatch):
    seen = []

    def noting(function):
        def noted(*args, **kwargs):
            seen.append((is_active("reroll"), in_a_thread(lambda: is_active("reroll"))))
            return function(*args, **kwargs)

        return noted

    model = thread_loop()[0]
    derive = reference.transformed_conditional_logp
    monkeypatch.setattr(reference, "transformed_conditional_logp", noting(derive))
    monkeypatch.setattr(pm.Model, "logp", noting(pm.Model.logp))
    mvn.explain(model)
    assert set(seen[:-1]) == {(False, True)}
    assert seen[-1] == (True, True)


def test_recording_leaves_other_threads_out():
    model, _ = thread_loop()
    with recording() as events:
        in_a_thread(lambda: fused_before_gradient(model))
        assert events == []
        fused_before_gradient(model)
        assert events != []
