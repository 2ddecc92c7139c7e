import pytensor.tensor as pt
import pytest
from pytensor.graph.fg import FunctionGraph

from pytensor_mvn_rewrites.reroll.partial_sums import sums_of_parts_are_one_sum
from tests.harness import assert_leaves, assert_same_numbers

x, m = pt.vector("x", shape=(6,)), pt.matrix("m", shape=(6, 2))
unknown = pt.vector("unknown")
y = pt.vector("y", shape=(6,))

WHOLE = {
    "numbers": (sum(x[i] for i in range(6)), 1),
    "slices": (x[:2].sum() + x[2:3].sum() + x[3:].sum(), 1),
    "in any order, with others": (x[3:].sum() + pt.exp(y[0]) + x[2] + x[:2].sum(), 1),
    "from the end": (x[0] + x[-5:-1].sum() + x[-1], 1),
    "rows of a matrix": (m[0].sum() + m[1:].sum(), 1),
    "of two": (x[:3].sum() + y[:1].sum() + x[3:].sum() + y[1:].sum(), 2),
    "not all": (x[1:3].sum() + x[3:5].sum(), 1),
    "an empty part": (x[:3].sum() + x[3:3].sum() + x[3:].sum(), 1),
}

NEAR_MISSES = {
    "a gap": x[:2].sum() + x[3:].sum(),
    "an overlap": x[:4].sum() + x[3:].sum(),
    "one twice": x[:3].sum() + x[:3].sum(),
    "of unknown length": unknown[:2].sum() + unknown[2:].sum(),
    "backwards": x[2::-1].sum() + x[3:].sum(),
    "every second": x[::2].sum() + x[1::2].sum(),
    "a part of a sum": m[:3].sum(axis=0) + m[3:].sum(axis=0),
    "columns": m[:, :1].sum() + m[:, 1:].sum(),
    "not summed": m[0] + m[1],
    "index that varies": x[pt.iscalar("i")] + x[1:].sum(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole(name, rng):
    graph, n_sums = WHOLE[name]
    fgraph = FunctionGraph(outputs=[graph], clone=True, copy_inputs=False)
    sums_of_parts_are_one_sum(fgraph)
    [new] = fgraph.outputs
    assert len([n for n in fgraph.apply_nodes if type(n.op).__name__ == "Sum"]) == n_sums
    values = {x: rng.normal(size=6), y: rng.normal(size=6), m: rng.normal(size=(6, 2))}
    used = {var: value for var, value in values.items() if var in fgraph.inputs}
    assert_same_numbers([graph], [new], used)


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss(name):
    assert_leaves(
        sums_of_parts_are_one_sum,
        FunctionGraph(outputs=[NEAR_MISSES[name]], clone=True, copy_inputs=False),
    )
