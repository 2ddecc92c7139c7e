r"""The kernel for small matrices: one per vector lane, straight-line code.

Layout: a block of `W` matrices is copied into scratch with the batch index innermost (structure of
arrays), so that LLVM turns the loop over lanes into vector instructions by itself. Inside the loop
every element is a local variable and every sum is written out, because loops over 3 elements cost
more than the sums. Copying out transposes back. The last block is computed in full and copied in
part: its unused lanes hold the matrices of the block before, or identity matrices.

The formulas are those of the decomposition :math:`\Sigma = L D L^\top`, `L` with unit diagonal,
which needs reciprocals but no square roots. A lane whose pivots are not positive, or whose numbers
leave the range where the formulas are accurate, is done again by :mod:`.single`; the others do not
notice.

The logarithm is computed in lanes as well: one for the product of the pivots, whose exponents are
summed apart so that it cannot overflow.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from textwrap import indent

import numpy as np

from pytensor_mvn_rewrites.lower.numba.frame import (
    KernelSpec,
    forward_lines,
    kernel_source,
    vector_gradient_lines,
)
from pytensor_mvn_rewrites.lower.numba.jit import compile_source, kernel
from pytensor_mvn_rewrites.lower.numba.lane_loops import WIDTH as LOOP_WIDTH
from pytensor_mvn_rewrites.lower.numba.lane_loops import loop_block_function
from pytensor_mvn_rewrites.lower.numba.single import (
    CHOL,
    PARAM_CODES,
    add_logdet_gradient,
    add_quad_gradient,
    check_factor,
    factorize,
    invert,
    whiten,
)

#: Largest core size with straight-line code: beyond it compile time grows faster than speed
STRAIGHT_MAX_N = 12

#: Largest core size done in lanes: beyond it the scratch leaves the cache, and LAPACK is as fast
LANES_MAX_N = 48


def block_width(n: int) -> int:
    """Matrices per block: as many as keep the scratch in the first-level cache."""
    if n > STRAIGHT_MAX_N:
        return LOOP_WIDTH
    return 32 if n <= 4 else 16 if n <= 8 else 8


class Scratch:
    """Rows of the scratch, each of them one number per lane.

    The first rows are inputs: the lower triangle, delta, and the two cotangents. Outputs are
    separate, so that the inputs of a lane are still there when it has to be done again.
    """

    def __init__(self, n: int):
        self.width = block_width(n)
        triangle = [(i, j) for i in range(n) for j in range(i + 1)]
        names = [f"s{i}_{j}" for i, j in triangle]
        names += [f"d{i}" for i in range(n)]
        names += ["g_quad", "g_half"]
        self.n_inputs = len(names)
        names += ["quad", "half_logdet", "ok"]
        names += [f"u{i}" for i in range(n)]
        names += [f"g{i}_{j}" for i, j in triangle]
        self.first_output = self.n_inputs
        names += [f"p{i}" for i in range(n)]
        if n > STRAIGHT_MAX_N:
            names += [f"{vector}{i}" for vector in "ia" for i in range(n)]
        self.rows = {name: row for row, name in enumerate(names)}

    @property
    def size(self) -> int:
        """Number of elements."""
        return len(self.rows) * self.width

    def at(self, name: str, array: str = "s") -> str:
        """Expression for the element of lane ``l``."""
        return f"{array}[{self.rows[name] * self.width} + l]"


def lanes_kernel(spec: KernelSpec) -> Callable:
    """Compile the kernel of `spec`, whose ``n`` is known and small, and which has no ``R`` axis."""
    n = spec.n
    assert n is not None
    if n > STRAIGHT_MAX_N:
        block = loop_block_function(spec.param, spec.wants_matrix, loop_finish(spec.param))
    else:
        block = block_function(spec.param, n, spec.wants_vectors, spec.wants_matrix)
    source = kernel_source(spec, lanes_body(spec))
    return compile_source(source, spec.op, {"np": np, "block": block, "redo_lane": redo_lane})


def lanes_body(spec: KernelSpec) -> str:
    """The loop over blocks: copy in, compute, repair, copy out."""
    n, scratch = spec.n, Scratch(spec.n)
    width = scratch.width

    def row(name, offset="0"):
        return f"s[({scratch.rows[name]} + {offset}) * {width} + l]"

    g_quad, g_half = spec.cotangents if spec.wants_gradient else ("0.0", "0.0")
    ok = row("ok")
    forward = forward_lines(spec, n, row("quad"), row("half_logdet"), f"{ok} > 0.0")
    vectors = vector_gradient_lines(spec, "i", row("u0", "i")) if spec.wants_vectors else ["pass"]
    # what the reference graph has above the diagonal: zeros, times the NaN of a failure
    above = "0.0" if spec.param == "chol" else f"0.0 if {ok} > 0.0 else np.nan"
    matrix = f"""\
        above = {above}
        k = 0
        for i in range({n}):
            for j in range(i + 1):
                {spec.at("dmatrix", "i", "j")} = {row("g0_0", "k")}
                k += 1
            for j in range(i + 1, {n}):
                {spec.at("dmatrix", "i", "j")} = above
