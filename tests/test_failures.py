"""Each rule fails in turn: models compile, numbers are right, and one warning names the rule."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.logprob.utils import local_check_parameter_to_ninf_switch
from pymc.pytensorf import join_nonshared_inputs, rewrite_pregrad
from pytensor.assumptions import assume
from pytensor.compile.aliasing import add_supervisor_to_fgraph
from pytensor.compile.io import In
from pytensor.compile.mode import get_mode
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import dfs_rewriter

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.generative import densities
from pytensor_mvn_rewrites.pipeline import RULES
from pytensor_mvn_rewrites.structure._structure import Structure
from tests.harness import (
    REFERENCE_MODE,
    assert_close,
    failing,
    gradient,
    guards,
    replaced,
    rules_that_run,
    warns_of_failures,
)

RNG = np.random.default_rng(20261129)
N = 8
DATA = RNG.normal(size=(12, N))
TIMES = np.array([0.0, 1.0, 1.5, 3.0, 4.0, 6.0, 6.5, 9.0])
#: Constant matrices, which have no structure
C, D = (m @ m.T + 2 * np.eye(N) for m in RNG.normal(size=(2, N, N)))
SMALL = C[:2, :2]
LOWER = np.linalg.cholesky(C)


def scale():
    return pm.HalfNormal("s", 1.0)


def symmetric(name, n=2):
    """A matrix that is positive definite and symmetric by construction."""
    x = pm.Normal(name, shape=(n, n))
    return x @ x.T + 2 * np.eye(n)


def lkj(name="lkj", n=N):
    sd_dist = pm.Exponential.dist(1, shape=n)
    return pm.LKJCholeskyCov(name, n=n, eta=2, sd_dist=sd_dist)


def gram(root):
    return root @ root.T


def rescaled(d, matrix):
    return d[:, None] * matrix * d


def one_hot(k):
    return np.eye(2)[k][:, None] * np.eye(2)[k]


#: What a covariance is made of, in a model
COVARIANCES: dict[str, Callable] = {
    "constant": lambda: C,
    "scaled constant": lambda: scale() * C,
    "diagonal": lambda: pt.diag(pm.HalfNormal("d", shape=N)),
    "blocks": lambda: pt.linalg.block_diag(scale() * SMALL, symmetric("a", 6)),
    "joint spectrum": lambda: scale() * C + pm.HalfNormal("e") * D,
    "kron": lambda: pt.linalg.kron(symmetric("a", 4), symmetric("b")),
    "kron, noise": lambda: pt.linalg.kron(symmetric("a", 4), symmetric("b")) + scale() * np.eye(N),
    "kron sum": lambda: (
        pt.linalg.kron(symmetric("a"), symmetric("b", 4))
        + pt.linalg.kron(symmetric("c"), pt.diag(pm.HalfNormal("d", shape=4)))
    ),
    "Ornstein-Uhlenbeck": lambda: pt.exp(-pt.abs(TIMES[:, None] - TIMES) / scale()),
    "exponential": lambda: pt.linalg.expm(0.1 * symmetric("x", N)) + scale() * np.eye(N),
    "inverse": lambda: scale() * pt.linalg.inv(symmetric("a", N)),
    "Gram": lambda: gram(lkj()[0]),
    "scaled Gram": lambda: 0.5 * gram(lkj()[0]),
    "upper Gram": lambda: gram(lkj()[0].T),
    "rescaled": lambda: rescaled(pm.HalfNormal("d", shape=N), symmetric("a", N)),
    "correlation": lambda: lkj()[1],
    "declared": lambda: pt.linalg.kron(
        assume(symmetric("a", 4), positive_definite=True), symmetric("b")
    ),
}

MODELS: dict[str, Callable[[], None]] = {}


def model(build):
    """Collect a builder under its name."""
    MODELS[build.__name__] = build
    return build


def with_covariance(covariance):
    def build():
        pm.MvNormal("y", pm.Normal("mu", shape=N), cov=covariance(), observed=DATA[0])

    return build


MODELS |= {name: with_covariance(covariance) for name, covariance in COVARIANCES.items()}


@model
def loop():
    s = scale()
    for i in range(9):
        cov = s * (np.eye(N) * i + C)
        pm.MvNormal(f"y{i}", pm.Normal(f"m{i}", shape=N), cov=cov, observed=DATA[i])


@model
def short_loop():
    for i in range(3):
        x = pm.MvNormal(f"x{i}", np.zeros(2), cov=symmetric(f"a{i}"))
        pm.MvNormal(f"y{i}", x, cov=SMALL * (i + 1), observed=DATA[i, :2])


def groups(n_rows):
    common, weight = lkj("common", 3)[0], pm.Beta("weight", 2, 2)
    for i in range(3):
        chol = weight * common + (1 - weight) * lkj(f"c{i}", 3)[0]
        pm.MvNormal(f"y{i}", pm.Normal(f"m{i}", shape=3), chol=chol, shape=(n_rows(i), 3))


@model
def equal_groups():
    groups(lambda i: 2)


@model
def ragged_groups():
    groups(lambda i: 2 + i)


@model
def groups_of_matrices():
    covs = pt.stack([symmetric(f"a{i}") for i in range(2)])
    mu = pm.Normal("mu", shape=(2, 2))
    idx = np.arange(12) % 2
    pm.MvNormal("y", mu[idx], cov=covs[idx], observed=DATA[:, :2])


@model
def groups_of_blocks():
    """Large block-diagonal covariances, each of two rows; and of rows that choose among them."""
    stack = pt.stack([symmetric(f"a{i}", 9) for i in range(2)])
    covs = pt.zeros((2, 18, 18))[:, :9, :9].set(stack)[:, 9:, 9:].set(2 * stack)
    y = np.resize(DATA, (4, 18))
    pm.MvNormal("y", np.zeros(18), cov=covs[:, None], observed=y.reshape(2, 2, 18))
    pm.MvNormal("z", np.zeros(18), cov=covs[np.arange(4) % 2], observed=y)


@model
def rows():
    pm.MvNormal("y", pm.Normal("mu", shape=N), chol=lkj()[0], observed=DATA)


@model
def regression():
    """A mean that is linear in constant vectors, of a constant covariance."""
    mu = DATA[:2].T @ pm.Normal("b", shape=2)
    pm.MvNormal("y", mu, chol=LOWER, observed=DATA[0])


@model
def low_rank():
    w = pm.Normal("w", shape=(24, 1))
    pm.MvNormal("y", np.zeros(24), cov=w @ w.T + scale() * np.eye(24), observed=DATA.ravel()[:24])


@model
def mixture():
    w, mu = pm.Dirichlet("w", np.ones(3)), pm.Normal("mu", shape=(3, 2))
    components = [pm.MvNormal.dist(mu[k], cov=symmetric(f"a{k}")) for k in range(3)]
    pm.Mixture("y", w=w, comp_dists=components, observed=DATA[:, :2])


@model
def indicators():
    blocks = [pt.linalg.kron(one_hot(k), symmetric(f"a{k}", 4)) for k in range(2)]
    pm.MvNormal("y", np.zeros(N), cov=sum(blocks), observed=DATA[0])


@model
def matrix_normal():
    row, column = np.linalg.cholesky(SMALL), pm.HalfNormal("s") * np.eye(N)
    pm.MatrixNormal("y", mu=0.0, rowchol=row, colchol=column, observed=DATA[:2])


def kronecker_normal(**kwargs):
    pm.KroneckerNormal("y", mu=np.zeros(N), observed=DATA[0], **kwargs)


@model
def kronecker_normal_with_noise():
    kronecker_normal(covs=[symmetric("a", 4), symmetric("b")], sigma=scale())


@model
def kronecker_normal_without_noise():
    kronecker_normal(covs=[symmetric("a", 4), symmetric("b")])


@model
def eigenvalues():
    """Of constant eigenvectors."""
    vectors = np.linalg.eigh(C[:4, :4])[1]
    evds = [(pm.HalfNormal("l", shape=4), vectors), np.linalg.eigh(SMALL)]
    kronecker_normal(evds=evds, sigma=scale())


@model
def eigendecompositions():
    evds = [pt.linalg.eigh(symmetric("a", 4)), pt.linalg.eigh(symmetric("b"))]
    kronecker_normal(evds=evds, sigma=scale())


@model
def by_hand():
    """Formulas of solves and determinants, with the constant that makes a density."""
    delta, mu, cov = DATA[0], pm.Normal("mu", shape=N), symmetric("a", N)
    chol = pt.linalg.cholesky(cov)
    z = pt.linalg.solve_triangular(chol, delta - mu, lower=True)
    norm = N / 2 * np.log(2 * np.pi) + pt.log(pt.diagonal(chol)).sum()
    pm.Potential("p", -0.5 * (z**2).sum() - norm)


@model
def by_determinant():
    delta, cov = pm.Normal("delta", shape=N), symmetric("a", N)
    quad = delta @ pt.linalg.inv(cov) @ delta
    pm.Potential("p", -0.5 * quad - 0.5 * pt.log(pt.linalg.det(cov)))


@model
def by_products():
    """The density of rows, and of a residual sum of squares."""
    delta, cov = pm.Normal("delta", shape=N), symmetric("a", N)
    chol = pt.linalg.cholesky(cov)
    weights = pm.HalfNormal("w", shape=3)
    pm.Potential("p", -weights * pt.log(pt.prod(pt.diagonal(chol))[None]))
    residuals = DATA - delta
    pm.Potential("q", -0.5 * pt.linalg.trace(pt.linalg.solve(cov, residuals.T @ residuals)))
    pm.Potential("r", -pt.log(pt.linalg.det(cov)))


@model
def packed():
    """A factor that is unpacked by hand."""
    u = pm.Normal("u", shape=3)
    chol = pm.math.expand_packed_triangular(2, u[[0, 2]].set(pt.exp(u[[0, 2]])))
    pm.MvNormal("y", np.zeros(2), chol=chol, observed=DATA[0, :2])


@model
def parts():
    """The sums of all parts of one variable."""
    x = pm.MvNormal("x", np.zeros(N), cov=C, shape=(9, N))
    terms = pt.exp(-x).sum(axis=1)
    pm.Potential("p", sum(terms[k] for k in range(9)))


@model
def scans():
    L = pm.Normal("L", shape=(3, 2, 2))
    covs = pytensor.map(lambda x: x @ x.T + np.eye(2), sequences=[L], return_updates=False)
    for i in range(3):
        pm.MvNormal(f"y{i}", np.zeros(2), cov=covs[i], observed=DATA[i, :2])


@model
def covariance_functions():
    """A length-scale with kinks, which JAX computes once."""
    cov = pm.gp.cov.Matern32(1, pm.HalfNormal("l"))(TIMES[:, None]) + 0.1 * np.eye(N)
    pm.MvNormal("y", np.zeros(N), cov=cov, observed=DATA[0])


def built(name) -> tuple[pm.Model, dict[str, np.ndarray]]:
    """A model, and a point around its initial one."""
    with pm.Model() as built_model:
        MODELS[name]()
    rng = np.random.default_rng(1)
    point = {
        value.name: rng.normal(scale=0.3, size=[n or N for n in value.type.shape])
        for value in built_model.value_vars
    }
    return built_model, point


def graph_of_raveled_point(built_model, point, optimizer=None):
    """The log-density, its gradient and the terms, as samplers and predictive methods ask them.

    Returns
    -------
    raveled : vector of all value variables
    outputs : list of tensors
    """
    inputs, terms = built_model.value_vars, built_model.logp(sum=False)
    if optimizer is None:
        logp = pt.add(*[term.sum() for term in terms])
    else:
        logp = rewrite_pregrad(built_model.logp())
    grads = [grad.ravel() for grad in gradient([logp], inputs)]
    outputs, raveled = join_nonshared_inputs(
        point, [logp, pt.join(0, *grads), *terms], inputs, make_inputs_shared=False
    )
    graph = FunctionGraph(outputs=outputs, clone=True, copy_inputs=False)
    dfs_rewriter(local_check_parameter_to_ninf_switch).rewrite(graph)
    add_supervisor_to_fgraph(graph, [In(raveled)])
    if optimizer is not None:
        optimizer.rewrite(graph)
    return raveled, graph.outputs


def raveled_point(point):
    return np.concatenate([value.ravel() for value in point.values()])


def function_of_raveled_point(built_model, point, optimizer=None):
    """The same numbers, evaluated node by node."""
    raveled, outputs = graph_of_raveled_point(built_model, point, optimizer)
    function = pytensor.function([raveled], outputs, mode=REFERENCE_MODE, accept_inplace=True)
    return function(raveled_point(point))


#: Without what makes loops and works in place, which is not for Python to evaluate
NUMBA, JAX = (
    get_mode(backend).excluding("fusion", "fuse_indexed_into_elemwise", "inplace")
    for backend in ("NUMBA", "JAX")
)
#: With the loops of Numba that gather or reduce
NUMBA_LOOPS = get_mode("NUMBA").excluding("fusion", "inplace")


def numbers(name, mode=NUMBA):
    """By the rewrites of all stages, evaluated node by node."""
    return function_of_raveled_point(*built(name), mode.optimizer)


@cache
def expected(name):
    """As written, with no rewrite."""
    with mvn.disable():
        return function_of_raveled_point(*built(name))


#: Rules that change nothing, and a model in which they run
#: Here also what another rule calls before it.
NOTES = {"note_declarations": "declared", "join_slices": "loop"}

#: Rules that only another mode runs
MODES = {"lower_to_jax": JAX, "materialize_at_kinks": JAX, "fold_scalars": NUMBA_LOOPS}


RULES_OF_GUARDS = [
    (stage, rule) for stage, rules in RULES.items() for rule in rules if stage != "generative"
]


@pytest.fixture(scope="module")
def models_of_rules() -> dict[str, str]:
    """For each rule the first model in which it changes something."""
    found: dict[str, str] = {}

    def note(model_name, mode):
        with rules_that_run() as changed:
            numbers(model_name, mode)
        for rule, is_changed in changed.items():
            if is_changed:
                found.setdefault(rule, model_name)

    with pytensor.config.change_flags(cxx=""):
        for model_name in MODELS:
            note(model_name, NUMBA)
        for mode in (JAX, NUMBA_LOOPS):
            note("covariance_functions", mode)
    return found


@pytest.mark.parametrize(("stage", "rule"), RULES_OF_GUARDS, ids=lambda name: name)
def test_failure_of_a_rule(stage, rule, models_of_rules, monkeypatch):
    name = NOTES.get(rule) or models_of_rules.get(rule)
    if name is None:
        # the contract of structures lets it fail
        assert issubclass(RULES[stage][rule], Structure)
        return
    for guard in guards(stage, rule):
        replaced(monkeypatch, guard, failing)
    with warns_of_failures(f"{rule!r} failed") as caught:
        got = numbers(name, MODES.get(rule, NUMBA))
    assert len([w for w in caught if w.category is mvn.RewriteFailedWarning]) == 1
    assert_same(got, expected(name))


@pytest.mark.parametrize(
    ("rule", "function"),
    [("loops_of_random_variables", "find_loops"), ("sums_of_loops", "with_whole_sums")],
)
def test_failure_of_a_derivation(rule, function, monkeypatch):
    monkeypatch.setattr(densities, function, failing(None))
    with warns_of_failures(f"{rule!r} failed"):
        got = numbers("loop")
    assert_same(got, expected("loop"))


def assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, "gradient", condition=1e3)
