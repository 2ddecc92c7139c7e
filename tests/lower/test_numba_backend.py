"""The lowered ops run their kernels, and the kernels agree with the reference graphs."""

import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pytensor.compile.mode import Mode, get_mode

from pytensor_mvn_rewrites import disable
from pytensor_mvn_rewrites.lower.numba import interpreted, jit
from pytensor_mvn_rewrites.lower.numba_backend import (
    BatchLayout,
    NumbaGaussianOp,
    NumbaInvQuadLogdet,
    NumbaMvNormalLogp,
)
from pytensor_mvn_rewrites.ops import (
    InvQuadLogdet,
    InvQuadLogdetPullback,
    MvNormalLogp,
    MvNormalLogpPullback,
    inv_quad_logdet,
    mvnormal_logp,
)

REFERENCE = Mode(linker="py", optimizer=None)
LOGP, QUAD = (mvnormal_logp, NumbaMvNormalLogp), (inv_quad_logdet, NumbaInvQuadLogdet)
N = 3
WIDTH = 32


def lowered_nodes(function):
    return [
        node for node in function.maker.fgraph.apply_nodes if isinstance(node.op, NumbaGaussianOp)
    ]


@cache
def compiled(build, param, shapes, dtype="float64"):
    """The op and all its gradients, lowered and as the reference; shapes are static."""
    inputs = [pt.tensor(dtype=dtype, shape=shape) for shape in shapes]
    forward = build(*inputs, param)
    cotangents = [out.type() for out in forward if out.type.dtype != "bool"]
    grads = pytensor.grad(None, inputs, known_grads=dict(zip(forward, cotangents, strict=False)))
    inputs += cotangents
    lowered = pytensor.function(inputs, [*forward, *grads], mode="NUMBA")
    [node] = lowered_nodes(lowered)
    assert len(node.op.outputs) == len(forward) + len(grads)
    with disable():
        reference = pytensor.function(inputs, [*forward, *grads], mode=REFERENCE)
    return lowered, reference


def random_inputs(build, param, shapes, seed=0, dtype="float64"):
    """Well-conditioned inputs of the given run-time shapes, and cotangents of 1."""
    rng = np.random.default_rng(seed)
    *vectors, matrix_shape = shapes
    vectors = [rng.normal(size=shape) for shape in vectors]
    n = matrix_shape[-1]
    root = rng.normal(size=matrix_shape)
    matrix = root @ np.swapaxes(root, -1, -2) + n * np.eye(n)
    if param == "chol":
        matrix = np.linalg.cholesky(matrix)
    # only the lower triangle may be read
    matrix = np.tril(matrix) + np.triu(rng.normal(size=matrix_shape), 1)
    batch = np.broadcast_shapes(*(v.shape[:-1] for v in vectors), matrix_shape[:-2])
    cotangents = [rng.normal(size=batch) for _ in range(1 if build is mvnormal_logp else 2)]
    return [x.astype(dtype) for x in (*vectors, matrix, *cotangents)]


def assert_agree(functions, inputs, rtol=1e-11, atol=1e-13):
    lowered, reference = functions
    with np.errstate(all="ignore"):
        expected = reference(*inputs)
    for actual, desired in zip(lowered(*inputs), expected, strict=True):
        assert actual.dtype == desired.dtype
        assert actual.shape == desired.shape
        if actual.dtype == bool:
            assert_array_equal(actual, desired)
        else:
            scale = np.abs(desired[np.isfinite(desired)]).max(initial=0.0)
            desired = zero_above_diagonal(actual, desired)
            assert_allclose(actual, desired, rtol=rtol, atol=atol * max(scale, 1.0))
    return expected


def zero_above_diagonal(actual, desired):
    """Above the diagonal the reference has 0 times a number, NaN if that is not finite."""
    if actual.ndim < 2 or actual.shape[-1] != actual.shape[-2]:
        return desired
    above = ~np.tri(actual.shape[-1], dtype=bool)
    return np.where(above & np.isnan(desired) & (actual == 0.0), 0.0, desired)


def batched(build, batch, n):
    vectors = 2 if build is mvnormal_logp else 1
    return ((batch, n),) * vectors + ((batch, n, n),)


