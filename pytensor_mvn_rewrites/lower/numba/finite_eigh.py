"""The kernel of ``FiniteEigh``: LAPACK's divide and conquer on a copy."""

from collections.abc import Callable

import numpy as np
from pytensor.link.numba.dispatch.basic import register_funcify_and_cache_key

from pytensor_mvn_rewrites.lower.numba.lapack import eigh
from pytensor_mvn_rewrites.lower.numba.structured import N, NodeFunction, Operand, entry, funcify
from pytensor_mvn_rewrites.lower.numba.vectors import load, store
from pytensor_mvn_rewrites.ops import FiniteEigh

NAMES = ("matrix", "eigenvalues", "eigenvectors")
MATRIX, EIGENVALUES, EIGENVECTORS = range(len(NAMES))


@register_funcify_and_cache_key(FiniteEigh)
def numba_funcify_finite_eigh(op, node, **kwargs):
    """The function of a node, and its key."""
    return funcify(op, node, finite_eigh_function, **kwargs)


def finite_eigh_function(op, node) -> NodeFunction:
    """The function that a node calls."""
    square = ("n", "n")
    outputs = [Operand("eigenvalues", "", ("n",)), Operand("eigenvectors", "", square)]
    return NodeFunction("finite_eigh", [Operand("matrix", "", square)], outputs, NAMES)


def finite_eigh_kernel() -> Callable:
    """The kernel, to be compiled."""
    return decompose


def decompose(table):
    """The eigenvalues and eigenvectors of a symmetric matrix."""
    n = table[N]
    rows, eigenvalues = np.empty((n, n)), np.empty(n)
    fine = True
    for i in range(n):
        for j in range(n):
            number = load(entry(table, MATRIX, 0, i, j))
            fine &= abs(number) < np.inf
            rows[i, j] = number
    if not fine:
        rows[:] = 0.0
    fine &= eigh(rows, eigenvalues)
    for i in range(n):
        store(entry(table, EIGENVALUES, 0, 0, i), eigenvalues[i] if fine else np.nan)
        for j in range(n):
            store(entry(table, EIGENVECTORS, 0, i, j), rows[j, i])
