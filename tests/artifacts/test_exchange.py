"""What parts send to one another, spans by receiver."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumap.artifacts.exchange import read_received_ranges, write_receiver_index, write_receivers, write_sorted_receivers
from dumap.artifacts.part_names import part_names, range_names
from dumap.store import Run


@pytest.fixture(scope="module")
def fresh_run(new_path):
    """Return a function that opens a run in a new place."""
    return lambda: Run(new_path("run.zarr"))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_receivers_find_what_is_sent_to_them(fresh_run, senders, receivers, seed):
    run, rng = fresh_run(), np.random.default_rng(seed)
    to = [np.sort(rng.integers(0, receivers, rng.integers(0, 40))) for _ in range(senders)]
    for name, rows in zip(part_names("sent", senders), to, strict=True):
        with run.part("audit", name) as out:
            write_sorted_receivers(out, rows)
    names = range_names("index", senders)
    assert len(names) == math.isqrt(senders)
    for name in names:
        write_receiver_index(run, "audit", name, part_names("sent", senders), receivers)
    for receiver in range(receivers):
        expected = [
            [number, *np.searchsorted(rows, [receiver, receiver + 1])]
            for number, rows in enumerate(to)
            if receiver in rows
        ]
        assert read_received_ranges(run, "audit", "index", senders, receiver).tolist() == expected


def test_receivers_may_be_joined(fresh_run):
    run = fresh_run()
    with run.part("audit", "sent-00000") as out:
        write_receivers(out, np.array([0, 2, 3, 7]), np.array([0, 5, 6, 9, 11]))
    write_receiver_index(run, "audit", *range_names("index", 1), ["sent-00000"], 3, np.repeat([0, 1, 2], [1, 3, 4]))
    spans = [read_received_ranges(run, "audit", "index", 1, receiver).tolist() for receiver in range(3)]
    assert spans == [[[0, 0, 5]], [[0, 5, 9]], [[0, 9, 11]]]
