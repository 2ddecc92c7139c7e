"""The kernels of structured covariances against the graphs of their ops."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.testing import assert_array_equal

from pytensor_mvn_rewrites.lower.numba_backend import has_kernel
from pytensor_mvn_rewrites.ops import (
    FiniteEigh,
    LowRankFactorization,
    Whiten,
    WhitenPullback,
    low_rank_quad_logdet,
    noisy_kronecker_quad_logdet,
    whiten_by,
)
from pytensor_mvn_rewrites.ops.gaussian import KernelOp
from tests.harness import assert_close, evaluate, spd


def kronecker(delta, sizes=(2, 3), batch=(), dtype="float64"):
    """Variables, outputs, and values by a random generator."""
    factors = [pt.tensor(shape=(*batch, None, None), dtype=dtype) for _ in sizes]
    noise = pt.scalar("noise", dtype=dtype)
    outputs = noisy_kronecker_quad_logdet(delta, noise, factors)

    def values(rng):
        return [np.asarray(0.3), *(spd(rng, *batch, n=n) for n in sizes)]

    return [noise, *factors], outputs, values


def three_factors(delta):
    return kronecker(delta, (2, 1, 3))


def one_factor(delta):
    return kronecker(delta, (6,))


def low_rank(delta, batch=(), dtype="float64"):
    factor = pt.tensor(shape=(*batch, None, None), dtype=dtype)
    diag = pt.tensor(shape=(*batch, None), dtype=dtype)
    outputs = low_rank_quad_logdet(delta, factor, diag)
    return (
        [factor, diag],
        outputs,
        lambda rng: [rng.normal(size=(*batch, 6, 2)), rng.uniform(0.5, 1, size=(*batch, 6))],
    )


DENSITIES = [kronecker, three_factors, one_factor, low_rank]


def compiled(delta, density, mode, **kwargs):
    """Values and gradients with a weight of its own for each row."""
    parameters, (quaddist, half_logdet, posdef), values = density(delta, **kwargs)
    weight = pt.tensor("weight", shape=quaddist.type.shape, dtype=delta.type.dtype)
    cost = (weight * quaddist).sum() + (pt.exp(weight) * half_logdet).sum()
    wrt = [delta, *parameters]
    outputs = [quaddist, half_logdet, posdef, *pt.grad(cost, wrt)]
    inputs = [*wrt, weight]
    if mode is None:
        return lambda *args: evaluate(outputs, dict(zip(inputs, args, strict=True))), values
    return pytensor.function(inputs, outputs, mode=mode), values


def with_kernels(fn):
    """The ops of the nodes that kernels cover."""
    nodes = [node for node in fn.maker.fgraph.toposort() if isinstance(node.op, KernelOp)]
    return [type(node.op) for node in nodes if has_kernel(node)]


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(
    ("static", "lengths"),
    [((), [()]), ((None,), [(4,), (1,), (0,)]), ((1,), [(1,)])],
    ids=["one vector", "rows", "one row"],
)
def test_numbers(rng, density, static, lengths):
    delta = pt.tensor("delta", shape=(*static, 6))
    fn, values = compiled(delta, density, "NUMBA")
    expected_fn, _ = compiled(delta, density, None)
    assert len(with_kernels(fn)) >= 3
    for rows in lengths:
        arguments = [rng.normal(size=(*rows, 6)), *values(rng), rng.normal(size=rows)]
        # neither C- nor F-contiguous
        arguments[1:] = [
            np.repeat(arg, 2, -1)[..., ::2] if arg.ndim else arg for arg in arguments[1:]
        ]
        copies = [arg.copy() for arg in arguments]
        for got, want in zip(fn(*arguments), expected_fn(*arguments), strict=True):
            assert got.dtype == want.dtype
            assert_close(got, want, "gradient", condition=1e2)
        for arg, copy in zip(arguments, copies, strict=True):
            assert_array_equal(arg, copy)
    if static == (None,):
        arguments = [rng.normal(size=(3, 6)), *values(rng), rng.normal(size=3)]
        for k in range(1, len(arguments)):
            for bad in (-9.0, np.nan, np.inf):
                changed = [arg.copy() for arg in arguments]
                changed[k][...] = bad
                with np.errstate(all="ignore"):
                    expected = expected_fn(*changed)
                for got, want in zip(fn(*changed), expected, strict=True):
                    assert_array_equal(np.isnan(got), np.isnan(want))


def test_shapes_that_do_not_agree(rng):
    for density in (kronecker, low_rank):
        fn, values = compiled(pt.matrix("delta"), density, "NUMBA")
        arguments = [rng.normal(size=(3, 6)), *values(rng), rng.normal(size=3)]
        for k, part in ((0, np.s_[:, :-1]), (0, np.s_[:-1]), (2, np.s_[:-1])):
            changed = list(arguments)
            changed[k] = changed[k][part]
            with pytest.raises(ValueError, match="do not agree"):
                fn(*changed)


@pytest.mark.parametrize("bad", [None, -1.0, np.nan])
def test_whiten(rng, bad):
    matrix, columns, weight = pt.matrix("matrix"), pt.matrix("columns"), pt.matrix("weight")
    whitened, half_logdet, posdef = whiten_by(matrix, columns)
    inputs = [matrix, columns, weight]
    cost = (weight * whitened).sum() + 0.7 * half_logdet
    outputs = [whitened, half_logdet, posdef, *pt.grad(cost, inputs[:2])]
    fn = pytensor.function(inputs, outputs, mode="NUMBA")
    assert with_kernels(fn) == [Whiten, WhitenPullback]
    for n, c in ((3, 5), (4, 1), (1, 2)):
        values = [spd(rng, n=n), rng.normal(size=(n, c)), rng.normal(size=(n, c))]
        if bad is not None:
            values[0][-1, -1] = bad
        got = fn(*values)
        if bad is not None:
            assert not got[2]
            assert all(np.isnan(number).all() for number in (*got[:2], got[3]))
            continue
        want = evaluate(outputs[:3], dict(zip(inputs, values, strict=True)))
        for one, other in zip(got, want, strict=False):
            assert_close(one, other, "value", condition=1e2)
        # the gradient that PyTensor takes of the formula
        whitened, half_logdet, *_ = Whiten().build_inner_graph(matrix, columns)
        formula = pt.grad((weight * whitened).sum() + 0.7 * half_logdet, inputs[:2])
        for one, other in zip(
            got[3:], evaluate(formula, dict(zip(inputs, values, strict=True))), strict=True
        ):
            assert_close(one, other, "gradient", condition=1e2)


NOT_COVERED = {
    "float32": ((6,), {"dtype": "float32"}),
    "a batch of matrices": ((6,), {"batch": (4,)}),
    "two batch dimensions of rows": ((2, 4, 6), {}),
}


@pytest.mark.parametrize("density", [kronecker, low_rank])
@pytest.mark.parametrize("case", NOT_COVERED)
def test_not_covered(case, density):
    """Only the decompositions may have a kernel. Nothing is compiled."""
    shape, kwargs = NOT_COVERED[case]
    delta = pt.tensor("delta", shape=shape, dtype=kwargs.get("dtype", "float64"))
    fn, _ = compiled(delta, density, "NUMBA", **kwargs)
    assert set(with_kernels(fn)) <= {FiniteEigh, LowRankFactorization}


def test_constants_are_decomposed_once(rng):
    """The decomposition of a constant Kronecker factor is a constant."""
    delta, noise, factor = pt.vector("delta"), pt.scalar("noise"), pt.matrix("factor")
    outputs = noisy_kronecker_quad_logdet(delta, noise, [factor, pt.constant(spd(rng, n=3))])
    fn = pytensor.function([delta, noise, factor], outputs, mode="NUMBA")
    assert with_kernels(fn).count(FiniteEigh) == 1
    values = [rng.normal(size=6), np.asarray(0.3), spd(rng, n=2)]
    expected = evaluate(outputs, dict(zip([delta, noise, factor], values, strict=True)))
    for got, want in zip(fn(*values), expected, strict=True):
        assert_close(got, want, "value", condition=1e2)
