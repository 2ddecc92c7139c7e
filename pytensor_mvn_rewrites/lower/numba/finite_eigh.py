"""The kernel of ``FiniteEigh``: LAPACK's divide and conquer on a copy."""

import numpy as np

from pytensor_mvn_rewrites.lower.numba.jit import is_kernel
from pytensor_mvn_rewrites.lower.numba.lapack import eigh
from pytensor_mvn_rewrites.lower.numba.structured import (
    N,
    NodeFunction,
    compiled_by,
    copy_in,
    copy_out,
)
from pytensor_mvn_rewrites.ops import FiniteEigh

NAMES = ("matrix", "eigenvalues", "eigenvectors")
MATRIX, EIGENVALUES, EIGENVECTORS = range(len(NAMES))


@compiled_by(FiniteEigh)
def finite_eigh_function(op, node) -> NodeFunction:
    """The function that a node calls."""
    names = "matrix -> eigenvalues eigenvectors"
    return NodeFunction.of(op, node, "finite_eigh", names, NAMES)


@is_kernel("finite_eigh")
def decompose(table):
    """The eigenvalues and eigenvectors of a symmetric matrix."""
    n = table[N]
    matrix, eigenvalues = np.empty(n * n), np.empty(n)
    copy_in(table, MATRIX, n, n, matrix)
    fine = True
    for number in matrix:
        fine &= abs(number) < np.inf
    if not fine:
        matrix[:] = 0.0
    fine &= eigh(matrix, eigenvalues)
    if not fine:
        eigenvalues[:] = np.nan
    for i in range(n):
        # LAPACK leaves one eigenvector in each row
        for j in range(i):
            matrix[i * n + j], matrix[j * n + i] = matrix[j * n + i], matrix[i * n + j]
    copy_out(table, EIGENVALUES, 1, n, eigenvalues)
    copy_out(table, EIGENVECTORS, n, n, matrix)
