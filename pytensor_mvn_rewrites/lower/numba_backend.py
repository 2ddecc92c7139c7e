"""MvNormalLogp, InvQuadLogdet and their pullbacks -> the ops that have Numba kernels.

This module holds the rewrite and the lowered ops, and does not import Numba: the kernels in
``lower.numba`` load when the rewrite finds something to lower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
from pytensor.compile.rewriting import inline_ofg_node
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.rewriting.basic import MergeOptimizer
from pytensor.link.numba.linker import NumbaLinker
from pytensor.raise_op import CheckAndRaise
from pytensor.scalar.basic import Cast
from pytensor.tensor.basic import Alloc
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.math import All, Sum

from pytensor_mvn_rewrites.graph import Tensor
from pytensor_mvn_rewrites.lower._groups import RowGroups, find_row_groups
from pytensor_mvn_rewrites.lower._lowered import LoweredOp, compiles_for
from pytensor_mvn_rewrites.lower._pairs import core_sizes, find_pairs
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp
from pytensor_mvn_rewrites.ops.gaussian import DensityOp, FusedOp, KernelOp, PullbackOp, sum_to_type
from pytensor_mvn_rewrites.pipeline import lower


@dataclass(frozen=True)
class BatchLayout:
    """How the batch axes of the operands fit together.

    Each batch axis has a letter: ``M``, along which the matrix varies; ``R``, whose rows share a
    matrix; ``1``, of length one. Core axes have none.

    Attributes
    ----------
    joint : str
        The batch axes of the forward outputs, such as ``"M"`` or ``"RM"``.
    operands : tuple of str
        The batch axes of each input; ``1`` where the input is broadcast along the axis. Rows in
        groups have the joint axis ``R``; along ``M``, operands have one entry for each group, and
        the last operand is an index that says for each row which entry is its own.
    """

    joint: str
    operands: tuple[str, ...]

    @classmethod
    def of(cls, inputs: Sequence[Variable], core_ndims: Sequence[int]) -> "BatchLayout":
        """Read the layout off the static shapes: what is not statically 1 is not broadcast."""
        lengths = [
            inp.type.shape[: inp.type.ndim - core]
            for inp, core in zip(inputs, core_ndims, strict=True)
        ]
        matrix = lengths[list(core_ndims).index(2)]
        joint = ""
        for axis in range(-max(map(len, lengths)), 0):
            varying = [own for own in lengths if len(own) >= -axis and own[axis] != 1]
            joint += "1" if not varying else "M" if matrix in varying else "R"
        operands = tuple(
            "".join(
                "1" if length == 1 else letter
                for length, letter in zip(own, joint[len(joint) - len(own) :], strict=True)
            )
            for own in lengths
        )
        return cls(joint, operands)

    @classmethod
    def of_groups(cls, inputs, core_ndims, gathered: Sequence[bool]) -> "BatchLayout":
        """The layout of rows in groups, where some inputs have one entry for each group."""
        operands = []
        for inp, core, is_gathered in zip(inputs, core_ndims, gathered, strict=True):
            lengths = inp.type.shape[: inp.type.ndim - core]
            axes = ("M" if is_gathered else "1" if length == 1 else "R" for length in lengths)
            operands.append("".join(axes))
        return cls("R", tuple(operands))

    @property
    def is_grouped(self) -> bool:
        """Whether rows are in groups, by an index."""
        return "M" not in self.joint and any("M" in own for own in self.operands)

    @property
    def is_canonical(self) -> bool:
        """Whether a kernel can loop over it: at most one axis of each letter."""
        return self.joint.count("M") <= 1 and self.joint.count("R") <= 1


class NumbaGaussianOp(LoweredOp):
    """Base of the lowered ops: value and gradient from one factorization, in a Numba kernel.

    Inputs are those of the reference op, followed by the cotangents of its pullback if a gradient
    is among the outputs, and by the index where rows are in groups. There is no fallback: a graph
    that holds this op runs the kernel. Other linkers run the reference graph, uncompiled.

    Parameters
    ----------
    param : {"cov", "chol", "tau"}
    outputs : tuple of str
        The wanted outputs, in the order of `all_outputs`, sums first.
    n : int or None
        Core size, None where it is not known statically.
    layout : BatchLayout
    """

    __props__ = ("param", "outputs", "n", "layout")
    backend = "pytensor_mvn_rewrites.lower.numba"

    #: The op that this one stands for, with its pullback
    forward_op: type[DensityOp]
    forward_outputs: tuple[str, ...]
    gradient_outputs: tuple[str, ...]
    #: Sums over the batch, which take the place of a forward output
    sum_outputs: tuple[str, ...] = ()

    def __init__(self, *, param: str, outputs: tuple[str, ...], n: int | None, layout: BatchLayout):
        self.param = param
        self.outputs = outputs
        self.n = n
        self.layout = layout

    def __str__(self):
        n = "?" if self.n is None else self.n
        return f"{type(self).__name__}{{{self.param}, n={n}, {'+'.join(self.outputs)}}}"

    @property
    def all_outputs(self) -> tuple[str, ...]:
        """Names of all outputs that could be wanted."""
        return self.forward_outputs + self.gradient_outputs

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient is wanted; then the cotangents are inputs."""
        return any(name in self.outputs for name in self.gradient_outputs)

    def reference_outputs(self, inputs: Sequence[Tensor]) -> list[Variable]:
        """The wanted outputs as the reference ops compute them."""
        own = list(inputs)
        if self.layout.is_grouped:
            index = own.pop()
            own = [
                inp[index] if "M" in axes else inp
                for inp, axes in zip(own, self.layout.operands, strict=False)
            ]
        n_forward = len(self.forward_op.core_ndims)
        named = dict(
            zip(
                self.forward_outputs,
                self.forward_op(param=self.param)(*own[:n_forward], return_list=True),
                strict=True,
            )
        )
        named |= self.reference_sums(named)
        if self.has_gradient:
            grads = self.forward_op.pullback_type(param=self.param)(*own, return_list=True)
            if self.layout.is_grouped:
                grads = [
                    pt.zeros_like(inp)[index].inc(grad) if "M" in axes else grad
                    for grad, inp, axes in zip(grads, inputs, self.layout.operands, strict=False)
                ]
            named |= zip(self.gradient_outputs, grads, strict=True)
        return [named[name] for name in self.outputs]

    def reference_sums(self, forward: dict[str, Variable]) -> dict[str, Variable]:
        """The `sum_outputs`, given the forward outputs by name."""
        return {}

    def make_node(self, *inputs):
        """Inputs of any real dtype; the outputs have the types of the reference."""
        inputs = [pt.as_tensor_variable(inp) for inp in inputs]
        return Apply(self, inputs, [out.type() for out in self.reference_outputs(inputs)])

    def infer_shape(self, node, shapes):
        """Forward outputs have the joint batch shape, gradients the shapes of their inputs."""
        joint = [
            next(
                (
                    shape[axis + len(own)]
                    for shape, own in zip(shapes, self.layout.operands, strict=True)
                    if len(own) >= -axis and own[axis] == letter
                )
            )
            for axis, letter in enumerate(self.layout.joint, start=-len(self.layout.joint))
        ]
        named = dict.fromkeys(self.forward_outputs, tuple(joint))
        named |= dict.fromkeys(self.sum_outputs, ())
        named |= zip(self.gradient_outputs, shapes, strict=False)
        return [named[name] for name in self.outputs]


