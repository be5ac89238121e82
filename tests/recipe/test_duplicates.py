"""Equal rows: embedded once if the setting says so, and each with the same coordinates."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import SMALL_TASKS, mark_slow_except
from scipy import sparse

from dumap.artifacts.vectors import DROPPED, DUPLICATE
from dumap.errors import InputError
from dumap.recipe.pipeline import plan, run
from dumap.store import MANIFESTS

ONCE = {"input.unique": True, "neighbors.n_neighbors": 6}
SMALL = {**ONCE, "input.nonfinite": "drop", "task_memory": 2**16, "audit.queries": 100}
"""Ten blocks of 32 rows, two buckets of hashes, cells of 68."""


def first_rows(x: np.ndarray) -> np.ndarray:
    """Return the first row equal to the bit of each row."""
    first_of = {}
    return np.array([first_of.setdefault(row.tobytes(), i) for i, row in enumerate(x)])


@pytest.fixture(scope="module")
def rows_with_duplicates(digits_300):
    """Return 320 rows in disorder: 200 distinct ones, some of them not finite, some with 1 to 40 copies."""
    rng = np.random.default_rng(0)
    times = np.ones(200, int)
    times[[3, 50, 51, 120, 199]] = 41, 30, 20, 20, 14
    x = digits_300[rng.permutation(np.repeat(np.arange(200), times))]
    for row in (digits_300[10], digits_300[51]):  # one of which has copies
        x[(x == row).all(axis=1), 5] = np.nan
    return x


@pytest.fixture(scope="module")
def unique_run(embed, save, rows_with_duplicates):
    """Return a finished run that embeds equal rows once."""
    return embed(save(rows_with_duplicates, 50), SMALL)


def test_duplicates_have_the_coordinates_of_their_first_rows(unique_run, rows_with_duplicates):
    first, dropped = first_rows(rows_with_duplicates), ~np.isfinite(rows_with_duplicates).all(axis=1)
    copy = ~dropped & (first != np.arange(len(rows_with_duplicates)))
    np.testing.assert_array_equal(unique_run.flags, np.where(dropped, DROPPED, 0) | np.where(copy, DUPLICATE, 0))
    np.testing.assert_array_equal(np.isnan(unique_run.y).any(axis=1), dropped)
    assert unique_run.y[~dropped].tobytes() == unique_run.y[first[~dropped]].tobytes()
    assert len(np.unique(unique_run.y[~dropped], axis=0)) == (~dropped & ~copy).sum()
    facts = unique_run.facts("vectors")
    assert facts["dropped"] == dropped.sum() > 2
    assert facts["duplicates_left_out"] == facts["duplicates"] == copy.sum() > 80
    assert facts["distinct"] == (~dropped & ~copy).sum()
    assert facts["greatest_multiplicity"] == 41
    assert unique_run.facts("cells")["rows"] == facts["distinct"]
    assert unique_run.facts("cells")["cells"] > 1


def test_exports_of_duplicates(unique_run, rows_with_duplicates):
    first, dropped = first_rows(rows_with_duplicates), ~np.isfinite(rows_with_duplicates).all(axis=1)
    distinct = np.flatnonzero(~dropped & (first == np.arange(len(rows_with_duplicates))))
    indices, distances = unique_run.neighbors()
    assert np.isin(indices[~dropped], distinct).all()
    assert (indices[~dropped] != first[~dropped, None]).all()
    np.testing.assert_array_equal(indices[~dropped], indices[first[~dropped]])
    np.testing.assert_array_equal(distances[~dropped], distances[first[~dropped]])
    assert (distances > 0).all()
    graph = sparse.load_npz(unique_run.export("graph", ".npz"))
    edges = np.diff(graph.indptr)
    assert (edges[distinct] > 0).all()
    assert edges[distinct].sum() == graph.nnz == unique_run.facts("graph")["edges"]
    np.testing.assert_array_equal(np.load(unique_run.export("embedding", ".npy")), unique_run.y)


def test_the_audit_searches_distinct_rows_alone(unique_run, rows_with_duplicates):
    """Else the exact neighbours of a row with copies would be those, and its lists be wrong."""
    facts = unique_run.facts("audit")
    assert facts["queries"] > 50
    assert facts["recall_within_cells"] == 1.0
    assert facts["recall"] > 0.8


@pytest.mark.parametrize("rows", mark_slow_except([1, 7, 64]))
def test_the_inputs_chunks_change_no_byte_with_duplicates(embed, save, rows_with_duplicates, unique_run, rows):
    done = embed(save(rows_with_duplicates, rows), {**SMALL, "audit.queries": 0})
    assert done.y.tobytes() == unique_run.y.tobytes()
    assert done.flags.tobytes() == unique_run.flags.tobytes()


def test_duplicates_are_the_same_after_a_stopped_run(configure, inspect, save, rows_with_duplicates, unique_run):
    config = configure(save(rows_with_duplicates, 50), SMALL)
    shutil.copytree(unique_run.output, config.output)
    for gone in (
        "run/*",
        "vectors/distinct-*[13]",
        "vectors/duplicates-*1",
        "graph/repeated_positions-*2",
        "graph/[uw]*",
        "layout/*",
    ):
        for manifest in Path(config.output, MANIFESTS).glob(f"{gone}.json"):
            manifest.unlink()
    for name in ("distinct-00003", "duplicates-00001"):
        assert not Path(config.output, f"{MANIFESTS}/vectors/{name}.json").exists()
    run(config)
    assert inspect(config.output).y.tobytes() == unique_run.y.tobytes()


def test_unique_changes_nothing_without_duplicates(embed, digits_1200, expected_bytes):
    done = embed(digits_1200, {**SMALL_TASKS, "input.unique": True})
    assert done.facts("vectors")["duplicates_left_out"] == 0
    assert done.y.tobytes() == expected_bytes


@pytest.mark.slow
def test_the_graph_is_that_of_the_distinct_rows_alone(embed, digits_300):
    """Copies come last, so that ids are the same; where nothing repels, so is the map."""
    distinct = digits_300.copy()
    distinct[[8, 9], 3] = np.nan
    x = np.concatenate([distinct, distinct[[8, 8, 30]], np.repeat(distinct[40:43], 50, axis=0)])
    for rate in (0.0, 5.0):
        settings = {**ONCE, "input.nonfinite": "drop", "layout.negative_sample_rate": rate}
        whole, alone = embed(x, settings), embed(distinct, {**settings, "input.unique": False})
        assert (whole.y[: len(digits_300)].tobytes() == alone.y.tobytes()) == (rate == 0)
        for array, other in zip(whole.neighbors(), alone.neighbors(), strict=True):
            assert array[: len(digits_300)].tobytes() == other.tobytes()
        a, b = (sparse.load_npz(done.export("graph", ".npz")) for done in (whole, alone))
        assert (a[: len(digits_300), : len(digits_300)] != b).nnz == 0
        assert whole.facts("graph") == alone.facts("graph")
        assert whole.facts("vectors")["duplicates_left_out"] == 151


@pytest.mark.slow
def test_rows_repel_as_many_as_they_are(embed):
    """A place that 601 rows share keeps its neighbours at a distance."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8)).astype(np.float32)
    heavy = np.concatenate([x, np.repeat(x[:1], 600, axis=0)])
    settings = {**ONCE, "layout.n_epochs": 200}

    def room(done) -> float:
        """Return how near row 0's nearest rows are, to the usual."""
        near = np.sort(np.linalg.norm(done.y[:600, None] - done.y[None, :600], axis=2), axis=1)[:, 1:6].mean(axis=1)
        return float(near[0] / np.median(near))

    assert room(embed(heavy, settings)) > 1.5 * room(embed(x, settings))


