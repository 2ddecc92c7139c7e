"""The sum of the log-densities: recognised in the graph, and computed as the reference would."""

from functools import cache

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose
from pymc.logprob.utils import CheckParameterValue, ParameterValueError

from pytensor_mvn_rewrites import disable
from pytensor_mvn_rewrites.lower.numba.lanes import CHUNK
from pytensor_mvn_rewrites.ops import mvnormal_logp
from tests.lower.test_numba_backend import REFERENCE, assert_agree, lowered_nodes, random_inputs

FORMS = {
    "logp_sum": lambda logp, posdef: logp.sum(),
    "checked_logp_sum": lambda logp, posdef: pt.switch(posdef, logp, -np.inf).sum(),
    "all_checked": lambda logp, posdef: pt.switch(posdef.all(), logp, -np.inf).sum(),
}
#: As PyMC writes them under float32
CASTS = {
    "cast": lambda logp, posdef: logp.astype("float64").sum(),
    "checked_cast": lambda logp, posdef: pt.switch(
        posdef, logp.astype("float64"), np.array(-np.inf)
    ).sum(),
    "all_checked_cast": lambda logp, posdef: pt.switch(
        posdef.all(), logp.astype("float64"), np.array(-np.inf)
    ).sum(),
}
BATCH = ((None, 3), (None, 3), (None, 3, 3))
ROWS = ((None, None, 3), (None, 1, 3), (None, 1, 3, 3))
LARGE = ((None, 18), (None, 18), (None, 18, 18))


@cache
def functions(form, param="cov", shapes=BATCH, dtype="float64"):
    inputs = [pt.tensor(dtype=dtype, shape=shape) for shape in shapes]
    # the constants of the reference graph are of the dtype that PyMC would use
    with pytensor.config.change_flags(floatX=dtype):
        logp, posdef = mvnormal_logp(*inputs, param)
        outputs = [(FORMS | CASTS)[form](logp, posdef)]
        outputs += pytensor.grad(logp.sum(), inputs[1:])
    lowered = pytensor.function(inputs, outputs, mode="NUMBA")
    with disable():
        reference = pytensor.function(inputs, outputs, mode=REFERENCE)
    return lowered, reference


