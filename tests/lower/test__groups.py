"""Gathers and scatters become one op with an index, which gives what the reference gives."""

from functools import cache

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pytensor.compile.mode import get_mode
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import graph_inputs

from pytensor_mvn_rewrites import disable
from pytensor_mvn_rewrites.lower.numba.formulas import LaneSpec
from pytensor_mvn_rewrites.lower.numba.frame import KernelSpec
from pytensor_mvn_rewrites.lower.numba.lanes import STRAIGHT_MAX_N
from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from tests.harness import spd
from tests.lower.test_numba_backend import REFERENCE, assert_agree, lowered_nodes

G, N = 5, 3
#: Rows of each group: none, one, fewer than eight, several blocks; few rows make lanes of matrices
SIZES = {"blocks": (40, 0, 1, 9, 64), "few rows": (3, 0, 1, 7, 2), "no rows": (0,) * G}


def op_graph(build, param, n, mean, known=True):
    """Inputs and outputs of a density of rows in groups, and all its gradients."""
    groups = G if known else None
    x, index = pt.tensor("x", shape=(None, n)), pt.lvector("index")
    matrices = pt.tensor("matrices", shape=(groups, n, n))
    mu = {"group": (groups, n), "row": (None, n), "shared": (n,)}[mean]
    mu = pt.tensor("mu", shape=mu)
    mean_of_row = mu[index] if mean == "group" else mu
    if build is mvnormal_logp:
        outputs = mvnormal_logp(x, mean_of_row, matrices[index], param)
        cotangents = [pt.dvector("g")]
    else:
        outputs = inv_quad_logdet(x - mean_of_row, matrices[index], param)
        cotangents = [pt.dvector("g"), pt.dvector("h")]
    known_grads = dict(zip(outputs, cotangents, strict=False))
    wrt = [x, mu, matrices]
    return [x, mu, matrices, index, *cotangents], [
        *outputs,
        *pt.grad(None, wrt, known_grads=known_grads),
    ]


def lowered_in_python(inputs, outputs):
    """Rewritten as for Numba, and evaluated node by node: lowered ops run their reference."""
    mode = get_mode("NUMBA").excluding("fusion", "inplace")
    fgraph = FunctionGraph(inputs, outputs, clone=True, copy_inputs=True)
    with pytensor.config.change_flags(mode=mode):
        mode.optimizer.rewrite(fgraph)
    return pytensor.function(
        fgraph.inputs, fgraph.outputs, mode=REFERENCE, on_unused_input="ignore"
    )


@cache
def functions(build, param, n=N, mean="group"):
    """Lowered and reference function."""
    inputs, outputs = op_graph(build, param, n, mean)
    # the rule for gathered covariances is for graphs that have no gradients yet
    with pytensor.config.change_flags(mvn_rewrites__skip="structure"):
        lowered = pytensor.function(inputs, outputs, mode="NUMBA")
    with disable():
        reference = pytensor.function(inputs, outputs, mode=REFERENCE)
    return lowered, reference


def random_inputs(build, param, n, mean, sizes, *, order="unsorted", seed=0):
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(G), sizes)
    if order == "unsorted":
        index = rng.permutation(index)
    elif order == "descending":
        # a view would be another type, for which Numba compiles the function again: see test_views
        index = np.ascontiguousarray(index[::-1])
    elif order == "negative":
        index = rng.permutation(index)
        index = np.where(rng.random(len(index)) < 0.5, index, index - G)
    matrices = spd(rng, G, n=n)
    if param == "chol":
        matrices = np.linalg.cholesky(matrices)
    # only the lower triangle may be read
    matrices = np.tril(matrices) + np.triu(rng.normal(size=matrices.shape), 1)
    rows = len(index)
    mu = rng.normal(size={"group": (G, n), "row": (rows, n), "shared": (n,)}[mean])
    cotangents = [rng.normal(size=rows) for _ in range(1 if build is mvnormal_logp else 2)]
    return [rng.normal(size=(rows, n)), mu, matrices, index, *cotangents]


