"""Fast log-densities for loops of multivariate normals: importing this package switches it on."""

# first: where PyTensor or PyMC is too old, other imports fail, and do not say why
from pytensor_mvn_rewrites import _supported  # noqa: F401

# isort: split
from pytensor_mvn_rewrites import pipeline
from pytensor_mvn_rewrites.config import add_flags, disable, enable
from pytensor_mvn_rewrites.explain import Explanation, explain
from pytensor_mvn_rewrites.generative.fuse import fuse_model, unfuse
from pytensor_mvn_rewrites.pipeline import RewriteFailedWarning
from pytensor_mvn_rewrites.verify import Verification, VerificationError, verify

add_flags()
pipeline.activate()

__all__ = [
    "Explanation",
    "RewriteFailedWarning",
    "Verification",
    "VerificationError",
    "disable",
    "enable",
    "explain",
    "fuse_model",
    "unfuse",
    "verify",
]
__version__ = "0.1.0"
