"""Every fault has a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from faults.catalogue import FAULTS
from faults.harness import SECONDS


@pytest.mark.slow
def test_every_fault_has_a_test():
    command = [sys.executable, str(Path(__file__).parent / "faults" / "catalogue.py"), "--json"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert found.returncode == 0, found.stderr
    marked = json.loads(found.stdout.splitlines()[-1])
    assert marked["unknown"] == [], "marked with numbers that no fault has"
    assert {number: text for number, text in FAULTS.items() if not marked["tests"][str(number)]} == {}
