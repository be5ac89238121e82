"""Nothing but data, parameters and seed decides a run's bytes."""

from __future__ import annotations

import shutil
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from helpers import SMALL_TASKS, slowly

from dumap.artifacts.graph import Graph
from dumap.artifacts.part_names import START
from dumap.artifacts.start import BOX, StartCoordinates
from dumap.config import StartConfig
from dumap.kernels import coarse
from dumap.kernels.start import residual
from dumap.recipe.pipeline import plan, run
from dumap.stages import rounds, start
from dumap.store import Run


def _columns(save, x):
    """Save rows in chunks that split columns, too."""
    path = save(x[:1])
    zarr.open_group(path).create_array(
        "vectors", data=x, chunks=(100, 7), overwrite=True, config={"write_empty_chunks": True}
    )
    return path


FORMS = {
    "rechunked": lambda save, x: save(x, 1000),
    "uneven chunks, float64": lambda save, x: save(x.astype(np.float64), 77),
    "one chunk, uint8": lambda save, x: save(x.astype(np.uint8), 1200),
    "columns cut": _columns,
    "sharded, int8": lambda save, x: save(x.astype(np.int8), 50, shards=(200, 64)),
    "version 2, big-endian": lambda save, x: save(x.astype(">f4"), 100, zarr_format=2),
    "an array, int32": lambda save, x: save(x.astype(np.int32), 100) + "/vectors",
    "zip, float16": lambda save, x: shutil.make_archive(path := save(x.astype(np.float16), 100), "zip", path),
}
"""The same values, otherwise stored: a store's path of each."""


@pytest.mark.fault(31)
@pytest.mark.fault(32)
@pytest.mark.fault(33)
@pytest.mark.parametrize("form", slowly(FORMS, "rechunked", "one chunk, uint8", "zip, float16"))
def test_the_inputs_form_changes_no_byte(embed, save, digits_1200, expected_bytes, form):
    assert embed(FORMS[form](save, digits_1200), SMALL_TASKS).y.tobytes() == expected_bytes


def test_the_inputs_form_changes_the_blocks(configure, save, digits_1200):
    """Else the tests around it would tell nothing."""
    blocks = [plan(configure(save(digits_1200, rows), SMALL_TASKS)).geometry.blocks for rows in (100, 1000)]
    assert blocks == [3, 2]


@pytest.mark.fault(32)
@pytest.mark.slow
def test_chunks_of_one_row_change_no_byte(embed, save, digits_1200, expected_bytes):
    assert embed(save(digits_1200, 1), SMALL_TASKS).y.tobytes() == expected_bytes


def test_rounds_change_no_byte(embed, digits_1200, run_1200):
    done = embed(digits_1200, {**SMALL_TASKS, "layout.mode": "rounds", "layout.checkpoint_every": 7})
    assert (run_1200.facts("layout")["mode"], done.facts("layout")["mode"]) == ("host", "rounds")
    assert done.facts("layout")["loss"] == run_1200.facts("layout")["loss"]
    assert done.y.tobytes() == run_1200.y.tobytes()


@pytest.mark.parametrize("ranges", [[(0, 5)], [(0, 1), (1, 5)], [(0, 3), (3, 5)]])
def test_the_residual_does_not_depend_on_how_shards_are_divided(fresh, ranges):
    run = Run(fresh("run.zarr"))
    scale = np.array([1, 1e-3, 1, 1e-3, 1, 0.1])[:, None]
    moments = scale * np.random.default_rng(0).lognormal(0, 3, size=(5, 6, 2))
    for low, high in ranges:
        with run.part(START, f"smoothed-{low}") as out:
            out.attributes |= {"low": [0, 0], "high": [1, 1], "moments": moments[low:high].tolist()}
    start.find_box(SimpleNamespace(run=run), BOX, [f"smoothed-{low}" for low, _ in ranges], {})
    total = moments[0] + moments[1] + moments[2] + moments[3] + moments[4]
    assert run.summary(START, BOX)["facts"]["residual"] == residual(total)


def test_packed_edges_are_freed_before_the_embedding_is_written(embed, client, digits_1200):
    done = embed(digits_1200, {**SMALL_TASKS, "layout.mode": "rounds", "layout.n_epochs": 2}, client)
    assert done.facts("layout")["mode"] == "rounds"
    kept = client.run(lambda: rounds._packed.bytes)
    assert len(kept) > 1
    assert 0 in kept.values()


def test_the_loss_is_told_at_each_checkpoint_and_falls(run_1200):
    losses = run_1200.facts("layout")["loss"]
    assert [epoch for epoch, _ in losses] == [7, 14, 20]
    assert 2 > losses[0][1] > losses[-1][1] > 0.1


def test_workers_change_no_byte(embed, client, digits_1200, expected_bytes):
    """What is expected was made without any. Workers that a run starts itself: see tests/engine/test_connect.py."""
    assert embed(digits_1200, SMALL_TASKS, client).y.tobytes() == expected_bytes


def test_the_seed_and_the_data_change_the_bytes(embed, digits_1200, expected_bytes):
    assert embed(digits_1200, {**SMALL_TASKS, "seed": 43}).y.tobytes() != expected_bytes
    assert embed(digits_1200[::-1], SMALL_TASKS).y.tobytes() != expected_bytes


