"""Generated loop models: whatever the loop holds, the rewritten graph has the same numbers.

The log-density is rewritten as PyMC does before it takes the gradient; both are then evaluated node
by node at a random point and compared with those of the graph as PyMC wrote it.
"""

from dataclasses import dataclass

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymc.logprob.utils import local_check_parameter_to_ninf_switch
from pymc.pytensorf import rewrite_pregrad
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import dfs_rewriter

import pytensor_mvn_rewrites as mvn
from tests.harness import REFERENCE_MODE, assert_close, spd

MEANS = ["zero", "constant", "shared", "indexed", "expression", "own", "previous", "integers"]
MATRICES = ["constant", "shared", "scaled", "indexed scale", "own scale", "data", "expression"]


@dataclass(frozen=True)
class Loop:
    """One loop over MvNormals; `odd` is the position of a term of another size, if any."""

    terms: int
    size: int
    mean: str
    matrix: str
    param: str
    observed: bool
    dims: bool
    dtype: str
    order: tuple[int, ...]
    odd: int | None
    seed: int


@st.composite
def loops(draw):
    terms = draw(st.integers(2, 6))
    return Loop(
        terms=terms,
        size=draw(st.integers(1, 4)),
        mean=draw(st.sampled_from(MEANS)),
        matrix=draw(st.sampled_from(MATRICES)),
        param=draw(st.sampled_from(["cov", "chol", "tau"])),
        observed=draw(st.booleans()),
        dims=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float64", "float64", "float32", "int64"])),
        order=tuple(draw(st.permutations(range(terms)))),
        odd=draw(st.none() | st.integers(0, terms - 1)),
        seed=draw(st.integers(0, 2**20)),
    )


def build(specs) -> pm.Model:
    """The model of several loops that share `scale`."""
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        for name, spec in zip("abc", specs, strict=False):
            add_loop(model, name, spec, scale)
    return model


def add_loop(model, name, spec, scale) -> None:
    rng = np.random.default_rng(spec.seed)
    n, q = spec.terms, spec.size
    model.add_coord(f"{name}_term", np.arange(n))
    model.add_coord(f"{name}_feature", np.arange(q))
    kind = np.float32 if spec.dtype == "float32" else np.float64
    matrices = spd(rng, n, n=q).astype(kind)
    if spec.param == "chol":
        matrices = np.linalg.cholesky(matrices)
    means = rng.normal(size=(n, q)).astype(kind)
    rows = rng.normal(size=(n, q))
    values = rng.integers(0, 5, size=(n, q)) if spec.dtype == "int64" else rows.astype(kind)
    shape = {"dims": (f"{name}_term", f"{name}_feature")} if spec.dims else {"shape": (n, q)}
    common = pm.Normal(f"{name}_mu", **shape)
    scales = pm.HalfNormal(f"{name}_scales", shape=n)
    data = pm.Data(f"{name}_matrices", matrices) if spec.matrix == "data" else None
    previous = None
    for i in spec.order:
        size = max(1, q - 1) if i == spec.odd else q
        mean = {
            "zero": lambda size: np.zeros(size),
            "constant": lambda size, i=i: means[i, :size],
            "shared": lambda size: common[0, :size],
            "indexed": lambda size, i=i: common[i, :size] if size < q else common[i],
            "expression": lambda size, i=i: pt.tanh(common[i, :size]) * means[i, :size] + scale,
            "own": lambda size, i=i: pm.Normal(f"{name}_mu_{i}", shape=size),
            "previous": lambda size, prev=previous: (
                np.zeros(size) if prev is None or prev.type.shape != (size,) else 0.5 * prev
            ),
            "integers": lambda size, i=i: np.arange(i, i + size),
        }[spec.mean](size)
        block = matrices[i, :size, :size]
        matrix = {
            "constant": lambda block=block: block,
            "shared": lambda size=size: matrices[0, :size, :size],
            "scaled": lambda block=block: scale * block,
            "indexed scale": lambda i=i, size=size: scales[i] * matrices[0, :size, :size],
            "own scale": lambda i=i, block=block: pm.HalfNormal(f"{name}_scale_{i}") * block,
            "data": lambda i=i, size=size: data[i] if size == q else data[i, :size, :size],
            "expression": lambda i=i, block=block, size=size: (
                pt.diag(pt.exp(0.1 * common[i, :size])) @ block
                if spec.param == "chol"
                else block + pt.outer(common[i, :size], common[i, :size]) + np.eye(size)
            ),
        }[spec.matrix]()
        keywords = {"observed": values[i, :size]} if spec.observed else {}
        if not spec.observed:
            if spec.dims and size == q:
                keywords["dims"] = f"{name}_feature"
            else:
                keywords["shape"] = size
        previous = pm.MvNormal(f"{name}_x_{i}", mu=mean, **{spec.param: matrix}, **keywords)


def logp_and_gradient(model, logp):
    """Evaluated node by node, failing parameter checks as -inf."""
    gradient = pytensor.grad(logp, model.value_vars)
    fgraph = FunctionGraph(outputs=[logp, *gradient], clone=True, copy_inputs=False)
    dfs_rewriter(local_check_parameter_to_ninf_switch).rewrite(fgraph)
    return pytensor.function(
        model.value_vars, list(fgraph.outputs), mode=REFERENCE_MODE, on_unused_input="ignore"
    )


def check(specs) -> None:
    model = build(specs)
    on = logp_and_gradient(model, rewrite_pregrad(model.logp()))
    with mvn.disable():
        off = logp_and_gradient(model, model.logp())
    rng = np.random.default_rng(specs[0].seed)
    start = model.initial_point()
    point = [
        start[v.name] + 0.3 * rng.normal(size=np.shape(start[v.name])) for v in model.value_vars
    ]
    single = any(spec.dtype == "float32" for spec in specs)
    dtype = "float32" if single else "float64"
    for i, (got, want) in enumerate(zip(on(*point), off(*point), strict=True)):
        assert np.isfinite(want).all()
        assert_close(got, want, "gradient" if i else "value", dtype, condition=1e2)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(loops(), min_size=1, max_size=2))
def test_generated_models(specs):
    check(specs)
