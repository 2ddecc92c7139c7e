r"""One block of :mod:`.lanes` for medium matrices: loops over tiles of 3 x 3 elements.

Layout: the lower triangle is transposed into scratch, eight matrices side by side, its rows packed
one after the other. A tile of nine sums stays in registers while it reads two strips of three, so
that there are more products than loads. The Cholesky factor replaces the matrix, its inverse
replaces the factor and the gradient replaces the inverse: one triangle, which stays in the
first-level cache up to n = 36.

The size is a number at run time, so that one compiled function serves them all. It is rounded up
to whole tiles by an identity matrix, which changes nothing.
"""

from collections.abc import Callable

from numba.core import cgutils

from pytensor_mvn_rewrites.lower.numba.jit import njit_exact
from pytensor_mvn_rewrites.lower.numba.vectors import (
    WIDTH,
    Difference,
    Index,
    Memory,
    Product,
    Variable,
    Vec,
    dot,
    loop,
    transpose,
)

#: Rows and columns of a tile
TILE = 3

#: Vectors in scratch: the triangle, room for a row that is stored too far, and six vectors of n
N_VECTORS = 6


@njit_exact
def scratch_size(n):
    """Numbers of scratch for matrices of size `n`, and to align it."""
    padded = n + TILE - 1
    return WIDTH * (padded * (padded + 1) // 2 + (N_VECTORS + 1) * (padded + WIDTH) + 1)


class Scratch:
    """The triangle ``t[i, j]`` and the vectors of a block, addressed by run-time indices."""

    def __init__(self, memory: Memory, n: Index):
        self.memory = memory
        self.n = n
        self.n_tiles = (n + (TILE - 1)) // TILE
        self.padded = self.n_tiles * TILE
        self.after_triangle = (self.padded * (self.padded + 1)).half() + WIDTH
        self.length = self.padded + WIDTH

    def element(self, i: Index, j: Index) -> Index:
        """Number of the vector that holds element (i, j) of the triangle."""
        return (i * (i + 1)).half() + j

    def vector(self, which: int, i: Index) -> Index:
        """Number of the vector that holds element i of one of the vectors."""
        return self.after_triangle + self.length * which + i

    def load(self, position: Index) -> Vec:
        """Read a vector."""
        return self.memory.load((position * WIDTH).value)

    def store(self, vector: Vec, position: Index) -> None:
        """Write a vector."""
        self.memory.store(vector, (position * WIDTH).value)


# the vectors of the scratch
DELTA, INVERSE, PIVOT, Z, A, U = range(N_VECTORS)
STEPS = range(TILE)


def emit_loops(spec, n: Index, scratch: Memory, places) -> tuple[Vec, Product]:
    """Emit the code of a block; return the quadratic form and the product of the pivots."""
    value, mu, matrix, g_quad, g_half_logdet, dvalue, dmu, dmatrix = places
    t = Scratch(scratch, n)
    load_triangle(t, matrix)
    load_delta(t, Difference(value, mu))
    if spec.param == "tau":
        quad = multiply(t)
    if spec.param == "chol":
        invert_diagonal(t)
    else:
        cholesky_of_lanes(t)
    if spec.param != "tau":
        quad = substitute(t, DELTA, Z)
        if spec.wants_gradient:
            substitute(t, Z, A, transposed=True)
    if spec.wants_gradient:
        for_each(t, lambda i: t.store(2.0 * g_quad * t.load(t.vector(A, i)), t.vector(U, i)))
    if spec.value == "own":
        store_vector(t, dvalue, 1.0)
    if spec.mu == "own":
        store_vector(t, dmu, -1.0)
    if spec.wants_matrix:
        if spec.param == "chol":
            gradient_of_factor(t, g_half_logdet)
        else:
            invert(t)
            gradient_of_matrix(t, spec.param, g_quad, g_half_logdet)
        store_triangle(t, dmatrix)
    return quad, product_of_pivots(t)


def for_each(t: Scratch, body: Callable[[Index], None]) -> None:
    """Emit a loop over the rows, those of the padding included."""
    with loop(t.memory.builder, 0, t.padded) as i:
        body(i)


def windows(t: Scratch, length: Index):
    """Emit a loop over the starts of windows of eight that cover ``range(length)``, inside of n."""
    return loop(t.memory.builder, 0, length, step=WIDTH, last=t.n - WIDTH)


def load_transposed(memory: Memory | Difference, size: Index, start: Index):
    """Eight numbers of each lane, whose records have `size` numbers: one vector for each number."""
    return transpose([memory.load((size * lane + start).value) for lane in range(WIDTH)])


def load_triangle(t: Scratch, matrix: Memory) -> None:
    """Transpose the lower triangle into scratch; what a row stores too far, the next overwrites."""
    builder = t.memory.builder
    with loop(builder, 0, t.n) as i, windows(t, i + 1) as start:
        for k, column in enumerate(load_transposed(matrix, t.n * t.n, i * t.n + start)):
            t.store(column, t.element(i, start + k))
    with loop(builder, t.n, t.padded) as i:
        with loop(builder, 0, i) as j:
            t.store(Vec.full(builder, 0.0), t.element(i, j))
        t.store(Vec.full(builder, 1.0), t.element(i, i))


def load_delta(t: Scratch, delta: Difference) -> None:
    """Transpose the difference to the mean into scratch."""
    builder = t.memory.builder
    with windows(t, t.n) as start:
        for k, column in enumerate(load_transposed(delta, t.n, start)):
            t.store(column, t.vector(DELTA, start + k))
    with loop(builder, t.n, t.padded) as i:
        t.store(Vec.full(builder, 0.0), t.vector(DELTA, i))


def store_vector(t: Scratch, target: Memory, sign: float) -> None:
    """Transpose the gradient for a vector back."""
    with windows(t, t.n) as start:
        columns = [t.load(t.vector(U, start + k)) for k in range(WIDTH)]
        for lane, row in enumerate(transpose(columns)):
            target.store(row if sign > 0 else -row, (t.n * lane + start).value)


def store_triangle(t: Scratch, target: Memory) -> None:
    """Transpose the gradient for the matrix back, with zeros above the diagonal."""
    builder = t.memory.builder
    size = t.n * t.n
    # room for a zero, in a vector that is no longer needed
    zero = t.vector(DELTA, Index.constant(builder, 0))
    t.store(Vec.full(builder, 0.0), zero)
    with loop(builder, 0, t.n) as i, windows(t, t.n) as start:
        columns = []
        for k in range(WIDTH):
            j = start + k
            columns.append(t.load(t.element(i, j).if_at_most(j, i, zero)))
        for lane, row in enumerate(transpose(columns)):
            target.store(row, (size * lane + i * t.n + start).value)


class Tile:
    """Nine sums that change in a loop."""

    def __init__(self, start: Callable[[int, int], Vec], below: bool = False):
        self.entries = [(i, j) for i in STEPS for j in STEPS if not below or j <= i]
        self.variables = {e: Variable(start(*e)) for e in self.entries}

    def add(self, left: list[Vec], right: list[Vec], sign: int) -> None:
        """Add or subtract the outer product of two strips."""
        for i, j in self.entries:
            self[i, j] = dot(self[i, j], [(left[i], right[j])], sign)

    def __getitem__(self, entry: tuple[int, int]) -> Vec:
        return self.variables[entry].get()

    def __setitem__(self, entry: tuple[int, int], vector: Vec) -> None:
        self.variables[entry].set(vector)


def tiles(t: Scratch, start: Index | int = 0):
    """Emit a loop over the first rows of tiles."""
    return loop(t.memory.builder, start, t.padded, step=TILE)


def cholesky_of_lanes(t: Scratch) -> None:
    """The Cholesky factor in place, with its pivots and the reciprocals of its diagonal."""
    builder = t.memory.builder

    def tile(i0, j0, below=False):
        sums = Tile(lambda i, j: t.load(t.element(i0 + i, j0 + j)), below)
        with loop(builder, 0, j0) as k:
            left = [t.load(t.element(i0 + i, k)) for i in STEPS]
            right = left if below else [t.load(t.element(j0 + j, k)) for j in STEPS]
            sums.add(left, right, -1)
        return sums

    with tiles(t) as j0:
        x = tile(j0, j0, below=True)
        for j in STEPS:
            pivot = x[j, j]
            t.store(pivot, t.vector(PIVOT, j0 + j))
            # the reciprocal does not wait for the square root
            root, reciprocal = pivot.sqrt(), 1.0 / pivot
            t.store(root, t.element(j0 + j, j0 + j))
            inverse = root * reciprocal
            t.store(inverse, t.vector(INVERSE, j0 + j))
            for i in range(j + 1, TILE):
                x[i, j] = x[i, j] * inverse
                t.store(x[i, j], t.element(j0 + i, j0 + j))
                for k in range(j + 1, i + 1):
                    x[i, k] = x[i, k] - x[i, j] * x[k, j]
        with tiles(t, j0 + TILE) as i0:
            x = tile(i0, j0)
            for j in STEPS:
                factors = [t.load(t.element(j0 + j, j0 + k)) for k in range(j)]
                inverse = t.load(t.vector(INVERSE, j0 + j))
                for i in STEPS:
                    pairs = [(x[i, k], factor) for k, factor in enumerate(factors)]
                    x[i, j] = dot(x[i, j], pairs, -1) * inverse
                    t.store(x[i, j], t.element(i0 + i, j0 + j))


def invert(t: Scratch) -> None:
    """The inverse m of the factor in its place: row i of tiles needs the rows before it."""
    builder = t.memory.builder
    zero, one = Vec.full(builder, 0.0), Vec.full(builder, 1.0)

    def solve(x, i0, j0, below=False):
        """Multiply by the inverse of the diagonal tile, and store."""
        for i in STEPS:
            factors = [t.load(t.element(i0 + i, i0 + k)) for k in range(i)]
            inverse = t.load(t.vector(INVERSE, i0 + i))
            for j in range(i + 1) if below else STEPS:
                pairs = [(factors[k], x[k, j]) for k in range(j if below else 0, i)]
                x[i, j] = dot(x[i, j], pairs, -1) * inverse
        for entry in x.entries:
            t.store(x[entry], t.element(i0 + entry[0], j0 + entry[1]))

    with tiles(t) as i0:
        with loop(builder, 0, i0, step=TILE) as j0:
            x = Tile(lambda i, j: zero)
            for i, j in x.entries:
                # the diagonal tile of m is a triangle
                pairs = [
                    (t.load(t.element(i0 + i, j0 + step)), t.load(t.element(j0 + step, j0 + j)))
                    for step in range(j, TILE)
                ]
                x[i, j] = dot(x[i, j], pairs, -1)
            with loop(builder, j0 + TILE, i0) as k:
                left = [t.load(t.element(i0 + i, k)) for i in STEPS]
                right = [t.load(t.element(k, j0 + j)) for j in STEPS]
                x.add(left, right, -1)
            solve(x, i0, j0)
        solve(Tile(lambda i, j: one if i == j else zero, below=True), i0, i0, below=True)


def gradient_of_matrix(t: Scratch, param: str, g_quad: Vec, g_half_logdet: Vec) -> None:
    """The gradient in place of the inverse factor m, with S^-1 = m' m."""
    builder = t.memory.builder
    zero = Vec.full(builder, 0.0)

    def tile(i0, j0, below=False):
        x = Tile(lambda i, j: zero, below)
        for k in STEPS:
            # the diagonal tile of m is a triangle
            for i, j in x.entries:
                if i <= k and (not below or j <= k):
                    left = t.load(t.element(i0 + k, i0 + i))
                    x[i, j] = x[i, j] + left * t.load(t.element(i0 + k, j0 + j))
        with loop(builder, i0 + TILE, t.padded) as k:
            left = [t.load(t.element(k, i0 + i)) for i in STEPS]
            x.add(left, left if below else [t.load(t.element(k, j0 + j)) for j in STEPS], 1)
        for i, j in x.entries:
            if param == "cov":
                outer = -(t.load(t.vector(U, i0 + i)) * t.load(t.vector(A, j0 + j)))
                logdet = g_half_logdet * x[i, j]
            else:
                outer = t.load(t.vector(DELTA, i0 + i)) * t.load(t.vector(DELTA, j0 + j))
                outer = 2.0 * g_quad * outer
                logdet = -(g_half_logdet * x[i, j])
            total = outer + logdet
            # below the diagonal stands the sum of two equal elements
            is_diagonal = below and i == j
            t.store(0.5 * total if is_diagonal else total, t.element(i0 + i, j0 + j))

    with tiles(t) as i0:
        with loop(builder, 0, i0, step=TILE) as j0:
            tile(i0, j0)
        tile(i0, i0, below=True)


def gradient_of_factor(t: Scratch, g_half_logdet: Vec) -> None:
    """The gradient for a Cholesky factor in its place."""
    builder = t.memory.builder
    with loop(builder, 0, t.n) as i:
        u = t.load(t.vector(U, i))
        with loop(builder, 0, i) as j:
            t.store(-(u * t.load(t.vector(Z, j))), t.element(i, j))
        logdet = g_half_logdet * t.load(t.vector(INVERSE, i))
        t.store(logdet - u * t.load(t.vector(Z, i)), t.element(i, i))


def invert_diagonal(t: Scratch) -> None:
    """Pivots and their reciprocals of a given Cholesky factor."""

    def body(i):
        pivot = t.load(t.element(i, i))
        t.store(pivot, t.vector(PIVOT, i))
        t.store(1.0 / pivot, t.vector(INVERSE, i))

    for_each(t, body)


def substitute(t: Scratch, source: int, target: int, *, transposed: bool = False) -> Vec:
    """Solve L z = delta, or L' a = z from the last row, three rows at a time; return z' z."""
    builder = t.memory.builder
    squares = Variable(Vec.full(builder, 0.0))

    def factor(row: Index, column: Index) -> Vec:
        return t.load(t.element(column, row) if transposed else t.element(row, column))

    with tiles(t) as before:
        i0 = t.padded - TILE - before if transposed else before
        x = [Variable(t.load(t.vector(source, i0 + i))) for i in STEPS]
        with loop(builder, *((i0 + TILE, t.padded) if transposed else (0, i0))) as k:
            known = t.load(t.vector(target, k))
            for i in STEPS:
                x[i].set(x[i].get() - factor(i0 + i, k) * known)
        done: list[int] = []
        for i in reversed(STEPS) if transposed else STEPS:
            pairs = [(factor(i0 + i, i0 + k), x[k].get()) for k in done]
            solved = dot(x[i].get(), pairs, -1) * t.load(t.vector(INVERSE, i0 + i))
            x[i].set(solved)
            t.store(solved, t.vector(target, i0 + i))
            squares.set(squares.get() + solved * solved)
            done.append(i)
    return squares.get()


def multiply(t: Scratch) -> Vec:
    """Compute a = tau delta; return delta' a."""
    builder = t.memory.builder
    quad = Variable(Vec.full(builder, 0.0))
    with loop(builder, 0, t.padded) as i:
        a = Variable(Vec.full(builder, 0.0))
        with loop(builder, 0, i) as j:
            a.set(a.get() + t.load(t.element(i, j)) * t.load(t.vector(DELTA, j)))
        with loop(builder, i, t.padded) as j:
            a.set(a.get() + t.load(t.element(j, i)) * t.load(t.vector(DELTA, j)))
        t.store(a.get(), t.vector(A, i))
        quad.set(quad.get() + a.get() * t.load(t.vector(DELTA, i)))
    return quad.get()


def product_of_pivots(t: Scratch) -> Product:
    """The product of the pivots."""
    builder = t.memory.builder
    one = Product.of([Vec.full(builder, 1.0)])
    parts = (one.mantissa.value, one.exponents, one.farthest)
    slots = [cgutils.alloca_once_value(builder, part) for part in parts]

    def product() -> Product:
        mantissa, *others = map(builder.load, slots)
        return Product(Vec(builder, mantissa), *others)

    def body(i):
        joined = product().joined(Product.of([t.load(t.vector(PIVOT, i))])).renormalised()
        for part, slot in zip(
            (joined.mantissa.value, joined.exponents, joined.farthest), slots, strict=True
        ):
            builder.store(part, slot)

    for_each(t, body)
    return product()
