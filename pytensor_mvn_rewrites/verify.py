"""``verify``: the rewritten log-density and its derivatives against those that nothing rewrote."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pymc as pm
import pytensor
from pymc.initial_point import make_initial_point_fn
from pymc.pytensorf import gradient
from pytensor.compile.mode import Mode, get_mode
from rich.console import Console
from rich.progress import Progress

from pytensor_mvn_rewrites.reference import Point, Reference

#: A difference is rounding where the unrewritten graph moves as much when each number that it
#: computes is off by this
NOISE = 16 * np.finfo("float64").eps
N_NOISES = 3

#: How far edge points are from the initial point, on the unconstrained scale: exp(12) = 160 000
EDGE = 12.0


class VerificationError(AssertionError):
    """The rewritten graph of a model differs from the unrewritten one."""


@dataclass(frozen=True)
class Comparison:
    """What was compared, and the largest difference.

    Attributes
    ----------
    mode, point : str
    quantity : {"logp", "gradient", "hessian"}
        The last is a product of the Hessian with a random direction.
    difference : float
        Relative to the larger of 1 and the largest of the sums of absolute values that the
        unrewritten entries are made of, variable by variable. NaN and infinities count as equal to
        themselves and as infinitely far from anything else.
    variable : str
        The value variable whose derivative differs by that; empty for the log-density.
    rounding : float
        How much the unrewritten result itself moves when each number that is computed on the way
        is off by 16 units in the last place. Looked at where `difference` is not tolerated, else 0.
    """

    mode: str
    point: str
    quantity: str
    difference: float
    variable: str = ""
    rounding: float = 0.0

    def __str__(self) -> str:
        of = f" of {self.variable}" if self.variable else ""
        text = f"{self.quantity}{of} at {self.point} ({self.mode}): {self.difference:.1e}"
        return f"{text}, rounding of the unrewritten graph {self.rounding:.1e}"


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found; prints as a sentence, and the differences if there are any.

    Attributes
    ----------
    comparisons : tuple of Comparison
    rtol : float
        The difference that is tolerated.
    """

    comparisons: tuple[Comparison, ...]
    rtol: float

    @property
    def points(self) -> int:
        """Number of points at which the two were compared."""
        return len({found.point for found in self.comparisons})

    @property
    def differing(self) -> tuple[Comparison, ...]:
        """Comparisons whose difference is neither tolerated nor rounding, the largest first."""
        found = [c for c in self.comparisons if not c.difference <= max(self.rtol, c.rounding)]
        return tuple(sorted(found, key=lambda c: -c.difference))

    @property
    def ok(self) -> bool:
        """Whether there is no such difference."""
        return not self.differing

    def worst(self, quantity: str) -> float:
        """The largest difference of `quantity` among those that rounding does not explain."""
        return max(
            (
                c.difference
                for c in self.comparisons
                if c.quantity == quantity and not self.rtol < c.difference <= c.rounding
            ),
            default=0.0,
        )

    def check(self) -> "Verification":
        """Raise :class:`VerificationError` unless all is well."""
        if not self.ok:
            raise VerificationError(str(self))
        return self

    def __str__(self) -> str:
        verdict = "agrees with" if self.ok else "DIFFERS from"
        quantities = dict.fromkeys(c.quantity for c in self.comparisons)
        figures = ", ".join(
            f"{quantity.replace('logp', 'log-density')} {self.worst(quantity):.1e}"
            for quantity in quantities
        )
        text = (
            f"the rewritten graph {verdict} the unrewritten one at {self.points} points: {figures} "
            f"(relative, tolerance {self.rtol:.0e})"
        )
        is_rounding = (c.point for c in self.comparisons if self.rtol < c.difference <= c.rounding)
        if rounded := set(is_rounding):
            text += (
                f"\nrounding of the unrewritten graph is larger at: {', '.join(sorted(rounded))}"
            )
        return "\n  ".join([text, *map(str, self.differing[:10])])

    __repr__ = __str__


