"""The digits behind the doubles that are computed when a graph is rewritten.

PyTensor folds constants in double precision, and rules factor constant matrices in it. Within
:func:`exact_constants` each such computation is done in 50 digits as well, and a table keeps, for
each double, the number that it was rounded from. The interpreter reads all constants by that table,
those of the graph as written too: a double stands for one number wherever it is.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.linalg.lapack
from mpmath import mp, mpf
from pytensor.tensor.rewriting import basic
from pytensor.tensor.rewriting.math import local_add_canonizer, local_mul_canonizer

from pytensor_mvn_rewrites.ops import FiniteEigh
from tests.certificates import linalg
from tests.certificates.interpreter import is_float, lifted, outputs_of

#: Rules that compute with NumPy
MODULES = (
    "structure.constant_matrix",
    "structure.constant_rows",
    "structure.joint_spectrum",
    "structure.kronecker_normal",
    "structure.ornstein_uhlenbeck",
    "structure.low_rank",
    "lower.sums",
)

#: A float32 is that close to its number
CLOSE = 1e-6
#: Numbers that were computed in two ways
SAME = mpf(10) ** -45


class Table(dict):
    """A double -> the number that it was rounded from, where that is not the double itself."""

    def add(self, rounded, numbers) -> None:
        """Note the numbers behind an array of doubles.

        Raises
        ------
        ValueError
            If a double is not a rounded number, or stands for another number already.
        """
        for x, number in zip(np.ravel(rounded), np.ravel(numbers), strict=True):
            x = float(x)
            if not np.isfinite(x) or abs(number - x) < SAME:
                continue
            if abs(number - x) > CLOSE * max(1, abs(x)):
                raise ValueError(f"{x!r} is not {number}")
            known = self.setdefault(x, number)
            # what is not computed, but negated
            self.setdefault(-x, -number)
            if abs(known - number) > SAME * max(1, abs(number)):
                raise ValueError(f"{x!r} is both {known} and {number}")

    def lift(self, array) -> np.ndarray:
        return lifted(array, self)


#: What the constants of densities are rounded from
NAMED = {2 * np.pi: 2 * mp.pi, 2 / np.pi: 2 / mp.pi} | {
    rounded: mpf(k) / 2 * mp.log(2 * mp.pi)
    for k in range(1, 400)
    for rounded in (0.5 * np.log(2 * np.pi) * k, k / 2 * np.log(2 * np.pi))
}

#: The ufuncs that object arrays have, and those of numbers
ARITHMETIC = (
    np.add,
    np.subtract,
    np.multiply,
    np.true_divide,
    np.matmul,
    np.negative,
    np.square,
)
FUNCTIONS = {np.log: mp.log, np.sqrt: mp.sqrt, np.exp: mp.exp}


class Followed(np.ndarray):
    """An array of doubles whose arithmetic is noted in a table."""

    table: Table

    def __array_finalize__(self, other):
        self.table = getattr(other, "table", None)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(x) for x in inputs]
        result = getattr(ufunc, method)(*plain, **kwargs)
        if np.asarray(result).dtype.kind != "f":
            return result
        numbers = list(map(self.table.lift, plain))
        kwargs.pop("dtype", None), kwargs.pop("out", None)
        if ufunc in FUNCTIONS:
            self.table.add(result, np.frompyfunc(FUNCTIONS[ufunc], 1, 1)(*numbers))
        elif ufunc in ARITHMETIC:
            self.table.add(result, getattr(ufunc, method)(*numbers, **kwargs))
        return followed(result, self.table)


def followed(array, table: Table):
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        return array
    array = array.view(Followed)
    array.table = table
    return array


class Numpy:
    """NumPy, or its `linalg`, that notes what it computes in a table."""

    def __init__(self, module, table: Table):
        self._module, self._table = module, table

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        table = self._table
        if name == "linalg":
            return Numpy(found, table)
        if name in ("asarray", "diagonal", "tril", "array", "broadcast_to", "column_stack"):
            return lambda *args, **kwargs: followed(found(*args, **kwargs), table)
        if isinstance(found, np.ufunc):
            return lambda *args, **kwargs: found(*[followed(x, table) for x in args], **kwargs)
        exact = LINALG.get(name) if self._module is np.linalg else None
        return found if exact is None else lambda *a, **k: exact(found, table, *a, **k)


def _cholesky(function, table, a):
    result = function(a)
    a = table.lift(a)
    for i in np.ndindex(*a.shape[:-2]):
        table.add(result[i], linalg.cholesky(a[i]))
    return followed(result, table)


def _eigh(function, table, a, b=None, **kwargs):
    eigenvalues, rounded = map(
        np.asarray, function(a, b, **kwargs) if b is not None else function(a, **kwargs)
    )
    a, b = table.lift(a), None if b is None else table.lift(b)
    numbers, eigenvectors = linalg.eigh(a, b)
    table.add(eigenvalues, numbers)
    table.add(rounded, aligned(numbers, eigenvectors, rounded, b))
    return followed(eigenvalues, table), followed(rounded, table)


def aligned(eigenvalues, eigenvectors, rounded, b=None):
    """The basis of the eigenspaces that is closest to eigenvectors that were rounded.

    Of equal eigenvalues any basis is right, of one of them either sign.
    """
    eigenvalues = eigenvalues.astype(float)
    inner = linalg.exact(rounded) if b is None else b @ linalg.exact(rounded)
    ends = np.flatnonzero(np.diff(eigenvalues) > CLOSE * np.abs(eigenvalues).max()) + 1
    result = np.array(eigenvectors)
    for k in np.split(np.arange(len(eigenvalues)), ends):
        turn, _ = linalg.qr(eigenvectors[:, k].T @ inner[:, k])
        result[:, k] = eigenvectors[:, k] @ turn
    return result


def _qr(function, table, a, mode):
    """The R, whose diagonal has signs."""
    result = function(a, mode=mode)
    _, r = linalg.qr(table.lift(a))
    table.add(result, r * np.sign(np.diagonal(result))[:, None])
    return followed(result, table)


def _slogdet(function, table, a):
    result = function(a)
    table.add(result.logabsdet, linalg.slogdet(table.lift(a))[1])
    return type(result)(result.sign, followed(result.logabsdet, table))


LINALG = {"cholesky": _cholesky, "eigh": _eigh, "qr": _qr, "slogdet": _slogdet}


def _solve_triangular(function, table, a, b, lower=False, **kwargs):
    result = function(a, b, lower=lower, **kwargs)
    table.add(result, linalg.solve_triangular(table.lift(a), table.lift(b), lower=lower))
    return followed(result, table)


def _dpstrf(function, table, a, lower):
    """LAPACK's Cholesky factorization with pivots, of a matrix that is of low rank."""
    chol, pivots, rank, info = function(a, lower=lower)
    pivoted = table.lift(a)[np.ix_(pivots - 1, pivots - 1)]
    table.add(np.tril(chol)[:, :rank], linalg.cholesky_columns(pivoted, rank))
    return chol, pivots, rank, info


