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

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from pytensor_mvn_rewrites.lower.numba.formulas import (
    Factors,
    LaneSpec,
    gradient_of_matrix,
    lower_triangle,
    pivots_and_factors,
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
    builds_kernel,
    copy_table,
    data_address,
    njit_exact,
    words,
)
from pytensor_mvn_rewrites.lower.numba.lanes import ALL, HALF_LOGDET_SCALES, HIGHEST_QUAD
from pytensor_mvn_rewrites.lower.numba.places import (
    CORE_NDIMS,
    ENTRIES,
    FIRST_OUTPUT,
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
    Scattered,
    Variable,
    Vec,
    load,
    load_fields,
    loop,
    mask_to_int,
    numbers,
    store,
    store_bool,
    store_fields,
    store_flags,
)

MATRIX, DVALUE, DMU, DMATRIX, POSDEF, TOTAL = (
    Table.entry(name) for name in ("matrix", "dvalue", "dmu", "dmatrix", "posdef", "total")
)
N_R, N_M, M_START, M_STOP = Table.N_R, Table.N_M, Table.M_START, Table.M_STOP
VECTOR = LANE * WIDTH


@builds_kernel("rows")
def rows_kernel(name: str) -> Callable:
    """The function of the kernel of a specification."""
    spec = LaneSpec.parse(name)
    return bind(
        run_matrices,
        begin=begin_intrinsic(spec),
        rows=rows_intrinsic(spec, are_apart=False),
        IS_GROUPED=bool(spec.apart),
        rows_apart=rows_intrinsic(spec, are_apart=True) if spec.apart else no_rows,
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
    in_place = find_places(table, CORE_SIZE, True, IS_GROUPED, by_row, buffer, home, at, step)
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
            pack(table, CORE_SIZE, True, IS_GROUPED, by_row, is_run, home, at, step, m, r, n_lanes)
            if can_be_apart and not is_run and count == WIDTH:
                n_blocks = (n_r - r) // WIDTH
                count = n_blocks * WIDTH
                find_rows(table, m, home, base, stride)
                fine &= rows_apart(base, stride, row_numbers(table, m, r), n_blocks, state)
            else:
                fine &= rows(at, step, 0, n_blocks, state)
                unpack(table, CORE_SIZE, True, IS_GROUPED, by_row, home, at, m, r, n_lanes, ALL)
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
    def n_factors(spec: LaneSpec) -> int:
        """Number of vectors that the factors are."""
        n_diagonal, *others = Factors.keys(spec)
        return n_diagonal + sum(map(len, others))

    def size(self, spec: LaneSpec) -> int:
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


def begin_intrinsic(spec: LaneSpec) -> Callable:
    """Make ``begin(state)``: factorize; return which lanes are fine as bits."""

    @intrinsic
    def begin(typingctx, state):
        def codegen(context, builder, signature, args):
            memory = Memory(builder, args[0], align=VECTOR)
            return mask_to_int(builder, emit_begin(spec, memory))

        return types.intp(types.intp), codegen

    return begin


def emit_begin(spec: LaneSpec, memory: Memory) -> ir.Value:
    """Emit the code before the rows."""
    state, keys = State(spec.n), lower_triangle(spec.n)
    matrix = dict(zip(keys, State.load(memory, 0, len(keys)), strict=True))
    pivots, factors = pivots_and_factors(spec, matrix)
    State.store(memory, state.factors, factors.vectors())
    n_sums = (state.log_pivots - state.products) // WIDTH
    State.store(memory, state.products, [Vec.full(memory.builder, 0.0)] * n_sums)
    product = Product.of(pivots)
    memory.store(product.log(), state.log_pivots)
    return product.within()


def rows_intrinsic(spec: LaneSpec, *, are_apart: bool) -> Callable:
    """Make ``rows(at, step, row_numbers, n_blocks, state)``; return which lanes are fine as bits.

    A run of blocks, of rows that lie one after the other, or apart: then `at` is where the rows
    of an operand start, `step` their distance, and `row_numbers` where their numbers are. What rows
    share is in a buffer, eight times.
    """

    @intrinsic
    def rows(typingctx, at, step, row_numbers, n_blocks, state):
        def codegen(context, builder, signature, args):
            at, step, row_numbers, n_blocks, state = args
            pointers = (numbers(builder, pointer, N_PLACES) for pointer in (at, step))
            starts = dict(zip(PLACES, zip(*pointers, strict=True), strict=True))
            own = (*spec.apart.split(","), *PLACES[FIRST_OUTPUT:])

            def places(block: ir.Value) -> dict[str, Memory | Scattered]:
                if not are_apart:
                    return {
                        name: Memory(builder, builder.add(start, builder.mul(block, step)))
                        for name, (start, step) in starts.items()
                    }
                word = ir.IntType(64)
                first = builder.inttoptr(row_numbers, word.as_pointer())
                first = builder.gep(first, [builder.mul(block, word(WIDTH))])
                rows = numbers(builder, first, WIDTH)
                return {
                    name: Scattered(builder, start, step, rows)
                    if name in own
                    else Memory(builder, start)
                    for name, (start, step) in starts.items()
                }

            memory = Memory(builder, state, align=VECTOR)
            return mask_to_int(builder, emit_rows(spec, places, Index(builder, n_blocks), memory))

        return types.intp(at, step, types.intp, types.intp, types.intp), codegen

    return rows


@njit_exact
def no_rows(base, stride, row_numbers, n_blocks, state):
    """Stand for ``rows_apart`` where rows are not in groups."""
    return ALL


def emit_rows(spec: LaneSpec, places_of, n_blocks: Index, memory: Memory) -> ir.Value:
    """Emit the loop over blocks of eight rows; ``places_of(block)`` says where those of one are."""
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
    wants_sum = "sum" in (spec.value, spec.mu)
    if wants_sum:
        positions += [state.vector_sum + WIDTH * i for i in range(n)]
    if spec.form == "sum":
        positions += [state.quad_sum]
    sums = {position: Variable(memory.load(position)) for position in positions}
    fine = Variable(Vec.full(builder, 1.0))

    def add(position: int, vector: Vec) -> None:
        sums[position].set(sums[position].get() + vector)

    with loop(builder, 0, n_blocks) as block:
        places = places_of(block.value)
        d = load_fields(places["value"], n, range(n))
        if spec.form != "quad":
            means = load_fields(places["mu"], n, range(n))
            d = {i: d[i] - means[i] for i in range(n)}
        g = places["g_first"].load(0) if spec.wants_gradient else Vec.full(builder, 0.0)
        g_quad = g if spec.form == "quad" else -0.5 * g
        row = whiten(spec, factors, [d[i] for i in range(n)], g_quad)
        store_fields(
            places["dvalue"] if spec.value == "own" else None,
            row.gradient,
            places["dmu"] if spec.mu == "own" else None,
        )
        if spec.wants_matrix:
            for k, product in enumerate(row.products(n).values()):
                add(state.products + WIDTH * k, product)
            add(state.g_half_logdet, places["g_second"].load(0) if spec.form == "quad" else -g)
        if wants_sum:
            for i, x in enumerate(row.gradient):
                add(state.vector_sum + WIDTH * i, x)
        if spec.form == "sum":
            add(state.quad_sum, row.quad)
        elif spec.form == "logp":
            logp = -0.5 * row.quad - half_logdet - HALF_LOG_2PI * n
            places["first"].store(logp, 0)
        else:
            places["first"].store(row.quad, 0)
            places["second"].store(half_logdet, 0)
        is_fine = row.quad.within(-HIGHEST_QUAD, HIGHEST_QUAD)
        fine.set(fine.get().select(is_fine, 0.0))
    for position, variable in sums.items():
        memory.store(variable.get(), position)
    return fine.get().within(1.0, 1.0)


def finish_intrinsic(spec: LaneSpec) -> Callable:
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


def emit_finish(spec: LaneSpec, memory: Memory) -> None:
    """Emit the code after the rows."""
    state, keys = State(spec.n), lower_triangle(spec.n)
    vectors = State.load(memory, state.factors, State.n_factors(spec))
    factors = Factors.of_vectors(spec, vectors)
    products = dict(zip(keys, State.load(memory, state.products, len(keys)), strict=True))
    g = gradient_of_matrix(spec, factors, products, memory.load(state.g_half_logdet))
    State.store(memory, 0, [g[key] for key in keys])
