"""Rows in groups: which rows belong to which matrix.

An op that is grouped has an index, which says for each row which matrix is its own. Kernels want
the rows of one matrix after the other: :func:`group_rows` sorts their numbers by counting, once in
each call, in a time that is proportional to the number of rows and of matrices. Rows stay in place.
"""

import numpy as np
from pytensor.link.numba.dispatch.basic import numba_njit

from pytensor_mvn_rewrites.lower.numba.jit import Table, njit_exact
from pytensor_mvn_rewrites.lower.numba.vectors import load_int

N_R, START, ORDER = Table.N_R, Table.entry("start"), Table.entry("order")
WORD = 8


@numba_njit
def group_rows(index, n_m):
    """Numbers of the rows, those of matrix 0 first, and where those of each matrix start.

    Negative indices count from the end, as they do in NumPy.

    Raises
    ------
    IndexError
        If there is no such matrix.
    """
    start = np.zeros(n_m + 2, dtype=np.int64)
    n_r = index.shape[0]
    for r in range(n_r):
        m = np.int64(index[r])
        m += n_m if m < 0 else 0
        if m < 0 or m >= n_m:
            raise IndexError("index out of bounds")
        start[m + 2] += 1
    for m in range(n_m):
        start[m + 2] += start[m + 1]
    # what is counted here starts one matrix further: it moves to its place as rows are put in
    order = np.empty(n_r, dtype=np.int64)
    for r in range(n_r):
        m = np.int64(index[r])
        m += n_m if m < 0 else 0
        order[start[m + 1]] = r
        start[m + 1] += 1
    return start, order


@njit_exact
def count_rows(table, m, is_grouped):
    """Number of rows of a matrix."""
    if not is_grouped:
        return table[N_R]
    start = table[START] + WORD * m
    return load_int(start + WORD) - load_int(start)


@njit_exact
def row_numbers(table, m, r):
    """Address of the numbers of the rows of a matrix, from the r-th on; rows are in groups."""
    return table[ORDER] + WORD * (load_int(table[START] + WORD * m) + r)


@njit_exact
def row_number(table, m, r, is_grouped):
    """Where the operands have the r-th row of a matrix."""
    return load_int(row_numbers(table, m, r)) if is_grouped else r


@njit_exact
def rows_are_run(table, m, is_grouped):
    """Whether the rows of a matrix follow each other; their numbers ascend."""
    count = count_rows(table, m, is_grouped)
    if not is_grouped or count < 2:
        return True
    return row_number(table, m, count - 1, True) - row_number(table, m, 0, True) == count - 1