def sizes_of(shapes, size):
    rows = 5 if len(shapes[0]) == 3 else None
    lengths = [(size, rows), (size, 1), (size, 1)] if rows else [(size,)] * 3
    cores = [shape[-core:] for shape, core in zip(shapes, (1, 1, 2), strict=True)]
    return tuple((*own, *core) for own, core in zip(lengths, cores, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shapes", [BATCH, ROWS], ids=["batch", "rows"])
def test_is_recognised(form, shapes):
    lowered, _ = functions(form, shapes=shapes)
    [node] = lowered_nodes(lowered)
    name = "logp_sum" if form == "all_checked" else form
    checks = ("posdef",) if form == "all_checked" else ()
    assert node.op.outputs == (name, *checks, "dmu", "dmatrix")


@pytest.mark.parametrize(
    "case",
    [
        ("logp_sum", "cov", BATCH),
        ("logp_sum", "chol", BATCH),
        ("logp_sum", "tau", BATCH),
        ("checked_logp_sum", "cov", BATCH),
        ("all_checked", "cov", BATCH),
        ("logp_sum", "cov", ROWS),
        ("checked_logp_sum", "tau", ROWS),
        ("checked_logp_sum", "cov", LARGE),
    ],
    ids=lambda case: f"{case[0]}-{case[1]}-{len(case[2][0])}-{case[2][0][-1]}",
)
def test_values(case):
    """Any number of matrices, good and bad, at all scales."""
    form, param, shapes = case
    pair = functions(*case)
    for size in (1, 7, 8, 21):
        inputs = random_inputs(mvnormal_logp, param, sizes_of(shapes, size))[:3]
        assert_agree(pair, inputs)
        power = {"cov": 2, "chol": 1, "tau": -2}[param]
        for scale in (1e-150, 1e150):
            x, mu, matrix = inputs
            lowered, reference = (f(scale * x, scale * mu, scale**power * matrix) for f in pair)
            for a, d in zip(lowered, reference, strict=True):
                assert_allclose(a, d, rtol=1e-12, atol=1e-13 * np.abs(d).max())
    inputs[2][3, ..., 0, 0] = -1.0
    assert_agree(pair, inputs)
    if param != "tau":
        # of a NaN the reference's matrix product has more, or less
        inputs[2][5, ..., 1, 0] = np.nan
        assert_agree(pair, inputs)
    inputs[0][1, ..., 0] = np.nan
    expected = assert_agree(pair, inputs)
    assert np.isneginf(expected[0]) if form == "all_checked" else np.isnan(expected[0])


@pytest.mark.parametrize("shapes", [BATCH, ROWS], ids=["batch", "rows"])
def test_check_that_raises(shapes):
    """As the log-density of a distribution outside of a model has it."""
    inputs = [pt.tensor(shape=shape) for shape in shapes]
    logp, posdef = mvnormal_logp(*inputs)
    total = CheckParameterValue("posdef")(logp, posdef.all()).sum()
    outputs = [total, *pytensor.grad(total, inputs)]
    lowered = pytensor.function(inputs, outputs, mode="NUMBA")
    [node] = lowered_nodes(lowered)
    assert node.op.outputs[0] == "logp_sum"
    with disable():
        reference = pytensor.function(inputs, outputs, mode=REFERENCE)
    arguments = random_inputs(mvnormal_logp, "cov", sizes_of(shapes, 9))[:3]
    assert_agree((lowered, reference), arguments)
    arguments[2][3, ..., 0, 0] = -1.0
    with pytest.raises(ParameterValueError, match="posdef"):
        lowered(*arguments)


def test_only_bad_matrices():
    pair = functions("checked_logp_sum")
    inputs = random_inputs(mvnormal_logp, "cov", sizes_of(BATCH, 11))[:3]
    inputs[2][:, 0, 0] = -1.0
    assert np.isneginf(assert_agree(pair, inputs)[0])


def test_empty_batch():
    lowered, _ = functions("logp_sum")
    total, *_ = lowered(*random_inputs(mvnormal_logp, "cov", sizes_of(BATCH, 0))[:3])
    assert total == 0.0


def test_several_chunks():
    """Running products neither overflow nor lose digits."""
    lowered, _ = functions("logp_sum")
    n = 2 * CHUNK + 5
    rng = np.random.default_rng(0)
    inputs = random_inputs(mvnormal_logp, "cov", sizes_of(BATCH, n))[:3]
    inputs[2] *= 10.0 ** rng.integers(-290, 290, size=(n, 1, 1))
    inputs[0] = inputs[1].copy()
    matrix = np.tril(inputs[2]) + np.swapaxes(np.tril(inputs[2], -1), -1, -2)
    pivots = np.linalg.cholesky(matrix)[:, range(3), range(3)].astype(np.longdouble)
    expected = -np.log(pivots).sum() - n * 1.5 * np.log(2 * np.longdouble(np.pi))
    assert_allclose(lowered(*inputs)[0], float(expected), rtol=1e-13)
    # one bad matrix in the second chunk
    inputs[2][CHUNK + 3, 0, 0] = -1.0
    assert np.isnan(lowered(*inputs)[0])
    total = functions("checked_logp_sum")[0](*inputs)[0]
    assert np.isneginf(total)


@pytest.mark.parametrize("form", [*FORMS, *CASTS])
def test_float32(form):
    """Log-densities of float32 are cast before their sum, or not; the sum keeps its dtype."""
    pair = functions(form, dtype="float32")
    [node] = lowered_nodes(pair[0])
    assert "logp" not in node.op.outputs
    inputs = random_inputs(mvnormal_logp, "cov", sizes_of(BATCH, 11), dtype="float32")[:3]
    expected = assert_agree(pair, inputs, rtol=1e-4, atol=1e-5)
    assert expected[0].dtype == ("float64" if form in CASTS else "float32")
    inputs[2][3, 0, 0] = -1.0
    assert_agree(pair, inputs, rtol=1e-4, atol=1e-5)
    assert not np.isfinite(pair[0](*inputs)[0])


def test_float32_sum_is_not_rounded():
    """As in the reference, the sum of many has more digits than float32 has."""
    pair = functions("cast", dtype="float32")
    inputs = random_inputs(mvnormal_logp, "cov", sizes_of(BATCH, 5000), dtype="float32")[:3]
    lowered, reference = (f(*inputs)[0] for f in pair)
    assert_allclose(lowered, reference, rtol=1e-7)
    assert float(lowered) != float(np.float32(lowered))


class TestDeclines:
    """Where anything else is wanted of the log-densities, they are computed one by one."""

    inputs = tuple(pt.tensor(shape=shape) for shape in BATCH)

    def outputs_of(self, *outputs):
        function = pytensor.function(self.inputs, outputs, mode="NUMBA", on_unused_input="ignore")
        [node] = lowered_nodes(function)
        return node.op.outputs

    def test_log_densities_are_used_as_well(self):
        logp, _ = mvnormal_logp(*self.inputs)
        assert self.outputs_of(logp.sum(), logp) == ("logp",)

    def test_other_reductions(self):
        logp, _ = mvnormal_logp(*self.inputs)
        assert self.outputs_of(logp.max()) == ("logp",)

    def test_other_conditions(self):
        logp, posdef = mvnormal_logp(*self.inputs)
        condition = self.inputs[0][:, 0] > 0
        assert self.outputs_of(pt.switch(condition, logp, -np.inf).sum()) == ("logp",)
        assert self.outputs_of(pt.switch(posdef, logp, 0.0).sum()) == ("logp", "posdef")
        assert self.outputs_of(pt.switch(posdef.any(), logp, -np.inf).sum()) == ("logp", "posdef")

    def test_terms_that_are_repeated(self):
        logp, posdef = mvnormal_logp(*self.inputs)
        repeated = pt.switch(posdef, logp, np.full((2, 1), -np.inf))
        assert self.outputs_of(repeated.sum()) == ("logp", "posdef")

    def test_casts_that_lose_digits(self):
        logp, _ = mvnormal_logp(*self.inputs)
        assert self.outputs_of(logp.astype("float32").sum()) == ("logp",)
        assert self.outputs_of(logp.astype("int64").sum()) == ("logp",)

    def test_sum_over_one_of_two_axes(self):
        x, mu, cov = (pt.tensor(shape=shape) for shape in ROWS)
        logp, _ = mvnormal_logp(x, mu, cov)
        function = pytensor.function([x, mu, cov], logp.sum(axis=1), mode="NUMBA")
        [node] = lowered_nodes(function)
        assert node.op.outputs == ("logp",)
