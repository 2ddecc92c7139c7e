"""A certificate for every rule: what it gives and what was there agree in 50 digits.

Each rule fires in a case, whose graph is evaluated as it was written and as it is rewritten, at a
point of random digits: value and gradient, the gradient of either graph by PyTensor. A rule that is
right is right to 1e-40; one that is wrong by less than rounding is found. The graphs that a backend
gets are certified as they stand: kernels stand there for the ops whose graphs they compute, and
are tested elsewhere.
"""

from itertools import chain

import numpy as np
import pytensor.tensor as pt
import pytest
from mpmath import mpf, nstr
from pytensor.compile.aliasing import add_supervisor_to_fgraph
from pytensor.compile.io import In
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.utils import rewrite_graph

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from pytensor_mvn_rewrites.pipeline import RULES
from tests import test_failures
from tests.certificates.constants import Table, exact_constants
from tests.certificates.interpreter import evaluate, random_digits, relative_difference
from tests.harness import PRE_GRADIENT, gradient, rules_that_run, spd
from tests.harness import evaluate as evaluate_in_doubles
from tests.reroll import test_ragged
from tests.structure import (
    test_block_diagonal,
    test_diagonal,
    test_expm,
    test_joint_spectrum,
    test_kronecker,
    test_kronecker_noise,
    test_kronecker_sum,
    test_low_rank,
    test_ornstein_uhlenbeck,
    test_permuted,
    test_scaled_gram,
    test_scaling,
)

TOLERANCE = mpf(10) ** -40

#: A structure -> a contract whose matrices have it
CONTRACTS = {
    "BlockDiagonal": test_block_diagonal.TestUnequalBlocks,
    "Diagonal": test_diagonal.TestDiagonal,
    "Exponential": test_expm.TestExpm,
    "JointSpectrum": test_joint_spectrum.TestJointSpectrum,
    "Kronecker": test_kronecker.TestTwo,
    "KroneckerPlusNoise": test_kronecker_noise.TestTwo,
    "KroneckerSum": test_kronecker_sum.TestFullNoise,
    "LowRankPlusDiagonal": test_low_rank.TestFactorModel,
    "OrnsteinUhlenbeck": test_ornstein_uhlenbeck.TestConstantTimes,
    "Permuted": test_permuted.TestDense,
    "Rescaled": test_scaling.TestScaledBlocks,
    "ScaledGram": test_scaled_gram.TestScaledGram,
}

NUMBA, NUMBA_LOOPS, JAX = test_failures.NUMBA, test_failures.NUMBA_LOOPS, test_failures.JAX

#: A model, and the rewrites that its log-density goes through -> the rules of which it is the case
MODELS = {
    ("scaled constant", NUMBA): ("ConstantMatrix", "constant_matrix_is_unscaled"),
    ("regression", NUMBA): ("constant_vector_is_whitened",),
    ("packed", NUMBA): ("Gram", "packed_cholesky_is_unpacked"),
    ("correlation", NUMBA): (
        "packed_diagonal_is_exponential",
        "packed_diagonal_is_known",
        "packed_standard_deviations_are_known",
    ),
    ("inverse", NUMBA): ("Inverse", "unravel_at_once", "ravel_at_once"),
    ("upper Gram", NUMBA): ("UpperGram",),
    ("groups_of_matrices", NUMBA): (
        "constant_rows_are_compressed",
        "matrix_is_gathered",
        "merge_sums",
    ),
    ("groups_of_blocks", NUMBA): ("shared_rows_come_first", "gathered_structures_are_a_batch"),
    ("kronecker_normal_without_noise", NUMBA): ("noise_is_zero", "fuse_small_reductions"),
    ("eigenvalues", NUMBA): ("eigendecompositions_are_given",),
    ("eigendecompositions", NUMBA): ("eigendecomposition_is_undone",),
    ("declared", NUMBA): ("keep_declarations", "drain_declarations"),
    ("by_hand", NUMBA): ("mvnormal_logp_of_quad_logdet", "quad_logdet_of_cholesky"),
    ("by_products", NUMBA): (
        "logdet_of_proven_posdef",
        "solve_of_proven_posdef",
        "log_prod_of_cholesky_diagonal",
        "trace_of_solve_with_gram_matrix",
    ),
    ("parts", NUMBA): ("sums_of_parts_are_one_sum", "fuse_random_variable"),
    ("scans", NUMBA): ("maps_are_batched", "merge_duplicates"),
    ("short_loop", NUMBA): ("reroll_sums", "reroll_stacks", "reroll_outputs", "lower_to_numba"),
    ("loop", NUMBA): ("loops_of_random_variables", "sums_of_loops"),
    ("covariance_functions", NUMBA_LOOPS): ("fold_scalars",),
    ("covariance_functions", JAX): ("lower_to_jax", "materialize_at_kinks"),
}


def ragged_rows(rng):
    """A loop over groups of rows, each with a covariance."""
    lengths = (3, 1)
    logps, *inputs = test_ragged.terms(lengths)
    return pt.add(*logps), test_ragged.some_values(rng, lengths, *inputs)


def joined_slices(rng):
    """Rows that are cut out of one vector."""
    x, cov = pt.vector("x", shape=(8,)), pt.matrix("cov", shape=(2, 2))
    logp, _ = mvnormal_logp(pt.stack([x[:2], x[4:6], x[6:]]), np.zeros(2), cov)
    return logp.sum(), {x: rng.normal(size=8), cov: spd(rng, n=2)}


