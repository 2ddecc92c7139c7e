"""Tests against the oldest and the newest PyTensor and PyMC that the package allows.

nox                            # all sessions; those of a Python that is not found are skipped
nox -s "tests(oldest)"         # one of them
nox -s "pythons-3.13"          # the newest versions by one Python
"""

import nox
from packaging.requirements import Requirement

nox.options.default_venv_backend = "venv"

PROJECT = nox.project.load_toml("pyproject.toml")
BOUNDS = {bound.name: bound for bound in map(Requirement, PROJECT["project"]["dependencies"])}


def oldest(name: str) -> str:
    """The requirement for the lower bound of a dependency."""
    [version] = [spec.version for spec in BOUNDS[name].specifier if spec.operator == ">="]
    return f"{name}=={version}"


VERSIONS = {
    "oldest": (oldest("pytensor"), oldest("pymc")),
    # pymc-extras wants a patch more
    "oldest PyMC with pymc-extras": (
        "pymc==6.3.2",
        "pymc-extras",
        "blackjax<1.3",
        "nutpie",
        "numpyro",
    ),
    "newest": (str(BOUNDS["pytensor"]), str(BOUNDS["pymc"])),
}

#: What depends on the internals of PyTensor and PyMC: names, whole models, samplers
TESTS = [
    "tests/test_upstream.py",
    "tests/test_logprob.py",
    "tests/test_models.py",
    "tests/test_pipeline.py",
    "tests/test_shared_variables.py",
]


def run(session, versions) -> None:
    """Install the package with what its tests need, and run those that depend on versions."""
    needed = nox.project.dependency_groups(PROJECT, "test")
    session.install(".", *needed, *versions)
    session.run("python", "-m", "pytest", "-q", *(session.posargs or TESTS))


@nox.session
@nox.parametrize("versions", list(VERSIONS.values()), ids=list(VERSIONS))
def tests(session, versions):
    """Run what depends on the versions."""
    run(session, versions)


@nox.session(python=["3.12", "3.13", "3.14"])
def pythons(session):
    """Run it by each Python, with the newest versions."""
    run(session, VERSIONS["newest"])