SHARDED = {"cells.max_rows": 1000, "neighbors.n_neighbors": 5, "start.coarse_epochs": 20, "graph.shard_rows": 4096}


@pytest.fixture(scope="module")
def long(save):
    """Return rows of three shards."""
    return save(np.random.default_rng(1).normal(size=(9000, 3)).astype(np.float32))


@pytest.mark.slow
def test_shards_change_no_byte(embed, long):
    ways = [(4096, "host"), (65536, "host"), (4096, "rounds")]
    found = {embed(long, {**SHARDED, "graph.shard_rows": rows, "layout.mode": mode}).y.tobytes() for rows, mode in ways}
    assert len(found) == 1


@pytest.mark.slow
@pytest.mark.parametrize("init", ["pca", "array"])
def test_starts_are_the_same_however_rows_are_cut(embed, save, fresh, init):
    rng = np.random.default_rng(2)
    x, given = rng.normal(size=(9000, 8)).astype(np.float32), fresh("init.zarr")
    zarr.create_array(given, data=rng.normal(size=(9000, 2)), chunks=(700, 1))
    found = set()
    for chunk, rows in ((500, 65536), (9000, 4096)):
        settings = {"task_memory": 2**23, "graph.shard_rows": rows, "start.init": given if init == "array" else init}
        done = embed(save(x, chunk), settings)
        found.add(starts_of(done).tobytes())
    assert len(found) == 1


def starts_of(done) -> np.ndarray:
    """Read a run's first coordinates."""
    run = Run(done.output, read_only=True)
    shards = len(Graph(run).shards)
    return np.concatenate([StartCoordinates(run, shards).read(shard) for shard in range(shards)])


def test_the_coarse_graph_is_laid_out_unless_told_otherwise(embed, digits_1200, run_1200):
    assert StartConfig().coarse_epochs > 0
    done = embed(digits_1200, {**SMALL_TASKS, "start.coarse_epochs": 0})
    assert [way.facts("start")["coarse_epochs"] for way in (run_1200, done)] == [20, 0]
    reach = [np.ptp(starts_of(way), axis=0) for way in (run_1200, done)]
    assert (np.abs(reach[0] - coarse.SPAN) > 0.1).any(), "not stretched to the box"
    np.testing.assert_allclose(reach[1], coarse.SPAN, atol=0.01)
    losses = [way.facts("layout")["loss"][-1][1] for way in (run_1200, done)]
    assert losses[0] < losses[1]


EXCHANGE = {**SHARDED, "layout.n_epochs": 50, "layout.exchange_every": 4}


@pytest.mark.slow
def test_shards_that_are_exchanged_less_often(embed, client, long):
    """Whoever does which shards: three of them, on two workers or none; the map is near that of exchanging always."""
    done = embed(long, {**EXCHANGE, "layout.checkpoint_every": 15}, client)
    assert done.facts("layout")["mode"] == "rounds"
    losses = done.facts("layout")["loss"]
    assert [epoch for epoch, _ in losses] == [16, 32, 48, 50]
    assert embed(long, EXCHANGE).y.tobytes() == done.y.tobytes()
    always = embed(long, {**EXCHANGE, "layout.exchange_every": 1})
    assert always.y.tobytes() != done.y.tobytes()
    assert losses[-1][1] == pytest.approx(always.facts("layout")["loss"][-1][1], rel=0.05)


@pytest.mark.parametrize("least_fall", slowly([0.05, 0.9], 0.9))
def test_a_loss_that_has_settled_ends_the_layout(embed, configure, digits_1200, least_fall):
    """In one process, in rounds, and going on from a checkpoint."""
    settings = {**SMALL_TASKS, "layout.n_epochs": 100, "layout.least_fall": least_fall, "layout.checkpoint_every": 7}
    done = embed(digits_1200, settings)
    last, losses = done.facts("layout")["epochs"], dict(done.facts("layout")["loss"])
    check_epochs = [losses[epoch] for epoch in range(10, last + 1, 10)]
    falls = [1 - after / before for before, after in pairwise(check_epochs)]
    assert last % 10 == 0
    assert last < 100
    assert falls[-1] < least_fall
    assert all(fall >= least_fall for fall in falls[:-1])
    rounds = embed(digits_1200, {**settings, "layout.mode": "rounds"})
    assert rounds.facts("layout") == {**done.facts("layout"), "mode": "rounds"}
    assert rounds.y.tobytes() == done.y.tobytes()
    store = Run(done.output)
    for stage in ("layout", "embedding", "quality"):
        store.forget("done", stage)
    store.forget("layout", "end")
    assert run(configure(digits_1200, {**settings, "output": done.output}))["state"] == "done"
    assert Run(done.output).summary("layout", "end")["epoch"] == last


@pytest.mark.slow
def test_large_cells_repeat_and_find_the_neighbors(embed, save):
    centers = np.random.default_rng(2).normal(size=(30, 20)) * 3
    x = (centers[np.arange(5000) % 30] + np.random.default_rng(3).normal(size=(5000, 20))).astype(np.float32)
    first, again = (embed(save(x, rows), {"cells.max_rows": 4000, "audit.queries": 1000}) for rows in (500, 5000))
    assert first.facts("cells")["largest"] > 1024
    assert first.facts("audit")["recall"] >= 0.97
    assert first.y.tobytes() == again.y.tobytes()
