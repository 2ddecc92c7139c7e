r"""The formulas of small matrices as straight-line code, for vectors of eight.

They come in three steps, because the rows that share a matrix share the first and the last:
:func:`pivots_and_factors` of a matrix, :func:`whiten` a row, :func:`gradient_of_matrix` from the
sums over the rows. The decomposition is :math:`\Sigma = L D L^\top`, `L` with unit diagonal, which
needs reciprocals but no square roots.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from pytensor_mvn_rewrites.lower.numba.vectors import Vec, dot

Matrix = dict[tuple[int, int], Vec]


@dataclass(frozen=True)
class LaneSpec:
    """What a kernel with a matrix or a row in each vector lane is compiled for.

    Attributes
    ----------
    kind : {"lanes", "rows"}
        The module with the kernel.
    form : {"logp", "sum", "quad"}
        Log-densities, their sum, or quadratic forms and half log-determinants.
    param : {"cov", "chol", "tau"}
    n : int
        Core size; 0 for a kernel with loops, which serves all sizes without straight-line code.
    value, mu, matrix : {"own", "sum", "none"}
        Their gradients: for each lane its own, the sum over the rows of a matrix, or not wanted.
    apart : str
        The operands of which each row has its own, separated by commas, when rows are in groups;
        else empty.
    """

    kind: str
    form: str
    param: str
    n: int
    value: str
    mu: str
    matrix: str
    apart: str = ""

    @property
    def has_rows(self) -> bool:
        """Whether a matrix may have many rows, for which it pays to invert its factor."""
        return self.kind == "rows"

    @property
    def wants_matrix(self) -> bool:
        """Whether the gradient for the matrix is wanted."""
        return self.matrix != "none"

    @property
    def wants_gradient(self) -> bool:
        """Whether any gradient is wanted, so that there are cotangents."""
        return {self.value, self.mu, self.matrix} != {"none"}

    @property
    def name(self) -> str:
        """Name of the kernel, from which :meth:`parse` makes the specification again."""
        return " ".join(map(str, astuple(self)))

    @classmethod
    def parse(cls, name: str) -> "LaneSpec":
        """Undo :attr:`name`."""
        kind, form, param, n, *others = name.split(" ")
        return cls(kind, form, param, int(n), *others)


def lower_triangle(n: int) -> list[tuple[int, int]]:
    """Indices of the lower triangle, row by row."""
    return [(i, j) for i in range(n) for j in range(i + 1)]


@dataclass(frozen=True)
class Factors:
    """What the rows of a matrix need of it, and the gradient for the matrix.

    Attributes
    ----------
    reciprocals : list of Vec
        Of the pivots.
    below : dict
        What stands below the diagonal of the factor, unit or Cholesky.
    others : dict
        The lower triangle of a precision; of a covariance with many rows, what stands below the
        diagonal of the inverse of its factor.
    """

    reciprocals: list[Vec]
    below: Matrix
    others: Matrix

    def vectors(self) -> list[Vec]:
        """All of it, in the order of :meth:`keys`."""
        return [*self.reciprocals, *self.below.values(), *self.others.values()]

    @staticmethod
    def keys(spec: LaneSpec) -> tuple[int, list, list]:
        """Number of reciprocals, and keys of the others' vectors."""
        n = spec.n
        below = [(i, j) for j in range(n) for i in range(j + 1, n)]
        has_inverse = spec.param == "cov" and spec.has_rows
        others = lower_triangle(n) if spec.param == "tau" else below if has_inverse else []
        return n, below, others

    @classmethod
    def of_vectors(cls, spec: LaneSpec, vectors: Sequence[Vec]) -> "Factors":
        """Undo :meth:`vectors`."""
        n, below, others = cls.keys(spec)
        rest = iter(vectors[n:])
        return cls(
            list(vectors[:n]),
            {key: next(rest) for key in below},
            {key: next(rest) for key in others},
        )


@dataclass(frozen=True)
class Row:
    """One row: its quadratic form, the gradient for its vector, and for its matrix.

    The latter is minus, for a precision plus, the outer product of `left` and `right`.
    """

    quad: Vec
    gradient: list[Vec]
    left: list[Vec]
    right: list[Vec]

    def products(self, n: int) -> Matrix:
        """The lower triangle of the outer product."""
        return {(i, j): self.left[i] * self.right[j] for i, j in lower_triangle(n)}


def pivots_and_factors(spec: LaneSpec, s: Matrix) -> tuple[list[Vec], Factors]:
    """The pivots of a matrix, and what its rows need."""
    n = spec.n
    if spec.param == "chol":
        pivots = [s[i, i] for i in range(n)]
        below = {(i, j): s[i, j] for j in range(n) for i in range(j + 1, n)}
        return pivots, Factors([1.0 / x for x in pivots], below, {})
    pivots, reciprocals, l = ldl(n, s)  # noqa: E741
    if spec.param == "tau":
        return pivots, Factors(reciprocals, l, s)
    return pivots, Factors(reciprocals, l, unit_inverse(n, l) if spec.has_rows else {})


def whiten(spec: LaneSpec, factors: Factors, d: Sequence[Vec], g_quad: Vec) -> Row:
    """One row with the difference `d` to its mean."""
    formulas = {"cov": whiten_by_cov, "chol": whiten_by_chol, "tau": whiten_by_tau}
    return formulas[spec.param](spec, factors, d, g_quad)


