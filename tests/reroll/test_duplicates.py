import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.pytensorf import rewrite_pregrad
from pytensor.graph.fg import FunctionGraph

from pytensor_mvn_rewrites.ops import PackedCholesky, PackedCholeskyPullback, packed_cholesky
from pytensor_mvn_rewrites.ops.gaussian import FusedOp
from pytensor_mvn_rewrites.reroll.duplicates import MAX_ALIKE, merge_duplicates
from tests.harness import PIPELINE_MODE


def two_of(matching: bool):
    u = pt.vector("u", shape=(3,))
    first = packed_cholesky(pt.exp(u), 2)[0]
    other = packed_cholesky(pt.exp(u) if matching else pt.sin(u), 2)[1]
    return FunctionGraph([u], [first, other], clone=False)


def fused(fgraph):
    return [node for node in fgraph.apply_nodes if isinstance(node.op, FusedOp)]


def test_equal_nodes_become_one():
    fgraph = two_of(matching=True)
    assert len(fused(fgraph)) == 2
    merge_duplicates(fgraph)
    assert len(fused(fgraph)) == 1


def test_different_nodes_stay():
    fgraph = two_of(matching=False)
    merge_duplicates(fgraph)
    assert len(fused(fgraph)) == 2


def test_a_loop_is_re_rolled_first():
    u = pt.vector("u", shape=(3,))
    outputs = [packed_cholesky(pt.exp(u), 2)[0] for _ in range(MAX_ALIKE + 1)]
    fgraph = FunctionGraph([u], outputs, clone=False)
    merge_duplicates(fgraph)
    assert len(fused(fgraph)) == MAX_ALIKE + 1


def test_other_graphs_are_left_alone():
    """Without a fused op, merging is PyTensor's business."""
    u = pt.vector("u")
    fgraph = FunctionGraph([u], [pt.exp(u), pt.exp(u)], clone=False)
    merge_duplicates(fgraph)
    assert len(fgraph.apply_nodes) == 2


def test_a_factor_that_is_stacked_twice_is_differentiated_once():
    """The priors are re-rolled first, the densities when their ragged rows have been joined."""
    rng = np.random.default_rng(0)
    with pm.Model() as model:
        rho = pm.Beta("rho", 2, 2)
        glob = pm.LKJCholeskyCov("glob", n=2, eta=1.0, sd_dist=pm.Exponential.dist(1))[0]
        for g in range(3):
            chol = pm.LKJCholeskyCov(f"chol_{g}", n=2, eta=9, sd_dist=pm.Exponential.dist(1))[0]
            mu = pm.Normal(f"mu_{g}", shape=2)
            pm.MvNormal(
                f"x_{g}",
                mu,
                chol=rho * glob + (1 - rho) * chol,
                observed=rng.normal(size=(4 + g, 2)),
            )
    logp = rewrite_pregrad(model.logp())
    grads = pt.grad(logp, model.value_vars)
    fn = pytensor.function(model.value_vars, [logp, *grads], mode=PIPELINE_MODE)
    ops = [type(node.op) for node in fn.maker.fgraph.apply_nodes]
    # one for the global factor, one for those of all groups
    assert ops.count(PackedCholesky) == ops.count(PackedCholeskyPullback) == 2
