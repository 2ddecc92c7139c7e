"""The log-density of a model term by term, as PyMC derives it, with nothing rewritten.

PyMC takes 10 ms to derive a term, and Python some more to evaluate it and its gradient. So terms
that are computed alike from other variables and other constants form a group: PyMC derives the
first, and what PyTensor's ``vectorize_graph`` makes of that is evaluated for all of them in one
call. Three of each group are also evaluated without it; if it is wrong there, all are.
"""

from collections.abc import Hashable, Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property
from itertools import chain
from typing import Any

import cloudpickle
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.logprob.basic import transformed_conditional_logp
from pymc.logprob.utils import local_check_parameter_to_ninf_switch, replace_rvs_by_values
from pytensor.compile.mode import Mode
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace, vectorize_graph
from pytensor.graph.rewriting.basic import dfs_rewriter, node_rewriter
from pytensor.graph.traversal import toposort
from pytensor.link.basic import PerformLinker, WrapLinker
from pytensor.scalar.basic import ScalarType
from pytensor.tensor.basic import ScalarFromTensor
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.subtensor import Subtensor, indices_from_subtensor
from pytensor.tensor.type import TensorType

from pytensor_mvn_rewrites.config import forced_here
from pytensor_mvn_rewrites.graph import Tensor

Point = Mapping[str, np.ndarray]

#: The noise that functions add to what each of their nodes computes: its relative size, and a seed
_noise: ContextVar[tuple[float, int]] = ContextVar("mvn_rewrites_noise", default=(0.0, 0))


def _run(fgraph, i, node, thunk) -> None:
    """Evaluate a node, as Monte Carlo arithmetic does if there is noise.

    (Parker, Monte Carlo Arithmetic, UCLA CSD-970002, 1997.)
    """
    thunk()
    size, seed = _noise.get()
    if size:
        rng = np.random.default_rng((seed, i))
        for storage in thunk.outputs:
            value = storage[0]
            if getattr(value, "dtype", np.dtype(bool)).kind == "f":
                noise = 1 + size * rng.uniform(-1, 1, size=np.shape(value))
                storage[0] = np.asarray(value * noise, dtype=value.dtype)


class _NodeByNode(WrapLinker, PerformLinker):  # type: ignore[misc]
    """Python's linker with `_run`; for PyTensor, which asks what it does to inner graphs, one."""


#: The graph as it is written, evaluated node by node.
UNREWRITTEN: Any = Mode(
    linker=_NodeByNode([PerformLinker()], _run),
    optimizer=None,  # type: ignore[arg-type]
)


class Reference:
    """Log-density, gradient and products with the Hessian of a model, evaluated term by term."""

    def __init__(self, model: pm.Model, *, hessian: bool = False):
        self.wrt = [value.name for value in model.continuous_value_vars]
        self.kinds = ("gradient", "hessian") if hessian else ("gradient",)
        with forced_here(False):
            alike: dict[Hashable, list[_Term]] = {}
            for term in _terms(model):
                alike.setdefault(term.signature, []).append(term)
            groups = (_grouped(model, terms, hessian) for terms in alike.values())
            self.groups = list(chain(*groups))

    def __call__(self, point: Point, directions: Point, *, noise=0.0, seed=0):
        """The results at a point, and the sizes of what they are sums of, by kind and name.

        Kinds are ``"logp"``, ``"gradient"`` by the value variable of that name, and ``"hessian"``
        for its part of the product of the Hessian with `directions`. With `noise` each number that
        is computed on the way is off by up to as much, relatively.
        """
        results = {("logp", ""): np.zeros(())}
        for kind in self.kinds:
            results |= {(kind, name): np.zeros(np.shape(point[name])) for name in self.wrt}
        sizes = {key: result.copy() for key, result in results.items()}
        token = _noise.set((noise, seed))
        try:
            with forced_here(False), np.errstate(all="ignore"):
                for group in self.groups:
                    for key, part in group.evaluate(point, directions):
                        results[key] += part
                        sizes[key] += abs(part)
        finally:
            _noise.reset(token)
        return results, sizes