def kernel_of(function):
    [node] = lowered_nodes(function)
    assert node.op.layout.is_grouped
    return KernelSpec.of(node.op, node).kernel


CASES = [
    (mvnormal_logp, "chol", 3, "group"),
    (mvnormal_logp, "cov", 2, "row"),
    (mvnormal_logp, "tau", 9, "shared"),
    (inv_quad_logdet, "chol", 5, "row"),
    (mvnormal_logp, "cov", 16, "group"),
    # by products of blocks of rows, or one after the other
    (mvnormal_logp, "cov", 17, "group"),
    (mvnormal_logp, "tau", 20, "shared"),
    (inv_quad_logdet, "chol", 49, "row"),
]


@pytest.mark.parametrize(
    ("build", "param", "n", "mean"), CASES, ids=lambda case: getattr(case, "__name__", case)
)
class TestRowsInGroups:
    """All sizes and orders with one compiled function."""

    def test_kernel(self, build, param, n, mean):
        kernel = kernel_of(functions(build, param, n, mean)[0])
        if n > STRAIGHT_MAX_N:
            assert kernel is None
        else:
            assert kernel.has_rows
            assert LaneSpec.parse(kernel.name) == kernel
            assert kernel.apart

    @pytest.mark.parametrize("order", ["sorted", "unsorted", "descending", "negative"])
    @pytest.mark.parametrize("sizes", ["blocks", "few rows"])
    def test_values(self, build, param, n, mean, sizes, order):
        inputs = random_inputs(build, param, n, mean, SIZES[sizes], order=order)
        assert_agree(functions(build, param, n, mean), inputs)

    def test_no_rows(self, build, param, n, mean):
        lowered, _ = functions(build, param, n, mean)
        inputs = random_inputs(build, param, n, mean, SIZES["no rows"])
        outputs = lowered(*inputs)
        assert outputs[0].shape == (0,)
        for grad in outputs[-2:]:
            assert_array_equal(grad, np.zeros_like(grad))

    def test_views(self, build, param, n, mean):
        """Strided and reversed inputs are read where they are, and never written."""
        inputs = random_inputs(build, param, n, mean, SIZES["blocks"])
        views = []
        for x in inputs:
            view = np.repeat(np.asfortranarray(x[::-1]), 2, axis=0)[::-2]
            view.flags.writeable = False
            views.append(view)
        copies = [view.copy() for view in views]
        assert_agree(functions(build, param, n, mean), views)
        for view, copy in zip(views, copies, strict=True):
            assert_array_equal(view, copy)

    @pytest.mark.parametrize("sizes", ["blocks", "few rows"])
    @pytest.mark.parametrize("bad", ["indefinite", "nan", "nan_row", "inf_row", "huge_row"])
    def test_bad_input_leaves_other_groups_alone(self, build, param, n, mean, sizes, bad):
        pair = functions(build, param, n, mean)
        inputs = random_inputs(build, param, n, mean, SIZES[sizes])
        good = pair[0](*inputs)
        _, _, matrices, index, *_ = inputs
        group = 3
        row = np.flatnonzero(index == group)[1]
        match bad:
            case "indefinite":
                matrices[group, n - 1, n - 1] *= -1.0
            case "nan":
                matrices[group, n - 1, 0] = np.nan
            case "nan_row":
                inputs[0][row, 0] = np.nan
            case "inf_row":
                inputs[0][row, 0] = np.inf
            case "huge_row":
                inputs[0][row, 0] = 1e200
        if not (param == "tau" and bad in ("nan", "inf_row")):
            # there the reference keeps what does not touch it, or multiplies it by zeros
            assert_agree(pair, inputs)
        for a, g in zip(pair[0](*inputs), good, strict=True):
            if a.ndim and a.shape[0] == len(index):
                own = index == group
            elif a.ndim > 1 and a.shape[0] == G:
                own = np.arange(G) == group
            else:
                continue
            assert_array_equal(a[~own], g[~own])

    def test_bad_matrix_without_rows_does_not_matter(self, build, param, n, mean):
        inputs = random_inputs(build, param, n, mean, SIZES["blocks"])
        good = functions(build, param, n, mean)[0](*inputs)
        inputs[2][1] = np.nan
        for a, g in zip(functions(build, param, n, mean)[0](*inputs), good, strict=True):
            assert_array_equal(a, g)

    @pytest.mark.parametrize("group", [G, -G - 1])
    def test_index_out_of_range(self, build, param, n, mean, group):
        inputs = random_inputs(build, param, n, mean, SIZES["blocks"])
        inputs[3][7] = group
        for function in functions(build, param, n, mean):
            with pytest.raises(IndexError):
                function(*inputs)

    @pytest.mark.parametrize("short", ["value", "index"])
    def test_lengths_that_do_not_agree(self, build, param, n, mean, short):
        inputs = random_inputs(build, param, n, mean, SIZES["blocks"])
        position = 0 if short == "value" else 3
        inputs[position] = inputs[position][:-1]
        with pytest.raises(ValueError, match=r"do not agree|incompatible shape"):
            functions(build, param, n, mean)[0](*inputs)


