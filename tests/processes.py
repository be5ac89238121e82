"""How tests are divided among processes, `pytest -n 2`: a file is run by one of them, the longest files first."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dumap.engine.resources import cpu_count, free_memory

MEMORY = 4 * 2**30
"""Bytes that a process of tests may take, with the workers that it starts."""
SLOW = 20
"""How many quick tests take as long as a slow one."""


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


def longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Sort tests by how long those of their file take together, so that all processes end at about one time."""
    lengths: Counter[Path] = Counter()
    for item in items:
        lengths[item.path] += SLOW if item.get_closest_marker("slow") else 1
    return sorted(items, key=lambda item: (-lengths[item.path], item.path))
