"""Every scenario of the benchmark builds, and its variants agree, at minimal sizes."""

import re
import shutil
import sys

import numpy as np
import pymc as pm
import pytensor
import pytest
from pytensor.compile.mode import Mode
from rich.console import Console

from benchmarks import calibration, digits, publish
from benchmarks.contestants import (
    Contestant,
    Fitting,
    Importing,
    LimitDensity,
    NumPyroDensity,
    Predictive,
    PyMCModel,
    PyTensorDensity,
    UnrewrittenModel,
)
from benchmarks.report import Report, bars_of, machine, seconds, show, table_of
from benchmarks.runner import Effort, Outcome, differences, measured, run_scenario
from benchmarks.scenarios import SHORT, Bar, Scenario, Variant, agreement, all_scenarios
from benchmarks.worker import Worker, WorkerError
from pytensor_mvn_rewrites import disable, enable, explain
from tests.harness import PIPELINE_MODE, REFERENCE_MODE, evaluate

SCENARIOS = {scenario.name: scenario for scenario in all_scenarios("tiny", ["*", "long:*"])}


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
        return PyMCModel(**variant.arguments, mode=PIPELINE_MODE)
    return UnrewrittenModel(**variant.arguments)


class Switched:
    """A contestant whose plugin is on or off."""

    def __init__(self, contestant, plugin):
        self.contestant = contestant
        self.plugin = plugin

    def prepare(self):
        with enable() if self.plugin else disable():
            self.contestant.prepare()

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
    }
    compare(scenario, contestants, tmp_path)


@pytest.mark.parametrize("param", ["cov", "chol"])
def test_numpyro_agrees(param, tmp_path):
    pytest.importorskip("numpyro")
    size = {"count": 9, "n": 3, "param": param}
    by_hand = PyTensorDensity(mode=Mode("py", optimizer=None), **size)
    with disable():
        compare(
            SCENARIOS["oplevel:cov_9_3"],
            {"NumPyro": NumPyroDensity(**size), "by hand": by_hand},
            tmp_path,
        )


@pytest.mark.skipif(shutil.which("g++") is None, reason="the limit needs GCC")
@pytest.mark.parametrize(
    ("param", "n"), [("cov", 2), ("cov", 3), ("cov", 5), ("cov", 14), ("chol", 3), ("chol", 4)]
)
def test_limit_agrees(param, n, tmp_path):
    """The C++ kernel, whole blocks and a rest, against PyTensor in Python."""
    scenario = SCENARIOS["oplevel:cov_9_3"]
    size = {"count": 19, "n": n, "param": param}
    by_hand = PyTensorDensity(mode=Mode("py", optimizer=None), **size)
    with disable():
        compare(scenario, {"limit": LimitDensity(**size), "by hand": by_hand}, tmp_path)


@pytest.mark.parametrize("size", ["full", "short", "tiny"])
def test_names_and_bars(size):
    """Names are unique; bars and references name variants that are there."""
    scenarios = list(all_scenarios(size, ["*", "long:*"]))
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
        fused = Predictive(model="models.fused", arguments=arguments, plugin=True, draws=3)
        assert set(fused.prepare()) == {"prior", "posterior", "draws"}
        loop = Predictive(model="models.loop", arguments=size, plugin=True, draws=3)
        assert loop.prepare()["draws"] > 0


def test_importing():
    assert Importing(plugin=False).prepare()["import"] >= 0


def test_draws_that_do_not_come_back(monkeypatch):
    monkeypatch.setattr("benchmarks.contestants.comes_back", lambda drawn, model: False)
    arguments = {"model": "loop", "n": 3, "q": 2}
    fused = Predictive(model="models.fused", arguments=arguments, plugin=True, draws=3)
    with (
        pytensor.config.change_flags(mode="FAST_COMPILE", cxx=""),
        pytest.raises(AssertionError, match="unfuse"),
    ):
        fused.prepare()


def test_only():
    assert [s.name for s in all_scenarios("tiny", ["groups:forum_*"])] == [
        "groups:forum_answer",
        "groups:forum_question",
    ]
    assert not [s for s in all_scenarios("tiny") if s.name.startswith("long:")]
    assert [s.name for s in all_scenarios("tiny", ["long:*"])] == ["long:advi_off"]


def test_a_run_in_processes(tmp_path):
    """Fresh processes, a failing one among them."""
    pytest.importorskip("numpyro")
    size = {"count": 9, "n": 3, "param": "cov"}
    broken = {"model": "models.none", "arguments": {}, "plugin": 0}
    scenario = Scenario(
        "a:b",
        "two times the same, and nothing",
        (
            Variant("limit", "NumPyroDensity", size, warm=0),
            Variant("by hand", "NumPyroDensity", size, warm=0),
            Variant("broken, with a comma", "PyMCModel", broken),
        ),
        (Bar(("broken, with a comma", "build"), ("limit", "evaluate"), at_most=1),),
        reference="by hand",
    )
    effort = Effort(tmp_path / "caches", rounds=2)
    found = run_scenario(scenario, effort, tmp_path, lambda what: None)
    assert "no attribute 'none'" in found["broken, with a comma"].error
    assert len(found["limit"].times["evaluate"]) == 2
    assert "inside" not in found["limit"].times
    assert found["limit"].facts == {"logp_difference": 0, "gradient_difference": 0}
    assert not found["by hand"].facts
    assert measured(scenario.bars[0], found) is None
    assert [measured(bar, found) for bar in agreement(scenario)] == [0, 0]


