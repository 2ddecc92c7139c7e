"""What the backends share: which nodes they can lower, and which of them belong together.

A density and its pullback on the same inputs need the same factorization. One lowered node for both
computes it once.
"""

from collections.abc import Collection, Iterator

import numpy as np
from pytensor.graph.basic import Apply, Variable

from pytensor_mvn_rewrites.ops.gaussian import DensityOp

#: Kinds of dtypes that kernels accept, as NumPy's ``dtype.kind``
REAL_KINDS = "biuf"


def find_pairs(
    fgraph, ops: Collection[type[DensityOp]]
) -> Iterator[tuple[type[DensityOp], Apply | None, Apply | None]]:
    """Yield (op, forward node or None, pullback node or None), forward nodes paired first.

    Nodes are paired when their forward inputs are the same variables and no cycle arises.

    Parameters
    ----------
    fgraph : FunctionGraph
    ops : collection of type
        What the backend can lower, together with their pullbacks.
    """
    density_of = {op.pullback_type: op for op in ops}
    nodes = [node for node in fgraph.toposort() if type(node.op) in {*ops, *density_of}]
    nodes = [node for node in nodes if is_lowerable(node)]
    forwards: dict[tuple, Apply] = {}
    for node in nodes:
        if type(node.op) in ops:
            forwards.setdefault((type(node.op), node.op.param, *node.inputs), node)

    # a merged forward node also waits for the cotangents of its pullback
    waits_for: dict[Apply, list[Variable]] = {}
    for node in nodes:
        if type(node.op) in ops:
            continue
        density = density_of[type(node.op)]
        n_forward = len(density.core_ndims)
        key = (density, node.op.param, *node.inputs[:n_forward])
        forward, cotangents = forwards.get(key), node.inputs[n_forward:]
        if forward in waits_for or (
            forward is not None and depends_on(cotangents, forward, waits_for)
        ):
            forward = None
        if forward is not None:
            waits_for[forward] = cotangents
        yield density, forward, node
    for node in nodes:
        if type(node.op) in ops and node not in waits_for:
            yield type(node.op), node, None


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
