"""PyTensor graphs evaluated in arithmetic of 50 digits.

Floats are object arrays of `mpmath.mpf`, whatever their dtype says; integers and booleans are as
NumPy has them. What only moves entries is done by the op's own `perform`; ops that have an inner
graph, those of this package among them, are evaluated by that graph.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

import numpy as np
from mpmath import mp, mpf
from pymc.logprob.utils import CheckParameterValue
from pytensor.compile.builders import OpFromGraph
from pytensor.compile.ops import DeepCopyOp, ViewOp
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.traversal import toposort
from pytensor.raise_op import CheckAndRaise
from pytensor.scalar import basic as ps
from pytensor.scalar import math as psm
from pytensor.scan.op import Scan
from pytensor.tensor import basic as ptb
from pytensor.tensor.blas.batched import BatchedDot
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.extra_ops import CumOp
from pytensor.tensor.linalg import constructors, inverse, products, summary
from pytensor.tensor.linalg.decomposition import cholesky, eigen, qr
from pytensor.tensor.linalg.solvers import general, psd, triangular
from pytensor.tensor.math import Argmax, Dot
from pytensor.tensor.shape import Reshape, Shape, Shape_i, SpecifyShape
from pytensor.tensor.sort import ArgSortOp, SortOp
from pytensor.tensor.subtensor import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    IncSubtensor,
    Subtensor,
)

from pytensor_mvn_rewrites.lower._lowered import LoweredOp
from pytensor_mvn_rewrites.lower.kinks import Materialized
from pytensor_mvn_rewrites.lower.raveled import Ravel, Unravel
from tests.certificates import linalg
from tests.certificates.linalg import NAN, exact

mp.dps = 50
INF = mpf("inf")

Value = object
#: The number that a double in a graph stands for, where that is not the double itself
Digits = Mapping[float, mpf]


def evaluate(
    outputs: Sequence[Variable],
    values: Mapping[Variable, Value],
    digits: Digits | None = None,
) -> list:
    """The values of `outputs`, given those of all inputs; a shared variable has its own.

    Parameters
    ----------
    outputs : sequence of variables
    values : dict
        Arrays of doubles, integers or `mpf`.
    digits : dict of float to mpf, optional
        The numbers that doubles among the constants are rounded from.

    Raises
    ------
    NotImplementedError
        If an op is unknown: nothing is evaluated in double precision.
    """
    digits = digits or {}
    known = {var: of_type(var, value) for var, value in values.items()}
    for node in toposort(list(outputs), blockers=known):
        if all(out in known for out in node.outputs):
            continue
        inputs = [_input(var, known, digits) for var in node.inputs]
        known |= zip(node.outputs, outputs_of(node, inputs, digits), strict=True)
    return [_input(out, known, digits) for out in outputs]


def _input(var, known, digits):
    if var in known:
        return known[var]
    if isinstance(var, Constant):
        return lifted(var.data, digits) if is_float(var) else var.data
    # a shared variable
    return of_type(var, var.get_value())


def lifted(data, digits: Digits) -> np.ndarray:
    """The numbers behind doubles."""
    number = np.frompyfunc(lambda x: digits.get(x, x), 1, 1)
    return exact(number(np.asarray(data, dtype="float64")))


def is_float(var) -> bool:
    return getattr(var.type, "dtype", "").startswith("float")


def of_type(var, value):
    """Floats as `mpf`; integers and booleans in the dtype of `var`."""
    if is_float(var):
        return exact(value)
    if getattr(var.type, "dtype", None) is None:
        return value
    return np.asarray(value).astype(var.type.dtype)


def outputs_of(node: Apply, inputs: list, digits: Digits) -> list:
    """The values of the outputs of one node."""
    for cls in type(node.op).__mro__:
        if cls in RULES:
            results = RULES[cls](node, inputs, digits)
            return [of_type(out, result) for out, result in zip(node.outputs, results, strict=True)]
    raise NotImplementedError(f"no arithmetic for {type(node.op)}")


#: What an op does: from a node, its inputs and the digits of constants to its outputs
Rule = Callable[[Apply, list, Digits], Sequence]
RULES: dict[type, Rule] = {}


def rule(*ops: type):
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


# Elementwise


def _or_nan(function):
    """NaN where there is no real number, infinity where there is none at all."""

    def guarded(*args):
        try:
            result = function(*args)
        except (ValueError, ZeroDivisionError):
            return NAN
        return result if isinstance(result, mpf | bool | int) else NAN

    return guarded


def _divide(x, y):
    if y == 0:
        return NAN if x == 0 or x != x else INF * mp.sign(x)
    return mpf(x) / y


def _log1mexp(x):
    return mp.log(-mp.expm1(x))


def _clip(x, low, high):
    return low if x < low else high if x > high else x


#: Scalar ops, as functions of `mpf`, integers and booleans
SCALAR: dict[type, Callable] = {
    ps.Add: lambda *terms: reduce(operator.add, terms),
    ps.Mul: lambda *factors: reduce(operator.mul, factors),
    ps.Sub: operator.sub,
    ps.Neg: operator.neg,
    ps.TrueDiv: _divide,
    ps.Reciprocal: lambda x: _divide(mpf(1), x),
    ps.Pow: _or_nan(lambda x, y: mpf(x) ** y),
    ps.Sqr: lambda x: x * x,
    ps.Sqrt: _or_nan(mp.sqrt),
    ps.Exp: mp.exp,
    ps.Expm1: mp.expm1,
    ps.Log: _or_nan(mp.log),
    ps.Log1p: _or_nan(lambda x: mp.log1p(x) if x > -1 else mp.log(1 + x)),
    psm.Log1mexp: _or_nan(_log1mexp),
    psm.Softplus: lambda x: mp.log1p(mp.exp(x)),
    psm.Sigmoid: lambda x: 1 / (1 + mp.exp(-x)),
    psm.GammaLn: mp.loggamma,
    psm.Psi: mp.digamma,
    psm.TriGamma: lambda x: mp.psi(1, x),
    psm.Erf: mp.erf,
    psm.Erfc: mp.erfc,
    ps.Tanh: mp.tanh,
    ps.Sin: mp.sin,
    ps.Cos: mp.cos,
    ps.Abs: abs,
    ps.Sign: lambda x: x if x != x else mp.sign(x),
    ps.ScalarMaximum: max,
    ps.ScalarMinimum: min,
    ps.Maximum: max,
    ps.Minimum: min,
    ps.Clip: _clip,
    ps.Switch: lambda condition, x, y: x if condition else y,
    ps.Second: lambda x, y: y,
    ps.Identity: lambda x: x,
    ps.Cast: lambda x: x,
    ps.EQ: operator.eq,
    ps.NEQ: operator.ne,
    ps.LT: operator.lt,
    ps.LE: operator.le,
    ps.GT: operator.gt,
    ps.GE: operator.ge,
    ps.IsNan: lambda x: x != x,
    ps.IsInf: lambda x: abs(x) == INF,
}


def scalar_function(op) -> Callable | None:
    """What a scalar op does to numbers."""
    if isinstance(op, ps.Composite):
        return partial(evaluate_scalars, op.fgraph)
    return next((SCALAR[cls] for cls in type(op).__mro__ if cls in SCALAR), None)


def evaluate_scalars(fgraph, *args):
    """The outputs of the graph of a fused elementwise op; what is one is no tuple."""
    known = dict(zip(fgraph.inputs, args, strict=True))
    for node in fgraph.toposort():
        function = scalar_function(node.op)
        inputs = [known[v] if v in known else v.data for v in node.inputs]
        inputs = [mpf(float(x)) if isinstance(x, float | np.floating) else x for x in inputs]
        if function is None:
            raise NotImplementedError(f"no arithmetic for {node.op}")
        known[node.outputs[0]] = function(*inputs)
    outputs = tuple(known[out] for out in fgraph.outputs)
    return outputs if len(outputs) > 1 else outputs[0]


@rule(Elemwise)
def elemwise(node, inputs, digits):
    if not any(is_float(var) for var in (*node.inputs, *node.outputs)):
        return performed(node, inputs, digits)
    function = scalar_function(node.op.scalar_op)
    if function is None:
        raise NotImplementedError(f"no arithmetic for {node.op}")
    arrays = [np.asarray(inp, dtype=object) for inp in inputs]
    with np.errstate(invalid="ignore"):
        results = np.frompyfunc(function, len(arrays), len(node.outputs))(*arrays)
    return results if len(node.outputs) > 1 else [results]


@rule(ps.ScalarOp)
def scalar(node, inputs, digits):
    function = scalar_function(node.op)
    if function is None:
        raise NotImplementedError(f"no arithmetic for {node.op}")
    return [function(*[np.asarray(x, dtype=object)[()] for x in inputs])]


# What moves entries


@rule(
    DimShuffle,
    Reshape,
    Shape,
    Shape_i,
    SpecifyShape,
    Subtensor,
    IncSubtensor,
    AdvancedSubtensor,
    AdvancedIncSubtensor,
    ptb.Alloc,
    ptb.AllocEmpty,
    ptb.ExtractDiag,
    ptb.ARange,
    ptb.Eye,
    ptb.Split,
    ptb.Nonzero,
    ptb.ScalarFromTensor,
    ptb.TensorFromScalar,
    ArgSortOp,
    SortOp,
    Argmax,
    CumOp,
    ViewOp,
    DeepCopyOp,
)
def performed(node, inputs, digits):
    """By the op itself: it knows nothing of what it moves."""
    storage: list[list] = [[None] for _ in node.outputs]
    node.op.perform(node, inputs, storage)
    results = [result for [result] in storage]
    if any(is_float(var) for var in node.inputs):
        assert not any(np.asarray(r).dtype.kind == "f" for r in results), f"{node.op} rounds"
    return results


@rule(ptb.Join)
def join(node, inputs, digits):
    return [np.concatenate(inputs, axis=node.op.axis)]


@rule(ptb.AllocDiag)
def alloc_diag(node, inputs, digits):
    """Works on the last axis: `axis1` and `axis2` say where the matrix goes."""
    [x], op = inputs, node.op
    n = x.shape[-1] + abs(op.offset)
    out = linalg.zeros(*x.shape[:-1], n, n)
    rows = np.arange(x.shape[-1]) + max(0, -op.offset)
    out[..., rows, rows + op.offset] = x
    return [np.moveaxis(out, (-2, -1), (op.axis1, op.axis2))]


@rule(ptb.MakeVector)
def make_vector(node, inputs, digits):
    return [np.array([np.asarray(x)[()] for x in inputs], dtype=object)]


@rule(Materialized)
def materialized(node, inputs, digits):
    return inputs


@rule(Unravel)
def unravel(node, inputs, digits):
    [x] = inputs
    return [x[list(place.positions)].reshape(place.shape) for place in node.op.places]


@rule(Ravel)
def ravel(node, inputs, digits):
    out = np.empty(node.op.length, dtype=object)
    for place, part in zip(node.op.places, inputs, strict=True):
        out[list(place.positions)] = np.ravel(part)
    return [out]


@rule(CheckAndRaise)
def check(node, inputs, digits):
    value, *conditions = inputs
    if not all(np.all(condition) for condition in conditions):
        raise node.op.exc_type(node.op.msg)
    return [value]


RULES[CheckParameterValue] = check


# Reductions and products


@rule(CAReduce)
def careduce(node, inputs, digits):
    [x], op = inputs, node.op
    axis = op.axis if op.axis is None else tuple(op.axis)
    if not is_float(node.inputs[0]) and not is_float(node.outputs[0]):
        return performed(node, inputs, digits)
    name = type(op.scalar_op).__name__
    if name == "Add":
        return [np.add.reduce(x, axis=axis)]
    if name == "Mul":
        return [np.multiply.reduce(x, axis=axis)]
    if name in ("ScalarMaximum", "Maximum"):
        return [np.maximum.reduce(x, axis=axis)]
    if name in ("ScalarMinimum", "Minimum"):
        return [np.minimum.reduce(x, axis=axis)]
    if name == "MulWithoutZeros":
        return [np.multiply.reduce(np.where(x == 0, mpf(1), x), axis=axis)]
    raise NotImplementedError(f"no arithmetic for {op}")


@rule(Dot)
def dot(node, inputs, digits):
    return [np.dot(*inputs)]


@rule(BatchedDot)
def batched_dot(node, inputs, digits):
    return [np.matmul(*inputs)]


@rule(Blockwise)
def blockwise(node, inputs, digits):
    op = node.op
    batch_ndim = op.batch_ndim(node)
    core_ndims = [len(sig) for sig in op.inputs_sig]
    batch = np.broadcast_shapes(
        *(np.shape(x)[: np.ndim(x) - core] for x, core in zip(inputs, core_ndims, strict=True))
    )
    assert len(batch) == batch_ndim
    inputs = [
        np.broadcast_to(x, (*batch, *np.shape(x)[np.ndim(x) - core :]))
        for x, core in zip(inputs, core_ndims, strict=True)
    ]
    core_node = op._create_dummy_core_node(node.inputs)
    results = [outputs_of(core_node, [x[i] for x in inputs], digits) for i in np.ndindex(*batch)]
    if not results:
        raise NotImplementedError("an empty batch")
    return [
        np.stack(outs).reshape((*batch, *np.shape(outs[0]))) for outs in zip(*results, strict=True)
    ]


# Linear algebra


def _linalg(op, function):
    """Register a function of matrices that returns one array, given the op's own options."""

    @rule(op)
    def apply(node, inputs, digits):
        return [function(node.op, *inputs)]


