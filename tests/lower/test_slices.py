import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.pytensorf import join_nonshared_inputs, rewrite_pregrad
from pytensor.compile.mode import get_mode
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.basic import Join, MakeVector
from pytensor.tensor.subtensor import AdvancedSubtensor

import pytensor_mvn_rewrites as mvn
from benchmarks.models import forum_answer
from pytensor_mvn_rewrites.lower.numba_backend import NumbaGaussianOp
from pytensor_mvn_rewrites.lower.slices import join_at_once, join_slices
from pytensor_mvn_rewrites.ops import inv_quad_logdet
from tests.harness import (
    PIPELINE_MODE,
    REFERENCE_MODE,
    assert_leaves,
    compiled_beside_a_density,
)

V = pt.vector("v")
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
    "counted from the end": (pt.join(0, X[-9:-5], X[-5:]), True),
    "clipped": (pt.join(0, X[12:18], X[18:30]), True),
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
    "of unknown length": pt.join(0, V[0:3], V[5:10]),
    "of unknown length, adjacent": pt.join(0, V[0:3], V[3:10]),
    "of unknown length, in rows": pt.join(0, *[V[a : a + 4].reshape((2, -1)) for a in (0, 4)]),
    "of unknown length, another is shorter": pt.join(0, V[np.array([5, 2])], V[5:8]),
    "of unknown length, in a stack": stacked(V[0:3], V[3:6]),
    "of unknown length, in a stack of unknown length": pt.join(
        0, V[0:6].reshape((-1, 3)), Y[:3][None]
    ),
    "joined to fewer": pt.specify_shape(pt.join(0, V[4:6], V[6:8]), 3),
    "rows, their number": pt.specify_shape(stacked(V[4:6], V[6:8]), (2, None)),
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


def test_rows_that_are_joined_to_a_row_of_known_length():
    """A shorter row would be an error."""
    fgraph = FunctionGraph([V], [stacked(V[6:10], V[:4], np.zeros(4))], clone=True)
    join_slices(fgraph)
    [join] = [node for node in fgraph.apply_nodes if isinstance(node.op, Join)]
    assert len(join.inputs) == 2


SURE = {
    "vectors": lambda x: pt.join(0, x[:3].reshape((3,)), x[5:10].reshape((5,))),
    "vectors, adjacent": lambda x: pt.join(0, *[pt.specify_shape(x[a : a + 5], 5) for a in (0, 5)]),
    "matrices": lambda x: pt.join(0, x[:4].reshape((2, 2)), x[6:10].reshape((2, 2))),
    "scalars": lambda x: pt.stack([x[2:3].squeeze(0), x[9]]),
    "a later one is sure": lambda x: pt.join(0, x[0:3], x[np.array([5, 9])]),
    "one of a stack is sure": lambda x: stacked(x[6:10], x[:4].reshape((4,))),
    "vectors, their join": lambda x: pt.specify_shape(pt.join(0, x[4:7], x[7:10]), 6),
    "rows, their stack": lambda x: pt.specify_shape(stacked(x[4:7], x[7:10]), (2, 3)),
    "vectors, reshaped": lambda x: pt.join(0, x[4:7], x[7:10]).reshape((3, 2)),
    "gather of slices": lambda x: pt.join(0, x[np.array([0, 7])], x[np.array([9, 2])]),
}


@pytest.mark.parametrize("name", SURE)
def test_joined_only_if_a_shorter_vector_is_an_error(name):
    """And it stays one, which a gather under Numba is not."""
    fgraph = FunctionGraph([V], [SURE[name](V)], clone=True)
    join_slices(fgraph)
    assert not count(fgraph, Join, MakeVector)
    fn, reference = (
        pytensor.function([x], out, mode=REFERENCE_MODE)
        for x, out in ((*fgraph.inputs, *fgraph.outputs), (V, SURE[name](V)))
    )
    np.testing.assert_array_equal(fn(np.arange(12.0)), reference(np.arange(12.0)))
    for short in (np.arange(9.0), np.arange(2.0)):
        for each in (fn, reference):
            with pytest.raises((ValueError, AssertionError, IndexError)):
                each(short)
    gathers = [node for node in fgraph.apply_nodes if isinstance(node.op, AdvancedSubtensor)]
    assert all(node.inputs[0].type.shape != (None,) for node in gathers)


@pytest.mark.parametrize("length", [3, 7, 12])
def test_slices_that_a_short_vector_clips(length):
    """What Python makes of ``x[5:10]`` where there are only 7 entries."""
    fn = compiled(pt.join(0, V[0:3], V[5:10]), [V])
    x = np.linspace(-1, 1, length)
    np.testing.assert_allclose(fn(x)[0], np.exp([*x[0:3], *x[5:10]]))


def test_point_and_gradient_before_all_other_rewrites():
    """The graph is one of a batch when PyTensor's first rewrite looks at it."""
    n, point = 20, pt.vector("point", shape=(60,))
    values = [point[3 * i : 3 * i + 3].reshape((3,)) for i in range(n)]
    x = pt.join(0, *values).reshape((n, 3))
    quaddist, *_ = inv_quad_logdet(x, np.broadcast_to(np.eye(3), (n, 3, 3)).copy())
    gradient = pt.join(0, *[grad.ravel() for grad in pt.grad(quaddist.sum(), values)])
    fgraph = FunctionGraph([point], [gradient], clone=False)
    assert len(fgraph.apply_nodes) > 3 * n
    join_at_once(fgraph)
    assert len(fgraph.apply_nodes) < 20
    assert count(fgraph, Join) == 0
    numbers = np.arange(60.0)
    np.testing.assert_allclose(
        pytensor.function([point], fgraph.outputs[0], mode=REFERENCE_MODE)(numbers), 2 * numbers
    )


def test_a_density_and_its_gradient_stay_one_node():
    """What is written twice is joined once: else the two would not have the same inputs."""
    model = forum_answer(rows=5)
    logp = rewrite_pregrad(model.logp())
    gradient = pt.concatenate([part.ravel() for part in pt.grad(logp, model.value_vars)])
    outputs, point = join_nonshared_inputs(
        model.initial_point(), [logp, gradient], model.value_vars
    )
    fgraph = FunctionGraph([point], outputs, clone=True)
    mode = get_mode("NUMBA").excluding("fusion", "fuse_indexed_into_elemwise", "inplace")
    mode.optimizer.rewrite(fgraph)
    [node] = [node for node in fgraph.apply_nodes if isinstance(node.op, NumbaGaussianOp)]
    assert {"quaddist", "ddelta"} <= set(node.op.outputs)
