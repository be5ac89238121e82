"""Requests and bytes of each stage, counted in a run beside those that were projected when the stage began."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from zarr.storage import LocalStore

from dumap.artifacts.job import Job
from dumap.config import build_config, load_config
from dumap.engine import process
from dumap.planning.geometry import make_geometry
from dumap.planning.plan import StagePlan
from dumap.planning.steps import (
    COMMIT_READS,
    COMMIT_WRITES,
    OPENED_READS,
    Step,
    read_requests,
    summed_steps,
    write_requests,
)
from dumap.recipe import pipeline
from dumap.recipe.recipes import SEARCH_RECIPE
from dumap.recipe.stage_names import STAGES
from dumap.store import backends, objects

FIGURES = ("reads", "writes", "shuffled_bytes", "written_bytes")


class Store:
    """Counts what a run asks of its store and of the input, by stage; and the most requests of a task, by task."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter] = defaultdict(Counter)
        self.plans: dict[str, StagePlan] = {}
        self.most: Counter = Counter()
        self.stage, self.requests = "", 0

    def add(self, reads: int = 0, writes: int = 0, shuffled_bytes: int = 0, written_bytes: int = 0) -> None:
        """Count requests and bytes."""
        self.counts[self.stage].update(dict(zip(FIGURES, (reads, writes, shuffled_bytes, written_bytes), strict=True)))
        self.requests += reads + writes

    def wrap(self, patch: pytest.MonkeyPatch, owner: type, name: str, count: Callable[..., None]) -> None:
        """Have a method also count, from its result and its arguments."""
        original = getattr(owner, name)

        def method(instance: Any, *arguments: Any, **options: Any) -> Any:
            result = original(instance, *arguments, **options)
            count(result, *arguments)
            return result

        async def coroutine(instance: Any, *arguments: Any, **options: Any) -> Any:
            result = await original(instance, *arguments, **options)
            count(result, *arguments)
            return result

        patch.setattr(owner, name, coroutine if owner is LocalStore else method)

    def observe(self, patch: pytest.MonkeyPatch) -> None:
        """Count all requests of this process, and keep the plan of each stage."""
        folder = backends.Folder
        self.wrap(patch, folder, "get", lambda data, *_: self.add(reads=1, shuffled_bytes=len(data or b"")))
        self.wrap(patch, folder, "open_range", lambda _, key, low, high, __: self.add(1, shuffled_bytes=high - low))
        self.wrap(patch, folder, "size", lambda *_: self.add(reads=1))
        self.wrap(patch, folder, "names_in", lambda *_: self.add(writes=1))
        for name in ("put", "create"):
            self.wrap(patch, folder, name, lambda _, key, data, *__: self.add(writes=1, written_bytes=len(data)))
        self.wrap(patch, objects.ObjectWriter, "keep", lambda kept, *_: self.add(writes=1, written_bytes=kept[0]))
        self.wrap(patch, LocalStore, "get", lambda data, *_: self.add(reads=1, shuffled_bytes=len(data or b"")))
        run_task, project = process.run_task, pipeline.plan_with_facts

        def run_counted(task: Callable[..., None], job: Job, *arguments: Any) -> dict[str, Any]:
            before = self.requests
            try:
                return run_task(task, job, *arguments)
            finally:
                self.most[task.__name__] = max(self.most[task.__name__], self.requests - before)

        def keep_plan(*arguments: Any, **options: Any) -> Any:
            planned = project(*arguments, **options)
            self.plans[self.stage] = planned
            return planned

        patch.setattr(process, "run_task", run_counted)
        patch.setattr(pipeline, "plan_with_facts", keep_plan)

    def started(self, stage: str, projected_bytes: int) -> None:
        """See `Observer`; the plan was made just before."""
        self.plans[stage] = self.plans[self.stage]
        self.stage = stage

    def advanced(self, stage: str, done: float, total: float) -> None:
        """See `Observer`."""

    def finished(self, *facts: object) -> None:
        """See `Observer`."""

    def note(self, message: str) -> None:
        """See `Observer`."""


def embed(new_path, save, rows: int, **settings: Any) -> Store:
    """Embed rows in many blocks, cells and shards on one thread, counted."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 8)) @ rng.normal(size=(8, 64))
    path = save(x.astype(np.float32), chunk_rows=500)
    sizes = {"task_memory": 2**21, "graph.shard_rows": 4096, "layout.n_epochs": 10, "layout.mode": "rounds"}
    others = {"neighbors.n_neighbors": 8, "audit.queries": 100, "cluster.engine": "local", "start.coarse_epochs": 20}
    config = load_config(None, (), {"input.path": path, "output": new_path("run.zarr"), **sizes, **others, **settings})
    store = Store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dumap.engine.engine_choice.cpu_count", lambda: 1)
        store.observe(patch)
        pipeline.run(config, observer=store)
    return store


@pytest.fixture(scope="module")
def counted(new_path, save) -> Iterator[Store]:
    return embed(new_path, save, 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_requests_and_bytes_stay_below_what_is_projected_and_near_it(counted, stage):
    projected = counted.plans[stage].stage(stage)
    ratios = {name: round(getattr(projected, name) / counted.counts[stage][name], 2) for name in FIGURES}
    most = 2.6 if stage == "coarsen" else 2  # as if each edge led to another label
    assert [name for name, ratio in ratios.items() if not 1 <= ratio <= most] == [], ratios


MORE_REQUESTS = {
    "neighbors": "a cell's rows lie in every sorted group",
    "audit": "as above, where lists are repaired",
    "layout": "a round's task reads the pool from every range",
    "embedding": "a chunk's rows lie in every shard",
}
"""Stages with many tasks of which one makes more than 1.5 times the requests if rows are doubled, and why."""


def test_requests_of_a_task_do_not_grow_with_rows_but_in_the_stages_named():
    config = build_config({"input": {"path": "in.zarr"}, "output": "out.zarr"})
    growing = set()
    for stage in SEARCH_RECIPE:
        few, many = (
            stage.project(make_geometry(config, rows, 64, 4, 16_384), config, 2**31).steps
            for rows in (10**8, 2 * 10**8)
        )
        pairs = zip(few, many, strict=True)
        if any(a.tasks > 100 and b.task_reads(4) > 1.5 * a.task_reads(4) for a, b in pairs):
            growing.add(stage.name)
    assert growing == set(MORE_REQUESTS)


def test_requests_are_those_of_tasks_and_of_the_driver():
    nothing = read_requests([], 2), write_requests([])
    steps = [Step(10, parts=2, spans=3, blocks=1)]
    assert steps[0].task_reads(chunks=2) == 2 + 3 + 2 + OPENED_READS + COMMIT_READS
    assert read_requests(steps, 2) - nothing[0] >= 10 * steps[0].task_reads(2)
    assert write_requests(steps) - nothing[1] >= 10 * COMMIT_WRITES
    few, many = summed_steps(20, 2), summed_steps(400, 2)
    assert [(step.tasks, step.spans) for step in few] == [(1, 41)]
    assert [(step.tasks, step.spans) for step in many] == [(20, 41), (1, 41)]
