"""The kernel for small matrices that several rows share: factorize once, eight rows per vector.

Layout: the matrix is broadcast to all lanes, and eight of its rows go side by side. Operands whose
rows lie one after the other are read and written in place, transposed in registers; all others
pass through a buffer, see :mod:`.places`. The gradient for what the rows share is summed per lane,
in registers while rows are in place, and over the lanes at the end.

With many matrices of few rows each, the lanes hold eight matrices and the rows come one by one;
the code is the same, and only what is packed into the lanes differs. Matrices whose numbers of rows
differ, and whose rows lie apart, get their rows by :mod:`.groups`; there is nothing to pack when
they lie one after the other.

A matrix with pivots that are not positive, or a row that leaves the range where the formulas are
accurate, is done again by :mod:`.general` with all of its rows; the others do not notice.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import ClassVar, Protocol, override

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from pytensor_mvn_rewrites.lower.numba.formulas import (
    Factors,
    factorize,
    gradient_of_matrix,
    lower_triangle,
    whiten,
)
from pytensor_mvn_rewrites.lower.numba.general import HALF_LOG_2PI, do_again
from pytensor_mvn_rewrites.lower.numba.groups import (
    count_rows,
    row_numbers,
    rows_are_run,
)
from pytensor_mvn_rewrites.lower.numba.jit import (
    Table,
    bind,
    copy_table,
    data_address,
    njit_exact,
    words,
)
from pytensor_mvn_rewrites.lower.numba.lanes import ALL, HALF_LOGDET_SCALES, HIGHEST_QUAD
from pytensor_mvn_rewrites.lower.numba.places import (
    CORE_NDIMS,
    ENTRIES,
    LANE,
    N_PLACES,
    PLACES,
    aligned,
    find_places,
    pack,
    unpack,
)
from pytensor_mvn_rewrites.lower.numba.vectors import (
    WIDTH,
    Index,
    Memory,
    Product,
    Variable,
    Vec,
    load,
    load_fields,
    load_numbers,
    load_rows,
    loop,
    mask_to_int,
    numbers,
    store,
    store_bool,
    store_fields,
    store_flags,
    store_numbers,
    store_rows,
)

MATRIX, DVALUE, DMU, DMATRIX, POSDEF, TOTAL = (
    Table.entry(name) for name in ("matrix", "dvalue", "dmu", "dmatrix", "posdef", "total")
)
N_R, N_M, M_START, M_STOP = Table.N_R, Table.N_M, Table.M_START, Table.M_STOP
VECTOR = LANE * WIDTH


@dataclass(frozen=True)
class RowsSpec:
    """What a kernel of this module is compiled for.

    Attributes
    ----------
    form : {"logp", "sum", "quad"}
        Log-densities, their sum, or quadratic forms and half log-determinants.
    param : {"cov", "chol", "tau"}
    n : int
        Core size.
    value, mu : {"own", "sum", "none"}
        Their gradients: one for each row, the sum over the rows of a matrix, or not wanted.
    matrix : {"sum", "none"}
        The gradient for the matrix.
    apart : str
        The operands of which each row has its own, separated by commas, when rows are in groups;
        else empty.
    """

    form: str
    param: str
    n: int
    value: str
    mu: str
    matrix: str
    apart: str = ""
    has_rows: ClassVar[bool] = True

    @property
    def wants_matrix(self) -> bool:
        """Whether the gradient for the matrix is wanted."""
        return self.matrix != "none"

    @property
    def wants_gradient(self) -> bool:
        """Whether any gradient is wanted, so that there are cotangents."""
        return {self.value, self.mu, self.matrix} != {"none"}

    @property
    def wants_sum(self) -> bool:
        """Whether the rows share a vector whose gradient is wanted."""
        return "sum" in (self.value, self.mu)

    @property
    def name(self) -> str:
        """Name of the kernel, from which :meth:`parse` makes the specification again."""
        return " ".join(["rows", *map(str, astuple(self))])

    @classmethod
    def parse(cls, name: str) -> "RowsSpec":
        """Undo :attr:`name`."""
        _, form, param, n, *others = name.split(" ")
        return cls(form, param, int(n), *others)


def rows_kernel(spec: RowsSpec) -> Callable:
    """The kernel of `spec`, to be compiled."""
    return bind(
        run_matrices,
        begin=begin_intrinsic(spec),
        rows=rows_intrinsic(spec),
        IS_GROUPED=bool(spec.apart),
        rows_apart=rows_apart_intrinsic(spec) if spec.apart else no_rows,
        finish=finish_intrinsic(spec),
        CORE_SIZE=spec.n,
        HALF_LOGDET_SCALE=HALF_LOGDET_SCALES[spec.param],
        STATE_SIZE=State(spec.n).size(spec),
    )


# --- the loop over matrices -------------------------------------------------------------------

# what rows_kernel specialises: functions and constants of the loop below
begin: Callable = njit_exact
rows: Callable = njit_exact
rows_apart: Callable = njit_exact
finish: Callable = njit_exact
CORE_SIZE = STATE_SIZE = 0
HALF_LOGDET_SCALE = 0.0
IS_GROUPED = False


@njit_exact
def lanes_are_rows(n_m, n_r):
    """Whether rows of one matrix are cheaper side by side than eight matrices.

    Costs are in units of a block of eight rows. Measured with both kinds forced, for 4 to 256
    matrices of 2 to 64 rows, on one core with AVX-512: to factorize costs 14 units at n = 3 and 7
    at n = 8, a row of eight matrices, which must be packed, 7 and 2. The choice is within 20 % of
    the better one everywhere; they differ up to six times (256 matrices of 2 rows: 34 us side by
    side, 6 us by matrix; of 64 rows: 39 and 101 us).
    """
    factorize, packed_row = 10, 4
    blocks_of_matrices = (n_m + WIDTH - 1) // WIDTH
    blocks_of_rows = (n_r + WIDTH - 1) // WIDTH
    by_row = n_m * (factorize + blocks_of_rows)
    by_matrix = blocks_of_matrices * (factorize + packed_row * n_r)
    return by_row <= by_matrix


def run_matrices(table):
    """Loop over matrices, one or eight at a time, and over their rows."""
    by_row = lanes_are_rows(table[N_M], mean_rows(table, IS_GROUPED))
    state_array = np.empty(STATE_SIZE + WIDTH)
    buffer_array = np.empty(WIDTH * (4 * CORE_SIZE + 5))
    state = aligned(data_address(state_array))
    buffer = aligned(data_address(buffer_array))
    # of each operand and output: its buffer, where the rows find it, and its next place
    home, at, step = words(), words(), words()
    in_place = find_places(table, CORE_SIZE, IS_GROUPED, by_row, True, buffer, home, at, step)
    base, stride = words(), words()
    can_be_apart = IS_GROUPED and by_row and cores_are_dense(table)
    redo_table = words()
    copy_table(redo_table, table)
    for m in range(table[M_START], table[M_STOP], 1 if by_row else WIDTH):
        n_matrices = 1 if by_row else min(WIDTH, table[M_STOP] - m)
        n_r = most_rows(table, m, n_matrices, IS_GROUPED)
        if n_r == 0 and IS_GROUPED:
            continue
        pack_matrices(table, CORE_SIZE, state, m, n_matrices)
        fine = begin(state)
        is_run = by_row and rows_are_run(table, m, IS_GROUPED)
        r = 0
        while r < n_r:
            # everything that is in place goes in one run
            count = min(WIDTH, n_r - r) if by_row else 1
            n_blocks = 1
            if in_place and is_run and count == WIDTH:
                n_blocks = (n_r - r) // WIDTH
                count = n_blocks * WIDTH
            n_lanes = min(count, WIDTH) if by_row else n_matrices
            pack(table, CORE_SIZE, IS_GROUPED, by_row, is_run, home, at, step, m, r, n_lanes)
            if can_be_apart and not is_run and count == WIDTH:
                n_blocks = (n_r - r) // WIDTH
                count = n_blocks * WIDTH
                find_rows(table, m, home, base, stride)
                fine &= rows_apart(base, stride, row_numbers(table, m, r), n_blocks, state)
            else:
                fine &= rows(at, step, n_blocks, state)
                unpack(table, CORE_SIZE, IS_GROUPED, by_row, home, at, m, r, n_lanes, ALL)
            r += count
        finish(state)
        for lane in range(n_matrices):
            if IS_GROUPED and count_rows(table, m + lane, IS_GROUPED) == 0:
                continue
            if fine == ALL or (not by_row and (fine >> lane) & 1 != 0):
                unpack_matrix(
                    table, CORE_SIZE, IS_GROUPED, HALF_LOGDET_SCALE, state, m + lane, lane, by_row
                )
            else:
                do_again(redo_table, m + lane)
    # Numba frees an array after its last use, and takes no notice of the use of its address
    state_array[0] = buffer_array[0] = 0.0


@njit_exact
def mean_rows(table, is_grouped):
    """Number of rows of a matrix, the mean where it differs."""
    if not is_grouped or table[N_M] == 0:
        return table[N_R]
    return (table[N_R] + table[N_M] - 1) // table[N_M]


@njit_exact
def most_rows(table, m, n_matrices, is_grouped):
    """The largest number of rows of some matrices."""
    most = count_rows(table, m, is_grouped)
    for lane in range(1, n_matrices):
        most = max(most, count_rows(table, m + lane, is_grouped))
    return most


@njit_exact
def cores_are_dense(table):
    """Whether the numbers of each row are one after the other."""
    for k in range(N_PLACES):
        if CORE_NDIMS[k] == 1 and table[ENTRIES[k]] != 0 and table[ENTRIES[k] + 4] != LANE:
            return False
    return True


@njit_exact
def find_rows(table, m, home, base, stride):
    """Where the rows of operands are, or what the rows of a matrix share, for `rows_apart`."""
    for k in range(N_PLACES):
        entry = ENTRIES[k]
        is_own = table[entry] != 0 and table[entry + 1] != 0
        base[k] = table[entry] + m * table[entry + 2] if is_own else home[k]
        stride[k] = table[entry + 1]


@njit_exact
def pack_matrices(table, n, state, m, n_matrices):
    """Copy the lower triangles of matrices to the lanes; the last one fills the rest."""
    target = state
    for i in range(n):
        for j in range(i + 1):
            source = table[MATRIX] + i * table[MATRIX + 3] + j * table[MATRIX + 4]
            for lane in range(WIDTH):
                number = load(source + (m + min(lane, n_matrices - 1)) * table[MATRIX + 2])
                store(target + LANE * lane, number)
            target += VECTOR


@njit_exact
def lane_or_sum(address, lane, by_row):
    """The number of a lane, or their sum where lanes are rows."""
    if not by_row:
        return load(address + LANE * lane)
    total = 0.0
    for k in range(WIDTH):
        total += load(address + LANE * k)
    return total


@njit_exact
def unpack_matrix(table, n, is_grouped, half_logdet_scale, state, m, lane, by_row):
    """Write all that the rows of a matrix share: sum, gradients, flags."""
    triangle = VECTOR * (n * (n + 1) // 2)
    vector_sum = state + 2 * triangle
    quad_sum = vector_sum + VECTOR * (n + 1)
    n_r = count_rows(table, m, is_grouped)
    if table[TOTAL] != 0:
        quad = lane_or_sum(quad_sum, lane, by_row)
        half_logdet = half_logdet_scale * load(quad_sum + VECTOR + LANE * lane)
        total = 0.5 * quad + n_r * (half_logdet + n * HALF_LOG_2PI)
        store(table[TOTAL], load(table[TOTAL]) - total)
    for entry in (DVALUE, DMU):
        if table[entry] == 0 or table[entry + 1] != 0:
            continue
        for i in range(n):
            total = lane_or_sum(vector_sum + VECTOR * i, lane, by_row)
            target = table[entry] + m * table[entry + 2] + i * table[entry + 4]
            store(target, load(target) + (total if entry == DVALUE else -total))
    if table[DMATRIX] != 0:
        source = state
        for i in range(n):
            target = table[DMATRIX] + m * table[DMATRIX + 2] + i * table[DMATRIX + 3]
            for j in range(n):
                number = 0.0
                if j <= i:
                    number = lane_or_sum(source, lane, by_row)
                    source += VECTOR
                store(target + j * table[DMATRIX + 4], number)
    # of rows in groups, all flags are set before
    if table[POSDEF] != 0 and not is_grouped:
        flags = table[POSDEF] + m * table[POSDEF + 2]
        dense = n_r - n_r % WIDTH if table[POSDEF + 1] == 1 else 0
        for r in range(0, dense, WIDTH):
            store_flags(flags + r, ALL)
        for r in range(dense, n_r):
            store_bool(flags + r * table[POSDEF + 1], True)


# --- the computation of one block -------------------------------------------------------------


class State:
    """What lies where between the steps of a matrix, in numbers; everything is a vector.

    First the lower triangle of the matrix, which its gradient replaces, then sums over the rows:
    the outer products, the gradient for a vector that they share, the cotangents of half_logdet,
    the quadratic forms. Then the logarithm of the pivots, and the factors.
    """

    def __init__(self, n: int):
        self.products = WIDTH * (n * (n + 1) // 2)
        self.vector_sum = 2 * self.products
        self.g_half_logdet = self.vector_sum + WIDTH * n
        self.quad_sum = self.g_half_logdet + WIDTH
        self.log_pivots = self.quad_sum + WIDTH
        self.factors = self.log_pivots + WIDTH

    @staticmethod
    def n_factors(spec: RowsSpec) -> int:
        """Number of vectors that the factors are."""
        n_diagonal, *others = Factors.keys(spec)
        return n_diagonal + sum(map(len, others))

    def size(self, spec: RowsSpec) -> int:
        """All of it."""
        return self.factors + WIDTH * self.n_factors(spec)

    @staticmethod
    def load(memory: Memory, start: int, count: int) -> list[Vec]:
        """Read `count` vectors."""
        return [memory.load(start + WIDTH * k) for k in range(count)]

    @staticmethod
    def store(memory: Memory, start: int, vectors) -> None:
        """Write vectors."""
        for k, vector in enumerate(vectors):
            memory.store(vector, start + WIDTH * k)


def begin_intrinsic(spec: RowsSpec) -> Callable:
    """Make ``begin(state)``: factorize; return which lanes are fine as bits."""

    @intrinsic
    def begin(typingctx, state):
        def codegen(context, builder, signature, args):
            memory = Memory(builder, args[0], align=VECTOR)
            return mask_to_int(builder, emit_begin(spec, memory))

        return types.intp(types.intp), codegen

    return begin


def emit_begin(spec: RowsSpec, memory: Memory) -> ir.Value:
    """Emit the code before the rows."""
    state, keys = State(spec.n), lower_triangle(spec.n)
    matrix = dict(zip(keys, State.load(memory, 0, len(keys)), strict=True))
    pivots, factors = factorize(spec, matrix)
    State.store(memory, state.factors, factors.vectors())
    n_sums = (state.log_pivots - state.products) // WIDTH
    State.store(memory, state.products, [Vec.full(memory.builder, 0.0)] * n_sums)
    product = Product.of(pivots)
    memory.store(product.log(), state.log_pivots)
    return product.within()


def rows_intrinsic(spec: RowsSpec) -> Callable:
    """Make ``rows(at, step, n_blocks, state)``: a run of blocks; return which lanes are fine."""

    @intrinsic
    def rows(typingctx, at, step, n_blocks, state):
        def codegen(context, builder, signature, args):
            at, step, n_blocks, state = args

            memory = Memory(builder, state, align=VECTOR)
            pointers = (numbers(builder, pointer, N_PLACES) for pointer in (at, step))
            places = dict(zip(PLACES, zip(*pointers, strict=True), strict=True))

            def operands(block: ir.Value) -> Operands:
                return Together(spec, builder, places, block)

            return mask_to_int(builder, emit_rows(spec, operands, Index(builder, n_blocks), memory))

        return types.intp(at, step, types.intp, types.intp), codegen

    return rows


def rows_apart_intrinsic(spec: RowsSpec) -> Callable:
    """Make ``rows_apart(base, stride, numbers, n_blocks, state)``, for rows that lie apart."""

    @intrinsic
    def rows_apart(typingctx, base, stride, row_numbers, n_blocks, state):
        def codegen(context, builder, signature, args):
            base, stride, row_numbers, n_blocks, state = args
            memory = Memory(builder, state, align=VECTOR)
            pointers = (numbers(builder, pointer, N_PLACES) for pointer in (base, stride))
            places = dict(zip(PLACES, zip(*pointers, strict=True), strict=True))

            def operands(block: ir.Value) -> Operands:
                return Apart(spec, builder, places, row_numbers, block)

            return mask_to_int(builder, emit_rows(spec, operands, Index(builder, n_blocks), memory))

        return types.intp(base, stride, types.intp, types.intp, types.intp), codegen

    return rows_apart


@njit_exact
def no_rows(base, stride, row_numbers, n_blocks, state):
    """Stand for ``rows_apart`` where rows are not in groups."""
    return ALL


class Operands(Protocol):
    """Eight rows of the operands and outputs, by their names in `PLACES`."""

    def vectors(self, name: str) -> dict[int, Vec]:
        """The fields of the rows."""

    def numbers(self, name: str) -> Vec:
        """One number of each row."""

    def store_vectors(self, gradient: Sequence[Vec]) -> None:
        """Write the gradients for `value` and `mu` that rows have of their own."""

    def store_numbers(self, name: str, vector: Vec) -> None:
        """Write one number of each row."""


class Together(Operands):
    """Rows that lie one after the other."""

    def __init__(self, spec: RowsSpec, builder: ir.IRBuilder, places, block: ir.Value):
        self.spec = spec
        self.memory = {
            name: Memory(builder, builder.add(address, builder.mul(block, step)))
            for name, (address, step) in places.items()
        }

    @override
    def vectors(self, name):
        return load_fields(self.memory[name], self.spec.n, range(self.spec.n))

    @override
    def numbers(self, name):
        return self.memory[name].load(0)

    @override
    def store_vectors(self, gradient):
        dvalue, dmu = self.memory["dvalue"], self.memory["dmu"]
        store_fields(
            dvalue if self.spec.value == "own" else None,
            gradient,
            dmu if self.spec.mu == "own" else None,
        )

    @override
    def store_numbers(self, name, vector):
        self.memory[name].store(vector, 0)


class Apart(Operands):
    """Rows that lie apart, by their numbers; what rows share is there eight times in a buffer."""

    def __init__(
        self,
        spec: RowsSpec,
        builder: ir.IRBuilder,
        places,
        row_numbers: ir.Value,
        block: ir.Value,
    ):
        self.spec = spec
        self.builder = builder
        self.places = places
        word = ir.IntType(64)
        first = builder.inttoptr(row_numbers, word.as_pointer())
        first = builder.gep(first, [builder.mul(block, word(WIDTH))])
        self.row_numbers = numbers(builder, first, WIDTH)

    def rows(self, name: str) -> list[Memory]:
        """The eight rows of an operand."""
        address, stride = self.places[name]
        builder = self.builder
        return [
            Memory(builder, builder.add(address, builder.mul(number, stride)))
            for number in self.row_numbers
        ]

    def is_own(self, name: str) -> bool:
        """Whether each row has its own."""
        return name in self.spec.apart.split(",")

    def shared(self, name: str) -> Memory:
        """The buffer of what rows share."""
        return Memory(self.builder, self.places[name][0])

    @override
    def vectors(self, name):
        n = self.spec.n
        if self.is_own(name):
            return load_rows(self.rows(name), n)
        return load_fields(self.shared(name), n, range(n))

    @override
    def numbers(self, name):
        return load_numbers(self.rows(name)) if self.is_own(name) else self.shared(name).load(0)

    @override
    def store_vectors(self, gradient):
        if self.spec.value == "own":
            store_rows(self.rows("dvalue"), gradient)
        if self.spec.mu == "own":
            store_rows(self.rows("dmu"), [-x for x in gradient])

    @override
    def store_numbers(self, name, vector):
        store_numbers(self.rows(name), vector)


def emit_rows(spec: RowsSpec, operands_of, n_blocks: Index, memory: Memory) -> ir.Value:
    """Emit the loop over blocks of eight rows; ``operands_of(block)`` gives those of a block."""
    builder = memory.builder
    state, n, keys = State(spec.n), spec.n, lower_triangle(spec.n)
    vectors = State.load(memory, state.factors, State.n_factors(spec))
    factors = Factors.of_vectors(spec, vectors)
    log_pivots = memory.load(state.log_pivots)
    half_logdet = log_pivots * HALF_LOGDET_SCALES[spec.param]

    # the sums that this kernel needs, and where they are kept between runs
    positions = []
    if spec.wants_matrix:
        positions += [state.products + WIDTH * k for k in range(len(keys))]
        positions += [state.g_half_logdet]
    if spec.wants_sum:
        positions += [state.vector_sum + WIDTH * i for i in range(n)]
    if spec.form == "sum":
        positions += [state.quad_sum]
    sums = {position: Variable(memory.load(position)) for position in positions}
    fine = Variable(Vec.full(builder, 1.0))

    def add(position: int, vector: Vec) -> None:
        sums[position].set(sums[position].get() + vector)

    with loop(builder, 0, n_blocks) as block:
        operands = operands_of(block.value)
        d = operands.vectors("value")
        if spec.form != "quad":
            means = operands.vectors("mu")
            d = {i: d[i] - means[i] for i in range(n)}
        g = operands.numbers("g_first") if spec.wants_gradient else Vec.full(builder, 0.0)
        g_quad = g if spec.form == "quad" else -0.5 * g
        row = whiten(spec, factors, [d[i] for i in range(n)], g_quad)
        operands.store_vectors(row.gradient)
        if spec.wants_matrix:
            for k, product in enumerate(row.products(n).values()):
                add(state.products + WIDTH * k, product)
            add(state.g_half_logdet, operands.numbers("g_second") if spec.form == "quad" else -g)
        if spec.wants_sum:
            for i, x in enumerate(row.gradient):
                add(state.vector_sum + WIDTH * i, x)
        if spec.form == "sum":
            add(state.quad_sum, row.quad)
        elif spec.form == "logp":
            logp = -0.5 * row.quad - half_logdet - HALF_LOG_2PI * n
            operands.store_numbers("first", logp)
        else:
            operands.store_numbers("first", row.quad)
            operands.store_numbers("second", half_logdet)
        is_fine = row.quad.within(-HIGHEST_QUAD, HIGHEST_QUAD)
        fine.set(fine.get().select(is_fine, 0.0))
    for position, variable in sums.items():
        memory.store(variable.get(), position)
    return fine.get().within(1.0, 1.0)


def finish_intrinsic(spec: RowsSpec) -> Callable:
    """Make ``finish(state)``: the gradient for the matrix, from the sums over the rows."""

    @intrinsic
    def finish(typingctx, state):
        def codegen(context, builder, signature, args):
            memory = Memory(builder, args[0], align=VECTOR)
            if spec.wants_matrix:
                emit_finish(spec, memory)
            return context.get_dummy_value()

        return types.void(types.intp), codegen

    return finish


def emit_finish(spec: RowsSpec, memory: Memory) -> None:
    """Emit the code after the rows."""
    state, keys = State(spec.n), lower_triangle(spec.n)
    vectors = State.load(memory, state.factors, State.n_factors(spec))
    factors = Factors.of_vectors(spec, vectors)
    products = dict(zip(keys, State.load(memory, state.products, len(keys)), strict=True))
    g = gradient_of_matrix(spec, factors, products, memory.load(state.g_half_logdet))
    State.store(memory, 0, [g[key] for key in keys])
