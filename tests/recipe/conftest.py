"""A finished run that several tests of whole runs compare with."""

from __future__ import annotations

import pytest
from helpers import SMALL_TASKS


@pytest.fixture(scope="session")
def digits_1200(digits):
    """Return the first 1200 digits."""
    return digits[0][:1200]


@pytest.fixture(scope="session")
def run_1200(embed, save, digits_1200):
    """Return a finished run of the 1200 digits in small tasks. Tests only read it."""
    done = embed(save(digits_1200, 100), {**SMALL_TASKS, "layout.checkpoint_every": 7})
    assert done.facts("cells")["cells"] > 4
    return done


@pytest.fixture(scope="session")
def expected_bytes(run_1200):
    """Return the bytes that the embedding of every run of the 1200 digits must have."""
    return run_1200.y.tobytes()
