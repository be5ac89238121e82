"""A worker's memory: its peak, and what is kept between two arrays."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import psutil
import pytest

from dumap.engine import memory

MIB = 2**20


def held() -> int:
    """Return the bytes that this process holds."""
    return psutil.Process().memory_info().rss


def test_peak_forgets_what_was_before_its_reset() -> None:
    before = held()
    assert np.ones(128 * MIB, np.uint8).sum() == 128 * MIB
    assert memory.peak_memory() >= before + 120 * MIB
    memory.reset_peak()
    assert memory.peak_memory() <= held() + 32 * MIB
    assert np.ones(64 * MIB, np.uint8).sum() == 64 * MIB
    assert memory.peak_memory() >= before + 60 * MIB


def _held_around_arrays() -> tuple[int, int, int]:
    """Return the bytes held before, with and after a dozen arrays that are freed."""
    before = held()
    with memory.reuse_freed_memory():
        kept = [np.ones(8 * MIB, np.uint8) for _ in range(12)]
        during = held()
        del kept
    return before, during, held()


@pytest.mark.slow
def test_memory_is_given_back_at_the_end() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # whose heap has no holes that arrays could fill
        before, during, after = fresh.submit(_held_around_arrays).result()
    assert during >= before + 90 * MIB
    assert after <= before + 32 * MIB


def test_errors_pass_through() -> None:
    with pytest.raises(ValueError, match="this one"), memory.reuse_freed_memory():
        raise ValueError("this one")
