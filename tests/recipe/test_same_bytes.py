"""Nothing but data, parameters and seed decides a run's bytes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import zarr
from helpers import SMALL_TASKS, mark_slow_except

from dumap.recipe.pipeline import plan


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
@pytest.mark.parametrize("form", mark_slow_except(FORMS, "rechunked", "one chunk, uint8", "zip, float16"))
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
    shards_and_modes = [(4096, "host"), (65536, "host"), (4096, "rounds")]
    embeddings = {
        embed(long, {**SHARDED, "graph.shard_rows": rows, "layout.mode": mode}).y.tobytes()
        for rows, mode in shards_and_modes
    }
    assert len(embeddings) == 1


@pytest.mark.slow
def test_large_cells_repeat_and_find_the_neighbors(embed, save):
    centers = np.random.default_rng(2).normal(size=(30, 20)) * 3
    x = (centers[np.arange(5000) % 30] + np.random.default_rng(3).normal(size=(5000, 20))).astype(np.float32)
    first, again = (embed(save(x, rows), {"cells.max_rows": 4000, "audit.queries": 1000}) for rows in (500, 5000))
    assert first.facts("cells")["largest"] > 1024
    assert first.facts("audit")["recall"] >= 0.97
    assert first.y.tobytes() == again.y.tobytes()
