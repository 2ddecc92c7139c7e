"""A fixed choice of generated models; ``make fuzz`` checks others."""

import pytest

from tests.generated.fuzz import Summary, hunt, report


# the first example of each seed is the empty model
@pytest.mark.parametrize("number", range(40))
def test_models_have_the_numbers_of_the_graph_as_written(number, worker):
    summary = Summary()
    hunt(number, summary, worker, examples=6)
    assert not summary.found, report(summary.found)
