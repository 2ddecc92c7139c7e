"""What is constant: computed from constants alone."""

from typing import cast

import numpy as np
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.traversal import ancestors
from pytensor.tensor.basic import Alloc, get_underlying_scalar_constant_value
from pytensor.tensor.exceptions import NotScalarConstantError
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.rewriting.basic import unconditional_constant_folding


def constant_value(var: Variable) -> np.ndarray | None:
    """The value of a graph that is made of constants alone, or None.

    A shared variable is no constant: it is data, the length of a dimension, another variable of a
    step method. Nor is a random draw, or what PyTensor itself would not fold. Cost: that of one
    evaluation.
    """
    if isinstance(var, Constant):
        return np.asarray(var.data)
    if var.owner is None or any(map(_may_change, ancestors([var]))):
        return None
    fgraph = FunctionGraph(outputs=[var], clone=True)
    nodes = fgraph.toposort()
    if not all(_may_be_folded(fgraph, node) for node in nodes):
        return None
    for node in nodes:
        try:
            folded = unconditional_constant_folding.transform(fgraph, node)
        except Exception:
            # it fails, as it will when the compiled function gets there
            return None
        if not folded:
            return None
        fgraph.replace_all(list(zip(node.outputs, folded, strict=True)), import_missing=True)
    [result] = fgraph.outputs
    return np.asarray(cast(Constant, result).data)


def _may_change(var: Variable) -> bool:
    is_input = var.owner is None and not isinstance(var, Constant)
    return is_input or isinstance(var.type, RandomType)


def _may_be_folded(fgraph: FunctionGraph, node: Apply) -> bool:
    """Whether evaluating `node` now has no effect but its value: no print, no failing check."""
    if node.op.destroy_map:
        return False
    # PyTensor keeps an `Alloc` for the rewrites that look for it, not for what it does
    return isinstance(node.op, Alloc) or node.op.do_constant_folding(fgraph, node)


def scalar_constant(var: Variable) -> float | None:
    """The number that `var` repeats, or None."""
    try:
        value = get_underlying_scalar_constant_value(var, raise_not_constant=True)
    except NotScalarConstantError:
        return None
    return float(value) if value.dtype.kind in "iufb" else None
