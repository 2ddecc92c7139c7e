"""One test file for each rule file, and no circles among the imports."""

import ast
import re
from collections.abc import Collection
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pytensor_mvn_rewrites

PACKAGE = Path(pytensor_mvn_rewrites.__file__).parent
TESTS = Path(__file__).parent
BENCHMARKS = TESTS.parent / "benchmarks"


#: What loads the kernels when the first of them is needed: they import Numba.
LATE = {
    ("pytensor_mvn_rewrites.lower.numba_backend", "pytensor_mvn_rewrites.lower.numba"),
    ("pytensor_mvn_rewrites.lower.numba.jit", "pytensor_mvn_rewrites.lower.numba"),
}


def public_modules(folder: Path, prefix: str = "") -> set[str]:
    names = {path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.py")}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("stage", ["generative", "proofs", "reroll", "recognize", "structure"])
def test_rule_files_and_test_files_mirror_each_other(stage):
    assert public_modules(TESTS / stage, "test_") == public_modules(PACKAGE / stage)


def test_helpers_of_structures_import_no_rule_file():
    """Rules stand on helpers, and not the other way round."""
    for path in (PACKAGE / "structure").glob("_*.py"):
        assert not re.findall(r"from pytensor_mvn_rewrites\.structure\.[a-z]\w*", path.read_text())


def modules_of(package: Path) -> dict[str, Path]:
    """The modules of a package with their files; a package is its ``__init__``."""
    paths = {
        path.relative_to(package.parent).with_suffix(""): path for path in package.rglob("*.py")
    }
    return {
        ".".join(module.parts).removesuffix(".__init__"): path for module, path in paths.items()
    }


def imports_of(path: Path, modules: Collection[str]) -> set[str]:
    """The `modules` that a file imports, at once or when a function runs."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=aliases):
                names.update(alias.name for alias in aliases)
            case ast.ImportFrom(module=str(module), names=aliases):
                members = {f"{module}.{alias.name}" for alias in aliases}
                names |= members if members <= set(modules) else members | {module}
    return names.intersection(modules)


@pytest.mark.parametrize("package", [PACKAGE, BENCHMARKS], ids=["package", "benchmarks"])
def test_no_import_circles(package):
    modules = modules_of(package)
    graph = {
        name: {other for other in imports_of(path, modules) if (name, other) not in LATE}
        for name, path in modules.items()
    }
    assert sum(map(len, graph.values())) > len(graph), "the imports were not found"
    TopologicalSorter(graph).prepare()


def test_no_relative_imports():
    """The test above follows absolute ones."""
    for path in (*PACKAGE.rglob("*.py"), *BENCHMARKS.rglob("*.py")):
        assert not re.search(r"^\s*from \.", path.read_text(), flags=re.MULTILINE)
