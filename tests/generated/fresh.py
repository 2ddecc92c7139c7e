"""Fresh processes that evaluate pickled graphs: none has imported anything of this package.

PyTensor is imported once; each question is answered by a fork.
"""

import os
import pickle
import subprocess
import sys
import traceback


class Worker:
    """One process for many functions; it starts when first needed."""

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def send(self, inputs, outputs):
        """A graph as a fresh process sees it: a function of a list of points."""
        # not the function: Python's linker leaves closures on ops, which nobody can pickle
        pickled = pickle.dumps((inputs, outputs))

        def call(points):
            results = self.ask((pickled, points))
            if isinstance(results, str):
                raise RuntimeError(f"in a fresh process: {results.strip().splitlines()[-1]}")
            return results

        return call

    def ask(self, question):
        if self.process is None:
            environment = {**os.environ, "PYTENSOR_FLAGS": "cxx="}
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.generated.fresh"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
        pickle.dump(question, self.process.stdin)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()


def answer(pickled, points):
    """What a graph gives at some points."""
    import pytensor
    from pytensor.compile.mode import Mode

    inputs, outputs = pickle.loads(pickled)
    mode = Mode(linker="py", optimizer=None)
    function = pytensor.function(inputs, outputs, mode=mode, on_unused_input="ignore")
    return [function(*point) for point in points]


def main():
    import pymc  # noqa: F401

    answers = os.fdopen(os.dup(1), "wb")
    # what PyTensor prints is no answer
    os.dup2(2, 1)
    while True:
        try:
            question = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if child := os.fork():
            os.waitpid(child, 0)
            continue
        try:
            result = answer(*question)
        except Exception:
            result = traceback.format_exc()
        pickle.dump(result, answers)
        answers.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
