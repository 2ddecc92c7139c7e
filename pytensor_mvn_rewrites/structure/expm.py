"""Covariances and precisions that are exponentials of symmetric matrices."""

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.linalg.products import Expm

from pytensor_mvn_rewrites.matching import is_real_float
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp, expm_quaddist
from pytensor_mvn_rewrites.pipeline import Declined, record, structure
from pytensor_mvn_rewrites.structure._assemble import from_parts, split_inputs
from pytensor_mvn_rewrites.structure._kron import without_batch_dims
from pytensor_mvn_rewrites.structure._symmetry import is_symmetric


@structure
@node_rewriter([MvNormalLogp, InvQuadLogdet])
def matrix_is_exponential(fgraph, node):
    r"""InvQuadLogdet(delta, expm(X)) -> ExpmQuaddist(delta, -X), trace(X) / 2.

    .. math:: \delta^\top (e^X)^{-1} \delta = \delta^\top e^{-X} \delta, \qquad
              \tfrac12 \log |e^X| = \tfrac12 \mathrm{tr}\, X

    The same for ``MvNormalLogp``, and for precisions. Cost: one eigendecomposition instead of a
    matrix exponential, one of twice the size for its gradient, and a Cholesky factorization.
    Positive definite whenever X is finite; the dense graph's exponential may be too
    ill-conditioned to be factored. Declines unless X is provably symmetric.
    """
    sign = {"cov": -1, "tau": 1}.get(node.op.param)
    if sign is None:
        return None
    delta, matrix = split_inputs(node)
    match without_batch_dims(matrix).owner_op_and_inputs:
        case (Expm() | Blockwise(Expm()), exponent):
            pass
        case _:
            return None
    if not is_real_float(exponent) or exponent.type.dtype != matrix.type.dtype:
        return None
    if not is_symmetric(fgraph, exponent):
        reason = "the exponent is not provably symmetric"
        record(Declined("structure", "matrix_is_exponential", reason))
        return None
    quaddist = expm_quaddist(delta, sign * exponent)
    posdef = pt.isfinite(exponent).all(axis=(-2, -1))
    nan = np.asarray(np.nan, dtype=exponent.type.dtype)
    trace = pt.diagonal(exponent, axis1=-2, axis2=-1).sum(axis=-1)
    half_logdet = pt.switch(posdef, np.asarray(-0.5 * sign, dtype=trace.type.dtype) * trace, nan)
    return from_parts(node, quaddist, half_logdet, posdef)
