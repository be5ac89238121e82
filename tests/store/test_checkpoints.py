"""Checkpoints of passes: what a committed one holds, and which earlier ones are removed."""

import threading
from itertools import pairwise

import numpy as np
import pytest

from dumap.errors import DamageError, StorageError
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
    assert checkpoints.run.part_facts("layout", checkpoints.name(1))["left"] == 7
    assert checkpoints.read(1, "y", 3, 9).tolist() == [[row, 1] for row in range(3, 9)]
    assert checkpoints.read(1, "y", 8, 10)[:, 0].tolist() == [8, 9]


def test_passes_may_be_cut_otherwise_and_replace_those_before(checkpoints):
    checkpoints.commit(1, write(checkpoints, 1, [0, 2, 3]), OFFSETS)
    left_over = write(checkpoints, 2, [0, 1, 3])
    checkpoints.commit(2, write(checkpoints, 2, [0, 3]), OFFSETS)
    assert checkpoints.numbers() == [2]
    assert checkpoints.latest(1) == 0
    assert checkpoints.read(2, "y", 0, 10).tolist() == [[row, 2] for row in range(10)]
    assert set(checkpoints.run.committed_parts("layout")) == {checkpoints.name(2), *checkpoints.pieces(2)}
    assert not set(left_over) & set(checkpoints.run.committed_parts("layout"))


def test_a_pass_that_lost_a_piece_no_longer_counts(checkpoints):
    names = write(checkpoints, 1, [0, 1, 2, 3])
    checkpoints.commit(1, names, OFFSETS)
    checkpoints.uncommit_broken()
    assert checkpoints.latest() == 1
    checkpoints.run.uncommit("layout", names[1])
    with pytest.raises(DamageError):
        checkpoints.read(1, "y", 0, 10)
    checkpoints.uncommit_broken()
    assert checkpoints.latest() == 0


@pytest.mark.parametrize("prefix", ["", "more-"])
def test_a_pieces_name_tells_its_place(checkpoints, prefix):
    assert Checkpoints.parse_piece_name(prefix + checkpoints.piece_name(3, 100_000, 123_456)) == (3, 100_000, 123_456)


SECONDS = 30


def test_old_passes_are_removed_in_the_background_many_at_once(checkpoints, monkeypatch):
    last_is_committed, deleted, delete_keys = threading.Event(), [], Run.delete_keys

    def delete_slowly(self, keys):
        assert last_is_committed.wait(SECONDS), "a commit waits for deletions"
        deleted.append(list(keys))
        delete_keys(self, keys)

    monkeypatch.setattr(Run, "delete_keys", delete_slowly)
    with checkpoints.background_removal(0):
        for number in range(1, 9):
            checkpoints.commit(number, write(checkpoints, number, [0, 1, 2, 3]), OFFSETS)
        assert checkpoints.numbers() == list(range(1, 9))
        last_is_committed.set()
    assert checkpoints.numbers() == [8]
    assert set(checkpoints.run.committed_parts("layout")) == {checkpoints.name(8), *checkpoints.pieces(8)}
    assert len([keys for keys in deleted if keys]) <= 6, "the manifests of passes and of pieces, and the objects, twice"


def commit_passes(
    checkpoints: Checkpoints, passes: range, durable: tuple[int, ...] = (), error: BaseException | None = None
):
    """Commit passes while a thread removes those before them, and raise an error in the end."""
    with checkpoints.background_removal(passes.start - 1):
        for number in passes:
            checkpoints.commit(number, write(checkpoints, number, [0, 3]), OFFSETS, durable=number in durable)
        if error is not None:
            raise error


@pytest.mark.parametrize(("count", "kept"), [(1, [1]), (3, [2, 3]), (4, [2, 4]), (5, [5]), (6, [5, 6])])
def test_the_last_durable_pass_stays_until_another_is_committed(checkpoints, count, kept):
    commit_passes(checkpoints, range(1, 1 + count), durable=(2, 5))
    assert checkpoints.numbers() == kept


@pytest.fixture
def deletions_fail(monkeypatch):
    """Let every deletion fail; return what undoes this."""

    def fail(self, keys):
        if keys:
            raise StorageError("not allowed")

    monkeypatch.setattr(Run, "delete_keys", fail)
    return monkeypatch.undo


@pytest.mark.parametrize("count", [2, 4])
def test_an_error_of_a_removal_is_raised_and_the_next_driver_removes_the_rest(checkpoints, deletions_fail, count):
    with pytest.raises(StorageError, match="not allowed"):
        commit_passes(checkpoints, range(1, 1 + count))
    latest = checkpoints.latest()
    assert checkpoints.numbers() == list(range(1, 1 + latest))
    deletions_fail()
    commit_passes(checkpoints, range(1 + latest, 1 + latest))
    assert checkpoints.numbers() == [latest]
    assert set(checkpoints.run.committed_parts("layout")) >= set(checkpoints.pieces(latest))


@pytest.mark.usefixtures("deletions_fail")
def test_an_interruption_is_not_hidden_by_a_removal_that_fails(checkpoints):
    with pytest.raises(KeyboardInterrupt) as interrupted:
        commit_passes(checkpoints, range(1, 3), error=KeyboardInterrupt())
    assert "not allowed" in interrupted.value.__notes__[0]
