"""The start: smoothed coordinates of the coarse graph, principal axes, random or given ones, in a box."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from helpers import ActAtStageStart, local_context, stack_edges

from dumap.artifacts.cells import CellTable
from dumap.artifacts.coarsen import label_checkpoints
from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import START
from dumap.artifacts.start import BOX, COARSE, StartCoordinates, smoothing_checkpoints
from dumap.config import StartConfig
from dumap.kernels import coarse, start
from dumap.recipe.pipeline import plan, run
from dumap.stages.start import SMOOTHING_PASSES, find_bounding_box, run_spectral_start
from dumap.store import Run

JITTER = 1e-3
"""Width of the jitter that parts equal coordinates."""


def starts_of(done) -> np.ndarray:
    """Read a run's first coordinates, by position."""
    store = Run(done.output, read_only=True)
    shards = len(Graph(store).shards)
    return np.concatenate([StartCoordinates(store, shards).read(shard) for shard in range(shards)])


def in_rows(done, values: np.ndarray) -> np.ndarray:
    """Sort values of the rows of a run of one block by position."""
    store, by_position = Run(done.output, read_only=True), np.empty(values.shape)
    by_position[CellTable(store).positions(store, 0)] = values
    return by_position


def boxed(y: np.ndarray) -> np.ndarray:
    """Stretch coordinates to the box."""
    low, high = y.min(axis=0), y.max(axis=0)
    return start.BOX_SIDE * (y - low) / (high - low)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_smoothing_moves_rows_half_way_to_their_neighbors(configure, two_groups):
    """All passes over the shards are those of the whole graph as one matrix."""
    settings = {"neighbors.n_neighbors": 5, "graph.shard_rows": 4096, "cluster.engine": "local"}
    config = configure(two_groups, settings)
    with pytest.raises(KeyboardInterrupt):
        run(config, observer=ActAtStageStart(START, interrupt))
    job = Job(config, plan(config).geometry)
    graph = Graph(job.run)
    run_spectral_start(local_context(job), graph)
    labels, whole = label_checkpoints(job.run), stack_edges(graph)
    last_labels = labels.read(labels.latest(), "labels", 0, 5020)
    y = start.place_at_labels(last_labels, job.run.read(START, COARSE, "y"), config.layout_seed).astype(np.float64)
    for _ in range(SMOOTHING_PASSES):
        y = (y + whole @ y / whole.sum(axis=1).A1[:, None]) / 2
    np.testing.assert_allclose(
        smoothing_checkpoints(job.run).read(SMOOTHING_PASSES, "y", 0, 5020), y, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("ranges", [[(0, 5)], [(0, 1), (1, 5)], [(0, 3), (3, 5)]])
def test_the_residual_does_not_depend_on_how_shards_are_divided(new_path, ranges):
    store = Run(new_path("run.zarr"))
    scale = np.array([1, 1e-3, 1, 1e-3, 1, 0.1])[:, None]
    moments = scale * np.random.default_rng(0).lognormal(0, 3, size=(5, 6, 2))
    for low, high in ranges:
        with store.part(START, f"smoothed-{low}") as out:
            out.attributes |= {"low": [0, 0], "high": [1, 1], "moments": moments[low:high].tolist()}
    find_bounding_box(SimpleNamespace(run=store), BOX, [f"smoothed-{low}" for low, _ in ranges], {})
    total = moments[0] + moments[1] + moments[2] + moments[3] + moments[4]
    assert store.part_facts(START, BOX)["facts"]["residual"] == start.eigenvector_residual(total)


def test_the_coarse_graph_is_laid_out_unless_told_otherwise(embed, digits):
    assert StartConfig().coarse_epochs > 0
    runs = [embed(digits[0][:1200], {"start.coarse_epochs": epochs}) for epochs in (20, 0)]
    assert [done.facts("start")["coarse_epochs"] for done in runs] == [20, 0]
    spans = [np.ptp(starts_of(done), axis=0) for done in runs]
    assert (np.abs(spans[0] - coarse.BOX_SIDE) > 0.1).any(), "not stretched to the box"
    np.testing.assert_allclose(spans[1], coarse.BOX_SIDE, atol=0.01)
    losses = [done.facts("layout")["loss"][-1][1] for done in runs]
    assert losses[0] < losses[1]


def test_a_start_by_pca_is_the_rows_along_their_principal_axes(embed, digits_300):
    done = embed(digits_300, {"start.init": "pca"})
    centred = digits_300.astype(np.float64) - digits_300.mean(axis=0, dtype=np.float64)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2].T
    expected, y = boxed(in_rows(done, centred @ axes)), starts_of(done)
    for axis in range(2):  # whose sign is not decided
        turned = start.BOX_SIDE - expected[:, axis]
        gap = min(np.abs(y[:, axis] - side).max() for side in (expected[:, axis], turned))
        assert gap < 2 * JITTER


def test_a_random_start_fills_the_box(embed, digits_300):
    starts = [starts_of(embed(digits_300, {"start.init": "random", "layout.seed": seed})) for seed in (1, 2)]
    for y in starts:
        assert (y.min() >= 0, y.max() <= start.BOX_SIDE) == (True, True)
        assert np.abs(np.histogram2d(*y.T, bins=3, range=[(0, start.BOX_SIDE)] * 2)[0] - 300 / 9).max() < 25
    assert not np.array_equal(*starts)


def test_a_given_start_is_stretched_to_the_box(embed, new_path, digits_300):
    given, path = np.random.default_rng(0).normal(size=(300, 2)), new_path("init.zarr")
    zarr.create_array(path, data=given, chunks=(70, 1))
    done = embed(digits_300, {"start.init": path, "cells.max_rows": 100})
    np.testing.assert_allclose(starts_of(done), boxed(in_rows(done, given)), atol=2 * JITTER)


@pytest.mark.slow
@pytest.mark.parametrize("init", ["pca", "array"])
def test_starts_are_the_same_however_rows_are_cut(embed, save, new_path, init):
    rng = np.random.default_rng(2)
    x, given = rng.normal(size=(9000, 8)).astype(np.float32), new_path("init.zarr")
    zarr.create_array(given, data=rng.normal(size=(9000, 2)), chunks=(700, 1))
    starts = set()
    for chunk, rows in ((500, 65536), (9000, 4096)):
        settings = {"task_memory": 2**23, "graph.shard_rows": rows, "start.init": given if init == "array" else init}
        done = embed(save(x, chunk), settings)
        starts.add(starts_of(done).tobytes())
    assert len(starts) == 1
