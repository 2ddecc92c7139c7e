"""``explain``: what the rewrites did to a model, and what they left alone, and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pymc as pm
from pymc.pytensorf import rewrite_pregrad
from pytensor.graph.basic import Variable
from pytensor.graph.fg import FunctionGraph

from pytensor_mvn_rewrites.config import forced_here
from pytensor_mvn_rewrites.ops.gaussian import GaussianOp
from pytensor_mvn_rewrites.pipeline import Declined, Fired, recording


@dataclass(frozen=True)
class Explanation:
    """What happened to one log-density before its gradient was taken; prints as a report.

    Attributes
    ----------
    nodes_before, nodes_after : int
        Size of the graph that the gradient would be taken of, without the plugin and with it. The
        first is the size before any rewrite.
    fused : tuple of str
        The fused density ops in the rewritten graph.
    fired : dict
        (stage, rule, detail) -> how often.
    declined : dict
        (stage, rule, reason) -> how often.
    """

    nodes_before: int
    nodes_after: int
    fused: tuple[str, ...]
    fired: dict[tuple[str, str, str], int]
    declined: dict[tuple[str, str, str], int]

    def __str__(self) -> str:
        lines = [f"{self.nodes_before} nodes -> {self.nodes_after} nodes"]
        lines.append("fused densities: " + (", ".join(self.fused) or "none"))
        for title, events in (("fired", self.fired), ("declined", self.declined)):
            lines.append(f"{title}:" if events else f"{title}: nothing")
            for (stage, rule, detail), count in events.items():
                # what is declined once is declined again in each pass over the graph
                times = f" (x{count})" if count > 1 and title == "fired" else ""
                lines.append(f"  {stage:<10} {rule}{': ' if detail else ''}{detail}{times}")
        return "\n".join(lines)

    __repr__ = __str__


def explain(model: pm.Model | Variable) -> Explanation:
    """Say what the rewrites do to a model's log-density, and what they decline to do.

    Runs PyMC's pre-gradient pass; nothing is compiled.

    Parameters
    ----------
    model : pymc.Model or tensor variable
        A model, or the graph of a log-density.

    Returns
    -------
    Explanation
        Prints as a report.

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> with pm.Model() as model:
    ...     for n in range(3):
    ...         x = pm.MvNormal(f"x_{n}", mu=np.full(2, n), cov=[[2, 1], [1, 2]])
    >>> explain(model).fused
    ('MvNormalLogp{chol}',)
    """
    with forced_here(False):
        before = _logp(model)
    with recording() as events:
        after = rewrite_pregrad(_logp(model))
    nodes = FunctionGraph(outputs=[after], clone=True, copy_inputs=False).toposort()
    fired = Counter((e.stage, e.rule, e.detail) for e in events if isinstance(e, Fired))
    declined = Counter((e.stage, e.rule, e.reason) for e in last_declined(events))
    return Explanation(
        nodes_before=len(FunctionGraph(outputs=[before], clone=True).apply_nodes),
        nodes_after=len(nodes),
        fused=tuple(str(node.op) for node in nodes if isinstance(node.op, GaussianOp)),
        fired=dict(fired),
        declined=dict(declined),
    )


def last_declined(events: Sequence[Fired | Declined]) -> list[Declined]:
    """What is declined in the end: a stage that has fired looks at everything once more."""
    declined: list[Declined] = []
    fired = set()
    for event in reversed(events):
        if isinstance(event, Fired):
            fired.add(event.stage)
        elif event.stage not in fired:
            declined.append(event)
    return declined[::-1]


def _logp(model: pm.Model | Variable) -> Variable:
    return model if isinstance(model, Variable) else model.logp()
