r"""The kernel for small and medium matrices: eight of them side by side, one per vector lane.

Layout: operands whose eight matrices lie one after the other are read in place, transposed in
registers, and the results are written back the same way. All others pass through a buffer, see
:mod:`.places`.

The formulas are those of :mod:`.formulas`, or of :mod:`.lane_loops` for medium matrices. A lane
whose pivots are not positive, or whose numbers leave the range where the formulas are accurate, is
done again by :mod:`.general`; the others do not notice.

The sum of the log-densities has a form of its own: each lane keeps a running product of its
pivots, with the exponent apart, and the logarithm is taken once for many matrices.
"""

from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
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
from pytensor_mvn_rewrites.lower.numba.jit import (
    Table,
    bind,
    builds_kernel,
    copy_table,
    data_address,
    njit_exact,
    words,
)
from pytensor_mvn_rewrites.lower.numba.lane_loops import emit_loops, scratch_size
from pytensor_mvn_rewrites.lower.numba.places import N_PLACES, aligned, find_places, pack, unpack
from pytensor_mvn_rewrites.lower.numba.vectors import (
    WIDTH,
    Difference,
    Index,
    Memory,
    Product,
    Variable,
    Vec,
    load,
    load_fields,
    mask_below,
    mask_to_int,
    numbers,
    store,
    store_bool,
    store_fields,
    store_flags,
)

# Measured on one core with AVX-512, value and all gradients, 200 matrices (64 from n = 30 on), in
# microseconds; a Zen 4 with 1 MB of L2 up to n = 16, a Xeon with 2 MB of it from n = 30 on:
#
#     n                 8     10     12     14     16     30     48     64    100
#     straight-line    7.6   12.4   17.7   24.8   37.8
#     loops           16.4   25.7   28.6   45.2   57.4     69    255    577   1783
#     LAPACK                                              422   1368   2409   7178

#: Largest core size with straight-line code. At n = 16 it compiles in 1.5 to 2.4 s and takes 0.66
#: to 0.74 of the time of the loops, at n = 20 from 0.76 to 0.93
STRAIGHT_MAX_N = 16

#: Largest core size at which two blocks overlap: beyond it their numbers do not fit in registers.
#: Overlap takes (5000, 3) from 36 to 31 us, (5000, 4) from 57 to 60, (2000, 5) from 34 to 45
SPLIT_MAX_N = 3

#: Largest core size done in lanes: its scratch is half a megabyte. With 16 matrices, LAPACK takes
#: three times as long as lanes at n = 128, and twice as long at 256
LANES_MAX_N = 128

#: Fewer matrices of medium size are done one after the other. At n = 48 lanes take 45 us for one to
#: three of them, other kernels 21, 41 and 64 us; at n = 100 they are equal for three
LANES_MIN_M = 3

#: Quadratic forms beyond it may have overflowed on the way
HIGHEST_QUAD = 1e300

#: Half the log-determinant of the covariance over the logarithm of the product of the pivots
HALF_LOGDET_SCALES = {"cov": 0.5, "chol": 1.0, "tau": -0.5}

#: Matrices whose log-densities are added up before the sum goes to the sum of all. It is part of
#: the definition of the sum: threads that share the work add the same numbers in the same order.
CHUNK = 4096

N, M_START, M_STOP = Table.N, Table.M_START, Table.M_STOP
POSDEF, TOTAL = (Table.entry(name) for name in ("posdef", "total"))
ALL = (1 << WIDTH) - 1


@builds_kernel("lanes")
def lanes_kernel(name: str) -> Callable:
    """The function of the kernel of a specification."""
    spec = LaneSpec.parse(name)
    return bind(
        run_blocks,
        blocks=blocks_intrinsic(spec),
        CORE_SIZE=spec.n,
        IS_SUM=spec.form == "sum",
        HALF_LOGDET_SCALE=HALF_LOGDET_SCALES[spec.param],
    )


# --- the loop over blocks ---------------------------------------------------------------------

# what lanes_kernel specialises: functions and constants of the loop below
blocks: Callable = njit_exact
CORE_SIZE = 0
IS_SUM = False
HALF_LOGDET_SCALE = 0.0


