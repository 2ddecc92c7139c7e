r"""The kernel for small and medium matrices: eight of them side by side, one per vector lane.

Layout: operands whose eight matrices lie one after the other are read in place, transposed in
registers, and the results are written back the same way. All others (strided, broadcast, or the
last few matrices) pass through a small buffer with room for eight.

The formulas are those of the decomposition :math:`\Sigma = L D L^\top`, `L` with unit diagonal,
which needs reciprocals but no square roots. A lane whose pivots are not positive, or whose numbers
leave the range where the formulas are accurate, is done again by :mod:`.general`; the others do
not notice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from pytensor_mvn_rewrites.lower.numba.general import HALF_LOG_2PI
from pytensor_mvn_rewrites.lower.numba.jit import (
    PARAM_CODES,
    Table,
    bind,
    call_kernel_by_table,
    data_address,
    njit_exact,
    words,
)
from pytensor_mvn_rewrites.lower.numba.lane_loops import emit_loops, scratch_size
from pytensor_mvn_rewrites.lower.numba.vectors import (
    WIDTH,
    Index,
    Memory,
    Vec,
    dot,
    load,
    load_fields,
    log_of_product,
    mask_to_int,
    store,
    store_bool,
    store_fields,
    store_flags,
)

#: Largest core size with straight-line code: beyond it compile time grows faster than speed
STRAIGHT_MAX_N = 12

#: Largest core size done in lanes: beyond it the scratch leaves the cache, and LAPACK is as fast
LANES_MAX_N = 48

#: Outside of these the reciprocal of a pivot, or its logarithm, is not accurate
LOWEST_PIVOT, HIGHEST_PIVOT = 1e-300, 1e300

#: Operands and outputs that a block addresses: all but the last in the table, the flags
N_PLACES = len(Table.NAMES) - 1
CORE_NDIMS = Table.CORE_NDIMS[:N_PLACES]
FIRST_OUTPUT = Table.NAMES.index("first")
N_R, N_M, N, IS_LOGP, PARAM = Table.N_R, Table.N_M, Table.N, Table.IS_LOGP, Table.PARAM
FIRST, STRIDES, TABLE_SIZE = Table.FIRST, Table.STRIDES, Table.SIZE
POSDEF = FIRST + STRIDES * N_PLACES
ALL = (1 << WIDTH) - 1


@dataclass(frozen=True)
class LanesSpec:
    """What a kernel of this module is compiled for.

    Attributes
    ----------
    is_logp : bool
        Whether it computes a log-density rather than its two halves.
    param : {"cov", "chol", "tau"}
    n : int
        Core size; 0 for a kernel with loops, which serves all sizes above `STRAIGHT_MAX_N`.
    wants_vectors, wants_matrix : bool
        Whether gradients are wanted.
    """

    is_logp: bool
    param: str
    n: int
    wants_vectors: bool
    wants_matrix: bool

    @property
    def name(self) -> str:
        """Name of the kernel, from which :meth:`parse` makes the specification again."""
        return (
            f"lanes {int(self.is_logp)} {self.param} {self.n}"
            f" {int(self.wants_vectors)} {int(self.wants_matrix)}"
        )

    @classmethod
    def parse(cls, name: str) -> "LanesSpec":
        """Undo :attr:`name`."""
        _, is_logp, param, n, wants_vectors, wants_matrix = name.split()
        return cls(is_logp == "1", param, int(n), wants_vectors == "1", wants_matrix == "1")


def lanes_kernel(spec: LanesSpec) -> Callable:
    """The kernel of `spec`, to be compiled."""
    return bind(
        run_blocks,
        block=block_intrinsic(spec),
        CORE_SIZE=spec.n,
        PARAM_CODE=PARAM_CODES[spec.param],
        IS_LOGP_CODE=int(spec.is_logp),
    )


# --- the loop over blocks ---------------------------------------------------------------------

# what lanes_kernel specialises: functions and constants of the loop below
block: Callable = njit_exact
CORE_SIZE = PARAM_CODE = IS_LOGP_CODE = 0


def run_blocks(table):
    """Loop over blocks of eight matrices: pack where needed, compute, repair, unpack."""
    n = CORE_SIZE if CORE_SIZE else table[N]
    scratch = np.empty(1 if CORE_SIZE else scratch_size(n))
    buffer = np.zeros(WIDTH * (2 * n**2 + 4 * n + 5))
    # of each operand and output: its shape, its buffer, where the block finds it, its next place
    shapes = words()
    home = words()
    at = words()
    step = words()
    in_place = find_places(table, n, aligned(data_address(buffer)), shapes, home, at, step)
    at[N_PLACES] = aligned(data_address(scratch))
    redo_table = words()
    n_m = table[N_M]
    for m in range(0, n_m, WIDTH):
        count = min(WIDTH, n_m - m)
        if not in_place or m == 0 or count < WIDTH:
            pack(table, shapes, home, at, m, count)
        fine = block(at, n)
        if table[POSDEF] != 0:
            flags = table[POSDEF] + m * table[POSDEF + 2]
            if count == WIDTH and table[POSDEF + 2] == 1:
                store_flags(flags, fine)
            else:
                for lane in range(count):
                    store_bool(flags + lane * table[POSDEF + 2], (fine >> lane) & 1 != 0)
        if fine != ALL:
            redo_table[PARAM], redo_table[IS_LOGP] = PARAM_CODE, IS_LOGP_CODE
            for lane in range(count):
                if (fine >> lane) & 1 == 0:
                    fill_redo_table(redo_table, table, shapes, at, m, lane)
                    call_kernel_by_table("small", redo_table)
        if not in_place or count < WIDTH:
            unpack(table, shapes, home, at, m, count)
        for k in range(N_PLACES):
            at[k] += step[k]
    # Numba frees an array after its last use, and takes no notice of the use of its address
    buffer[0] = scratch[0] = 0.0


@njit_exact
def aligned(address):
    """The next address at which a vector starts a cache line."""
    return (address + 8 * WIDTH - 1) & -(8 * WIDTH)


@njit_exact
def find_places(table, n, buffer, shapes, home, at, step):
    """Find out which operands can be used where they are; False if some must move every time."""
    all_in_place = True
    for k in range(N_PLACES):
        rows = n if CORE_NDIMS[k] == 2 else 1
        columns = n if CORE_NDIMS[k] >= 1 else 1
        size = 8 * rows * columns
        entry = FIRST + STRIDES * k
        in_place = (
            table[N_M] >= WIDTH
            and table[entry + 2] == size
            and (columns == 1 or table[entry + 4] == 8)
            and (rows == 1 or table[entry + 3] == 8 * columns)
        )
        shapes[2 * k], shapes[2 * k + 1] = rows, columns
        home[k] = buffer
        at[k] = table[entry] if in_place else buffer
        step[k] = WIDTH * size if in_place else 0
        buffer += WIDTH * size
        # operands that are broadcast move once, and what does not exist stays zero
        is_broadcast = k < FIRST_OUTPUT and table[entry + 2] == 0
        all_in_place = all_in_place and (in_place or is_broadcast or table[entry] == 0)
    return all_in_place


@njit_exact
def pack(table, shapes, home, at, m, count):
    """Copy operands to their buffers, and direct outputs there, unless they are used in place.

    Lanes without a matrix repeat the last one.
    """
    for k in range(N_PLACES):
        entry = FIRST + STRIDES * k
        if table[entry] == 0 or (at[k] != home[k] and count == WIDTH):
            continue
        at[k] = home[k]
        if k >= FIRST_OUTPUT or (table[entry + 2] == 0 and m > 0):
            continue
        target = home[k]
        for lane in range(WIDTH):
            source = table[entry] + (m + min(lane, count - 1)) * table[entry + 2]
            for i in range(shapes[2 * k]):
                for j in range(shapes[2 * k + 1]):
                    store(target, load(source + i * table[entry + 3] + j * table[entry + 4]))
                    target += 8


@njit_exact
def unpack(table, shapes, home, at, m, count):
    """Copy outputs from their buffers, or add them where a gradient is shared."""
    for k in range(FIRST_OUTPUT, N_PLACES):
        entry = FIRST + STRIDES * k
        if table[entry] == 0 or at[k] != home[k]:
            continue
        is_sum = table[entry + 2] == 0 and table[N_M] > 1
        source = home[k]
        for lane in range(count):
            target = table[entry] + (m + lane) * table[entry + 2]
            for i in range(shapes[2 * k]):
                for j in range(shapes[2 * k + 1]):
                    address = target + i * table[entry + 3] + j * table[entry + 4]
                    before = load(address) if is_sum else 0.0
                    store(address, before + load(source))
                    source += 8


@njit_exact
def fill_redo_table(redo_table, table, shapes, at, m, lane):
    """Describe one lane of a block, for the kernel of one matrix after the other."""
    redo_table[N_R] = redo_table[N_M] = 1
    redo_table[N] = shapes[1]
    for k in range(N_PLACES):
        entry = FIRST + STRIDES * k
        rows, columns = shapes[2 * k], shapes[2 * k + 1]
        redo_table[entry] = at[k] + 8 * lane * rows * columns if table[entry] != 0 else 0
        redo_table[entry + 1] = redo_table[entry + 2] = 0
        redo_table[entry + 3] = 8 * columns
        redo_table[entry + 4] = 8
    flag = table[POSDEF] + (m + lane) * table[POSDEF + 2]
    redo_table[POSDEF] = flag if table[POSDEF] != 0 else 0
    redo_table[POSDEF + 1] = redo_table[POSDEF + 2] = 0


# --- the computation of one block ---------------------------------------------------------------


def block_intrinsic(spec: LanesSpec) -> Callable:
    """Make ``block(at, n)``: compute eight matrices, return which of them are fine as bits."""

    @intrinsic
    def block(typingctx, at, n):
        def codegen(context, builder, signature, args):
            addresses = [
                builder.load(builder.gep(args[0], [ir.Constant(ir.IntType(64), k)]))
                for k in range(N_PLACES + 1)
            ]
            places = [Memory(builder, address) for address in addresses[:-1]]
            scratch = Memory(builder, addresses[-1], align=8 * WIDTH)
            return mask_to_int(builder, emit_block(spec, args[1], scratch, *places))

        return types.intp(at, types.intp), codegen

    return block


def emit_block(
    spec: LanesSpec, n: ir.Value, scratch: Memory, value, mu, matrix, g_first, g_second, *outputs
) -> ir.Value:
    """Emit the code of one block; return the mask of the lanes that are fine."""
    first, second, *gradients = outputs
    builder = value.builder
    # the cotangents of quaddist and half_logdet
    g = g_first.load(0)
    cotangents = (-0.5 * g, -g) if spec.is_logp else (g, g_second.load(0))
    if spec.n:
        quad, log_pivots, fine = emit_straight(spec, value, mu, matrix, cotangents, gradients)
        size = Vec.full(builder, spec.n)
    else:
        places = (value, mu, matrix, *cotangents, *gradients)
        limits = LOWEST_PIVOT, HIGHEST_PIVOT
        quad, log_pivots, fine = emit_loops(spec, Index(builder, n), scratch, places, limits)
        size = Vec.from_int(builder, n)
    fine = builder.and_(fine, quad.within(-HIGHEST_PIVOT, HIGHEST_PIVOT))

    half_logdet = log_pivots * {"cov": 0.5, "chol": 1.0, "tau": -0.5}[spec.param]
    if spec.is_logp:
        first.store(-0.5 * quad - half_logdet - HALF_LOG_2PI * size, 0)
    else:
        first.store(quad, 0)
        second.store(half_logdet, 0)
    return fine


def emit_straight(
    spec: LanesSpec, value: Memory, mu: Memory, matrix: Memory, cotangents, gradients
) -> tuple[Vec, Vec, ir.Value]:
    """Emit straight-line code: quadratic form, logarithm of the pivots, mask of what is fine."""
    n, builder = spec.n, value.builder
    lower = [(i, j) for i in range(n) for j in range(i + 1)]
    fields = load_fields(matrix, n * n, [i * n + j for i, j in lower])
    s = {(i, j): fields[i * n + j] for i, j in lower}
    means = load_fields(mu, n, range(n))
    d = [x - means[i] for i, x in load_fields(value, n, range(n)).items()]

    formulas: Callable = {"cov": cov_formulas, "chol": chol_formulas, "tau": tau_formulas}[
        spec.param
    ]
    pivots, quad, u, g = formulas(n, s, d, *cotangents, spec)

    dvalue, dmu, dmatrix = gradients
    if spec.wants_vectors:
        store_fields(dvalue, u)
        if spec.is_logp:
            store_fields(dmu, [-x for x in u])
    if spec.wants_matrix:
        zero = Vec.full(builder, 0.0)
        store_fields(dmatrix, [g[i, j] if j <= i else zero for i in range(n) for j in range(n)])

    fine = pivots[0].within(LOWEST_PIVOT, HIGHEST_PIVOT)
    for pivot in pivots[1:]:
        fine = builder.and_(fine, pivot.within(LOWEST_PIVOT, HIGHEST_PIVOT))
    return quad, log_of_product(pivots), fine


Matrix = dict[tuple[int, int], Vec]


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


def half_inverse(n: int, inverse_p: Sequence[Vec], m: Matrix) -> Matrix:
    """The lower triangle of S^-1 / 2 = m' diag(1 / (2 p)) m."""
    h = [0.5 * x for x in inverse_p]
    hm = {(k, j): h[k] * m[k, j] for k, j in m}
    v: Matrix = {}
    for i in range(n):
        for j in range(i + 1):
            first = h[i] if i == j else hm[i, j]
            v[i, j] = dot(first, ((hm[k, i], m[k, j]) for k in range(i + 1, n)))
    return v