_linalg(cholesky.Cholesky, lambda op, a: linalg.cholesky(a, op.lower))
_linalg(
    triangular.SolveTriangular,
    lambda op, a, b: linalg.solve_triangular(a, b, op.lower, op.unit_diagonal),
)
_linalg(
    psd.CholeskySolve,
    lambda op, c, b: linalg.solve_triangular(
        c.T if op.lower else c,
        linalg.solve_triangular(c if op.lower else c.T, b, lower=True),
        lower=False,
    ),
)
_linalg(general.Solve, lambda op, a, b: linalg.solve(a, b, op.assume_a, op.lower))
_linalg(inverse.MatrixInverse, lambda op, a: linalg.inverse(a))
_linalg(summary.Det, lambda op, a: linalg.determinant(a))
_linalg(products.Expm, lambda op, a: linalg.matrix_exponential(a))


@rule(summary.SLogDet)
def slogdet(node, inputs, digits):
    return linalg.slogdet(*inputs)


@rule(eigen.Eigh)
def eigh(node, inputs, digits):
    return linalg.eigh(*inputs, lower=node.op.lower)


@rule(qr.QR)
def qr_decomposition(node, inputs, digits):
    if node.op.mode not in ("economic", "r") or node.op.pivoting:
        raise NotImplementedError(f"no arithmetic for {node.op}")
    q, r = linalg.qr(*inputs)
    return [q, r] if node.op.mode == "economic" else [r]