@pytest.mark.parametrize("param", ["cov", "chol", "tau"])
@pytest.mark.parametrize(("build", "op"), [LOGP, QUAD], ids=["logp", "quad"])
class TestSmallMatrices:
    """One compiled function for each op and parametrization, at all batch sizes."""

    @staticmethod
    def functions(build, param):
        return compiled(build, param, batched(build, None, N))

    def test_empty_batch(self, build, op, param):
        # PyTensor's own Blockwise refuses empty batches in Python
        inputs = random_inputs(build, param, batched(build, 0, N))
        lowered, _ = self.functions(build, param)
        outputs = lowered(*inputs)
        forward = len(op.forward_outputs)
        assert [out.shape for out in outputs[:forward]] == [(0,)] * forward
        assert [out.shape for out in outputs[forward:]] == list(batched(build, 0, N))

    @pytest.mark.parametrize("batch", [1, WIDTH - 1, WIDTH, WIDTH + 1, 3 * WIDTH + 5])
    def test_batch_sizes(self, build, op, param, batch):
        inputs = random_inputs(build, param, batched(build, batch, N))
        assert_agree(self.functions(build, param), inputs)

    def test_lowered_to_one_node(self, build, op, param):
        lowered, _ = self.functions(build, param)
        [node] = lowered_nodes(lowered)
        assert type(node.op) is op
        assert node.op.param == param
        assert node.op.outputs == node.op.all_outputs
        assert not any(
            isinstance(n.op, InvQuadLogdet | MvNormalLogp | InvQuadLogdetPullback)
            for n in lowered.maker.fgraph.apply_nodes
        )

    @pytest.mark.parametrize(
        "bad",
        ["indefinite", "negative_pivot", "nan", "nan_below", "inf", "inf_below", "zero"],
    )
    def test_bad_matrix_leaves_the_others_alone(self, build, op, param, bad):
        inputs = random_inputs(build, param, batched(build, WIDTH + 3, N))
        position = len(batched(build, 1, 1)) - 1
        good = self.functions(build, param)[0](*inputs)
        for lane in (1, WIDTH + 1):
            matrix = inputs[position][lane]
            match bad:
                case "indefinite":
                    matrix[1, 0] = 50.0
                case "negative_pivot":
                    matrix[1, 1] *= -1
                case "nan":
                    matrix[0, 0] = np.nan
                case "nan_below":
                    matrix[2, 1] = np.nan
                case "inf":
                    matrix[2, 2] = np.inf
                case "inf_below":
                    matrix[2, 0] = np.inf
                case "zero":
                    matrix[1, 1] = 0.0
        lowered, reference = self.functions(build, param)
        actual = lowered(*inputs)
        with np.errstate(all="ignore"):
            desired = reference(*inputs)
        others = np.delete(np.arange(WIDTH + 3), [1, WIDTH + 1])
        lanes = [1, WIDTH + 1]
        for name, a, d, g in zip(op_outputs(op), actual, desired, good, strict=True):
            assert_array_equal(a[others], g[others], err_msg=name)
            if bad.startswith("nan") and param == "tau" and name not in ("posdef",):
                # the reference keeps what does not touch the NaN; the kernel discards the matrix
                assert np.isnan(a[lanes]).all(), name
                continue
            if bad.startswith("inf") and param == "tau":
                # the reference multiplies the infinity by the zeros above the diagonal
                a, d = (np.where(np.isfinite(d), x, np.nan) for x in (a, d))
            if name == "dmatrix":
                d = zero_above_diagonal(a, d)
            assert_allclose(a[lanes], d[lanes], rtol=1e-11, atol=1e-12, err_msg=name)

    @pytest.mark.parametrize("scale", [1e-150, 1e-20, 1e20, 1e150])
    def test_scales(self, build, op, param, scale):
        inputs = random_inputs(build, param, batched(build, 5, N))
        power = {"cov": 2, "chol": 1, "tau": -2}[param]
        position = len(batched(build, 1, 1)) - 1
        for i in range(position):
            inputs[i] *= scale
        inputs[position] *= scale**power
        lowered, reference = self.functions(build, param)
        for a, d in zip(lowered(*inputs), reference(*inputs), strict=True):
            assert_allclose(a, d, rtol=1e-12, atol=1e-13 * np.abs(d).max(initial=0))

    @pytest.mark.parametrize("special", [np.nan, np.inf])
    def test_special_value(self, build, op, param, special):
        inputs = random_inputs(build, param, batched(build, 5, N))
        inputs[0][2, 1] = special
        if param == "tau" and special == np.inf:
            # the reference multiplies the infinity by the zeros above the diagonal: NaN
            logp_or_quad = self.functions(build, param)[0](*inputs)[0]
            assert logp_or_quad[2] == (-np.inf if op is NumbaMvNormalLogp else np.inf)
            return
        assert_agree(self.functions(build, param), inputs)

    def test_views(self, build, op, param):
        """Strided, transposed, reversed and read-only inputs are read right and never written."""
        inputs = random_inputs(build, param, batched(build, WIDTH + 1, N))
        views = []
        for x in inputs:
            strided = np.repeat(x, 2, axis=0)[::2]
            reverse = np.ascontiguousarray(x[::-1])[::-1]
            fortran = np.asfortranarray(strided)
            view = reverse if x.ndim == 1 else fortran
            view.flags.writeable = False
            views.append(view)
        copies = [v.copy() for v in views]
        assert_agree(self.functions(build, param), views)
        for view, copy in zip(views, copies, strict=True):
            assert_array_equal(view, copy)