@pytest.mark.slow
def test_rounds_draw_as_one_process_does(embed, save):
    """Two shards, both of which have rows with copies."""
    x = np.random.default_rng(1).normal(size=(4400, 6)).astype(np.float32)
    x = save(np.concatenate([x, x[:300], x[4000:], x[4000:4100]]), 1000)
    modes = [embed(x, {**ONCE, "graph.shard_rows": 4096, "layout.mode": mode}) for mode in ("host", "rounds")]
    assert modes[0].y.tobytes() == modes[1].y.tobytes()
    assert modes[0].facts("layout")["loss"] == modes[1].facts("layout")["loss"]
    assert modes[0].facts("vectors")["duplicates_left_out"] == 800


def test_too_few_distinct_rows_are_refused(configure, embed, digits_300):
    with pytest.raises(InputError, match=r"leaves 6 distinct rows, too few for .* = 6: give at least 7, or, .* most 5"):
        run(configure(np.repeat(digits_300[:6], 9, axis=0), ONCE))
    done = embed(np.repeat(digits_300[:7], 9, axis=0), {**ONCE, "audit.queries": 30})
    assert len(np.unique(done.y, axis=0)) == 7


def test_few_distinct_rows_among_many_fill_their_cells(embed, digits_300):
    """The cut is made for all rows; cells, sample and queries are of the distinct ones."""
    x = np.random.default_rng(0).permutation(np.repeat(digits_300[:150], 100, axis=0))
    done = embed(x, {**ONCE, "cells.max_rows": 80, "audit.queries": 100})
    assert done.facts("cells")["smallest"] >= 7
    assert done.facts("graph")["missing"] == 0
    assert done.facts("quality")["queries"] > 70
    assert done.facts("audit")["recall"] > 0.8


def test_rows_whose_first_hashes_collide_are_not_duplicates(digits_300, configure, save, monkeypatch):
    """The first hash of all rows is the same: the second tells them apart."""
    from dumap.artifacts.job import Job
    from dumap.artifacts.part_names import part_names
    from dumap.artifacts.vectors import read_duplicates
    from dumap.kernels import hashing
    from dumap.planning.budget import tally_buckets
    from dumap.stages import vectors as stage

    hashes = hashing.hash_rows
    monkeypatch.setattr(
        stage.hashing,
        "hash_rows",
        lambda rows, is_second=False: hashes(rows, True) if is_second else hashes(rows) * np.uint64(0),
    )
    config = configure(save(np.concatenate([digits_300, digits_300[5:8]]), 60), {**ONCE, "task_memory": 2**16})
    geometry = plan(config).geometry
    job, buckets = Job(config, geometry), tally_buckets(config, geometry.rows)
    for part in part_names("block", geometry.blocks):
        stage.check_block(job, part)
    for part in part_names("duplicates", buckets):
        stage.count_duplicates(job, part, buckets)
    first_of = {}
    for block, part in enumerate(part_names("distinct", geometry.blocks)):
        stage.find_duplicates(job, part, buckets, 300)
        duplicates, firsts = read_duplicates(job.run, block)
        first_of |= dict(zip((duplicates + geometry.rows_of_block(block)[0]).tolist(), firsts.tolist(), strict=True))
    assert first_of == {300: 5, 301: 6, 302: 7}
