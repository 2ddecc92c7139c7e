r"""The block of :mod:`.lanes` for medium matrices: the same formulas with loops over the elements.

Layout: as in :mod:`.lanes`, eight matrices side by side, but `n` is a run-time number, so that one
compiled function serves all sizes. Every statement is written out for the eight lanes, loads
before stores: LLVM packs such groups into vector instructions without having to prove anything
about the addresses. For the same reason indices are unsigned, which spares the test for negative
ones. Updates have the form ``row_i -= c * row_k``, whose elements do not wait for each other.
"""

from collections.abc import Callable
from functools import lru_cache
from textwrap import dedent, indent

import numpy as np
from numba import types

from pytensor_mvn_rewrites.lower.numba.jit import compile_packed, compile_source

#: Matrices per block: one vector of AVX-512, two of AVX2, four of NEON
WIDTH = 8


def lanes(statements: str) -> str:
    """Repeat each statement for every lane; ``@`` stands for the number of the lane."""
    lines = [line for line in dedent(statements).strip().splitlines()]
    return "\n".join(
        line.replace("+@", f"+ LANE{lane}").replace("@", str(lane))
        for line in lines
        for lane in range(WIDTH)
    )


def fill(template: str, **parts: str) -> str:
    """Put indented source into a template at the lines that hold only ``{name}``."""
    lines = []
    for line in dedent(template).splitlines():
        name = line.strip()
        if name.startswith("{") and name.endswith("}"):
            margin = line[: len(line) - len(line.lstrip())]
            lines += indent(parts[name[1:-1]], margin).splitlines()
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


OFFSETS = """
T = (n * (n + ONE)) >> ONE
D = EIGHT * T
G_QUAD = D + EIGHT * n
G_HALF = G_QUAD + EIGHT
QUAD = G_HALF + EIGHT
U = QUAD + EIGHT * THREE
G = U + EIGHT * n
P = G + EIGHT * T
I = P + EIGHT * n
A = I + EIGHT * n
"""

# S = l diag(p) l' in place of S; l has a unit diagonal
LDL = fill(
    """
    for e in range(D):
        s[G + e] = s[e]
    for j in range(n):
        jj = G + EIGHT * (((j * (j + ONE)) >> ONE) + j)
        {pivot}
        for i in range(j + ONE, n):
            row = G + EIGHT * ((i * (i + ONE)) >> ONE)
            ij = row + EIGHT * j
            {scale}
            for k in range(j + ONE, i + ONE):
                ik = row + EIGHT * k
                kj = G + EIGHT * (((k * (k + ONE)) >> ONE) + j)
                {update}
    """,
    pivot=lanes("p@ = s[jj+@]\ni@ = 1.0 / p@\ns[P + EIGHT * j+@] = p@\ns[I + EIGHT * j+@] = i@"),
    scale=lanes("c@ = s[ij+@]\ns[ij+@] = c@ * i@"),
    update=lanes("x@ = s[ik+@]\ny@ = s[kj+@]\ns[ik+@] = x@ - c@ * y@"),
)

# the inverse m of l in place of l
UNIT_INVERSE = fill(
    """
    for i in range(n):
        row = G + EIGHT * ((i * (i + ONE)) >> ONE)
        for k in range(i):
            other = G + EIGHT * ((k * (k + ONE)) >> ONE)
            ik = row + EIGHT * k
            {negate}
            for j in range(k):
                ij = row + EIGHT * j
                kj = other + EIGHT * j
                {update}
    """,
    negate=lanes("c@ = s[ik+@]\ns[ik+@] = -c@"),
    update=lanes("x@ = s[ij+@]\ny@ = s[kj+@]\ns[ij+@] = x@ - c@ * y@"),
)

# v = S^-1 / 2 = m' diag(1 / (2 p)) m in place of m
INVERSE = fill(
    """
    for i in range(n):
        row = G + EIGHT * ((i * (i + ONE)) >> ONE)
        {half}
        for j in range(i):
            ij = row + EIGHT * j
            {scale}
        for k in range(i + ONE, n):
            other = G + EIGHT * ((k * (k + ONE)) >> ONE)
            ki = other + EIGHT * i
            {factor}
            for j in range(i):
                ij = row + EIGHT * j
                kj = other + EIGHT * j
                {update}
        ii = row + EIGHT * i
        {store}
    """,
    half=lanes("h@ = 0.5 * s[I + EIGHT * i+@]\nv@ = h@"),
    scale=lanes("x@ = s[ij+@]\ns[ij+@] = x@ * h@"),
    factor=lanes("m@ = s[ki+@]\nq@ = s[I + EIGHT * k+@]\nc@ = 0.5 * m@ * q@\nv@ = v@ + c@ * m@"),
    update=lanes("x@ = s[ij+@]\ny@ = s[kj+@]\ns[ij+@] = x@ + c@ * y@"),
    store=lanes("s[ii+@] = v@"),
)

