"""Workers that die, leave, stop, straggle, or have several tasks at once: the same bytes, or an error that says why."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import shutil
import signal
import time
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from faults.harness import ROUNDS, SECONDS, SETTINGS, commits, fleet, results, until
from helpers import uncommit_parts
from numba.core.registry import CPUDispatcher

import dumap.kernels
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import part_names
from dumap.engine.cluster import MAX_DEATHS, DaskEngine
from dumap.engine.task_queue import TaskQueue
from dumap.engine.worker import execute_task
from dumap.errors import TaskError
from dumap.recipe.damage import verify
from dumap.recipe.observers import SilentObserver
from dumap.recipe.pipeline import plan, run
from dumap.recipe.stage_names import STAGES
from dumap.stages import embedding, graph, layout, neighbors, quality, sorting
from dumap.store import MANIFESTS, PARTS, Run

# deaths ------------------------------------------------------------------------------------------


def once_a_stage(point: str, action: str) -> list[dict]:
    """Plan a fault for one worker in each stage."""
    return [{"stage": stage, "point": point, "action": action, "role": "worker"} for stage in STAGES]


@pytest.mark.parametrize(
    ("action", "point", "settings"),
    [
        pytest.param("kill", "task", {}, marks=[pytest.mark.fault(1), pytest.mark.slow]),
        pytest.param("segfault", "task", ROUNDS, marks=[pytest.mark.fault(1), pytest.mark.slow]),
        pytest.param("close", "task", ROUNDS, marks=[pytest.mark.fault(1), pytest.mark.slow]),
        pytest.param("exit", "object", {}, marks=[pytest.mark.fault(1), pytest.mark.slow]),
        pytest.param("kill", "manifest", ROUNDS, marks=[pytest.mark.fault(2), pytest.mark.slow]),
        pytest.param("kill", "committed", {}, marks=[pytest.mark.fault(2), pytest.mark.slow]),
    ],
)
def test_a_worker_that_goes_in_every_stage_changes_no_byte(
    cluster_with_nannies, prepare, expected, action, point, settings
):
    config, names = prepare(settings), cluster_with_nannies.faults.plan(*once_a_stage(point, action))
    assert run(config, client=cluster_with_nannies.client)["state"] == "done"
    assert [len(cluster_with_nannies.faults.happened(name)) for name in names] == [1] * len(STAGES)
    assert results(config.output) == expected
    assert verify(config.output) == []


@pytest.mark.fault(1)
def test_a_killed_worker_changes_no_byte(cluster_with_nannies, prepare, expected):
    """Some object is written, its manifest is not."""
    config = prepare()
    (name,) = cluster_with_nannies.faults.plan({"stage": "neighbors", "point": "object", "action": "kill"})
    assert run(config, client=cluster_with_nannies.client)["state"] == "done"
    assert len(cluster_with_nannies.faults.happened(name)) == 1
    assert results(config.output) == expected


@pytest.mark.fault(5)
@pytest.mark.slow
def test_a_run_completes_where_the_cluster_allows_no_failure(new_path, prepare, expected):
    config = prepare(ROUNDS)
    with fleet(new_path, **{"distributed.scheduler.allowed-failures": 0}) as strict:
        names = strict.faults.plan(*once_a_stage("task", "kill"))
        assert run(config, client=strict.client)["state"] == "done"
        assert all(strict.faults.happened(name) for name in names)
    assert results(config.output) == expected


# a part that kills -------------------------------------------------------------------------------


def killer(stage: str, part: str) -> tuple[dict, ...]:
    """Kill whoever has the part, while others are at theirs."""
    always = {"role": "worker", "point": "task", "stage": stage, "times": None}
    return (
        {**always, "part": part, "action": "sleep", "seconds": 0.3},
        {**always, "part": "cell-*", "action": "sleep", "seconds": 0.3},
        {**always, "part": part, "action": "kill", "times": 1000},
    )


def not_done(config) -> set[str]:
    """Return the cells that no manifest says are searched."""
    return set(part_names("cell", 6)) - {p.stem for p in Path(config.output, MANIFESTS, "neighbors").glob("*.json")}


@pytest.mark.fault(4)
@pytest.mark.slow
@pytest.mark.parametrize(("threads", "part"), [(1, "cell-00003"), (2, "cell-00000")])
def test_a_part_that_kills_every_worker_is_named_on_a_cluster(new_path, prepare, expected, threads, part):
    """With two threads there is always a part beside it, which dies as often."""
    config = prepare()
    with fleet(new_path, 2, threads) as deadly:
        *_, name = deadly.faults.plan(*killer("neighbors", part))
        with pytest.raises(TaskError, match=f"neighbors {part}: its worker died 4 times") as caught:
            run(config, client=deadly.client)
        assert "goes on from there" in "".join(caught.value.__notes__)
        assert MAX_DEATHS < len(deadly.faults.happened(name)) <= 2 * MAX_DEATHS
        assert part in not_done(config)
        before = commits(config.output)
        deadly.ready(2)
        assert run(config, client=deadly.client)["state"] == "done"
    assert before.items() <= commits(config.output).items()
    assert results(config.output) == expected


@pytest.mark.fault(4)
@pytest.mark.slow
def test_a_part_that_kills_every_worker_is_named_on_an_embedded_cluster(shared_cluster, prepare):
    config = prepare({"cluster.workers": 2, "cluster.memory_limit": 2**31})
    *_, name = shared_cluster.faults.plan(*killer("neighbors", "cell-00003"))
    driver = shared_cluster.drive(config)
    assert driver.wait() == TaskError.exit_code, driver.output
    assert f"neighbors cell-00003: its worker died {MAX_DEATHS} times" in driver.output
    assert "goes on from there" in driver.output
    assert len(shared_cluster.faults.happened(name)) == 1 + MAX_DEATHS
    assert "cell-00003" in not_done(config)
    until(lambda: not driver.members(), "an end of the embedded cluster")


@pytest.mark.fault(4)
@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("allowed", [0, 3])
def test_only_what_dies_alone_is_blamed(count, allowed):
    """Whoever else dies with it, on workers that take as many parts as may be on their way."""
    queue, deadly = TaskQueue(part_names("part", count), 4), "part-00001" if count > 1 else "part-00000"
    done, deaths = [], 0
    while True:
        in_flight = []
        while (part := queue.next_part(len(in_flight))) is not None:
            in_flight.append(part)
        assert 0 < len(in_flight) <= queue.max_in_flight
        if deadly in in_flight:
            deaths += allowed + 1
            blamed = [part for part in in_flight if queue.record_death(part, allowed + 1) >= MAX_DEATHS]
            if blamed:
                break
        else:
            done += in_flight
    assert blamed == [deadly]
    assert sorted([*done, *queue.suspects]) == part_names("part", count)
    assert deaths <= MAX_DEATHS + allowed + 1


def test_parts_that_all_kill_are_given_up_after_few_deaths():
    queue, deaths = TaskQueue(part_names("part", 1000), 4), 0
    while True:
        in_flight = []
        while (part := queue.next_part(len(in_flight))) is not None:
            in_flight.append(part)
        for part in in_flight:
            deaths += 1
            if queue.record_death(part, 1) >= MAX_DEATHS:
                assert deaths <= MAX_DEATHS + 2 * queue.max_in_flight
                return


# workers that leave ------------------------------------------------------------------------------


@pytest.mark.fault(10)
@pytest.mark.slow
def test_workers_retired_in_the_middle_of_a_step(cluster_with_nannies, prepare, expected):
    """Each while it is at a part, which others then do: a cluster that adapts takes no notice of what is done."""
    config, client = prepare(ROUNDS), cluster_with_nannies.client
    slow = {"role": "worker", "point": "object", "action": "sleep", "seconds": 1.0}
    parts = {"neighbors": "cell-00002", "layout": "state-00003-*", "quality": "ranks-*"}
    names = cluster_with_nannies.faults.plan(*(slow | {"stage": stage, "part": part} for stage, part in parts.items()))
    ending = cluster_with_nannies.begin(config)
    for name in names:
        (pid,) = until(
            lambda n=name: cluster_with_nannies.faults.happened(n) or (ending.done() and ending.result()), "a slow part"
        )
        (busy,) = [address for address, at in cluster_with_nannies.pids().items() if at == pid]
        assert busy in client.retire_workers([busy])
        cluster_with_nannies.start_workers(1)
    assert ending.result(SECONDS)["state"] == "done"
    assert results(config.output) == expected


@pytest.mark.fault(10)
@pytest.mark.slow
def test_workers_of_a_short_life(new_path, data, prepare, embed):
    """Workers end and begin anew, by their lifetime, while a long layout goes on in slow rounds."""
    more = {"layout.n_epochs": 200}
    config = prepare({**more, **ROUNDS})
    with fleet(new_path, 0) as short_lived:
        short_lived.start_workers(2, 1, True, "--lifetime", "20s", "--lifetime-stagger", "4s", "--lifetime-restart")
        slow = {"stage": "layout", "point": "task", "action": "sleep", "seconds": 0.25, "times": 300}
        (name,) = short_lived.faults.plan(slow)
        assert run(config, client=short_lived.client)["state"] == "done"
        assert len(set(short_lived.faults.happened(name))) > 2, "no worker's life ended"
    assert results(config.output) == results(embed(data, {**SETTINGS, **more}).output)


# stragglers --------------------------------------------------------------------------------------


SILENCE = 12
"""Seconds after which a worker is given up: a busy machine may keep it from a word for some."""


@pytest.fixture(scope="module")
def watched(new_path):
    """Start three workers without nannies that the scheduler gives up after some seconds of silence."""
    with fleet(new_path, 3, 1, False, **{"distributed.scheduler.worker-ttl": f"{SILENCE}s"}) as started:
        yield started


@pytest.mark.fault(11, 18)
@pytest.mark.slow
def test_a_worker_that_comes_back_too_late_changes_nothing(watched, prepare, expected):
    """One is stopped within the neighbours, one within a round; they go on when the run is done."""
    config, faults = prepare(ROUNDS), watched.ready(3).faults
    stop = {"role": "worker", "point": "manifest", "action": "stop"}
    points = [{"stage": "neighbors", "part": "cell-00002"}, {"stage": "layout", "part": "state-00003-*"}]
    stops = faults.plan(*(stop | point for point in points))
    assert run(config, client=watched.client)["state"] == "done"
    stopped = [faults.happened(name)[0] for name in stops]
    assert len(watched.client.nthreads()) == 1
    assert results(config.output) == expected
    before = commits(config.output)

    written = faults.plan(*({"point": "committed", "action": "sleep", "seconds": 0} | point for point in points))
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    ended = {process.pid: process for process in watched.workers}
    for pid, name in zip(stopped, written, strict=True):  # it may also end before it comes to write
        until(lambda p=pid, n=name: faults.happened(n) == [p] or not ended[p].members(), "the late writes")
    assert commits(config.output) == before
    assert verify(config.output) == []
    uncommit_parts(config.output, ["embedding"])
    assert run(config, client=watched.client)["state"] == "done"
    assert results(config.output) == expected
    until(lambda: not any(p.members() for p in watched.workers if p.pid in stopped), "an end of those given up")
    watched.start_workers(2, 1, False)


TWICE = {
    "sorted-00001": sorting.sort_home_rows,
    "home-00001": neighbors.search_home_rows,
    "cell-00002": neighbors.search_cell_with_guests,
    "lists-00003": neighbors.merge_cell_lists,
    "united-00000": graph.unite_edges,
    "pairs": layout.draw_loss_pairs,
    "rows-00000": embedding.write_chunk,
    "report": quality.report_quality,
}


@pytest.mark.fault(18)
@pytest.mark.slow
def test_either_of_two_tasks_for_one_part_may_be_first(cluster_with_nannies, prepare, finished_run, expected):
    """Both write all they have, and each its manifest once the other has written too."""
    config = prepare()
    shutil.copytree(finished_run.output, config.output)
    job, faults = Job(config, plan(config).geometry), cluster_with_nannies.faults
    for part, task in TWICE.items():
        stage = {"pairs": "layout", "sorted-00001": "cells"}.get(
            part, task.__module__.split(".")[-1]
        )  # the loss is a part of the layout
        manifest = Path(config.output, MANIFESTS, stage, f"{part}.json")
        manifest.unlink()
        meeting = {"point": "manifest", "action": "sleep", "seconds": 0.5, "times": 2}
        (name,) = faults.plan(meeting | {"stage": stage, "part": part})
        both = [
            cluster_with_nannies.client.submit(execute_task, task, job, part, {}, workers=[address], pure=False)
            for address in cluster_with_nannies.pids()
        ]
        cluster_with_nannies.client.gather(both)
        assert len(set(faults.happened(name))) == 2
        attempts = {folder.name for folder in Path(config.output, PARTS, stage).glob(f"{part}-*")}
        original = {folder.name for folder in Path(finished_run.output, PARTS, stage).glob(f"{part}-*")}
        assert len(attempts - original) == (0 if stage == "embedding" else 2)
        assert digests(config.output, stage, part) == digests(finished_run.output, stage, part)
    assert results(config.output) == expected
    assert verify(config.output) == []


def digests(output: str, stage: str, part: str) -> list:
    """Return what a part's objects hold, whatever their folder."""
    return sorted(Run(output, read_only=True).manifest(stage, part)["objects"].values())


