"""A grammar of models: plain dataclasses that describe a model, print as Python, and build it.

``Model(...).build()`` makes the PyMC model and everything that is needed to move it afterwards: new
values for its ``pm.Data`` and new lengths for its dims. Sizes are multiples of the numbers that a
description shows, so that the sizes of blocks and of Kronecker products fit after a change, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.distributions.multivariate import MvNormal, MvNormalRV
from pymc.logprob.abstract import _logprob
from pytensor.assumptions import assume
from pytensor.graph.basic import Constant, Variable

from tests import test_failures
from tests.harness import spd

#: A dimension: a letter and a number; ("n", 3) is the length 3, or a multiple of it in a model
#: whose sizes change. Ranks and rows have a letter and a multiple of their own, "t" and "p" never
#: change.
Dim = tuple[str, int]

#: Where numbers come from. In a loop over i, "indexed" is ``parameter[i]``.
SOURCES = (
    "constant",
    "shared",
    "own",
    "indexed",
    "gathered",
    "data",
    "data[i]",
    "own data",
    "computed",
    "data * shared",
)
#: Those without a parameter.
GIVEN = ("constant", "data", "data[i]", "own data", "computed")


@dataclass(frozen=True)
class Sizes:
    """The multiples of all sizes, of all ranks, and of all numbers of rows."""

    n: int = 1
    k: int = 1
    r: int = 1


@dataclass
class Building:
    """A model in the making, and the means to change its data and sizes afterwards."""

    spec: Model
    model: pm.Model
    resizable: bool
    sizes: Sizes
    shapes: dict[str, tuple[Dim, ...]] = field(default_factory=dict)
    made: dict[str, Variable] = field(default_factory=dict)
    makers: dict[str, tuple[Callable, tuple[Dim, ...], bool]] = field(default_factory=dict)
    terms: int = 1
    by_dims: bool = False

    # --- sizes

    def length(self, dim: Dim) -> int:
        """The present length."""
        letter, number = dim
        return number * {"n": self.sizes.n, "k": self.sizes.k, "r": self.sizes.r}.get(letter, 1)

    def lengths(self, dims) -> tuple[int, ...]:
        return tuple(self.length(dim) for dim in dims)

    def names(self, dims) -> tuple[str, ...]:
        for dim in dims:
            name = f"{dim[0]}{dim[1]}"
            if name not in self.model.dim_lengths:
                self.model.add_coord(name, length=self.length(dim))
        return tuple(f"{letter}{number}" for letter, number in dims)

    def how_long(self, dims) -> dict:
        """The keywords of a random variable of this shape."""
        return {"dims": self.names(dims)} if self.by_dims else {"shape": self.lengths(dims)}

    def moves(self, letter: str) -> bool:
        """Whether a length will change."""
        return self.resizable and len({getattr(size, letter) for size in self.spec.sizes}) > 1

    def eye(self, n: int):
        if not self.moves("n"):
            return np.eye(self.length(("n", n)))
        [name] = self.names([("n", n)])
        return pt.eye(self.model.dim_lengths[name])

    def fixed(self) -> Building:
        """The same model, for a part of it whose sizes do not change."""
        return replace(self, resizable=False, sizes=Sizes(), by_dims=False)

    # --- numbers

    def rng(self, name: str, version: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.spec.seed, version, *name.encode()])

    def parameter(self, name, dims, positive=False):
        if name not in self.made:
            dist = pm.HalfNormal if positive else pm.Normal
            self.shapes[name] = tuple(dims)
            self.made[name] = dist(name, **self.how_long(dims))
        return self.made[name]

    def data(self, name, make, dims):
        """A pm.Data; `make` gets a generator and the lengths."""
        if name not in self.made:
            self.makers[name] = make, tuple(dims), self.resizable
            value = make(self.rng(name), *self.lengths(dims))
            named = {"dims": self.names(dims)} if self.by_dims else {}
            self.made[name] = pm.Data(name, value, **named)
        return self.made[name]

    def constant(self, name, make, dims):
        """A NumPy array where no size changes."""
        if any(letter in "nkr" and self.moves(letter) for letter, _ in dims):
            return self.data(name, make, dims)
        return make(self.rng(name), *self.lengths(dims))

    def given(self, name, source, make, dims, i):
        """Numbers that are no parameters; `make` makes one member's."""
        several = (("t", self.terms), *dims)

        def make_all(rng, terms, *lengths):
            return np.stack([make(rng, *lengths) for _ in range(terms)])

        match source:
            case "constant":
                return self.constant(f"{name}_{i}", make, dims)
            case "data":
                return self.data(name, make, dims)
            case "data[i]":
                return self.data(name, make_all, several)[i]
            case "own data":
                return self.data(f"{name}_{i}", make, dims)
        raise ValueError(source)

    def leaf(self, name, source, dims, i, positive=False):
        """Numbers from `source`, of a shape, for member i."""
        several = (("t", self.terms), *dims)

        def make(rng, *lengths):
            values = rng.normal(size=lengths)
            return 0.5 + values**2 if positive else 0.5 * values

        match source:
            case "shared":
                return self.parameter(name, dims, positive)
            case "own":
                return self.parameter(f"{name}_{i}", dims, positive)
            case "indexed":
                return self.parameter(name, several, positive)[i]
            case "gathered":
                idx = self.index(f"{name}_idx", "data")
                return self.parameter(name, several, positive)[idx - 1][i]
            case "computed":
                data = self.given(name, "data[i]", make, dims, 0).owner.inputs[0]
                return (data**2 + 0.5 if positive else data - data.mean(0))[i]
            case "data * shared":
                data = self.given(f"{name}_x", "data[i]", make, dims, i)
                return data * self.parameter(name, dims, positive)
        return self.given(name, source, make, dims, i)

    def index(self, name, source, size=None):
        """Numbers from 1 to the number of terms."""
        terms = self.terms

        def make(rng, length):
            return rng.permutation(np.resize(np.arange(1, terms + 1), length))

        dims = (("r", size) if size else ("t", terms),)
        return (self.data if source == "data" else self.constant)(name, make, dims)

    # --- afterwards

    def change_data(self, version: int) -> None:
        """Other values, of the present sizes."""
        for name, (make, dims, resizable) in self.makers.items():
            lengths = (self if resizable else self.fixed()).lengths(dims)
            self.model.set_data(name, make(self.rng(name, version), *lengths))

    def resize(self, sizes: Sizes, version: int) -> None:
        """Other sizes."""
        self.sizes = sizes
        for name in self.model.dim_lengths:
            dim = name[0], int(name[1:])
            self.model.set_dim(name, self.length(dim))
        self.change_data(version)

    def point(self, number: int) -> list[np.ndarray]:
        """A point for the value variables, on the unconstrained scale."""
        values = []
        for var in self.model.value_vars:
            shape = var.type.shape
            if None in shape:
                shape = self.lengths(self.shapes[self.model.values_to_rvs[var].name])
            values.append(np.asarray(0.4 * self.rng(var.name, 100 + number).normal(size=shape)))
        return values


