"""The pipeline: which rewrites run, in which order, in which database.

::

    PyMC model, or any PyTensor graph
      |   generative/  loops of random variables -> one log-density     what Model.logp calls
      |   logprob.py   MvNormalRV -> an RV whose log-density is one node    pymc's IR database
      v
    1 reroll/          N isomorphic terms -> one batched term               optdb["canonicalize"]
    2 recognize/       Cholesky + solve + log-diagonal -> InvQuadLogdet     optdb["stabilize"]
    3 structure/       what the matrix is made of -> cheaper ops            optdb, both
      |                ---- PyMC and nutpie take the gradient here ----
      v
    4 lower/           the ops and their pullbacks -> kernels               optdb, before fusion

Stages 1 to 3 must sit inside these two databases: PyMC's pre-gradient pass runs
``rewrite_graph(include=("canonicalize", "stabilize"))`` and sees nothing else of `optdb`.

This is the only file that touches the databases of PyTensor and PyMC. Rule files register their
rewrites with the decorators :data:`recognize`, :data:`structure` and :func:`lower`; the order of
the node rewriters inside a stage does not matter, that of whole-graph rules is `WHOLE_GRAPH_ORDER`.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import wraps
from importlib import import_module
from pkgutil import iter_modules

import pytensor
from pytensor.compile.mode import optdb
from pytensor.graph.basic import Variable
from pytensor.graph.replace import clone_replace
from pytensor.graph.rewriting.basic import GraphRewriter, NodeRewriter
from pytensor.graph.rewriting.db import RewriteDatabase

from pytensor_mvn_rewrites.checks import check_rewrite
from pytensor_mvn_rewrites.config import OPT_IN_TAG, is_active, verifies
from pytensor_mvn_rewrites.graph import op_types
from pytensor_mvn_rewrites.names import collapsed, densities_of, new_linear_algebra

#: Position of the lowering in `optdb`: after ``specialize`` (2), before elementwise fusion (49).
LOWER_POSITION = 2.9

#: Positions in PyMC's sequence of logprob rewrites: before its first (0), and after its last
#: canonicalization (4).
IR_START, IR_END = -1.0, 4.5

#: The remedy where lengths or data could change.
FREEZE = "freeze the model with pymc.model.transform.optimization.freeze_dims_and_data"

#: PyTensor leaves rewrites with this tag out of the inner graphs of ops such as ours.
RECOGNITION_TAG = "symbolic_op_recognition"


#: The whole-graph rules of the stages before the gradient, in the order in which they run.
WHOLE_GRAPH_ORDER = (
    # the markers of what is declared would be in the way of all others
    "drain_declarations",
    # one sum of log-densities, not parts of it, is what the next rules look for
    "sums_of_parts_are_one_sum",
    # makes densities alike that have different numbers of rows
    "constant_rows_are_compressed",
    # terms that look different only because they were not merged would go into different packs
    "merge_duplicates",
    # its batch is what the next rules look through
    "maps_are_batched",
    "reroll_outputs",
    # before the rules that would take those groups that have equally many rows
    "join_ragged_rows",
    # what re-rolled sums leave behind is for the next round
    "reroll_stacks",
    "reroll_sums",
)


class RewriteFailedWarning(UserWarning):
    """A rewrite raised; the graph was left as it was."""


@dataclass(frozen=True)
class Fired:
    """A rewrite changed the graph.

    `detail` says on what, `variables` in whose log-densities, and `became` names the linear algebra
    that it put there.
    """

    stage: str
    rule: str
    detail: str = ""
    variables: str = ""
    became: str = ""


@dataclass(frozen=True)
class Declined:
    """A rewrite found what it looks for, and left it alone because of `reason`."""

    stage: str
    rule: str
    reason: str
    remedy: str = ""
    variables: str = ""


_events: ContextVar[list[Fired | Declined] | None] = ContextVar("mvn_rewrites_events", default=None)


def record(event: Fired | Declined) -> None:
    """Note what a rewrite did, if anybody listens (see :func:`recording`)."""
    if (events := _events.get()) is not None:
        events.append(event)


@contextmanager
def recording() -> Iterator[list[Fired | Declined]]:
    """Collect what the rewrites do inside this block, and not in other threads meanwhile."""
    events: list[Fired | Declined] = []
    token = _events.set(events)
    try:
        yield events
    finally:
        _events.reset(token)


_failed: set[str] = set()


def warn_of_failure(name: str, error: Exception) -> None:
    """Warn the first time that the rewrite `name` fails; the graph is used unrewritten.

    PyTensor's flag ``on_opt_error`` asks for something else if it is ``raise`` or ``ignore``.
    """
    if pytensor.config.on_opt_error == "raise":
        raise error
    if name in _failed or pytensor.config.on_opt_error == "ignore":
        return
    _failed.add(name)
    warnings.warn(
        f"The rewrite {name!r} failed with {type(error).__name__}: {error}. The graph was left as "
        "it was: results are right, but may be slow. Please report this; "
        "pytensor.config.mvn_rewrites__skip switches a stage off.",
        RewriteFailedWarning,
        stacklevel=2,
    )


class GuardedNodeRewriter(NodeRewriter):
    """A node rewriter that asks the flags first and turns a failure into one warning."""

    def __init__(self, rewriter: NodeRewriter, stage: str, *, opted_in: bool = False):
        self.rewriter = rewriter
        self.stage = stage
        self.opted_in = opted_in
        self.__name__ = rule_name(rewriter)

    def tracks(self):
        """The ops that the wrapped rewriter tracks."""
        return self.rewriter.tracks()

    def add_requirements(self, fgraph):
        """The requirements of the wrapped rewriter."""
        self.rewriter.add_requirements(fgraph)

    def transform(self, fgraph, node, *args, **kwargs):
        """Apply the wrapped rewriter if its stage is active."""
        if not is_active(self.stage, opted_in=self.opted_in):
            return None
        events = _events.get()
        start = 0 if events is None else len(events)
        try:
            result = self.rewriter.transform(fgraph, node, *args, **kwargs)
        except Exception as error:
            warn_of_failure(self.__name__, error)
            return None
        if result and verifies():
            is_dict = isinstance(result, dict)
            pairs = result.items() if is_dict else zip(node.outputs, result, strict=True)
            kept = {old: new for old, new in pairs if isinstance(new, Variable)}
            check_rewrite(self.__name__, [*kept], [*kept.values()])
        if events is not None:
            if result:
                became = ", ".join(new_linear_algebra(fgraph, result))
                record(Fired(self.stage, self.__name__, became=became))
            if events[start:]:
                variables = collapsed(densities_of(fgraph, node))
                events[start:] = [replace(event, variables=variables) for event in events[start:]]
        return result

    def __str__(self):
        return self.__name__


class GuardedGraphRewriter(GraphRewriter):
    """A whole-graph rewrite that asks the flags first and turns a failure into one warning.

    `function` gets the fgraph. It must prepare all its replacements before it makes the first one,
    so that an exception leaves the graph untouched.
    """

    def __init__(self, function: Callable, stage: str, *, opted_in: bool = False):
        self.function = function
        self.stage = stage
        self.opted_in = opted_in
        self.__name__ = rule_name(function)

    def apply(self, fgraph):
        """Apply the function if its stage is active."""
        if not is_active(self.stage, opted_in=self.opted_in):
            return
        # copies: the rewrite changes the graph itself
        before = clone_replace(fgraph.outputs, {}) if verifies() else None
        nodes = set(fgraph.apply_nodes) if verifies() else set()
        try:
            self.function(fgraph)
        except Exception as error:
            warn_of_failure(self.__name__, error)
            return
        if before is not None and nodes != fgraph.apply_nodes:
            check_rewrite(self.__name__, before, fgraph.outputs)


def rule_name(rule) -> str:
    """Name of a rewrite, as warnings and databases show it."""
    return getattr(rule, "__name__", None) or type(rule).__name__


def _guarded(rule, stage: str, *, opted_in: bool):
    if isinstance(rule, type):
        rule = rule.rewriter()  # type: ignore[attr-defined]
    guard = GuardedNodeRewriter if isinstance(rule, NodeRewriter) else GuardedGraphRewriter
    return guard(rule, stage, opted_in=opted_in)


#: Every registered rule: stage -> {name: rule}.
RULES: dict[str, dict[str, object]] = {}


def _register(database: RewriteDatabase, rule, stage: str, *tags: str, **kwargs):
    """Register `rule` twice: with the database's own tags, and under the opt-in tag alone."""
    name = f"mvn_{rule_name(rule)}"
    RULES.setdefault(stage, {})[rule_name(rule)] = rule
    database.register(name, _guarded(rule, stage, opted_in=False), *tags, **kwargs)
    database.register(
        f"{name}_opt_in",
        _guarded(rule, stage, opted_in=True),
        OPT_IN_TAG,
        # excluding the recognition tag must exclude the opt-in entry as well
        *(tag for tag in tags if tag == RECOGNITION_TAG),
        use_db_name_as_tag=False,
        **kwargs,
    )
    return rule


