"""What the tests of faults share."""

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
    """Save 500 digits; return their path."""
    return save(digits[0][:500], 100)


@pytest.fixture(scope="session")
def finished_run(embed, data):
    """Return a run that nothing disturbed; not to be changed."""
    return embed(data, SETTINGS)


@pytest.fixture(scope="session")
def expected(finished_run):
    """Return the bytes that every run of the data must come to."""
    return results(finished_run.output)


@pytest.fixture(scope="session")
def prepare(configure, data):
    """Make the configuration of a run of the data."""
    patient = {**SETTINGS, "cluster.timeout": SECONDS / 2}
    return lambda settings=None: configure(data, {**patient, **(settings or {})})


@pytest.fixture
def damageable(prepare, finished_run):
    """Return the configuration of a finished run that a test may damage: a copy, since no file names its place."""
    config = prepare()
    shutil.copytree(finished_run.output, config.output)
    return config


@pytest.fixture(scope="session")
def shared_cluster(fresh):
    """Start a cluster of two workers whose nannies start them again."""
    with fleet(fresh) as started:
        yield started


@pytest.fixture
def cluster_with_nannies(shared_cluster):
    """Return the shared cluster, as whole as at first."""
    return shared_cluster.ready(2)