class _Term:
    """Part of a log-density before it is derived: random variables of one node, or a potential.

    `graphs` are the inputs of the node, computed from the values of other variables, and the own
    values of `rvs`; or the potential, if there are none.
    """

    def __init__(
        self, names: Sequence[str], rvs: Sequence[Any], graphs: Sequence[Variable], transforms=()
    ):
        self.names, self.rvs, self.graphs, self.transforms = names, rvs, graphs, transforms
        nodes = list(toposort(graphs))
        numbers: dict[Variable, int] = {}
        for var in chain(*(node.inputs for node in nodes), graphs):
            if var.owner is None:
                numbers.setdefault(var, len(numbers))
        #: what it is computed from
        self.leaves = list(numbers)
        for out in chain(*(node.outputs for node in nodes)):
            numbers[out] = len(numbers)
        #: equal for terms that differ in the names of values and in the entries of constants only
        self.signature: Hashable = (
            tuple((node.op, *map(numbers.__getitem__, node.inputs)) for node in nodes),
            tuple((var.type, _fixed(var)) for var in self.leaves),
            tuple(map(numbers.__getitem__, graphs)),
            (rvs[0].owner.op, *map(rvs[0].owner.outputs.index, rvs)) if rvs else None,
            tuple(transform and cloudpickle.dumps(transform) for transform in transforms),
        )

    def derive(self, new: Mapping[Variable, Variable]) -> Tensor:
        """The sum of the log-densities as PyMC derives them, of other leaves."""
        graphs: list[Any] = clone_replace(list(self.graphs), dict(new))
        if not self.rvs:
            return graphs[0].sum()
        owner = self.rvs[0].owner
        outputs = owner.clone_with_new_inputs(graphs[: len(owner.inputs)]).outputs
        rvs = [outputs[owner.outputs.index(rv)] for rv in self.rvs]
        logps = transformed_conditional_logp(
            rvs,
            rvs_to_values=dict(zip(rvs, graphs[len(owner.inputs) :], strict=True)),
            rvs_to_transforms=dict(zip(rvs, self.transforms, strict=True)),
        )
        return sum((logp.sum() for logp in logps[1:]), start=logps[0].sum())


def _terms(model: pm.Model) -> list[_Term]:
    """All terms of a model, of the values of its variables."""
    nodes: dict[Any, list[Any]] = {}
    for rv in model.basic_RVs:
        nodes.setdefault(rv.owner, []).append(rv)
    values, transforms = model.rvs_to_values, model.rvs_to_transforms
    graphs = [*chain(*(node.inputs for node in nodes)), *model.potentials]
    of_values = iter(
        replace_rvs_by_values(graphs, rvs_to_values=values, rvs_to_transforms=transforms)
    )
    terms = []
    for node, rvs in nodes.items():
        inputs = [next(of_values) for _ in node.inputs]
        own = [transforms[rv] for rv in rvs]
        names = [rv.name for rv in rvs]
        terms.append(_Term(names, rvs, [*inputs, *(values[rv] for rv in rvs)], own))
    for potential, graph in zip(model.potentials, of_values, strict=True):
        terms.append(_Term([str(potential.name)], [], [graph]))
    return terms


def _fixed(leaf: Any) -> Hashable:
    """What must be equal in the leaves of terms of one group, beside their types."""
    if isinstance(leaf, SharedVariable):
        return None if isinstance(leaf.type, RandomType) else id(leaf)
    if not isinstance(leaf, Constant):
        return None
    if not isinstance(leaf.type, TensorType | ScalarType):
        return str(leaf)
    # PyMC leaves out what a bound that is a constant infinity does not change
    return "finite" if np.isfinite(leaf.data).all() else np.asarray(leaf.data).tobytes()


def _grouped(model: pm.Model, terms: Sequence[_Term], hessian: bool) -> list["_Group"]:
    """One group, or where PyMC cannot derive that one for each term."""
    try:
        return [_Group(terms, _Term.derive, hessian)]
    except Exception:
        if len(terms) > 1:
            return list(chain(*(_grouped(model, [term], hessian) for term in terms)))

    # PyMC wants to see more than the node and the values of all others
    def derive(term, new):
        return clone_replace(model.logp(vars=term.rvs), dict(new))

    return [_Group(terms, derive, hessian)]