# long, many, at once -----------------------------------------------------------------------------


def searching(seconds: float):
    """Make a task of one call of a kernel, about so long."""

    def search(job, part):
        from dumap.kernels import neighbors

        def lasts(rows: int) -> float:
            x = np.random.default_rng(0).normal(size=(rows, 64)).astype(np.float32)
            began = time.monotonic()
            neighbors.search_exhaustively(x, np.arange(rows), 15, "manhattan", {})
            return time.monotonic() - began

        lasts(64)  # compiles
        rows = int(8000 * (seconds / lasts(8000)) ** 0.5)  # it grows with the square of the rows
        Path(job.config.output, part).write_text(str(lasts(rows)))

    return search


@pytest.mark.fault(21)
@pytest.mark.slow
def test_a_worker_in_a_long_kernel_is_still_heard_of(watched, prepare):
    watched.ready(3)
    config, before = prepare(), watched.pids()
    Path(config.output).mkdir()
    engine = DaskEngine(watched.client, SECONDS)
    engine.preflight()
    engine.map(searching(2 * SILENCE), Job(config, plan(config).geometry), ["long"], {}, lambda done, total: None)
    assert float(Path(config.output, "long").read_text()) > 1.2 * SILENCE, "too short to tell"
    assert watched.pids() == before


