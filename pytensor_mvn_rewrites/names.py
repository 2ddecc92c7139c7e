"""What is where in a graph, by the names that a user gave it."""

import re
from collections.abc import Iterable, Mapping

from pymc.util import get_untransformed_name, is_transformed_name
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph

from pytensor_mvn_rewrites.flops import is_linear_algebra, op_name

#: PyMC names the log-density of a value by it and this
SUFFIX = "_logprob"

#: How far clients are followed
MAX_NODES = 1000


def collapsed(names: Iterable[str]) -> str:
    """Names as a text, those that differ in their numbers only by the first and the last.

    >>> collapsed([*(f"x_{n}" for n in range(5000)), "y", "z"])
    'x_0 ... x_4999, y, z'
    """
    families: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        families.setdefault(re.sub(r"\d+", "0", name), []).append(name)
    for own in families.values():
        own.sort(key=lambda name: [*map(int, re.findall(r"\d+", name))])
    parts = [
        f"{own[0]} ... {own[-1]}" if len(own) > 2 else ", ".join(own) for own in families.values()
    ]
    if len(parts) > 5:
        parts = [*parts[:4], f"{len(parts) - 4} more"]
    return ", ".join(parts)


def densities_of(fgraph: FunctionGraph, node: Apply) -> list[str]:
    """The variables whose log-densities a node is part of, as far as those still have a name."""
    found: dict[str, None] = {}
    seen: set[Variable] = set()
    left = list(node.outputs)
    while left and len(seen) < MAX_NODES:
        var = left.pop()
        if var in seen:
            continue
        seen.add(var)
        if var.name and var.name.endswith(SUFFIX):
            found[untransformed(var.name.removesuffix(SUFFIX))] = None
        else:
            left += [out for client, _ in fgraph.clients.get(var, ()) for out in client.outputs]
    return sorted(found)


def untransformed(name: str) -> str:
    """The name of the variable of a value."""
    return get_untransformed_name(name) if is_transformed_name(name) else name


def inputs_of(node: Apply) -> list[str]:
    """The names of what a node is computed from, down to the first names."""
    found: dict[str, None] = {}
    seen: set[Variable] = set()
    left = list(node.inputs)[::-1]
    while left and len(seen) < MAX_NODES:
        var = left.pop()
        if var in seen:
            continue
        seen.add(var)
        if var.name and var.owner is None:
            found[untransformed(var.name)] = None
        elif var.owner is not None:
            left += var.owner.inputs[::-1]
    return list(found)


def new_linear_algebra(fgraph: FunctionGraph, result) -> list[str]:
    """The ops of linear algebra that `result`, the replacements of a rewriter, brings."""
    found: dict[str, None] = {}
    seen: set[Apply] = set()
    left = list(result.values() if isinstance(result, Mapping) else result)
    while left:
        var = left.pop()
        node = getattr(var, "owner", None)
        if node is None or node in fgraph.apply_nodes or node in seen:
            continue
        seen.add(node)
        if is_linear_algebra(node):
            found[op_name(node)] = None
        left += node.inputs
    return list(found)
