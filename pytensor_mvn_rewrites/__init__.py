"""Fast log-densities for loops of multivariate normals: importing this package switches it on."""

from pytensor_mvn_rewrites import pipeline
from pytensor_mvn_rewrites.config import add_flags, disable, enable

add_flags()
pipeline.activate()

__all__ = ["disable", "enable"]
__version__ = "0.1.0"
