"""Batches that are rows of a smaller batch."""

import numpy as np
import pytensor.tensor as pt
import pytest

from pytensor_mvn_rewrites.structure._gathers import gathered
from tests.harness import assert_close, evaluate, spd

G, N = 4, 3
INDEX = np.array([2, 0, 0, 3, 1, 2, 2])
T, U = pt.tensor3("T", shape=(G, N, N)), pt.tensor3("U", shape=(G, N, N))
LARGER = pt.tensor3("LARGER", shape=(G + 2, N, N))
UNKNOWN, OTHER = pt.tensor3("UNKNOWN"), pt.tensor3("OTHER")
S, v = pt.matrix("S", shape=(N, N)), pt.matrix("v", shape=(G, N))
scale = pt.vector("scale", shape=(G,))
index = pt.vector("index", dtype="int64")

GATHERS = {
    "plain": T[INDEX],
    "symbolic index": T[index],
    "negative index": T[INDEX - G],
    "scaled": 2 * T[INDEX],
    "scaled by row": pt.exp(scale[INDEX])[:, None, None] * T[INDEX],
    "with a shared matrix": T[INDEX] + S,
    "two of one index": T[INDEX] * U[INDEX],
    "two of one symbolic index": T[index] + U[index],
    "transposed": T[INDEX].mT,
    "gram": T[INDEX] @ T[INDEX].mT,
    "factor": pt.linalg.cholesky(T[INDEX]),
    "solved": pt.linalg.solve(T[INDEX], v[INDEX], b_ndim=1),
    "solved with a shared matrix": pt.linalg.solve(S, v[INDEX], b_ndim=1),
    "stack": pt.stack([S, S.T, S + 1, 2 * S])[INDEX],
    "batches of different lengths": T[INDEX] + LARGER[INDEX],
    "lengths unknown": UNKNOWN[INDEX] * OTHER[INDEX],
    "one of unknown length": UNKNOWN[index] * S,
}


def values(rng):
    spds = {var: spd(rng, G, n=N) for var in (T, U, UNKNOWN)}
    longer = {var: spd(rng, G + 2, n=N) for var in (LARGER, OTHER)}
    vectors = {v: rng.normal(size=(G, N)), scale: rng.normal(size=G)}
    return spds | longer | vectors | {S: spd(rng, n=N), index: INDEX}


@pytest.mark.parametrize("name", GATHERS)
def test_gathered(rng, name):
    """The gather of the batch is the variable, and the batch has no more rows than it needs."""
    var = GATHERS[name]
    found = gathered(var)
    assert found is not None
    batch, rows, got, want = evaluate(
        [found.batch, found.rows, found.batch[found.rows], var], values(rng)
    )
    assert len(batch) == G
    assert rows.shape == INDEX.shape
    assert_close(got, want, "gradient", condition=100)


NOT_GATHERED = {
    "mask": T[np.array([True, False, True, True])],
    "mask of matrices": T[np.eye(G, N, dtype=bool)],
    "input": T,
    "slice": T[:3],
    "one": T[1],
    "matrix of indices": T[np.stack([INDEX, INDEX])],
    "second axis": T[:, [0, 2, 1]],
    "entries": T[INDEX, INDEX % N],
    "rows of matrices": T[INDEX, :, 0][:, None] + T[INDEX[::-1]],
    "two indices": T[INDEX] + T[INDEX[::-1]],
    "two symbolic indices": T[index] + T[2 * index],
    "with a batch of its own": T[INDEX] + pt.tensor3(shape=(len(INDEX), N, N)),
    "lengths unknown, symbolic index": UNKNOWN[index] * OTHER[index],
    "lengths unknown, counted from the end": UNKNOWN[INDEX - G] * OTHER[INDEX - G],
    "sum over the rows": T[INDEX].sum(axis=0),
    "axes exchanged": T[INDEX].transpose(1, 0, 2),
    "joined": pt.join(0, T[INDEX], T[INDEX]),
    "factor of one": pt.linalg.cholesky(S),
    "scalar": pt.exp(pt.scalar()),
}


@pytest.mark.parametrize("name", NOT_GATHERED)
def test_not_gathered(name):
    assert gathered(NOT_GATHERED[name]) is None