class NumbaMvNormalLogp(NumbaGaussianOp):
    """:class:`~.ops.MvNormalLogp` and its pullback in one kernel.

    A model needs the sum of the log-densities only: ``logp_sum``, or ``checked_logp_sum``, where a
    matrix that is not positive definite counts as minus infinity. The kernel then takes one
    logarithm for many matrices.
    """

    forward_op = MvNormalLogp
    forward_outputs = ("logp", "posdef")
    sum_outputs = ("logp_sum", "checked_logp_sum")
    gradient_outputs = ("dvalue", "dmu", "dmatrix")

    def reference_sums(self, forward):
        """The sums, in double precision whatever the log-densities are in."""
        logp, posdef = forward["logp"].astype("float64"), forward["posdef"]
        return {
            "logp_sum": logp.sum(),
            "checked_logp_sum": pt.switch(posdef, logp, -np.inf).sum(),
        }


class NumbaInvQuadLogdet(NumbaGaussianOp):
    """:class:`~.ops.InvQuadLogdet` and its pullback in one kernel."""

    forward_op = InvQuadLogdet
    forward_outputs = ("quaddist", "half_logdet", "posdef")
    gradient_outputs = ("ddelta", "dmatrix")


LOWERED_OPS: dict[type[DensityOp], type[NumbaGaussianOp]] = {
    cls.forward_op: cls for cls in (NumbaMvNormalLogp, NumbaInvQuadLogdet)
}