@pytest.mark.parametrize("build", [mvnormal_logp, inv_quad_logdet])
def test_wrong_core_size(build):
    """A length that the graph could not know is checked before anything is read."""
    shapes = (*batched(build, None, None)[:-1], (None, N, N))
    lowered, _ = compiled(build, "cov", shapes)
    inputs = random_inputs(build, "cov", batched(build, 4, N))
    inputs[0] = inputs[0][:, :-1]
    with pytest.raises(ValueError, match="core shapes"):
        lowered(*inputs)
    inputs = random_inputs(build, "cov", batched(build, 4, N))
    inputs[0] = inputs[0][:-1]
    with pytest.raises(ValueError, match="batch shapes"):
        lowered(*inputs)


def op_outputs(op):
    return op.forward_outputs + op.gradient_outputs


@pytest.mark.parametrize(
    ("build", "param", "n"),
    [
        (mvnormal_logp, "cov", 0),
        (mvnormal_logp, "chol", 1),
        (inv_quad_logdet, "tau", 2),
        (mvnormal_logp, "cov", 11),
        (mvnormal_logp, "cov", 16),
        (mvnormal_logp, "cov", 17),
        (mvnormal_logp, "tau", 8),
        (inv_quad_logdet, "cov", 9),
        (inv_quad_logdet, "cov", 18),
        (mvnormal_logp, "chol", 19),
        (mvnormal_logp, "cov", 48),
        (mvnormal_logp, "tau", 20),
        (mvnormal_logp, "cov", 60),
        (mvnormal_logp, "cov", 129),
    ],
)
def test_core_sizes(build, param, n):
    functions = compiled(build, param, batched(build, None, n))
    # more matrices than the lanes of a block, and one of them bad
    inputs = random_inputs(build, param, batched(build, 10, n))
    assert_agree(functions, inputs)
    if n:
        good = functions[0](*inputs)
        matrix = inputs[2 if build is mvnormal_logp else 1]
        matrix[1, 0, 0] = -1.0
        assert_agree(functions, inputs)
        for bad, before in zip(functions[0](*inputs), good, strict=True):
            assert_array_equal(np.delete(bad, 1, axis=0), np.delete(before, 1, axis=0))


