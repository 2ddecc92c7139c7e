"""The ops against SciPy, against their own formulas, and as citizens of a PyTensor graph."""

import gc
import weakref

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytensor.graph.basic import equal_computations
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.rewriting.basic import MergeOptimizer
from scipy import stats
from scipy.special import gammaln

from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp, inv_quad_logdet, mvnormal_logp
from pytensor_mvn_rewrites.ops.gaussian import PARAMS
from tests.harness import REFERENCE_MODE, assert_close, evaluate, gradient, spd


def parametrize(cov, param):
    """The matrix of `param` for a covariance."""
    return {
        "cov": lambda: cov,
        "chol": lambda: np.linalg.cholesky(cov),
        "tau": lambda: np.linalg.inv(cov),
    }[param]()


def formula(value, mu, matrix, param):
    """The outputs of `MvNormalLogp` in plain PyTensor."""
    return MvNormalLogp(param=param).build_inner_graph(value, mu, matrix)


def quad_formula(delta, matrix, param):
    """The outputs of `InvQuadLogdet` in plain PyTensor."""
    return InvQuadLogdet(param=param).build_inner_graph(delta, matrix)


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_mvnormal_logp_is_scipys(rng, param, n):
    cov, mu, value = spd(rng, n=n), rng.normal(size=n), rng.normal(size=n)
    logp, posdef = mvnormal_logp(value, mu, parametrize(cov, param), param)
    expected = stats.multivariate_normal(mu, cov).logpdf(value)
    assert_close(logp.eval(mode=REFERENCE_MODE), expected, "value", condition=1e2)
    assert posdef.eval(mode=REFERENCE_MODE)


@pytest.mark.parametrize("param", PARAMS)
def test_inv_quad_logdet_is_numpys(rng, param):
    cov, delta = spd(rng, n=4), rng.normal(size=4)
    outputs = inv_quad_logdet(delta, parametrize(cov, param), param)
    quad, half_logdet, posdef = evaluate(outputs, {})
    assert_close(quad, delta @ np.linalg.solve(cov, delta), "value", condition=1e2)
    assert_close(half_logdet, np.linalg.slogdet(cov)[1] / 2, "value", condition=1e2)
    assert posdef


def test_inv_quad_logdet_gives_students_t(rng):
    cov, mu, value, nu = spd(rng, n=3), rng.normal(size=3), rng.normal(size=3), np.float64(4)
    quad, half_logdet, _ = inv_quad_logdet(value - mu, cov)
    norm = gammaln((nu + 3) / 2) - gammaln(nu / 2) - 1.5 * np.log(nu * np.pi)
    logp = norm - half_logdet - (nu + 3) / 2 * pt.log1p(quad / nu)
    expected = stats.multivariate_t(mu, cov, df=nu).logpdf(value)
    assert_close(logp.eval(mode=REFERENCE_MODE), expected, "value", condition=1e2)


@st.composite
def broadcast_shapes(draw):
    """Batch shapes of value, mu and the matrix, n, and which lengths the types tell."""
    joint = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    batches = []
    for _ in range(3):
        kept = joint[len(joint) - draw(st.integers(0, len(joint))) :]
        batches.append(tuple(1 if draw(st.booleans()) else length for length in kept))
    return batches, draw(st.integers(1, 3))


