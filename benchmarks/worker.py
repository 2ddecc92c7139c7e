"""A contestant in a process of its own, which answers questions over its standard streams.

Nothing that an earlier measurement left in memory can help a fresh process; what processes may
share is the disk cache of compiled code, which is named when they start. Several can be alive at
the same time, so that their evaluations are timed in rounds in which they take turns: neither asv
nor pyperf do that, and ratios of one round are what holds on a machine with other work to do.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: One thread for everything
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "NPROC": "1",
    "JAX_PLATFORMS": "cpu",
}


class WorkerError(RuntimeError):
    """A worker failed; the message ends with what it wrote."""


class Worker:
    """A process with a contestant; a context manager.

    Parameters
    ----------
    cache : path
        Directory for the compiled code of PyTensor and Numba: empty for a cold run.
    contestant : str
        Name of a class of :mod:`benchmarks.contestants`.
    arguments : dict
        Its arguments.
    timeout : float
        Seconds that one answer may take.
    """

    def __init__(self, cache, contestant: str, arguments: dict, timeout: float = 3600.0):
        flags = [os.environ.get("PYTENSOR_FLAGS", ""), f"base_compiledir={cache}"]
        self.timeout = timeout
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", contestant, json.dumps(arguments)],
            cwd=ROOT,
            env=os.environ | ONE_THREAD | {"PYTENSOR_FLAGS": ",".join(filter(None, flags))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def ask(self, method: str, **arguments):
        """Call a method of the contestant; WorkerError if it fails or is late."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        late = threading.Timer(self.timeout, self.process.kill)
        late.start()
        try:
            self.process.stdin.write(json.dumps([method, arguments]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            late.cancel()
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            # it was killed if it wrote nothing: too late, or out of memory
            wrote = self.errors.read()[-3000:] or f"exit status {self.process.returncode}"
            raise WorkerError(f"{method} failed: {wrote}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.errors.close()


def main() -> None:
    """Make the contestant that the command line names, and answer for it."""
    # whatever libraries print must not mix with the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from benchmarks import contestants

    contestant = getattr(contestants, sys.argv[1])(**json.loads(sys.argv[2]))
    for line in sys.stdin:
        method, arguments = json.loads(line)
        answers.write(json.dumps(getattr(contestant, method)(**arguments)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
