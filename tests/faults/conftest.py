"""Fixtures that tests of faults share: their data, a run that nothing disturbs, and a cluster that may be harmed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faults.harness import SECONDS, SETTINGS, fleet, results


def pytest_collection_modifyitems(items):
    """Mark the tests of this folder as `faults`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("faults")


@pytest.fixture(scope="session")
def data(digits, save):
    """Save the first 500 digits; return their path."""
    return save(digits[0][:500], 100)


@pytest.fixture(scope="session")
def finished_run(embed, data):
    """Return a finished run that nothing disturbed. Tests only read it."""
    return embed(data, SETTINGS)


@pytest.fixture(scope="session")
def expected(finished_run):
    """Return the bytes that every run of the data must have, however it was disturbed."""
    return results(finished_run.output)


@pytest.fixture(scope="session")
def prepare(configure, data):
    """Return a function that makes the configuration of a run of the data."""
    patient = {**SETTINGS, "cluster.timeout": SECONDS / 2}
    return lambda settings=None: configure(data, {**patient, **(settings or {})})


@pytest.fixture
def damageable(prepare, finished_run):
    """Return the configuration of a finished run that a test may damage: a copy of the run that others read."""
    config = prepare()
    shutil.copytree(finished_run.output, config.output)
    return config


@pytest.fixture(scope="session")
def shared_cluster(new_path):
    """Start a scheduler and two workers, as processes, whose nannies restart them when they die.

    It takes 5 to 10 s, so it is made once; the tests that kill workers and drivers share it.
    """
    with fleet(new_path) as started:
        yield started


@pytest.fixture
def cluster_with_nannies(shared_cluster):
    """Return the shared cluster, once both of its workers are there again."""
    return shared_cluster.ready(2)
