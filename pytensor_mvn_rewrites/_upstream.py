"""Every name of PyMC, PyTensor and Numba that is private, or has moved, and where it lives.

Names are imported when they are first asked for: those of Numba's dispatch would import Numba.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

_LAPACK_MODULE = "pytensor.link.numba.dispatch.linalg._LAPACK"
# older releases of PyTensor 3.3 have the second
_CONDITIONAL = "pytensor.conditional.op" if find_spec("pytensor.conditional") else "pytensor.ifelse"

#: name -> module
NAMES = {
    "_LKJCholeskyCovRV": "pymc.distributions.multivariate",
    "_lkj_normalizing_constant": "pymc.distributions.multivariate",
    "_find_unallowed_rvs_in_graph": "pymc.logprob.basic",
    "_logprob": "pymc.logprob.abstract",
    "_vectorize_node": "pytensor.graph.replace",
    "_call_cached_ptr": "pytensor.link.numba.cache",
    "_LAPACK": _LAPACK_MODULE,
    "get_lapack_ptr": _LAPACK_MODULE,
    "int_ptr_to_val": _LAPACK_MODULE,
    "val_to_dptr": _LAPACK_MODULE,
    "val_to_int_ptr": _LAPACK_MODULE,
    "_is_provably_positive": "pytensor.tensor.subtensor",
    "_parse_gufunc_signature": "pytensor.tensor.utils",
    "IfElse": _CONDITIONAL,
}

#: Private methods of public classes: (module, class, method)
METHODS = (
    ("pytensor.tensor.subtensor", "IncSubtensor", "_props_dict"),
    ("pytensor.tensor.subtensor", "AdvancedSubtensor", "_take_axis"),
)


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(NAMES[name]), name)
