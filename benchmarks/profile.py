"""Where the time of the loop model goes: the nodes of its compiled function, and the time of each.

    python -m benchmarks.profile            # N = 1000 vectors of length 3, a minute
    python -m benchmarks.profile 100 10

PyTensor's profiler does not see inside of a function that Numba has compiled. Here each node of the
compiled graph becomes a function of its own, which is called with what the nodes before it have
computed. Its time includes that of a call, which the function of the model pays only once: the
time of the cheapest node is taken for it, and subtracted. What is left of a view or a scalar is
the object that Python gets, which the nodes of one function do not make.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytensor
from pytensor.compile.io import In
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Apply, Constant
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.linalg import Cholesky, Eigh, SolveTriangular
from rich.console import Console
from rich.table import Table

from benchmarks import models
from pytensor_mvn_rewrites.lower.numba_backend import NumbaGaussianOp
from pytensor_mvn_rewrites.ops.gaussian import GaussianOp

#: Compile a node as it is
AS_IT_IS = Mode(linker="numba", optimizer=None)

#: What factorizes a matrix, or solves with a factor
FACTORIZING = (NumbaGaussianOp, GaussianOp, Cholesky, Eigh, SolveTriangular)


@dataclass(frozen=True)
class NodeTime:
    """A node of a compiled graph.

    Attributes
    ----------
    node : Apply
    seconds : float
        Of one call of the node alone.
    outputs : list
        What it computes.
    """

    node: Apply
    seconds: float
    outputs: list

    @property
    def factorizes(self) -> bool:
        """Whether the node factorizes matrices, or solves with factors."""
        op = self.node.op
        return isinstance(op.core_op if isinstance(op, Blockwise) else op, FACTORIZING)


def node_times(function, arguments: Sequence, mode=AS_IT_IS) -> Iterator[NodeTime]:
    """Evaluate a compiled function node by node.

    Parameters
    ----------
    function : compiled PyTensor function
    arguments : sequence of array
    mode : Mode
        How to compile each node.
    """
    graph = function.maker.fgraph
    known = {
        variable: container.data
        for variable, container in zip(graph.inputs, function.input_storage, strict=True)
    }
    known |= dict(zip(graph.inputs, arguments, strict=False))
    for node in graph.toposort():
        free = [inp for inp in dict.fromkeys(node.inputs) if not isinstance(inp, Constant)]
        dummies = {inp: inp.clone() for inp in free}
        outputs = node.op.make_node(*(dummies.get(inp, inp) for inp in node.inputs)).outputs
        alone = pytensor.function(
            # an op may destroy its input: it gets a copy
            [In(dummy, mutable=True, borrow=True) for dummy in dummies.values()],
            outputs,
            mode=mode,
            accept_inplace=True,
        )
        copies = [np.array(known[inp]) if np.ndim(known[inp]) else known[inp] for inp in free]
        results = [np.array(out) if np.ndim(out) else out for out in alone(*copies)]
        known |= zip(node.outputs, results, strict=True)
        alone.trust_input = True
        yield NodeTime(node, seconds_of(alone, copies), results)


def seconds_of(function, arguments, batch_seconds: float = 0.02, batches: int = 7) -> float:
    """Seconds of one call: the shortest mean over a batch."""
    start = time.process_time()
    function(*arguments)
    once = max(time.process_time() - start, 1e-7)
    n_calls = max(1, round(batch_seconds / once))
    means = []
    for _ in range(batches):
        start = time.process_time()
        for _ in range(n_calls):
            function(*arguments)
        means.append((time.process_time() - start) / n_calls)
    return min(means)


def compiled_loop(n: int, q: int):
    """The function of the loop model that samplers call, and its argument."""
    from pymc.blocking import DictToArrayBijection

    import pytensor_mvn_rewrites  # noqa: F401

    model = models.loop(n, q)
    point = model.initial_point(0)
    function = model.logp_dlogp_function(ravel_inputs=True, initial_point=point)
    return function._pytensor_function, [DictToArrayBijection.map(point).data]


def table_of(times: Sequence[NodeTime], whole: float) -> Table:
    """All nodes, slowest first, and what they are together."""
    table = Table("node", "µs", "of all nodes")
    call = min(own.seconds for own in times)
    net = {own.node: own.seconds - call for own in times}
    total = sum(net.values())
    for node, seconds in sorted(net.items(), key=lambda item: -item[1]):
        table.add_row(str(node.op), f"{1e6 * seconds:.2f}", f"{seconds / total:.0%}")
    table.add_section()
    table.add_row("all nodes, one by one", f"{1e6 * total:.2f}", "100%")
    table.add_row("the whole function", f"{1e6 * whole:.2f}", "")
    table.add_row("a call", f"{1e6 * call:.2f}", "")
    return table


def main() -> None:
    """Compile the loop, and show graph and times."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("n", type=int, nargs="?", default=1000, help="number of vectors")
    parser.add_argument("q", type=int, nargs="?", default=3, help="length of each")
    options = parser.parse_args()
    console = Console()
    console.width = max(console.width, 100)

    function, arguments = compiled_loop(options.n, options.q)
    pytensor.dprint(function)
    function.trust_input = True
    whole = seconds_of(function, arguments)
    times = list(node_times(function, arguments))
    console.print(table_of(times, whole))
    found = [str(own.node.op) for own in times if own.factorizes]
    console.print(f"Nodes that factorize matrices, or solve with factors: {len(found)}")
    for name in found:
        console.print(f"    {name}", highlight=False, markup=False)


if __name__ == "__main__":
    main()
