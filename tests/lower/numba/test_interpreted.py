"""The interpreter does what the compiled kernel does, as long as it is not slower."""

import ctypes

import numpy as np
import pytest

from pytensor_mvn_rewrites.lower.numba import interpreted, jit
from pytensor_mvn_rewrites.lower.numba.interpreted import interpret_or_compile
from pytensor_mvn_rewrites.lower.numba.jit import CHOL, INTERPRETED, PARAM_CODES, Table
from pytensor_mvn_rewrites.lower.numba.threads import _KERNEL_TYPE
from tests.harness import spd

M, R, N = 5, 3, 4


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    monkeypatch.setattr(interpreted, "_seconds_spent", 0.0)
    monkeypatch.setattr(jit, "_KERNELS", {})


def table_of(arrays, param, *, is_logp):
    """The table of a kernel, and the arrays that it writes to."""
    table = np.zeros(Table.SIZE, np.intp)
    n_r = R if "value" in arrays and arrays["value"][1] == "MR" else 1
    table[[Table.N_R, Table.N_M, Table.N]] = n_r, M, N
    table[Table.M_STOP] = M
    table[[Table.IS_LOGP, Table.IS_CHECKED, Table.PARAM]] = is_logp, 1, param
    for name, (array, axes) in arrays.items():
        entry = Table.entry(name)
        table[entry] = array.ctypes.data
        for axis, stride in zip(axes, array.strides, strict=False):
            table[entry + 1 + "RM".index(axis)] = stride
        core = array.strides[len(axes) :]
        table[entry + Table.STRIDES - len(core) : entry + Table.STRIDES] = core
    return table


def operands(rng, param, axes, *, is_logp):
    """Inputs of a kernel, some of them bad, and its outputs; the means are shared by rows."""
    sizes = tuple({"M": M, "R": R}[axis] for axis in axes)
    matrices = spd(rng, M, n=N)
    if param == CHOL:
        matrices = np.linalg.cholesky(matrices)
    matrices[1, 2, 2] *= -1
    matrices[2, 2, 2] = 0.0
    matrices[3, 1, 0] = np.nan
    values = rng.normal(size=(*sizes, N))
    values[4, ..., 1] = np.nan
    arrays = {
        "value": (values, axes),
        "matrix": (matrices, "M"),
        "g_first": (rng.normal(size=sizes), axes),
        "first": (np.zeros(sizes), axes),
        "dvalue": (np.zeros((*sizes, N)), axes),
        "dmatrix": (np.zeros((M, N, N)), "M"),
        "posdef": (np.zeros(sizes, bool), axes),
    }
    if is_logp:
        arrays["mu"] = rng.normal(size=(M, N)), "M"
        arrays["dmu"] = np.zeros((M, N)), "M"
        arrays["total"] = np.zeros(()), ""
    else:
        arrays["g_second"] = rng.normal(size=sizes), axes
        arrays["second"] = np.zeros(sizes), axes
    return arrays


@pytest.mark.parametrize("axes", ["M", "MR"])
@pytest.mark.parametrize("is_logp", [True, False], ids=["logp", "quad"])
@pytest.mark.parametrize("param", PARAM_CODES)
def test_same_as_compiled(rng, param, is_logp, axes):
    param = PARAM_CODES[param]
    arrays = operands(rng, param, axes, is_logp=is_logp)
    results = []
    for run in (interpret, compiled):
        copies = {name: (array.copy(), own) for name, (array, own) in arrays.items()}
        run(table_of(copies, param, is_logp=is_logp))
        results.append({name: array for name, (array, _) in copies.items()})
    for name, (array, _) in arrays.items():
        one, other = (result[name] for result in results)
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13, err_msg=name)
        is_output = not array.any() and name != "matrix"
        assert is_output == (not np.array_equal(one, array, equal_nan=True)), name
    # the first matrix is fine
    assert np.isfinite(results[0]["first"][0]).all()
    assert np.isnan(results[0]["first"][4]).all()
    assert results[0]["posdef"][0].all()
    assert not results[0]["posdef"][1:3].any()


def interpret(table):
    assert interpret_or_compile("small", table.ctypes.data) == INTERPRETED
    assert not jit._KERNELS


def compiled(table):
    kernel = _KERNEL_TYPE(jit.kernel_address("small"))
    result, error = ctypes.c_void_p(), ctypes.c_void_p()
    assert not kernel(ctypes.byref(result), ctypes.byref(error), table.ctypes.data)


class TestPatience:
    """When the kernel is compiled after all."""

    @pytest.fixture
    def asked(self, monkeypatch):
        asked = []
        monkeypatch.setattr(jit, "kernel_address", lambda name: asked.append(name) or 4096)
        return asked

    @pytest.fixture
    def table(self, rng):
        self.arrays = operands(rng, CHOL, "M", is_logp=True)
        return table_of(self.arrays, CHOL, is_logp=True)

    def run(self, table):
        return interpret_or_compile("small", table.ctypes.data)

    def test_is_spent(self, table, asked, monkeypatch):
        assert self.run(table) == INTERPRETED
        assert 0 < interpreted._seconds_spent < interpreted.PATIENCE
        monkeypatch.setattr(interpreted, "_seconds_spent", interpreted.PATIENCE)
        assert self.run(table) == 4096
        assert asked == ["small"]

    def test_would_be_spent(self, table, asked):
        table[Table.N_R] = 10**8
        assert self.run(table) == 4096

    def test_is_compiled_already(self, table, asked):
        jit._KERNELS["small"] = None
        assert self.run(table) == 4096
