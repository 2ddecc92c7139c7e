"""What every structure must keep: inherit `StructureContract` and supply a builder.

The builder makes a matrix and the values of its inputs; the contract compares the rewritten graphs
with the dense ones, which PyTensor evaluates node by node as they were written.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import Variable
from pytensor.graph.replace import vectorize_graph

from pytensor_mvn_rewrites.ops import inv_quad_logdet, mvnormal_logp
from pytensor_mvn_rewrites.pipeline import Fired, recording
from tests.harness import (
    PIPELINE_MODE,
    assert_close,
    assert_same_numbers,
    assert_settled,
    evaluate,
    failing,
    gradient,
    guards,
    replaced,
    rewritten,
    spd,
    warns_of_failures,
)


@dataclass
class Case:
    """A structured matrix, shape (*batch, n, n), and the values of its inputs."""

    matrix: Variable
    values: Mapping[Variable, object]


def symmetric(entries):
    """A matrix that is symmetric by construction, and equal to `entries` if these are."""
    return 0.5 * (entries + entries.mT)


def spd_input(rng, name, n, *, batch=(), dtype="float64", condition=10.0, sign=1):
    """A symmetric matrix variable made of an input, and the input with its value."""
    entries = pt.tensor(name, shape=(*batch, n, n), dtype=dtype)
    value = sign * spd(rng, *batch, n=n, condition=condition)
    return symmetric(entries), {entries: value.astype(dtype)}


def batched_kron(A, B):
    """One Kronecker product for each matrix of a batch, as re-rolled loops have them."""
    if A.type.ndim == B.type.ndim == 2:
        return pt.linalg.kron(A, B)
    a, b = (pt.tensor(shape=M.type.shape[-2:], dtype=M.type.dtype) for M in (A, B))
    return vectorize_graph(pt.linalg.kron(a, b), {a: A, b: B})


def dense_variables(fgraph, n: int) -> list[Variable]:
    """Variables of a compiled graph that hold a matrix of the full size."""
    variables = {var for node in fgraph.apply_nodes for var in (*node.inputs, *node.outputs)}
    return [
        var
        for var in variables
        if getattr(var.type, "ndim", 0) >= 2 and var.type.shape[-2:] == (n, n)
    ]


class StructureContract:
    """The checks; a subclass supplies `build`, and sets to None what does not apply to it."""

    #: Parametrizations that the rule knows.
    params: tuple[str, ...] = ("cov",)

    def build(self, rng, *, batch=(), dtype="float64", condition=10.0, sign=1) -> Case:
        """A matrix whose condition number is about `condition`; ``sign=-1``: not positive definite.

        In the parametrization "chol" the matrix counts as the lower triangular Cholesky factor.
        """
        raise NotImplementedError

    def graphs(self, rng, param="cov", *, rows=(), batch=(), dtype="float64", **kwargs):
        """Both ops on a matrix of the structure: {name: (graph, values)}."""
        case = self.build(rng, batch=batch, dtype=dtype, **kwargs)
        n = case.matrix.type.shape[-1]
        x, mu = (
            pt.tensor("x", shape=(*rows, n), dtype=dtype),
            pt.tensor("mu", shape=(n,), dtype=dtype),
        )
        x_values = {x: rng.normal(size=(*rows, n)).astype(dtype)}
        mu_values = {mu: rng.normal(size=n).astype(dtype)}
        return {
            "mvnormal": (
                list(mvnormal_logp(x, mu, case.matrix, param)),
                {**x_values, **mu_values, **case.values},
            ),
            "quad_logdet": (
                list(inv_quad_logdet(x, case.matrix, param)),
                {**x_values, **case.values},
            ),
        }

    def check(self, graph, values, condition=10.0):
        """The rule fires, once and for all, and changes no number."""
        with recording() as events:
            new = rewritten(graph)
        assert any(isinstance(event, Fired) for event in events), "the rule did not fire"
        assert [v.type.dtype for v in new] == [v.type.dtype for v in graph]
        assert [v.type.broadcastable for v in new] == [v.type.broadcastable for v in graph]
        assert_settled(new)
        assert_same_numbers(graph, new, values, condition=condition)

    def check_all(self, rng, param="cov", condition=10.0, **kwargs):
        """`check` for both ops."""
        for graph, values in self.graphs(rng, param, condition=condition, **kwargs).values():
            self.check(graph, values, condition)

    def test_parametrizations(self, rng):
        for param in self.params:
            self.check_all(rng, param)

    def test_a_failure_is_one_warning(self, rng, monkeypatch):
        """The graph is used as it was."""
        graph, values = self.graphs(rng, self.params[0])["quad_logdet"]
        with recording() as events:
            rewritten(graph)
        for event in events:
            for guard in guards(event.stage, event.rule):
                replaced(monkeypatch, guard, failing)
        with warns_of_failures() as caught:
            new = rewritten(graph)
        assert len(caught) == len({str(warning.message) for warning in caught})
        assert_same_numbers(graph, new, values, condition=10.0)

    @pytest.mark.parametrize("rows", [(1,), (4,), (2, 4)], ids=str)
    def test_rows_that_share_the_matrix(self, rng, rows):
        for param in self.params:
            self.check_all(rng, param, rows=rows)

    @pytest.mark.parametrize(
        ("rows", "batch"), [((), (4,)), ((4,), (4,)), ((2, 1), (4,)), ((4,), (2, 1))], ids=str
    )
    def test_batch_of_matrices(self, rng, rows, batch):
        for param in self.params:
            self.check_all(rng, param, rows=rows, batch=batch)

    def test_float32(self, rng):
        with pytensor.config.change_flags(floatX="float32"):
            self.check_all(rng, dtype="float32", rows=(3,))

    def test_ill_conditioned(self, rng):
        self.check_all(rng, condition=1e8)

    def test_not_positive_definite(self, rng):
        """NaN and False as in the dense graph."""
        for graph, values in self.graphs(rng, sign=-1, rows=(2,)).values():
            with np.errstate(all="ignore"):
                got, want = evaluate(rewritten(graph), values), evaluate(graph, values)
            assert not want[-1].any()
            for one, other in zip(got, want, strict=True):
                np.testing.assert_array_equal(one, other)

    def test_nan(self, rng):
        """A NaN in the matrix is a NaN in the result."""
        for graph, values in self.graphs(rng).values():
            values = dict(values)
            *_, last = values
            values[last] = np.full_like(values[last], np.nan)
            for got in (evaluate(rewritten(graph), values), evaluate(graph, values)):
                assert np.isnan(got[0])
                assert not got[-1]

    def test_hessian(self, rng):
        [graph, values], _ = self.graphs(rng).values()
        wrt = list(values)
        results = [
            evaluate(
                gradient([(g**2).sum() for g in gradient(outputs[:1], wrt)], wrt),
                values,
            )
            for outputs in (rewritten(graph), graph)
        ]
        for got, want in zip(*results, strict=True):
            assert_close(got, want, "hessian", condition=1e2)

    def test_nothing_dense_is_left(self, rng):
        """Neither in the value nor in the gradient, compiled with all rewrites."""
        [graph, values], _ = self.graphs(rng).values()
        n = graph[0].owner.inputs[0].type.shape[-1]
        new = rewritten(graph)
        outputs = [*new, *gradient(new, list(values))]
        fn = pytensor.function(list(values), outputs, mode=PIPELINE_MODE)
        dense = dense_variables(fn.maker.fgraph, n)
        assert not dense, pytensor.dprint(dense, file="str")
