"""Runs that tests of several stages look at."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import SHARDED


@pytest.fixture(scope="session")
def two_groups(save):
    """Save 5000 rows that lie together, and 20 far away, which are a component of their own; return their path."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(place, 1, (count, 4)) for place, count in ((0, 5000), (100, 20))]
    return save(np.concatenate(rows).astype(np.float32))


@pytest.fixture(scope="session")
def host_run(embed, two_groups):
    """Return a run of two shards, laid out in one process; tests of several stages read it."""
    return embed(two_groups, {**SHARDED, "layout.mode": "host"})


@pytest.fixture(scope="session")
def rounds_run(embed, two_groups):
    """Return the same run, laid out in rounds; tests of several stages read it."""
    return embed(two_groups, {**SHARDED, "layout.mode": "rounds"})
