"""Reads from a bucket run side by side and come in order; reads from a local disk run one after another."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from dumap.artifacts.part_names import NEIGHBORS
from dumap.store import Run
from dumap.store.backends import Folder
from dumap.store.committed import MAX_CONCURRENT_READS
from dumap.store.concurrent_reads import call_concurrently


class Counting:
    """Counts the calls that are under way at once.

    Each call stays until `expected` calls have been under way together, or for a minute: a busy machine starts threads
    late.
    """

    def __init__(self, expected: int) -> None:
        self.most, self._now, self._expected, self._change = 0, 0, expected, threading.Condition()

    def __enter__(self) -> None:
        with self._change:
            self._now += 1
            self.most = max(self.most, self._now)
            self._change.notify_all()
            self._change.wait_for(lambda: self.most >= self._expected, timeout=60)

    def __exit__(self, *error: object) -> None:
        with self._change:
            self._now -= 1


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_the_calls(threads):
    under_way = Counting(threads)

    def call(number: int) -> int:
        with under_way:
            time.sleep(0.01 * (number % 3))
            return number

    assert list(call_concurrently([lambda n=n: call(n) for n in range(10)], threads)) == list(range(10))
    assert under_way.most == threads


@pytest.mark.parametrize("threads", [1, 3])
def test_after_an_error_no_other_call_begins(threads):
    called = []

    def call(number: int) -> int:
        called.append(number)
        time.sleep(0.01)
        return 1 // (2 - number)

    with pytest.raises(ZeroDivisionError):
        list(call_concurrently([lambda n=n: call(n) for n in range(50)], threads))
    assert len(called) <= 2 + 2 * threads


@pytest.fixture
def distant(tmp_path, monkeypatch) -> tuple[Run, Counting]:
    """Return a run of three parts that is read as one in a bucket is, and what counts its reads."""
    under_way = Counting(MAX_CONCURRENT_READS)

    class Bucket(Folder):
        is_local = False

        def open_range(self, key, start, stop, size):
            with under_way:
                return super().open_range(key, start, stop, size)

    monkeypatch.setattr("dumap.store.backends.Folder", Bucket)
    run = Run(str(tmp_path / "run"))
    for number in range(12):
        with run.part(NEIGHBORS, f"cell-{number:05d}") as out:
            out.write("indices", np.arange(10 * number, 10 * number + 10))
            out.attributes["number"] = number
    return run, under_way


def test_many_parts_of_a_bucket_are_read_side_by_side(distant):
    run, under_way = distant
    names = [f"cell-{number:05d}" for number in range(12)]
    rows = run.read_from_parts(NEIGHBORS, names, np.arange(13) * 10, "indices", 5, 115)
    assert rows.tolist() == list(range(5, 115))
    assert under_way.most == MAX_CONCURRENT_READS
    pieces = list(run.read_many(NEIGHBORS, [(name, "indices", 2, 4) for name in reversed(names)]))
    assert [piece.tolist() for piece in pieces] == [[10 * n + 2, 10 * n + 3] for n in reversed(range(12))]
    assert [facts["number"] for facts in run.facts_of_parts(NEIGHBORS, names)] == list(range(12))
