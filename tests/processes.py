"""How tests are divided among processes: a file is run by one of them, the longest files first."""

from __future__ import annotations

from collections import Counter

import pytest

from dumap.engine.resources import cpu_count, free_memory

PROCESS_MEMORY = 4 * 2**30
"""Bytes that a process of tests may take, with the workers that it starts."""
SLOW_TEST_LENGTH = 20
"""How many of the quickest tests take as long as a slow one."""
FIXTURE_LENGTHS = {"shared_cluster": 20, "client": 8, "embed": 3}
"""How many of them take as long as a quick test that uses a fixture, directly or through others."""

TOGETHER = (
    ("tests/test_benchmark.py", "tests/test_hard_vectors.py", "tests/kernels/test_neighbors.py"),
    ("tests/faults/test_workers.py", "tests/faults/test_drivers.py"),
)
"""Files that compile pynndescent's search, for half a minute in each process; files that share a cluster to kill."""


def count_processes() -> int:
    """Return how many processes there are where nobody said, if there is memory for so many.

    There is one more than processors: tests wait for clusters, locks and compiled code for a fifth of their time.
    """
    return max(1, min(cpu_count() + 1, free_memory() // PROCESS_MEMORY))


def is_one_of_many(config: pytest.Config) -> bool:
    """Tell whether this process runs what another one gives it."""
    return hasattr(config, "workerinput")


def runs_all(config: pytest.Config) -> bool:
    """Tell whether tests were chosen by no path."""
    if is_one_of_many(config):
        return config.workerinput["runs_all"]
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS


def estimate_length(item: pytest.Item) -> int:
    """Guess how long a test takes, by its marks and its fixtures."""
    if item.get_closest_marker("slow"):
        return SLOW_TEST_LENGTH
    return max([1, *(FIXTURE_LENGTHS.get(name, 1) for name in getattr(item, "fixturenames", ()))])


def scope_of(file: str) -> str:
    """Return the scope of a file's tests, which one process runs: the file, or all files that compile the same."""
    return next((files[0] for files in TOGETHER if file in files), file)


def is_first(item: pytest.Item) -> bool:
    """Tell whether a test's file is begun before all others."""
    return item.get_closest_marker("first") is not None


def sort_longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Sort tests by how long those of their scope take together, so that all processes end at about one time."""
    scopes = {item: scope_of(item.nodeid.split("::")[0]) for item in items}
    lengths: Counter[str] = Counter()
    for item in items:
        lengths[scopes[item]] += estimate_length(item)
    return sorted(items, key=lambda item: (not is_first(item), -lengths[scopes[item]], scopes[item], item.path))
