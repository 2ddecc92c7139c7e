"""The kernel for rows that share a matrix agrees with the reference, and is the one that runs."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_array_equal

from pytensor_mvn_rewrites import disable
from pytensor_mvn_rewrites.lower.numba.blas_rows import (
    BLAS_MIN_N,
    BLAS_MIN_R,
    BLAS_MIN_R_STRAIGHT,
    BLOCK,
)
from pytensor_mvn_rewrites.lower.numba.formulas import LaneSpec
from pytensor_mvn_rewrites.lower.numba.frame import KernelSpec, kernels_by_condition
from pytensor_mvn_rewrites.lower.numba.lanes import STRAIGHT_MAX_N
from pytensor_mvn_rewrites.lower.numba.rows import lanes_are_rows
from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.lower.test_numba_backend import (
    REFERENCE,
    assert_agree,
    compiled,
    lowered_nodes,
    random_inputs,
)


def kernel_of(function):
    [node] = lowered_nodes(function)
    return KernelSpec.of(node.op, node).kernel


def uses_blas_rows(function):
    [node] = lowered_nodes(function)
    return KernelSpec.of(node.op, node).uses_blas_rows


def rows_functions(build, param, n, *, groups=True, own_mean=True):
    """Lowered and reference function for (G, R, n) or (R, n) rows; lengths are unknown."""
    batch = (None, None) if groups else (None,)
    mean = batch if own_mean else (*batch[:-1], 1)
    matrix = (None, 1) if groups else (1,)
    vectors = [(*batch, n)] + ([(*mean, n)] if build is mvnormal_logp else [])
    return compiled(build, param, (*vectors, (*matrix, n, n)))


def rows_inputs(build, param, n, sizes, *, own_mean=True, seed=0):
    groups = sizes[:-1]
    mean = sizes if own_mean else (*groups, 1)
    vectors = [(*sizes, n)] + ([(*mean, n)] if build is mvnormal_logp else [])
    return random_inputs(build, param, (*vectors, (*groups, 1, n, n)), seed)


#: With whether the mean is each row's own
CASES = [
    (mvnormal_logp, "cov", 3, True),
    (mvnormal_logp, "cov", 3, False),
    (mvnormal_logp, "chol", 2, True),
    (mvnormal_logp, "tau", 4, False),
    (inv_quad_logdet, "cov", 5, True),
    (inv_quad_logdet, "chol", 3, True),
    (mvnormal_logp, "chol", 12, True),
    (mvnormal_logp, "cov", 1, True),
    # by products of blocks of rows where they are many
    (mvnormal_logp, "cov", 13, True),
    (inv_quad_logdet, "tau", 16, True),
    (mvnormal_logp, "cov", 50, False),
    (mvnormal_logp, "chol", 20, True),
    (mvnormal_logp, "tau", 18, False),
    (inv_quad_logdet, "cov", 30, True),
]
SIZES = [(1, 1), (1, 7), (3, 8), (2, 100), (50, 3), (9, 17), (8, 1), (2, 2 * BLOCK + 3)]


@pytest.mark.parametrize(
    ("build", "param", "n", "own_mean"), CASES, ids=lambda case: getattr(case, "__name__", case)
)
class TestGroupsOfRows:
    """All sizes with one compiled function: lanes hold rows or matrices, in place or packed."""

    def test_sizes(self, build, param, n, own_mean):
        functions = rows_functions(build, param, n, own_mean=own_mean)
        kernel = kernel_of(functions[0])
        if n <= STRAIGHT_MAX_N:
            assert kernel.has_rows
            assert LaneSpec.parse(kernel.name) == kernel
        else:
            assert kernel is None
        assert uses_blas_rows(functions[0]) == (n >= BLAS_MIN_N)
        for sizes in SIZES:
            assert_agree(functions, rows_inputs(build, param, n, sizes, own_mean=own_mean))

    def test_empty(self, build, param, n, own_mean):
        lowered, _ = rows_functions(build, param, n, own_mean=own_mean)
        forward = 2 if build is mvnormal_logp else 3
        outputs = lowered(*rows_inputs(build, param, n, (0, 3), own_mean=own_mean))
        assert outputs[0].shape == (0, 3)
        # without rows the gradient for the matrix is zero
        outputs = lowered(*rows_inputs(build, param, n, (2, 0), own_mean=own_mean))
        assert outputs[0].shape == (2, 0)
        assert_array_equal(outputs[-1], np.zeros((2, 1, n, n)))
        assert len(outputs) > forward

    @pytest.mark.parametrize("sizes", [(3, 20), (30, 3)], ids=["by_row", "by_matrix"])
    @pytest.mark.parametrize("bad", ["indefinite", "nan", "nan_row", "inf_row", "huge_row"])
    def test_bad_input_leaves_other_matrices_alone(self, build, param, n, own_mean, sizes, bad):
        functions = rows_functions(build, param, n, own_mean=own_mean)
        inputs = rows_inputs(build, param, n, sizes, own_mean=own_mean)
        good = functions[0](*inputs)
        position = 2 if build is mvnormal_logp else 1
        match bad:
            case "indefinite":
                inputs[position][1, 0, n - 1, n - 1] *= -1.0
            case "nan":
                inputs[position][1, 0, n - 1, 0] = np.nan
            case "nan_row":
                inputs[0][1, 2, 0] = np.nan
            case "inf_row":
                inputs[0][1, 2, 0] = np.inf
            case "huge_row":
                inputs[0][1, 2, 0] = 1e200
        if param == "tau" and bad in ("nan", "inf_row"):
            # the reference keeps what does not touch it, or multiplies it by zeros: NaN elsewhere
            actual = functions[0](*inputs)
        else:
            assert_agree(functions, inputs)
            actual = functions[0](*inputs)
        for a, g in zip(actual, good, strict=True):
            if a.shape[0] == sizes[0]:
                assert_array_equal(np.delete(a, 1, axis=0), np.delete(g, 1, axis=0))

    def test_views(self, build, param, n, own_mean):
        """Strided and reversed inputs are packed, and never written."""
        functions = rows_functions(build, param, n, own_mean=own_mean)
        for sizes in [(2, 19), (20, 3)]:
            views = []
            for x in rows_inputs(build, param, n, sizes, own_mean=own_mean):
                view = np.repeat(np.asfortranarray(x[::-1]), 2, axis=0)[::-2]
                view.flags.writeable = False
                views.append(view)
            copies = [view.copy() for view in views]
            assert_agree(functions, views)
            for view, copy in zip(views, copies, strict=True):
                assert_array_equal(view, copy)


@pytest.mark.parametrize("param", ["cov", "tau"])
def test_rows_of_one_matrix(param):
    functions = compiled(mvnormal_logp, param, ((None, 3), (3,), (3, 3)))
    assert kernel_of(functions[0]) == LaneSpec("rows", "logp", param, 3, "own", "sum", "sum")
    for rows in (1, 8, 203):
        inputs = random_inputs(mvnormal_logp, param, ((rows, 3), (3,), (3, 3)))
        assert_agree(functions, inputs)
    inputs[0][5] = np.nan
    assert_agree(functions, inputs)


def test_matrix_axis_last():
    """A mixture: every row under every matrix."""
    shapes = ((None, 1, 2), (None, 2), (None, 2, 2))
    functions = compiled(mvnormal_logp, "cov", shapes)
    # the gradient for the values is a sum over matrices that is no sum over rows
    assert kernel_of(functions[0]) is None
    sizes = ((40, 1, 2), (3, 2), (3, 2, 2))
    assert_agree(functions, random_inputs(mvnormal_logp, "cov", sizes))


def test_mean_that_all_share():
    """A bad matrix must not spoil what the others add to a gradient that all share."""
    functions = compiled(mvnormal_logp, "cov", ((None, None, 2), (1, 1, 2), (None, 1, 2, 2)))
    assert kernel_of(functions[0]).has_rows
    for sizes in [(3, 20), (30, 3), (30, 1)]:
        shapes = ((*sizes, 2), (1, 1, 2), (sizes[0], 1, 2, 2))
        inputs = random_inputs(mvnormal_logp, "cov", shapes)
        assert_agree(functions, inputs)
        # out of the range of the formulas, but a number
        inputs[2][1] *= 1e-305
        inputs[0][1] *= 1e-150
        inputs[0][1] += inputs[1][0]
        assert_agree(functions, inputs)
        inputs[2][1, 0, 0, 0] = -1.0
        assert_agree(functions, inputs)


def test_choice_of_lanes():
    """Rows side by side where they are many, matrices where rows are few."""
    assert lanes_are_rows.py_func(1, 2000)
    assert lanes_are_rows.py_func(50, 2000)
    assert lanes_are_rows.py_func(1, 5)
    assert not lanes_are_rows.py_func(3, 5)
    assert not lanes_are_rows.py_func(1000, 5)


class TestProductsOfRows:
    """Which matrices the kernel for larger ones does."""

    @pytest.mark.parametrize(
        ("n", "rows", "kernel"),
        [
            (17, BLAS_MIN_R, "blas_rows"),
            (17, BLAS_MIN_R - 1, "small"),
            (13, BLAS_MIN_R_STRAIGHT, "blas_rows"),
            (13, BLAS_MIN_R_STRAIGHT - 1, "rows"),
            (12, 1000, "rows"),
        ],
    )
    def test_from_some_rows_on(self, n, rows, kernel):
        lowered, _ = compiled(mvnormal_logp, "cov", ((None, n), (n,), (n, n)))
        [node] = lowered_nodes(lowered)
        conditions = kernels_by_condition(KernelSpec.of(node.op, node))
        sizes = {"n": n, "M": 1, "R": rows}
        name = next(name for condition, name in conditions if eval(condition, sizes))
        assert name.split()[0] == kernel

    def test_unknown_core_size(self):
        shapes = ((None, None), (None,), (None, None))
        functions = compiled(mvnormal_logp, "cov", shapes)
        assert uses_blas_rows(functions[0])
        for n, rows in [(3, 40), (20, 3), (20, 40)]:
            inputs = random_inputs(mvnormal_logp, "cov", ((rows, n), (n,), (n, n)))
            assert_agree(functions, inputs)

    def test_gradient_that_other_matrices_share(self):
        shapes = ((None, 1, 13), (None, 13), (None, 13, 13))
        lowered, _ = compiled(mvnormal_logp, "cov", shapes)
        assert not uses_blas_rows(lowered)

    def test_sum(self):
        """The sum of the log-densities, with a bad matrix and without."""
        inputs = [pt.tensor(shape=shape) for shape in ((None, None, 17), (17,), (None, 1, 17, 17))]
        logp, posdef = mvnormal_logp(*inputs)
        outputs = [pt.switch(posdef, logp, -np.inf).sum(), *pytensor.grad(logp.sum(), inputs)]
        lowered = pytensor.function(inputs, outputs, mode="NUMBA")
        [node] = lowered_nodes(lowered)
        assert node.op.outputs[0] == "checked_logp_sum"
        with disable():
            reference = pytensor.function(inputs, outputs, mode=REFERENCE)
        sizes = ((3, 40, 17), (17,), (3, 1, 17, 17))
        arguments = random_inputs(mvnormal_logp, "cov", sizes)[:3]
        assert_agree((lowered, reference), arguments)
        arguments[2][1, 0, 2, 2] = -1.0
        expected = assert_agree((lowered, reference), arguments)
        assert np.isneginf(expected[0])
