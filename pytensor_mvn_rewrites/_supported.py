"""Whether PyTensor and PyMC are versions that this package supports; importing it asks.

The versions are those of the dependencies that the package declares: no bound is written here.
"""

import warnings
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

PACKAGE = "pytensor_mvn_rewrites"
CHECKED = ("pytensor", "pymc")


def check() -> None:
    """Compare what is installed with what the package declares; without metadata do nothing.

    Raises
    ------
    ImportError
        If PyTensor or PyMC is older than the oldest that works.

    Warns
    -----
    UserWarning
        If one of them is newer than what the package was tested with.
    """
    try:
        declared = metadata.requires(PACKAGE) or []
        requirements = [need for need in map(Requirement, declared) if need.name in CHECKED]
        installed = {need.name: Version(metadata.version(need.name)) for need in requirements}
    except metadata.PackageNotFoundError:
        # a copy of the sources that nobody has installed
        return
    for need in requirements:
        version = installed[need.name]
        if need.specifier.contains(version, prereleases=True):
            continue
        text = f"{PACKAGE} needs {need}, and {need.name} {version} is installed"
        oldest = (Version(spec.version) for spec in need.specifier if spec.operator == ">=")
        if any(version < bound for bound in oldest):
            raise ImportError(f'{text}, which is too old: run pip install "{need}"')
        warnings.warn(
            f"{text}, which it was not tested with: rewrites may fail, or not apply. "
            f'A newer {PACKAGE} may support it, or run pip install "{need}"',
            UserWarning,
            # where the package is imported
            stacklevel=4,
        )


check()
