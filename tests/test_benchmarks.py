"""Every scenario of the benchmark builds, and its variants agree, at minimal sizes."""

import shutil
import sys

import numpy as np
import pymc as pm
import pytensor
import pytest
from pytensor.compile.mode import Mode

from benchmarks import calibration, digits, profile, report
from benchmarks.contestants import (
    Evaluated,
    Fitting,
    LimitDensity,
    NumPyroModel,
    Predictive,
    PyMCModel,
    PyTensorDensity,
    UnrewrittenModel,
)
from benchmarks.measure import Worker, WorkerError
from benchmarks.runner import Effort, Measured, differences, judged, run_scenario
from benchmarks.scenarios import SHORT, Bar, Scenario, Variant, agreement, all_scenarios
from pytensor_mvn_rewrites import disable, enable, explain
from tests.harness import PIPELINE_MODE, REFERENCE_MODE, evaluate

SCENARIOS = {scenario.name: scenario for scenario in all_scenarios("tiny")}


def compare(scenario, contestants, folder):
    """The numbers of all contestants, in this process, against those of the reference."""
    files = {}
    for i, (label, contestant) in enumerate(contestants.items()):
        files[label] = folder / f"{i}.npz"
        contestant.prepare()
        contestant.values(str(files[label]))
    reference = files.pop(scenario.reference)
    assert files
    for file in files.values():
        assert max(differences(file, reference).values()) < 1e-9


def in_python(variant):
    """The contestant of a model, by Python's linker."""
    if variant.arguments["plugin"]:
        return PyMCModel(**variant.arguments | {"mode": PIPELINE_MODE, "skip": ""})
    names = ("model", "arguments", "plugin")
    return UnrewrittenModel(**{name: variant.arguments[name] for name in names})


class Switched:
    """A contestant whose plugin is on or off."""

    def __init__(self, contestant, plugin):
        self.contestant = contestant
        self.plugin = plugin

    def prepare(self):
        with enable() if self.plugin else disable():
            assert self.contestant.prepare()["dimensions"]

    def values(self, file):
        self.contestant.values(file, points=3)


@pytest.mark.parametrize(
    "name", [name for name in SCENARIOS if SCENARIOS[name].reference and "oplevel" not in name]
)
def test_models_agree(name, tmp_path):
    scenario = SCENARIOS[name]
    contestants = {
        variant.label: Switched(in_python(variant), variant.arguments["plugin"])
        for variant in scenario.variants
        # the other backends run the same models
        if variant.label == scenario.reference or "JAX" not in variant.label
        if variant.contestant != "NumPyroModel" and not variant.arguments.get("skip")
    }
    compare(scenario, contestants, tmp_path)


def test_numpyro_agrees(tmp_path):
    pytest.importorskip("numpyro")
    scenario = SCENARIOS["loops:thread_3"]
    size = {"arguments": {"n": 3, "q": 3}}
    by_hand = UnrewrittenModel(model="models.loop_by_hand", plugin=False, **size)
    numpyro = NumPyroModel(model="loops.numpyro_loop", **size)
    contestants = {scenario.reference: Switched(by_hand, False), "NumPyro": Switched(numpyro, True)}
    compare(scenario, contestants, tmp_path)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the limit needs GCC")
@pytest.mark.parametrize(
    ("param", "n"), [("cov", 2), ("cov", 3), ("cov", 5), ("cov", 14), ("chol", 3), ("chol", 4)]
)
def test_limit_agrees(param, n, tmp_path):
    """The C++ kernel, whole blocks and a rest, against PyTensor in Python."""
    scenario = SCENARIOS["oplevel:cov_9_3"]
    size = {"count": 19, "n": n, "param": param}
    by_hand = PyTensorDensity(plugin=False, mode=Mode("py", optimizer=None), **size)
    with disable():
        compare(scenario, {"limit": LimitDensity(**size), "by hand": by_hand}, tmp_path)


@pytest.mark.parametrize("size", ["full", "short", "tiny"])
def test_names_and_bars(size):
    """Names are unique; bars and references name variants that are there."""
    scenarios = list(all_scenarios(size))
    names = {scenario.name for scenario in scenarios}
    assert len(names) == len(scenarios)
    assert size != "short" or names >= set(SHORT)
    for scenario in scenarios:
        labels = [variant.label for variant in scenario.variants]
        assert len(set(labels)) == len(labels)
        assert scenario.reference in ("", *labels)
        for bar in (*scenario.bars, *agreement(scenario)):
            assert bar.over[0] in ("*", *labels)
            assert bar.under is None or bar.under[0] in labels
            assert (bar.at_least is None) != (bar.at_most is None)