def outcomes_of(scenario):
    """Made-up times of every variant, without those that failed."""
    numbers = {"cold_compile": [20.0], "build": [1.0], "evaluate": [1e-3, 2e-3]}
    found = {variant.label: Outcome({**numbers}) for variant in scenario.variants}
    found[scenario.variants[0].label].facts = {"logp_difference": 0.0, "memory": 10}
    return found


def test_a_report_is_what_was_saved(tmp_path):
    outcomes = {name: outcomes_of(scenario) for name, scenario in SCENARIOS.items()}
    report = Report(machine(), "tiny", outcomes)
    report.save(tmp_path / "results" / "run.json")
    loaded = Report.load(tmp_path / "results" / "run.json")
    assert loaded == report
    assert [scenario.name for scenario in loaded.scenarios] == [*SCENARIOS]


def test_tables():
    scenario = SCENARIOS["structures:kronecker"]
    found = outcomes_of(scenario)
    found["on"].times["evaluate"] = [1e-5, 4e-5]
    found["off"].error = "it failed"
    report = Report(machine(), "tiny", {scenario.name: found})
    headings, lines = table_of(report, [scenario])
    assert headings[-1] == "times as fast"
    assert [line[1] for line in lines] == ["on", "off (failed)"]
    assert [line[-1] for line in lines] == ["75", "1"]
    _, bars = bars_of(report, [scenario])
    assert [line[2:] for line in bars] == [
        ["75", "NO"],
        ["10", "yes"],
        ["1", "yes"],
        ["", "not measured"],
        ["0", "yes"],
        ["", "not measured"],
    ]
    console = Console(record=True, width=200)
    show(console, report)
    text = console.export_text()
    assert "evaluation of 'off' / of 'on': at least 300" in text
    assert "structures:kronecker, off: it failed" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0 µs"),
        (2.5e-8, "0.025 µs"),
        (9.996e-4, "1 ms"),
        (0.5, "500 ms"),
        (83.2, "83.2 s"),
        (5766, "96.1 min"),
    ],
)
def test_seconds(number, text):
    assert seconds(number) == text


@pytest.mark.parametrize("page", publish.PAGES, ids=lambda page: page.name)
def test_pages_have_the_figures_of_the_published_run(page):
    text = page.read_text(encoding="utf-8")
    names = publish.BLOCK.findall(text)
    assert names
    assert publish.filled(text, Report.load(publish.PUBLISHED)) == text


def test_what_was_not_run_is_named():
    report = Report.load(publish.PUBLISHED)
    known = {scenario.name for scenario in all_scenarios("full", ["*", "long:*"])}
    assert report.outcomes.keys() <= known
    named = set(re.findall(r"`([a-z]+:\w+)`", "".join(publish.missing(report))))
    assert named == known - report.outcomes.keys()


def test_reports_of_one_machine_are_one():
    here = machine()
    first = Report(here, "full", {"a": {"on": Outcome({"build": [1.0], "prior": [2.0]})}})
    times = {"b": {"on": Outcome({"build": [3.0]})}, "a": {"on": Outcome({"prior": [4.0]})}}
    second = Report(here, "full", times)
    found = publish.joined([first, second]).outcomes
    assert found["a"]["on"].times == {"build": [1.0], "prior": [4.0]}
    assert found["b"]["on"].times == {"build": [3.0]}
    with pytest.raises(ValueError, match="machines"):
        publish.joined([first, Report(here | {"processor": "another"}, "full", {})])


def test_plot_of_densities(tmp_path):
    publish.plot(Report.load(publish.PUBLISHED), tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "vectors of length 3" in text
    assert "times the limit" in text


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
def test_memory():
    """An evaluation holds two arrays of 8 MB."""

    class TwoArrays(Contestant):
        def call(self):
            ones = np.ones(10**6)
            return ones + 1

    assert 15e6 < TwoArrays(False).memory() < 24e6


def test_a_late_worker(tmp_path):
    with (
        Worker(tmp_path, "Density", {}, timeout=0.01) as worker,
        pytest.raises(WorkerError, match="exit status"),
    ):
        worker.ask("prepare")


def test_ratios_are_taken_round_by_round():
    found = {
        "a": Outcome({"evaluate": [1.0, 2.0, 30.0], "build": [1.0]}),
        "b": Outcome({"evaluate": [2.0, 4.0, 60.0]}),
    }
    by_round = Bar(("b", "evaluate"), ("a", "evaluate"), at_least=2)
    assert measured(by_round, found) == 2
    assert by_round.holds(2)
    by_median = Bar(("a", "evaluate"), ("a", "build"), at_most=1.9)
    assert measured(by_median, found) == 2
    assert not by_median.holds(2)
    assert measured(Bar(("*", "evaluate"), at_most=1), found) == 60


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
