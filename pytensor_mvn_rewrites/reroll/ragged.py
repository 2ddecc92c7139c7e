"""Ragged groups: densities of rows, a different number of rows in each."""

from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pymc.logprob.utils import CheckParameterValue
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op
from pytensor.scalar.basic import Cast
from pytensor.tensor.basic import ScalarFromTensor
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import All, Sum

from pytensor_mvn_rewrites.graph import Tensor, nodes_with
from pytensor_mvn_rewrites.ops import MvNormalLogp
from pytensor_mvn_rewrites.pipeline import Fired, record, reroll
from pytensor_mvn_rewrites.reroll._packs import holds_random_variables
from pytensor_mvn_rewrites.reroll._signature import Signatures, group_by
from pytensor_mvn_rewrites.reroll._terms import outer_sums
from pytensor_mvn_rewrites.structure._structure import large_structure


@reroll
def join_ragged_rows(fgraph):
    r"""sum(MvNormalLogp(x_1, mu_1, S_1)) + ... -> sum(MvNormalLogp(X, M[group], S[group])).

    X joins the rows :math:`x_g`, of which each group has a number of its own; S stacks the
    matrices, and ``group`` says for each row which one is its own:

    .. math:: \sum_{g=1}^G \sum_{r=1}^{R_g} \log N(x_{gr} \mid \mu_{gr}, \Sigma_g)
              = \sum_{r=1}^R \log N(X_r \mid M_r, \Sigma_{g(r)})

    Cost: G densities become one, and the stacks of means and matrices can be re-rolled in turn;
    each matrix is factored once, see ``structure/gathered_matrix.py``, and Numba's kernels take
    the index instead of a matrix for each row, see ``lower/_groups.py``.
    Declines when all groups have equally many rows: they make a batch, which is cheaper; this rule
    runs before the others of its stage, which would take the groups that are. Declines for large
    matrices that are made of something, which a dense Cholesky factor for each group would hide.
    """
    if not nodes_with(fgraph, MvNormalLogp):
        return
    sums = outer_sums(fgraph, lambda terms: len(terms) > 1)
    if not sums or holds_random_variables(fgraph):
        return
    replacements, signatures = [], Signatures()
    for node, terms in sums:
        rows: dict[RowGroup, tuple] = {}
        for term in terms:
            if (group := RowGroup.of(term)) is None:
                continue
            made_of = large_structure(fgraph, group.density)
            if made_of is None:
                rows[group] = (*group.key, None)
            elif made_of.cholesky() is not None:
                # a stack with others would be factorized
                rows[group] = (*group.key, signatures(group.density.inputs[-1]))
        joined = []
        for groups in group_by(rows, rows.__getitem__):
            if len({group.value.type.shape[0] for group in groups}) > 1:
                joined.append(join(groups))
                replaced = {group.term for group in groups}
                terms = [term for term in terms if term not in replaced]
                record(Fired("reroll", "join_ragged_rows", f"{len(groups)} ragged groups of rows"))
        if joined:
            [old] = node.outputs
            total = pt.add(*terms, *joined) if len(terms + joined) > 1 else joined[0]
            total.name = old.name
            replacements.append((old, old.type.filter_variable(total)))
    fgraph.replace_all(replacements, reason="join_ragged_rows", import_missing=True)


@dataclass(frozen=True)
class RowGroup:
    """One group: the summed log-density of rows with a common covariance.

    Attributes
    ----------
    term : tensor, shape ()
        ``wrap(wrap(... density.outputs[0] ...))``.
    density : Apply
        The ``MvNormalLogp``.
    wraps : tuple of Op
        The sum, the check and the cast around the log-densities, outermost first.
    """

    term: Tensor
    density: Apply
    wraps: tuple[Op, ...]

    @classmethod
    def of(cls, term: Variable) -> "RowGroup | None":
        """What `term` is the sum of, or None."""
        wraps: list[Op] = []
        var, conditions = term, []
        while var.owner is not None:
            match var.owner.op:
                case Sum() if not wraps:
                    pass
                case CheckParameterValue() if len(wraps) == 1:
                    conditions = var.owner.inputs[1:]
                case Elemwise(scalar_op=Cast()):
                    pass
                case MvNormalLogp() if wraps and var.owner.outputs[0] is var:
                    rows = cls(term, var.owner, tuple(wraps))
                    return rows if rows.are_alike(conditions) else None
                case _:
                    return None
            wraps.append(var.owner.op)
            var = var.owner.inputs[0]
        return None

    @property
    def value(self) -> Tensor:
        """Shape (rows, n)."""
        return self.density.inputs[0]

    @property
    def key(self) -> tuple:
        """Equal for groups that can be joined."""
        return (
            self.density.op.param,
            self.wraps,
            self.value.type.shape[1],
            *(inp.type.dtype for inp in self.density.inputs),
        )

    def are_alike(self, conditions) -> bool:
        """Whether the rows share one matrix, and the only check is that of the matrix."""
        value, mu, matrix = self.density.inputs
        if value.type.ndim != 2 or self.term.type.ndim or None in (value.type.shape[1],):
            return False
        if mu.type.ndim > 2 or matrix.type.shape[:-2] not in ((), (1,)):
            return False
        if mu.type.ndim == 2 and value.type.shape[0] == 1 != mu.type.shape[0]:
            return False
        return all(is_all(condition, self.density.outputs[1]) for condition in conditions)


def is_all(condition: Variable, posdef: Variable) -> bool:
    """Whether `condition` is ``all(posdef)``."""
    match condition.owner_op_and_inputs:
        case (ScalarFromTensor(), inner):
            return is_all(inner, posdef)
        case (All(axis=None) | All(axis=(0,)), inner):
            return inner is posdef
    return False


def join(groups: list[RowGroup]) -> Tensor:
    """The sum of all groups as one density."""
    values = [group.value for group in groups]
    lengths = [value.type.shape[0] for value in values]
    if None in lengths:
        group_of_row = pt.repeat(pt.arange(len(groups)), pt.stack([v.shape[0] for v in values]))
    else:
        group_of_row = pt.constant(np.repeat(np.arange(len(groups)), lengths))
    mus: list[Tensor] = [group.density.inputs[1] for group in groups]
    if all(is_shared(mu) for mu in mus):
        mu = pt.stack([mu[0] if mu.type.ndim == 2 else mu for mu in mus])[group_of_row]
    else:
        mu = pt.join(0, *map(broadcast_rows, mus, values))
    matrices: list[Tensor] = [group.density.inputs[2] for group in groups]
    stack = pt.stack([matrix if matrix.type.ndim == 2 else matrix[0] for matrix in matrices])
    density = groups[0].density.op
    logp, posdef = density(pt.join(0, *values), mu, stack[group_of_row], return_list=True)
    total: Tensor = logp
    for op in reversed(groups[0].wraps):
        conditions = [posdef.all()] if isinstance(op, CheckParameterValue) else []
        total = op(total, *conditions)
    return total


def is_shared(mu: Tensor) -> bool:
    """Whether all rows have one mean."""
    return mu.type.ndim == 1 or mu.type.shape[0] == 1


def broadcast_rows(mu: Tensor, value: Tensor) -> Tensor:
    """`mu` with as many rows as `value`."""
    return pt.broadcast_to(mu, value.shape) if is_shared(mu) else mu