def test_fitting_and_predictive():
    """A step of ADVI, and draws that come back exactly."""
    size = {"n": 3, "q": 2}
    with pytensor.config.change_flags(mode="FAST_COMPILE", cxx=""):
        advi = Fitting(model="models.loop", arguments=size, plugin=True)
        assert advi.prepare()["compile"] > 0
        advi.call()
        arguments = {"model": "loop", **size}
        fused = Predictive(model="loops.fused", arguments=arguments, plugin=True, draws=3)
        assert fused.prepare()["round_trip"] == 1
        loop = Predictive(model="models.loop", arguments=size, plugin=True, draws=3)
        assert "round_trip" not in loop.prepare()


def test_only():
    assert [s.name for s in all_scenarios("tiny", ["groups:forum_*"])] == [
        "groups:forum_answer",
        "groups:forum_question",
    ]


def test_a_run_in_processes(tmp_path):
    """Fresh processes, a failing one among them, and the report of what they say."""
    scenario = Scenario(
        "imports:both",
        "two imports",
        (
            Variant("imports", "Imports", {}, timed=False, once=True),
            Variant(
                "broken, with a comma",
                "PyMCModel",
                {"model": "models.none", "arguments": {}, "plugin": 0},
            ),
        ),
        (
            Bar("an hour", ("imports", "plugin"), at_most=3600),
            Bar("", ("broken, with a comma", "build")),
        ),
    )
    result = run_scenario(scenario, Effort(tmp_path / "caches"), tmp_path, lambda what: None)
    imports, broken = result["rows"]
    assert imports["plugin"] > 0
    assert "no attribute 'none'" in broken["error"]
    assert [bar["holds"] for bar in result["bars"]] == [True, None]

    found = {"machine": report.machine(), "clock": "wall", "scenarios": [result]}
    report.write(found, tmp_path / "results" / "report")
    text = (tmp_path / "results" / "report.md").read_text(encoding="utf-8")
    assert "| both | an hour |" in text
    assert "broken, with a comma (failed)" in text
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {".json", ".md", ".csv"}


def test_times_are_compared_with_reference_and_limit(tmp_path):
    """Contestants of milliseconds, in processes that compile nothing."""
    size = {"count": 9, "n": 3, "param": "cov"}
    variants = [Variant(name, "NumPyroDensity", size, once=True) for name in ("limit", "by hand")]
    pytest.importorskip("numpyro")
    scenario = Scenario("a:b", "two times the same", tuple(variants), (), reference="by hand")
    effort = Effort(tmp_path / "caches", rounds=2, clock="cpu")
    result = run_scenario(scenario, effort, tmp_path, lambda what: None)
    limit, by_hand = result["rows"]
    assert limit["speedup"] == pytest.approx(by_hand["of_limit"])
    assert limit["logp_difference"] == limit["gradient_difference"] == 0
    assert "speedup" not in by_hand
    assert all(bar["holds"] for bar in result["bars"])
    headings, rows = report.results_table([result])
    assert headings[-4:] == [
        "faster than the reference",
        "time / limit",
        "difference: logp",
        "gradient",
    ]
    assert [row[:2] for row in rows] == [["b", "limit"], ["", "by hand"]]


def test_profile():
    """Every node of the compiled loop is timed on real numbers, and one solves with the factors."""
    function, arguments = profile.compiled_loop(3, 2)
    expected = function(*arguments)
    times = list(profile.node_times(function, arguments, mode=Mode("py", optimizer=None)))
    assert [own.node for own in times] == function.maker.fgraph.toposort()
    assert all(own.seconds > 0 for own in times)
    [one] = [own for own in times if own.factorizes]
    assert one.node.op.outputs == ("quaddist", "ddelta")
    known = {
        variable: value
        for own in times
        for variable, value in zip(own.node.outputs, own.outputs, strict=True)
    }
    for variable, value in zip(function.maker.fgraph.outputs, expected, strict=True):
        np.testing.assert_allclose(known[variable], value, rtol=1e-12)
    table = profile.table_of(times, 1e-6)
    # with their sum, the whole, and a call
    assert table.row_count == len(times) + 3