@lower("numba")
def lower_to_numba(fgraph):
    """MvNormalLogp, its pullback or both on the same inputs -> one NumbaMvNormalLogp.

    The same for InvQuadLogdet. Cost: one factorization instead of two. A pair whose cotangent
    depends on the forward outputs stays two nodes: one would be a cycle.

    With matrices ``batch[index]``, and gradients that are scattered to zeros at `index` again, the
    op takes `batch` and `index`: one factorization for each of the G matrices instead of one for
    each of the R rows, and nothing of size R n^2. The same with means ``batch[index]`` and a matrix
    for all rows, and then nothing of size R n but the rows themselves.
    """
    if not compiles_for(fgraph, NumbaLinker):
        return
    inline_formulas(fgraph)
    pairs = list(find_pairs(fgraph, LOWERED_OPS))
    if not pairs and not any(isinstance(node.op, KernelOp) for node in fgraph.apply_nodes):
        return
    # registers the kernels
    import pytensor_mvn_rewrites.lower.numba  # noqa: F401

    for density, forward, pullback in pairs:
        replacements = lowered(fgraph, LOWERED_OPS[density], forward, pullback)
        # each replacement leaves a correct graph behind
        fgraph.replace_all(replacements, reason="mvn_lower_to_numba")


def inline_formulas(fgraph) -> None:
    """Ops of structured covariances -> their formulas, where no kernel covers them."""
    ops = [(node, node.op) for node in fgraph.toposort() if isinstance(node.op, FusedOp)]
    nodes = [node for node, op in ops if op.is_inlined and not has_kernel(node)]
    inline(fgraph, nodes)
    if nodes:
        MergeOptimizer().rewrite(fgraph)


def inline(fgraph, nodes: Sequence[Apply]) -> None:
    """Nodes of fused ops -> their formulas."""
    for node in nodes:
        replacements = zip(node.outputs, inline_ofg_node(node), strict=True)
        fgraph.replace_all(list(replacements), reason="mvn_inline_formulas")


def has_kernel(node: Apply) -> bool:
    """Whether a kernel of structured covariances covers a node.

    They do double precision, and batch dimensions of vectors only: at most one, that of delta.
    """
    core_ndims = node.op.core_ndims  # type: ignore[attr-defined]
    batches = [
        inp.type.broadcastable[: inp.type.ndim - core]
        for inp, core in zip(node.inputs, core_ndims, strict=True)
    ]
    is_vector = core_ndims[0] == 1
    rows = batches.pop(0) if is_vector else ()
    cotangents = [batches.pop(), batches.pop()] if isinstance(node.op, PullbackOp) else []
    return (
        isinstance(node.op, KernelOp)
        and all(inp.type.dtype == "float64" for inp in node.inputs)
        and len(rows) <= 1
        and not any(batches)
        # the rows are those of delta, which a cotangent cannot add to
        and all(own in (rows, (True,) * len(rows)) for own in cotangents)
    )


def lowered(fgraph, cls: type[NumbaGaussianOp], forward: Apply | None, pullback: Apply | None):
    """(Old output, lowered output) of every output that has clients."""
    old: dict[str, Variable] = {}
    if forward is not None:
        old |= zip(cls.forward_outputs, forward.outputs, strict=True)
    if pullback is not None:
        old |= zip(cls.gradient_outputs, pullback.outputs, strict=True)
    node = forward or pullback
    assert node is not None, "a group holds at least one node"
    rewrap = None
    if forward is not None and (found := find_sum(fgraph, cls, forward)):
        name, total, rewrap = found
        del old["logp"]
        old[name] = total
        if name == "checked_logp_sum" and only_client(fgraph, forward.outputs[1]):
            # its only client goes away with the sum
            del old["posdef"]
    old = {name: out for name, out in old.items() if fgraph.clients.get(out)}
    names = (*cls.sum_outputs, *cls.forward_outputs, *cls.gradient_outputs)
    wanted = tuple(name for name in names if name in old)
    if not wanted:
        return []
    n_forward = len(cls.forward_op.core_ndims)
    if pullback is not None and any(name in cls.gradient_outputs for name in wanted):
        inputs = list(pullback.inputs)
        core_ndims = cls.forward_op.pullback_type.core_ndims
        inputs[n_forward:] = [
            scalar_if_constant(inp, inputs[:n_forward], core_ndims[:n_forward])
            for inp in inputs[n_forward:]
        ]
    else:
        inputs = list(node.inputs[:n_forward])
        core_ndims = cls.forward_op.core_ndims
    param = node.op.param  # type: ignore[attr-defined]
    gradients = {k: old[name] for k, name in enumerate(cls.gradient_outputs) if name in old}
    groups = find_row_groups(fgraph, inputs, core_ndims, gradients)
    outputs = (
        apply_lowered(cls, param, wanted, inputs, core_ndims)
        if groups is None
        else apply_grouped(cls, param, wanted, inputs, core_ndims, groups)
    )
    new: dict[str, Tensor] = dict(zip(wanted, outputs, strict=True))
    if groups is not None:
        for k in groups.scatters:
            name = cls.gradient_outputs[k]
            old[name], new[name] = groups.gradient(k, new[name])
        if groups.shared in gradients:
            name = cls.gradient_outputs[groups.shared]
            new[name] = new[name].sum(0)
    if rewrap is not None:
        new["logp_sum"] = rewrap(new["logp_sum"])
    return [(out, matched_type(new[name], out)) for name, out in old.items()]


