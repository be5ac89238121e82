"""Which workers are fit for a run, and the reason given for one that is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dumap.engine.checks import (
    WorkerFacts,
    WorkerRequirements,
    describe_differences,
    most_common_installation,
    single_thread_memory_limit,
)
from dumap.engine.worker_pool import host_of
from dumap.planning.budget import INTERPRETER_BYTES, PAUSE_FRACTION, process_bytes

GIB = 2**30
FIT = WorkerFacts("tcp://a:1", "a", 1, 4 * GIB, {"dumap": "1", "numpy": "2", "python": "3.12.1"}, "zen", 9)
REQUIREMENTS = WorkerRequirements("1", 9, tuple(FIT.versions.items()), "zen", GIB)


def test_a_worker_like_the_others_is_fit():
    assert describe_differences(REQUIREMENTS, FIT) == []
    assert (
        describe_differences(WorkerRequirements("1", 9), replace(FIT, cpu="z80", versions={"dumap": "1", "numpy": "0"}))
        == []
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"versions": {**FIT.versions, "dumap": "0"}}, "it has dumap 0, this client 1"),
        ({"format": 8}, "its dumap writes format 8, this client's 9"),
        ({"versions": {**FIT.versions, "numpy": "1"}}, "numpy is 1, 2 on the other workers"),
        ({"versions": {**FIT.versions, "python": "3.12.2"}}, "python is 3.12.2, 3.12.1"),
        ({"cpu": "z80"}, "its processor is z80, zen"),
        ({"cache_error": "No space (/a)"}, "it cannot keep the code that it compiles: No space (/a)"),
        ({"memory_limit": GIB}, "its memory limit of 1.00 GiB for 1 thread is less"),
        ({"threads": 8}, "its memory limit of 4.00 GiB for 8 threads is less"),
    ],
)
def test_a_worker_that_differs_is_told_how(other, message):
    (reason,) = describe_differences(REQUIREMENTS, replace(FIT, **other))
    assert message in reason


def test_threads_of_a_process_share_its_interpreter():
    """What a worker of several threads has for each is what the plan asks for as many tasks in one process."""
    peak = INTERPRETER_BYTES + 300 * 2**20
    for threads in (1, 2, 8):
        limit = process_bytes(peak, threads) / PAUSE_FRACTION
        assert single_thread_memory_limit(int(limit) + 16, threads) >= peak / PAUSE_FRACTION - 16
        assert single_thread_memory_limit(int(limit) - 2**20 * threads, threads) < peak / PAUSE_FRACTION
    assert single_thread_memory_limit(0, 4) == 0


def test_most_workers_decide_and_a_run_that_was_begun_before_them():
    other = replace(FIT, versions={**FIT.versions, "numpy": "1"})
    workers = [FIT, other, other]
    assert most_common_installation(workers, None) == (other.versions, "zen")
    assert most_common_installation(workers, {"versions": FIT.versions, "cpus": ["zen"]}) == (FIT.versions, "zen")
    assert most_common_installation(workers, {"versions": FIT.versions, "cpus": ["z80"]}) == (other.versions, "zen")


def test_workers_of_one_process_are_on_one_host():
    assert host_of("inproc://10.0.0.1/77/1") == host_of("inproc://10.0.0.1/77/4") == "10.0.0.1"
    assert host_of("tcp://10.0.0.1:80") == host_of("tls://10.0.0.1:81") == "10.0.0.1"