def verify(
    model: pm.Model,
    *,
    points: int | Sequence[Mapping[str, np.ndarray]] = 3,
    rtol: float = 1e-9,
    modes: str | Mode | Sequence[str | Mode] | None = None,
    hessian: bool = False,
    random_seed: int | None = 0,
    progressbar: bool = True,
) -> Verification:
    """Compare the rewritten log-density and gradient of a model with the unrewritten ones.

    The reference is what PyMC derives for each variable and each potential, without this package,
    without any rewrite of PyTensor's, evaluated node by node in Python with LAPACK. It trusts PyMC,
    the ``perform`` methods of PyTensor's ops and their gradients. Terms that are computed by the
    same ops from other values and other constants are derived once and evaluated together by
    PyTensor's ``vectorize_graph``, which is trusted for all of them if it gives for three what
    these give one by one. It does not use what the rewrites have found to be alike.

    Parameters
    ----------
    model : pymc.Model
    points : int or sequence of dict
        The number of random points around the initial point, and of draws from the prior. Four edge
        points come with them: tiny scales, large scales, scales of which some are tiny and others
        large, which makes covariances nearly singular, and large values. Or the points, as
        ``model.initial_point()`` has them.
    rtol : float
        The relative difference that is tolerated. Where it is more, it counts unless the reference
        itself moves as much by rounding, see :class:`Comparison`.
    modes : str, Mode, or sequence of them, optional
        PyTensor modes of the rewritten function, such as ``["NUMBA", "JAX"]``; the default mode if
        not given.
    hessian : bool
        Whether to compare products of the Hessian with random directions.
    random_seed : int, optional
    progressbar : bool
        Whether to show progress in a terminal.

    Returns
    -------
    Verification
        Prints as a sentence; ``ok`` says whether all is well, and ``check()`` raises if not.

    Examples
    --------
    >>> import numpy as np, pymc as pm
    >>> from pytensor.compile.mode import Mode
    >>> with pm.Model() as model:
    ...     for n in range(3):
    ...         x = pm.MvNormal(f"x_{n}", mu=np.full(2, n), cov=np.eye(2))
    >>> verify(model, modes=Mode(linker="py", optimizer="fast_run")).check().ok
    True
    """
    rng = np.random.default_rng(random_seed)
    all_modes = [modes] if isinstance(modes, str | Mode) or modes is None else list(modes)
    console = Console(stderr=True)
    hidden = not (progressbar and console.is_terminal)
    with Progress(console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("deriving the reference", total=None)
        reference = Reference(model, hessian=hessian)
        functions = {}
        for mode in all_modes:
            progress.update(task, description=f"compiling for {mode_name(mode)}")
            functions[mode_name(mode)] = _rewritten(model, hessian=hessian, mode=mode)
        if isinstance(points, int):
            named = dict(_points(model, points, rng))
        else:
            named = {f"point {k}": dict(point) for k, point in enumerate(points)}
        progress.update(task, total=len(named), description="comparing")
        comparisons = []
        for name, point in named.items():
            directions = (
                {var: rng.normal(size=np.shape(point[var])) for var in reference.wrt}
                if hessian
                else {}
            )
            comparisons += _compared(reference, functions, name, point, directions, rtol)
            progress.advance(task)
    return Verification(tuple(comparisons), rtol)


def mode_name(mode: str | Mode | None) -> str:
    """A mode by its name, or by that of its linker."""
    if isinstance(mode, str):
        return mode
    return type(get_mode(mode).linker).__name__


def _rewritten(model: pm.Model, *, hessian: bool, mode):
    """Function of a point and of directions that returns the results by quantity, raveled."""
    inputs, outputs = list(model.value_vars), [model.logp()]
    if model.continuous_value_vars:
        outputs.append(model.dlogp())
        if hessian:
            along = pytensor.tensor.vector("directions")
            inputs.append(along)
            outputs.append(gradient((outputs[1] * along).sum(), model.continuous_value_vars))
    compiled = model.compile_fn(outputs, inputs=inputs, mode=mode, on_unused_input="ignore")

    def function(point: Point, directions: Point):
        along = {"directions": _raveled(directions.values())} if directions else {}
        results = compiled({**point, **along})
        return dict(zip(("logp", "gradient", "hessian"), map(np.ravel, results), strict=False))

    return function


def _raveled(arrays) -> np.ndarray:
    return np.concatenate([np.empty(0), *map(np.ravel, arrays)])


def _compared(reference, functions, name: str, point: Point, directions: Point, rtol: float):
    """The comparisons at a point."""
    expected, sizes = reference(point, directions)
    # derivatives of an impossible point are what they are
    keys = list(expected) if np.isfinite(expected["logp", ""]) else [("logp", "")]
    shifted = None
    for mode, function in functions.items():
        results = function(point, directions)
        for quantity in dict.fromkeys(kind for kind, _ in keys):
            own = [key for key in keys if key[0] == quantity]
            ends = np.cumsum([expected[key].size for key in own])[:-1]
            parts = np.split(results[quantity], ends)
            worst, key = max(
                (_difference(part, expected[key], sizes[key]), key)
                for part, key in zip(parts, own, strict=True)
            )
            rounding = 0.0
            if worst > rtol:
                if shifted is None:
                    shifted = [
                        reference(point, directions, noise=NOISE, seed=seed)[0]
                        for seed in range(N_NOISES)
                    ]
                rounding = max(
                    _difference(off[own_key], expected[own_key], sizes[own_key])
                    for off in shifted
                    for own_key in own
                )
            yield Comparison(mode, name, quantity, worst, key[1], rounding)


def _difference(value, expected, size) -> float:
    value, expected, size = map(np.ravel, (value, expected, size))
    scale = max(1.0, size[np.isfinite(size)].max(initial=0.0))
    same = (value == expected) | (np.isnan(value) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        difference = np.abs(value - expected) / scale
    difference = np.where(np.isnan(difference), np.inf, difference)
    return float(np.where(same, 0.0, difference).max(initial=0.0))


def _points(model: pm.Model, count: int, rng) -> Iterator[tuple[str, dict]]:
    """Points by names: around the initial point, from the prior, and at the edges."""
    start = model.initial_point()
    kinds = {value.name: _kind(model, value) for value in model.continuous_value_vars}

    def near(value):
        return value + 0.3 * rng.normal(size=value.shape)

    def moved(**moves):
        return {
            name: moves.get(kinds[name], near)(np.asarray(value)) if name in kinds else value
            for name, value in start.items()
        }

    for k in range(count):
        yield f"random point {k + 1}", moved()
    try:
        draw = make_initial_point_fn(model=model, default_strategy="prior")
        draws = [draw(int(seed)) for seed in rng.integers(2**30, size=count)]
    except NotImplementedError:
        # there are no draws of a flat prior
        draws = []
    for k, point in enumerate(draws):
        if all(np.isfinite(value).all() for value in point.values()):
            yield f"prior draw {k + 1}", point
    yield "tiny scales", moved(scale=lambda value: near(value) - EDGE)
    yield "large scales", moved(scale=lambda value: near(value) + EDGE)
    some = {"scale": lambda value: value + EDGE * rng.choice([-1, 1], size=value.shape)}
    yield "mixed scales", moved(**some, joint=lambda value: near(near(value) * 10))
    yield "large values", moved(value=lambda value: 1e3 * near(value))


def _kind(model: pm.Model, value) -> str:
    """What moves a value variable to the edge: whether its entries are transformed one by one."""
    transform = model.rvs_to_transforms[model.values_to_rvs[value]]
    if transform is None:
        return "value"
    return "scale" if getattr(transform, "ndim_supp", None) == 0 else "joint"
