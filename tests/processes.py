"""How tests are divided among processes, `pytest -n 2`: a file is run by one of them, the longest files first."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dumap.engine.resources import cpu_count, free_memory

MEMORY = 4 * 2**30
"""Bytes that a process of tests may take, with the workers that it starts."""
SLOW = 20
"""How many of the quickest tests take as long as a slow one."""
FIXTURES = {"shared_cluster": 20, "client": 8, "embed": 3}
"""How many of them take as long as a quick test that uses a fixture, directly or through others."""


def count() -> int:
    """Return how many processes there are where nobody said: one for each processor, if there is memory for so many."""
    return max(1, min(cpu_count(), free_memory() // MEMORY))


def is_one_of_many(config: pytest.Config) -> bool:
    """Tell whether this process runs what another one gives it."""
    return hasattr(config, "workerinput")


def runs_all(config: pytest.Config) -> bool:
    """Tell whether tests were chosen by no path."""
    if is_one_of_many(config):
        return config.workerinput["runs_all"]
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS


def length(item: pytest.Item) -> int:
    """Guess how long a test takes, by its marks and its fixtures."""
    if item.get_closest_marker("slow"):
        return SLOW
    return max([1, *(FIXTURES.get(name, 1) for name in getattr(item, "fixturenames", ()))])


def longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Sort tests by how long those of their file take together, so that all processes end at about one time."""
    lengths: Counter[Path] = Counter()
    for item in items:
        lengths[item.path] += length(item)
    return sorted(items, key=lambda item: (-lengths[item.path], item.path))