def run_blocks(table):
    """Loop over blocks of eight matrices: pack where needed, compute, repair, unpack."""
    n = CORE_SIZE if CORE_SIZE else table[N]
    scratch = np.empty(1 if CORE_SIZE else scratch_size(n))
    buffer = np.empty(WIDTH * (2 * n**2 + 4 * n + 5))
    sums_array = np.empty(WIDTH * (N_SUMS + 1))
    sums = aligned(data_address(sums_array))
    # of each operand and output: its buffer, where the block finds it, and its next place
    home, at, step = words(), words(), words()
    in_place = find_places(
        table, n, False, False, False, aligned(data_address(buffer)), home, at, step
    )
    at[N_PLACES] = aligned(data_address(scratch))
    at[N_PLACES + 1] = sums
    redo_table = words()
    copy_table(redo_table, table)
    if IS_SUM:
        redo_table[TOTAL] = sums + SUM_OF_REDONE
    m, stop, n_redone = table[M_START], table[M_STOP], 0
    while m < stop:
        if IS_SUM and m % CHUNK == 0:
            n_redone = 0
            start_sums(sums)
        # everything that is in place goes in one run, up to a block that is not fine
        count = min(WIDTH, stop - m)
        chunk_end = min(m - m % CHUNK + CHUNK, stop)
        n_blocks = (chunk_end - m) // WIDTH if in_place and count == WIDTH else 1
        pack(table, n, False, False, False, True, home, at, step, m, 0, count)
        result = blocks(at, step, n_blocks, n, count)
        fine, n_before = result & ALL, (result >> WIDTH) - 1
        if table[POSDEF] != 0:
            store_posdef(table, m, n_before, count, fine)
        m += n_before * WIDTH
        if not in_place or count < WIDTH:
            unpack(table, n, False, False, False, home, at, m, 0, count, fine)
        if fine != ALL:
            for lane in range(count):
                if (fine >> lane) & 1 == 0:
                    do_again(redo_table, m + lane)
                    n_redone += 1
        m += count
        if IS_SUM and m == chunk_end:
            n_summed = (m - 1) % CHUNK + 1 - n_redone
            total = finish_sums(sums, HALF_LOGDET_SCALE) - n_summed * n * HALF_LOG_2PI
            store(table[TOTAL], load(table[TOTAL]) + total)
    # Numba frees an array after its last use, and takes no notice of the use of its address
    buffer[0] = scratch[0] = sums_array[0] = 0.0


#: What each lane keeps for the sum: the product of the pivots as mantissa and exponent, the sum
#: of the quadratic forms; and the sum over what was done again, which is one number
N_SUMS = 4
SUM_OF_REDONE = 8 * WIDTH * (N_SUMS - 1)
LOG_2 = 0.6931471805599453


@njit_exact
def start_sums(sums):
    """Start the running sums of a chunk."""
    for lane in range(WIDTH):
        store(sums + 8 * lane, 1.0)
    for i in range(WIDTH, WIDTH * N_SUMS):
        store(sums + 8 * i, 0.0)


@njit_exact
def finish_sums(sums, half_logdet_scale):
    """The sum of a chunk, without the constants."""
    product, exponent, quad = 1.0, 0.0, 0.0
    for lane in range(WIDTH):
        product *= load(sums + 8 * lane)
        exponent += load(sums + 8 * (WIDTH + lane))
        quad += load(sums + 8 * (2 * WIDTH + lane))
    log_pivots = np.log(product) + exponent * LOG_2
    return load(sums + SUM_OF_REDONE) - (0.5 * quad + half_logdet_scale * log_pivots)


@njit_exact
def store_posdef(table, m, n_before, count, fine):
    """Write the flags of some blocks that are fine, and of one more."""
    flags, stride = table[POSDEF] + m * table[POSDEF + 2], table[POSDEF + 2]
    if count == WIDTH and stride == 1:
        for k in range(n_before):
            store_flags(flags + WIDTH * k, ALL)
        store_flags(flags + WIDTH * n_before, fine)
        return
    for lane in range(WIDTH * n_before):
        store_bool(flags + lane * stride, True)
    flags += WIDTH * n_before * stride
    for lane in range(count):
        store_bool(flags + lane * stride, (fine >> lane) & 1 != 0)


# --- the computation of blocks ---------------------------------------------------------------


def blocks_intrinsic(spec: LaneSpec) -> Callable:
    """Make ``blocks(at, step, n_blocks, n, count)``, which computes eight matrices at a time.

    It stops after a block with a lane that is not fine. It returns the number of blocks that it has
    done, followed by the lanes of the last one that are fine as eight bits. Only the first `count`
    lanes take part in sums.
    """

    @intrinsic
    def blocks(typingctx, at, step, n_blocks, n, count):
        def codegen(context, builder, signature, args):
            return emit_run(spec, builder, *args)

        return types.intp(at, step, types.intp, types.intp, types.intp), codegen

    return blocks