"""
    first = {name: scratch.rows[name] for name in ("s0_0", "d0", "quad")}
    size = "np.uint64(n)" if n > STRAIGHT_MAX_N else ""
    return f"""\
s = np.zeros({scratch.size})
for i in range({n}):
    for l in range({width}):
        s[(i * (i + 3) // 2) * {width} + l] = 1.0
chol = np.empty(({n}, {n}))
grad = np.empty(({n}, {n}))
work = np.empty((3, {n}))
for m0 in range(0, n_m, {width}):
    lanes = min({width}, n_m - m0)
    for l in range(lanes):
        m = m0 + l
        k = 0
        for i in range({n}):
            for j in range(i + 1):
                s[k * {width} + l] = {spec.at("matrix", "i", "j")}
                k += 1
        for i in range({n}):
            {row("d0", "i")} = {spec.delta("i")}
        {row("g_quad")} = {g_quad}
        {row("g_half")} = {g_half}
    if block(s{", " if size else ""}{size}) < {width}:
        for l in range(lanes):
            if {ok} == 0.0:
                redo_lane(
                    s, l, {width}, {first["quad"]}, {PARAM_CODES[spec.param]},
                    chol, grad, work[0], work[1], work[2],
                )
    for l in range(lanes):
        m = m0 + l
{indent(chr(10).join(forward), " " * 8)}
        for i in range({n}):
{indent(chr(10).join(vectors), " " * 12)}
{matrix if spec.wants_matrix else ""}
"""


@kernel()
def redo_lane(s, l, width, first_output, param, chol, grad, delta, z, a):  # noqa: E741
    """Compute the outputs of one lane with the careful formulas."""
    n = chol.shape[0]
    row = 0
    for i in range(n):
        for j in range(i + 1):
            chol[i, j] = s[row * width + l]
            grad[i, j] = 0.0
            row += 1
    for i in range(n):
        delta[i] = s[row * width + l]
        row += 1
    g_quad = s[row * width + l]
    g_half_logdet = s[(row + 1) * width + l]

    factorized = param == CHOL or factorize(chol)
    half_logdet, posdef = check_factor(chol, factorized, param)
    quad = whiten(chol, delta, z, a, param, True)
    add_quad_gradient(grad, g_quad, delta, z, a, param)
    if param != CHOL:
        invert(chol, z)
    add_logdet_gradient(grad, g_half_logdet, chol, param)

    row = first_output
    s[row * width + l] = quad
    s[(row + 1) * width + l] = half_logdet
    s[(row + 2) * width + l] = 1.0 if posdef else 0.0
    row += 3
    for i in range(n):
        s[row * width + l] = 2.0 * g_quad * a[i]
        row += 1
    for i in range(n):
        for j in range(i + 1):
            s[row * width + l] = grad[i, j]
            row += 1


@lru_cache
def block_function(param: str, n: int, wants_vectors: bool, wants_matrix: bool) -> Callable:
    """Compile ``block(s)``: compute all lanes of the scratch, return how many of them are fine."""
    scratch = Scratch(n)
    inputs = [f"s{i}_{j}" for i in range(n) for j in range(i + 1)] + [f"d{i}" for i in range(n)]
    body = {"cov": cov_lines, "chol": chol_lines, "tau": tau_lines}[param]
    outputs = ["quad", *(f"p{i}" for i in range(n))]
    if wants_vectors or wants_matrix:
        inputs += ["g_quad", "g_half"]
    if wants_vectors:
        outputs += [f"u{i}" for i in range(n)]
    if wants_matrix:
        outputs += [f"g{i}_{j}" for i in range(n) for j in range(i + 1)]
    lines = [f"{name} = {scratch.at(name)}" for name in inputs]
    lines += body(n, wants_vectors, wants_matrix)
    lines += [f"{scratch.at(name)} = {name}" for name in outputs]
    # NaN fails both comparisons
    fine = [f"({LOWEST_PIVOT} <= p{i}) & (p{i} <= {HIGHEST_PIVOT})" for i in range(n)]
    fine += [f"(abs(quad) <= {HIGHEST_PIVOT})"]
    lines += [f"fine = {' & '.join(fine)}", f"{scratch.at('ok')} = 1.0 if fine else 0.0"]
    lines += ["n_fine += 1 if fine else 0"]
    half = {"cov": "0.5 * ", "chol": "", "tau": "-0.5 * "}[param]
    source = "\n".join(
        [
            "def block(s):",
            "    bits = s.view(np.int64)",
            "    n_fine = 0",
            f"    for l in range({scratch.width}):",
            *("        " + line for line in lines),
            f"    for l in range({scratch.width}):",
            *("        " + line for line in log_product_lines(scratch, n)),
            f"        {scratch.at('half_logdet')} = {half}log_product",
            "    return n_fine\n",
        ]
    )
    return compile_source(source, "block", {"np": np})


def loop_finish(param: str) -> str:
    """Source that checks and multiplies the pivots of each lane, for :mod:`.lane_loops`."""
    half = {"cov": "0.5 * ", "chol": "", "tau": "-0.5 * "}[param]
    log = "\n".join("    " + line for line in log_lines())
    return f"""\
bits = s.view(np.int64)
n_fine = 0
for l in range({LOOP_WIDTH}):
    fine = abs(s[QUAD + np.uint64(l)]) <= {HIGHEST_PIVOT}
    exponent = 0
    product = 1.0
    for i in range(n):
        e = P + EIGHT * i + np.uint64(l)
        fine &= ({LOWEST_PIVOT} <= s[e]) & (s[e] <= {HIGHEST_PIVOT})
        shifted = bits[e] - {ROOT_HALF_BITS}
        exponent += shifted >> 52
        bits[e] -= shifted & {EXPONENT_BITS}
        product *= s[e]
    e = P + np.uint64(l)
    s[e] = product
    shifted = bits[e] - {ROOT_HALF_BITS}
    exponent += shifted >> 52
    bits[e] -= shifted & {EXPONENT_BITS}
    mantissa = s[e]
{log}
    s[QUAD + EIGHT + np.uint64(l)] = {half}log_product
    s[QUAD + EIGHT + EIGHT + np.uint64(l)] = 1.0 if fine else 0.0
    n_fine += 1 if fine else 0
return n_fine
"""


#: Outside of these the reciprocal of a pivot, or its logarithm below, is not accurate
LOWEST_PIVOT, HIGHEST_PIVOT = 1e-300, 1e300


def total(first: str, terms: Iterator[str]) -> str:
    """``first + term + term ...``; terms carry their sign."""
    return first + "".join(f" {term}" for term in terms)


def ldl_lines(n: int) -> Iterator[str]:
    """Pivots p, their reciprocals i, unit lower factor l, with S = l diag(p) l'."""
    for j in range(n):
        for i in range(j, n):
            name = f"p{j}" if i == j else f"c{i}_{j}"
            lower = (f"- l{j}_{k} * c{i}_{k}" for k in range(j))
            yield f"{name} = {total(f's{i}_{j}', lower)}"
        yield f"i{j} = 1.0 / p{j}"
        for i in range(j + 1, n):
            yield f"l{i}_{j} = c{i}_{j} * i{j}"


def unit_inverse_lines(n: int) -> Iterator[str]:
    """The inverse m of the unit lower factor l."""
    for j in range(n):
        for i in range(j + 1, n):
            between = (f"- l{i}_{k} * m{k}_{j}" for k in range(j + 1, i))
            yield f"m{i}_{j} = {total(f'-l{i}_{j}', between)}"


def inverse_lines(n: int) -> Iterator[str]:
    """The lower triangle v of half the inverse, S^-1 / 2 = m' diag(i / 2) m."""
    for k in range(n):
        yield f"h{k} = 0.5 * i{k}"
        yield from (f"hm{k}_{j} = h{k} * m{k}_{j}" for j in range(k))
    for i in range(n):
        for j in range(i + 1):
            first = f"h{i}" if i == j else f"hm{i}_{j}"
            below = (f"+ hm{k}_{i} * m{k}_{j}" for k in range(i + 1, n))
            yield f"v{i}_{j} = {total(first, below)}"


def cov_lines(n: int, wants_vectors: bool, wants_matrix: bool) -> Iterator[str]:
    """Quadratic form and gradients for a covariance; u = 2 g_quad a."""
    yield from ldl_lines(n)
    if wants_matrix:
        yield from unit_inverse_lines(n)
    for i in range(n):
        # w = l^-1 d, by the inverse if it is needed anyway
        terms = (f"+ m{i}_{k} * d{k}" if wants_matrix else f"- l{i}_{k} * w{k}" for k in range(i))
        yield f"w{i} = {total(f'd{i}', terms)}"
        yield f"t{i} = w{i} * i{i}"
    yield "quad = " + " + ".join(f"t{i} * w{i}" for i in range(n))
    if not (wants_vectors or wants_matrix):
        return
    for i in reversed(range(n)):
        below = range(i + 1, n)
        terms = (f"+ m{k}_{i} * t{k}" if wants_matrix else f"- l{k}_{i} * a{k}" for k in below)
        yield f"a{i} = {total(f't{i}', terms)}"
    yield "g2 = 2.0 * g_quad"
    yield from (f"u{i} = g2 * a{i}" for i in range(n))
    if wants_matrix:
        yield from inverse_lines(n)
        yield "g_half2 = 2.0 * g_half"
        for i in range(n):
            yield f"b{i} = -g_quad * a{i}"
            yield from (f"g{i}_{j} = g_half2 * v{i}_{j} - u{i} * a{j}" for j in range(i))
            yield f"g{i}_{i} = g_half * v{i}_{i} + b{i} * a{i}"


def tau_lines(n: int, wants_vectors: bool, wants_matrix: bool) -> Iterator[str]:
    """Quadratic form and gradients for a precision: a = tau d needs no factorization."""
    yield from ldl_lines(n)
    for i in range(n):
        terms = [f"s{max(i, k)}_{min(i, k)} * d{k}" for k in range(n)]
        yield f"a{i} = {' + '.join(terms)}"
    yield "quad = " + " + ".join(f"d{i} * a{i}" for i in range(n))
    if wants_vectors:
        yield "g2 = 2.0 * g_quad"
        yield from (f"u{i} = g2 * a{i}" for i in range(n))
    if wants_matrix:
        yield from unit_inverse_lines(n)
        yield from inverse_lines(n)
        yield "g_half2 = 2.0 * g_half"
        for i in range(n):
            yield f"b{i} = g_quad * d{i}"
            yield f"b2{i} = 2.0 * b{i}"
            yield from (f"g{i}_{j} = b2{i} * d{j} - g_half2 * v{i}_{j}" for j in range(i))
            yield f"g{i}_{i} = b{i} * d{i} - g_half * v{i}_{i}"


def chol_lines(n: int, wants_vectors: bool, wants_matrix: bool) -> Iterator[str]:
    """Quadratic form and gradients for a Cholesky factor: two triangular solves."""
    for i in range(n):
        yield f"p{i} = s{i}_{i}"
        yield f"i{i} = 1.0 / p{i}"
        left = (f"- s{i}_{k} * z{k}" for k in range(i))
        yield f"z{i} = ({total(f'd{i}', left)}) * i{i}"
    yield "quad = " + " + ".join(f"z{i} * z{i}" for i in range(n))
    if not (wants_vectors or wants_matrix):
        return
    for i in reversed(range(n)):
        below = (f"- s{k}_{i} * a{k}" for k in range(i + 1, n))
        yield f"a{i} = ({total(f'z{i}', below)}) * i{i}"
    yield "g2 = 2.0 * g_quad"
    yield from (f"u{i} = g2 * a{i}" for i in range(n))
    if wants_matrix:
        for i in range(n):
            yield from (f"g{i}_{j} = -u{i} * z{j}" for j in range(i))
            yield f"g{i}_{i} = g_half * i{i} - u{i} * z{i}"


def log_product_lines(scratch: Scratch, n: int) -> Iterator[str]:
    r"""The logarithm of the product of the pivots, in arithmetic that LLVM vectorises.

    With :math:`x = 2^k (1 + f)` and :math:`1 + f \in [\sqrt{1/2}, \sqrt 2)`,
    :math:`\log x = k \log 2 + \log(1 + f)`; the polynomial in :math:`s = f / (2 + f)` is that of
    FreeBSD's ``e_log.c`` (K. C. Ng), accurate to one unit in the last place.
    """
    yield "exponent = 0"
    for i in range(n):
        # split by the bits of the number; the shift centres the mantissa on 1
        pivot = scratch.at(f"p{i}", "bits")
        yield f"shifted = {pivot} - {ROOT_HALF_BITS}"
        yield "exponent += shifted >> 52"
        yield f"{pivot} -= shifted & {EXPONENT_BITS}"
    product = scratch.at("p0")
    # at most 12 mantissas in [0.7, 1.42): no overflow
    yield f"{product} = " + " * ".join(scratch.at(f"p{i}") for i in range(n))
    bits = scratch.at("p0", "bits")
    yield f"shifted = {bits} - {ROOT_HALF_BITS}"
    yield "exponent += shifted >> 52"
    yield f"{bits} -= shifted & {EXPONENT_BITS}"
    yield f"mantissa = {product}"
    yield from log_lines()


def log_lines() -> Iterator[str]:
    """``log_product`` from ``mantissa`` and ``exponent``."""
    yield "f = mantissa - 1.0"
    yield "k = np.float64(exponent)"
    yield "q = f / (2.0 + f)"
    yield "q2 = q * q"
    polynomial = LOG_COEFFICIENTS[-1]
    for coefficient in reversed(LOG_COEFFICIENTS[:-1]):
        polynomial = f"{coefficient} + q2 * ({polynomial})"
    yield f"tail = q2 * ({polynomial})"
    yield "half_square = 0.5 * f * f"
    yield f"low = q * (half_square + tail) + k * {LOG2_LOW}"
    yield f"log_product = k * {LOG2_HIGH} - ((half_square - low) - f)"


#: The bits of sqrt(1/2), and the mask of sign and exponent, as signed 64-bit integers
ROOT_HALF_BITS = 0x3FE6A09E00000000
EXPONENT_BITS = -(1 << 52)
LOG2_HIGH, LOG2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
LOG_COEFFICIENTS = (
    "6.666666666666735130e-01",
    "3.999999999940941908e-01",
    "2.857142874366239149e-01",
    "2.222219843214978396e-01",
    "1.818357216161805012e-01",
    "1.531383769920937332e-01",
    "1.479819860511658591e-01",
)
