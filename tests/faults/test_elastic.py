"""Clusters that grow and shrink during a run, workers that differ from the others, and slow ones."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from faults.harness import ROUNDS, SECONDS, Fleet, fleet, results, until
from helpers import ActAtStageStart

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import part_names
from dumap.engine import backups
from dumap.engine.cluster import DaskEngine
from dumap.recipe.damage import verify
from dumap.recipe.pipeline import plan, run
from dumap.recipe.status import status


def sleeping(folder: str, seconds: float):
    """Make a task that takes its time, and leaves a file that names its worker."""

    def sleep(job, part):
        from distributed import get_worker

        time.sleep(seconds)
        Path(folder, part).write_text(get_worker().address)

    return sleep


@pytest.fixture
def job(prepare):
    """Return the job of a run that has an empty folder."""
    config = prepare()
    Path(config.output).mkdir()
    return Job(config, plan(config).geometry)


def silent(done, total):
    """Be told of progress, and do nothing."""
    return None


# growing -----------------------------------------------------------------------------------------


@pytest.mark.fault(43)
@pytest.mark.slow
def test_a_run_on_a_cluster_that_scales_from_no_worker(prepare, expected):
    """And back to none while it waits for the next step."""
    config = prepare({**ROUNDS, "cluster.worker_timeout": float(SECONDS)})
    with LocalCluster(n_workers=0, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="200ms", wait_count=2)
        with Client(cluster, set_as_default=False) as client:
            noting = ActAtStageStart("layout", lambda: until(lambda: not client.nthreads(), "an end of all workers"))
            assert run(config, client=client, observer=noting)["state"] == "done"
    assert results(config.output) == expected


@pytest.mark.fault(43)
@pytest.mark.slow
def test_a_cluster_grows_by_what_it_is_sent(job, new_path):
    most = 0
    with LocalCluster(n_workers=0, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster:
        cluster.adapt(minimum=0, maximum=4)
        with Client(cluster, set_as_default=False) as client:
            engine = DaskEngine(client, SECONDS)
            engine.preflight()

            def count(done, total):
                nonlocal most
                most = max(most, len(cluster.scheduler.workers))

            engine.map(sleeping(new_path(), 2.0), job, part_names("part", 40), {}, count)
    assert most == 4


@pytest.mark.fault(42)
@pytest.mark.slow
def test_workers_that_come_later_share_what_is_left(job, new_path):
    """One more thread than parts that it began before; the others do most of what is left."""
    folder, parts = new_path(), part_names("part", 30)
    with fleet(new_path, 1) as growing:
        engine = DaskEngine(growing.client, SECONDS)
        engine.preflight()
        (first,) = growing.client.nthreads()
        adding = threading.Timer(3.0, lambda: growing.start_workers(3))
        adding.start()
        engine.map(sleeping(folder, 3.0), job, parts, {}, silent)
        adding.join()
    where = [Path(folder, part).read_text() for part in parts]
    assert len(set(where)) == 4
    assert where.count(first) < len(parts) / 2


# unlike the others -------------------------------------------------------------------------------


@pytest.mark.fault(42)
@pytest.mark.slow
@pytest.mark.parametrize("other", [{"numpy": "1.0"}, {"machine": "riscv"}])
def test_a_late_worker_with_other_versions_computes_nothing(new_path, prepare, expected, other):
    config = prepare(ROUNDS)
    with fleet(new_path, 1) as mixed:
        log = []

        def come():
            log.extend(mixed.start_workers(1, DUMAP_VERSIONS=json.dumps(other)))
            until(lambda: len(mixed.client.nthreads()) == 2, "a second worker")

        (fit,) = mixed.client.nthreads()
        noting = ActAtStageStart("cells", come)
        ran = mixed.faults.plan({"role": "worker", "point": "task", "action": "sleep", "seconds": 0.0, "times": 10_000})
        pids = mixed.pids()
        assert run(config, client=mixed.client, observer=noting)["state"] == "done"
        (note,) = noting.left_out()
        assert f"{next(iter(other))} is {next(iter(other.values()))}" in note
        assert set(mixed.faults.happened(ran[0])) == {pids[fit]}
    assert results(config.output) == expected
    assert status(config.output)["versions"] != other


@pytest.mark.fault(42)
@pytest.mark.slow
def test_a_late_worker_that_is_too_small_computes_nothing(new_path, prepare, expected):
    config = prepare(ROUNDS)
    with fleet(new_path, 1) as mixed:

        def come():
            mixed.start_workers(1, 1, True, "--memory-limit", "300MiB")
            until(lambda: len(mixed.client.nthreads()) == 2, "a second worker")

        noting = ActAtStageStart("cells", come)
        assert run(config, client=mixed.client, observer=noting)["state"] == "done"
        (note,) = noting.left_out()
        assert "its memory limit of 300 MiB for 1 thread is less than the plan needs" in note
    assert results(config.output) == expected


# slow --------------------------------------------------------------------------------------------


@pytest.mark.fault(49)
@pytest.mark.slow
@pytest.mark.parametrize("first", ["the copy", "the straggler"])
def test_a_straggler_and_its_copy_come_to_the_same_bytes(new_path, prepare, expected, monkeypatch, first):
    """The one that is second may find its part committed, and what it reads gone."""
    monkeypatch.setattr(backups, "MIN_BACKUP_SECONDS", 3.0)
    monkeypatch.setattr(backups, "MIN_FINISHED", 3)
    config = prepare(ROUNDS)
    with fleet(new_path, 2) as racing:
        place = {"role": "worker", "action": "sleep", "stage": "neighbors", "part": "lists-00003"}
        late = {"seconds": 120.0} if first == "the copy" else {"seconds": 8.0, "times": 2}
        begun, written = racing.faults.plan(
            {**place, "point": "task", **late}, {**place, "point": "manifest", "seconds": 0.0, "times": 2}
        )
        assert run(config, client=racing.client)["state"] == "done"
        (straggler, *_), (winner, *_) = racing.faults.happened(begun), racing.faults.happened(written)
        assert (winner == straggler) == (first == "the straggler")
        assert first == "the copy" or len(set(racing.faults.happened(begun))) == 2
    assert results(config.output) == expected
    assert verify(config.output) == []


# histories ---------------------------------------------------------------------------------------


def disturb(cluster: Fleet, seed: int, over: threading.Event) -> None:
    """Have workers join, die, leave and differ, until it is over."""
    draw = random.Random(seed)
    while not over.wait(draw.uniform(0.5, 3.0)):
        present = sorted(cluster.client.nthreads())
        how = draw.choice(["join", "join", "leave", "kill", "differ"])
        if how == "join" and len(present) < 4:
            cluster.start_workers(1, draw.choice([1, 2]), draw.choice([True, False]))
        elif how == "differ" and len(present) < 4:
            cluster.start_workers(1, DUMAP_VERSIONS=json.dumps({"numpy": "1.0"}))
        elif how == "leave" and len(present) > 1:
            cluster.client.retire_workers([draw.choice(present)], close_workers=True)
        elif how == "kill" and len(present) > 1:
            process = draw.choice(cluster.workers[1:] or cluster.workers)
            process.end()


@pytest.mark.fault(42, 43)
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_histories_of_workers_end_in_the_same_bytes(new_path, prepare, expected, seed):
    config, over = prepare({**ROUNDS, "cluster.worker_timeout": float(SECONDS)}), threading.Event()
    with fleet(new_path, 1) as changing:
        slow = {"role": "worker", "point": "task", "action": "sleep", "seconds": 0.2, "times": 200}
        changing.faults.plan(slow)
        disturbing = threading.Thread(target=disturb, args=(changing, seed, over))
        disturbing.start()
        try:
            assert run(config, client=changing.client)["state"] == "done"
        finally:
            over.set()
            disturbing.join()
    assert results(config.output) == expected
    assert verify(config.output) == []
