"""The command line: ``python -m pytensor_mvn_rewrites explain|verify|warm path/to/model.py:build``.

``build`` is a model, or a function without arguments that returns one. The exit status is 0, but 1
where ``verify`` finds a difference, and 2 where the arguments are wrong or the model fails.
"""

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import pymc as pm
import pytensor
from pymc.blocking import DictToArrayBijection
from rich.console import Console
from rich.progress import track

import pytensor_mvn_rewrites as mvn


class UsageError(Exception):
    """What was asked for cannot be had; the message says why."""


def load(path: str) -> pm.Model:
    """The model of ``file.py:name``."""
    file, _, name = path.rpartition(":")
    if not file or not name:
        raise UsageError(f"{path}: name the model, as in path/to/model.py:build_model")
    if not Path(file).is_file():
        raise UsageError(f"{file}: there is no such file")
    # as Python does with a script: it may import its neighbours
    sys.path.insert(0, str(Path(file).resolve().parent))
    found = runpy.run_path(file).get(name)
    if found is None:
        raise UsageError(f"{file} has no {name!r}")
    model = found() if callable(found) and not isinstance(found, pm.Model) else found
    if not isinstance(model, pm.Model):
        raise UsageError(f"{path} is a {type(model).__name__}, not a model or what returns one")
    return model


def explain(args: argparse.Namespace) -> int:
    """Print what the rewrites do to the model."""
    Console().print(mvn.explain(load(args.model)))
    return 0


def verify(args: argparse.Namespace) -> int:
    """Compare the model with what nothing rewrote."""
    found = mvn.verify(
        load(args.model),
        points=args.points,
        rtol=args.rtol,
        modes=args.mode,
        hessian=args.hessian,
        random_seed=args.seed,
    )
    print(found)  # noqa: T201
    return 0 if found.ok else 1


def warm(args: argparse.Namespace) -> int:
    """Compile a model, or the kernels of some sizes, into the disk cache."""
    if bool(args.model) == bool(args.sizes):
        raise UsageError("warm takes a model, or --sizes")
    if not pytensor.config.numba__cache:
        raise UsageError("warm has no cache to write to: pytensor.config.numba__cache is False")
    console = Console(stderr=True)
    if args.model:
        model = load(args.model)
        with console.status("compiling the log-density and its gradient"):
            function = model.logp_dlogp_function(ravel_inputs=True, mode="NUMBA")
            point = model.initial_point()
            start = {var.name: point[var.name] for var in model.continuous_value_vars}
            # some kernels are compiled when they are first called
            function(DictToArrayBijection.map(start))
        return 0
    # they import Numba
    from pytensor_mvn_rewrites.lower.numba.jit import kernel_address
    from pytensor_mvn_rewrites.lower.numba.warm import kernel_names

    names = dict.fromkeys(name for n in args.sizes for name in kernel_names(n))
    for name in track(names, "compiling kernels", console=console, disable=not console.is_terminal):
        kernel_address(name)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pytensor_mvn_rewrites", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for function in (explain, verify, warm):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(function=function)
        optional = "?" if function is warm else None
        command.add_argument("model", nargs=optional, help="path/to/model.py:build_model")
        if function is verify:
            command.add_argument("--points", type=int, default=3, help="of each random kind")
            command.add_argument("--rtol", type=float, default=1e-9)
            command.add_argument("--mode", action="append", help="such as NUMBA; may be repeated")
            command.add_argument("--hessian", action="store_true")
            command.add_argument("--seed", type=int, default=0)
        if function is warm:
            command.add_argument("--sizes", type=int, nargs="+", help="lengths of the vectors")
    args = parser.parse_args(arguments)
    try:
        return args.function(args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
    except Exception:
        # 1 would say that numbers differ
        Console(stderr=True).print_exception()
    return 2


if __name__ == "__main__":
    sys.exit(main())
