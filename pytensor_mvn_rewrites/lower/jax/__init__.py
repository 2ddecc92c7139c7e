"""JAX implementations of the lowered ops; importing this package registers them with PyTensor.

==============  ===============================================================================
`densities`     the ops as functions of arrays, and their derivative
`unrolled`      small matrices: straight-line code, one array over the batch for each element
`sweep`         medium matrices: one loop over the pivots for the whole batch
`lapack`        large matrices, and many rows that share a matrix
==============  ===============================================================================

Everything is plain ``jnp`` and ``lax`` on the whole batch: it can be jitted, mapped, sharded along
the batch axes, and differentiated any number of times.
"""

from functools import partial

import jax
import numpy as np
from pytensor.link.jax.dispatch import jax_funcify

from pytensor_mvn_rewrites.lower.jax.densities import inv_quad_logdet, mvnormal_logp, with_pullback
from pytensor_mvn_rewrites.lower.jax_backend import JaxGaussianOp
from pytensor_mvn_rewrites.lower.kinks import Materialized
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp

#: Reference ops -> function of the inputs and `param`
IMPLEMENTATIONS = {MvNormalLogp: mvnormal_logp, InvQuadLogdet: inv_quad_logdet}


@jax_funcify.register(JaxGaussianOp)
def jax_funcify_gaussian(op, node, **kwargs):
    """The implementation of a lowered op, in the dtype that PyTensor computes in."""
    [density] = (d for d in IMPLEMENTATIONS if op.references[0] in (d, d.pullback_type))
    function = partial(IMPLEMENTATIONS[density], param=op.param)
    n_inputs = len(density.core_ndims)
    floats = [out.type.dtype for out in node.outputs if out.type.dtype != "bool"]
    # what JAX makes of float64 where its x64 mode is off
    compute = jax.dtypes.canonicalize_dtype(np.result_type(*floats))
    dtypes = [jax.dtypes.canonicalize_dtype(out.type.dtype) for out in node.outputs]

    def gaussian(*inputs):
        inputs = [jax.numpy.asarray(inp, dtype=compute) for inp in inputs]
        own, cotangents = inputs[:n_inputs], inputs[n_inputs:]
        outputs = with_pullback(function, own, cotangents) if cotangents else function(*own)
        # a pullback alone has the gradients only, which come last
        outputs = outputs[len(outputs) - len(dtypes) :]
        return tuple(out.astype(dtype) for out, dtype in zip(outputs, dtypes, strict=True))

    gaussian.__name__ = str(op)
    return gaussian


@jax_funcify.register(Materialized)
def jax_funcify_materialized(op, **kwargs):
    """A barrier that the fusions of XLA do not cross."""
    return materialized


@jax.custom_jvp
def materialized(x):
    """`x`, computed once."""
    return jax.lax.optimization_barrier(x)


@materialized.defjvp
def materialized_jvp(primals, tangents):
    """The tangent passes; JAX gives a barrier no derivative in all its versions."""
    return materialized(*primals), *tangents