def constant_of_low_rank(rng):
    """A constant matrix of rank 2, exactly, plus noise."""
    W = rng.integers(-9, 9, size=(24, 2)).astype(float)
    x, s = pt.vector("x", shape=(24,)), pt.scalar("s")
    logp, _ = mvnormal_logp(x, np.zeros(24), W @ W.T + s**2 * np.eye(24))
    return logp, {x: rng.normal(size=24), s: np.array(2.5)}


#: What makes a graph and the values of its inputs -> the rules of which it is the case
GRAPHS = {
    ragged_rows: ("join_ragged_rows",),
    joined_slices: ("join_at_once",),
    constant_of_low_rank: ("LowRankPlusDiagonal",),
}

#: What only looks at a graph: there is nothing to certify
NOTES = {"note_declarations"}

#: What a rule that has a certificate calls, and which finds nothing more in the cases here
CALLED = {"join_slices"}

CERTIFIED = {*CONTRACTS, *chain(*MODELS.values(), *GRAPHS.values()), *NOTES, *CALLED}


def assert_certified(got, want):
    """All numbers agree."""
    for one, other in zip(got, want, strict=True):
        difference = relative_difference(one, other)
        assert difference < TOLERANCE, f"they differ by {nstr(difference, 3)}"


def assert_fired(rules, changed):
    assert not [rule for rule in rules if not changed.get(rule)]


def rewritten(graph):
    """A copy, after the pre-gradient pass: rewrites work in place."""
    return rewrite_graph(graph, include=PRE_GRADIENT, clone=True)


def as_written(density):
    """The formula of a density of a dense matrix: PyTensor differentiates the factorization."""
    node = density[0].owner
    return node.op.build_inner_graph(*node.inputs)


def assert_same_digits(graph, new, values, table: Table, rng):
    """`new` has the value and the gradient of `graph`."""
    point = {var: random_digits(rng, value) for var, value in values.items()}
    wrt = list(values)
    got, want = (
        evaluate([*outputs, *gradient(outputs, wrt)], point, table) for outputs in (new, graph)
    )
    assert_certified(got, want)


@pytest.mark.parametrize(
    ("rule", "param"),
    [(rule, param) for rule, contract in CONTRACTS.items() for param in contract.params],
)
def test_structure(rule, param, rng):
    for graph, values in CONTRACTS[rule]().graphs(rng, param).values():
        with exact_constants() as table, rules_that_run() as changed:
            new = rewritten(graph)
        assert_fired([rule], changed)
        assert_same_digits(as_written(graph), new, values, table, rng)


@pytest.mark.parametrize("build", GRAPHS)
def test_graph(build, rng):
    """The log-density and its gradient, after all rewrites."""
    graph, values = build(rng)
    point = {var: random_digits(rng, value) for var, value in values.items()}
    with exact_constants() as table, rules_that_run() as changed:
        new = rewritten(graph)
        outputs = [new, *gradient([new], list(values))]
        fgraph = FunctionGraph(list(values), outputs, clone=False)
        add_supervisor_to_fgraph(fgraph, [In(var) for var in fgraph.inputs])
        NUMBA.optimizer.rewrite(fgraph)
    assert_fired(GRAPHS[build], changed)
    want = evaluate([graph, *gradient([graph], list(values))], point, table)
    assert_certified(evaluate(fgraph.outputs, point, table), want)


@pytest.mark.parametrize(
    ("name", "mode"),
    MODELS,
    ids=lambda key: key if isinstance(key, str) else type(key.linker).__name__,
)
def test_model(name, mode, rng):
    """Log-density, gradient and terms, as functions of one vector, after all rewrites."""
    # the model computes eigenvectors of constants
    with exact_constants(test_failures) as table:
        model, point = test_failures.built(name)
        with mvn.disable():
            x, graph = test_failures.graph_of_raveled_point(model, point)
        with rules_that_run() as changed:
            x_new, new = test_failures.graph_of_raveled_point(model, point, mode.optimizer)
    assert_fired(MODELS[name, mode], changed)
    values = random_digits(rng, test_failures.raveled_point(point))
    assert_certified(evaluate(new, {x_new: values}, table), evaluate(graph, {x: values}, table))


@pytest.mark.parametrize("rule", [rule for rules in RULES.values() for rule in rules])
def test_every_rule_has_a_certificate(rule):
    assert rule in CERTIFIED, f"no certificate for the rule {rule!r}: give it a case in this file"


def test_certificates_are_of_rules():
    rules = {rule for rules in RULES.values() for rule in rules}
    assert rules >= CERTIFIED


def test_notes_change_nothing():
    with rules_that_run() as changed:
        test_failures.numbers("declared")
    assert {rule: changed[rule] for rule in NOTES} == dict.fromkeys(NOTES, False)


def test_what_is_smaller_than_rounding_is_found(rng):
    """A formula that is wrong by 1e-30."""
    contract = test_diagonal.TestDiagonal()
    graph, values = contract.graphs(rng)["quad_logdet"]
    delta, matrix = graph[0].owner.inputs
    wrong = inv_quad_logdet(delta * (1 + 0 * delta), matrix)
    wrong[0] = wrong[0] + 1e-30 * (delta**2).sum()
    rounded = [float(evaluate_in_doubles(out[:1], values)[0]) for out in (graph, wrong)]
    assert np.isclose(*rounded, rtol=1e-15, atol=0)
    with pytest.raises(AssertionError, match="they differ by"):
        assert_same_digits(as_written(graph), wrong, values, Table(), rng)
