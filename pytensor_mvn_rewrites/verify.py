"""``verify``: rewritten and unrewritten log-density and gradient at random points."""

from dataclasses import dataclass

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.logprob.utils import local_check_parameter_to_ninf_switch
from pytensor.compile.mode import Mode
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import dfs_rewriter, node_rewriter

from pytensor_mvn_rewrites.config import forced_here


@dataclass(frozen=True)
class Verification:
    """Largest differences that :func:`verify` found.

    Attributes
    ----------
    points : int
        Number of points at which the two were compared.
    logp, gradient : float
        Largest difference, relative to the larger of 1 and the size of the unrewritten value.
        NaN and infinities count as equal to themselves and as infinitely far from anything else.
    tolerance : float
        What `ok` compares them with.
    """

    points: int
    logp: float
    gradient: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether both differences are within the tolerance."""
        return max(self.logp, self.gradient) <= self.tolerance

    def __str__(self) -> str:
        verdict = "agrees with" if self.ok else "DIFFERS from"
        return (
            f"the rewritten graph {verdict} the unrewritten one at {self.points} points: "
            f"log-density {self.logp:.1e}, gradient {self.gradient:.1e} "
            f"(relative, tolerance {self.tolerance:.0e})"
        )

    __repr__ = __str__


def verify(
    model: pm.Model,
    *,
    points: int = 5,
    spread: float = 0.3,
    tolerance: float = 1e-9,
    random_seed: int | None = 0,
    mode: str | Mode | None = None,
) -> Verification:
    """Compare the rewritten log-density and gradient of a model with the unrewritten ones.

    The unrewritten graph is evaluated node by node, without any rewrite and without compiling, so
    that it can be had for loops that would compile for hours.

    Parameters
    ----------
    model : pymc.Model
    points : int
        Number of random points, drawn around the model's initial point.
    spread : float
        Standard deviation of the draws, on the unconstrained scale.
    tolerance : float
        Largest relative difference that counts as agreement.
    random_seed : int, optional
    mode : str or Mode, optional
        PyTensor mode of the rewritten function; PyTensor's default mode if not given.

    Returns
    -------
    Verification
        Prints as one sentence; its attribute ``ok`` says whether all differences are within the
        tolerance.

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> from pytensor.compile.mode import Mode
    >>> with pm.Model() as model:
    ...     for n in range(3):
    ...         x = pm.MvNormal(f"x_{n}", mu=np.full(2, n), cov=np.eye(2))
    >>> verify(model, mode=Mode(linker="py", optimizer="fast_run")).ok
    True
    """
    inputs = model.value_vars
    wrt = model.continuous_value_vars
    rewritten = model.compile_fn([model.logp(), model.dlogp()], inputs=inputs, mode=mode)
    with forced_here(False):
        reference = _unrewritten(model, inputs, wrt)
    rng = np.random.default_rng(random_seed)
    start = model.initial_point()
    worst_logp = worst_gradient = 0.0
    for _ in range(points):
        point = {
            var.name: start[var.name] + spread * rng.normal(size=np.shape(start[var.name]))
            if var in wrt
            else start[var.name]
            for var in inputs
        }
        logp, gradient = rewritten(point)
        reference_logp, *reference_gradient = reference(*[point[var.name] for var in inputs])
        flat = np.concatenate([[], *[np.ravel(part) for part in reference_gradient]])
        worst_logp = max(worst_logp, relative_difference(logp, reference_logp))
        worst_gradient = max(worst_gradient, relative_difference(gradient, flat))
    return Verification(points, worst_logp, worst_gradient, tolerance)


def _unrewritten(model, inputs, wrt):
    """Log-density and gradient as PyMC writes them, evaluated by Python node by node."""
    logp = model.logp()
    # a constant to start from: ones_like(logp) would make every gradient depend on the whole graph
    one = {logp: pt.ones((), dtype=logp.type.dtype)}
    gradient = pytensor.grad(None, wrt, known_grads=one, disconnected_inputs="ignore")
    outputs = [logp, *gradient]
    fgraph = FunctionGraph(outputs=outputs, clone=True, copy_inputs=False)
    # what a check returns in a compiled PyMC model, and sums that Python's linker can evaluate
    dfs_rewriter(local_check_parameter_to_ninf_switch, _split_wide_sum).rewrite(fgraph)
    mode = Mode(linker="py", optimizer=None)
    return pytensor.function(inputs, list(fgraph.outputs), mode=mode, on_unused_input="ignore")


@node_rewriter([pt.add])
def _split_wide_sum(fgraph, node):
    """add(x_1, ..., x_N) -> sums of sums: NumPy's functions take at most 32 arrays."""
    width, terms = 16, node.inputs
    if len(terms) <= width:
        return None
    while len(terms) > 1:
        parts = [terms[i : i + width] for i in range(0, len(terms), width)]
        terms = [pt.add(*part) if len(part) > 1 else part[0] for part in parts]
    return terms


def relative_difference(value, reference) -> float:
    """Largest difference relative to max(1, |reference|); 0 between equal NaN or infinities."""
    value, reference = np.asarray(value, dtype=float), np.asarray(reference, dtype=float)
    if value.size == 0 and reference.size == 0:
        return 0.0
    same = (value == reference) | (np.isnan(value) & np.isnan(reference))
    with np.errstate(invalid="ignore"):
        difference = np.abs(value - reference) / np.maximum(1.0, np.abs(reference))
    return float(np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference)).max())
