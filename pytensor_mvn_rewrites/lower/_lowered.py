"""What the ops share that stand for others in the graphs of one backend."""

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from typing import ClassVar

import pytensor
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Variable
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import get_active_mode
from pytensor.link.basic import Linker


def compiles_for(fgraph, linker: type[Linker]) -> bool:
    """Whether a graph is compiled for a linker; one that no mode rewrites, in the default mode.

    The opt-in tag brings the rewrites of all backends into a mode.
    """
    return isinstance(get_active_mode(fgraph).linker, linker)


class BackendOp(Op):
    """Base of the ops that exist for one backend, whose package registers what implements them.

    The package loads with the first instance, whether a rewrite makes it or a pickle is read: a
    compiled function is linked again in the process that reads it, and no rewrite runs there.
    """

    #: The package that registers the implementations
    backend: ClassVar[str]

    def __new__(cls, *args, **kwargs):
        """Load the package."""
        import_module(cls.backend)
        return super().__new__(cls)


class LoweredOp(BackendOp):
    """Base of the ops that stand for ops with a reference graph; other linkers run that graph."""

    def reference_outputs(self, inputs: Sequence[Variable]) -> list[Variable]:
        """The outputs as the reference ops compute them."""
        raise NotImplementedError

    @cached_property
    def _reference_functions(self) -> dict:
        return {}

    def __getstate__(self):
        """The properties: functions are made anew where they are needed."""
        return {k: v for k, v in self.__dict__.items() if k != "_reference_functions"}

    def perform(self, node, inputs, output_storage):
        """Run the reference graph, uncompiled."""
        key = tuple(inp.type for inp in node.inputs)
        if key not in self._reference_functions:
            dummies = [type_() for type_ in key]
            self._reference_functions[key] = pytensor.function(
                dummies,
                self.reference_outputs(dummies),
                mode=Mode(linker="py", optimizer=None),
                on_unused_input="ignore",
            )
        results = self._reference_functions[key](*inputs)
        for storage, out in zip(output_storage, results, strict=True):
            storage[0] = out
