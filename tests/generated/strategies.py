"""Hypothesis strategies for the grammar."""

from random import Random

from hypothesis import strategies as st

from tests.generated import grammar as g

ANY = st.sampled_from(g.SOURCES)
GIVEN = st.sampled_from(g.GIVEN)
MATRIX_GIVEN = st.sampled_from([s for s in g.GIVEN if s != "computed"])
SCALE = ANY | st.just(0.05)
MATRIX = st.sampled_from([s for s in g.SOURCES if s != "data"])

#: The number of rows from which the rule for matrices of low rank applies, to one and to many.
LOW_RANK_SIZES = (24, 64)


@st.composite
def matrices(draw, n, depth=2, resizable=False):
    """Positive definite matrices."""

    def inner(size=n):
        return draw(matrices(size, depth - 1, resizable))

    leaves = [
        "given",
        "given",
        "gram",
        "gram",
        "triangular",
        "diagonal",
        "kernel",
        "expm",
        "mapped",
        "combined",
        "markov",
        "scaled root",
    ]
    if n > 1 and not resizable:
        leaves += ["correlations"]
    nested = ["scaled", "scaled", "sandwich", "plus", "convex", "inverse", "stacked", "permuted"]
    factors = [k for k in (1, 2, 3) if n % k == 0 and n > 1]
    if factors:
        nested += ["kron", "kron with noise", "krons"]
    if n > 1:
        nested += ["blocks", "blocks"]
    kind = draw(st.sampled_from(leaves + ["low rank"] * (n > 1) + nested * (2 if depth > 0 else 0)))
    match kind:
        case "given":
            return g.Given(n, draw(GIVEN))
        case "gram":
            return g.Gram(n, draw(MATRIX), False, draw(st.booleans()))
        case "triangular":
            return g.Gram(n, draw(MATRIX), True, draw(st.booleans()))
        case "diagonal":
            return draw(diagonals(n))
        case "kernel":
            kinds = st.sampled_from(["hand", "ExpQuad", "Matern52", "RatQuad"][:3])
            return g.Kernel(
                n, draw(GIVEN.filter(lambda s: s != "computed")), draw(ANY), draw(kinds)
            )
        case "expm":
            return g.Expm(n, draw(MATRIX))
        case "mapped":
            return g.Mapped(n, draw(st.sampled_from(["shared", "constant", "data"])))
        case "low rank":
            return draw(low_rank(n))
        case "combined":
            other = st.sampled_from(["eye", "D", "neighbours"])
            return g.Combined(n, draw(MATRIX_GIVEN), draw(ANY), draw(other), draw(st.booleans()))
        case "markov":
            return draw(markov(n))
        case "scaled root":
            return g.Scaled(draw(SCALE), g.Squared(draw(roots(n, max(depth - 1, 0), resizable))))
        case "correlations":
            return g.LKJ(n, draw(st.booleans()), corr=True)
        case "scaled":
            return g.Scaled(draw(SCALE), inner(), draw(st.sampled_from([1, 2])))
        case "sandwich":
            spelling = st.sampled_from(["diag @ m @ diag", "d * m * d", "outer * m"])
            return g.Sandwich(draw(ANY), inner(), draw(spelling))
        case "plus":
            return g.Plus(inner(), inner())
        case "convex":
            return g.Convex(draw(ANY), inner(), inner())
        case "inverse":
            of = inner()
            if "diagonal of the stack" in repr(of):
                return of
            return g.Inverse(of, draw(st.sampled_from(["inv", "solve"])))
        case "stacked":
            return draw(stacked(inner(), resizable))
        case "permuted":
            source = draw(st.sampled_from(["constant", "data", "own data", "data[i]"]))
            spelling = draw(st.sampled_from(["m[q[:, None], q]", "m[q][:, q]"]))
            return g.Permuted(inner(), source, spelling)
        case "blocks":
            return draw(blocks(n, lambda size: matrices(size, depth - 1, resizable), resizable))
    k = draw(st.sampled_from(factors))
    product = g.Kron(inner(k), inner(n // k))
    if kind == "kron":
        return product
    if kind == "kron with noise":
        return g.Plus(product, draw(diagonals(n)))
    return g.Plus(product, g.Kron(inner(k), inner(n // k)))


def markov(n):
    """Ties only beside some noise: the matrix would be singular."""
    kinds = [("exp", False), ("exp + noise", True), ("rho", False)]
    return st.builds(
        lambda times, by, kind, alike: g.Markov(n, times, by, *kind, alike),
        MATRIX_GIVEN,
        ANY,
        st.sampled_from(kinds),
        st.booleans(),
    )


def diagonals(n):
    spelling = st.sampled_from(["diag", "d[:, None] * eye", "s * eye"])
    return st.builds(g.Diagonal, st.just(n), ANY, spelling)


def low_rank(n):
    """Ranks that are small, equal or not."""
    ranks = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
    return st.builds(
        g.LowRank,
        st.just(n),
        ranks,
        MATRIX,
        ANY,
        st.sampled_from(["s * eye", "diag"]),
    )


def stacked(of, resizable):
    index = ["i", "gather", "data", "mask"]
    spelling = ["stack"]
    if not resizable:
        index, spelling = [*index, "diagonal of the stack"], ["stack", "set"]
    return st.builds(g.Stacked, st.just(of), st.sampled_from(index), st.sampled_from(spelling))


@st.composite
def blocks(draw, n, part, resizable):
    spellings = ["block_diag", "block_diag"] + ([] if resizable else ["set", "concatenate"])
    size = draw(st.integers(1, n - 1))
    parts = (draw(part(size)), draw(part(n - size)))
    count = next((k for k in (2, 3) if n % k == 0), None)
    if count and draw(st.booleans()):
        parts = tuple(draw(part(n // count)) for _ in range(count))
        spellings += ["kron stack", "kron sum"]
    return g.Blocks(parts, draw(st.sampled_from(spellings)))


@st.composite
def roots(draw, n, depth=2, resizable=False):
    """Cholesky factors."""

    def inner(size=n):
        return draw(roots(size, depth - 1, resizable))

    leaves = ["given", "root", "root", "packed", "lkj", "cholesky"]
    nested = ["scaled", "scaled", "sandwich", "convex", "stacked"] + ["blocks", "kron"] * (n > 1)
    kind = draw(st.sampled_from(leaves + nested * (1 if depth > 0 else 0)))
    if resizable and kind in ("packed", "lkj"):
        kind = "root"
    match kind:
        case "given":
            return g.Given(n, draw(GIVEN), lower=True)
        case "root":
            return g.Root(n, draw(MATRIX))
        case "packed":
            return g.Packed(n, draw(MATRIX))
        case "lkj":
            return g.LKJ(n, draw(st.booleans()))
        case "cholesky":
            return g.Cholesky(draw(matrices(n, 1, resizable)))
        case "scaled":
            return g.Scaled(draw(ANY), inner())
        case "sandwich":
            return g.Sandwich(draw(ANY), inner(), draw(st.sampled_from(["diag @ m", "d * m"])))
        case "convex":
            return g.Convex(draw(ANY), inner(), inner())
        case "stacked":
            return draw(stacked(inner(), resizable))
        case "blocks":
            return draw(blocks(n, lambda size: roots(size, depth - 1, resizable), resizable))
    k = draw(st.sampled_from([k for k in (1, 2, 3) if n % k == 0]))
    return g.Kron(inner(k), inner(n // k))


@st.composite
def members(draw, n, resizable):
    param = draw(st.sampled_from(["cov", "cov", "chol", "tau"]))
    if param != "chol":
        assumed = st.sampled_from(["", "", "", "positive_definite", "symmetric"])
        matrix = draw(matrices(n, 2, resizable))
        if "diagonal of the stack" in repr(matrix):
            # not symmetric: PyMC reads its lower triangle only, of a covariance
            return g.Member(matrix, "cov")
        return g.Member(matrix, param, False, draw(assumed))
    if draw(st.integers(0, 5)) == 0:
        return g.Member(g.Root(n, draw(MATRIX), False), "chol")
    assumed = st.sampled_from(["", "", "lower_triangular"])
    return g.Member(draw(roots(n, 2, resizable)), "chol", draw(st.booleans()), draw(assumed))


@st.composite
def loops(draw, resizable):
    n = draw(st.sampled_from([1, 2, 2, 3, 3, 4, 6, 8]))
    terms = draw(st.sampled_from([2, 2, 2, 2, 3, 3, 3, 4, 4, 1, 8, 10]))
    several = draw(st.sampled_from([1, 1, 2]))
    if draw(st.integers(0, 14)) == 0:
        n = draw(st.sampled_from(LOW_RANK_SIZES))
        matrix = draw(low_rank(n))
        some = (g.Member(matrix),)
    else:
        some = tuple(draw(members(n, resizable)) for _ in range(several))
    kind = draw(
        st.sampled_from(
            ["observed"] * 6
            + [
                "latent",
                "latent",
                "student",
                "mixture",
                "gathered",
                "potential",
                "formula",
                "subclass",
            ]
        )
    )
    rows = ()
    if kind in ("observed", "gathered", "potential", "formula", "subclass"):
        rows = draw(st.sampled_from([(), (), (3,), (2, 4), (1, 3, 5)]))
    sources = st.sampled_from(g.SOURCES)
    if kind == "mixture":
        terms = max(terms, 2)
    regression = st.builds(g.Mean, st.sampled_from(["regression", "collinear"]), GIVEN)
    means = [
        st.just(g.Mean()),
        st.builds(g.Mean, st.sampled_from(["leaf", "leaf", "expression"]), sources),
        *[regression] * (2 * bool(rows)),
        *[st.just(g.Mean("previous"))] * (kind == "latent"),
        *[st.just(g.Mean("integers"))] * (not resizable),
    ]
    return g.Loop(
        n=n,
        terms=terms,
        members=some,
        mean=draw(st.one_of(means)),
        kind=kind,
        rows=rows,
        values=draw(st.sampled_from(["constant", "constant", "data"])),
        dims=draw(st.booleans()),
        float32=draw(st.integers(0, 9)) == 0,
        odd=(
            draw(st.none() | st.integers(0, terms - 1))
            if n > 1 and not resizable and kind == "observed"
            else None
        ),
        negative=kind == "gathered" and draw(st.booleans()),
    )


@st.composite
def models(draw, number=0, parts=True):
    """Whole models, some of them `parts` side by side; which ones depends on `number` as well."""
    resizable = draw(st.integers(0, 3)) == 0
    multiples = st.builds(
        g.Sizes,
        st.sampled_from([1, 1, 2]),
        st.sampled_from([1, 2, 8]),
        st.sampled_from([1, 1, 2]),
    )
    extras = st.lists(st.sampled_from(g.EXTRAS), max_size=2, unique=True).map(tuple)
    least = draw(st.sampled_from([0] + [1] * 20))
    if parts and draw(st.integers(0, 5)) == 0:
        # by a seed: the lists that hypothesis draws resemble each other, and few pairs would meet
        chosen = list(g.PARTS)
        Random(f"{number} {draw(st.integers(0, 10**6))}").shuffle(chosen)
        # the first is what hypothesis begins with
        count = draw(st.sampled_from([6, 6, 6, 6, 3, 1]))
        return g.Model((), parts=tuple(chosen[:count]), seed=draw(st.integers(0, 1000)))
    return g.Model(
        loops=tuple(
            draw(
                st.lists(
                    loops(resizable),
                    min_size=least,
                    max_size=least * draw(st.sampled_from([1, 1, 2])),
                )
            )
        ),
        extras=draw(extras if least == 0 or draw(st.integers(0, 3)) == 0 else st.just(())),
        sizes=(draw(multiples), draw(multiples)) if resizable else (),
        seed=draw(st.integers(0, 1000)),
    )
