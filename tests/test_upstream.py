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


def private_imports(path: Path) -> list[str]:
    """Imports of private names, or from private modules, of other packages."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UPSTREAM:
            module = str(node.module)
            private_module = any(part.startswith("_") for part in module.split("."))
            found += [
                f"{path.name}: {module}.{alias.name}"
                for alias in node.names
                if private_module or alias.name.startswith("_")
            ]
    return found


def test_only_upstream_imports_private_names():
    assert not [name for path in PACKAGE.rglob("*.py") for name in private_imports(path)]


def test_every_name_is_used():
    texts = "".join(
        path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "_upstream.py"
    )
    names = [*_upstream.NAMES, *(method for *_, method in _upstream.METHODS)]
    assert not [name for name in names if name not in texts]
