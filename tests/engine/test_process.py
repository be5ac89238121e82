"""What tasks set in the process that runs them, and that it has its own settings again afterwards."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import zarr
from threadpoolctl import threadpool_info, threadpool_limits

from dumap.engine import memory, process

SECONDS = 30
CONCURRENCY = "async.concurrency"


def blas() -> set[int]:
    """Return the numbers of threads that this process's BLAS libraries have."""
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def user_settings():
    """Set what a user might have set: two threads of BLAS and of numba, and another number of requests."""
    assert np.ones((2, 2)).sum() == 4
    had = numba.get_num_threads()
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    with threadpool_limits(limits=2, user_api="blas"), zarr.config.set({CONCURRENCY: 7}):
        yield lambda: (blas(), zarr.config.get(CONCURRENCY), zarr.config.get("threading.max_workers"))
    numba.set_num_threads(had)


def test_what_keeps_compiled_code_from_being_kept_is_said(monkeypatch):
    assert process.cache_error() == ""

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(process.tempfile, "TemporaryFile", full)
    assert process.cache_error().startswith("No space left on device (/")


def test_a_task_is_pinned_and_the_process_has_its_settings_again(user_settings):
    before, threads = user_settings(), numba.get_num_threads()
    with process.limit_to_one_thread():
        assert user_settings() == ({1}, process.ZARR_REQUESTS, before[2])
        assert numba.get_num_threads() == 1
    assert (user_settings(), numba.get_num_threads()) == (before, threads)
    with pytest.raises(KeyError), process.limit_to_one_thread():
        raise KeyError
    assert (user_settings(), numba.get_num_threads()) == (before, threads)


def test_the_last_task_out_gives_settings_back(user_settings):
    before, left = user_settings(), threading.Event()

    def first() -> None:
        with process.limit_to_one_thread():
            inside.wait(SECONDS)
        left.set()

    def second() -> tuple:
        with process.limit_to_one_thread():
            inside.wait(SECONDS)
            assert left.wait(SECONDS)
            return user_settings(), numba.get_num_threads()

    inside = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.submit(first), threads.submit(second)
        one.result(SECONDS)
        assert other.result(SECONDS) == (({1}, process.ZARR_REQUESTS, before[2]), 1)
    assert user_settings() == before


def test_a_peak_is_not_forgotten_by_the_task_beside(user_settings):
    """Memory that one thread's task held counts until no task runs: another's start wipes nothing."""
    held, let_go = threading.Event(), threading.Event()

    def holding() -> int:
        with process.limit_to_one_thread():
            assert np.ones(2**28, np.uint8).sum() == 2**28
            held.set()
            assert let_go.wait(SECONDS)
            return memory.peak_memory()

    with ThreadPoolExecutor(1) as thread:
        big = thread.submit(holding)
        assert held.wait(SECONDS)
        with process.limit_to_one_thread():
            assert memory.peak_memory() > 2**28
        let_go.set()
        assert big.result(SECONDS) > 2**28
