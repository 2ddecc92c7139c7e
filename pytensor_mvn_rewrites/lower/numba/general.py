"""The kernel for every size: one matrix after the other, its rows after its factorization.

Layout: the matrix is copied into square scratch once and factorized there; each of its rows is
whitened and adds its part of the gradient; the inverse for the gradient of the log-determinant
comes last and overwrites the factor.
"""

from collections.abc import Callable

import numpy as np

from pytensor_mvn_rewrites.lower.numba.frame import (
    KernelSpec,
    forward_lines,
    kernel_source,
    vector_gradient_lines,
)
from pytensor_mvn_rewrites.lower.numba.jit import compile_source
from pytensor_mvn_rewrites.lower.numba.lapack import lapack_factorize, lapack_invert
from pytensor_mvn_rewrites.lower.numba.single import (
    PARAM_CODES,
    add_logdet_gradient,
    add_quad_gradient,
    check_factor,
    factorize,
    invert,
    whiten,
)

#: Core size from which LAPACK's blocked routines are faster than plain loops
LAPACK_MIN_N = 48


def general_kernel(spec: KernelSpec) -> Callable:
    """Compile the kernel of `spec`, for any core size."""
    functions = [add_logdet_gradient, add_quad_gradient, check_factor, whiten]
    if spec.n is None or spec.n < LAPACK_MIN_N:
        functions += [factorize, invert]
    if spec.n is None or spec.n >= LAPACK_MIN_N:
        functions += [lapack_factorize, lapack_invert]
    env = {function.py_func.__name__: function for function in functions}
    source = kernel_source(spec, general_body(spec))
    return compile_source(source, spec.op, {"np": np} | env)


def general_body(spec: KernelSpec) -> str:
    """The loops over matrices and rows."""
    param = PARAM_CODES[spec.param]
    g_quad, g_half_logdet = spec.cotangents if spec.wants_gradient else ("", "")
    factorize_lines = (
        ["factorized = True"]
        if spec.param == "chol"
        else by_size(spec.n, "factorized = {}factorize(chol)")
    )
    invert_lines = [] if spec.param == "chol" else by_size(spec.n, "{}invert(chol{})")
    lines = f"""\
chol = np.empty((n, n))
delta_r = np.empty(n)
z = np.empty(n)
a = np.empty(n)
grad = np.empty((n, n))
for m in range(n_m):
    for i in range(n):
        for j in range(i + 1):
            chol[i, j] = {spec.at("matrix", "i", "j")}
            grad[i, j] = 0.0
    sum_g_half_logdet = 0.0
""".splitlines()
    lines += [" " * 4 + line for line in factorize_lines]
    lines += f"""\
    half_logdet_m, posdef_m = check_factor(chol, factorized, {param})
    for r in range(n_r):
        for i in range(n):
            delta_r[i] = {spec.delta("i")}
        quad_r = whiten(chol, delta_r, z, a, {param}, {spec.wants_gradient})
""".splitlines()
    row = list(forward_lines(spec, "n", "quad_r", "half_logdet_m", "posdef_m"))
    if spec.wants_gradient:
        row += [f"g_quad_r = {g_quad}"]
    if spec.wants_vectors:
        row += ["for i in range(n):", "    g_delta = 2.0 * g_quad_r * a[i]"]
        row += ["    " + line for line in vector_gradient_lines(spec, "i", "g_delta")]
    if spec.wants_matrix:
        row += [
            f"add_quad_gradient(grad, g_quad_r, delta_r, z, a, {param})",
            f"sum_g_half_logdet += {g_half_logdet}",
        ]
    lines += [" " * 8 + line for line in row]
    if spec.wants_matrix:
        # what the reference graph has above the diagonal: zeros, times the NaN of a failure
        above = "0.0" if spec.param == "chol" else "0.0 if posdef_m else np.nan"
        lines += [" " * 4 + line for line in invert_lines]
        lines += f"""\
    add_logdet_gradient(grad, sum_g_half_logdet, chol, {param})
    above = {above}
    for i in range(n):
        for j in range(i + 1):
            {spec.at("dmatrix", "i", "j")} = grad[i, j]
        for j in range(i + 1, n):
            {spec.at("dmatrix", "i", "j")} = above
""".splitlines()
    return "\n".join(lines)


def by_size(n: int | None, call: str) -> list[str]:
    """Call LAPACK or the loops of :mod:`.single`: decided now if `n` is known."""
    lapack, loops = call.format("lapack_", ""), call.format("", ", z")
    if n is None:
        return [f"if n >= {LAPACK_MIN_N}:", f"    {lapack}", "else:", f"    {loops}"]
    return [lapack if n >= LAPACK_MIN_N else loops]
