"""The flag ``mvn_rewrites__verify``: each replacement is evaluated before and after, as it is made.

Both graphs are evaluated node by node, without any rewrite, at random inputs: the values of a PyMC
model are unconstrained, so that its matrices are what they should be; of other graphs, square
matrices are positive definite, lower triangular where they are tagged so, and all else positive.
Shared variables have their values. Lengths that types do not know are tried out. A replacement goes
unchecked, which is logged, where the graph as it was raises or is not finite at all of these, holds
random variables, or relies on what is declared of the inputs. Kernels are not what is compared, but
what they stand for: that is for ``verify``.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytensor
from pytensor.compile.mode import Mode
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import dfs_rewriter
from pytensor.graph.traversal import ancestors
from pytensor.scalar.basic import ScalarType
from pytensor.tensor.type import TensorType

from pytensor_mvn_rewrites.config import forced_here

_logger = logging.getLogger(__name__)

#: What may differ, relative to the largest entry: the inputs are well conditioned.
RTOL = {"float64": 1e-7, "float32": 1e-2, "float16": 1e-1}

#: How many points with a finite value are looked at.
N_POINTS = 2


class RewriteDiffersError(AssertionError):
    """A rewrite changed numbers. PyTensor lets assertion errors of rewrites pass."""


def check_rewrite(name: str, old: Sequence[Variable], new: Sequence[Variable]) -> None:
    """Raise :class:`RewriteDiffersError` where `new` has other values than `old`."""
    from pymc.logprob.utils import local_check_parameter_to_ninf_switch

    graph = list(ancestors([*old, *new]))
    inputs = [
        var for var in graph if var.owner is None and not isinstance(var, Constant | SharedVariable)
    ]
    if reason := _why_not(graph, inputs):
        _logger.info("The rewrite %s goes unchecked: %s", name, reason)
        return
    fgraph = FunctionGraph(outputs=[*old, *new], clone=True, copy_inputs=False)
    dfs_rewriter(local_check_parameter_to_ninf_switch).rewrite(fgraph)
    mode: Any = Mode(linker="py", optimizer=None)  # type: ignore[arg-type]
    found = 0
    with forced_here(False), np.errstate(all="ignore"):
        function = pytensor.function(inputs, fgraph.outputs, mode=mode, on_unused_input="ignore")
        for values in _points(inputs, graph):
            try:
                results = function(*values)
            except Exception as error:
                # lengths that do not fit, or a rewrite that fails where the graph did not
                _logger.debug("The rewrite %s: %s", name, error)
                continue
            before, after = results[: len(old)], results[len(old) :]
            found += _compare(name, before, after)
            if found == N_POINTS:
                return
    if not found:
        _logger.info("The rewrite %s goes unchecked: there is no finite value", name)


def _why_not(graph: Sequence[Variable], inputs: Sequence[Variable]) -> str:
    from pymc.logprob.abstract import MeasurableOp
    from pytensor.tensor.random.op import RNGConsumerOp

    ops = {type(var.owner.op) for var in graph if var.owner is not None}
    if any(issubclass(op, RNGConsumerOp | MeasurableOp) for op in ops):
        return "it holds random variables"
    if any("Assum" in op.__name__ for op in ops):
        return "it relies on what is declared"
    if not all(isinstance(var.type, TensorType | ScalarType) for var in inputs):
        return "there are no random values of its inputs"
    return ""


def _points(inputs: Sequence[Any], graph: Sequence[Any]) -> Iterator[list[Any]]:
    """Random values of the inputs, for lengths that are found in the graph."""
    rng = np.random.default_rng(len(graph))
    known = {n for var in graph for n in getattr(var.type, "shape", ())} - {None, 0, 1}
    unknown = any(None in getattr(var.type, "shape", ()) for var in inputs)
    for is_proper in (False, True):
        for length in sorted(known | {2, 3})[:8] if unknown else [1, 1]:
            yield [_draw(rng, var, length, is_proper=is_proper) for var in inputs]


def _draw(rng, var: Any, length: int, *, is_proper: bool) -> Any:
    dtype = var.type.dtype
    shape = [length if n is None else n for n in getattr(var.type, "shape", ())]
    if not dtype.startswith("float"):
        return rng.integers(2, size=shape).astype(dtype)
    value = 0.3 * rng.normal(size=shape)
    if is_proper and len(shape) > 1 and shape[-1] == shape[-2]:
        value = value @ np.swapaxes(value, -1, -2) + np.eye(shape[-1])
        if getattr(var.tag, "lower_triangular", False):
            value = np.linalg.cholesky(value)
    elif is_proper:
        value = np.exp(value)
    return np.asarray(value, dtype=dtype)


def _compare(name: str, before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Whether the values before are finite; if they are, compare."""
    if not all(np.isfinite(old).all() for old in before):
        return False
    for old, new in zip(map(np.asarray, before), map(np.asarray, after), strict=True):
        tolerance = RTOL.get(str(old.dtype), 0.0) * max(1.0, float(abs(old).max(initial=0.0)))
        if old.shape != new.shape or not np.all(abs(old - 1.0 * new) <= tolerance):
            raise RewriteDiffersError(
                f"The rewrite {name!r} changes numbers: {old} became {new}. Leave its stage out by "
                "pytensor.config.mvn_rewrites__skip, and please report this."
            )
    return True
