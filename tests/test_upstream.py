"""Private names of the packages that this one stands on: each that is gone fails by its name."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import pytensor_mvn_rewrites
from pytensor_mvn_rewrites import _upstream

PACKAGE = Path(pytensor_mvn_rewrites.__file__).parent
UPSTREAM = ("pytensor", "pymc", "numba", "llvmlite", "jax", "nutpie")


@pytest.mark.parametrize("name", _upstream.NAMES)
def test_name_is_there(name):
    assert getattr(_upstream, name) is not None


@pytest.mark.parametrize(("module", "cls", "method"), _upstream.METHODS)
def test_method_is_there(module, cls, method):
    assert callable(getattr(getattr(import_module(module), cls), method))


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute '_gone'"):
        _ = _upstream._gone


TREES = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def private_imports(tree: ast.Module) -> list[str]:
    """Imports of private names, or from private modules, of other packages."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module), names=aliases):
                names = [f"{module}.{alias.name}" for alias in aliases]
            case _:
                continue
        parts = [name.split(".") for name in names]
        found += [path for path in parts if path[0] in UPSTREAM and any(map(is_private, path))]
    return [".".join(path) for path in found]


def own_names(tree: ast.Module) -> set[str]:
    """The functions, methods and attributes that a file defines."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def test_only_upstream_imports_private_names():
    assert not {
        path.name: found for path, tree in TREES.items() if (found := private_imports(tree))
    }


def test_private_attributes_are_named_in_upstream():
    """Of modules and of objects: what no file of the package defines belongs to others."""
    known = set().union(*map(own_names, TREES.values()))
    known |= {*_upstream.NAMES, *(method for *_, method in _upstream.METHODS)}
    found = {
        (path.name, node.attr)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in known
    }
    assert not found


def test_every_name_is_used():
    texts = "".join(
        path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "_upstream.py"
    )
    names = [*_upstream.NAMES, *(method for *_, method in _upstream.METHODS)]
    assert not [name for name in names if name not in texts]