@given(broadcast_shapes(), st.sampled_from(PARAMS), st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_broadcasting(shapes, param, static):
    (value_batch, mu_batch, matrix_batch), n = shapes
    rng = np.random.default_rng(0)

    def variable(name, data):
        # PyTensor broadcasts only lengths that the type tells to be 1
        return pt.tensor(name, shape=tuple(k if static or k == 1 else None for k in data.shape))

    data = {
        "value": rng.normal(size=(*value_batch, n)),
        "mu": rng.normal(size=(*mu_batch, n)),
        "matrix": parametrize(spd(rng, *matrix_batch, n=n), param),
    }
    variables = {name: variable(name, array) for name, array in data.items()}
    values = {variables[name]: array for name, array in data.items()}
    outputs = mvnormal_logp(*variables.values(), param)
    expected = formula(*variables.values(), param)
    got, want = evaluate(outputs, values), evaluate(expected, values)
    assert_close(got[0], want[0], "value", condition=1e2)
    np.testing.assert_array_equal(got[1], want[1])

    # only the lower triangle is an input of the formula
    got = evaluate(gradient(outputs, list(variables.values())), values)
    want = evaluate(gradient(expected, list(variables.values())), values)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, "gradient", condition=1e3)

    inferred = pytensor.function(
        list(values), [out.shape for out in outputs], mode="FAST_COMPILE", on_unused_input="ignore"
    )
    for shape in inferred(*values.values()):
        assert tuple(shape) == np.broadcast_shapes(value_batch, mu_batch, matrix_batch)


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("batch", [(), (4,)], ids=["one", "batch"])
def test_inv_quad_logdet_pullback(rng, param, batch):
    delta, matrix = pt.tensor("delta", shape=(*batch, 3)), pt.tensor("S", shape=(*batch, 3, 3))
    weights = rng.normal(size=(2, *batch))

    def weighted(outputs):
        return [w * out for w, out in zip(weights, outputs[:2], strict=True)]

    values = {
        delta: rng.normal(size=(*batch, 3)),
        matrix: parametrize(spd(rng, *batch, n=3), param),
    }
    got = gradient(weighted(inv_quad_logdet(delta, matrix, param)), [delta, matrix])
    want = gradient(weighted(quad_formula(delta, matrix, param)), [delta, matrix])
    for one, other in zip(evaluate(got, values), evaluate(want, values), strict=True):
        assert_close(one, other, "gradient", condition=1e2)


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("half", [0, 1], ids=["quaddist", "half_logdet"])
def test_gradient_of_one_half(rng, param, half):
    delta, matrix = pt.vector("delta"), pt.matrix("S")
    values = {delta: rng.normal(size=3), matrix: parametrize(spd(rng, n=3), param)}
    got = gradient([inv_quad_logdet(delta, matrix, param)[half]], [delta, matrix])
    want = gradient([quad_formula(delta, matrix, param)[half]], [delta, matrix])
    for one, other in zip(evaluate(got, values), evaluate(want, values), strict=True):
        assert_close(one, other, "gradient", condition=1e2)


@pytest.mark.parametrize("param", PARAMS)
def test_hessian(rng, param):
    """Second derivatives, along symmetric or lower triangular directions of the matrix."""
    n = 2
    theta = pt.vector("theta", shape=(2 * n + 3,))
    rows, columns = np.tril_indices(n)
    L = pt.zeros((n, n))[rows, columns].set(theta[2 * n :])
    matrix = L if param == "chol" else L @ L.T
    value, mu = theta[:n], theta[n : 2 * n]
    at = np.concatenate([rng.normal(size=2 * n), [1.2, 0.3, 0.8]])

    def hessian(logp):
        grad = pt.grad(logp, theta)
        return pt.stack([pt.grad(grad[i], theta) for i in range(2 * n + 3)])

    got = hessian(mvnormal_logp(value, mu, matrix, param)[0])
    want = hessian(formula(value, mu, matrix, param)[0])
    assert_close(
        evaluate([got], {theta: at})[0],
        evaluate([want], {theta: at})[0],
        "hessian",
        condition=1e2,
    )


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("which", ["value", "matrix", "value, matrix", "mu, matrix"])
def test_vectorize(rng, param, which):
    """New batch dimensions of some inputs only, for the op and for its pullback."""
    inputs = {
        "value": pt.matrix("value", shape=(4, 3)),
        "mu": pt.vector("mu", shape=(3,)),
        "matrix": pt.tensor3("matrix", shape=(4, 3, 3)),
    }
    data = {
        "value": rng.normal(size=(4, 3)),
        "mu": rng.normal(size=3),
        "matrix": parametrize(spd(rng, 4, n=3), param),
    }
    logp, _ = mvnormal_logp(*inputs.values(), param)
    graphs = [logp, *gradient([logp], list(inputs.values()))]

    batched = {}
    for name in which.split(", "):
        old = inputs[name]
        batched[old] = pt.tensor(f"{name}s", shape=(2, *old.type.shape))
        # a second matrix must be positive definite too
        data[name] = np.stack([data[name], 1.7 * data[name]])
    new_graphs = vectorize_graph(graphs, batched)
    variables = {name: batched.get(var, var) for name, var in inputs.items()}
    results = evaluate(new_graphs, {variables[name]: array for name, array in data.items()})

    for lane in range(2):
        values = {
            inputs[name]: array[lane] if inputs[name] in batched else array
            for name, array in data.items()
        }
        for got, want in zip(results, evaluate(graphs, values), strict=True):
            assert_close(got[lane], want, "gradient", condition=1e2)


