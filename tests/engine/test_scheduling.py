"""A shared cluster: which workers are used, what goes with every task, and what happens to a stuck one."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from distributed import Client, Scheduler, SpecCluster, Worker, get_worker

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import part_names
from dumap.config import build_config
from dumap.engine.cluster import DaskEngine
from dumap.engine.connect import connect
from dumap.engine.local import LocalEngine
from dumap.engine.scheduling import SchedulingOptions
from dumap.errors import ClusterError, ConfigError, TaskError
from dumap.recipe.observers import SilentObserver
from dumap.recipe.pipeline import plan

BIG_WORKER = {"name": "big", "host": "10.0.0.1", "resources": {"GPU": 2}}


@pytest.mark.parametrize(
    ("scheduling", "admitted"),
    [
        (SchedulingOptions(), True),
        (SchedulingOptions({"GPU": 2}), True),
        (SchedulingOptions({"GPU": 3}), False),
        (SchedulingOptions({"GPU": 1, "memory": 1}), False),
        (SchedulingOptions(allow_workers=("other", "big")), True),
        (SchedulingOptions(allow_workers=("10.0.0.1",)), True),
        (SchedulingOptions(allow_workers=("10.0.0.1:4000",)), True),
        (SchedulingOptions(allow_workers=("tcp://10.0.0.1:4000",)), True),
        (SchedulingOptions(allow_workers=("10.0.0",)), False),
        (SchedulingOptions({"GPU": 3}, ("big",)), False),
    ],
)
def test_a_worker_is_admitted_by_resources_and_names(scheduling, admitted):
    assert scheduling.allows_worker("tcp://10.0.0.1:4000", BIG_WORKER) == admitted


def test_a_worker_may_have_a_number_for_a_name():
    assert SchedulingOptions(allow_workers=("1",)).allows_worker("tcp://10.0.0.1:4000", {"name": 1})


# on a cluster ------------------------------------------------------------------------------------


def options(**more) -> dict:
    """Return what a worker of two threads is started with."""
    return {"cls": Worker, "options": {"nthreads": 2, "dashboard_address": ":0", **more}}


@pytest.fixture(scope="module")
def shared(compiled):
    """Return the client of a cluster of two workers of this process, one of which has a resource."""
    workers = {"plain": options(), "big": options(resources={"GPU": 1})}
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    with SpecCluster(workers, scheduler, silence_logs=50) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture
def job(configure, digits_300):
    """Return the job of a run that has an empty folder."""
    config = configure(digits_300)
    os.makedirs(config.output)
    return Job(config, plan(config).geometry)


def noting(folder: Path):
    """Make a task that leaves a file with its worker's name."""

    def note(job, part):
        threading.Event().wait(0.05)
        (folder / part).write_text(get_worker().name)

    return note


def used(client, job, scheduling: SchedulingOptions, folder: Path) -> set[str]:
    """Run tasks, and return who ran them."""
    engine, parts = DaskEngine(client, 30, scheduling=scheduling), part_names("part", 12)
    engine.preflight()
    engine.map(noting(folder), job, parts, {}, lambda done, total: None)
    assert len({worker.address for worker in engine.worker_facts}) == (1 if scheduling.restricts_workers else 2)
    return {(folder / part).read_text() for part in parts}


@pytest.mark.parametrize(
    ("scheduling", "names"),
    [
        (SchedulingOptions(), {"plain", "big"}),
        (SchedulingOptions({"GPU": 1}), {"big"}),
        (SchedulingOptions(allow_workers=("plain",)), {"plain"}),
    ],
    ids=["all", "resources", "allow_workers"],
)
def test_tasks_go_to_workers_that_may_be_used(shared, job, tmp_path, scheduling, names):
    assert used(shared, job, scheduling, tmp_path) == names


def test_a_task_holds_its_resources_while_it_runs(shared, job, monkeypatch, tmp_path):
    sent, submit = [], shared.submit
    monkeypatch.setattr(shared, "submit", lambda *words, **more: sent.append(more) or submit(*words, **more))
    used(shared, job, SchedulingOptions({"GPU": 1}, priority=5), tmp_path)
    tasks = [more for more in sent if "ask" not in str(more["key"])]
    assert {more["priority"] for more in sent} == {5}
    assert len(tasks) == 12
    assert all(more["resources"] == {"GPU": 1} for more in tasks)


