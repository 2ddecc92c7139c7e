"""Where a block of eight finds its operands and leaves its outputs: in place, or in a buffer.

The lanes of a block are eight rows of one matrix (`by_row`), or eight matrices with one row each.
Operands whose eight parts lie one after the other are read and written where they are. All others
(strided, broadcast, in groups, or the last few) pass through a small buffer with room for eight.

The functions are inlined: what a kernel is compiled for is constant there, which takes a tenth of
the time from a hundred matrices of twenty rows.
"""

from pytensor_mvn_rewrites.lower.numba.general import element
from pytensor_mvn_rewrites.lower.numba.groups import count_rows, row_number
from pytensor_mvn_rewrites.lower.numba.jit import Table, njit_exact
from pytensor_mvn_rewrites.lower.numba.vectors import WIDTH, load, store

#: Operands and outputs that a block addresses: all but the last in the table, flags and sum
PLACES = Table.NAMES[: Table.NAMES.index("posdef")]
N_PLACES = len(PLACES)
FIRST_OUTPUT = PLACES.index("first")
#: Where they stand in the table, and how many core axes they have
ENTRIES = tuple(map(Table.entry, PLACES))
CORE_NDIMS = Table.CORE_NDIMS[:N_PLACES]
N_M, M_START = Table.N_M, Table.M_START
LANE = 8


@njit_exact(forceinline=True)
def aligned(address):
    """The next address at which a vector starts a cache line."""
    return (address + LANE * WIDTH - 1) & -(LANE * WIDTH)


@njit_exact(forceinline=True)
def find_places(table, n, has_rows, is_grouped, by_row, buffer, home, at, step):
    """Find out what can be used where it is; False if some must move every time.

    Each operand and output gets a buffer `home`, unless rows share it (`has_rows`): that is up to
    the kernel. What can be used in place gets the distance `step` between blocks; :func:`pack` says
    where a block finds it.
    """
    all_in_place = True
    stride = 1 if by_row else 2
    for k in range(N_PLACES):
        entry = ENTRIES[k]
        rows, columns = n if CORE_NDIMS[k] == 2 else 1, n if CORE_NDIMS[k] >= 1 else 1
        size = LANE * rows * columns
        in_place = (
            table[entry + stride] == size
            and (columns == 1 or table[entry + 4] == LANE)
            and (rows == 1 or table[entry + 3] == LANE * columns)
            and (by_row or not is_grouped)
        )
        home[k] = at[k] = buffer
        step[k] = WIDTH * size if in_place else 0
        is_sum = k >= FIRST_OUTPUT and CORE_NDIMS[k] == 1 and table[entry + 1] == 0
        if has_rows and (CORE_NDIMS[k] == 2 or is_sum):
            home[k] = step[k] = 0
            continue
        # operands that are broadcast move once
        is_broadcast = k < FIRST_OUTPUT and table[entry + stride] == 0
        all_in_place &= in_place or is_broadcast or table[entry] == 0
        if table[entry] == 0 and k < FIRST_OUTPUT:
            # what does not exist stays zero
            for i in range(WIDTH * rows * columns):
                store(buffer + LANE * i, 0.0)
        buffer += WIDTH * size
    return all_in_place


@njit_exact(forceinline=True)
def pack(table, n, has_rows, is_grouped, by_row, is_run, home, at, step, m, r, n_lanes):
    """Copy operands to their buffers, and direct outputs there, unless they are used in place.

    Rows that do not exist are zero, and add nothing; lanes without a matrix repeat the last one.
    """
    is_full = n_lanes == WIDTH if by_row else not is_grouped
    for k in range(N_PLACES):
        entry = ENTRIES[k]
        if table[entry] == 0 or home[k] == 0:
            continue
        if step[k] != 0 and is_run and n_lanes == WIDTH:
            at[k] = element(table, entry, row_number(table, m, r, is_grouped), m)
            continue
        at[k] = home[k]
        if k >= FIRST_OUTPUT:
            continue
        if is_full and table[entry + 1] == 0:
            if r > 0 or (not has_rows and table[entry + 2] == 0 and m > table[M_START]):
                continue
        rows = n if CORE_NDIMS[k] == 2 and not has_rows else 1
        columns = n if CORE_NDIMS[k] >= 1 else 1
        row_step, step_in_row = table[entry + 3], table[entry + 4]
        for i in range(rows):
            target = home[k] + LANE * columns * i
            for lane in range(WIDTH):
                own_m = m if by_row else m + min(lane, n_lanes - 1)
                own_r = r + lane if by_row else r
                if own_r < count_rows(table, own_m, is_grouped):
                    row = row_number(table, own_m, own_r, is_grouped)
                    source = element(table, entry, row, own_m) + i * row_step
                    for j in range(columns):
                        store(target + LANE * j, load(source + j * step_in_row))
                else:
                    for j in range(columns):
                        store(target + LANE * j, 0.0)
                target += LANE * rows * columns


@njit_exact(forceinline=True)
def unpack(table, n, has_rows, is_grouped, by_row, home, at, m, r, n_lanes, fine):
    """Copy outputs of the lanes that are fine from their buffers, or add to what matrices share."""
    for k in range(FIRST_OUTPUT, N_PLACES):
        entry = ENTRIES[k]
        if table[entry] == 0 or home[k] == 0 or at[k] != home[k]:
            continue
        rows = n if CORE_NDIMS[k] == 2 and not has_rows else 1
        columns = n if CORE_NDIMS[k] >= 1 else 1
        row_step, step_in_row = table[entry + 3], table[entry + 4]
        is_sum = table[entry + 1] == table[entry + 2] == 0 and table[N_M] > 1
        for i in range(rows):
            for lane in range(n_lanes):
                own_m = m if by_row else m + lane
                own_r = r + lane if by_row else r
                if (fine >> lane) & 1 == 0 or own_r >= count_rows(table, own_m, is_grouped):
                    continue
                row = row_number(table, own_m, own_r, is_grouped)
                target = element(table, entry, row, own_m) + i * row_step
                source = home[k] + LANE * columns * (lane * rows + i)
                for j in range(columns):
                    before = load(target + j * step_in_row) if is_sum else 0.0
                    store(target + j * step_in_row, before + load(source + LANE * j))