@pytest.mark.parametrize("param", PARAMS)
def test_lanes_that_are_not_positive_definite(rng, param):
    """NaN and False in their lane only."""
    value, matrix = rng.normal(size=(3, 2)), parametrize(spd(rng, 3, n=2), param)
    matrix[1] = -matrix[1]
    matrix[2, 0, 0] = np.nan
    logp, posdef = evaluate(mvnormal_logp(value, np.zeros(2), matrix, param), {})
    np.testing.assert_array_equal(posdef, [True, False, False])
    np.testing.assert_array_equal(np.isnan(logp), [False, True, True])


@pytest.mark.parametrize("param", PARAMS)
def test_float32(rng, param):
    value, mu = rng.normal(size=(2, 4, 3)).astype("float32")
    matrix = parametrize(spd(rng, n=3), param).astype("float32")
    variables = pt.fmatrix("value"), pt.fmatrix("mu"), pt.fmatrix("matrix")
    values = dict(zip(variables, (value, mu, matrix), strict=True))
    with pytensor.config.change_flags(floatX="float32"):
        logp, _ = mvnormal_logp(*variables, param)
        grads = gradient([logp], variables)
        assert {var.type.dtype for var in (logp, *grads)} == {"float32"}
        [got] = evaluate([logp], values)
    # PyMC's constant has the dtype floatX
    logp, _ = mvnormal_logp(*variables, param)
    assert logp.type.dtype == formula(*variables, param)[0].type.dtype == "float64"
    assert_close(got.astype("float64"), evaluate([logp], values)[0], "value", "float32", 1e2)


@pytest.mark.parametrize("param", PARAMS)
def test_only_the_lower_triangle_is_read(rng, param):
    value, matrix = rng.normal(size=3), parametrize(spd(rng, n=3), param)
    spoiled = matrix + np.triu(rng.normal(size=(3, 3)), 1)
    logp, spoiled_logp = (
        evaluate(mvnormal_logp(value, np.zeros(3), m, param), {})[0] for m in (matrix, spoiled)
    )
    assert_close(spoiled_logp, logp, "value", condition=1e2)


def test_equal_types_share_one_op():
    first, second = pt.vector("first"), pt.vector("second")
    S, T = pt.matrix("S"), pt.matrix("T")
    one, other = mvnormal_logp(first, first, S)[0], mvnormal_logp(second, second, T)[0]
    assert one.owner.op is other.owner.op
    assert one.owner.op != mvnormal_logp(first, first, S, "chol")[0].owner.op
    assert hash(one.owner.op) == hash(other.owner.op)


def test_an_op_lives_as_long_as_its_graphs():
    outputs = mvnormal_logp(pt.vector(shape=(11,)), np.zeros(11), np.eye(11))
    op = weakref.ref(outputs[0].owner.op)
    del outputs
    gc.collect()
    assert op() is None


def test_equal_nodes_merge():
    x, S = pt.vector("x"), pt.matrix("S")
    total = mvnormal_logp(x, x, S)[0] + mvnormal_logp(x, x, S)[0]
    fgraph = FunctionGraph([x, S], [total], clone=True)
    MergeOptimizer().rewrite(fgraph)
    assert sum(isinstance(node.op, MvNormalLogp) for node in fgraph.apply_nodes) == 1


def test_graphs_compare_equal():
    x, S = pt.vector("x"), pt.matrix("S")
    assert equal_computations(mvnormal_logp(x, x, S), mvnormal_logp(x, x, S))
    assert not equal_computations(mvnormal_logp(x, x, S), mvnormal_logp(x, x, S, "tau"))


@pytest.mark.parametrize("op", [mvnormal_logp, inv_quad_logdet])
def test_bad_arguments(op):
    vectors = [pt.vector()] * (2 if op is mvnormal_logp else 1)
    with pytest.raises(ValueError, match="param must be one of"):
        op(*vectors, pt.matrix(), "sigma")
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        op(*vectors, pt.vector())
