"""Every fault has a test that is run; tests are skipped for known reasons alone, and none is left out of all shares."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults.catalogue import FAULTS
from faults.harness import SECONDS
from processes import runs_all
from shares import parse_share, share_of

TESTS = Path(__file__).parent


@pytest.fixture
def marked(pytestconfig):
    """Return which tests show what: as they were collected here, or anew where only some were."""
    if runs_all(pytestconfig):
        return json.loads(json.dumps(vars(pytestconfig.pluginmanager.get_plugin("catalogue"))))
    command = [sys.executable, str(TESTS / "faults" / "catalogue.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_fault_has_a_test(marked):
    """One that is skipped shows nothing; whether it may be is for tests/skips.py to say."""
    assert marked["unknown"] == [], "marked with numbers that no fault has"
    missing = [number for number in FAULTS if not marked["tests"][str(number)]]
    reasons = {number: set(marked["skipped"][str(number)].values()) for number in missing}
    assert [FAULTS[number] for number in missing if not reasons[number]] == []
    if missing:
        pytest.skip(f"{' and '.join(sorted(set.union(*reasons.values())))}: nothing shows faults {missing}")


SAMPLE = """
import pytest

def test_passes():
    pass

def test_may_be_skipped():
    pytest.skip("the digests are of others")

@pytest.mark.skip(reason="it is Friday")
def test_may_not():
    pass

@pytest.mark.xfail(reason="is known to fail")
def test_is_known_to_fail():
    raise ValueError
"""


@pytest.mark.slow
def test_a_skip_that_is_not_allowed_is_a_failure_where_told_so(tmp_path):
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    (tmp_path / "test_module.py").write_text('import pytest\npytest.importorskip("no_such_module")\n')
    command = [sys.executable, "-m", "pytest", "-o", f"pythonpath={TESTS}", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(
        [*command, "-c", "/dev/null", "--strict-skips", "--continue-on-collection-errors", "-n", "1"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 1, done.stderr
    assert "1 passed, 1 skipped, 1 xfailed, 2 errors" in done.stdout.splitlines()[-1]
    assert "test_may_not may not be skipped (see tests/skips.py): Skipped: it is Friday" in done.stdout
    assert "test_module.py may not be skipped" in done.stdout


@pytest.mark.parametrize("shares", [1, 2, 3, 7])
def test_shares_together_are_all_tests_and_each_is_about_as_long(shares):
    counts = [0] * shares
    for number in range(1000):
        counts[share_of(f"tests/test_some.py::test_this[{number}]", shares) - 1] += 1
    assert sum(counts) == 1000
    assert min(counts) > 0.8 * 1000 / shares


def test_a_share_is_k_of_n():
    assert parse_share("2/3") == (2, 3)
    for wrong in ("0/3", "4/3", "3", "a/b", "-1/3", "1/0", ""):
        with pytest.raises(ValueError, match="give K/N with K from 1 to N, as 2/3"):
            parse_share(wrong)