def cov_formulas(n, s, d, g_quad, g_half_logdet, spec):
    """Pivots, quadratic form and gradients for a covariance, with a = S^-1 d."""
    p, inverse_p, l = ldl(n, s)  # noqa: E741
    wants_inverse = spec.wants_matrix
    m = unit_inverse(n, l) if wants_inverse else {}
    w: list[Vec] = []
    for i in range(n):
        # w = l^-1 d, by the inverse if it is needed anyway
        if wants_inverse:
            w.append(dot(d[i], ((m[i, k], d[k]) for k in range(i))))
        else:
            w.append(dot(d[i], ((l[i, k], w[k]) for k in range(i)), -1))
    t = [w[i] * inverse_p[i] for i in range(n)]
    quad = dot(t[0] * w[0], zip(t[1:], w[1:], strict=True))
    a = dict(enumerate(t))
    for i in reversed(range(n)):
        if wants_inverse:
            a[i] = dot(t[i], ((m[k, i], t[k]) for k in range(i + 1, n)))
        else:
            a[i] = dot(t[i], ((l[k, i], a[k]) for k in range(i + 1, n)), -1)
    u = [2.0 * g_quad * a[i] for i in range(n)]
    g: Matrix = {}
    if spec.wants_matrix:
        v = half_inverse(n, inverse_p, m)
        for i in range(n):
            for j in range(i):
                g[i, j] = 2.0 * g_half_logdet * v[i, j] - u[i] * a[j]
            g[i, i] = g_half_logdet * v[i, i] - g_quad * a[i] * a[i]
    return p, quad, u, g