# --- matrices: each has n, and build(b, name, i) for the member i of a loop


@dataclass(frozen=True)
class Given:
    """A positive definite matrix of numbers."""

    n: int
    source: str
    lower: bool = False

    def build(self, b, name, i):
        def make(rng, n, _):
            matrix = spd(rng, n=n)
            return np.linalg.cholesky(matrix) if self.lower else matrix

        dims = (("n", self.n), ("n", self.n))
        if self.source != "computed":
            return b.given(name, self.source, make, dims, i)
        matrix = b.given(name, "data[i]", make, dims, i)
        return pt.tril(matrix) if self.lower else 0.5 * (matrix + matrix.T) + 0.1 * b.eye(self.n)


@dataclass(frozen=True)
class Gram:
    """A matrix times its transpose; `bare` may come near a singular one."""

    n: int
    source: str
    triangular: bool = False
    jitter: bool = True
    bare: bool = False

    def build(self, b, name, i):
        root = b.leaf(name, self.source, (("n", self.n), ("n", self.n)), i)
        if self.triangular:
            root = pt.tril(root)
        if self.bare:
            return root @ root.T
        if self.jitter:
            return root @ root.T + 2 * b.eye(self.n)
        root = 0.3 * root + 2 * b.eye(self.n)
        return root @ root.T


