import pytest
from threadpoolctl import threadpool_limits

from tests.generated.fresh import Worker


@pytest.fixture(autouse=True)
def no_swallowed_errors():
    """The oracles themselves tell errors of our rewrites from those of PyTensor's own."""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads only get in each other's way on matrices this small."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.close()