@pytest.mark.fault(21)
def test_no_kernel_holds_the_interpreter():
    modules = [importlib.import_module(f"dumap.kernels.{m.name}") for m in pkgutil.iter_modules(dumap.kernels.__path__)]
    kernels = {
        f"{m.__name__}.{name}": k for m in modules for name, k in vars(m).items() if isinstance(k, CPUDispatcher)
    }
    of_dumap = {name: k for name, k in kernels.items() if k.py_func.__module__.startswith("dumap")}
    assert len(of_dumap) > 10
    held = {n for n, k in of_dumap.items() if not (k.targetoptions.get("nogil") or k.targetoptions.get("inline"))}
    assert held == set()


class Weighing(SilentObserver):
    """Weighs all processes, and counts tasks, after some rounds."""

    def __init__(self, client, rounds):
        self.client, self.rounds, self.weights, self.stage = client, list(rounds), [], ""

    def started(self, stage, projected_bytes):
        self.stage = stage

    def advanced(self, stage, done, total):
        if self.stage == "layout" and self.rounds and done >= self.rounds[0]:
            self.rounds.pop(0)
            self.weights.append(self.weigh())

    def weigh(self):
        def scheduler(dask_scheduler):
            import gc
            import os

            import psutil

            gc.collect()
            sizes = {name: len(getattr(dask_scheduler, name)) for name in ("tasks", "task_groups", "task_prefixes")}
            return {"memory": psutil.Process(os.getpid()).memory_info().rss, **sizes}

        def worker(dask_worker):
            import gc
            import os

            import psutil

            gc.collect()
            process = psutil.Process(os.getpid())
            sizes = {"tasks": len(dask_worker.state.tasks), "files": process.num_fds()}
            return {"memory": process.memory_info().rss, **sizes}

        gc.collect()
        process = psutil.Process()
        client = {"memory": process.memory_info().rss, "tasks": len(self.client.futures), "files": process.num_fds()}
        workers = self.client.run(worker)
        return {"scheduler": self.client.run_on_scheduler(scheduler), "client": client, **workers}


