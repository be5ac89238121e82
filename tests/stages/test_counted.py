"""What tasks read, counted: little more than they need, in few requests, however many blocks, cells and shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dumap.artifacts.cells import MIN_RANGE_BYTES
from dumap.artifacts.job import Job
from dumap.config import load_config
from dumap.recipe.identity import create_run
from dumap.recipe.pipeline import plan
from dumap.stages import Context, audit, cells, graph, neighbors, repair, vectors
from dumap.store import Run

pytestmark = pytest.mark.slow

SCATTERED = {"collect_queries"}
"""Tasks that read rows that lie apart, a few for all: there is one of each."""


class Counts:
    """Requests, bytes read and bytes requested for, by task; and the most requests that one task made."""

    def __init__(self) -> None:
        self.requests, self.read, self.requested, self.most = Counter(), Counter(), Counter(), Counter()
        self.task, self.task_requests = "", 0

    def begin(self, task: Callable) -> None:
        self.task, self.task_requests = task.__name__, 0

    def end(self) -> None:
        self.most[self.task] = max(self.most[self.task], self.task_requests)


@pytest.fixture(scope="module")
def counted(new_path, save):
    """Run the stages up to the graph on 3000 rows in many blocks and cells, and count what tasks read."""
    counts, patch = Counts(), pytest.MonkeyPatch()
    real = Run._read_piece

    def read(self, stage, name, piece, start, stop, out):
        first, last = piece[2].span(start, stop)
        counts.task_requests += 1
        counts.requests[counts.task] += 1
        counts.read[counts.task] += last - first
        counts.requested[counts.task] += (stop - start) * piece[2].row_bytes
        return real(self, stage, name, piece, start, stop, out)

    patch.setattr(Run, "_read_piece", read)
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(12, 16))[rng.integers(0, 12, 3000)] + rng.normal(size=(3000, 16))
    settings = {"task_memory": 2**20, "audit.queries": 20, "neighbors.n_neighbors": 8, "graph.shard_rows": 4096}
    others = {"neighbors.recall_target": 0.0, "input.unique": True}
    path = save(x.astype(np.float32))
    config = load_config(None, (), {"input.path": path, "output": new_path("run.zarr"), **settings, **others})
    geometry = replace(plan(config).geometry, block_rows=50, blocks=60, group_blocks=4)
    job = Job(config, replace(geometry, shard_rows=1024))
    create_run(job, SimpleNamespace(versions={}, cpus=[]))

    def compute(stage, task, parts, progress=None, **options):
        for part in parts:
            counts.begin(task)
            task(replace(job), part, **options)
            counts.end()

    context = Context(job, plan(config), compute, 1, 1, 0, print)
    for stage in (vectors, cells, neighbors, audit, graph):
        stage.run(context)
        if stage is audit:
            repair.repair_lists(context, 1, should_compare_home_pairs=True)
    patch.undo()
    return SimpleNamespace(counts=counts, job=job)


def test_tasks_read_at_most_twice_what_they_need(counted):
    counts = counted.counts
    assert {
        "search_cell_with_guests",
        "merge_cell_lists",
        "write_sent_rows",
        "offer_pairs",
        "unite_edges",
        "find_joined_pieces",
        "sort_guests",
    } <= set(counts.read)
    for task in set(counts.read) - SCATTERED:
        assert counts.read[task] <= 2 * counts.requested[task] + MIN_RANGE_BYTES * counts.requests[task], task


def test_no_task_asks_once_for_each_block_and_cell(counted):
    counts, geometry = counted.counts, counted.job.geometry
    count = counted.job.run.part_facts("cells", "table")["cells"]
    assert count > 8
    assert geometry.groups == 15
    for task, most in counts.most.items():
        assert most <= 12 * (geometry.groups + count), task
    for task in ("sort_home_rows", "sort_guests", "write_positions", "assign_group"):
        assert counts.most[task] <= geometry.group_blocks + 2 * count**0.5 + 8, task


def test_no_part_holds_a_number_for_each_pair_of_cells(counted):
    run = counted.job.run
    for stage in ("cells", "neighbors", "audit", "graph"):
        for part in run.committed_parts(stage):
            manifest = run.manifest(stage, part)
            facts = [len(fact) for fact in manifest["attributes"].values() if isinstance(fact, list)]
            assert max(facts, default=0) <= 8 or part in ("figures", "whole"), (stage, part)