#: Whole-graph rules that `activate` registers in their order: name -> (rule, stage, databases).
_whole_graph: dict[str, tuple[Callable, str, tuple[str, ...]]] = {}


def reroll(rule):
    """Register a whole-graph rewrite of stage 1; `WHOLE_GRAPH_ORDER` must name it."""
    _whole_graph[rule_name(rule)] = rule, "reroll", ("canonicalize",)
    return rule


def recognize(rule):
    """Register a node rewriter of stage 2."""
    return _register(
        optdb["stabilize"], rule, "recognize", "fast_run", "fast_compile", RECOGNITION_TAG
    )


def structure(rule):
    """Register a rule of stage 3: a node rewriter, or a class of structures that makes one.

    It runs in both databases: ``canonicalize`` rebuilds the inputs of a node, and a tag that a user
    or PyMC has set on one of them, such as ``lower_triangular``, is then gone.
    """
    databases = ("canonicalize", "stabilize")
    if isinstance(rule, NodeRewriter | type):
        _register_early(rule, "structure", databases)
    else:
        _whole_graph[rule_name(rule)] = rule, "structure", databases
    return rule


def _register_early(rule, stage: str, databases: tuple[str, ...]):
    for database in databases:
        _register(optdb[database], rule, stage, "fast_run", "fast_compile", RECOGNITION_TAG)


