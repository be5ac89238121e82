"""The layout in rounds: the bytes of one host's, whatever ranges of shards the tasks have."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import SHARDED, ActAtStageStart, fail_after_epoch

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.layout import layout_checkpoints
from dumap.artifacts.part_names import LAYOUT
from dumap.errors import StorageError
from dumap.kernels import layout
from dumap.kernels.edges import Edges
from dumap.recipe.pipeline import plan, run
from dumap.stages import rounds
from dumap.stages.layout_common import pack_shards
from dumap.store import Run


def test_rounds_come_to_the_bytes_of_one_host(host_run, rounds_run):
    assert (host_run.facts("layout")["mode"], rounds_run.facts("layout")["mode"]) == ("host", "rounds")
    assert rounds_run.facts("layout")["loss"] == host_run.facts("layout")["loss"]
    assert rounds_run.y.tobytes() == host_run.y.tobytes()


def test_the_last_round_stays_and_packed_edges_do_not(rounds_run):
    store = Run(rounds_run.output, read_only=True)
    assert layout_checkpoints(store).numbers() == [20]
    assert {part.split("-")[0] for part in store.committed_parts(LAYOUT)} == {
        "checkpoint",
        "end",
        "loss",
        "pairs",
        "state",
    }
    assert rounds._cached_shards.total_bytes == 0


def test_rounds_go_on_from_the_last_one(configure, two_groups, host_run, inspect, monkeypatch):
    config = configure(two_groups, {**SHARDED, "layout.mode": "rounds", "cluster.engine": "local"})
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "write_state", fail_after_epoch(10, rounds.write_state))
        with pytest.raises(StorageError):
            run(config)
    assert layout_checkpoints(Run(config.output, read_only=True)).latest() == 10
    epochs, step_epoch = set(), layout.step_epoch
    monkeypatch.setattr(layout, "step_epoch", lambda *rest: epochs.add(rest[1]) or step_epoch(*rest))
    run(config)
    assert epochs == set(range(10, 20))
    assert inspect(config.output).y.tobytes() == host_run.y.tobytes()


def test_the_next_rounds_do_not_wait_for_the_deletion_of_old_pieces(
    configure, two_groups, host_run, inspect, monkeypatch
):
    config = configure(two_groups, {**SHARDED, "layout.mode": "rounds", "cluster.engine": "local"})
    tenth_epoch, step_epoch, delete_keys = threading.Event(), layout.step_epoch, Run.delete_keys

    def step(parameters, epoch, *rest):
        if epoch == 10:
            tenth_epoch.set()
        return step_epoch(parameters, epoch, *rest)

    def delete_slowly(self, keys):
        if any("/layout/state-" in key for key in keys):
            assert tenth_epoch.wait(30), "rounds wait for deletions"
        delete_keys(self, keys)

    monkeypatch.setattr(layout, "step_epoch", step)
    monkeypatch.setattr(Run, "delete_keys", delete_slowly)
    run(config)
    store = Run(config.output, read_only=True)
    assert {part for part in store.committed_parts(LAYOUT) if part.startswith("state-")} == set(
        layout_checkpoints(store).pieces(20)
    )
    assert inspect(config.output).y.tobytes() == host_run.y.tobytes()


@pytest.mark.parametrize(
    ("every", "shards", "tasks", "threads", "lengths"),
    [(1, 10, 3, 1, [3, 3, 4]), (1, 10, 3, 4, [2, 3, 2, 3]), (1, 2, 3, 4, [1, 1]), (4, 5, 1, 1, [1] * 5)],
)
def test_each_task_has_a_range_of_shards(every, shards, tasks, threads, lengths):
    """As many tasks as fill all threads; single shards where rows of a range would see each other move."""
    config = SimpleNamespace(layout=SimpleNamespace(exchange_every=every))
    ranges = rounds.shard_ranges(SimpleNamespace(threads=threads, config=config), shards, tasks)
    assert [begin for begin, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == shards
    assert sorted(end - begin for begin, end in ranges) == sorted(lengths)


def test_packed_edges_lead_to_the_same_rows(configure, two_groups, host_run):
    """Their tails are numbered within the range, then among the rows outside."""
    config = configure(two_groups, {**SHARDED, "output": host_run.output})
    job = Job(config, plan(config).geometry)
    written: dict = {}
    graph = Graph(job.run)
    for first, last in ((0, 1), (1, 2), (0, 2)):
        written.clear()
        job.run.part = lambda stage, part: Recording(written)
        rounds.pack_range(job, f"packed-{first:05d}-{last:05d}", sorted({0, first, last, 2}))
        low, high = graph.shards.offsets[[first, last]].tolist()
        expected = pack_shards(job, graph, first, last)
        positions = np.concatenate([np.arange(low, high), written["outside"].astype(np.int64)])
        np.testing.assert_array_equal(positions[written["tails"]], expected.tails)
        assert not np.isin(written["outside"], np.arange(low, high)).any()
        for name in set(Edges._fields) - {"tails"}:
            np.testing.assert_array_equal(written[name], getattr(expected, name))


class Recording:
    """A part that keeps its arrays in a dict, and writes none."""

    def __init__(self, arrays: dict) -> None:
        self.arrays = arrays

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def write(self, name: str, values: np.ndarray, rows_per_range: int = 0) -> None:
        self.arrays[name] = values


@pytest.mark.slow
def test_packed_edges_are_freed_before_the_embedding_is_written(configure, two_groups, client):
    during, after = {}, {}
    settings = {"neighbors.n_neighbors": 5, "graph.shard_rows": 4096, "start.coarse_epochs": 20}
    config = configure(two_groups, {**settings, "layout.mode": "rounds", "layout.n_epochs": 2})

    def look(seen):
        seen.update(client.run(lambda: rounds._cached_shards.total_bytes))

    class Looking(ActAtStageStart):
        def advanced(self, stage, done, total):
            if stage == "layout" and done:
                look(during)

    run(config, observer=Looking("embedding", lambda: look(after)), client=client)
    assert max(during.values()) > 0
    assert len(after) > 1
    assert set(after.values()) == {0}


EXCHANGE = {
    **{"cells.max_rows": 1000, "neighbors.n_neighbors": 5, "start.coarse_epochs": 20, "graph.shard_rows": 4096},
    **{"layout.n_epochs": 50, "layout.exchange_every": 4},
}


@pytest.mark.slow
def test_shards_that_are_exchanged_less_often(embed, save, client):
    """Three shards, on two workers or none; the map is near that of exchanging after each epoch."""
    x = save(np.random.default_rng(1).normal(size=(9000, 3)).astype(np.float32))
    done = embed(x, {**EXCHANGE, "layout.checkpoint_every": 15}, client)
    assert done.facts("layout")["mode"] == "rounds"
    losses = done.facts("layout")["loss"]
    assert [epoch for epoch, _ in losses] == [16, 32, 48, 50]
    assert embed(x, EXCHANGE).y.tobytes() == done.y.tobytes()
    always = embed(x, {**EXCHANGE, "layout.exchange_every": 1})
    assert always.y.tobytes() != done.y.tobytes()
    assert losses[-1][1] == pytest.approx(always.facts("layout")["loss"][-1][1], rel=0.05)