def find_sum(
    fgraph, cls: type[NumbaGaussianOp], forward: Apply
) -> tuple[str, Variable, Callable[[Variable], Variable] | None] | None:
    """The sum over the batch that is all that is wanted of the log-densities.

    Returns its name among the `sum_outputs`, the variable, and what makes it of the output of that
    name, if anything. It is found in four forms: ``sum(logp)``, ``sum(switch(posdef, logp, -inf))``
    and, with one condition for all, ``sum(switch(all(posdef), logp, -inf))`` and
    ``sum(check(logp, condition))``. Under float32 PyMC casts `logp` to float64 first.
    """
    if not cls.sum_outputs:
        return None
    logp, posdef = forward.outputs
    client = only_client(fgraph, logp)
    if client is not None and is_cast_to_float64(client):
        [logp] = client.outputs
        client = only_client(fgraph, logp)
    name = "logp_sum"
    rewrap: Callable[[Variable], Variable] | None = None
    if client is not None and client.op == pt.switch:
        # no other client, and no broadcasting, which would repeat the terms
        checked, term, otherwise = client.inputs
        is_inf = isinstance(otherwise, Constant) and np.all(otherwise.data == -np.inf)
        if term is not logp or not is_inf or not all(otherwise.type.broadcastable):
            return None
        if checked is posdef:
            name = "checked_logp_sum"
        else:
            condition = condition_for_all(checked, posdef)
            if condition is None:
                return None

            def rewrap(total):
                return pt.switch(condition, total, -np.inf)

        client = only_client(fgraph, client.outputs[0])
    elif client is not None and isinstance(client.op, CheckAndRaise):
        term, *conditions = client.inputs
        if term is not logp or any(condition.type.ndim for condition in conditions):
            return None
        check = client.op

        def rewrap(total):
            return check(total, *conditions)

        client = only_client(fgraph, client.outputs[0])
    if client is None or not isinstance(client.op, Sum):
        return None
    [total] = client.outputs
    sums_all = client.op.axis is None or len(client.op.axis) == logp.type.ndim
    if not sums_all or not logp.type.ndim or total.type.dtype not in ("float32", "float64"):
        return None
    return name, total, rewrap


def is_cast_to_float64(node: Apply) -> bool:
    """Whether a node changes the dtype and nothing else."""
    is_cast = isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, Cast)
    return is_cast and node.outputs[0].type.dtype == "float64"


def only_client(fgraph, variable: Variable) -> Apply | None:
    """The node that uses a variable, if it is the only one."""
    clients = fgraph.clients.get(variable, ())
    return clients[0][0] if len(clients) == 1 else None


def condition_for_all(condition: Variable, posdef: Variable) -> Variable | None:
    """``all(posdef)``, of no dimensions, if `condition` is that, broadcast over the batch."""
    if condition.owner is not None and isinstance(condition.owner.op, DimShuffle):
        [condition] = condition.owner.inputs
    if condition.type.ndim or condition.owner is None or not isinstance(condition.owner.op, All):
        return None
    return condition if condition.owner.inputs[0] is posdef else None


def matched_type(new: Tensor, old: Variable) -> Variable:
    """Restore the dtype of a sum, and static dimensions that the new variable does not know."""
    new = pt.cast(new, old.type.dtype)
    if old.type.is_super(new.type):
        return new
    return pt.specify_shape(new, old.type.shape)


