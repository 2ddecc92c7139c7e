"""Every scenario of the benchmark builds, and its variants agree, at minimal sizes."""

import pytest

from benchmarks import report
from benchmarks.contestants import PyMCModel, UnrewrittenModel
from benchmarks.measure import Worker, WorkerError
from benchmarks.runner import Effort, Measured, differences, judged, run_scenario
from benchmarks.scenarios import Bar, Scenario, Variant, agreement, all_scenarios
from pytensor_mvn_rewrites import disable, enable
from tests.harness import PIPELINE_MODE

SCENARIOS = {scenario.name: scenario for scenario in all_scenarios("tiny")}


def save_values(variant, file):
    """The numbers of a variant, in this process and by Python's linker."""
    if variant.arguments["plugin"]:
        contestant = PyMCModel(**variant.arguments | {"mode": PIPELINE_MODE})
    else:
        contestant = UnrewrittenModel(**variant.arguments)
    with enable() if variant.arguments["plugin"] else disable():
        assert contestant.prepare()["dimensions"]
    contestant.values(file, points=3)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if SCENARIOS[name].reference])
def test_variants_agree(name, tmp_path):
    scenario = SCENARIOS[name]
    files = {}
    for i, variant in enumerate(scenario.variants):
        files[variant.label] = tmp_path / f"{i}.npz"
        save_values(variant, files[variant.label])
    reference = files.pop(scenario.reference)
    assert files
    for file in files.values():
        assert max(differences(file, reference).values()) < 1e-9


@pytest.mark.parametrize("size", ["full", "short"])
def test_names_and_bars(size):
    """Names are unique and the same in all sizes; bars name variants that are there."""
    scenarios = list(all_scenarios(size))
    assert [scenario.name for scenario in scenarios] == list(SCENARIOS)
    assert len(SCENARIOS) == len(scenarios)
    for scenario in scenarios:
        labels = [variant.label for variant in scenario.variants]
        assert len(set(labels)) == len(labels)
        assert scenario.reference in ("", *labels)
        for bar in (*scenario.bars, *agreement(scenario)):
            assert bar.over[0] in labels
            assert bar.under is None or bar.under[0] in labels
            assert (bar.at_least is None) != (bar.at_most is None)


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
            Variant("imports", "Imports", {}, timed=False),
            Variant("broken", "PyMCModel", {"model": "models.none", "arguments": {}, "plugin": 0}),
        ),
        (Bar("an hour", ("imports", "plugin"), at_most=3600), Bar("", ("broken", "build"))),
    )
    result = run_scenario(scenario, Effort(tmp_path / "caches"), tmp_path, lambda what: None)
    imports, broken = result["rows"]
    assert imports["plugin"] > 0
    assert "no attribute 'none'" in broken["error"]
    assert [bar["holds"] for bar in result["bars"]] == [True, None]

    found = {"machine": report.machine(), "scenarios": [result]}
    report.write(found, tmp_path / "results" / "report")
    text = (tmp_path / "results" / "report.md").read_text(encoding="utf-8")
    assert "| both | an hour |" in text
    assert "broken (failed)" in text
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {".json", ".md", ".csv"}


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
