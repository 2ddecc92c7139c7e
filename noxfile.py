"""Tests against the oldest and the newest PyTensor and PyMC that the package allows.

nox                       # all sessions
nox -s "tests(oldest)"    # one of them
"""

import nox

nox.options.default_venv_backend = "venv"

VERSIONS = {
    "oldest": ("pytensor==3.3.4", "pymc==6.3.1"),
    "oldest PyMC with pymc-extras": (
        "pymc==6.3.2",
        "pymc-extras",
        "blackjax<1.3",
        "nutpie",
        "numpyro",
    ),
    "newest": ("pytensor>=3.3.4,<3.4", "pymc>=6.4,<6.5"),
}

#: What depends on the internals of PyTensor and PyMC: names, whole models, samplers
TESTS = [
    "tests/test_upstream.py",
    "tests/test_logprob.py",
    "tests/test_models.py",
    "tests/test_pipeline.py",
    "tests/test_shared_variables.py",
]


@nox.session
@nox.parametrize("versions", list(VERSIONS.values()), ids=list(VERSIONS))
def tests(session, versions):
    """Run what depends on the versions."""
    session.install(".", "pytest>=8.4", "hypothesis>=6.100", "jax>=0.5", *versions)
    session.run("python", "-m", "pytest", "-q", *(session.posargs or TESTS))
