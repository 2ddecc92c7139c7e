import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import Constant
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.basic import scalar_from_tensor

from pytensor_mvn_rewrites.lower.scalars import fold_scalars
from tests.harness import assert_leaves, evaluate

S = pt.scalar("s")


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)], ids=["scalar", "vector", "tensor"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_a_constant_is_a_scalar(shape, dtype):
    constant = pt.constant(np.full(shape, 3, dtype))
    one = scalar_from_tensor(constant.squeeze() if shape else constant)
    fgraph = FunctionGraph([S.clone()], [pt.tensor_from_scalar(one)], clone=False)
    fold_scalars(fgraph)
    [node] = fgraph.apply_nodes
    [folded] = node.inputs
    assert isinstance(folded, Constant)
    assert folded.type.dtype == dtype
    assert evaluate(fgraph.outputs, {})[0] == 3


def test_equal_scalars_are_one():
    """What is computed from equal constants is computed once."""
    ones = [scalar_from_tensor(pt.constant(np.ones((1,) * n)).squeeze()) for n in (1, 2)]
    s = S.clone()
    differences = [one - scalar_from_tensor(s) for one in ones]
    fgraph = FunctionGraph([s], [pt.tensor_from_scalar(d) for d in differences], clone=False)
    fold_scalars(fgraph)
    assert fgraph.outputs[0] is fgraph.outputs[1]
    assert evaluate(fgraph.outputs, {s: 3.0})[0] == -2


@pytest.mark.parametrize(
    "tensor", [S, S[None].squeeze(), pt.exp(S)], ids=["input", "squeezed", "computed"]
)
def test_declines(tensor):
    fgraph = FunctionGraph(outputs=[pt.tensor_from_scalar(scalar_from_tensor(tensor))], clone=True)
    assert_leaves(fold_scalars, fgraph)
