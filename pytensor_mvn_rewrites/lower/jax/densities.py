r"""The ops as functions of arrays.

The one derivative that is written down is that of :func:`quad_half_logdet`, as a linear map of the
tangents. The pullbacks are its transpose, and the second derivative differentiates it in turn.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from pytensor_mvn_rewrites.lower.jax import lapack, sweep, unrolled

#: Largest matrix that is factored by straight-line code: beyond it XLA takes seconds to compile,
#: and from n = 8 on the loop is as fast.
UNROLLED_MAX_N = 6

#: Largest matrix that is factored by a loop over the pivots of the whole batch; LAPACK, called for
#: each matrix, is faster beyond it. The loop inverts as it goes: without a gradient that is wasted,
#: and LAPACK wins earlier.
SWEEP_MAX_N = 16
SWEEP_MAX_N_FORWARD = 10


def mvnormal_logp(value, mu, matrix, *, param: str):
    """:class:`~pytensor_mvn_rewrites.ops.MvNormalLogp`: returns (logp, posdef)."""
    check_core_shapes([value, mu], matrix)
    quaddist, half_logdet, posdef = inv_quad_logdet(value - mu, matrix, param=param)
    n = matrix.shape[-1]
    return -0.5 * math.log(2 * math.pi) * n - 0.5 * quaddist - half_logdet, posdef


def inv_quad_logdet(delta, matrix, *, param: str):
    """:class:`~pytensor_mvn_rewrites.ops.InvQuadLogdet`: (quaddist, half_logdet, posdef)."""
    check_core_shapes([delta], matrix)
    batch = jnp.broadcast_shapes(delta.shape[:-1], matrix.shape[:-2])
    rows, matrices, row_axes = rows_by_matrix(delta, matrix, batch)
    quaddist, half_logdet = quad_half_logdet(param, rows, matrices)
    if param == "chol":
        posdef = (jnp.diagonal(matrices, axis1=-2, axis2=-1) > 0).all(-1)
    else:
        posdef = ~jnp.isnan(half_logdet)
    return (
        batch_by_rows(quaddist, batch, row_axes),
        jnp.broadcast_to(jnp.expand_dims(half_logdet, row_axes), batch),
        jnp.broadcast_to(jnp.expand_dims(posdef, row_axes), batch),
    )


def with_pullback(function, inputs, cotangents):
    """Outputs and gradients from one evaluation.

    Parameters
    ----------
    function : callable
        Of `inputs`.
    inputs : sequence of array
    cotangents : sequence of array
        Of the first outputs; they broadcast against these.

    Returns
    -------
    tuple of array
        All outputs, then gradients of the shapes of `inputs`.
    """

    def broadcast(*inputs):
        outputs = function(*inputs)
        pairs = zip(outputs, cotangents, strict=False)
        shapes = [jnp.broadcast_shapes(out.shape, g.shape) for out, g in pairs]
        return tuple(map(jnp.broadcast_to, outputs, shapes)), outputs

    differentiated, vjp, outputs = jax.vjp(broadcast, *inputs, has_aux=True)
    pairs = zip(differentiated, cotangents, strict=True)
    return *outputs, *vjp(tuple(jnp.broadcast_to(g, out.shape) for out, g in pairs))


def check_core_shapes(vectors, matrix) -> None:
    """Raise if the core sizes differ: JAX would broadcast a length of one."""
    if any(x.shape[-1:] * 2 != matrix.shape[-2:] for x in vectors):
        shapes = ", ".join(str(x.shape) for x in (*vectors, matrix))
        raise ValueError(f"core shapes do not fit together: vectors and matrix are {shapes}")


def rows_by_matrix(delta, matrix, batch):
    """Collect the vectors that share a matrix.

    Parameters
    ----------
    delta : array, shape (..., n)
    matrix : array, shape (..., n, n)
    batch : tuple of int
        The joint batch shape.

    Returns
    -------
    rows : array, shape (..., r, n)
    matrices : array, shape (..., n, n)
        Without the batch axes along which one matrix serves all vectors.
    row_axes : tuple of int
        These axes, as axes of `batch`.
    """
    n = delta.shape[-1]
    ndim = len(batch)
    matrices = jnp.expand_dims(matrix, tuple(range(ndim - matrix.ndim + 2)))
    row_axes = tuple(i for i in range(ndim) if matrices.shape[i] == 1 != batch[i])
    matrix_axes = tuple(i for i in range(ndim) if i not in row_axes)
    rows = jnp.broadcast_to(delta, (*batch, n)).transpose(*matrix_axes, *row_axes, ndim)
    lengths = tuple(batch[i] for i in matrix_axes)
    rows = rows.reshape(*lengths, math.prod(batch[i] for i in row_axes), n)
    return rows, matrices.squeeze(row_axes), row_axes


def batch_by_rows(x, batch, row_axes):
    """Undo :func:`rows_by_matrix` for an array of shape (..., r)."""
    matrix_axes = tuple(i for i in range(len(batch)) if i not in row_axes)
    order = (*matrix_axes, *row_axes)
    x = x.reshape(tuple(batch[i] for i in order))
    return x.transpose([order.index(i) for i in range(len(batch))])


def form_for(rows, matrices, sweep_max_n):
    """The module that factors `matrices`; the constants above say why."""
    n = matrices.shape[-1]
    if 1 <= n <= UNROLLED_MAX_N:
        return unrolled
    if 1 <= n <= sweep_max_n and rows.shape[-2] == 1:
        return sweep
    return lapack


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def quad_half_logdet(param, rows, matrices):
    """The quadratic form of each row, and half the log-determinant of each covariance.

    Parameters
    ----------
    param : {"cov", "chol", "tau"}
    rows : array, shape (..., r, n)
    matrices : array, shape (..., n, n)
        Only the lower triangle is read.

    Returns
    -------
    quaddist : array, shape (..., r)
    half_logdet : array, shape (...)
        Both NaN for a matrix that is not positive definite.
    """
    form = form_for(rows, matrices, SWEEP_MAX_N_FORWARD)
    if param == "chol":
        z = form.solve_lower(matrices, nan_if_singular(rows, matrices))
        return (z * z).sum(-1), log_diagonal(matrices)
    if param == "cov":
        return form.quad_half_logdet(rows, matrices)
    _, half_logdet = form.quad_half_logdet(rows[..., :1, :], matrices)
    return precision_quad(rows, matrices, half_logdet)[0], -half_logdet


@quad_half_logdet.defjvp
def quad_half_logdet_jvp(param, primals, tangents):
    r"""The formulas of :func:`~pytensor_mvn_rewrites.ops.gaussian.whitened_pullback`, transposed.

    With :math:`a = \Sigma^{-1}\delta`,

    .. math::

        \dot q &= 2 a^\top \dot\delta - a^\top \dot\Sigma a, &
        \dot h &= \tfrac12 \mathrm{tr}(\Sigma^{-1} \dot\Sigma) \\
        \dot q &= 2 a^\top \dot\delta - 2 a^\top \dot L z, &
        \dot h &= \textstyle\sum_i \dot L_{ii} / L_{ii} \\
        \dot q &= 2 (\tau\delta)^\top \dot\delta + \delta^\top \dot\tau \delta, &
        \dot h &= -\tfrac12 \mathrm{tr}(\tau^{-1} \dot\tau)
    """
    rows, matrices = primals
    d_rows, d_matrices = tangents
    form = form_for(rows, matrices, SWEEP_MAX_N)
    if param == "chol":
        z = form.solve_lower(matrices, nan_if_singular(rows, matrices))
        a = form.solve_lower_transposed(matrices, z)
        diagonal = jnp.diagonal(matrices, axis1=-2, axis2=-1)
        d_diagonal = jnp.diagonal(d_matrices, axis1=-2, axis2=-1)
        quad_dot = 2 * (a * d_rows).sum(-1) - 2 * bilinear(a, jnp.tril(d_matrices), z)
        primals_out = (z * z).sum(-1), log_diagonal(matrices)
        return primals_out, (quad_dot, (d_diagonal / diagonal).sum(-1))

    folded = d_matrices * lower_fold(d_matrices)
    if param == "cov":
        quaddist, half_logdet, a, inverse = form.solve_and_invert(rows, matrices)
        half_dot = 0.5 * (inverse * folded).sum((-2, -1))
        quad_dot = 2 * (a * d_rows).sum(-1) - bilinear(a, folded, a)
        return (quaddist, half_logdet), (quad_dot, half_dot)

    _, half_logdet, _, inverse = form.solve_and_invert(rows[..., :1, :], matrices)
    quaddist, a = precision_quad(rows, matrices, half_logdet)
    half_dot = -0.5 * (inverse * folded).sum((-2, -1))
    quad_dot = 2 * (a * d_rows).sum(-1) + bilinear(rows, folded, rows)
    return (quaddist, -half_logdet), (quad_dot, half_dot)


def bilinear(a, matrices, b):
    """The numbers ``a' M b``, shape (..., r), of rows `a` and `b`."""
    if a.shape[-2] == 1:
        # XLA fuses elementwise products; a batch of tiny matrix products it would not
        a, b = a[..., 0, :], b[..., 0, :]
        return (a[..., :, None] * b[..., None, :] * matrices).sum((-2, -1))[..., None]
    return (matmul(a, matrices) * b).sum(-1)


