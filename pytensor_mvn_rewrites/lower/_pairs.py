"""What the backends share: which nodes they can lower, and which of them belong together.

A density and its pullback on the same inputs need the same factorization. One lowered node for both
computes it once.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from pytensor.graph.basic import Apply, Variable

from pytensor_mvn_rewrites.ops.gaussian import GaussianOp

#: Kinds of dtypes that kernels accept, as NumPy's ``dtype.kind``
REAL_KINDS = "biuf"


class Family(Protocol):
    """An op and its pullback."""

    @property
    def forward_op(self) -> type[GaussianOp]: ...

    @property
    def pullback_op(self) -> type[GaussianOp]: ...


def find_pairs[F: Family](
    fgraph, families: Iterable[F]
) -> Iterator[tuple[F, Apply | None, Apply | None]]:
    """Yield (family, forward node or None, pullback node or None), forward nodes paired first.

    Nodes are paired when their forward inputs are the same variables and no cycle arises.

    Parameters
    ----------
    fgraph : FunctionGraph
    families : iterable of Family
        What the backend can lower.
    """
    family_of = {
        op: family for family in families for op in (family.forward_op, family.pullback_op)
    }
    nodes = [node for node in fgraph.toposort() if type(node.op) in family_of]
    forwards: dict[tuple, Apply] = {}
    for node in nodes:
        family = family_of[type(node.op)]
        if isinstance(node.op, family.forward_op) and is_lowerable(node):
            forwards.setdefault((family, node.op.param, *node.inputs), node)

    # a merged forward node also waits for the cotangents of its pullback
    waits_for: dict[Apply, list[Variable]] = {}
    for node in nodes:
        family = family_of[type(node.op)]
        if isinstance(node.op, family.forward_op) or not is_lowerable(node):
            continue
        n_forward = len(family.forward_op.core_ndims)
        key = (family, node.op.param, *node.inputs[:n_forward])
        forward, cotangents = forwards.get(key), node.inputs[n_forward:]
        if forward in waits_for or (
            forward is not None and depends_on(cotangents, forward, waits_for)
        ):
            forward = None
        if forward is not None:
            waits_for[forward] = cotangents
        yield family, forward, node
    for node in nodes:
        family = family_of[type(node.op)]
        if isinstance(node.op, family.forward_op) and node not in waits_for and is_lowerable(node):
            yield family, node, None


def depends_on(variables, node: Apply, waits_for: dict[Apply, list[Variable]]) -> bool:
    """Whether `variables` need `node`, given that merged nodes also need other variables."""
    stack, seen = list(variables), set()
    while stack:
        owner = stack.pop().owner
        if owner is None or owner in seen:
            continue
        if owner is node:
            return True
        seen.add(owner)
        stack += owner.inputs
        stack += waits_for.get(owner, ())
    return False


def is_lowerable(node: Apply) -> bool:
    """Real inputs whose core sizes are not known to differ."""
    dtypes = [np.dtype(inp.type.dtype) for inp in node.inputs]
    return all(dtype.kind in REAL_KINDS and dtype != np.float16 for dtype in dtypes) and (
        len(core_sizes(node.inputs, node.op.core_ndims)) <= 1
    )


def core_sizes(inputs, core_ndims) -> set[int]:
    """The statically known core sizes; more than one is an error that the reference reports."""
    return {
        size
        for inp, core in zip(inputs, core_ndims, strict=True)
        for size in inp.type.shape[inp.type.ndim - core :]
        if size is not None
    }