@dataclass(frozen=True)
class Root:
    """A square root; lower triangular if it is so."""

    n: int
    source: str
    triangular: bool = True

    def build(self, b, name, i):
        root = 0.3 * b.leaf(name, self.source, (("n", self.n), ("n", self.n)), i)
        return (pt.tril(root) if self.triangular else root) + 2 * b.eye(self.n)


@dataclass(frozen=True)
class Packed:
    """A lower triangular matrix unpacked from a vector."""

    n: int
    source: str

    def build(self, b, name, i):
        vector = b.leaf(name, self.source, (("p", self.n * (self.n + 1) // 2),), i)
        return pm.expand_packed_triangular(self.n, vector) + 2 * np.eye(self.n)


@dataclass(frozen=True)
class LKJ:
    """PyMC's prior of Cholesky factors, or the correlations that come with it."""

    n: int
    own: bool = True
    corr: bool = False

    def build(self, b, name, i):
        name = f"{name}_{i}" if self.own else name
        if name not in b.made:
            sd = pm.Exponential.dist(1.0, shape=self.n)
            b.made[name], b.made[f"{name}corr"], _ = pm.LKJCholeskyCov(
                name, n=self.n, eta=2.0, sd_dist=sd
            )
        return b.made[f"{name}corr" if self.corr else name]


@dataclass(frozen=True)
class Squared:
    """A root times its transpose, and nothing else."""

    root: object

    @property
    def n(self):
        return self.root.n

    def build(self, b, name, i):
        root = pt.as_tensor(self.root.build(b, name, i))
        return root @ root.T


@dataclass(frozen=True)
class Cholesky:
    """The Cholesky factor of a matrix."""

    of: object

    @property
    def n(self):
        return self.of.n

    def build(self, b, name, i):
        return pt.linalg.cholesky(self.of.build(b, name, i))


@dataclass(frozen=True)
class Diagonal:
    """A diagonal matrix."""

    n: int
    source: str
    spelling: str

    def build(self, b, name, i):
        if self.spelling == "s * eye":
            return b.leaf(name, self.source, (), i, positive=True) * b.eye(self.n)
        entries = pt.as_tensor(b.leaf(name, self.source, (("n", self.n),), i, positive=True))
        if self.spelling == "diag":
            return pt.diag(entries)
        return entries[:, None] * b.eye(self.n)


@dataclass(frozen=True)
class Scaled:
    """A number times a matrix; `by` may be that number itself."""

    by: str | float
    of: object
    power: int = 1

    @property
    def n(self):
        return self.of.n

    def build(self, b, name, i):
        number = isinstance(self.by, float)
        s = self.by if number else b.leaf(f"{name}s", self.by, (), i, positive=True)
        return s**self.power * self.of.build(b, name, i)


@dataclass(frozen=True)
class Sandwich:
    """A matrix between two diagonal ones, or after one (of a Cholesky factor)."""

    by: str
    of: object
    spelling: str

    @property
    def n(self):
        return self.of.n

    def build(self, b, name, i):
        d = pt.as_tensor(b.leaf(f"{name}d", self.by, (("n", self.n),), i, positive=True))
        matrix = self.of.build(b, name, i)
        match self.spelling:
            case "diag @ m":
                return pt.diag(d) @ matrix
            case "d * m":
                return d[:, None] * matrix
            case "diag @ m @ diag":
                return pt.diag(d) @ matrix @ pt.diag(d)
            case "d * m * d":
                return d[:, None] * matrix * d
        return pt.outer(d, d) * matrix


@dataclass(frozen=True)
class Kron:
    """A Kronecker product; where sizes change, those of the second matrix do."""

    left: object
    right: object

    @property
    def n(self):
        return self.left.n * self.right.n

    def build(self, b, name, i):
        left = self.left.build(b.fixed() if b.resizable else b, f"{name}l", i)
        return pt.linalg.kron(pt.as_tensor(left), self.right.build(b, f"{name}r", i))


@dataclass(frozen=True)
class Plus:
    """A sum of matrices."""

    left: object
    right: object

    @property
    def n(self):
        return self.left.n

    def build(self, b, name, i):
        return self.left.build(b, f"{name}l", i) + self.right.build(b, f"{name}r", i)


@dataclass(frozen=True)
class Convex:
    """A convex combination."""

    weight: str
    left: object
    right: object

    @property
    def n(self):
        return self.left.n

    def build(self, b, name, i):
        w = pt.sigmoid(b.leaf(f"{name}w", self.weight, (), i))
        return w * self.left.build(b, f"{name}l", i) + (1 - w) * self.right.build(b, f"{name}r", i)


@dataclass(frozen=True)
class Combined:
    """``a * C + b * D``, C and D given, or a precision ``tau * (D - a * W)`` of neighbours."""

    n: int
    source: str
    by: str
    other: str
    alike: bool = True

    def build(self, b, name, i):
        k = 0 if self.alike and self.source == "constant" else i
        shape = ("n", self.n), ("n", self.n)

        def kinship(rng, n, _):
            return spd(rng, n=n)

        def neighbours(rng, n, _):
            weights = np.tril(rng.integers(0, 2, size=(n, n)), -1)
            return (weights + weights.T).astype(float)

        s = b.leaf(f"{name}a", self.by, (), i, positive=True)
        t = b.leaf(f"{name}b", self.by, (), i, positive=True)
        if self.other == "neighbours":
            weights = pt.as_tensor(b.given(f"{name}W", self.source, neighbours, shape, k))
            if isinstance(weights, Constant):
                counts = np.diag(weights.data.sum(axis=1) + 1)
            else:
                counts = pt.diag(weights.sum(axis=1) + 1)
            return t * (counts - pt.sigmoid(s) * weights)
        known = b.given(name, self.source, kinship, shape, k)
        other = b.eye(self.n)
        if self.other == "D":
            other = b.given(f"{name}D", self.source, kinship, shape, k)
        return s * known + t * other


@dataclass(frozen=True)
class Markov:
    """``s * exp(-|t_i - t_j| / l)`` or ``s * rho ** |i - j|``; of unsorted times, or with ties."""

    n: int
    times: str
    by: str
    kind: str = "exp"
    ties: bool = False
    alike: bool = True

    def build(self, b, name, i):
        k = 0 if self.alike and self.times == "constant" else i

        def make(rng, n):
            times = rng.permutation(n) + 0.3 * rng.normal(size=n)
            return np.floor(times) if self.ties else times

        s = b.leaf(f"{name}s", self.by, (), i, positive=True)
        if self.kind == "rho":
            rho = pt.tanh(b.leaf(f"{name}rho", self.by, (), i))
            lags = pt.arange(b.eye(self.n).shape[0])
            if not b.moves("n"):
                lags = np.arange(b.length(("n", self.n)))
            return s * rho ** abs(lags[:, None] - lags)
        t = pt.as_tensor(b.given(f"{name}t", self.times, make, (("n", self.n),), k))
        length = 0.3 + b.leaf(f"{name}l", self.by, (), i, positive=True)
        covariance = s * pt.exp(-pt.abs(t[:, None] - t) / length)
        # with ties it is a covariance only beside some noise
        return covariance + 0.5 * b.eye(self.n) if self.kind == "exp + noise" else covariance


@dataclass(frozen=True)
class LowRank:
    """Few columns, or rank ``ranks[i]`` in turn, and noise."""

    n: int
    ranks: tuple[int, ...]
    source: str
    noise: str
    spelling: str = "s * eye"
    sign: int = 1

    def build(self, b, name, i):
        k = self.ranks[i % len(self.ranks)]
        name = f"{name}k{k}"
        factor = b.leaf(name, self.source, (("n", self.n), ("k", k)), i)
        noise = Diagonal(self.n, self.noise, self.spelling).build(b, f"{name}e", i)
        return factor @ factor.T + self.sign * noise


@dataclass(frozen=True)
class Blocks:
    """A block-diagonal matrix."""

    parts: tuple
    spelling: str

    @property
    def n(self):
        return sum(part.n for part in self.parts)

    def build(self, b, name, i):
        blocks = [pt.as_tensor(part.build(b, f"{name}{j}", i)) for j, part in enumerate(self.parts)]
        sizes = [b.length(("n", part.n)) for part in self.parts]
        ends = np.cumsum(sizes)
        match self.spelling:
            case "block_diag":
                return pt.linalg.block_diag(*blocks)
            case "kron stack" | "kron sum":
                ones = np.eye(len(blocks))
                terms = [pt.linalg.kron(np.diag(ones[j]), block) for j, block in enumerate(blocks)]
                return sum(terms) if self.spelling == "kron sum" else pt.stack(terms).sum(axis=0)
            case "set":
                matrix = pt.zeros((ends[-1], ends[-1]))
                for block, size, end in zip(blocks, sizes, ends, strict=True):
                    matrix = matrix[end - size : end, end - size : end].set(block)
                return matrix
        rows = []
        for block, size, end in zip(blocks, sizes, ends, strict=True):
            left, right = np.zeros((size, end - size)), np.zeros((size, ends[-1] - end))
            rows.append(pt.concatenate([left, block, right], axis=1))
        return pt.concatenate(rows, axis=0)


@dataclass(frozen=True)
class Expm:
    """A matrix exponential."""

    n: int
    source: str

    def build(self, b, name, i):
        root = 0.3 * b.leaf(name, self.source, (("n", self.n), ("n", self.n)), i)
        return pt.linalg.expm(root + root.T)


@dataclass(frozen=True)
class Inverse:
    """The inverse."""

    of: object
    spelling: str = "inv"

    @property
    def n(self):
        return self.of.n

    def build(self, b, name, i):
        matrix = self.of.build(b, name, i)
        if self.spelling == "inv":
            return pt.linalg.inv(matrix)
        return pt.linalg.solve(pt.as_tensor(matrix), pt.as_tensor(b.eye(self.n)))


@dataclass(frozen=True)
class Kernel:
    """A covariance function of points that are given."""

    n: int
    points: str
    scale: str
    kind: str

    def build(self, b, name, i):
        def make(rng, n, _):
            return np.arange(n)[:, None] + 0.3 * rng.normal(size=(n, 1))

        x = pt.as_tensor(b.given(f"{name}x", self.points, make, (("n", self.n), ("p", 1)), i))
        ls = 0.3 + b.leaf(f"{name}ls", self.scale, (), i, positive=True)
        if self.kind == "hand":
            difference = x - x.T
            return pt.exp(-0.5 * (difference / ls) ** 2) + 0.5 * b.eye(self.n)
        function = getattr(pm.gp.cov, self.kind)(1, ls=ls)
        return function(x) + 0.5 * b.eye(self.n)


@dataclass(frozen=True)
class Mapped:
    """Products made by a scan over all terms."""

    n: int
    source: str

    def build(self, b, name, i):
        key = f"{name}scan"
        if key not in b.made:
            dims = (("t", b.terms), ("n", self.n), ("n", self.n))
            roots = b.leaf(name, self.source, dims, 0)
            b.made[key] = pytensor.scan(
                lambda root: root @ root.T, sequences=[pt.as_tensor(roots)], return_updates=False
            )
        return b.made[key][i] + 2 * b.eye(self.n)


@dataclass(frozen=True)
class Stacked:
    """The matrices of all terms in one stack, of which each term takes one."""

    of: object
    index: str
    spelling: str = "stack"

    @property
    def n(self):
        return self.of.n

    def stack(self, b, name):
        key = f"{name}stack"
        if key in b.made:
            return b.made[key]
        members = [pt.as_tensor(self.of.build(b, name, j)) for j in range(b.terms)]
        if self.spelling == "stack":
            b.made[key] = pt.stack(members)
        else:
            n = b.length(("n", self.n))
            b.made[key] = pt.zeros((b.terms, n, n))
            for j, member in enumerate(members):
                b.made[key] = b.made[key][j].set(member)
        return b.made[key]

    def build(self, b, name, i):
        stack = self.stack(b, name)
        match self.index:
            case "mask":
                return stack[np.arange(b.terms) >= i][0]
            case "gather":
                return stack[b.index(f"{name}idx", "constant") - 1][i]
            case "data":
                return stack[b.index(f"{name}idx", "data") - 1][i]
            case "diagonal of the stack":
                return stack[np.eye(self.n, dtype=bool)] if b.terms == self.n else stack[i]
        return stack[i]


@dataclass(frozen=True)
class Permuted:
    """Rows and columns in another order, by an index of two ranks."""

    of: object
    source: str = "constant"
    spelling: str = "m[q[:, None], q]"

    @property
    def n(self):
        return self.of.n

    def build(self, b, name, i):
        def make(rng, n):
            return rng.permutation(n)

        q = b.given(f"{name}q", self.source, make, (("n", self.n),), i)
        matrix = pt.as_tensor(self.of.build(b, name, i))
        return matrix[q[:, None], q] if self.spelling == "m[q[:, None], q]" else matrix[q][:, q]


# --- densities


@dataclass(frozen=True)
class Member:
    """What one term gives as its matrix."""

    matrix: object
    param: str = "cov"
    tag: bool = False
    assumed: str = ""

    def keyword(self, b, name, i):
        matrix = pt.as_tensor(self.matrix.build(b, name, i))
        if self.assumed:
            matrix = assume(matrix, **{self.assumed: True})
        if self.tag:
            matrix.tag.lower_triangular = True
        return matrix


@dataclass(frozen=True)
class Mean:
    """A mean; where an index gathers the rows, regressions add to ``mu[index]``."""

    kind: str = "zero"
    source: str = "constant"

    def build(self, b, name, i, n, rows, previous):
        dims = (("n", n),)
        match self.kind:
            case "zero":
                return (
                    pt.zeros(b.model.dim_lengths[b.names(dims)[0]]) if b.resizable else np.zeros(n)
                )
            case "leaf":
                return b.leaf(f"{name}mu", self.source, dims, i)
            case "expression":
                leaf = b.leaf(f"{name}mu", self.source, dims, i)
                return pt.tanh(leaf) + b.parameter(f"{name}a", ())
            case "regression" | "collinear":
                x = pt.as_tensor(b.leaf(f"{name}X{rows}", self.source, (("r", rows), ("p", 2)), i))
                if self.kind == "collinear":
                    x = pt.concatenate([x, x[:, :1], pt.ones((x.shape[0], 1))], axis=1)
                p = 4 if self.kind == "collinear" else 2
                return x @ b.parameter(f"{name}B", (("p", p), ("n", n)))
            case "integers":
                return np.arange(i, i + n)
            case "previous":
                return self.zero(b, n) if previous is None else 0.5 * previous
        raise ValueError(self.kind)

    def zero(self, b, n):
        return Mean("zero").build(b, "", 0, n, 0, None)


@dataclass(frozen=True)
class Loop:
    """A loop over densities; members that differ take turns."""

    n: int
    terms: int
    members: tuple[Member, ...]
    mean: Mean = Mean()
    kind: str = "observed"
    rows: tuple[int, ...] = ()
    values: str = "constant"
    dims: bool = False
    float32: bool = False
    odd: int | None = None
    negative: bool = False

    def build(self, b, name):
        b = replace(b, terms=self.terms, by_dims=self.dims or b.resizable)
        if self.kind == "mixture":
            return self.mixture(b, name)
        if self.kind == "gathered":
            return self.gathered(b, name)
        previous = None
        for i in range(self.terms):
            member = self.members[i % len(self.members)]
            rows = self.rows[i % len(self.rows)] if self.rows else 0
            matrix = member.keyword(b, f"{name}{i % len(self.members)}", i)
            mean = self.mean.build(b, name, i, self.n, rows, previous)
            if self.odd == i:
                matrix, mean = matrix[:-1, :-1], mean[..., :-1]
            previous = self.term(b, f"{name}y{i}", member.param, mean, matrix, rows, self.odd == i)

    def value(self, b, name, rows, shorter=False):
        def make(rng, *lengths):
            value = rng.normal(size=(*lengths[:-1], lengths[-1] - shorter))
            return value.astype("float32") if self.float32 else value

        dims = ((("r", rows),) if rows else ()) + (("n", self.n),)
        if self.values == "data" and not shorter:
            return b.data(f"{name}v", make, dims)
        return b.constant(f"{name}v", make, dims)

    def term(self, b, name, param, mean, matrix, rows, shorter):
        keywords = {"mu": mean, param: matrix}
        match self.kind:
            case "latent":
                dims = (("n", self.n),)
                b.shapes[name] = dims
                shape = {"shape": self.n - 1} if shorter else b.how_long(dims)
                return pm.MvNormal(name, **keywords, **shape)
            case "student":
                scale = {"scale" if param == "cov" else param: matrix}
                nu = 3 + b.parameter("nu", (), positive=True)
                value = self.value(b, name, rows, shorter)
                return pm.MvStudentT(name, nu=nu, mu=mean, **scale, observed=value)
            case "potential":
                dist = pm.MvNormal.dist(**keywords)
                density = pm.logp(dist, self.value(b, name, rows, shorter))
                return pm.Potential(name, density.sum())
            case "subclass":
                return Weighted(name, **keywords, observed=self.value(b, name, rows, shorter))
            case "formula":
                return pm.Potential(name, formula(self.value(b, name, rows, shorter), **keywords))
        return pm.MvNormal(name, **keywords, observed=self.value(b, name, rows, shorter))

    def mixture(self, b, name):
        components = []
        for i in range(self.terms):
            member = self.members[i % len(self.members)]
            mean = self.mean.build(b, name, i, self.n, 0, None)
            matrix = member.keyword(b, f"{name}{i % len(self.members)}", i)
            components.append(pm.MvNormal.dist(mu=mean, **{member.param: matrix}))
        value = self.value(b, name, 3)
        weights = np.ones(self.terms) / self.terms
        pm.Mixture(f"{name}y", w=weights, comp_dists=components, observed=value)

    def gathered(self, b, name):
        """One density of many rows, each with a mean and a matrix that an index picks."""
        [member, *_] = self.members
        rows = self.rows[0] if self.rows else 4
        index = b.index(f"{name}rows", self.values, rows) - 1
        if self.negative:
            index = index - self.terms
        matrices = [pt.as_tensor(member.keyword(b, f"{name}0", i)) for i in range(self.terms)]
        stack = pt.stack(matrices)
        if member.tag:
            stack.tag.lower_triangular = True
        regression = self.mean.kind in ("regression", "collinear")
        each = Mean("leaf", "indexed") if regression else self.mean
        means = [each.build(b, name, i, self.n, 0, None) for i in range(self.terms)]
        mean = pt.stack([pt.as_tensor(mu) for mu in means])[index]
        if regression:
            mean = mean + self.mean.build(b, name, 0, self.n, rows, None)
        # PyMC's log-density of a precision is written for one matrix, and wrong for several
        param = "cov" if member.param == "tau" else member.param
        keywords = {"mu": mean, param: stack[index]}
        pm.MvNormal(f"{name}y", **keywords, observed=self.value(b, f"{name}y", rows))


def formula(value, mu, cov=None, chol=None, tau=None):
    """A density as users write it by hand."""
    delta = value - mu
    if cov is not None:
        return (
            -0.5 * (delta * pt.linalg.solve(cov, delta.T).T).sum() - 0.5 * pt.linalg.slogdet(cov)[1]
        )
    if tau is not None:
        return -0.5 * (delta @ tau * delta).sum() + 0.5 * pt.linalg.slogdet(tau)[1]
    white = pt.linalg.solve_triangular(chol, delta.T, lower=True)
    return -0.5 * (white**2).sum() - pt.log(pt.diag(chol)).sum()


class WeightedRV(MvNormalRV):
    """A user's own random variable, with a density of its own."""

    name = "weighted"


class Weighted(MvNormal):
    rv_op = WeightedRV(method="cholesky")


@_logprob.register(WeightedRV)
def weighted_logprob(op, values, rng, size, mu, cov, **kwargs):
    [value] = values
    return 0.25 * pm.logp(pm.MvNormal.dist(mu, cov), value)


# --- what stands beside the densities

EXTRAS = (
    "two normals",
    "normals by fancy indices",
    "missing values",
    "assigned rows",
    "joined slices",
    "mask of ones",
    "recursion",
)


def add_extra(b: Building, kind: str) -> None:
    rng = b.rng(kind)
    match kind:
        case "two normals":
            pm.Normal("left", pm.Normal("l"), 1.0, observed=0.3)
            pm.Normal("right", pm.Normal("r"), 1.0, observed=0.4)
        case "normals by fancy indices":
            table = pm.Normal("table", shape=(3, 3))
            for i in range(6):
                q = rng.permutation(3)[:2]
                sigma = pm.HalfNormal(f"sigma{i}")
                pm.Normal(
                    f"fancy{i}", table[q[:, None], q], sigma, observed=rng.normal(size=(2, 2))
                )
        case "missing values":
            values = np.ma.masked_array(rng.normal(size=(4, 3)), rng.random((4, 3)) < 0.3)
            values.mask[0, 0] = True
            pm.Normal("missing", pm.Normal("center", shape=3), 1.0, observed=values)
        case "assigned rows":
            rows = pm.Normal("rows", shape=(2, 3))
            mean = pt.zeros((4, 3))[np.array([0, 2])].set(rows)
            pm.Normal("assigned", mean, 1.0, observed=rng.normal(size=(4, 3)))
        case "joined slices":

            def make(rng, _):
                return rng.normal(size=rng.integers(4, 12))

            x = b.data("sliced", make, (("x", 12),))
            slope = pm.Normal("slope")
            pm.Potential("joined", -0.5 * (pt.join(0, x[0:3], x[5:10]) ** 2 * slope**2).sum())
        case "mask of ones":
            mean = pm.Normal("masked_mean", shape=5)[np.ones(5, dtype=bool)]
            pm.Normal("masked", mean, 1.0, observed=rng.normal(size=5))
        case "recursion":
            state, phi = pt.zeros(2), pm.Normal("phi")
            innovations = pm.Normal("innovations", shape=(3, 2))
            for t in range(3):
                state = phi * state + innovations[t]
                pm.Normal(f"state{t}", state, 1.0, observed=rng.normal(size=2))


def add_part(b: Building, kind: str) -> None:
    rng = b.rng(kind)
    match kind:
        case "permuted blocks":
            order, root = rng.permutation(6), pm.Normal("root", shape=(3, 3))
            blocks = pt.linalg.block_diag(root @ root.T + np.eye(3), root.T @ root + np.eye(3))
            pm.MvNormal("y", np.zeros(6), cov=blocks[order][:, order], observed=order)
        case "rows of a vector":
            vector, sd = pm.Normal("vector", shape=8), pm.HalfNormal("sd")
            rows = pt.stack([vector[:2], vector[4:6], vector[6:]])
            cov = sd * (np.eye(2) + 0.5)
            pm.MvNormal("y", rows, cov=cov, observed=rng.normal(size=(3, 2)))
        case _:
            test_failures.MODELS[kind]()


#: Small models of their own, each of one form: between them all rules fire
PARTS = (*test_failures.MODELS, "permuted blocks", "rows of a vector")


@dataclass(frozen=True)
class Model:
    """Loops and what stands beside them; `sizes` before and after a change, if sizes change.

    Rules meet where a model has several `parts`, which share nothing.
    """

    loops: tuple[Loop, ...]
    extras: tuple[str, ...] = ()
    sizes: tuple[Sizes, ...] = ()
    seed: int = 0
    parts: tuple[str, ...] = ()

    @cached_property
    def resizable(self) -> bool:
        return bool(self.sizes)

    def build(self) -> Building:
        first = self.sizes[0] if self.sizes else Sizes()
        with pm.Model() as model:
            b = Building(self, model, self.resizable, first)
            for name, loop in zip("abcdef", self.loops, strict=False):
                loop.build(b, name)
            for kind in self.extras:
                add_extra(b.fixed(), kind)
            for part in self.parts:
                # names are those of the part: two may have a variable of one name
                with pm.Model(name=part):
                    add_part(b.fixed(), part)
        return b