@pytest.mark.parametrize("n", [17, 48])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_few_medium_matrices(n, batch):
    """They are done one after the other: lanes would mostly be empty."""
    functions = compiled(mvnormal_logp, "cov", batched(mvnormal_logp, None, n))
    inputs = random_inputs(mvnormal_logp, "cov", batched(mvnormal_logp, batch, n))
    assert_agree(functions, inputs)
    one = [x[0] for x in inputs]
    shapes = ((n,), (n,), (n, n))
    for a, d in zip(
        compiled(mvnormal_logp, "cov", shapes)[0](*one), functions[0](*inputs), strict=True
    ):
        assert_allclose(a, d[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "shapes",
    [((None, 11), (None, 11), (None, 11, 11)), ((None, 11), (11,), (11, 11))],
    ids=["matrices", "rows"],
)
@pytest.mark.parametrize("param", ["cov", "chol", "tau"])
def test_bad_input_compiles_nothing(shapes, param, monkeypatch):
    """In the middle of sampling nobody should wait for a kernel to be compiled."""
    functions = compiled(mvnormal_logp, param, shapes)
    sizes = tuple(tuple(9 if size is None else size for size in shape) for shape in shapes)
    inputs = random_inputs(mvnormal_logp, param, sizes)
    assert_agree(functions, inputs)
    asked = []
    monkeypatch.setattr(jit, "kernel_address", lambda name: asked.append(name) or 0)
    monkeypatch.setattr(interpreted, "_seconds_spent", 0.0)
    monkeypatch.setattr("sys.unraisablehook", lambda error: None)

    def bad_inputs():
        for number in (-1.0, 0.0, np.nan):
            value, mu, matrix, *others = (x.copy() for x in inputs)
            (matrix if matrix.ndim == 3 else matrix[None])[-1, 3, 3] = number
            yield value, mu, matrix, *others
        value, *others = (x.copy() for x in inputs)
        value[2, 4] = np.nan
        yield value, *others

    for bad in bad_inputs():
        if param == "tau" and np.isnan(bad[2]).any():
            # of a NaN the reference's matrix product has more, or less
            functions[0](*bad)
        else:
            assert_agree(functions, bad)
    assert not asked
    if "small" not in jit._KERNELS:
        # it does where it would take longer not to
        monkeypatch.setattr(interpreted, "PATIENCE", 0.0)
        with pytest.raises(RuntimeError, match="could not be compiled"):
            functions[0](*bad)
        assert asked == ["small"]


@pytest.mark.parametrize("n", [0, 1, 20, 60])
def test_unknown_core_size(n):
    functions = compiled(mvnormal_logp, "cov", batched(mvnormal_logp, None, None))
    inputs = random_inputs(mvnormal_logp, "cov", batched(mvnormal_logp, 3, n))
    assert_agree(functions, inputs)
    if n:
        inputs[2][1, 0, 0] = -1.0
        assert_agree(functions, inputs)


BROADCASTS = {
    "no batch": ((2,), (2,), (2, 2)),
    "rows of one matrix": ((5, 2), (5, 2), (2, 2)),
    "rows, one mean": ((5, 2), (2,), (2, 2)),
    "rows, length one": ((5, 2), (1, 2), (1, 2, 2)),
    "matrices, one value": ((2,), (5, 2), (5, 2, 2)),
    "matrices, one value and mean": ((1, 2), (2,), (5, 2, 2)),
    "rows in groups": ((4, 5, 2), (5, 2), (4, 1, 2, 2)),
    "groups of rows": ((4, 5, 2), (4, 1, 2), (5, 2, 2)),
    "two axes of matrices": ((4, 5, 2), (4, 1, 2), (4, 5, 2, 2)),
    "mixed axes": ((3, 1, 5, 2), (4, 5, 2), (3, 1, 1, 2, 2)),
    "interleaved": ((1, 5, 2), (4, 1, 2), (3, 1, 5, 2, 2)),
}


@pytest.mark.parametrize("case", BROADCASTS)
def test_broadcasting(case):
    """Batch axes broadcast as gufuncs do, and gradients have the shapes of the inputs."""
    shapes = BROADCASTS[case]
    # lengths other than one are unknown to the graph
    core = (1, 1, 2)
    static = tuple(
        tuple(size if size == 1 else None for size in shape[: len(shape) - c]) + shape[-c:]
        for shape, c in zip(shapes, core, strict=True)
    )
    functions = compiled(mvnormal_logp, "cov", static)
    inputs = random_inputs(mvnormal_logp, "cov", shapes)
    expected = assert_agree(functions, inputs)
    assert [grad.shape for grad in expected[2:]] == list(shapes)
    matrix = inputs[2]
    matrix[(-1,) * (matrix.ndim - 2)][0, 0] = -1.0
    assert_agree(functions, inputs)


def test_float32():
    shapes = batched(mvnormal_logp, None, N)
    functions = compiled(mvnormal_logp, "cov", shapes, dtype="float32")
    inputs = random_inputs(
        mvnormal_logp, "cov", batched(mvnormal_logp, WIDTH + 1, N), dtype="float32"
    )
    assert_agree(functions, inputs, rtol=1e-4, atol=1e-5)


def test_mixed_dtypes():
    value, mu = pt.imatrix(), pt.fmatrix()
    matrix = pt.tensor(shape=(None, N, N), dtype="float64")
    outputs = mvnormal_logp(value, mu, matrix)
    lowered = pytensor.function([value, mu, matrix], outputs, mode="NUMBA")
    with disable():
        reference = pytensor.function([value, mu, matrix], outputs, mode=REFERENCE)
    assert lowered_nodes(lowered)
    x, m, s, _ = random_inputs(mvnormal_logp, "cov", batched(mvnormal_logp, 7, N))
    assert_agree((lowered, reference), [(3 * x).astype("int32"), m.astype("float32"), s])


class TestRewrite:
    value, mu = pt.matrix("value"), pt.matrix("mu")
    cov = pt.tensor("cov", shape=(None, 2, 2))

    def lowered(self, outputs, mode="NUMBA", inputs=None):
        return pytensor.function(
            inputs or [self.value, self.mu, self.cov], outputs, mode=mode, on_unused_input="ignore"
        )

    def test_only_wanted_outputs(self):
        logp, _ = mvnormal_logp(self.value, self.mu, self.cov)
        f = self.lowered([logp, pytensor.grad(logp.sum(), self.cov)])
        [node] = lowered_nodes(f)
        assert node.op.outputs == ("logp", "dmatrix")
        # the constant cotangent of the sum is one number, not an array of ones
        assert node.inputs[-1].type.ndim == 0

    def test_gradient_alone(self):
        logp, _ = mvnormal_logp(self.value, self.mu, self.cov)
        [node] = lowered_nodes(self.lowered(pytensor.grad(logp.sum(), self.mu)))
        assert node.op.outputs == ("dmu",)

    def test_cotangent_of_the_output_makes_two_nodes(self):
        """d/dmu sum(logp^2) needs logp before the pullback: one node would be a cycle."""
        logp, _ = mvnormal_logp(self.value, self.mu, self.cov)
        outputs = [logp, pytensor.grad((logp**2).sum(), self.mu)]
        f = self.lowered(outputs)
        assert sorted(node.op.outputs for node in lowered_nodes(f)) == [("dmu",), ("logp",)]
        with disable():
            reference = self.lowered(outputs, REFERENCE)
        inputs = random_inputs(mvnormal_logp, "cov", ((4, 2), (4, 2), (4, 2, 2)))[:3]
        assert_agree((f, reference), inputs)

    def test_two_pairs_that_wait_for_each_other(self):
        """Either pair could be merged alone; merging both would be a cycle."""
        a, _ = mvnormal_logp(self.value, self.mu, self.cov)
        b, _ = mvnormal_logp(self.value + 1, self.mu, self.cov)
        pull = MvNormalLogpPullback()
        grad_a = pull(self.value, self.mu, self.cov, b, return_list=True)[1]
        grad_b = pull(self.value + 1, self.mu, self.cov, a, return_list=True)[1]
        f = self.lowered([a, b, grad_a, grad_b])
        assert len(lowered_nodes(f)) == 3
        with disable():
            reference = self.lowered([a, b, grad_a, grad_b], REFERENCE)
        inputs = random_inputs(mvnormal_logp, "cov", ((4, 2), (4, 2), (4, 2, 2)))[:3]
        assert_agree((f, reference), inputs)

    def test_switched_off(self):
        logp, _ = mvnormal_logp(self.value, self.mu, self.cov)
        with pytensor.config.change_flags(mvn_rewrites__skip="lower"):
            f = self.lowered(logp)
        assert not lowered_nodes(f)

    def test_other_backends_keep_the_reference(self):
        logp, _ = mvnormal_logp(self.value, self.mu, self.cov)
        assert not lowered_nodes(self.lowered(logp, Mode("py", "fast_run")))
        with pytensor.config.change_flags(mvn_rewrites__mode="opt_in"):
            mode = Mode("py", "fast_run").including("mvn_rewrites")
            assert not lowered_nodes(self.lowered(logp, mode))
            mode = get_mode("NUMBA").including("mvn_rewrites")
            assert lowered_nodes(self.lowered(logp, mode))
            assert not lowered_nodes(self.lowered(logp))

    def test_perform_runs_the_reference(self):
        logp, _ = mvnormal_logp(self.value, self.mu, self.cov)
        f = self.lowered([logp, pytensor.grad(logp.sum(), self.cov)])
        inputs = random_inputs(mvnormal_logp, "cov", ((4, 2), (4, 2), (4, 2, 2)))[:3]
        by_perform = pytensor.function(
            f.maker.fgraph.inputs, f.maker.fgraph.outputs, mode=REFERENCE
        )
        for a, d in zip(by_perform(*inputs), f(*inputs), strict=True):
            assert_allclose(a, d, rtol=1e-12)

    def test_shape_needs_no_kernel(self):
        logp, _ = mvnormal_logp(self.value, self.mu, self.cov)
        f = self.lowered(logp.shape)
        assert not lowered_nodes(f)

    def test_layout(self):
        inputs = [pt.tensor(shape=s) for s in ((4, None, 2), (None, 1, 2), (4, 1, 2, 2))]
        assert BatchLayout.of(inputs, (1, 1, 2)) == BatchLayout("MR", ("MR", "M1", "M1"))


SCRIPT = """
import numpy as np, pytensor, pytensor.tensor as pt
from numba.core import event
from pytensor_mvn_rewrites.ops import mvnormal_logp
import pytensor_mvn_rewrites

compiled = []
class Listener(event.Listener):
    def on_start(self, e):
        compiled.append(e.data["dispatcher"].py_func.__name__)
    def on_end(self, e):
        pass
event.register("numba:compile", Listener())

value, mu, cov = pt.matrix(), pt.matrix(), pt.tensor(shape=(None, 2, 2))
logp, _ = mvnormal_logp(value, mu, cov)
f = pytensor.function([value, mu, cov], EXPRESSION, mode="NUMBA")
f(np.zeros((4, 2)), np.ones((4, 2)), np.tile(np.eye(2), (4, 1, 1)))
print(sorted(set(compiled)))
"""


def test_second_process_loads_the_kernels(tmp_path):
    """The same kernel in another graph of another process costs no compilation."""

    def run(expression):
        flags = f"base_compiledir={tmp_path}"
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT.replace("EXPRESSION", expression)],
            env=os.environ | {"PYTENSOR_FLAGS": flags},
            capture_output=True,
            text=True,
            check=True,
        )
        return result.stdout

    kernels = {"run_blocks", "NumbaMvNormalLogp"}
    assert kernels <= set(eval(run("[logp, pytensor.grad(logp.sum(), cov)]")))
    assert run("[logp, pytensor.grad(logp.sum(), cov)]") == "[]\n"
    other_graph = set(eval(run("[logp + 1, pytensor.grad(logp.sum(), cov)]")))
    assert other_graph
    assert not other_graph & kernels


