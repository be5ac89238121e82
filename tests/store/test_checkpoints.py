"""Checkpoints of passes: what a committed one holds, and which earlier ones are removed."""

from itertools import pairwise

import numpy as np
import pytest

from dumap.errors import DamageError
from dumap.store import Checkpoints, Run

OFFSETS = np.array([0, 4, 8, 10])


@pytest.fixture
def checkpoints(new_path) -> Checkpoints:
    """Return the checkpoints of a stage, none of which is committed yet."""
    run = Run(new_path("run.zarr"))
    run.create({"kind": "dumap run", "parameters": {}, "versions": {}, "input": {}})
    return Checkpoints(run, "layout", "piece")


def write(checkpoints: Checkpoints, number: int, cuts: list[int]) -> list[str]:
    """Write a pass in pieces of some shards each; a row holds its own number and the pass's."""
    names = []
    for first, last in pairwise(cuts):
        rows = np.arange(OFFSETS[first], OFFSETS[last])
        names.append(checkpoints.piece_name(number, first, last))
        with checkpoints.run.part("layout", names[-1]) as out:
            out.write("y", np.stack([rows, np.full_like(rows, number)], axis=1))
    return names


def test_a_pass_counts_once_it_is_committed(checkpoints):
    names = write(checkpoints, 1, [0, 2, 3])
    assert (checkpoints.numbers(), checkpoints.latest()) == ([], 0)
    checkpoints.commit(1, names, OFFSETS, left=7)
    assert checkpoints.run.summary("layout", checkpoints.name(1))["left"] == 7
    assert checkpoints.read(1, "y", 3, 9).tolist() == [[row, 1] for row in range(3, 9)]
    assert checkpoints.read(1, "y", 8, 10)[:, 0].tolist() == [8, 9]


def test_passes_may_be_cut_otherwise_and_replace_those_before(checkpoints):
    checkpoints.commit(1, write(checkpoints, 1, [0, 2, 3]), OFFSETS)
    left_over = write(checkpoints, 2, [0, 1, 3])
    checkpoints.commit(2, write(checkpoints, 2, [0, 3]), OFFSETS)
    assert checkpoints.numbers() == [2]
    assert checkpoints.latest(1) == 0
    assert checkpoints.read(2, "y", 0, 10).tolist() == [[row, 2] for row in range(10)]
    assert set(checkpoints.run.committed("layout")) == {checkpoints.name(2), *checkpoints.pieces(2)}
    assert not set(left_over) & set(checkpoints.run.committed("layout"))


def test_a_pass_that_lost_a_piece_no_longer_counts(checkpoints):
    names = write(checkpoints, 1, [0, 1, 2, 3])
    checkpoints.commit(1, names, OFFSETS)
    checkpoints.uncommit_broken()
    assert checkpoints.latest() == 1
    checkpoints.run.forget("layout", names[1])
    with pytest.raises(DamageError):
        checkpoints.read(1, "y", 0, 10)
    checkpoints.uncommit_broken()
    assert checkpoints.latest() == 0


@pytest.mark.parametrize("prefix", ["", "more-"])
def test_a_pieces_name_tells_its_place(checkpoints, prefix):
    assert Checkpoints.parse_piece_name(prefix + checkpoints.piece_name(3, 100_000, 123_456)) == (3, 100_000, 123_456)
