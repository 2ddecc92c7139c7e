"""The kernels of ``Unravel`` and ``Ravel``: loops over the entries of each array, and no views.

One function for all arrays: what Numba needs to compile one hardly depends on how many loops it
has, as long as no two arrays have to be matched.
"""

from textwrap import indent

import numpy as np
from pytensor.link.numba.dispatch.basic import register_funcify_and_cache_key

from pytensor_mvn_rewrites.lower.numba.jit import cache_key, compile_source
from pytensor_mvn_rewrites.lower.raveled import Place, Ravel, Unravel


@register_funcify_and_cache_key(Unravel)
def numba_funcify_unravel(op, node, **kwargs):
    """The kernel, and a key that holds the places."""
    lines = [f"if x.shape[0] < {op.length}:", f"    raise ValueError({op.message!r})"]
    env: dict[str, np.ndarray] = {}
    results = []
    for k, place in enumerate(op.places):
        if place.shape:
            results.append(f"array{k}")
            lines.append(f"array{k} = np.empty({place.shape}, x.dtype)")
            lines += copied(place, k, f"array{k}[{{at}}] = x[{{position}}]", env)
        else:
            results.append(f"x[{place.positions[0]}]")
    lines.append(f"return {', '.join(results)}")
    return compiled("unravel", "x", lines, env)


@register_funcify_and_cache_key(Ravel)
def numba_funcify_ravel(op, node, **kwargs):
    """The kernel, and a key that holds the places."""
    parts = [f"part{k}" for k in range(len(op.places))]
    lines = [f"out = np.empty({op.length}, np.{node.outputs[0].type.dtype})"]
    env: dict[str, np.ndarray] = {}
    for k, place in enumerate(op.places):
        if place.shape:
            lines += copied(place, k, f"out[{{position}}] = part{k}[{{at}}]", env)
        else:
            lines.append(f"out[{place.positions[0]}] = part{k}")
    lines.append("return out")
    return compiled("ravel", ", ".join(parts), lines, env)


def copied(place: Place, k: int, statement: str, env: dict) -> list[str]:
    """Loops that copy each entry by `statement`, in which `at` and `position` are filled in."""
    position = f"{place.positions[0]} + k"
    if not place.is_run:
        position = f"positions{k}[k]"
        dtype = np.min_scalar_type(max(place.positions))
        env[f"positions{k}"] = np.array(place.positions, dtype=dtype)
    axes = [f"i{axis}" for axis in range(len(place.shape))]
    body = f"{statement.format(at=', '.join(axes), position=position)}\nk += 1"
    for axis, length in reversed(list(zip(axes, place.shape, strict=True))):
        body = f"for {axis} in range({length}):\n{indent(body, '    ')}"
    return ["k = 0", *body.split("\n")]


def compiled(name: str, arguments: str, lines: list[str], env: dict):
    """The function of these lines and its key."""
    source = f"def {name}({arguments}):\n{indent(chr(10).join(lines), '    ')}\n"
    salt = "".join(
        f"\n# {key}: {cache_key(value.tobytes(), value.dtype)}" for key, value in env.items()
    )
    return compile_source(source + salt, name, env)
