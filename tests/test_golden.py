"""The bytes of each artifact are those of tests/golden/digests.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults.harness import ROOT
from golden.compute import PROCESSOR, SETTINGS, versions

FOLDER = Path(__file__).parent / "golden"
STORED = json.loads((FOLDER / "digests.json").read_text())


@pytest.fixture(scope="module")
def computed(new_path):
    """Compute the digests in a process of its own, for 12 s or more; skip if the libraries have other versions."""
    if versions() != STORED["versions"]:
        pytest.skip(f"the digests are of {STORED['versions']}, here are {versions()}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(FOLDER / "compute.py"), new_path()],
        env={**os.environ, **PROCESSOR, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["digests"]


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.parametrize("artifact", ["lists", "graph", "start", "embedding"])
@pytest.mark.parametrize("name", SETTINGS)
def test_bytes_are_as_they_were(computed, name, artifact):
    assert computed[name][artifact] == STORED["digests"][name][artifact]