def lower(*backends: str, position: float = LOWER_POSITION, tidies: bool = False):
    """Register a whole-graph rewrite of stage 4, for the given backends (``"numba"``, ``"jax"``).

    It runs in the modes of these backends only: they are the ones that ask for its tag. A rewrite
    that `tidies` up around our ops does nothing in graphs without any.
    """

    def register(rule):
        rewrite = _where_our_ops_are(rule) if tidies else rule
        _register(optdb, rewrite, "lower", *backends, position=position)
        return rule

    return register


def _where_our_ops_are(rule: Callable) -> Callable:
    """`rule`, for the graphs that hold an op of this package."""

    @wraps(rule)
    def guarded(fgraph):
        if any(kind.__module__.startswith(__package__) for kind in op_types(fgraph)):
            rule(fgraph)

    return guarded


def logprob(rule):
    """Register a node rewriter in the database from which PyMC specializes random variables."""
    # PyMC queries this database on each call: the order of the imports does not matter
    from pymc.logprob.rewriting import specialization_ir_rewrites_db

    RULES.setdefault("logprob", {})[rule_name(rule)] = rule
    specialization_ir_rewrites_db.register(
        f"mvn_{rule_name(rule)}", _guarded(rule, "logprob", opted_in=False), "basic"
    )
    return rule


def logprob_graph(position: float):
    """Register a whole-graph rewrite in PyMC's sequence of logprob rewrites."""
    from pymc.logprob.rewriting import logprob_rewrites_db

    def register(rule):
        RULES.setdefault("logprob", {})[rule_name(rule)] = rule
        guarded = _guarded(rule, "logprob", opted_in=False)
        name = f"mvn_{rule_name(rule)}"
        logprob_rewrites_db.register(name, guarded, "basic", position=position)
        return rule

    return register


def derivation(name: str):
    """Register a wrapper of a function by which ``pm.Model.logp`` derives log-densities.

    PyMC has no database for it: its rewrites see one node for each value, when each has cost its
    share already.
    """
    from pymc.model import core

    def register(wrap):
        RULES.setdefault("generative", {})[rule_name(wrap)] = wrap
        setattr(core, name, wrap(getattr(core, name)))
        return wrap

    return register


def activate() -> None:
    """Import every rule file of the stages; importing a rule file registers its rules.

    Raises
    ------
    RuntimeError
        If a whole-graph rule has no place in `WHOLE_GRAPH_ORDER`, or a name there has no rule.
    """
    for stage in ("structure", "reroll", "recognize", "lower", "generative"):
        package = import_module(f"pytensor_mvn_rewrites.{stage}")
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            # the packages of the backends import numba or jax: they load when first needed
            if not module.ispkg:
                import_module(module.name)
    for module_name in ("logprob", "declarations"):
        import_module(f"pytensor_mvn_rewrites.{module_name}")
    if set(_whole_graph) != set(WHOLE_GRAPH_ORDER):
        names = ", ".join(sorted(set(_whole_graph) ^ set(WHOLE_GRAPH_ORDER)))
        raise RuntimeError(f"WHOLE_GRAPH_ORDER must name every whole-graph rule once: {names}")
    for name in WHOLE_GRAPH_ORDER:
        _register_early(*_whole_graph[name])
