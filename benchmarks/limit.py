"""Build ``limit.cpp`` on the spot and call it."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "limit.cpp"


def build(n: int, param: str):
    """Compile the kernel for vectors of length `n`.

    Parameters
    ----------
    n : int
    param : {"cov", "chol"}
        With ``"chol"`` up to n = 12.

    Returns
    -------
    callable
        Of the number of vectors and the addresses of value, mu, matrix, and of the arrays for their
        gradients, all contiguous; it returns the sum of the log-densities.

    Raises
    ------
    RuntimeError
        If there is no GCC, or it fails.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise RuntimeError("the limit needs a C++ compiler: install GCC, or name one in CXX")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "limit.so"
        command = [compiler, "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC"]
        result = subprocess.run(
            [*command, f"-DSIZE={n}", str(SOURCE), "-o", str(library)],
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise RuntimeError(f"{compiler} could not compile {SOURCE.name}:\n{result.stderr}")
        kernel = getattr(ctypes.CDLL(str(library)), f"limit_{param}")
    kernel.restype = ctypes.c_double
    kernel.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * 6]
    return kernel
