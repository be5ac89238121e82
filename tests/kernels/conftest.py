"""What tests of kernels share: hypothesis' settings, and a small graph."""

import pytest
from graphs import layout_graph
from hypothesis import settings

settings.register_profile("kernels", deadline=None, derandomize=True, max_examples=60)  # compiling takes its time
settings.load_profile("kernels")


@pytest.fixture(scope="session")
def graph():
    """Return the symmetric graph of 300 rows that tests of edges and of the layout share."""
    return layout_graph()
