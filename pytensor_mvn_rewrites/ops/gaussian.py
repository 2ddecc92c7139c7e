r"""What the Gaussian ops share: parametrizations, the reference graph, batch dimensions.

Every op of this package takes a matrix in one of three parametrizations ``param``:

===========  =======================================  ======================================
``param``    matrix                                   triangle that is read
===========  =======================================  ======================================
``"cov"``    covariance :math:`\Sigma`                 lower (PyTensor's Cholesky reads it)
``"chol"``   Cholesky factor :math:`L`, lower         lower
``"tau"``    precision :math:`\Sigma^{-1}`             lower
===========  =======================================  ======================================

All inputs broadcast as gufuncs do: the core dimensions ``(n)`` and ``(n, n)`` come last, and the
batch dimensions before them are aligned from the right.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from itertools import zip_longest
from operator import and_
from typing import ClassVar
from weakref import WeakValueDictionary

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode
from pytensor.gradient import DisconnectedType, disconnected_type
from pytensor.graph.basic import Variable
from pytensor.tensor.symbolic import TensorSymbolicOp

from pytensor_mvn_rewrites._upstream import _parse_gufunc_signature, _vectorize_node

PARAMS = ("cov", "chol", "tau")


def whiten(delta, matrix, param: str):
    r"""Half the log-determinant of :math:`\Sigma`, the whitened vector, and whether all is well.

    Parameters
    ----------
    delta : tensor, shape (..., n)
        A difference to the mean.
    matrix : tensor, shape (..., n, n)
        In the parametrization `param`.
    param : {"cov", "chol", "tau"}

    Returns
    -------
    z : tensor, shape (..., n)
        A vector with :math:`z^\top z = \delta^\top \Sigma^{-1} \delta`.
    half_logdet : tensor, shape (...)
        :math:`\tfrac12 \log|\Sigma|`.
    posdef : tensor of bool, shape (...)
        False where the factorization failed or a pivot is not positive.
    """
    chol = matrix if param == "chol" else pt.linalg.cholesky(matrix, lower=True)
    diag = pt.diagonal(chol, axis1=-2, axis2=-1)
    half_logdet = pt.log(diag).sum(axis=-1)
    posdef = pt.all(diag > 0, axis=-1)
    if param == "tau":
        # tau = L L', so delta' tau delta = |L' delta|^2 and Sigma's log-determinant is minus tau's
        z = (pt.tril(chol).mT @ delta[..., None])[..., 0]
        return z, -half_logdet, posdef
    return pt.linalg.solve_triangular(chol, delta, lower=True, b_ndim=1), half_logdet, posdef


def whitened_pullback(delta, matrix, g_quad, g_half_logdet, param: str):
    r"""Pull cotangents of (quaddist, half_logdet) back to `delta` and `matrix`.

    With :math:`a = \Sigma^{-1}\delta` and :math:`q = \delta^\top a`,

    .. math::

        \bar\delta &= 2 \bar q\, a \\
        \bar\Sigma &= -\bar q\, a a^\top + \tfrac12 \bar h\, \Sigma^{-1} \\
        \bar L &= -2 \bar q\, \mathrm{tril}(a z^\top) + \bar h\, \mathrm{diag}(1 / L_{ii}) \\
        \bar\tau &= \bar q\, \delta \delta^\top - \tfrac12 \bar h\, \tau^{-1}

    where the symmetric ones are folded into the lower triangle, off-diagonal entries doubled,
    because only the lower triangle is an input of the unrewritten graph.
    (Petersen & Pedersen, The Matrix Cookbook, 2012, eqs. 57, 61 and 72.)

    Parameters
    ----------
    delta : tensor, shape (..., n)
    matrix : tensor, shape (..., n, n)
    g_quad, g_half_logdet : tensor, shape (...)
    param : {"cov", "chol", "tau"}

    Returns
    -------
    d_delta : tensor, shape (..., n)
    d_matrix : tensor, shape (..., n, n)
        With the joint batch dimensions of all inputs; lower triangular.
    """
    chol = matrix if param == "chol" else pt.linalg.cholesky(matrix, lower=True)
    g_quad_vec, g_quad_mat = g_quad[..., None], g_quad[..., None, None]
    g_half_vec, g_half_mat = g_half_logdet[..., None], g_half_logdet[..., None, None]

    def outer(a, b):
        return a[..., :, None] * b[..., None, :]

    if param == "tau":
        tril = pt.tril(chol)
        a = (tril @ (tril.mT @ delta[..., None]))[..., 0]
        # tau's own inverse is the covariance
        d_matrix = g_quad_mat * outer(delta, delta) - 0.5 * g_half_mat * _inverse(chol)
        return 2 * g_quad_vec * a, fold_lower(d_matrix)

    z = pt.linalg.solve_triangular(chol, delta, lower=True, b_ndim=1)
    a = pt.linalg.solve_triangular(chol, z, lower=True, trans=True, b_ndim=1)
    d_delta = 2 * g_quad_vec * a
    if param == "chol":
        inv_diag = 1 / pt.diagonal(chol, axis1=-2, axis2=-1)
        n = matrix.shape[-1]
        d_chol = -2 * g_quad_mat * pt.tril(outer(a, z))
        return d_delta, d_chol + pt.eye(n) * (g_half_vec * inv_diag)[..., None, :]
    d_cov = -g_quad_mat * outer(a, a) + 0.5 * g_half_mat * _inverse(chol)
    return d_delta, fold_lower(d_cov)


def _inverse(chol):
    """(L L')^-1 from the lower Cholesky factor L."""
    eye = pt.eye(chol.shape[-1], dtype=chol.dtype)
    inv_chol = pt.linalg.solve_triangular(chol, eye, lower=True, b_ndim=2)
    return inv_chol.mT @ inv_chol


def fold_lower(symmetric):
    """Gradient for a symmetric matrix -> gradient for its lower triangle."""
    n = symmetric.type.shape[-1] or symmetric.shape[-1]
    fold = 2 * pt.tri(n, dtype=symmetric.dtype) - pt.eye(n, dtype=symmetric.dtype)
    return symmetric * fold


@lru_cache
def parse_signature(signature: str) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """The labels of the core dimensions of each input and of each output."""
    inputs, outputs = _parse_gufunc_signature(signature)
    return inputs, outputs


class _CoreNdims:
    """Numbers of core dimensions, by the signature of an op or of its class."""

    def __init__(self, *, outputs: bool):
        self.outputs = outputs

    def __get__(self, op: "FusedOp | None", cls: "type[FusedOp]") -> tuple[int, ...]:
        signature = cls.signature if op is None else op.signature
        return tuple(map(len, parse_signature(signature)[self.outputs]))


class FusedOp(TensorSymbolicOp):
    """Base of the ops of this package: batch dimensions come first and broadcast.

    Subclasses give the gufunc `signature`: core dimensions with one label have one length, what is
    statically of length 1 apart, which PyTensor stretches; others need not.
    There is one instance for given props and input types, as long as a graph holds it: a loop of
    5000 terms builds one inner graph.
    """

    signature: str
    #: Whether Numba gets the formula in place of nodes that no kernel covers: what an op and its
    #: pullback compute alike is then compiled and computed once
    is_inlined: ClassVar[bool] = False
    _instances: ClassVar[WeakValueDictionary] = WeakValueDictionary()
    #: Number of core dimensions of each input, and of each output.
    core_ndims = _CoreNdims(outputs=False)
    out_core_ndims = _CoreNdims(outputs=True)

    def __call__(self, *inputs, **kwargs):
        """Apply the instance for the types of `inputs`."""
        inputs = self.filter_inputs(*inputs)
        for inp, core_ndim in zip(inputs, self.core_ndims, strict=True):
            if inp.type.ndim < core_ndim:
                raise ValueError(
                    f"{self} needs an input of at least {core_ndim} dimensions, got {inp.type}"
                )
        types, props = [inp.type for inp in inputs], self._props_dict()
        # floatX decides the dtypes of an inner graph of float32
        key = type(self), *props.items(), *types, pytensor.config.floatX
        op = self._instances.get(key)
        if op is None:
            op = self._instances[key] = type(self)(**props, input_types=types)
        return super(TensorSymbolicOp, op).__call__(*inputs, **kwargs)

    def __getstate__(self):
        """All but what PyTensor makes of the inner graph and keeps here: a function, derivatives.

        Instances are shared: these may belong to another graph, and not every pickler writes them.
        """
        return self.__dict__ | {"_fn": None, "_lop_op_cache": {}, "_rop_op_cache": None}

    @property
    def batch_ndim(self) -> int:
        """Number of batch dimensions that the inputs have together."""
        return max(t.ndim - core for t, core in zip(self.input_types, self.core_ndims, strict=True))

    def link_mode(self, impl):
        """What is folded, being constant, is evaluated once: not worth compiling anything."""
        return Mode("py", optimizer=None) if impl == "py" else super().link_mode(impl)

    def batch_shape(self, node, shapes) -> list:
        """The joint batch shape, given the shapes of the inputs."""
        batch = []
        for axis in range(-self.batch_ndim, 0):
            dims = [
                (shape[axis - core], inp.type.shape[axis - core])
                for inp, shape, core in zip(node.inputs, shapes, self.core_ndims, strict=True)
                if len(shape) - core >= -axis
            ]
            # PyTensor broadcasts only what is statically 1: any other dimension has the answer
            batch.append(min(dims, key=lambda dim: dim[1] == 1)[0])
        return batch

    def infer_shape(self, node, shapes):
        """The joint batch shape, and the lengths of the labels."""
        batch = self.batch_shape(node, shapes)
        input_labels, output_labels = parse_signature(self.signature)
        lengths = {
            label: length
            for shape, labels in zip(shapes, input_labels, strict=True)
            for label, length in zip(labels, shape[len(shape) - len(labels) :], strict=True)
        }
        return [(*batch, *map(lengths.__getitem__, labels)) for labels in output_labels]


class KernelOp(FusedOp):
    """Base of the ops that have a Numba kernel as they are, for the nodes that it covers."""

    def __setstate__(self, state):
        """Read a pickle, and register the kernels.

        Where a compiled function is read, no rewrite runs that would: it is linked as it is.
        """
        self.__dict__.update(state)
        import_module("pytensor_mvn_rewrites.lower.numba")


class GaussianOp(FusedOp):
    """Base of the ops whose last core input is a matrix in the parametrization ``param``."""

    __props__: tuple[str, ...] = ("param",)
    param: str

    def __init__(self, *, param: str = "cov", **kwargs):
        if param not in PARAMS:
            raise ValueError(f"param must be one of {PARAMS}, got {param!r}")
        self.param = param
        super().__init__(**kwargs)

    def __str__(self):
        return f"{type(self).__name__}{{{self.param}}}"


class DensityOp(GaussianOp):
    """Base of the ops with a closed-form gradient; the last output says whether all is well.

    Their last inputs may be a decomposition of others, from which op and gradient take the numbers:
    it is computed once for both. The gradient is that for what is decomposed, and none is taken of
    the decomposition.
    """

    #: The op of the closed-form gradient, see :func:`is_pullback_of`
    pullback_type: ClassVar[type["GaussianPullbackOp"]]

    def pullback_op(self):
        """The gradient, from the inputs and the cotangents of all outputs but the last."""
        return self.pullback_type(**self._props_dict())

    @property
    def n_parts(self) -> int:
        """Number of inputs that are not of a decomposition."""
        return len(self.pullback_op().out_core_ndims)

    def pullback(self, inputs, outputs, output_grads):
        """Closed form; a disconnected output counts as zero."""
        cotangents = connected_cotangents(outputs[:-1], output_grads[:-1])
        if cotangents is None:
            return [disconnected_type() for _ in inputs]
        grads = self.pullback_op()(*inputs, *cotangents, return_list=True)
        is_used = [not isinstance(grad.type, DisconnectedType) for grad in output_grads]
        return [
            grad if any(map(and_, is_used, pattern)) else disconnected_type()
            for grad, pattern in zip_longest(grads, self.connection_pattern(None))
        ]

    def connection_pattern(self, node):
        """All depends on all, but for decompositions and what says whether all is well."""
        n_parts, n_outputs = self.n_parts, len(self.out_core_ndims)
        connected = [*[True] * (n_outputs - 1), False]
        rest = len(self.core_ndims) - n_parts
        return [*[connected] * n_parts, *[[False] * n_outputs] * rest]


class QuadLogdetOp(DensityOp):
    """Base of the ops of a difference delta that give quaddist, half_logdet and posdef."""

    def connection_pattern(self, node):
        """`half_logdet` does not depend on `delta`."""
        return [[True, False, False], *super().connection_pattern(node)[1:]]


def nan_unless(condition, x):
    """`x` where a condition holds, NaN elsewhere."""
    return pt.switch(condition, x, np.asarray(np.nan, dtype=x.type.dtype))


def of_one_batch(quaddist, *others) -> list[Variable]:
    """The outputs of a :class:`QuadLogdetOp`: what rows share is repeated for each."""
    return [quaddist, *(pt.broadcast_to(other, quaddist.shape) for other in others)]


def connected_cotangents(outputs, output_grads) -> list[Variable] | None:
    """Cotangents of all outputs, zeros for the disconnected ones; None if all of them are."""
    used = [not isinstance(grad.type, DisconnectedType) for grad in output_grads]
    if not any(used):
        return None
    return [
        grad if is_used else pt.zeros_like(out)
        for out, grad, is_used in zip(outputs, output_grads, used, strict=True)
    ]


class PullbackOp(FusedOp):
    """Base of the pullbacks: gradients have the shapes of the forward op's inputs.

    The joint batch is summed over the dimensions along which an input was broadcast.
    The inputs are those of the forward op followed by one cotangent for each differentiable output;
    the first ones are those that have gradients.
    """

    forward_core_ndims = _CoreNdims(outputs=True)

    def infer_shape(self, node, shapes):
        """Gradients have the shapes of the inputs."""
        return list(shapes[: len(self.forward_core_ndims)])

    def sum_to_inputs(self, inputs: Sequence[Variable], grads: Sequence[Variable]):
        """Sum each gradient over the batch dimensions along which its input was broadcast."""
        return [
            sum_to_type(grad, inp, core)
            for inp, grad, core in zip(inputs, grads, self.forward_core_ndims, strict=False)
        ]


class GaussianPullbackOp(PullbackOp, GaussianOp):
    """Base of the pullbacks of Gaussian ops."""


def is_pullback_of(density: type[DensityOp]):
    """Make the decorated op the gradient of another, of the same properties."""

    def register[T: type[GaussianPullbackOp]](cls: T) -> T:
        density.pullback_type = cls
        return cls

    return register


def sum_to_type(grad, inp, core_ndim: int):
    """Undo the broadcasting of `inp`: sum `grad` over the batch dimensions `inp` lacks."""
    extra = grad.type.ndim - inp.type.ndim
    if extra:
        grad = grad.sum(axis=tuple(range(extra)))
    axes = tuple(
        axis
        for axis in range(inp.type.ndim - core_ndim)
        if inp.type.shape[axis] == 1 and grad.type.shape[axis] != 1
    )
    if axes:
        grad = grad.sum(axis=axes, keepdims=True)
    return pt.specify_shape(grad, inp.type.shape) if grad.type.shape != inp.type.shape else grad


def add_batch_dims(op: FusedOp, node, batched_inputs):
    """Align new leading batch dimensions of some inputs with the old batch dimensions of all.

    What broadcast before goes on to broadcast: PyTensor forgets that a length is 1 where the shape
    of an ``Alloc`` becomes a batch of shapes.
    """
    aligned = []
    for inp, batched, core in zip(node.inputs, batched_inputs, op.core_ndims, strict=True):
        new = batched.type.ndim - inp.type.ndim
        lost = [
            axis + new
            for axis, is_one in enumerate(inp.type.broadcastable)
            if is_one and not batched.type.broadcastable[axis + new]
        ]
        batched = pt.specify_broadcastable(batched, *lost) if lost else batched
        missing = op.batch_ndim - (inp.type.ndim - core)
        if new and missing:
            batched = pt.expand_dims(batched, axis=tuple(range(new, new + missing)))
        aligned.append(batched)
    return aligned


@_vectorize_node.register(FusedOp)
def vectorize_fused(op, node, *batched_inputs):
    """The ops broadcast by themselves: only align the dimensions."""
    return op(*add_batch_dims(op, node, batched_inputs), return_list=True)[0].owner


@_vectorize_node.register(PullbackOp)
def vectorize_pullback(op, node, *batched_inputs):
    """A gradient keeps every new batch dimension: give each input all of them first."""
    new_ndims = [
        batched.type.ndim - inp.type.ndim
        for inp, batched in zip(node.inputs, batched_inputs, strict=True)
    ]
    source, new_ndim = max(zip(batched_inputs, new_ndims, strict=True), key=lambda pair: pair[1])
    batch_shape = tuple(source.shape)[:new_ndim]
    full = [
        batched
        if own == new_ndim
        else pt.broadcast_to(batched, (*batch_shape, *tuple(batched.shape)[own:]))
        for batched, own in zip(batched_inputs, new_ndims, strict=True)
    ]
    grads = op(*add_batch_dims(op, node, full), return_list=True)
    # a gradient has the shape of its input: without the dimensions that only align it
    return [
        grad.squeeze(axis=tuple(range(new_ndim, grad.type.ndim - out.type.ndim)))
        if grad.type.ndim - new_ndim > out.type.ndim
        else grad
        for grad, out in zip(grads, node.outputs, strict=True)
    ]