class _Group:
    """Terms that are computed alike, and their functions.

    The columns are the leaves of all terms that are inputs of the functions: first the
    `n_varying` that are others in each of the terms.
    """

    def __init__(self, terms: Sequence[_Term], derive, hessian: bool):
        self.hessian = hessian
        columns: list[Any] = list(zip(*(term.leaves for term in terms), strict=True))
        varying = [column for column in columns if not _is_one(column)]
        shared = [column for column in columns if _is_one(column) and _is_value(column[0])]
        self.n_terms, self.n_varying = len(terms), len(varying)
        self.names = [name for term in terms for name in term.names]
        self.columns = [*varying, *shared]
        self.constants = {
            k: np.stack([leaf.data for leaf in column])
            for k, column in enumerate(varying)
            if isinstance(column[0], Constant)
        }
        self.wrt = [
            k
            for k, (leaf, *_) in enumerate(self.columns)
            if _is_value(leaf) and leaf.type.dtype.startswith("float")
        ]
        self.leaves: list[Any] = []
        new = {}
        for leaf, *_ in self.columns:
            is_scalar = isinstance(leaf.type, ScalarType)
            own = pt.tensor(dtype=leaf.type.dtype, shape=() if is_scalar else leaf.type.shape)
            new[leaf] = pt.scalar_from_tensor(own) if is_scalar else own
            self.leaves.append(own)
        #: the log-density of a term
        self.total = _prepared(derive(terms[0], new))
        #: whether the batched function gives what the terms give one by one, where that is known
        self.is_batched = None if self.n_terms > 1 and self.n_varying else False

    def evaluate(self, point: Point, directions: Point):
        """Kinds, names and parts of the results, see :class:`Reference`."""
        everything = range(self.n_terms)
        if self.is_batched is None:
            some = sorted({0, self.n_terms // 2, self.n_terms - 1})
            self.is_batched = self._agree(some, self._arguments(some, point, directions))
        function = self._batched if self.is_batched else self._one_by_one
        logp, *derivatives = function(*self._arguments(everything, point, directions))
        yield ("logp", ""), logp
        places = [(kind, k) for kind in ("gradient", "hessian") for k in self.wrt]
        for (kind, k), result in zip(places, derivatives, strict=False):
            if k < self.n_varying:
                for leaf, part in zip(self.columns[k], result, strict=True):
                    yield (kind, leaf.name), part
            else:
                yield (kind, self.columns[k][0].name), result

    def shapes(self, variables: Sequence[Any], point: Point) -> list[tuple[int, ...]]:
        """The shapes of variables that :attr:`total` of the first term is computed from."""
        shapes = [var.shape for var in variables]
        function = pytensor.function(
            self.leaves, shapes, mode=UNREWRITTEN, on_unused_input="ignore"
        )
        arguments = self._arguments([0], point, {})[: len(self.leaves)]
        own = [a[0] if k < self.n_varying else a for k, a in enumerate(arguments)]
        return [tuple(map(int, shape)) for shape in function(*own)]

    def _agree(self, some: Sequence[int], arguments) -> bool:
        try:
            batched = self._batched(*arguments)
        except Exception:
            # what raises one by one as well will do so
            return False
        return all(
            np.allclose(*pair, rtol=1e-9, atol=1e-9, equal_nan=True)
            for pair in zip(batched, self._one_by_one(*arguments), strict=True)
        )

    def _arguments(self, some: Sequence[int], point: Point, directions: Point):
        def entries(k, values):
            if k >= self.n_varying:
                return values[self.columns[k][0].name]
            if k in self.constants:
                return self.constants[k][list(some)]
            return np.stack([values[self.columns[k][member].name] for member in some])

        numbers = range(len(self.columns))
        along = [entries(k, directions) for k in self.wrt] if self.hessian else []
        return [*(entries(k, point) for k in numbers), *along]

    @cached_property
    def _batched(self):
        """The results for terms that are along the first dimension of what varies."""
        new = {}
        for leaf in self.leaves[: self.n_varying]:
            new[leaf] = pt.tensor(dtype=leaf.type.dtype, shape=(None, *leaf.type.shape))
        total = vectorize_graph(self.total, new).sum()
        return self._function(total, [new.get(leaf, leaf) for leaf in self.leaves])

    @cached_property
    def _single(self):
        return self._function(self.total, self.leaves)

    def _one_by_one(self, *arguments):
        """What `_batched` returns, without it."""
        numbers = [*range(len(self.columns)), *self.wrt][: len(arguments)]
        pairs = [(k < self.n_varying, own) for k, own in zip(numbers, arguments, strict=True)]
        count = next((len(own) for varies, own in pairs if varies), self.n_terms)
        rows = [
            self._single(*(own[i] if varies else own for varies, own in pairs))
            for i in range(count)
        ]
        logps, *derivatives = zip(*rows, strict=True)
        repeated = self.wrt * (len(derivatives) // max(len(self.wrt), 1))
        return [sum(logps)] + [
            np.stack(parts) if k < self.n_varying else sum(parts)
            for k, parts in zip(repeated, derivatives, strict=True)
        ]

    def _function(self, total: Tensor, leaves: Sequence[Any]):
        wrt = [leaves[k] for k in self.wrt]
        derivatives = _gradient(total, wrt)
        along = []
        if self.hessian:
            along = [leaf.type() for leaf in wrt]
            terms = [pt.sum(own * v) for own, v in zip(derivatives, along, strict=True)]
            derivatives += _gradient(sum(terms, start=pt.constant(0.0)), wrt)
        return pytensor.function(
            [*leaves, *along],
            [total, *derivatives],
            mode=UNREWRITTEN,
            on_unused_input="ignore",
        )


def _is_value(leaf: Any) -> bool:
    return not isinstance(leaf, Constant | SharedVariable)


def _is_one(column: Sequence[Any]) -> bool:
    """Whether the leaves of all terms are the same."""
    first = column[0]
    if isinstance(first, Constant) and isinstance(first.type, TensorType | ScalarType):
        return len({np.asarray(leaf.data).tobytes() for leaf in column}) == 1
    return _is_value(first) is False or len(set(column)) == 1


def _gradient(cost: Tensor, wrt: Sequence[Tensor]) -> list[Tensor]:
    # a constant to start from: ones_like(cost) would make every gradient depend on the whole graph
    one: Any = {cost: pt.ones((), dtype=cost.type.dtype)}
    if not wrt:
        return []
    grads: Any = pytensor.grad(None, wrt, known_grads=one, disconnected_inputs="ignore")
    return list(grads)


def _prepared(logp: Tensor) -> Tensor:
    """`logp` with the checks of a compiled model, and sums that Python can do."""
    fgraph = FunctionGraph(outputs=[logp], clone=True, copy_inputs=False)
    dfs_rewriter(local_check_parameter_to_ninf_switch, split_wide_sum, gathered).rewrite(fgraph)
    return fgraph.outputs[0]


@node_rewriter([Subtensor])
def gathered(fgraph, node):
    """x[i] of a scalar i that differs from term to term -> x[[i]][0].

    PyTensor's batched form of the first, and its gradient, hold a copy of x for each term.
    """
    x: Any = node.inputs[0]
    indices: list[Any] = list(indices_from_subtensor(node.inputs[1:], node.op.idx_list))
    for axis, index in enumerate(indices):
        maker = getattr(index, "owner", None)
        if maker is not None and isinstance(maker.op, ScalarFromTensor):
            taken = x[(*[slice(None)] * axis, maker.inputs[0][None])]
            return [taken[(*indices[:axis], 0, *indices[axis + 1 :])]]
    return None


@node_rewriter([pt.add])
def split_wide_sum(fgraph, node):
    """add(x_1, ..., x_N) -> sums of sums: NumPy's functions take at most 32 arrays."""
    width, terms = 16, node.inputs
    if len(terms) <= width:
        return None
    while len(terms) > 1:
        parts = [terms[i : i + width] for i in range(0, len(terms), width)]
        terms = [pt.add(*part) if len(part) > 1 else part[0] for part in parts]
    return terms