def emit_run(spec: LaneSpec, builder: ir.IRBuilder, at, step, n_blocks, n, count) -> ir.Value:
    """Emit a run of blocks; return how far it came.

    In a small block most of the time goes to waiting for divisions. There, a round of the loop
    does the first part of a block and the second part of the one before.
    """
    word = n_blocks.type
    starts, steps = numbers(builder, at, N_PLACES + 2), numbers(builder, step, N_PLACES)
    scratch, sums = (Memory(builder, address, align=8 * WIDTH) for address in starts[N_PLACES:])
    running = [Variable(sums.load(WIDTH * k)) for k in range(N_SUMS - 1)]
    done = cgutils.alloca_once_value(builder, n_blocks)
    fine = cgutils.alloca_once_value(builder, word(ALL))

    def places(index):
        pairs = zip(starts, steps, strict=False)
        return [Memory(builder, builder.add(a, builder.mul(index, s))) for a, s in pairs]

    is_split = 0 < spec.n <= SPLIT_MAX_N
    heads = [Variable(Vec.full(builder, 0.0)) for _ in range(n_head(spec) * is_split)]
    with cgutils.for_range(builder, builder.add(n_blocks, word(int(is_split)))) as loop:
        index = loop.index
        head = [variable.get() for variable in heads]
        if is_split:
            with builder.if_then(builder.icmp_signed("<", index, n_blocks)):
                for variable, vector in zip(heads, emit_head(spec, places(index)), strict=True):
                    variable.set(vector)
            index = builder.sub(index, word(1))
        elif spec.n:
            head = emit_head(spec, places(index))
        with builder.if_then(builder.icmp_signed(">=", index, word(0))):
            lanes = emit_block(spec, n, count, scratch, running, head, places(index))
            mask = mask_to_int(builder, lanes)
            with builder.if_then(builder.icmp_unsigned("!=", mask, word(ALL)), likely=False):
                builder.store(mask, fine)
                builder.store(builder.add(index, word(1)), done)
                loop.do_break()
    for k, variable in enumerate(running):
        sums.store(variable.get(), WIDTH * k)
    return builder.or_(builder.shl(builder.load(done), word(WIDTH)), builder.load(fine))


def emit_block(
    spec: LaneSpec,
    n: ir.Value,
    count: ir.Value,
    scratch: Memory,
    sums: Sequence[Variable],
    head: Sequence[Vec],
    places: Sequence[Memory],
) -> ir.Value:
    """Emit the code of one block; return the mask of the lanes that are fine."""
    value, mu, matrix, g_first, g_second, first, second, *gradients = places
    builder = value.builder
    # the cotangents of quaddist and half_logdet
    g = g_first.load(0) if spec.wants_gradient else Vec.full(builder, 0.0)
    cotangents = (g, g_second.load(0)) if spec.form == "quad" else (-0.5 * g, -g)
    if spec.n:
        quad, pivots = emit_straight(spec, head, cotangents, gradients)
        size = Vec.full(builder, spec.n)
    else:
        operands = (value, mu, matrix, *cotangents, *gradients)
        quad, pivots = emit_loops(spec, Index(builder, n), scratch, operands)
        size = Vec.from_int(builder, n)
    fine = builder.and_(pivots.within(), quad.within(-HIGHEST_QUAD, HIGHEST_QUAD))

    if spec.form == "sum":
        add_to_sums(sums, builder.and_(fine, mask_below(builder, count)), quad, pivots)
        return fine
    half_logdet = pivots.log() * HALF_LOGDET_SCALES[spec.param]
    if spec.form == "logp":
        first.store(-0.5 * quad - half_logdet - HALF_LOG_2PI * size, 0)
    else:
        first.store(quad, 0)
        second.store(half_logdet, 0)
    return fine


def add_to_sums(sums: Sequence[Variable], mask: ir.Value, quad: Vec, pivots: Product) -> None:
    """Add the lanes of a mask to the running sums."""
    product, exponents, quads = sums
    total = pivots.times(product.get()).renormalised()
    product.set(total.mantissa.select(mask, product.get()))
    exponents.set(exponents.get() + total.exponent().select(mask, 0.0))
    quads.set(quads.get() + quad.select(mask, 0.0))


def n_head(spec: LaneSpec) -> int:
    """Number of vectors that the first part of a block hands to the second."""
    if not spec.n:
        return 0
    n_diagonal, *others = Factors.keys(spec)
    return 2 * spec.n + n_diagonal + sum(map(len, others))


def emit_head(spec: LaneSpec, places: Sequence[Memory]) -> list[Vec]:
    """Emit the first part of straight-line code: load, and factorize."""
    n, (value, mu, matrix) = spec.n, places[:3]
    lower = lower_triangle(n)
    fields = load_fields(matrix, n * n, [i * n + j for i, j in lower])
    deltas = load_fields(Difference(value, mu), n, range(n))
    d = [deltas[i] for i in range(n)]
    pivots, factors = pivots_and_factors(spec, {(i, j): fields[i * n + j] for i, j in lower})
    return [*d, *pivots, *factors.vectors()]


def emit_straight(
    spec: LaneSpec, head: Sequence[Vec], cotangents, gradients
) -> tuple[Vec, Product]:
    """Emit the second part; return the quadratic form and the product of the pivots."""
    n, builder = spec.n, head[0].builder
    d, pivots = head[:n], head[n : 2 * n]
    factors = Factors.of_vectors(spec, head[2 * n :])
    g_quad, g_half_logdet = cotangents
    row = whiten(spec, factors, d, g_quad)

    dvalue, dmu, dmatrix = gradients
    store_fields(
        dvalue if spec.value == "own" else None, row.gradient, dmu if spec.mu == "own" else None
    )
    if spec.wants_matrix:
        g = gradient_of_matrix(spec, factors, row.products(n), g_half_logdet)
        zero = Vec.full(builder, 0.0)
        store_fields(dmatrix, [g[i, j] if j <= i else zero for i in range(n) for j in range(n)])
    return row.quad, Product.of(pivots)
