"""Seeds, and failures that PyTensor would swallow."""

import logging

import numpy as np
import pytensor
import pytest

from pytensor_mvn_rewrites import pipeline

pytest.register_assert_rewrite("tests.harness")


@pytest.fixture
def rng(request) -> np.random.Generator:
    """A generator whose seed is the name of the test: the same in any order and on any worker."""
    return np.random.default_rng(list(request.node.nodeid.encode()))


class _RewriterErrors(logging.Handler):
    def __init__(self):
        super().__init__(level=logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@pytest.fixture(autouse=True)
def no_swallowed_errors():
    """Fail a test when a rewriter failed: PyTensor logs it and goes on, this package warns once."""
    pipeline._failed.clear()
    handler = _RewriterErrors()
    logger = logging.getLogger("pytensor.graph")
    logger.addHandler(handler)
    # without a C compiler the Python linker also runs the inner graphs of ops in Python; looking up
    # who made which node takes an eighth of the time
    flags = {"on_opt_error": "raise", "cxx": "", "traceback__limit": 0}
    with pytensor.config.change_flags(**flags):
        yield
    logger.removeHandler(handler)
    assert not handler.messages, "\n".join(handler.messages)
