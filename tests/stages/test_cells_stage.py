"""Cells of uneven data: their guests are bounded, and their lists do not depend on the sizes of blocks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import local_context

from dumap.artifacts import cells as artifacts
from dumap.artifacts.job import Job
from dumap.artifacts.neighbors import NeighborLists
from dumap.config import load_config
from dumap.kernels.cells import MAX_GUEST_FILL
from dumap.planning.geometry import guests_at_once
from dumap.recipe.identity import create_run
from dumap.recipe.pipeline import plan
from dumap.stages import cells, neighbors, vectors


def sparse_counts(rows: int, words: int, seed: int = 0) -> np.ndarray:
    """Return rows of a few words each: a leaf near the origin is among the nearest of nearly all of them."""
    rng = np.random.default_rng(seed)
    x = np.zeros((rows, words), np.uint8)
    for _ in range(4):
        x[np.arange(rows), rng.integers(0, words, rows)] = 1
    return x


def done_here(job: Job) -> Job:
    """Do the first three stages in this process."""
    create_run(job, SimpleNamespace(versions={}, cpus=[]))
    context = local_context(job)
    for stage in (vectors, cells, neighbors):
        stage.run(context)
    return job


@pytest.fixture(scope="module")
def job_of(save, new_path):
    """Return a function that prepares a run: `job_of(path, block_rows, **settings)`."""

    def make(path: str, block_rows: int = 0, **settings: object) -> Job:
        values = {"input.path": path, "output": new_path("run.zarr"), "cells.max_rows": 400, "audit.queries": 50}
        config = load_config(
            None, (), {**values, **{name.replace("__", "."): value for name, value in settings.items()}}
        )
        geometry = plan(config).geometry
        if block_rows:
            geometry = replace(geometry, block_rows=block_rows, blocks=-(-geometry.rows // block_rows))
        return Job(config, geometry)

    return make


@pytest.fixture(scope="module")
def bags_path(save):
    """Save 3000 bags of words; return their path."""
    return save(sparse_counts(3000, 200))


@pytest.fixture(scope="module")
def bags_job(job_of, bags_path):
    """Return the job of a run on bags of words whose lists are done."""
    return done_here(job_of(bags_path))


def wave_of(job: Job) -> tuple[int, int]:
    """Return all cells as one wave."""
    return 0, artifacts.CellTable(job.run).cells


def loads_of(job: Job) -> np.ndarray:
    """Return the rows of each cell, its guests included."""
    table = artifacts.CellTable(job.run)
    spans = (table.home_ranges, table.guest_ranges)
    return np.array([sum(of(cell)[:, 1].sum() for of in spans) for cell in range(table.cells)])


def lists_of(job: Job) -> bytes:
    """Return the bytes of all lists."""
    lists = NeighborLists(job.run, 0)
    return b"".join(
        lists.read_cell(cell, array).tobytes()
        for cell in range(lists.table.cells)
        for array in ("indices", "distances")
    )


def test_the_guests_of_a_cell_are_bounded(bags_job):
    table = artifacts.CellTable(bags_job.run)
    loads = loads_of(bags_job)
    homes = np.diff(table.offsets)
    facts = bags_job.run.part_facts("cells", "table")
    assert facts["turned_away"] > 0
    assert facts["largest"] == loads.max()
    row_cells, _ = cells.find_cells(bags_job, 0)
    unbounded = np.bincount(row_cells[row_cells >= 0], minlength=table.cells)
    assert unbounded.max() > 0.5 * len(row_cells), "one cell is wanted by most rows"
    assert (loads <= np.maximum(MAX_GUEST_FILL * np.median(unbounded), 2 * homes)).all()
    assert loads.max() < unbounded.max() / 2
    assert facts["turned_away"] == unbounded.sum() - loads.sum()


def test_the_table_agrees_with_the_sorted_rows(bags_job):
    table, sorted_cells = artifacts.CellTable(bags_job.run), []
    for number in range(table.cells):
        cell = artifacts.Cell(bags_job, number, table, wave_of(bags_job))
        home_positions, guests = cell.positions[: cell.home_rows], cell.positions[cell.home_rows :]
        assert home_positions.tolist() == list(range(*table.offsets[number : number + 2]))
        assert (np.diff(guests) > 0).all()
        x = cell.read_vectors(np.arange(len(cell.positions)))
        sorted_cells.append((cell.positions, x))
    positions, x = np.concatenate([p for p, _ in sorted_cells]), np.concatenate([x for _, x in sorted_cells])
    order = np.argsort(table.positions(bags_job.run, 0))
    assert np.array_equal(x, bags_job.input.read(0, bags_job.geometry.rows)[order][positions])


def test_lists_with_guests_turned_away_do_not_depend_on_blocks(job_of, bags_path, bags_job):
    assert lists_of(done_here(job_of(bags_path, 700))) == lists_of(bags_job)


@pytest.mark.parametrize("group_blocks", [2, 5])
def test_lists_do_not_depend_on_how_blocks_are_sorted(job_of, bags_path, bags_job, group_blocks, monkeypatch):
    monkeypatch.setattr(neighbors, "WAVE_BYTES", 1)
    monkeypatch.setattr("dumap.artifacts.part_names.MAX_PARTS_TO_SUM", 1)
    job = job_of(bags_path, 300)
    job = done_here(replace(job, geometry=replace(job.geometry, group_blocks=group_blocks)))
    waves = neighbors.guest_waves(job.geometry.with_cells(job.run.part_facts("cells", "table")), wave_of(job)[1], 6)
    assert len(waves) > 1
    left = [name for name in job.run.committed_parts("neighbors") if name.startswith("guests-")]
    assert {name for name in left if not job.run.is_dropped("neighbors", name)} == set(
        artifacts.guest_part_names(waves[-1], job.geometry.groups)
    )
    assert lists_of(job) == lists_of(bags_job)


def test_data_without_a_crowd_has_every_guest_it_had(job_of, save, digits):
    job = done_here(job_of(save(digits[0])))
    facts = job.run.part_facts("cells", "table")
    routed = [cells.find_cells(job, group)[0] for group in range(job.geometry.groups)]
    assert facts["cells"] > 8
    assert facts["turned_away"] == 0
    assert facts["stored_rows"] == sum((row_cells >= 0).sum() for row_cells in routed)
    assert "counted-00000" not in job.run.committed_parts("cells")


def test_a_cell_writes_lists_of_those_guests_alone_for_which_it_found_something(bags_job):
    table = artifacts.CellTable(bags_job.run)
    for number in range(table.cells):
        name = f"cell-{number:05d}"
        listed = bags_job.run.read("neighbors", name, "guest_indices")
        assert (listed >= 0).any(axis=1).all()
        guests = bags_job.run.read("neighbors", name, "guests")
        homes, bounds = (bags_job.run.read("neighbors", name, array) for array in ("receivers", "bounds"))
        assert np.array_equal(np.repeat(homes, np.diff(bounds)), np.searchsorted(table.offsets, guests, "right") - 1)
        assert len(guests) <= table.guest_ranges(number)[:, 1].sum()


@pytest.mark.parametrize(
    ("cell_rows", "home_rows", "most"), [(100, 20, 80), (100, 90, 12), (100, 100, 12), (100, 300, 12), (3, 9, 1)]
)
def test_a_cell_full_of_home_rows_still_meets_many_guests_at_once(cell_rows, home_rows, most):
    assert guests_at_once(cell_rows, home_rows) == most


@pytest.mark.parametrize("cell_rows", [1000, 64, 16])
def test_turns_take_each_guest_once(bags_job, cell_rows):
    cell = artifacts.Cell(bags_job, 0, artifacts.CellTable(bags_job.run), wave_of(bags_job))
    cell.job = SimpleNamespace(geometry=replace(bags_job.geometry, cell_rows=cell_rows))
    batches = [rows.tolist() for rows in cell.row_batches()]
    guests = [row for rows in batches for row in rows[cell.home_rows :]]
    assert sorted(guests) == list(range(cell.home_rows, len(cell.positions)))
    assert all(rows[: cell.home_rows] == list(range(cell.home_rows)) for rows in batches)
    assert max(map(len, batches)) <= cell.home_rows + guests_at_once(cell_rows, cell.home_rows)


def test_probes_and_vectors_are_those_of_the_rows_asked_for(bags_job):
    cell = artifacts.Cell(bags_job, 1, artifacts.CellTable(bags_job.run), wave_of(bags_job))
    every = np.arange(len(cell.positions))
    rows = np.random.default_rng(0).permutation(every)[: len(every) // 3]
    assert np.array_equal(cell.read_probes(rows), cell.read_probes(every)[rows])
    assert np.array_equal(cell.read_vectors(rows), cell.read_vectors(every)[rows])
    assert (cell.read_probes(every)[:, 0] >= 0).all()