@pytest.mark.fault(25)
@pytest.mark.slow
def test_nothing_grows_over_500_rounds(new_path, prepare):
    """Beside the last messages that Dask keeps for its developers, of which it is told to keep few."""
    config, few = prepare({**ROUNDS, "layout.n_epochs": 500}), {"distributed.admin.low-level-log-length": 10}
    with dask.config.set(few), fleet(new_path, 2, **few) as long:
        weighing = Weighing(long.client, (100, 300, 499))
        assert run(config, client=long.client, observer=weighing)["state"] == "done"
    first, middle, last = weighing.weights
    assert first.keys() == last.keys()
    for who, before in first.items():
        for what, amount in before.items():
            amounts = amount, middle[who][what], last[who][what]
            grown = min(np.diff(amounts))  # what is taken once is not taken in both halves
            assert grown <= (4 * 2**20 if what == "memory" else 2), f"{what} of {who}: {amounts}"
    left = [p.name for p in Path(config.output, PARTS, "layout").iterdir()]
    assert len(left) <= 2, "checkpoints were left"


@pytest.mark.fault(26)
@pytest.mark.slow
def test_several_searches_at_once_on_one_worker(new_path, prepare):
    """By pynndescent, whose parallel regions abort the process where two run at once."""

    def always_descend():
        from dumap.kernels import neighbors

        neighbors.MAX_EXHAUSTIVE_SECONDS = 0.0

    bytes_of_runs = []
    for threads in (4, 1):
        config = prepare({"neighbors.n_neighbors": 5})
        with fleet(new_path, 1, threads) as busy:
            before = busy.pids()
            busy.client.run(always_descend)
            assert run(config, client=busy.client)["state"] == "done"
            assert busy.pids() == before
        bytes_of_runs.append(results(config.output))
    assert bytes_of_runs[0] == bytes_of_runs[1]
