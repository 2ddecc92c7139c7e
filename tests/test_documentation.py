"""The README is short, runs, and says what the pages say; every rule says what it does."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pymc as pm
import pytest

import pytensor_mvn_rewrites
from pytensor_mvn_rewrites.pipeline import RULES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_readme_is_short():
    assert len(README.splitlines()) <= 130


#: A number with a unit of time, or so many times something
FIGURE = r"\b\d[\d.]* (?:µs|ms|s|seconds|min|minutes|times)\b"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_no_figure_is_typed_by_hand(page):
    """Those of the benchmark stand where it writes them; other pages execute what they state."""
    written = r"<!-- figures: .*?<!-- end of figures -->|```.*?```"
    text = re.sub(written, "", page.read_text(), flags=re.DOTALL)
    assert not re.findall(FIGURE, text)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page):
    """Also where pages are read without being built."""
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    folder = page.parent
    assert not [target for target in targets if not (folder / target).exists()]


def test_model_of_readme(monkeypatch):
    """Its first snippet, with the number of nodes that the graph below it states."""
    snippet = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    rng = np.random.default_rng(1)
    given = {
        "N": 20,
        "q": 3,
        "my_covs": np.eye(3) + rng.uniform(size=(20, 1, 1)),
        "data": rng.normal(size=(20, 3)),
    }
    sampled = []
    monkeypatch.setattr(pm, "sample", lambda: sampled.append(pm.modelcontext(None)))
    exec(snippet, given)
    [model] = sampled
    explanation = pytensor_mvn_rewrites.explain(model)
    assert f"after: {explanation.nodes_after} nodes" in README
    assert explanation.fused == ("InvQuadLogdet{chol}",)
    with pytensor_mvn_rewrites.disable():
        assert f"before: {pytensor_mvn_rewrites.explain(model).nodes_after} nodes" in README


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, rule) for rules in RULES.values() for name, rule in rules.items()],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rule_says_what_it_does(name, rule):
    """The table of the documentation is made of these lines."""
    first = inspect.getdoc(getattr(rule, "fn", rule)).partition("\n")[0]
    assert re.fullmatch(r".+ -> .+\.", first)


def test_helpers_that_a_newcomer_is_sent_to():
    page = (ROOT / "docs" / "add-a-pattern.md").read_text()
    rows = re.findall(r"^\| `([a-z_/]+)\.py`: (.*?) \|", page, flags=re.MULTILINE)
    assert len(rows) > 5
    for module, names in rows:
        module = import_module("pytensor_mvn_rewrites." + module.replace("/", "."))
        assert not [name for name in re.findall(r"`(\w+)`", names) if not hasattr(module, name)]
