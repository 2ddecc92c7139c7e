import pytensor.tensor as pt
import pytest

from tests.harness import assert_declines, assert_rewrites_to, named


def gram_plus_jitter(A):
    return A @ A.T + 1e-3 * pt.eye(3)


def logdet_of(chol):
    return 2 * pt.log(pt.diag(chol)).sum(-1)


FORMS = {
    "slogdet": lambda S: pt.linalg.slogdet(S)[1],
    "log det": lambda S: pt.log(pt.linalg.det(S)),
    "log abs det": lambda S: pt.log(pt.abs(pt.linalg.det(S))),
}


@pytest.mark.parametrize("form", FORMS)
def test_beside_a_cholesky_factor(rng, form):
    A, b = pt.matrix("A", shape=(3, 4)), pt.vector("b", shape=(3,))
    S = gram_plus_jitter(A)
    chol = pt.linalg.cholesky(S)
    assert_rewrites_to(
        [FORMS[form](S), chol @ b],
        [logdet_of(chol), chol @ b],
        {A: rng.normal(size=(3, 4)), b: rng.normal(size=3)},
        condition=1e2,
    )


def test_product_of_the_diagonal_beside_rows(rng):
    S, w = pt.matrix("S", shape=(3, 3)), pt.vector("w", shape=(5,))
    chol = pt.linalg.cholesky(S)
    product = pt.prod(pt.diag(chol))
    assert_rewrites_to(
        w * pt.log(product[None]),
        w * pt.log(pt.diag(chol)).sum()[None],
        {S: 2.0 + pt.eye(3).eval(mode="FAST_COMPILE"), w: rng.normal(size=5)},
    )


def near_misses():
    S, A, w = pt.matrix("S"), pt.matrix("A", shape=(3, 4)), pt.vector("w", shape=(5,))
    return {
        "nothing proven": [pt.linalg.slogdet(S)[1], pt.linalg.solve(S, w)],
        "determinant alone": pt.linalg.slogdet(gram_plus_jitter(A))[1],
        "Gram matrix": [pt.linalg.slogdet(A @ A.T)[1], A.sum()],
        "product of any diagonal": w * pt.log(pt.prod(pt.diag(S))[None]),
    }


def test_near_misses():
    for name, case in near_misses().items():
        with named(name):
            assert_declines(case)