@rule(constructors.BlockDiagonal)
def block_diagonal(node, inputs, digits):
    rows, columns = np.cumsum([(0, 0), *map(np.shape, inputs)], axis=0).T
    out = linalg.zeros(rows[-1], columns[-1])
    for k, block in enumerate(inputs):
        out[rows[k] : rows[k + 1], columns[k] : columns[k + 1]] = block
    return [out]


# Inner graphs


@rule(OpFromGraph)
def of_inner_graph(node, inputs, digits):
    return evaluate(
        node.op.inner_outputs, dict(zip(node.op.inner_inputs, inputs, strict=True)), digits
    )


@rule(LoweredOp)
def lowered(node, inputs, digits):
    """What stands for ops of this package in the graph of a backend, by those ops."""
    dummies = [var.type() for var in node.inputs]
    return evaluate(
        node.op.reference_outputs(dummies), dict(zip(dummies, inputs, strict=True)), digits
    )


@rule(Scan)
def scan(node, inputs, digits):
    """A loop without state: each step maps entries of the sequences to entries of the outputs."""
    info = node.op.info
    if info.n_mit_mot or info.n_mit_sot or info.n_sit_sot or info.n_untraced_sit_sot:
        raise NotImplementedError("a scan with state")
    n_steps, *others = inputs
    sequences = others[: info.n_seqs]
    fixed = others[info.n_seqs + info.n_nit_sot :]
    steps = [
        evaluate(
            node.op.inner_outputs,
            dict(zip(node.op.inner_inputs, [*[seq[i] for seq in sequences], *fixed], strict=True)),
            digits,
        )
        for i in range(int(n_steps))
    ]
    return list(map(np.stack, zip(*steps, strict=True)))


def relative_difference(value, reference) -> mpf:
    """The largest difference, relative to the largest entry, or to 1 if all are smaller."""
    value, reference = exact(value), exact(reference)
    assert value.shape == reference.shape
    if not value.size:
        return mpf(0)
    differences = [abs(a - b) for a, b in zip(value.ravel(), reference.ravel(), strict=True)]
    scale = max(mpf(1), *map(abs, reference.ravel()))
    worst = max(differences)
    return worst / scale if worst == worst else INF


def random_digits(rng: np.random.Generator, value) -> np.ndarray:
    """`value` with random digits behind those of a double."""
    value = np.asarray(value, dtype=float)
    tail = [rng.integers(0, 2**60, size=value.shape) for _ in range(2)]
    scale = mpf(2) ** -60
    small = (exact(tail[0]) + exact(tail[1]) * scale) * scale
    return exact(exact(value) * (1 + mpf(2) ** -53 * small))