def scalar_if_constant(cotangent: Variable, forward_inputs, core_ndims) -> Variable:
    """A cotangent that is one number everywhere -> that number, as the gradient of a sum is.

    Declines unless the forward inputs span its batch axes: they would lose their length.
    """
    spanned = {
        axis
        for inp, core in zip(forward_inputs, core_ndims, strict=True)
        for axis in range(core - inp.type.ndim, 0)
        if inp.type.shape[axis - core] != 1
    }
    axes = range(-cotangent.type.ndim, 0)
    if not all(cotangent.type.shape[axis] == 1 or axis in spanned for axis in axes):
        return cotangent
    if isinstance(cotangent, Constant) and cotangent.data.size:
        first = cotangent.data.flat[0]
        if np.all(cotangent.data == first):
            return pt.constant(first, dtype=cotangent.type.dtype)
    elif cotangent.owner is not None and isinstance(cotangent.owner.op, Alloc):
        fill = cotangent.owner.inputs[0]
        if all(length == 1 for length in fill.type.shape):
            return fill.squeeze() if fill.type.ndim else fill
    return cotangent


def apply_lowered(cls, param, wanted, inputs, core_ndims) -> list[Variable]:
    """Apply the lowered op, through a reshape to one ``M`` and one ``R`` axis if there are more."""
    layout = BatchLayout.of(inputs, core_ndims)
    if not layout.is_canonical:
        return apply_reshaped(cls, param, wanted, inputs, core_ndims, layout)
    n = next(iter(core_sizes(inputs, core_ndims)), None)
    op = cls(param=param, outputs=wanted, n=n, layout=layout)
    return op(*inputs, return_list=True)


def apply_grouped(cls, param, wanted, inputs, core_ndims, groups: RowGroups) -> list[Variable]:
    """Apply the lowered op to the rows of groups."""
    own = [groups.batches.get(k, inp) for k, inp in enumerate(inputs)]
    gathered = [k in groups.batches for k in range(len(inputs))]
    n = next(iter(core_sizes(inputs, core_ndims)), None)
    layout = BatchLayout.of_groups([*own, groups.index], [*core_ndims, 0], [*gathered, False])
    op = cls(param=param, outputs=wanted, n=n, layout=layout)
    return op(*own, groups.index, return_list=True)


def apply_reshaped(cls, param, wanted, inputs, core_ndims, layout) -> list[Variable]:
    """Merge all ``M`` axes into one and all ``R`` axes into one, apply, and undo the merge."""
    ndim = len(layout.joint)
    by_letter = [[k for k in range(ndim) if layout.joint[k] == letter] for letter in "MR1"]
    order = [axis for axes in by_letter for axis in axes]
    lengths = [joint_length(inputs, layout, axis - ndim) for axis in range(ndim)]

    def merge(inp, core):
        missing = ndim - (inp.type.ndim - core)
        inp = pt.expand_dims(inp, axis=tuple(range(missing)))
        spans = [inp.type.shape[axis] != 1 for axis in range(ndim)]
        core_shape = tuple(inp.shape)[ndim:]
        # an input that spans some axes of a letter only is repeated along the others
        full = [
            lengths[axis] if any(spans[other] for other in axes) else 1
            for axes in by_letter
            for axis in axes
        ]
        inp = inp.transpose(*order, *range(ndim, ndim + core))
        inp = pt.broadcast_to(inp, (*full, *core_shape))
        merged = [
            pt.prod([lengths[axis] for axis in axes]) if any(spans[axis] for axis in axes) else 1
            for axes in by_letter[:2]
        ]
        return inp.reshape((*merged, *core_shape)), full

    merged, full_shapes = zip(
        *(merge(inp, core) for inp, core in zip(inputs, core_ndims, strict=True)), strict=True
    )
    inverse = [order.index(axis) for axis in range(ndim)]

    def split(out, shape):
        core = out.type.ndim - 2
        core_shape = tuple(out.shape)[2:]
        return out.reshape((*shape, *core_shape)).transpose(*inverse, *range(ndim, ndim + core))

    outputs = []
    lowered_outputs = apply_lowered(cls, param, wanted, merged, core_ndims)
    for name, out in zip(wanted, lowered_outputs, strict=True):
        if name in cls.sum_outputs:
            outputs.append(out)
        elif name in cls.forward_outputs:
            outputs.append(split(out, [lengths[axis] for axis in order]))
        else:
            i = cls.gradient_outputs.index(name)
            outputs.append(sum_to_type(split(out, full_shapes[i]), inputs[i], core_ndims[i]))
    return outputs


def joint_length(inputs, layout: BatchLayout, axis: int):
    """Length of a joint batch axis, counted from the right, as a symbol."""
    for inp, own in zip(inputs, layout.operands, strict=True):
        if len(own) >= -axis and own[axis] != "1":
            return inp.shape[axis + len(own)]
    return 1