def test_plots(tmp_path):
    """One panel for each kind of scenario that comes in several sizes."""
    plots = pytest.importorskip("benchmarks.plots", exc_type=ImportError)
    report = {"machine": {"processor": "a processor", "date": "today"}, "scenarios": []}
    assert not plots.save(report, tmp_path / "none.svg")
    for count in (10, 100):
        rows = [
            {"variant": name, "evaluate": seconds * count}
            for name, seconds in (("plugin", 2e-9), ("by hand", 3e-7), ("limit", 1e-9))
        ]
        facts = {"N": count, "n": 3, "param": "cov"}
        report["scenarios"].append({"name": "oplevel:x", "facts": facts, "rows": rows})
    assert plots.save(report, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "N Gaussians with n = 3" in text
    assert "divided by the C++ limit" in text
    assert "PyMC loop" not in text


def test_plots_of_several_reports():
    plots = pytest.importorskip("benchmarks.plots", exc_type=ImportError)
    machine = {"processor": "a processor", "cores": 2, "versions": {"pymc": "6"}, "date": "today"}
    first = {"machine": machine, "clock": "cpu", "scenarios": ["a"]}
    second = {"machine": machine | {"date": "tomorrow"}, "clock": "cpu", "scenarios": ["b", "c"]}
    joined = plots.joined([first, second])
    assert joined["scenarios"] == ["a", "b", "c"]
    assert joined["machine"]["date"] == "tomorrow"
    with pytest.raises(ValueError, match="clocks"):
        plots.joined([first, second | {"clock": "wall"}])
    with pytest.raises(ValueError, match="cores differ"):
        plots.joined([first, second | {"machine": machine | {"cores": 4}}])


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
def test_memory():
    """An evaluation holds two arrays of 8 MB."""

    class TwoArrays(Evaluated):
        def call(self):
            ones = np.ones(10**6)
            return ones + 1

    assert 15e6 < TwoArrays().memory() < 24e6


def test_a_late_worker(tmp_path):
    with (
        Worker(tmp_path, "Imports", {}, timeout=0.01) as worker,
        pytest.raises(WorkerError, match="exit status"),
    ):
        worker.ask("prepare")


def test_ratios_are_taken_round_by_round():
    found = {
        "a": Measured(None, {"evaluate": [1.0, 2.0, 30.0], "build": [1.0]}),
        "b": Measured(None, {"evaluate": [2.0, 4.0, 60.0]}),
    }
    by_round = judged(Bar("", ("b", "evaluate"), ("a", "evaluate"), at_least=2), found)
    assert by_round["measured"] == 2
    assert by_round["holds"]
    by_median = judged(Bar("", ("a", "evaluate"), ("a", "build"), at_most=1.9), found)
    assert by_median["measured"] == 2
    assert not by_median["holds"]


@pytest.mark.parametrize("name", digits.MODELS)
def test_true_digits(name, rng):
    """In doubles the density loses few of them where the matrix is well conditioned."""
    situation, declare = digits.MODELS[name]
    at = situation(rng, 10.0)
    with pm.Model() as model:
        declare(at)
    with disable():
        logp = digits.density_and_gradient(model)[:1]
    point = {var: at[var.name] for var in model.value_vars}
    [value], [true] = evaluate(logp, point), digits.evaluate(logp, point)
    assert digits.lost(value, true) < 3
    assert 1.9 < digits.lost(float(true) * (1 + 100 * digits.EPS), true) < 2.1


@pytest.mark.parametrize("name", calibration.MODELS)
def test_models_that_are_calibrated(name):
    """Draws of the prior give all data, and what is sampled is fused."""
    model = calibration.built(name)
    with pytensor.config.change_flags(mode=REFERENCE_MODE):
        true, data = calibration.truths(model, 3, seed=1)
    assert set(true) == {var.name for var in model.free_RVs}
    for var in model.data_vars:
        assert data[var.name].shape == (3, *var.get_value().shape)
        assert not np.array_equal(data[var.name][0], data[var.name][1])
    assert explain(model).fused


def test_ranks_tell_a_wrong_posterior(rng):
    """Of a normal variable that its posterior has no data for, and one that is a tenth too wide."""
    true, draws = rng.normal(size=2000), rng.normal(size=(calibration.KEPT, 2000))
    right, wrong = ((scale * draws < true).sum(axis=0) for scale in (1, 1.1))
    found = calibration.summary({"right": right, "wrong": wrong})
    assert found["p"]["wrong"] < 1e-4 < found["p"]["right"]
    assert found["bins"] == 2 * calibration.BINS
    assert calibration.histogram(right).sum() == 2000
    low, high = calibration.band(2000)
    assert low < 2000 / calibration.BINS < high


def test_weights_of_two_components_are_one_parameter():
    found = {"s": np.zeros(5, dtype=int), "w": np.ones((5, 2), dtype=int)}
    assert list(calibration.columns(found)) == ["s", "w[0]"]


def test_plot_of_ranks(tmp_path, rng):
    pytest.importorskip("matplotlib")
    figures = calibration.summary({"s": rng.integers(calibration.KEPT + 1, size=100)})
    calibration.plot({"loop": figures, "kron": figures}, tmp_path / "ranks.svg")
    text = (tmp_path / "ranks.svg").read_text(encoding="utf-8")
    assert "loop" in text
    assert "kron" in text


@pytest.mark.slow
def test_ranks_of_two_replicates():
    pytest.importorskip("nutpie")
    found = calibration.ranks("loop", 2, tune=50)
    assert found["mu"].shape == (2, 10, 2)
    assert found["s"].shape == (2,)
    assert ((found["mu"] >= 0) & (found["mu"] <= calibration.KEPT)).all()
    assert len(np.unique(found["mu"])) > 5
