"""Covariances of Ornstein-Uhlenbeck and AR(1) processes: exponentials of distances on a line."""

from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Self

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Constant, Variable
from pytensor.scalar.basic import Abs, Exp, Mul, Neg, Pow, Sub, TrueDiv
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.shape import specify_shape

from pytensor_mvn_rewrites.graph import Tensor, is_real_float
from pytensor_mvn_rewrites.ops.gaussian import nan_unless
from pytensor_mvn_rewrites.pipeline import structure
from pytensor_mvn_rewrites.structure._kron import split_scale
from pytensor_mvn_rewrites.structure._structure import Structure

#: Differences of such integers overflow where those of times do not.
NARROW = {"int8", "int16", "uint8", "uint16", "uint32", "uint64"}


@structure
@dataclass(frozen=True)
class OrnsteinUhlenbeck(Structure):
    r"""InvQuadLogdet(delta, s * exp(-abs(t[:, None] - t) / l)) -> sums over neighbours in t.

    The same for ``s * rho ** abs(i - j)``: both are Markov processes. With the times in order, and
    :math:`r_i` the correlation of neighbours i and i + 1, every covariance is
    :math:`s\, r_i r_{i+1} \cdots r_{j-1}`, each value depends on the one before it only, and

    .. math:: \delta^\top \Sigma^{-1} \delta = \frac 1s \Big(\delta_1^2
              + \sum_i \frac{(\delta_{i+1} - r_i \delta_i)^2}{1 - r_i^2}\Big), \qquad
              \tfrac12 \log|\Sigma| = \tfrac n2 \log s + \tfrac12 \sum_i \log(1 - r_i^2)

    Cost: :math:`O(n^3) \to O(n)` in time and memory, all of it elementwise.
    Not positive definite unless :math:`s > 0` and all :math:`r_i^2 < 1`: where two times are equal
    the dense matrix is singular. With a time or 1 / l that is not finite its diagonal is NaN.
    Declines unless the exponent is a number times distances on a line: a constant matrix of them,
    of distinct times, or ``abs(t[:, None] - t)`` of any vector t but of integers
    whose differences may well overflow.

    Source: Rybicki and Press, Class of fast methods for processing irregularly sampled or otherwise
    inhomogeneous one-dimensional data, 1995.
    """

    #: Shape (...); 1 if None.
    scale: Tensor | None
    #: What sorts the times: n integers.
    order: Tensor
    #: Correlations of neighbours, and one minus their squares, shape (..., n - 1).
    correlation: Tensor
    innovation: Tensor
    #: Whether the diagonal of the dense matrix is, shape (...).
    finite: Tensor

    @classmethod
    def match(cls, fgraph, matrix, n, param) -> Self | None:
        """Take the scale off, and the exponential of distances apart."""
        scale, core = split_scale(matrix)
        match core.owner_op_and_inputs:
            case (Elemwise(scalar_op=Exp()), exponent):
                found = distances(exponent)
                if found is None or found.rate is None:
                    return None
                log_correlation = found.rate * found.steps
                correlation, innovation = pt.exp(log_correlation), -pt.expm1(2 * log_correlation)
                finite = found.finite & (pt.abs(found.rate[..., 0]) < np.inf)
            case (Elemwise(scalar_op=Pow()), rho, exponent) if all(rho.type.broadcastable[-2:]):
                found = distances(exponent)
                if found is None or found.rate is not None:
                    return None
                correlation = rho[..., 0] ** found.steps
                innovation, finite = 1 - correlation**2, found.finite
            case _:
                return None
        if not is_real_float(matrix, correlation) or correlation.type.dtype != matrix.type.dtype:
            return None
        scale = None if scale is None else scale[..., 0, 0].astype(matrix.type.dtype)
        return cls(scale, found.order, correlation, innovation, finite)

    def quad_logdet(self, delta, param):
        """The identity."""
        if delta.type.broadcastable[-1]:
            return None
        n = self.order.type.shape[0] or self.order.shape[0]
        delta = specify_shape(delta, (*(None,) * (delta.type.ndim - 1), n))
        if isinstance(self.order, Constant):
            # not slices of a reversed delta: PyTensor takes the wrong end of one of length 1
            order = np.asarray(self.order.data)
            first, before, after = (delta[..., part] for part in (order[:1], order[:-1], order[1:]))
        else:
            delta = delta[..., self.order]
            first, before, after = delta[..., :1], delta[..., :-1], delta[..., 1:]
        posdef = self.innovation > 0
        innovation = nan_unless(posdef, self.innovation)
        steps = after - self.correlation * before
        # of the first there may be none
        first = nan_unless(self.finite[..., None], first)
        quaddist = (first**2).sum(axis=-1) + (steps**2 / innovation).sum(axis=-1)
        half_logdet = 0.5 * pt.log(innovation).sum(axis=-1)
        posdef = posdef.all(axis=-1) & self.finite
        if self.scale is None:
            return quaddist, half_logdet, posdef
        scale = nan_unless(self.scale > 0, self.scale)
        half_n = 0.5 * pt.as_tensor(n).astype(scale.type.dtype)
        return quaddist / scale, half_logdet + half_n * pt.log(scale), posdef & (self.scale > 0)


