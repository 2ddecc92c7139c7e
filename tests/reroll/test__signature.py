"""Equal signatures mean equal structure."""

import numpy as np
import pytensor.tensor as pt
import pytest

from pytensor_mvn_rewrites.ops import mvnormal_logp
from pytensor_mvn_rewrites.reroll._signature import Signatures, group_by_surface

x, y, z = pt.vector("x", shape=(4,)), pt.vector("y", shape=(4,)), pt.vector("z")
i, j = pt.lscalar("i"), pt.lscalar("j")

SAME = {
    "other leaves": (pt.exp(x), pt.exp(y)),
    "other constants": (x * np.arange(4.0), x * np.ones(4)),
    "other indices": (x[0], x[3]),
    "other variable indices": (x[i], x[j]),
    "other integers in arithmetic": (x * np.arange(4), x * np.ones(4, dtype="int64")),
    "commuted": (pt.exp(x) * y, y * pt.exp(x)),
    "commuted sums": (pt.add(pt.exp(x), pt.sin(x), y), pt.add(y, pt.sin(y), pt.exp(y))),
    "parts of one split": tuple(pt.split(x, [2, 2])),
}

DIFFERENT = {
    "another op": (pt.exp(x), pt.log(x)),
    "another type": (pt.exp(x), pt.exp(z)),
    "a leaf and a constant": (pt.exp(x), pt.exp(pt.constant(np.ones(4)))),
    "another output": tuple(pt.linalg.slogdet(pt.matrix())),
    "another axis": (pt.matrix("A", shape=(3, 3)).sum(0), pt.matrix("B", shape=(3, 3)).sum(1)),
    "another shape": (x.reshape((2, 2)), x.reshape((4, 1))),
    "another length": (pt.alloc(x[0], 3), pt.alloc(x[0], 4)),
    "not commutative": (pt.exp(x) - y, y - pt.exp(x)),
    "another kind of index": (x[:2], x[1:]),
    "a constant of another dtype": (x * np.float32(1.5), x * np.float64(1.5)),
}


@pytest.mark.parametrize("name", SAME)
def test_same(name):
    first, second = SAME[name]
    signatures = Signatures()
    assert signatures(first) == signatures(second)


@pytest.mark.parametrize("name", DIFFERENT)
def test_different(name):
    first, second = DIFFERENT[name]
    signatures = Signatures()
    assert signatures(first) != signatures(second)


def test_anchored_signatures_stop_at_densities():
    first = mvnormal_logp(x, pt.exp(y), np.eye(4))[0]
    second = mvnormal_logp(x, pt.sin(y) + 1.0, np.eye(4))[0]
    assert Signatures()(first) != Signatures()(second)
    anchored = Signatures(anchored=True)
    assert anchored(first) == anchored(second)


def test_deep_graphs():
    """The walk does not recurse, and visits each node once though it is reached in many ways."""
    first, second = x, y
    for _ in range(5000):
        first, second = pt.sin(first) * first, pt.sin(second) * second
    signatures = Signatures()
    assert signatures(first) == signatures(second)


def test_groups():
    terms = [pt.exp(x), x, pt.sin(x), pt.exp(y), pt.constant(1.0), pt.sin(y), pt.cos(y)]
    assert group_by_surface(terms) == [[0, 3], [2, 5], [6]]


@pytest.mark.parametrize("name", [name for name in SAME if name != "parts of one split"])
def test_equal_signatures_have_equal_surfaces(name):
    first, second = SAME[name]
    assert group_by_surface([pt.exp(first), pt.exp(second)]) == [[0, 1]]