def precision_quad(rows, precision, half_logdet):
    """The quadratic form of a precision matrix and ``tau delta``; NaN where `half_logdet` is."""
    nan = jnp.where(jnp.isnan(half_logdet), jnp.nan, 0.0).astype(rows.dtype)[..., None, None]
    full = symmetric(precision)
    if rows.shape[-2] == 1:
        a = (full * rows).sum(-1)[..., None, :] + nan
    else:
        a = matmul(rows, full) + nan
    return (a * rows).sum(-1), a


def nan_if_singular(rows, chol):
    """Rows that no triangular solve can use become NaN, all of them."""
    singular = (jnp.diagonal(chol, axis1=-2, axis2=-1) == 0).any(-1)
    return jnp.where(singular[..., None, None], jnp.nan, rows)


def log_diagonal(chol):
    """Sum of the logarithms of the diagonal."""
    return jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)


def symmetric(matrices):
    """The symmetric matrices that have this lower triangle."""
    return jnp.tril(matrices) + jnp.tril(matrices, -1).mT


def lower_fold(matrices):
    """Weights that make a gradient for a symmetric matrix one for its lower triangle."""
    n, dtype = matrices.shape[-1], matrices.dtype
    return 2 * jnp.tri(n, dtype=dtype) - jnp.eye(n, dtype=dtype)


#: Accelerators round the factors of a product to fewer bits unless told not to
matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
