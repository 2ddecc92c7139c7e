"""The directive ``rules``: the table of all rewrites, from their registrations and docstrings."""

import inspect
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from pytensor_mvn_rewrites.config import STAGES
from pytensor_mvn_rewrites.pipeline import RULES

ARROW = " -> "


def docstring(rule) -> str:
    """The docstring of a rule: a function, a node rewriter made of one, or a class."""
    return inspect.getdoc(getattr(rule, "fn", rule)) or ""


def arrow(name: str, rule) -> tuple[str, str]:
    """What a rule says that the graph was, and what it becomes.

    Raises
    ------
    ExtensionError
        If the first line of its docstring is no arrow.
    """
    was, found, becomes = docstring(rule).partition("\n")[0].rstrip(".").partition(ARROW)
    if not found:
        raise ExtensionError(f"The docstring of the rule {name} must begin: it was -> it becomes")
    return was, becomes


class Rules(SphinxDirective):
    """A table for each stage, and below it what the docstrings say of each rule."""

    def run(self) -> list[nodes.Node]:
        """Write it as reStructuredText, in which the docstrings are, and parse that."""
        if set(RULES) != set(STAGES):
            raise ExtensionError(f"Rules of unknown stages: {sorted(set(RULES) ^ set(STAGES))}")
        text = "\n".join(line for stage in STAGES for line in section(stage, RULES[stage]))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def section(stage: str, rules: dict[str, object]) -> Iterator[str]:
    """The lines of one stage."""
    yield from ["", stage, "-" * len(stage), ""]
    yield from [".. list-table::", "   :header-rows: 1", "   :class: rules", ""]
    yield from ["   * - it was", "     - it becomes", "     - rule"]
    for name, rule in rules.items():
        was, becomes = (part.replace("`", "") for part in arrow(name, rule))
        yield from [f"   * - ``{was}``", f"     - ``{becomes}``", f"     - :ref:`{name} <{name}>`"]
    for name, rule in rules.items():
        first, _, rest = docstring(rule).partition("\n")
        yield from ["", f".. _{name}:", "", name, "^" * len(name), ""]
        yield from [f"``{first.rstrip('.').replace('`', '')}``", "", *rest.strip("\n").split("\n")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx."""
    app.add_directive("rules", Rules)
    return {"parallel_read_safe": True}