@dataclass(frozen=True)
class Distances:
    """A matrix ``rate * abs(t_i - t_j)``."""

    #: Shape (..., 1); 1 if None.
    rate: Tensor | None
    #: What sorts t, shape (n,).
    order: Tensor
    #: Distances of neighbours, shape (n - 1,).
    steps: Tensor
    #: Whether all of t is.
    finite: Tensor


def distances(matrix: Tensor) -> Distances | None:
    """Take apart numbers times a matrix of distances on a line."""
    rates: list[Tensor] = []
    match matrix.owner_op_and_inputs:
        case (Elemwise(scalar_op=Mul()), *inputs):
            rates = [inp for inp in inputs if all(inp.type.broadcastable[-2:])]
            matrices = [inp for inp in inputs if inp not in rates]
        case (Elemwise(scalar_op=TrueDiv()), numerator, denominator):
            if not all(denominator.type.broadcastable[-2:]):
                return None
            rates, matrices = [1 / denominator], [numerator]
        case (Elemwise(scalar_op=Neg()), inner):
            rates, matrices = [pt.constant(-1.0, dtype=inner.type.dtype)[None, None]], [inner]
        case _:
            matrices = []
    if rates and len(matrices) == 1:
        inner = distances(matrices[0])
        if inner is None:
            return None
        rate = reduce(mul, rates)[..., 0]
        rate = rate if inner.rate is None else rate * inner.rate
        return Distances(rate, inner.order, inner.steps, inner.finite)
    if isinstance(matrix, Constant):
        return constant_distances(np.asarray(matrix.data))
    times = line_of(matrix)
    if times is None:
        return None
    order = pt.argsort(times)
    return Distances(None, order, pt.diff(times[order]), (pt.abs(times) < np.inf).all(axis=-1))


def constant_distances(data: np.ndarray) -> Distances | None:
    """The same for a constant matrix, or for minus one, of distinct times."""
    while data.ndim > 2 and len(data) == 1:
        [data] = data
    if data.ndim != 2 or data.shape[0] != data.shape[1] or len(data) < 2:
        return None
    sign = -1 if data[0, -1] < 0 else 1
    dist = np.abs(data.astype("float64"))
    if not np.isfinite(dist).all():
        return None
    times = dist[np.argmax(dist[0])]
    rounding = 8 * np.finfo("float64" if data.dtype.kind in "iu" else data.dtype).eps
    if not np.allclose(
        sign * data, np.abs(times[:, None] - times), rtol=0, atol=rounding * times.max()
    ):
        return None
    order = np.argsort(times)
    if order[0] > order[-1]:
        # the process is the same backwards: times in order need no gather
        order, times = order[::-1], -times
    steps = np.diff(times[order])
    if not (steps > rounding * dist.max()).all():
        return None
    dtype = data.dtype if data.dtype.kind == "f" else np.dtype("float64")
    rate = None if sign > 0 else pt.constant(np.full(1, -1, dtype=dtype))
    return Distances(
        rate, pt.constant(order), pt.constant(steps.astype(dtype)), pt.constant(np.array(True))
    )


def line_of(matrix: Variable) -> Tensor | None:
    """The vector t of ``abs(t[:, None] - t[None, :])``."""
    match matrix.owner_op_and_inputs:
        case (
            Elemwise(scalar_op=Abs()),
            Variable(owner_op_and_inputs=(Elemwise(scalar_op=Sub()), left, right)),
        ) if {left.type.broadcastable, right.type.broadcastable} == {(False, True), (True, False)}:
            match left.owner_op_and_inputs, right.owner_op_and_inputs:
                case (DimShuffle(), t), (DimShuffle(), same) if t is same and t.type.ndim == 1:
                    return None if t.type.dtype in NARROW else t
    return None
