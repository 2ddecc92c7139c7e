"""A fixed choice of generated models; ``make fuzz`` checks others."""

import pytest

from tests.generated.fuzz import Summary, hunt, report
from tests.generated.grammar import (
    LKJ,
    Blocks,
    Combined,
    Given,
    Gram,
    Kron,
    Loop,
    LowRank,
    Markov,
    Mean,
    Member,
    Model,
    Permuted,
    Root,
    Sandwich,
    Scaled,
    Sizes,
    Squared,
    Stacked,
)
from tests.generated.oracles import check

#: Crossings of features at which a rewrite has once been wrong.
CROSSINGS = {
    "data in a covariance": Model(
        (Loop(3, 2, (Member(Given(3, "computed")),), Mean("leaf", "shared")),), seed=3
    ),
    "an index in data": Model(
        (Loop(2, 3, (Member(Given(2, "constant")),), Mean("leaf", "gathered")),), seed=3
    ),
    "rows that share all parameters, in a step method": Model(
        (Loop(2, 4, (Member(Scaled("shared", Given(2, "data"))),), Mean("leaf", "shared")),),
        seed=2,
    ),
    "constant rows, in a step method": Model(
        (
            Loop(
                n=2,
                terms=4,
                members=(Member(Scaled("shared", Given(2, "constant"))),),
                mean=Mean("leaf", "shared"),
                rows=(3,),
            ),
        ),
        seed=2,
    ),
    "the first Cholesky factor has a tag": Model(
        (
            Loop(
                n=2,
                terms=4,
                members=(
                    Member(Scaled("indexed", Given(2, "constant", lower=True)), "chol"),
                    Member(Gram(2, "own", bare=True)),
                ),
            ),
        ),
    ),
    "a triangular and a full square root": Model(
        (
            Loop(
                n=3,
                terms=4,
                members=(
                    Member(Scaled("indexed", Root(3, "indexed")), "chol", tag=True),
                    Member(Scaled("indexed", Root(3, "indexed", triangular=False)), "chol"),
                ),
            ),
        ),
    ),
    "other ranks in each term": Model(
        (Loop(64, 4, (Member(LowRank(64, (2, 3, 4, 5), "shared", "own")),), dims=True),)
    ),
    "a random variable of the user's own": Model(
        (Loop(2, 2, (Member(Scaled("own", Given(2, "constant"))),), kind="subclass"),)
    ),
    "slices of another length": Model(
        (Loop(2, 2, (Member(Gram(2, "indexed")),)),), ("joined slices",), seed=9
    ),
    "a rank that grows": Model(
        (Loop(32, 1, (Member(LowRank(32, (2,), "shared", "shared")),)),),
        sizes=(Sizes(1, 1), Sizes(1, 20)),
    ),
    "a rank that grows, and a negative noise": Model(
        (Loop(32, 1, (Member(LowRank(32, (2,), "shared", "shared", sign=-1)),)),),
        sizes=(Sizes(1, 1), Sizes(1, 60)),
    ),
    "a mask over two dimensions": Model(
        (
            Loop(
                n=6,
                terms=3,
                members=(
                    Member(
                        Kron(
                            Gram(2, "shared"),
                            Stacked(Gram(3, "indexed"), "diagonal of the stack"),
                        )
                    ),
                ),
            ),
        ),
    ),
    "stacks of blocks whose sizes change": Model(
        loops=(
            Loop(
                n=3,
                terms=4,
                members=(
                    Member(
                        Sandwich(
                            "shared",
                            Blocks(
                                (Given(2, "data[i]", lower=True), Root(1, "gathered")),
                                "block_diag",
                            ),
                            "diag @ m",
                        ),
                        "chol",
                    ),
                    Member(Scaled(0.05, Given(3, "own data"), power=2)),
                ),
                mean=Mean("leaf", "data"),
                dims=True,
            ),
        ),
        sizes=(Sizes(1, 2, 1), Sizes(1, 8, 1)),
        seed=994,
    ),
    "many points at once": Model(
        (Loop(2, 3, (Member(Scaled("indexed", Given(2, "constant"))),)),), seed=4
    ),
    "one density, many points at once": Model(
        (Loop(2, 1, (Member(Scaled("shared", Given(2, "constant"))),), Mean("leaf", "shared")),),
        seed=4,
    ),
    "lengths of dims, many points at once": Model(
        (Loop(2, 2, (Member(Sandwich("indexed", Given(2, "constant"), "outer * m")),), dims=True),),
        seed=4,
    ),
    "a diagonal of blocks": Model(
        (
            Loop(
                n=3,
                terms=3,
                members=(
                    Member(Blocks((Root(1, "indexed"), Root(2, "indexed")), "block_diag"), "chol"),
                ),
                kind="formula",
            ),
        ),
    ),
    "missing values": Model((), ("missing values",)),
    "assigned rows": Model((), ("assigned rows",)),
    "a mask of ones": Model(
        (Loop(2, 2, (Member(Scaled("own", Given(2, "constant"))),)),), ("mask of ones",)
    ),
    "a stack that is filled": Model(
        (Loop(2, 3, (Member(Stacked(Gram(2, "indexed"), "i", "set")),)),)
    ),
    "fancy indices of unequal rank": Model(
        (Loop(3, 3, (Member(Permuted(Gram(3, "shared"))),)),), seed=3
    ),
    "normals by fancy indices": Model((), ("normals by fancy indices",), seed=3),
    "scaled squares of triangular roots": Model(
        (Loop(3, 8, (Member(Scaled(0.05, Squared(Root(3, "indexed")))),), rows=(3,)),),
        sizes=(Sizes(), Sizes(2, 1, 2)),
    ),
    "scaled correlations of one prior": Model(
        (Loop(3, 3, (Member(Scaled("indexed", LKJ(3, own=False, corr=True), 2)),)),),
    ),
    "standard deviations around correlations": Model(
        (
            Loop(
                n=3,
                terms=3,
                members=(Member(Sandwich("indexed", LKJ(3, corr=True), "diag @ m @ diag")),),
            ),
        ),
    ),
    "a kinship in data beside noise": Model(
        (Loop(8, 8, (Member(Combined(8, "data", "indexed", "eye")),), rows=(2, 3)),), seed=2
    ),
    "two constant matrices": Model(
        (Loop(8, 8, (Member(Combined(8, "constant", "indexed", "D")),)),), seed=2
    ),
    "neighbours": Model(
        (Loop(8, 8, (Member(Combined(8, "constant", "shared", "neighbours"), "tau"),)),), seed=2
    ),
    "times without order": Model(
        (Loop(8, 8, (Member(Markov(8, "constant", "indexed")),), rows=(2,)),), seed=1
    ),
    "times in data, with ties": Model(
        (Loop(8, 8, (Member(Markov(8, "data", "indexed", "exp + noise", True)),)),), seed=1
    ),
    "powers of a correlation of either sign": Model(
        (Loop(8, 8, (Member(Markov(8, "constant", "indexed", "rho")),), rows=(2,)),),
        sizes=(Sizes(), Sizes(2)),
        seed=1,
    ),
}


@pytest.mark.parametrize("name", CROSSINGS)
def test_crossing(name, worker):
    verdict = check(CROSSINGS[name], worker)
    assert not verdict.invalid
    assert not verdict.disagreements


# the first example of each seed is the empty model
@pytest.mark.parametrize("number", range(40))
def test_models_have_the_numbers_of_the_graph_as_written(number, worker):
    summary = Summary()
    hunt(number, summary, worker, examples=6, parts=number % 8 == 0)
    assert not summary.found, report(summary.found)