# w = m d, t = w / p, then a = m' t in place of t
WHITEN_BY_INVERSE = fill(
    """
    {clear}
    for i in range(n):
        row = G + EIGHT * ((i * (i + ONE)) >> ONE)
        {load}
        for k in range(i):
            {dot}
        {store}
    for k in range(n):
        row = G + EIGHT * ((k * (k + ONE)) >> ONE)
        {factor}
        for i in range(k):
            {update}
    """,
    clear=lanes("quad@ = 0.0"),
    load=lanes("w@ = s[D + EIGHT * i+@]"),
    dot=lanes("x@ = s[row + EIGHT * k+@]\ny@ = s[D + EIGHT * k+@]\nw@ = w@ + x@ * y@"),
    store=lanes("t@ = w@ * s[I + EIGHT * i+@]\nquad@ += t@ * w@\ns[A + EIGHT * i+@] = t@"),
    factor=lanes("t@ = s[A + EIGHT * k+@]"),
    update=lanes(
        """
        x@ = s[A + EIGHT * i+@]
        y@ = s[row + EIGHT * i+@]
        s[A + EIGHT * i+@] = x@ + y@ * t@
        """
    ),
)

# the same by substitution: w = l^-1 d in U, a = l'^-1 (w / p)
WHITEN_BY_SUBSTITUTION = fill(
    """
    {clear}
    for i in range(n):
        row = G + EIGHT * ((i * (i + ONE)) >> ONE)
        {load}
        for k in range(i):
            {dot}
        {store}
    for back in range(n):
        k = n - ONE - back
        row = G + EIGHT * ((k * (k + ONE)) >> ONE)
        {factor}
        for i in range(k):
            {update}
    """,
    clear=lanes("quad@ = 0.0"),
    load=lanes("w@ = s[D + EIGHT * i+@]"),
    dot=lanes("x@ = s[row + EIGHT * k+@]\ny@ = s[U + EIGHT * k+@]\nw@ = w@ - x@ * y@"),
    store=lanes(
        """
        s[U + EIGHT * i+@] = w@
        t@ = w@ * s[I + EIGHT * i+@]
        quad@ += t@ * w@
        s[A + EIGHT * i+@] = t@
        """
    ),
    factor=lanes("t@ = s[A + EIGHT * k+@]"),
    update=lanes(
        """
        x@ = s[A + EIGHT * i+@]
        y@ = s[row + EIGHT * i+@]
        s[A + EIGHT * i+@] = x@ - y@ * t@
        """
    ),
)

# a = tau d from the lower triangle of tau
MULTIPLY = fill(
    """
    {clear}
    for i in range(n):
        row = EIGHT * ((i * (i + ONE)) >> ONE)
        {load}
        for j in range(i):
            {both}
        {diagonal}
    for i in range(n):
        {dot}
    """,
    clear=lanes("quad@ = 0.0"),
    load=lanes("d@ = s[D + EIGHT * i+@]\na@ = 0.0"),
    both=lanes(
        """
        x@ = s[row + EIGHT * j+@]
        y@ = s[D + EIGHT * j+@]
        b@ = s[A + EIGHT * j+@]
        a@ = a@ + x@ * y@
        s[A + EIGHT * j+@] = b@ + x@ * d@
        """
    ),
    diagonal=lanes("s[A + EIGHT * i+@] = a@ + s[row + EIGHT * i+@] * d@"),
    dot=lanes("quad@ += s[D + EIGHT * i+@] * s[A + EIGHT * i+@]"),
)