@pytest.mark.parametrize("scheduling", [SchedulingOptions({"TPU": 1}), SchedulingOptions(allow_workers=("nobody",))])
def test_the_error_says_which_workers_a_run_waits_for(shared, scheduling):
    engine = DaskEngine(shared, 30, worker_timeout=0.5, scheduling=scheduling)
    with pytest.raises(ClusterError, match=r"no worker of cluster\.(resources|allow_workers) .*(TPU|nobody)"):
        engine.preflight()


def test_a_run_on_some_workers_has_the_same_bytes(shared, embed, digits_300):
    alone = embed(digits_300)
    shared_run = embed(digits_300, {"cluster.resources": {"GPU": 1}, "cluster.allow_workers": ["big"]}, shared)
    assert shared_run.y.tobytes() == alone.y.tobytes()


@pytest.mark.parametrize("setting", [{"resources": {"GPU": 1}}, {"allow_workers": ["big"]}])
def test_an_embedded_cluster_has_nothing_to_choose_by(setting, monkeypatch):
    monkeypatch.setattr("dumap.engine.connect.dask.config.get", lambda key, default=None: default)
    config = build_config({"input": {"path": "in.zarr"}, "output": "out.zarr", "cluster": setting})
    with pytest.raises(ConfigError, match="are alike"), connect(config.cluster, None, SilentObserver()):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resources": {"GPU": 0}}, "above 0"),
        ({"resources": {"GPU": "1"}}, "above 0"),
        ({"resources": ["GPU"]}, "names and amounts"),
        ({"allow_workers": "big"}, "a list"),
        ({"allow_workers": [""]}, "a list"),
        ({"priority": 1.5}, "integer"),
        ({"task_timeout": 0}, "greater than 0"),
        ({"engine": "local", "resources": {"GPU": 1}}, "needs no cluster"),
        ({"engine": "local", "allow_workers": ["big"]}, "needs no cluster"),
    ],
)
def test_senseless_settings_of_sharing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_config({"input": {"path": "in.zarr"}, "output": "out.zarr", "cluster": settings})


# what is stuck -----------------------------------------------------------------------------------


def hanging(folder: Path):
    """Make a task that hangs the first time that it does its fourth part, until a file is there."""

    def hang(job, part):
        if part == "part-00003" and not (folder / "hung").exists():
            (folder / "hung").write_text(get_worker().address)
            while not (folder / "released").exists():
                time.sleep(0.05)
        (folder / part).touch()

    return hang


def test_a_part_that_is_stuck_is_done_elsewhere(shared, job, tmp_path):
    notes, parts = [], part_names("part", 8)
    engine = DaskEngine(shared, 30, log=notes.append, scheduling=SchedulingOptions(task_timeout=1.0))
    engine.preflight()
    try:
        engine.map(hanging(tmp_path), job, parts, {}, lambda done, total: None)
        assert all((tmp_path / part).exists() for part in parts)
        (note,) = notes
        assert f"{(tmp_path / 'hung').read_text()} is left out" in note
        assert "part-00003 told nothing for 1 s (cluster.task_timeout) there, and is taken for stuck" in note
    finally:
        (tmp_path / "released").touch()


def test_a_thread_that_is_stuck_ends_a_local_run(job):
    released, ran = threading.Event(), []

    def hang(job, part):
        ran.append(part)
        if part == "part-00001":
            released.wait(60)

    try:
        with pytest.raises(TaskError, match=r"part-00001 told nothing for 0\.3 s \(cluster\.task_timeout\)"):
            LocalEngine(2, 2**31, 0.3).map(hang, job, part_names("part", 4), {}, lambda done, total: None)
        assert "part-00003" in ran
    finally:
        released.set()


def test_a_task_that_tells_how_far_it_is_is_not_stuck(job):
    def slow(job, part):
        for done in range(8):
            threading.Event().wait(0.1)
            job.report_progress(done, 8)

    LocalEngine(2, 2**31, 0.4).map(slow, job, ["whole"], {}, lambda done, total: None)
