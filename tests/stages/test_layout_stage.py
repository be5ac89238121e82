"""The layout on one host: its epochs are those of the kernel in turn, and it goes on from its last checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import SHARDED, fail_after_epoch, stack_edges

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.layout import LAYOUT_END, EpochState, last_epoch, layout_checkpoints
from dumap.artifacts.part_names import LAYOUT
from dumap.errors import StorageError
from dumap.kernels import edges, layout
from dumap.kernels.pool import draw_pool_rows, sort_pool
from dumap.recipe.pipeline import plan, run
from dumap.stages import layout as stage
from dumap.stages.layout_common import layout_parameters
from dumap.store import Run


def test_the_epochs_are_the_kernels_one_after_another(host_run, configure, two_groups):
    """Of the whole graph at once, without shards, slices, threads or checkpoints."""
    store = Run(host_run.output, read_only=True)
    config = configure(two_groups, {"layout.n_epochs": 20, "output": host_run.output})
    graph, parameters = Graph(store), layout_parameters(Job(config, plan(config).geometry))
    whole, rows = stack_edges(graph), graph.shards.rows
    packed_edges = edges.pack_edges(
        whole.indptr.astype(np.int64), whole.indices, whole.data, 0, whole.data.max(), 20, parameters.seed, rows
    )
    y, m, v = EpochState(store, graph, 0).read_shards(0, len(graph.shards)), *np.zeros((2, rows, 2), np.float32)
    for epoch in range(20):
        pool, after = sort_pool(y[draw_pool_rows(parameters.seed, epoch, rows)]), np.empty_like(y)
        layout.step_epoch(parameters, epoch, 0, rows, 0, 0, packed_edges, y, m, v, pool, after)
        y = after
    assert y.tobytes() == EpochState(store, graph, 20).read_shards(0, len(graph.shards)).tobytes()


def test_the_last_checkpoint_stays_and_says_where_the_layout_ended(host_run):
    store = Run(host_run.output, read_only=True)
    assert layout_checkpoints(store).numbers() == [20]
    assert (last_epoch(store), host_run.facts("layout")["epochs"]) == (20, 20)
    assert store.is_committed(LAYOUT, LAYOUT_END)


def test_the_layout_goes_on_from_its_last_checkpoint(configure, two_groups, host_run, inspect, monkeypatch):
    """A checkpoint that cannot be written ends the run; the next run computes the epochs after the one before."""
    config = configure(two_groups, {**SHARDED, "layout.mode": "host", "cluster.engine": "local"})
    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_state", fail_after_epoch(10, stage.write_state))
        with pytest.raises(StorageError):
            run(config)
    assert layout_checkpoints(Run(config.output, read_only=True)).numbers() == [7]
    epochs, advance = [], stage.compute_epoch
    monkeypatch.setattr(stage, "compute_epoch", lambda *rest: epochs.append(rest[3]) or advance(*rest))
    run(config)
    assert epochs == list(range(7, 20))
    assert inspect(config.output).y.tobytes() == host_run.y.tobytes()


@pytest.mark.parametrize(("rows", "count"), [(1, 8), (63, 8), (64, 1), (1000, 8), (100_000, 16)])
def test_slices_are_whole_groups_and_cover_all_rows(rows, count):
    bounds = stage.slice_bounds(rows, count)
    assert (bounds[0], bounds[-1]) == (0, rows)
    assert (np.diff(bounds) > 0).all()
    assert all(bound % layout.ROW_GROUP == 0 for bound in bounds[:-1])
    assert len(bounds) - 1 <= count


@pytest.mark.parametrize(("rows", "slices"), [(1, 1), (150, 1), (1023, 1), (1024, 2), (5000, 9), (100_000, 16)])
def test_few_rows_are_few_slices(rows, slices):
    assert len(stage.slice_bounds(rows, 16)) - 1 == slices