#: What rules call SciPy for, and PyTensor where it folds constants
SCIPY = {
    (scipy.linalg, "eigh"): _eigh,
    (scipy.linalg, "solve_triangular"): _solve_triangular,
    (scipy.linalg.lapack, "dpstrf"): _dpstrf,
}

#: PyTensor's arithmetic on the constants of a sum or product
CANONIZERS = {
    local_add_canonizer: (mp.fsum, operator.sub),
    local_mul_canonizer: (mp.fprod, operator.truediv),
}


def _noting_fold(fold, table):
    """Fold a node, and note the numbers behind its outputs."""

    def transform(fgraph, node):
        folded = fold(fgraph, node)
        if not folded or not any(is_float(out) for out in node.outputs):
            return folded
        inputs = [table.lift(inp.data) if is_float(inp) else inp.data for inp in node.inputs]
        numbers = outputs_of(node, inputs, table)
        if isinstance(node.op, FiniteEigh):
            numbers[1] = aligned(*numbers, folded[1].data)
        for out, number in zip(folded, numbers, strict=True):
            if is_float(out):
                table.add(out.data, number)
        return folded

    return transform


def _noting_calculate(calculate, combine, inverse, table):
    """Add or multiply numbers, and note the one behind the result."""

    def calculated(num, denum, aslist=False, out_type=None):
        result = calculate(num, denum, aslist=aslist, out_type=out_type)
        value = result[0] if aslist and result else result
        if np.ndim(value) == 0 and np.asarray(value).dtype.kind == "f":
            parts = [[table.lift(x)[()] for x in side] for side in (num, denum)]
            table.add(value, [inverse(combine(parts[0]), combine(parts[1]))])
        return result

    return calculated


@contextmanager
def exact_constants(*modules) -> Iterator[Table]:
    """Note the digits behind all doubles that rewrites compute within this block.

    The same for what `modules` compute with NumPy.
    """
    table = Table()
    table.add(list(NAMED), list(NAMED.values()))
    rules = (import_module(f"pytensor_mvn_rewrites.{name}") for name in MODULES)
    folding = basic.unconditional_constant_folding
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "transform", _noting_fold(folding.transform, table))
        for canonizer, (combine, inverse) in CANONIZERS.items():
            calculate = _noting_calculate(canonizer.calculate, combine, inverse, table)
            patch.setattr(canonizer, "calculate", calculate)
        for module in (*rules, *modules):
            patch.setattr(module, "np", Numpy(np, table))
        for (module, name), noting in SCIPY.items():
            patch.setattr(module, name, partial(noting, getattr(module, name), table))
        yield table