def tau_formulas(n, s, d, g_quad, g_half_logdet, spec):
    """The same for a precision: a = tau d needs no factorization."""
    p, inverse_p, l = ldl(n, s)  # noqa: E741
    a = []
    for i in range(n):
        row = [s[max(i, k), min(i, k)] for k in range(n)]
        a.append(dot(row[0] * d[0], zip(row[1:], d[1:], strict=True)))
    quad = dot(d[0] * a[0], zip(d[1:], a[1:], strict=True))
    u = [2.0 * g_quad * a[i] for i in range(n)]
    g: Matrix = {}
    if spec.wants_matrix:
        v = half_inverse(n, inverse_p, unit_inverse(n, l))
        for i in range(n):
            b = g_quad * d[i]
            for j in range(i):
                g[i, j] = 2.0 * b * d[j] - 2.0 * g_half_logdet * v[i, j]
            g[i, i] = b * d[i] - g_half_logdet * v[i, i]
    return p, quad, u, g


def chol_formulas(n, s, d, g_quad, g_half_logdet, spec):
    """The same for a Cholesky factor: two triangular solves."""
    p = [s[i, i] for i in range(n)]
    inverse_p = [1.0 / x for x in p]
    z: list[Vec] = []
    for i in range(n):
        z.append(dot(d[i], ((s[i, k], z[k]) for k in range(i)), -1) * inverse_p[i])
    quad = dot(z[0] * z[0], zip(z[1:], z[1:], strict=True))
    a = dict(enumerate(z))
    for i in reversed(range(n)):
        a[i] = dot(z[i], ((s[k, i], a[k]) for k in range(i + 1, n)), -1) * inverse_p[i]
    u = [2.0 * g_quad * a[i] for i in range(n)]
    g: Matrix = {}
    if spec.wants_matrix:
        for i in range(n):
            for j in range(i):
                g[i, j] = -(u[i] * z[j])
            g[i, i] = g_half_logdet * inverse_p[i] - u[i] * z[i]
    return p, quad, u, g
