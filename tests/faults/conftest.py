"""What the tests of faults share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faults.harness import SECONDS, SETTINGS, fleet, results


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("faults")


@pytest.fixture(scope="session")
def data(digits, save):
    return save(digits[0][:500], 100)


@pytest.fixture(scope="session")
def clean(embed, data):
    """Return a run that nothing disturbed; not to be changed."""
    return embed(data, SETTINGS)


@pytest.fixture(scope="session")
def expected(clean):
    """Return the bytes that every run of the data must come to."""
    return results(clean.output)


@pytest.fixture(scope="session")
def prepare(configure, data):
    """Make the configuration of a run of the data."""
    patient = {**SETTINGS, "cluster.timeout": SECONDS / 2}
    return lambda settings=None: configure(data, {**patient, **(settings or {})})


@pytest.fixture
def own(prepare, clean):
    """Return the configuration of a finished run that a test may damage: a copy, since no file names its place."""
    config = prepare()
    shutil.copytree(clean.output, config.output)
    return config


@pytest.fixture(scope="session")
def shared(fresh):
    """Start a cluster of two workers whose nannies start them again."""
    with fleet(fresh) as started:
        yield started


@pytest.fixture
def nannied(shared):
    """Return the shared cluster, as whole as at first."""
    return shared.ready(2)
