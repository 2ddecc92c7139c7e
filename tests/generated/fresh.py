"""A fresh process that evaluates pickled functions: it has imported nothing of this package."""

import os
import pickle
import subprocess
import sys
import traceback


class Worker:
    """One process for many functions; it starts when first needed."""

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def send(self, function):
        """`function` as a fresh process sees it: a callable of a list of points."""
        pickled = pickle.dumps(function)

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


def main():
    answers = os.fdopen(os.dup(1), "wb")
    # what PyTensor prints is no answer
    os.dup2(2, 1)
    while True:
        try:
            pickled, points = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            function = pickle.loads(pickled)
            answer = [function(*point) for point in points]
        except Exception:
            answer = traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