FORMS = {
    "logp_sum": lambda logp, posdef: logp.sum(),
    "checked_logp_sum": lambda logp, posdef: pt.switch(posdef, logp, -np.inf).sum(),
    "all_checked": lambda logp, posdef: pt.switch(posdef.all(), logp, -np.inf).sum(),
}


@cache
def sum_functions(form, index_dtype="int64", dtype="float64"):
    """What a model asks for: the sum, and the gradients for what the groups share."""
    x, mu = pt.tensor("x", shape=(None, N), dtype=dtype), pt.tensor("mu", shape=(G, N), dtype=dtype)
    matrices = pt.tensor("S", shape=(G, N, N), dtype=dtype)
    index = pt.tensor("index", shape=(None,), dtype=index_dtype)
    logp, posdef = mvnormal_logp(x, mu[index], matrices[index], "chol")
    outputs = [FORMS[form](logp, posdef), *pytensor.grad(logp.sum(), [mu, matrices])]
    inputs = [x, mu, matrices, index]
    lowered = pytensor.function(inputs, outputs, mode="NUMBA")
    with disable():
        return lowered, pytensor.function(inputs, outputs, mode=REFERENCE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", ["blocks", "few rows", "no rows"])
@pytest.mark.parametrize("bad", [False, True], ids=["good", "bad"])
def test_sum(form, sizes, bad):
    lowered, _ = pair = sum_functions(form)
    [node] = lowered_nodes(lowered)
    assert node.op.outputs[0] == ("checked_logp_sum" if "checked_" in form else "logp_sum")
    assert node.op.outputs[-2:] == ("dmu", "dmatrix")
    inputs = random_inputs(mvnormal_logp, "chol", N, "group", SIZES[sizes])[:4]
    if bad:
        inputs[2][[0, 1], 0, 0] *= -1.0
    if sizes == "no rows":
        assert_array_equal(lowered(*inputs)[0], 0.0)
    else:
        assert_agree(pair, inputs)


@pytest.mark.parametrize("index_dtype", ["int32", "uint8"])
def test_dtypes_of_the_index(index_dtype):
    *inputs, index = random_inputs(mvnormal_logp, "chol", N, "group", SIZES["blocks"])[:4]
    assert_agree(sum_functions("logp_sum", index_dtype), [*inputs, index.astype(index_dtype)])


def test_float32():
    """Gradients are cast before the scatter: nothing is taken as groups."""
    *inputs, index = random_inputs(mvnormal_logp, "chol", N, "group", SIZES["blocks"])[:4]
    inputs = [x.astype("float32") for x in inputs]
    pair = sum_functions("logp_sum", dtype="float32")
    assert not any(node.op.layout.is_grouped for node in lowered_nodes(pair[0]))
    assert_agree(pair, [*inputs, index], rtol=1e-4, atol=1e-5)


def test_nothing_has_a_matrix_for_each_row():
    """The compiled graph holds no variable of the size of the gather."""
    for function in (sum_functions("logp_sum")[0], functions(*CASES[0])[0]):
        for node in function.maker.fgraph.apply_nodes:
            for var in (*node.inputs, *node.outputs):
                assert var.type.ndim < 3 or var.type.shape[0] == G


def test_scatter_to_something_that_is_not_zero():
    """Another use of the matrices adds to the same gradient."""
    x, index = pt.tensor("x", shape=(None, N)), pt.lvector("index")
    S = pt.tensor("S", shape=(G, N, N))
    logp, _ = mvnormal_logp(x, pt.zeros(N), S[index], "chol")
    inputs, total = [x, S, index], logp.sum() + (S**2).sum()
    outputs = [total, pytensor.grad(total, S)]
    lowered = pytensor.function(inputs, outputs, mode="NUMBA")
    [node] = lowered_nodes(lowered)
    assert node.op.layout.is_grouped
    with disable():
        reference = pytensor.function(inputs, outputs, mode=REFERENCE)
    x, _, S, index, _ = random_inputs(mvnormal_logp, "chol", N, "group", SIZES["blocks"])
    for a, d in zip(lowered(x, S, index), reference(x, S, index), strict=True):
        assert_allclose(a, d, rtol=1e-11, atol=1e-12)


def test_forward_only_with_an_unknown_number_of_groups():
    inputs, (logp, *_) = op_graph(mvnormal_logp, "cov", N, "row", known=False)
    lowered = lowered_in_python(inputs, [logp])
    [node] = lowered_nodes(lowered)
    assert node.op.layout.is_grouped
    values = random_inputs(mvnormal_logp, "cov", N, "row", SIZES["blocks"])
    with disable():
        reference = pytensor.function(inputs, logp, mode=REFERENCE, on_unused_input="ignore")
    assert_allclose(lowered(*values)[0], reference(*values), rtol=1e-11)


def near_misses():
    x, index, other = pt.tensor("x", shape=(60, N)), pt.lvector("index"), pt.lvector("other")
    S, mu = pt.tensor("S", shape=(G, N, N)), pt.tensor("mu", shape=(G, N))
    short = pt.tensor("few_mu", shape=(G - 1, N))

    def graph(x, mu, S, *wrt):
        logp, _ = mvnormal_logp(x, mu, S, "chol")
        return [logp.sum(), *pytensor.grad(logp.sum(), list(wrt))]

    gathered = S[index]
    return {
        # (outputs, whether the matrix still is grouped)
        "the gradient for each row": (graph(x, mu[0], gathered, gathered), False),
        "a mean by another index": (graph(x, mu[other], gathered, mu, S), True),
        "a mean of another length": (graph(x, short[index], gathered, short, S), True),
        "few rows": (graph(x[:8], mu[index[:8]], S[index[:8]], mu, S), False),
        "two indices": (graph(x, mu[0], S[index] + S[other], S), False),
        "a column of indices": (graph(x, mu[0], S[index[:, None]], S), False),
        "scattered to something longer": (
            [
                pt.zeros((G + 2, N, N))[index].inc(graph(x, mu[0], gathered, gathered)[1]),
            ],
            False,
        ),
    }


@pytest.mark.parametrize("name", near_misses())
def test_near_miss(name):
    outputs, is_grouped = near_misses()[name]
    inputs = [var for var in graph_inputs(outputs) if var.name]
    function = lowered_in_python(inputs, outputs)
    nodes = lowered_nodes(function)
    assert nodes
    assert [node.op.layout.is_grouped for node in nodes] == [is_grouped] * len(nodes)
    rng = np.random.default_rng(0)
    values = {
        "x": rng.normal(size=(60, N)),
        "S": np.linalg.cholesky(spd(rng, G, n=N)),
        "mu": rng.normal(size=(G, N)),
        "few_mu": rng.normal(size=(G - 1, N)),
        "index": rng.integers(0, G - 1, size=60),
        "other": rng.integers(0, G, size=60),
    }
    given = [values[var.name] for var in inputs]
    with disable():
        reference = pytensor.function(inputs, outputs, mode=REFERENCE)
    for a, d in zip(function(*given), reference(*given), strict=True):
        assert_allclose(a, d, rtol=1e-10, atol=1e-11)


def means_graph(param, n, rows=None, groups=G):
    """A density of rows that share a matrix, whose means are gathered, and its gradients."""
    x, index = pt.tensor("x", shape=(rows, n)), pt.lvector("index")
    mu, matrix = pt.tensor("mu", shape=(groups, n)), pt.tensor("matrix", shape=(n, n))
    logp, posdef = mvnormal_logp(x, mu[index], matrix, param)
    grads = pytensor.grad(logp.sum(), [mu, matrix])
    return [x, mu, matrix, index], [logp.sum(), posdef.all(), *grads]


@cache
def means_functions(param, n):
    inputs, outputs = means_graph(param, n)
    with disable():
        reference = pytensor.function(inputs, outputs, mode=REFERENCE)
    return pytensor.function(inputs, outputs, mode="NUMBA"), reference


@pytest.mark.parametrize(("param", "n"), [("chol", 2), ("cov", 3), ("tau", 8)])
class TestMeansOfGroups:
    """Nothing of R n but the rows; the gradient for the matrix is summed over the groups."""

    @staticmethod
    def inputs(param, n, sizes="blocks", order="unsorted"):
        x, mu, matrices, index, _ = random_inputs(
            mvnormal_logp, param, n, "group", SIZES[sizes], order=order
        )
        return [x, mu, matrices[0], index]

    @pytest.mark.parametrize("order", ["sorted", "unsorted", "negative"])
    @pytest.mark.parametrize("sizes", ["blocks", "few rows"])
    def test_values(self, param, n, sizes, order):
        assert_agree(means_functions(param, n), self.inputs(param, n, sizes, order))

    def test_graph(self, param, n):
        lowered, _ = means_functions(param, n)
        [node] = lowered_nodes(lowered)
        assert node.op.layout.is_grouped
        x = lowered.maker.fgraph.inputs[0]
        matrices = [
            var
            for node in lowered.maker.fgraph.apply_nodes
            for var in node.outputs
            if var.type.ndim == 2 and var is not x
        ]
        assert {var.type.shape for var in matrices} == {(G, n), (n, n)}

    def test_no_rows(self, param, n):
        total, posdef, *grads = means_functions(param, n)[0](*self.inputs(param, n, "no rows"))
        assert total == 0
        assert posdef
        for grad in grads:
            assert_array_equal(grad, np.zeros_like(grad))

    @pytest.mark.parametrize("bad", ["indefinite", "nan_row", "huge_row", "inf_mean"])
    def test_bad_input(self, param, n, bad):
        x, mu, matrix, index = inputs = self.inputs(param, n)
        match bad:
            case "indefinite":
                matrix[n - 1, n - 1] *= -1.0
            case "nan_row":
                x[3, 0] = np.nan
            case "huge_row":
                x[3, 0] = 1e200
            case "inf_mean":
                mu[index[0], 0] = np.inf
        if not (param == "tau" and bad == "inf_mean"):
            # there the reference multiplies it by zeros
            assert_agree(means_functions(param, n), inputs)


@pytest.mark.parametrize(
    ("rows", "groups", "n"),
    [(60, G, 2), (None, None, 2), (None, G, 9)],
    ids=["few rows", "unknown number of groups", "large matrices"],
)
def test_means_are_gathered_where_groups_do_not_pay(rows, groups, n):
    inputs, outputs = means_graph("chol", n, rows, groups)
    [node] = lowered_nodes(lowered_in_python(inputs, outputs))
    assert not node.op.layout.is_grouped


def test_gradients_for_gathered_means_themselves():
    inputs, _ = means_graph("chol", 2)
    [x, mu, matrix, index] = inputs
    means = mu[index]
    total = mvnormal_logp(x, means, matrix, "chol")[0].sum()
    [node] = lowered_nodes(lowered_in_python(inputs, pytensor.grad(total, [means, matrix])))
    assert not node.op.layout.is_grouped