# z = L^-1 d in D's place is not possible (a lane may be redone): z goes to I, a = L'^-1 z to A
SOLVE_CHOL = fill(
    """
    {clear}
    for i in range(n):
        row = EIGHT * ((i * (i + ONE)) >> ONE)
        {load}
        for k in range(i):
            {dot}
        {store}
    for back in range(n):
        k = n - ONE - back
        row = EIGHT * ((k * (k + ONE)) >> ONE)
        {factor}
        for i in range(k):
            {update}
    """,
    clear=lanes("quad@ = 0.0"),
    load=lanes("w@ = s[D + EIGHT * i+@]\np@ = s[row + EIGHT * i+@]"),
    dot=lanes("x@ = s[row + EIGHT * k+@]\ny@ = s[I + EIGHT * k+@]\nw@ = w@ - x@ * y@"),
    store=lanes(
        """
        z@ = w@ / p@
        s[P + EIGHT * i+@] = p@
        quad@ += z@ * z@
        s[I + EIGHT * i+@] = z@
        s[A + EIGHT * i+@] = z@
        """
    ),
    factor=lanes("t@ = s[A + EIGHT * k+@] / s[P + EIGHT * k+@]\ns[A + EIGHT * k+@] = t@"),
    update=lanes(
        """
        x@ = s[A + EIGHT * i+@]
        y@ = s[row + EIGHT * i+@]
        s[A + EIGHT * i+@] = x@ - y@ * t@
        """
    ),
)

VECTOR_GRADIENT = fill(
    """
    {g2}
    for i in range(n):
        {store}
    """,
    g2=lanes("g@ = 2.0 * s[G_QUAD+@]"),
    store=lanes("s[U + EIGHT * i+@] = g@ * s[A + EIGHT * i+@]"),
)


def matrix_gradient(below: str, diagonal: str) -> str:
    """Loops that write the gradient for the matrix over v."""
    return fill(
        """
        {load}
        for i in range(n):
            row = G + EIGHT * ((i * (i + ONE)) >> ONE)
            {factor}
            for j in range(i):
                {below}
            {diagonal}
        """,
        load=lanes("g@ = s[G_QUAD+@]\nh@ = s[G_HALF+@]"),
        factor=lanes(
            """
            a@ = s[A + EIGHT * i+@]
            d@ = s[D + EIGHT * i+@]
            p@ = s[P + EIGHT * i+@]
            z@ = s[I + EIGHT * i+@]
            """
        ),
        below=lanes(below),
        diagonal=lanes(f"v@ = s[row + EIGHT * i+@]\ns[row + EIGHT * i+@] = {diagonal}"),
    )


MATRIX_GRADIENT = {
    "cov": matrix_gradient(
        """
        v@ = s[row + EIGHT * j+@]
        y@ = s[A + EIGHT * j+@]
        s[row + EIGHT * j+@] = 2.0 * (h@ * v@ - g@ * a@ * y@)
        """,
        "h@ * v@ - g@ * a@ * a@",
    ),
    "tau": matrix_gradient(
        """
        v@ = s[row + EIGHT * j+@]
        y@ = s[D + EIGHT * j+@]
        s[row + EIGHT * j+@] = 2.0 * (g@ * d@ * y@ - h@ * v@)
        """,
        "g@ * d@ * d@ - h@ * v@",
    ),
    "chol": matrix_gradient(
        """
        y@ = s[I + EIGHT * j+@]
        s[row + EIGHT * j+@] = -2.0 * g@ * a@ * y@
        """,
        "h@ / p@ - 2.0 * g@ * a@ * z@",
    ),
}


@lru_cache
def loop_block_function(param: str, wants_matrix: bool, finish: str) -> Callable:
    """Compile ``block(s, n)``; `finish` checks the pivots and takes their logarithm."""
    if param == "cov":
        parts = [LDL, UNIT_INVERSE + WHITEN_BY_INVERSE if wants_matrix else WHITEN_BY_SUBSTITUTION]
        parts += [INVERSE] * wants_matrix
    elif param == "tau":
        parts = [MULTIPLY, LDL, *[UNIT_INVERSE, INVERSE] * wants_matrix]
    else:
        parts = [SOLVE_CHOL]
    parts += [VECTOR_GRADIENT, *[MATRIX_GRADIENT[param]] * wants_matrix]
    parts += [lanes("s[QUAD+@] = quad@"), "\n", finish]
    source = "def block(s, n):\n" + indent(OFFSETS + "\n".join(parts), "    ")
    constants = {f"LANE{lane}": np.uint64(lane) for lane in range(WIDTH)}
    constants |= {"ONE": np.uint64(1), "THREE": np.uint64(3), "EIGHT": np.uint64(8)}
    block = compile_source(source, "block", {"np": np} | constants)
    return compile_packed(block, (types.float64[::1], types.uint64))
