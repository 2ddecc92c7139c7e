"""PyTensor and PyMC outside of the range that the package declares are named at the import."""

import subprocess
import sys
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pytensor_mvn_rewrites import _supported


@pytest.fixture
def installed(monkeypatch):
    """Make the metadata say that other versions are installed."""
    versions = {}
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real(name))
    return versions


def declared() -> dict[str, Requirement]:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    requirements = map(Requirement, project["dependencies"])
    return {need.name: need for need in requirements if need.name in _supported.CHECKED}


@pytest.mark.parametrize("name", _supported.CHECKED)
def test_range_of_the_metadata_is_that_of_the_project(name):
    lines = metadata.requires(_supported.PACKAGE)
    assert declared()[name] in map(Requirement, lines)


def test_what_is_installed_here_is_supported():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _supported.check()


@pytest.mark.parametrize(("name", "old"), [("pytensor", "3.3.3"), ("pymc", "5.26.1")])
def test_too_old(name, old, installed):
    installed[name] = old
    with pytest.raises(ImportError) as caught:
        _supported.check()
    assert f"{name} {old} is installed" in str(caught.value)
    assert f'pip install "{declared()[name]}"' in str(caught.value)


@pytest.mark.parametrize(
    ("name", "new"), [("pytensor", "3.4.0rc1"), ("pytensor", "4.0"), ("pymc", "6.5.0")]
)
def test_newer_than_tested(name, new, installed):
    installed[name] = new
    with pytest.warns(UserWarning, match=f"{name} {new} is installed, .* not tested") as caught:
        _supported.check()
    assert len(caught) == 1


@pytest.mark.parametrize("name", ["pytensor", "pymc"])
def test_development_versions_within_the_range(name, installed):
    installed[name] = f"{metadata.version(name)}.post1.dev3+g1234567"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _supported.check()


def test_sources_without_metadata(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    _supported.check()


@pytest.mark.parametrize(
    ("version", "status", "message"),
    [
        ("1.0", 1, "ImportError: pytensor_mvn_rewrites needs"),
        ("99.0", 0, "<string>:4: UserWarning"),
    ],
)
def test_import(version, status, message):
    """Before anything else of the package is imported; a warning names the line of the import."""
    code = f"""from importlib import metadata
real = metadata.version
metadata.version = lambda name: {version!r} if name == "pytensor" else real(name)
import pytensor_mvn_rewrites
import pytensor_mvn_rewrites.pipeline"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == status
    assert message in result.stderr
    assert result.stderr.count("pytensor 99.0 is installed") == (status == 0)