def test_kernel_that_cannot_be_compiled(monkeypatch):
    """The cause is reported, and the call raises instead of jumping to address zero."""
    shapes = batched(mvnormal_logp, None, 5)
    value, mu, matrix = (pt.tensor(shape=shape) for shape in shapes)
    logp, _ = mvnormal_logp(value, mu, matrix)
    function = pytensor.function([value, mu, matrix], logp, mode="NUMBA")

    def fail(name):
        raise LookupError(name)

    monkeypatch.setattr(jit, "kernel_address", fail)
    reported = []
    monkeypatch.setattr("sys.unraisablehook", lambda error: reported.append(error.exc_type))
    inputs = random_inputs(mvnormal_logp, "cov", batched(mvnormal_logp, 9, 5))[:3]
    with pytest.raises(RuntimeError, match="could not be compiled"):
        function(*inputs)
    assert reported == [LookupError]
    monkeypatch.undo()
    assert np.isfinite(function(*inputs)).all()


def test_fields_and_transposes():
    """Every size is loaded and stored as NumPy would, and nothing outside is touched."""
    from numba import njit, types
    from numba.extending import intrinsic

    from pytensor_mvn_rewrites.lower.numba import vectors
    from pytensor_mvn_rewrites.lower.numba.jit import data_address

    def doubled(size):
        @intrinsic
        def codegen_of(typingctx, source, target):
            def codegen(context, builder, signature, args):
                memory = [vectors.Memory(builder, address) for address in args]
                fields = vectors.load_fields(memory[0], size, range(size))
                vectors.store_fields(memory[1], [2.0 * fields[k] for k in range(size)])
                return context.get_dummy_value()

            return types.void(types.intp, types.intp), codegen

        return codegen_of

    for size in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 16, 25):
        run = doubled(size)

        @njit
        def call(source, target):
            run(data_address(source[1:]), data_address(target[1:]))  # noqa: B023
            return source[0] + target[0]

        source = np.arange(8.0 * size + 2)
        target = np.full_like(source, -1.0)
        call(source, target)
        assert_array_equal(target[1:-1], 2 * source[1:-1])
        assert target[0] == target[-1] == -1.0


def test_importing_the_package_does_not_import_numba():
    code = "import sys, pytensor_mvn_rewrites; print('numba' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
