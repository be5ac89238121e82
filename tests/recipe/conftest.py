"""Runs that several tests of whole runs look at."""

from __future__ import annotations

import pytest
from helpers import SMALL_TASKS


@pytest.fixture(scope="session")
def some(digits):
    return digits[0][:1200]


@pytest.fixture(scope="session")
def cut(embed, save, some):
    done = embed(save(some, 100), {**SMALL_TASKS, "layout.checkpoint_every": 7})
    assert done.facts("cells")["cells"] > 4
    return done


@pytest.fixture(scope="session")
def expected(cut):
    return cut.y.tobytes()
