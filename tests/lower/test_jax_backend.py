"""JAX runs our implementation, it agrees with the reference graphs, and JAX differentiates it."""

import os
import subprocess
import sys
from functools import cache

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pytensor.compile.mode import Mode, get_mode
from scipy import stats

from pytensor_mvn_rewrites import disable
from pytensor_mvn_rewrites.lower.jax_backend import JaxGaussianOp
from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from pytensor_mvn_rewrites.ops.gaussian import PARAMS
from tests.harness import REFERENCE_MODE, assert_close, spd

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

BUILDERS = {"logp": mvnormal_logp, "quad": inv_quad_logdet}
#: One size for each form, and the sizes at the edges
SIZES = {"unrolled": 3, "sweep": 8, "lapack": 18}
#: XLA compiles a function for each length of its batch
BATCH = 5


def lowered_nodes(function):
    return [node for node in function.maker.fgraph.apply_nodes if type(node.op) is JaxGaussianOp]


def outputs_and_gradients(build, param, shapes, dtype="float64"):
    """Inputs, and the outputs of the op and of its pullback for given cotangents."""
    inputs = [pt.tensor(dtype=dtype, shape=shape) for shape in shapes]
    forward = build(*inputs, param)
    cotangents = [out.type() for out in forward if out.type.dtype != "bool"]
    grads = pytensor.grad(None, inputs, known_grads=dict(zip(forward, cotangents, strict=False)))
    return inputs + cotangents, [*forward, *grads]


@cache
def compiled(name, param, shapes, dtype="float64"):
    """Compiled for JAX, and the reference."""
    inputs, outputs = outputs_and_gradients(BUILDERS[name], param, shapes, dtype)
    lowered = pytensor.function(inputs, outputs, mode="JAX")
    assert len(lowered_nodes(lowered)) == 1
    with disable():
        reference = pytensor.function(inputs, outputs, mode=REFERENCE_MODE)
    return lowered, reference


def batched(name, batch, n):
    return ((batch, n),) * (2 if name == "logp" else 1) + ((batch, n, n),)


def random_inputs(rng, name, param, shapes, dtype="float64"):
    *vectors, matrix_shape = shapes
    vectors = [rng.normal(size=shape) for shape in vectors]
    n = matrix_shape[-1]
    matrix = spd(rng, *matrix_shape[:-2], n=n)
    if param == "chol":
        matrix = np.linalg.cholesky(matrix)
    # only the lower triangle may be read
    matrix = np.tril(matrix) + np.triu(rng.normal(size=matrix_shape), 1)
    batch = np.broadcast_shapes(*(v.shape[:-1] for v in vectors), matrix_shape[:-2])
    cotangents = [rng.normal(size=batch) for _ in range(1 if name == "logp" else 2)]
    return [np.asarray(x, dtype) for x in (*vectors, matrix, *cotangents)]


def assert_agree(functions, inputs, condition=1e2, dtype="float64"):
    lowered, reference = functions
    with np.errstate(all="ignore"):
        expected = reference(*inputs)
    for i, (actual, desired) in enumerate(zip(lowered(*inputs), expected, strict=True)):
        assert actual.dtype == desired.dtype
        if desired.dtype == bool:
            assert_array_equal(actual, desired)
            continue
        if i == len(expected) - 1:
            # above the diagonal the reference has 0 times what may be NaN
            actual, desired = np.tril(actual), np.tril(desired)
        assert_close(actual, desired, "gradient", dtype, condition)
    return expected


