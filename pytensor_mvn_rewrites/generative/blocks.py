"""Flat vectors whose covariance is block-diagonal: one batch of the vectors of all blocks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pymc.distributions.distribution import PartialObservedRV
from pytensor.graph.basic import Constant, Variable
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.linalg.inverse import MatrixInverse
from pytensor.tensor.random.basic import MvNormalRV
from pytensor.tensor.type_other import NoneTypeT

from pytensor_mvn_rewrites.generative._parts import Part, Parts, Unfusable, of_dtype
from pytensor_mvn_rewrites.graph import Tensor, gram_root, without_leading_ones
from pytensor_mvn_rewrites.logprob import has_density_of_pymc
from pytensor_mvn_rewrites.proofs.constants import scalar_constant
from pytensor_mvn_rewrites.structure._kron import split_scale
from pytensor_mvn_rewrites.structure.block_diagonal import Blocks, blocks_of, flattened, take


@dataclass(frozen=True)
class BlockBatch:
    """What a batch of vectors is in the model that a fused one was made of: one flat vector.

    Attributes
    ----------
    positions : int array, shape (K, n)
        Which entries of the flat vector each block takes.
    dims : (str, str)
        The dimension of the blocks, and that of the entries of one.
    flat_dim : str
        The dimension of the flat vector.
    labels : tuple
        Its coordinate.
    """

    positions: np.ndarray
    dims: tuple[str, str]
    flat_dim: str
    labels: tuple

    def flat(self, vectors: Tensor) -> Tensor:
        """The flat vector, of vectors of shape (..., K, n)."""
        batch = tuple(vectors.shape)[:-2]
        if np.array_equal(self.positions.T.ravel(), np.arange(self.positions.size)):
            return vectors.mT.reshape((*batch, self.positions.size))
        flat = vectors.reshape((*batch, self.positions.size))
        order = self.positions.ravel()
        return flat if np.array_equal(order, np.sort(order)) else flat[..., np.argsort(order)]

    def flat_array(self, array):
        """The same of what was sampled; the sum over the blocks of their log-densities."""
        if self.dims[0] not in array.dims:
            return array
        if self.dims[1] not in array.dims:
            return array.sum(self.dims[0])
        flat = array.stack({self.flat_dim: self.dims}, create_index=False)
        flat = flat.drop_vars(self.dims, errors="ignore")
        flat = flat.isel({self.flat_dim: np.argsort(self.positions.ravel())})
        return flat.assign_coords({self.flat_dim: list(self.labels)})


def split_blocks(parts: Parts, name: str) -> BlockBatch | None:
    r"""MvNormal(mu, block_diag(S_1, ..., S_K)) -> MvNormal(M, S), S the stack, shape (K, n, n).

    .. math:: N(x \mid \mu, \oplus_k \Sigma_k) = \prod_k N(x_k \mid \mu_k, \Sigma_k)

    Puts the batch in the place of the flat variable, and the raveled batch where others use that.
    Covariances and Cholesky factors, in any form that ``structure/block_diagonal.py`` knows. None
    where there are no blocks.
    """
    part = parts.random[name]
    rv = part.var
    if isinstance(rv.owner.op, PartialObservedRV):
        if _covariances(rv.owner.inputs[0]):
            raise Unfusable("some of its values are missing")
        return None
    stacks = _covariances(rv)
    if not stacks or sum(len(blocks.positions) for blocks in stacks) < 2:
        return None
    if len(stacks) > 1:
        raise Unfusable("its blocks differ in size, or in what they are computed by")
    [blocks] = stacks
    n_flat = blocks.positions.size
    if part.transform is not None:
        raise Unfusable(f"the transform {part.transform} is one of the flat vector")
    if part.value.type.shape[-1] not in (None, n_flat) or rv.type.shape[-1] not in (None, n_flat):
        raise Unfusable("its length is not that of its covariance")
    start = _initial_value(part, blocks)

    rng, size, mu, cov = rv.owner.inputs
    if not isinstance(size.type, NoneTypeT):
        size = pt.join(0, size, [len(blocks.positions)])
    means = take(mu, blocks.positions, n_flat)
    covs = blocks.matrices.astype(cov.type.dtype)
    new = rv.owner.op.make_node(rng, size, means, covs).outputs[1]
    new.name = name
    dims = (f"{name}_block", f"{name}_entry")
    if taken := sorted(parts.lengths.keys() & set(dims)):
        raise Unfusable(f"the dimension {taken[0]!r} is taken")
    *outer, flat_dim = part.dims or (*parts.add_dims(name, rv.type.shape[:-1]), "")
    for dim, length in zip(dims, blocks.positions.shape, strict=True):
        parts.add_dim(dim, tuple(range(length)))
    batch = BlockBatch(
        blocks.positions,
        dims,
        flat_dim or f"{name}_dim_{len(outer)}",
        tuple(parts.coords.get(flat_dim) or range(n_flat)),
    )
    value = _value(part, blocks, is_free=name in parts.free)
    own_parts = parts.free if name in parts.free else parts.observed
    own_parts[name] = Part(new, (*outer, *dims), of_dtype(value, new), None, start)
    parts.replace({rv: rv.type.filter_variable(batch.flat(new), allow_convert=True)})
    return batch


def _covariances(rv: Tensor) -> list[Blocks] | None:
    """The blocks of the covariance of an MvNormal, which its Cholesky factor may be given for."""
    op = rv.owner.op
    if not isinstance(op, MvNormalRV) or not has_density_of_pymc(op):
        return None
    cov = without_leading_ones(rv.owner.inputs[-1], 2)
    if (root := gram_root(cov)) is not None:
        lower = root is cov.owner.inputs[0]
        return [
            Blocks(own.positions, _gram(own.matrices if lower else own.matrices.mT))
            for own in blocks_of(root) or ()
        ]
    match cov.owner_op_and_inputs:
        case (MatrixInverse() | Blockwise(MatrixInverse()), tau):
            if blocks_of(tau):
                raise Unfusable("PyMC has no density of a batch that is given by precisions")
            return None
    stacks = blocks_of(_one_sum(cov))
    if stacks is None and len(flattened(split_scale(cov)[1])) > 1:
        raise Unfusable("the sizes of its blocks are not known")
    return stacks


def _gram(root: Tensor) -> Tensor:
    return root @ root.mT


def _one_sum(matrix: Tensor) -> Tensor:
    """``((0 + A) + B) + C`` as one sum, which is what canonicalization makes of it."""

    def terms(var):
        match var.owner_op_and_inputs:
            case (Elemwise(scalar_op=pt.add.scalar_op), *operands):
                return [term for operand in operands for term in terms(operand)]
        return [] if scalar_constant(var) == 0 else [var]

    found = terms(matrix)
    return matrix if len(found) < 2 else pt.add(*found)


def _value(part: Part, blocks: Blocks, is_free: bool) -> Any:
    """The value of the batch."""
    own = part.value
    if is_free:
        value = own.type.clone(shape=(*own.type.shape[:-1], *blocks.positions.shape))()
        value.name = own.name
        return value
    if isinstance(own, Constant):
        return pt.constant(own.data[..., blocks.positions])
    return take(own, blocks.positions, blocks.positions.size)


def _initial_value(part: Part, blocks: Blocks) -> Any:
    """The initial value of the batch, of that of the flat vector."""
    if part.initial is None or isinstance(part.initial, str):
        return part.initial
    if isinstance(part.initial, Variable):
        raise Unfusable("its initial value is given as a graph")
    value = np.asarray(part.initial)
    if value.shape[-1:] != (blocks.positions.size,):
        raise Unfusable("its initial value has another shape")
    return value[..., blocks.positions]
