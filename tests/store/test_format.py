"""The format: a stored run is read by this version, others are refused; how much a part costs a disk."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from dumap.errors import DamageError, StorageError
from dumap.recipe.damage import verify
from dumap.recipe.stage_names import RUN_KEYS
from dumap.recipe.status import status
from dumap.store import FORMAT, Checkpoints, Run
from dumap.store.run import MAPPING_ATTRIBUTES

FOLDER = Path(__file__).parents[1]


@pytest.fixture
def stored_run(tmp_path) -> str:
    """Unpack the run of this format that is kept in tests/fixtures."""
    shutil.unpack_archive(FOLDER / "fixtures" / f"run-{FORMAT}.zip", tmp_path / "run.zarr")
    return str(tmp_path / "run.zarr")


def test_a_run_that_was_kept_is_read(stored_run):
    assert status(stored_run)["state"] == "done"
    assert verify(stored_run) == []
    group = zarr.open_group(stored_run, mode="r")
    assert group.attrs["dumap"]["format"] == FORMAT
    assert group.attrs["dumap"]["input"]["shape"] == [80, 4]
    assert np.isfinite(group["embedding"][:]).all()
    assert group["status"][:].tolist() == [0] * 80
    assert Run(stored_run, read_only=True).read("neighbors", "lists-00000", "indices").shape == (80, 4)


@pytest.mark.parametrize("version", [9, 10, 11])
def test_a_run_of_an_older_format_is_refused_in_a_line(tmp_path, cli, version):
    attributes = {"format": version, "kind": "dumap run", "parameters": {}, "input": {}, "versions": {}}
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    outcome = cli("status", tmp_path)
    assert outcome.code == StorageError.exit_code
    assert f"has format {version}; this version of dumap reads format {FORMAT}: name another output" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


# what a part costs a disk ------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Run:
    """Return a run that has been created and holds nothing yet."""
    run = Run(str(tmp_path / "run.zarr"))
    run.create({"seed": 42, **{key: {} for key in MAPPING_ATTRIBUTES}})
    run.make_folders(RUN_KEYS)
    return run


@pytest.fixture
def costs(monkeypatch) -> dict[str, int]:
    """Count names given to files, and flushes."""
    counts = {"writes": 0, "flushes": 0}

    def counted(name: str, what: str) -> None:
        real = getattr(os, name)

        def call(*arguments):
            counts[what] += 1
            return real(*arguments)

        monkeypatch.setattr(os, name, call)

    for name, what in (("replace", "writes"), ("link", "writes"), ("fsync", "flushes")):
        counted(name, what)
    return counts


@pytest.mark.parametrize("durable", [True, False])
def test_a_part_takes_three_writes_and_four_flushes_at_the_most(run, costs, durable):
    values = np.arange(3000).reshape(1000, 3)
    with run.part("graph", "p", durable) as part:
        part.write("a", values)
        part.write("b", values[:5])
        part.write_gathered("c", values, np.arange(1000)[::-1].copy())
    assert costs["writes"] <= 3
    assert costs["flushes"] <= (4 if durable else 0)
    assert Run(run.location).read("graph", "p", "c", 0, 2).tolist() == values[::-1][:2].tolist()


def test_a_pass_that_is_not_durable_keeps_the_last_that_is(run):
    checkpoints = Checkpoints(run, "layout", "state")

    def commit(number: int, durable: bool) -> None:
        piece = checkpoints.piece_name(number, 0, 1)
        with run.part("layout", piece, durable) as part:
            part.write("y", np.full(3, number))
        checkpoints.commit(number, [piece], np.array([0, 3]), durable)

    for number, durable in enumerate((False, True, False, False), 1):
        commit(number, durable)
    assert checkpoints.numbers() == [2, 4]
    run.uncommit("layout", checkpoints.piece_name(4, 0, 1))  # as a lost machine may
    checkpoints.uncommit_broken()
    assert checkpoints.latest() == 2
    assert checkpoints.read(2, "y", 0, 3).tolist() == [2, 2, 2]
    commit(5, True)
    assert checkpoints.numbers() == [5]
    with pytest.raises(DamageError):
        run.read("layout", checkpoints.piece_name(2, 0, 1), "y")
