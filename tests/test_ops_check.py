"""Log-densities under `vectorize_graph`: the same numbers, row by row."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import vectorize_graph

import pytensor_mvn_rewrites as mvn
from tests.harness import PIPELINE_MODE, REFERENCE_MODE, assert_close, rewritten

N_ROWS = 3
OBSERVED = np.arange(3.0)


def a_cov():
    mu, s = pm.Normal("mu", shape=3), pm.HalfNormal("s")
    pm.MvNormal("y", mu, cov=s * np.eye(3) + 0.5, observed=OBSERVED)


def a_loop():
    mu = pm.Normal("mu", shape=3)
    for i in range(4):
        s = pm.HalfNormal(f"s{i}")
        pm.MvNormal(f"y{i}", mu, cov=s * np.eye(3) + 0.5, observed=OBSERVED + i)


def a_precision():
    mu, s = pm.Normal("mu", shape=3), pm.HalfNormal("s")
    pm.MvNormal("y", mu, tau=s * np.eye(3) + 0.5, observed=OBSERVED)


def a_kronecker_normal():
    s = pm.HalfNormal("s")
    covs = [s * np.eye(2) + 0.5, np.eye(2) + 0.2]
    pm.KroneckerNormal("y", np.zeros(4), covs=covs, sigma=0.5, observed=np.arange(4.0))


def an_lkj_factor():
    chol, *_ = pm.LKJCholeskyCov("c", n=3, eta=2, sd_dist=pm.Exponential.dist(1.0, shape=3))
    pm.MvNormal("y", pm.Normal("mu", shape=3), chol=chol, observed=OBSERVED)


def a_latent_vector():
    s = pm.HalfNormal("s")
    x = pm.MvNormal("x", pm.Normal("mu", shape=3), chol=s * np.tril(np.ones((3, 3))))
    pm.Normal("y", x, 1, observed=np.zeros(3))


def a_loop_over_dims():
    scales = pm.HalfNormal("scales", dims=("group", "feature"))
    for i in range(3):
        cov = pt.outer(scales[i], scales[i]) * (np.eye(3) + 0.1)
        pm.MvNormal(f"y{i}", np.zeros(3), cov=cov, observed=OBSERVED + i)


def a_mean_of_unknown_length():
    """Before the gradient the mean is an ``Alloc`` with one row, of a length that is computed."""
    scale = pm.HalfNormal("scale")
    cov = scale**2 * pm.Data("cov", np.array([[1.3]]))
    pm.MvNormal("y", np.zeros(1), cov=cov, observed=pm.Data("rows", np.ones((4, 1))))


MODELS = [
    a_loop_over_dims,
    a_cov,
    a_loop,
    a_precision,
    a_kronecker_normal,
    an_lkj_factor,
    a_latent_vector,
    a_mean_of_unknown_length,
]


def model_of(declare) -> pm.Model:
    with pm.Model(coords={"group": range(3), "feature": range(3)}) as model:
        declare()
    return model


def batches(variables):
    return [pt.tensor(shape=(None, *v.type.shape), dtype=v.type.dtype) for v in variables]


@pytest.mark.parametrize("derive", ["as derived", "before the gradient", "after the gradient"])
@pytest.mark.parametrize("declare", MODELS, ids=lambda declare: declare.__name__)
def test_rows_of_points(declare, derive, rng):
    model = model_of(declare)
    inputs = model.value_vars
    point = model.initial_point()
    points = [rng.normal(size=(N_ROWS, *point[v.name].shape)) * 0.4 for v in inputs]
    logp = model.logp()
    if derive == "before the gradient":
        [logp] = rewritten([logp])
    graph = [logp, *pt.grad(logp, inputs)]
    if derive == "after the gradient":
        graph = rewritten(graph)
    rows = batches(inputs)
    vectorized = vectorize_graph(graph, dict(zip(inputs, rows, strict=True)))
    got = pytensor.function(rows, vectorized, mode=PIPELINE_MODE)(*points)

    with mvn.disable():
        plain = model_of(declare)
        logp = plain.logp()
        outputs = [logp, *pt.grad(logp, plain.value_vars)]
        reference = pytensor.function(plain.value_vars, outputs, mode=REFERENCE_MODE)
    for r in range(N_ROWS):
        for one, want in zip(got, reference(*[values[r] for values in points]), strict=True):
            assert_close(one[r], want, "gradient")


def test_a_bad_row_of_a_loop_leaves_the_others_alone():
    """A batched check stays a check of each term when it is vectorized."""
    s = pt.vector("s", shape=(2,))
    terms = [
        pm.logp(pm.MvNormal.dist(np.zeros(2), cov=s[i] * np.eye(2)), np.ones(2)) for i in range(2)
    ]
    [total] = rewritten([pt.add(*terms)])
    rows = pt.matrix("rows")
    [vectorized] = vectorize_graph([total], {s: rows})
    mode = PIPELINE_MODE.including("local_check_parameter_to_ninf_switch")
    fn = pytensor.function([rows], vectorized, mode=mode)
    good, bad = [1.0, 2.0], [1.0, -2.0]
    got = fn(np.array([good, bad]))
    assert got[1] == -np.inf
    assert_close(got[0], fn(np.array([good]))[0], "value")
    assert np.isfinite(got[0])


def test_vectorized_output_of_several():
    """PyTensor's own graphs: one output of a node of several, as a scalar."""
    x = pt.matrix("x", shape=(2, 2))
    _, logdet = pt.linalg.slogdet(x)
    scalar = pt.tensor_from_scalar(pt.scalar_from_tensor(logdet))
    stack = pt.tensor3("stack")
    [vectorized] = vectorize_graph([scalar], {x: stack})
    values = np.array([np.eye(2), 2 * np.eye(2)])
    fn = pytensor.function([stack], vectorized, mode=REFERENCE_MODE)
    np.testing.assert_allclose(fn(values), np.linalg.slogdet(values)[1])