def whiten_by_cov(spec: LaneSpec, factors: Factors, d: Sequence[Vec], g_quad: Vec) -> Row:
    """With a = S^-1 d: the gradient of quad is 2 a for d, and -a a' for the covariance."""
    n, l, inverse = spec.n, factors.below, factors.others  # noqa: E741
    w: list[Vec] = []
    for i in range(n):
        if inverse:
            w.append(dot(d[i], ((inverse[i, k], d[k]) for k in range(i))))
        else:
            w.append(dot(d[i], ((l[i, k], w[k]) for k in range(i)), -1))
    t = [w[i] * factors.reciprocals[i] for i in range(n)]
    quad = dot(t[0] * w[0], zip(t[1:], w[1:], strict=True))
    a = dict(enumerate(t))
    for i in reversed(range(n)):
        if inverse:
            a[i] = dot(t[i], ((inverse[k, i], t[k]) for k in range(i + 1, n)))
        else:
            a[i] = dot(t[i], ((l[k, i], a[k]) for k in range(i + 1, n)), -1)
    solution = [a[i] for i in range(n)]
    u = [2.0 * g_quad * x for x in solution]
    return Row(quad, u, u, solution)


def whiten_by_chol(spec: LaneSpec, factors: Factors, d: Sequence[Vec], g_quad: Vec) -> Row:
    """The same by two triangular solves; the gradient for the factor is -2 a z'."""
    n, below = spec.n, factors.below
    z: list[Vec] = []
    for i in range(n):
        z.append(dot(d[i], ((below[i, k], z[k]) for k in range(i)), -1) * factors.reciprocals[i])
    quad = dot(z[0] * z[0], zip(z[1:], z[1:], strict=True))
    a = dict(enumerate(z))
    for i in reversed(range(n)):
        rest = ((below[k, i], a[k]) for k in range(i + 1, n))
        a[i] = dot(z[i], rest, -1) * factors.reciprocals[i]
    u = [2.0 * g_quad * a[i] for i in range(n)]
    return Row(quad, u, u, z)


def whiten_by_tau(spec: LaneSpec, factors: Factors, d: Sequence[Vec], g_quad: Vec) -> Row:
    """The same without a factorization: a = tau d; the gradient for the precision is d d'."""
    n = spec.n
    a = []
    for i in range(n):
        row = [factors.others[max(i, k), min(i, k)] for k in range(n)]
        a.append(dot(row[0] * d[0], zip(row[1:], d[1:], strict=True)))
    quad = dot(d[0] * a[0], zip(d[1:], a[1:], strict=True))
    g = 2.0 * g_quad
    return Row(quad, [g * x for x in a], [g * x for x in d], list(d))


def gradient_of_matrix(
    spec: LaneSpec, factors: Factors, products: Matrix, g_half_logdet: Vec
) -> Matrix:
    """The lower triangle of the gradient, from sums over the rows.

    Off-diagonal elements are those of the triangle, that is, doubled for a symmetric matrix.
    """
    n, g = spec.n, dict(products)
    if spec.param == "chol":
        for i, j in g:
            logdet = g_half_logdet * factors.reciprocals[i]
            g[i, j] = logdet - products[i, j] if i == j else -products[i, j]
        return g
    scaled = scaled_inverse(n, [g_half_logdet * x for x in factors.reciprocals], factors.below)
    for i, j in g:
        logdet = scaled[i, j]
        g[i, j] = logdet - g[i, j] if spec.param == "cov" else g[i, j] - logdet
        if i == j:
            g[i, j] = 0.5 * g[i, j]
    return g


def ldl(n: int, s: Matrix) -> tuple[list[Vec], list[Vec], Matrix]:
    """Pivots p, their reciprocals and the unit lower l, with S = l diag(p) l'."""
    p: list[Vec] = []
    inverse_p: list[Vec] = []
    l: Matrix = {}  # noqa: E741
    lp: Matrix = {}
    for j in range(n):
        for i in range(j, n):
            lp[i, j] = dot(s[i, j], ((l[j, k], lp[i, k]) for k in range(j)), -1)
        p.append(lp[j, j])
        inverse_p.append(1.0 / p[j])
        for i in range(j + 1, n):
            l[i, j] = lp[i, j] * inverse_p[j]
    return p, inverse_p, l


def unit_inverse(n: int, l: Matrix) -> Matrix:  # noqa: E741
    """The inverse of a unit lower triangle, below the diagonal."""
    m: Matrix = {}
    for j in range(n):
        for i in range(j + 1, n):
            m[i, j] = dot(-l[i, j], ((l[i, k], m[k, j]) for k in range(j + 1, i)), -1)
    return m


def scaled_inverse(n: int, diagonal: Sequence[Vec], l: Matrix) -> Matrix:  # noqa: E741
    r"""The lower triangle of :math:`V = L^{-\top} C L^{-1}`, of which `diagonal` is C.

    From :math:`L^\top V = C L^{-1}`, whose upper triangle is C: column by column from the last,
    each by those after it, without the inverse of the factor (K. Takahashi, J. Fagan and M.-S.
    Chin, 1973).
    """
    v: Matrix = {}
    for j in reversed(range(n)):
        for i in range(j + 1, n):
            first = -(l[j + 1, j] * v[i, j + 1])
            v[i, j] = dot(first, ((l[k, j], v[max(i, k), min(i, k)]) for k in range(j + 2, n)), -1)
        v[j, j] = dot(diagonal[j], ((l[k, j], v[k, j]) for k in range(j + 1, n)), -1)
    return v
