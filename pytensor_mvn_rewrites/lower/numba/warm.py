"""Which kernels are worth compiling before there is a model."""

from itertools import product

from pytensor_mvn_rewrites.lower.numba.formulas import LaneSpec
from pytensor_mvn_rewrites.lower.numba.lanes import LANES_MAX_N, STRAIGHT_MAX_N

#: Gradients by value, mean and matrix, of each matrix its own: observed or latent vectors with a
#: mean or without, of a covariance that is constant or not
LANES = [
    ("none", "own", "none"),
    ("none", "own", "own"),
    ("own", "none", "none"),
    ("own", "none", "own"),
    ("own", "own", "own"),
]
#: The same of rows that share a mean and a matrix
ROWS = [("none", "sum", "sum"), ("own", "none", "sum")]


def kernel_names(n: int) -> list[str]:
    """Names of the kernels that models with vectors of length `n` are likely to call."""
    names = ["small", "large"]
    if not 1 <= n <= LANES_MAX_N:
        return names
    size = n if n <= STRAIGHT_MAX_N else 0
    kinds = [("lanes", gradients) for gradients in LANES]
    kinds += [("rows", gradients) for gradients in ROWS if size]
    for (kind, gradients), param in product(kinds, ("cov", "chol")):
        names.append(LaneSpec(kind, "sum", param, size, *gradients).name)
    names.append(LaneSpec("lanes", "quad", "chol", size, "own", "none", "none").name)
    return names
