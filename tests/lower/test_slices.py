import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.basic import Join, MakeVector
from pytensor.tensor.subtensor import AdvancedSubtensor

import pytensor_mvn_rewrites as mvn
from pytensor_mvn_rewrites.lower.slices import join_slices
from tests.harness import PIPELINE_MODE, assert_leaves, compiled_beside_a_density

X = pt.vector("x", shape=(20,))
Y = pt.vector("y", shape=(20,))
VALUES = [np.arange(20.0), -np.arange(20.0)]


def stacked(*parts):
    return pt.join(0, *[pt.expand_dims(part, 0) for part in parts])


def matrices(*bounds):
    return [X[a : a + 4].reshape((2, 2)) for a in bounds]


#: Graph, and whether the slices lie one after the other
TAKEN = {
    "adjacent": (pt.join(0, X[2:5], X[5:9]), True),
    "from the start, to the end": (pt.join(0, X[:5], X[5:]), True),
    "apart": (pt.join(0, X[2:5], X[7:9], X[12:13]), False),
    "by steps": (pt.join(0, X[2:8:2], X[8::3]), False),
    "gathers": (pt.join(0, X[np.array([2, 0, 7])], X[5:8]), False),
    "overlapping": (pt.join(0, X[2:5], X[3:6]), False),
    "backwards": (pt.join(0, X[5:9], X[2:5]), False),
    "stacked": (stacked(X[2:5], X[5:8], X[8:11]), True),
    "stacked, apart": (stacked(X[2:5], X[6:9], X[10:13]), False),
    "stacked matrices": (stacked(*matrices(1, 5, 9)), True),
    "joined matrices, apart": (pt.join(0, *matrices(1, 6, 12)), False),
    "scalars": (pt.stack([X[3], X[4], X[5], X[6]]), True),
    "scalars, apart": (pt.stack([X[3], X[9], X[6]]), False),
    "scalars by slices": (pt.stack([X[3:4].reshape(()), X[7:8].reshape(())]), False),
}


def compiled(graph, inputs=(X, Y)):
    # a copy, so that the output is no view that other rewrites look through
    return compiled_beside_a_density(inputs, [pt.exp(graph)], PIPELINE_MODE)


def count(fgraph, *ops):
    return sum(isinstance(node.op, ops) for node in fgraph.apply_nodes)


@pytest.mark.parametrize("name", TAKEN)
def test_one_slice_or_gather(name):
    graph, adjacent = TAKEN[name]
    fgraph = FunctionGraph(outputs=[graph], clone=True)
    join_slices(fgraph)
    assert not count(fgraph, Join, MakeVector)
    assert count(fgraph, AdvancedSubtensor) == (not adjacent)
    fn = compiled(graph)
    assert not count(fn.fgraph, Join, MakeVector)
    with mvn.disable():
        np.testing.assert_array_equal(fn(*VALUES)[0], compiled(graph)(*VALUES)[0])


def test_neighbours_among_others():
    """What lies between pieces of other vectors stays where it is."""
    graph = pt.join(0, Y[:2], X[2:5], X[5:9], Y[3:4], X[1:2])
    fn = compiled(graph)
    [join] = [node for node in fn.fgraph.apply_nodes if isinstance(node.op, Join)]
    assert len(join.inputs) == 4
    with mvn.disable():
        np.testing.assert_array_equal(fn(*VALUES)[0], compiled(graph)(*VALUES)[0])


i = pt.iscalar("i")
NEAR_MISSES = {
    "one piece": pt.join(0, X[2:5], pt.exp(X[5:9])),
    "of different vectors": pt.join(0, X[2:5], Y[5:8]),
    "backwards by steps": pt.join(0, X[8:2:-2], X[14:8:-2]),
    "other axis": pt.join(1, *matrices(1, 5)),
    "scalars of different vectors": pt.stack([X[3], Y[4]]),
    "one scalar computed": pt.stack([X[3], X[4], pt.exp(X[5])]),
    "unknown bounds": pt.join(0, X[2:i], X[i:9]),
    "transposed": pt.join(0, *[matrix.T for matrix in matrices(1, 5)]),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_declines(name):
    fgraph = FunctionGraph(outputs=[NEAR_MISSES[name]], clone=True)
    assert_leaves(join_slices, fgraph)


def test_a_vector_that_is_too_short_raises():
    x = pt.vector("x")
    parts = [pt.specify_shape(x[a : a + 3], 3) for a in (0, 3)]
    fn = compiled(stacked(*parts), [x])
    assert not count(fn.fgraph, Join)
    assert fn(np.zeros(6))[0].shape == (2, 3)
    with pytest.raises((ValueError, AssertionError)):
        fn(np.zeros(5))