@pytest.mark.parametrize("n", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("name", BUILDERS)
class TestAgainstReference:
    @staticmethod
    def functions(name, param, n):
        return compiled(name, param, batched(name, None, n))

    @pytest.mark.parametrize("batch", [1, BATCH])
    def test_random(self, rng, name, param, n, batch):
        inputs = random_inputs(rng, name, param, batched(name, batch, n))
        assert_agree(self.functions(name, param, n), inputs)

    def test_empty_batch(self, rng, name, param, n):
        inputs = random_inputs(rng, name, param, batched(name, 0, n))
        outputs = self.functions(name, param, n)[0](*inputs)
        assert all(out.shape[0] == 0 for out in outputs)
        assert outputs[-1].shape == (0, n, n)

    @pytest.mark.parametrize("bad", ["negative", "zero", "nan", "inf"])
    def test_bad_matrix_leaves_the_others_alone(self, rng, name, param, n, bad):
        inputs = random_inputs(rng, name, param, batched(name, BATCH, n))
        lowered, reference = self.functions(name, param, n)
        good = lowered(*inputs)
        position = -2 if name == "logp" else -3
        matrix = inputs[position][1]
        matrix[1, 1] = {"negative": -1.0, "zero": 0.0, "nan": np.nan, "inf": np.inf}[bad]
        actual = lowered(*inputs)
        with np.errstate(all="ignore"):
            desired = reference(*inputs)
        for i, (a, d, g) in enumerate(zip(actual, desired, good, strict=True)):
            a, g = np.asarray(a), np.asarray(g)
            others = np.arange(BATCH) != 1
            assert_allclose(a[others], g[others], rtol=1e-13, atol=1e-13)
            a, d = a[1], d[1]
            if i == len(desired) - 1:
                a, d = np.tril(a), np.tril(d)
            if param == "tau" and bad in ("nan", "inf"):
                # the reference multiplies zeros by what is not finite; here the matrix is void
                continue
            if bad == "zero" and param == "chol" and i == len(desired) - 1:
                assert not np.isfinite(a[1, 1])
                continue
            assert_allclose(a, d, rtol=1e-10, atol=1e-10)
        if bad in ("negative", "zero"):
            forward = [out for out in actual[:3] if out.ndim == 1]
            assert not forward[-1][1]
            assert np.isnan(forward[0][1]) or param == "chol"


@pytest.mark.parametrize(("name", "param", "n"), [("logp", "cov", 0), ("quad", "tau", 0)])
def test_no_dimensions(rng, name, param, n):
    inputs, outputs = outputs_and_gradients(BUILDERS[name], param, batched(name, None, n))
    lowered = pytensor.function(inputs, outputs, mode="JAX")
    result = lowered(*random_inputs(rng, name, param, batched(name, 3, 1))[:0], *zeros(name))
    assert_array_equal(result[0], np.zeros(3))
    assert result[-1].shape == (3, 0, 0)


def zeros(name):
    cotangents = [np.zeros(3)] * (1 if name == "logp" else 2)
    return [*(np.zeros(shape) for shape in batched(name, 3, 0)), *cotangents]


@pytest.mark.parametrize("n", [1, 6, 7, 16, 17])
def test_edges_of_the_forms(rng, n):
    shapes = batched("logp", None, n)
    inputs = random_inputs(rng, "logp", "cov", batched("logp", 3, n))
    assert_agree(compiled("logp", "cov", shapes), inputs)


BROADCASTS = {
    "no batch": ((), (), ()),
    "rows of one matrix": ((5,), (5,), ()),
    "rows, one mean": ((5,), (), ()),
    "rows, length one": ((5,), (1,), (1,)),
    "matrices, one value": ((), (5,), (5,)),
    "matrices, one value and mean": ((1,), (), (5,)),
    "rows in groups": ((4, 5), (5,), (4, 1)),
    "groups of rows": ((4, 5), (4, 1), (5,)),
    "two axes of matrices": ((4, 5), (4, 1), (4, 5)),
    "interleaved": ((1, 5), (4, 1), (3, 1, 5)),
    "two axes of rows": ((2, 4, 5), (5,), (4, 1)),
}


#: Zero, one and two axes of matrices with one row and with several.
#: How batch axes become these does not depend on the parametrization, what follows does
BROADCASTS_OF_EACH_PARAM = (
    "no batch",
    "rows of one matrix",
    "matrices, one value",
    "groups of rows",
    "two axes of matrices",
    "interleaved",
)


@pytest.mark.parametrize(
    ("case", "param"),
    [
        (case, param)
        for case in BROADCASTS
        for param in PARAMS
        if param == "cov" or case in BROADCASTS_OF_EACH_PARAM
    ],
)
@pytest.mark.parametrize("n", [2, 8])
def test_broadcasting(rng, case, n, param):
    """Gradients are summed over the batch axes along which an input was broadcast."""
    batches = BROADCASTS[case]
    core = ((n,), (n,), (n, n))
    shapes = tuple((*b, *c) for b, c in zip(batches, core, strict=True))
    static = tuple(
        tuple(size if size == 1 else None for size in b) + c
        for b, c in zip(batches, core, strict=True)
    )
    functions = compiled("logp", param, static)
    expected = assert_agree(functions, random_inputs(rng, "logp", param, shapes))
    assert [grad.shape for grad in expected[2:]] == list(shapes)


@pytest.mark.parametrize("n", SIZES.values(), ids=SIZES)
def test_float32(rng, n):
    functions = compiled("logp", "cov", batched("logp", None, n), "float32")
    inputs = random_inputs(rng, "logp", "cov", batched("logp", 5, n), "float32")
    assert_agree(functions, inputs, dtype="float32")


def test_integers_and_mixed_dtypes(rng):
    value, mu = pt.imatrix(), pt.fmatrix()
    matrix = pt.tensor(shape=(None, 3, 3), dtype="float64")
    outputs = mvnormal_logp(value, mu, matrix)
    outputs += [pt.grad(outputs[0].sum(), mu), pt.grad(outputs[0].sum(), matrix)]
    lowered = pytensor.function([value, mu, matrix], outputs, mode="JAX")
    assert lowered_nodes(lowered)
    with disable():
        reference = pytensor.function([value, mu, matrix], outputs, mode=REFERENCE_MODE)
    x, m, s, _ = random_inputs(rng, "logp", "cov", batched("logp", 4, 3))
    assert_agree((lowered, reference), [(3 * x).astype("int32"), m.astype("float32"), s])


@pytest.mark.parametrize("n", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("condition", [1e4, 1e8, 1e12])
def test_accuracy(rng, n, condition):
    """Within 50 eps times the condition number of the reference."""
    inputs = random_inputs(rng, "logp", "cov", batched("logp", BATCH, n))
    inputs[2] = spd(rng, BATCH, n=n, condition=condition)
    lowered, reference = compiled("logp", "cov", batched("logp", None, n))
    tolerance = 50 * np.finfo(float).eps * condition
    for a, d in zip(lowered(*inputs), reference(*inputs), strict=True):
        if d.dtype != bool:
            scale = np.abs(d).max(axis=tuple(range(1, d.ndim)), keepdims=True)
            assert (np.abs(a - d) <= tolerance * scale).all()


@pytest.mark.parametrize("n", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_scales(rng, param, n, scale):
    value, mu, matrix, g = random_inputs(rng, "logp", param, batched("logp", BATCH, n))
    power = {"cov": 2, "chol": 1, "tau": -2}[param]
    inputs = [value * scale, mu * scale, matrix * scale**power, g]
    lowered, reference = compiled("logp", param, batched("logp", None, n))
    # LAPACK under XLA flushes subnormal numbers to zero: 2e-308 of the products, which are 1e-300
    flushed = n == SIZES["lapack"] and matrix.max() * scale**power < 1e-290
    rtol = 1e-6 if flushed else 1e-11
    for a, d in zip(lowered(*inputs), reference(*inputs), strict=True):
        assert_allclose(a, d, rtol=rtol, atol=0.1 * rtol * np.abs(d).max(initial=0))


@cache
def jax_function(param, n, batch=4):
    """The lowered forward op as JAX would see it inside a model."""
    inputs = [pt.tensor(shape=shape) for shape in batched("logp", batch, n)]
    logp, _ = mvnormal_logp(*inputs, param)
    function = pytensor.function(inputs, logp, mode="JAX")
    assert lowered_nodes(function)
    jit_fn = function.vm.jit_fn
    return lambda *args: jit_fn(*args)[0]


@pytest.mark.parametrize("n", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("param", PARAMS)
class TestJaxDifferentiates:
    """Samplers of JAX take the gradient of the finished graph."""

    def test_gradient_is_the_pullback(self, rng, param, n):
        *inputs, g = random_inputs(rng, "logp", param, batched("logp", 4, n))
        f = jax_function(param, n)
        _, _, *expected = compiled("logp", param, batched("logp", None, n))[1](*inputs, g)
        for transform in (lambda f: f, jax.jit):
            value, grads = transform(
                jax.value_and_grad(lambda *args: (f(*args) * g).sum(), argnums=(0, 1, 2))
            )(*inputs)
            assert np.isfinite(value)
            for actual, desired in zip(grads, expected, strict=True):
                assert_close(actual, desired, "gradient", condition=1e2)

    def test_vmap(self, rng, param, n):
        *inputs, _ = random_inputs(rng, "logp", param, batched("logp", 4, n))
        f = jax_function(param, n)
        twice = [np.stack([x, x * 1.5]) for x in inputs]
        mapped = jax.vmap(f)(*twice)
        for i in range(2):
            assert_allclose(mapped[i], f(*(x[i] for x in twice)), rtol=1e-12)
        # one axis only: the matrix is shared by all
        mapped = jax.vmap(f, in_axes=(0, None, None))(twice[0], *inputs[1:])
        assert_allclose(mapped[1], f(twice[0][1], *inputs[1:]), rtol=1e-12)

    def test_second_derivatives(self, rng, param, n):
        """Forward over reverse, reverse over reverse, and a difference quotient of gradients."""
        *inputs, _ = random_inputs(rng, "logp", param, batched("logp", 4, n))
        f = jax_function(param, n)
        gradient = jax.jit(jax.grad(lambda args: f(*args).sum()))
        direction = [np.tril(rng.normal(size=x.shape)) if x.ndim == 3 else x for x in inputs]
        args, direction = tuple(map(jnp.asarray, inputs)), tuple(map(jnp.asarray, direction))
        _, forward = jax.jit(lambda a, d: jax.jvp(gradient, (a,), (d,)))(args, direction)
        _, vjp = jax.vjp(gradient, args)
        [backward] = vjp(direction)
        eps = 1e-6
        up, down = (
            gradient(tuple(a + s * eps * d for a, d in zip(args, direction, strict=True)))
            for s in (1, -1)
        )
        for hvp, reverse, u, d in zip(forward, backward, up, down, strict=True):
            scale = np.abs(hvp).max()
            assert_allclose(reverse, hvp, atol=1e-9 * scale)
            assert_allclose((u - d) / (2 * eps), hvp, atol=1e-5 * scale)

    def test_gradient_of_the_pullback_op(self, rng, param, n):
        """A graph with PyTensor's gradient in it can be differentiated by JAX again."""
        *inputs, _ = random_inputs(rng, "logp", param, batched("logp", 4, n))
        variables = [pt.tensor(shape=shape) for shape in batched("logp", 4, n)]
        logp, _ = mvnormal_logp(*variables, param)
        grad = pytensor.function(variables, pt.grad(logp.sum(), variables[1]), mode="JAX")
        f = jax_function(param, n)
        once = jax.jacobian(lambda mu: grad.vm.jit_fn(inputs[0], mu, inputs[2])[0].sum(0))
        twice = jax.jacobian(jax.grad(lambda mu: f(inputs[0], mu, inputs[2]).sum()))
        actual, expected = (jax.jit(g)(jnp.asarray(inputs[1])) for g in (once, twice))
        assert_allclose(actual, expected.sum(0), rtol=1e-9, atol=1e-9)


def test_hessian_is_minus_the_precision(rng):
    [cov] = spd(rng, 1, n=3)
    f = jax_function("cov", 3, batch=1)
    mu = jnp.asarray(rng.normal(size=3))
    hessian = jax.hessian(lambda mu: f(np.zeros((1, 3)), mu[None], cov[None])[0])(mu)
    assert_allclose(hessian, -np.linalg.inv(cov), rtol=1e-10)


class TestRewrite:
    value, mu = pt.matrix("value"), pt.matrix("mu")
    cov = pt.tensor("cov", shape=(None, 2, 2))

    def lowered(self, outputs, mode="JAX"):
        return pytensor.function(
            [self.value, self.mu, self.cov], outputs, mode=mode, on_unused_input="ignore"
        )

    def inputs(self, rng):
        return random_inputs(rng, "logp", "cov", batched("logp", 4, 2))[:3]

    def test_switched_off(self, rng):
        """Then PyTensor inlines the reference graph."""
        logp, _ = mvnormal_logp(self.value, self.mu, self.cov)
        outputs = [logp, pt.grad(logp.sum(), self.cov)]
        with pytensor.config.change_flags(mvn_rewrites__skip="lower"):
            f = self.lowered(outputs)
        assert not lowered_nodes(f)
        inputs = self.inputs(rng)
        for a, b in zip(f(*inputs), self.lowered(outputs)(*inputs), strict=True):
            assert_allclose(a, b, rtol=1e-12)

    def test_other_backends_keep_the_reference(self):
        logp, _ = mvnormal_logp(self.value, self.mu, self.cov)
        assert not lowered_nodes(self.lowered(logp, Mode("py", "fast_run")))
        with pytensor.config.change_flags(mvn_rewrites__mode="opt_in"):
            assert not lowered_nodes(self.lowered(logp))
            assert lowered_nodes(self.lowered(logp, get_mode("JAX").including("mvn_rewrites")))
            mode = Mode("py", "fast_run").including("mvn_rewrites")
            assert not lowered_nodes(self.lowered(logp, mode))

    def test_perform_runs_the_reference(self, rng):
        logp, _ = mvnormal_logp(self.value, self.mu, self.cov)
        f = self.lowered([logp, pt.grad(logp.sum(), self.cov)])
        fgraph = f.maker.fgraph
        by_perform = pytensor.function(fgraph.inputs, fgraph.outputs, mode=REFERENCE_MODE)
        inputs = self.inputs(rng)
        for a, d in zip(by_perform(*inputs), f(*inputs), strict=True):
            assert_allclose(a, d, rtol=1e-12)

    def test_shape_needs_no_density(self):
        logp, _ = mvnormal_logp(self.value, self.mu, self.cov)
        assert not lowered_nodes(self.lowered(logp.shape))

    def test_wrong_core_size(self, rng):
        value = pt.matrix()
        logp, _ = mvnormal_logp(value, self.mu, self.cov)
        f = pytensor.function([value, self.mu, self.cov], logp, mode="JAX")
        x, mu, cov = self.inputs(rng)
        with pytest.raises(ValueError, match="core shapes"):
            f(x[:, :1], mu, cov)

    @pytest.mark.parametrize("n", SIZES.values(), ids=SIZES)
    def test_density_and_pullback_factor_once(self, n):
        """One logarithm of each pivot, one loop, one call of LAPACK."""
        inputs = [pt.tensor(shape=shape) for shape in batched("logp", 4, n)]
        logp, _ = mvnormal_logp(*inputs)
        f = pytensor.function(inputs, [logp, *pt.grad(logp.sum(), inputs)], mode="JAX")
        assert len(lowered_nodes(f)) == 1
        arrays = [np.zeros(shape) for shape in batched("logp", 4, n)]
        text = f.vm.jit_fn.lower(*arrays).compile().as_text()
        call, factorizations = {3: (" log(", 3), 8: (" while(", 1), 18: ("potrf", 1)}[n]
        assert text.count(call) == factorizations

    def test_cotangent_of_its_own_density(self, rng):
        """A pair would be a cycle: two nodes."""
        logp, _ = mvnormal_logp(self.value, self.mu, self.cov)
        outputs = [logp, pt.grad(pt.exp(logp).sum(), self.mu)]
        f = self.lowered(outputs)
        assert len(lowered_nodes(f)) == 2
        inputs = self.inputs(rng)
        density, gradient = f(*inputs)
        _, plain = self.lowered([logp, pt.grad(logp.sum(), self.mu)])(*inputs)
        assert_allclose(gradient, np.exp(density)[:, None] * plain, rtol=1e-11)

    def test_importing_the_package_does_not_import_jax(self):
        code = "import sys, pytensor_mvn_rewrites; print('jax' in sys.modules)"
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert result.stdout == "False\n"


Q = 3


def loop_model(n_terms):
    rng = np.random.default_rng(n_terms)
    covs = spd(rng, n_terms, n=Q)
    data = rng.normal(size=(n_terms, Q))
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        mu = pm.Normal("mu", 0, 1, shape=(n_terms, Q))
        for n in range(n_terms):
            pm.MvNormal(f"x_{n}", mu=mu[n], cov=scale * covs[n], observed=data[n])
    return model, covs, data


def closed_form(covs, data, log_scale, mu):
    """Log-density from SciPy, gradient from the textbook."""
    scale = np.exp(log_scale)
    logp = stats.halfnorm.logpdf(scale) + log_scale + stats.norm.logpdf(mu).sum()
    for x, m, cov in zip(data, mu, covs, strict=True):
        logp += stats.multivariate_normal.logpdf(x, m, scale * cov)
    alpha = np.linalg.solve(scale * covs, (data - mu)[..., None])[..., 0]
    quaddist = (alpha * (data - mu)).sum()
    return logp, -(scale**2) + 1 + 0.5 * quaddist - 0.5 * data.size, alpha - mu


def equations(jaxpr):
    """Number of equations, those of nested jaxprs included."""
    total = 0
    for eqn in jaxpr.eqns:
        nested = [p for p in eqn.params.values() if hasattr(p, "jaxpr") or hasattr(p, "eqns")]
        total += 1 + sum(equations(getattr(p, "jaxpr", p)) for p in nested)
    return total


@pytest.fixture(scope="module")
def jaxified():
    # it asks for 100 host devices, in the environment: before JAX has started, that counts
    flags = os.environ.get("XLA_FLAGS")
    jax.devices()
    from pymc.sampling.jax import get_jaxified_logp

    if flags is None:
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = flags
    return {n: (*loop_model(n), get_jaxified_logp) for n in (20, 40)}


def logp_of(jaxified, n_terms):
    model, covs, data, get_jaxified_logp = jaxified[n_terms]
    # PyMC's argument is named the other way round: True keeps the sign
    return get_jaxified_logp(model), covs, data


def test_pymc_loop_model(jaxified, rng):
    logp, covs, data = logp_of(jaxified, 20)
    log_scale, mu = rng.normal(), rng.normal(size=(20, Q))
    value, (d_log_scale, d_mu) = jax.jit(jax.value_and_grad(logp))((log_scale, mu))
    expected = closed_form(covs, data, log_scale, mu)
    assert_allclose(value, expected[0], rtol=1e-11)
    assert_allclose(d_log_scale, expected[1], rtol=1e-9)
    assert_allclose(d_mu, expected[2], rtol=1e-9, atol=1e-10)


def test_pymc_loop_is_not_unrolled(jaxified, rng):
    counts = []
    for n_terms in (20, 40):
        logp, *_ = logp_of(jaxified, n_terms)
        jaxpr = jax.make_jaxpr(jax.value_and_grad(logp))((0.1, rng.normal(size=(n_terms, Q))))
        counts.append(equations(jaxpr.jaxpr))
    assert counts[0] == counts[1] < 400


@pytest.mark.parametrize("gradient_backend", ["jax", "pytensor"])
def test_nutpie(rng, gradient_backend):
    nutpie = pytest.importorskip("nutpie")
    model, covs, data = loop_model(5)
    compiled_model = nutpie.compile_pymc_model(
        model, backend="jax", gradient_backend=gradient_backend
    )
    logp_dlogp = compiled_model._make_logp_func()
    shared = {name: jnp.asarray(v) for name, v in compiled_model._shared_data.items()}
    log_scale, mu = rng.normal(), rng.normal(size=(5, Q))
    logp, gradient = logp_dlogp(np.concatenate([[log_scale], mu.ravel()]), **shared)
    expected, d_log_scale, d_mu = closed_form(covs, data, log_scale, mu)
    assert_allclose(logp, expected, rtol=1e-11)
    assert_allclose(gradient, [d_log_scale, *d_mu.ravel()], rtol=1e-9, atol=1e-10)


SHARDED = """
import re
import jax, numpy as np, pymc as pm, pytensor, pytensor.tensor as pt
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import pytensor_mvn_rewrites
from pytensor_mvn_rewrites.lower.jax_backend import JaxGaussianOp

N = 16

def check(Q):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(N, Q, Q))
    with pm.Model() as model:
        data = pm.Data("data", rng.normal(size=(N, Q)))
        covs = pm.Data("covs", a @ a.mT + Q * np.eye(Q))
        scale = pm.HalfNormal("scale")
        mu = pm.Normal("mu", shape=(N, Q))
        terms = [pm.logp(pm.MvNormal.dist(mu[n], scale * covs[n]), data[n]) for n in range(N)]
        pm.Potential("likelihood", sum(terms))

    f = pytensor.function(model.value_vars, model.logp(), mode="JAX")
    assert sum(type(node.op) is JaxGaussianOp for node in f.maker.fgraph.apply_nodes) == 1
    jit_fn = f.vm.jit_fn
    shared = {var.name: var.get_value() for var in f.get_shared()}
    assert set(shared) == {"data", "covs"}
    log_scale, mu = 0.3, rng.normal(size=(N, Q))
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda s, mu, *shared: jit_fn(s, mu, *shared)[0].sum(), argnums=(0, 1))
    )
    alone = value_and_grad(log_scale, mu, *shared.values())

    assert len(jax.devices()) == 4
    by_batch = NamedSharding(Mesh(jax.devices(), "batch"), PartitionSpec("batch"))
    sharded = [jax.device_put(x, by_batch) for x in (mu, *shared.values())]
    together = value_and_grad(log_scale, *sharded)
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-12)
    np.testing.assert_allclose(together[1][0], alone[1][0], rtol=1e-12)
    np.testing.assert_allclose(together[1][1], alone[1][1], rtol=1e-12)
    assert together[1][1].sharding.is_equivalent_to(by_batch, 2)

    # the same with PyTensor's gradient: density and pullback are one op
    mu_value = model.rvs_to_values[model["mu"]]
    outputs = [model.logp(), pt.grad(model.logp(), mu_value)]
    f = pytensor.function(model.value_vars, outputs, mode="JAX")
    assert sum(type(node.op) is JaxGaussianOp for node in f.maker.fgraph.apply_nodes) == 1
    assert [var.name for var in f.get_shared()] == list(shared)
    logp, d_mu = f.vm.jit_fn(log_scale, *sharded)
    np.testing.assert_allclose(logp, alone[0], rtol=1e-12)
    np.testing.assert_allclose(d_mu, alone[1][1], rtol=1e-12)
    assert d_mu.sharding.is_equivalent_to(by_batch, 2)

    text = value_and_grad.lower(log_scale, *sharded).compile().as_text()
    print(Q, sorted(set(re.findall(r" (all-[a-z]+|collective-[a-z]+|reduce-scatter)\\(", text))))

for n in SIZES:
    check(n)
"""


def test_sharded_batch():
    """Batched data on four devices: only sums travel between them."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    result = subprocess.run(
        [sys.executable, "-c", SHARDED.replace("SIZES", str([*SIZES.values()]))],
        capture_output=True,
        text=True,
        env=env,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "".join(f"{n} ['all-reduce']\n" for n in SIZES.values())
