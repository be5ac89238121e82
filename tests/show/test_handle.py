"""Runs that a cluster drives by itself, while programs come and go."""

from __future__ import annotations

import ast
import asyncio
import gc
import inspect
import os
import signal
import threading
import time

import numpy as np
import pytest
from distributed import Client, LocalCluster, get_client
from helpers import NoteRecorder

import dumap
from dumap.engine.submission import dataset_name
from dumap.errors import ClusterError, ConfigError, InputError, LockError, RunMismatchError
from dumap.recipe.stage_names import STAGES

QUICK = {"n_epochs": 5, "quality": {"queries": 0}, "audit": {"queries": 0}}


@pytest.fixture(scope="module")
def near(compiled):
    """Start a cluster in this process, of one worker with one thread, for the tests of this file."""
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(processes=False, **options) as cluster:
        yield cluster
    gc.collect()  # tasks of asyncio that failed as clients left are logged here, not in the midst of another test


@pytest.fixture
def client(near):
    """Return a client of the cluster of this file."""
    with Client(near, set_as_default=False) as client:
        yield client


@pytest.fixture(scope="module")
def data(save, digits_300) -> str:
    """Save 300 digits; return their path."""
    return save(digits_300)


@pytest.fixture
def held(monkeypatch):
    """Stop drivers as they begin the graph; return the events of having stopped and of going on."""
    go, there = threading.Event(), threading.Event()
    from dumap.recipe import submitted_run

    class Held(submitted_run.EventObserver):
        def started(self, stage, projected_bytes):
            super().started(stage, projected_bytes)
            if stage == "graph":
                there.set()
                go.wait(60)

    monkeypatch.setattr(submitted_run, "EventObserver", Held)
    yield there, go
    go.set()


def test_one_thread_drives_and_does_the_work(client, data, new_path):
    handle = dumap.submit(data, client, output=new_path("run.zarr"), **QUICK)
    notes = Told()
    result = handle.result(timeout=120, on_progress=notes)
    assert result["state"] == "done"
    assert np.array_equal(result.embedding[:], dumap.run(data, output=new_path("run.zarr"), **QUICK).embedding[:])
    assert notes.stages == list(STAGES)
    assert (handle.status()["task"], handle.progress()["stages"]) == ("done", list(STAGES))


class Told(NoteRecorder):
    """Keeps which stages were finished."""

    def __init__(self):
        super().__init__()
        self.stages = []

    def finished(self, stage, *rest, **named):
        self.stages.append(stage)


def test_the_program_may_leave_and_another_come(near, data, new_path, held):
    there, go = held
    output = new_path("run.zarr")
    with Client(near, set_as_default=False) as client:
        dumap.submit(data, client, output=output, **QUICK)
    there.wait(60)
    with Client(near, set_as_default=False) as client:
        handle = dumap.attach(output, client)
        status = handle.status()
        assert (status["task"], status["state"]) == ("running", "partial")
        assert handle.progress()["stage"] == "graph"
        with pytest.raises(TimeoutError, match="it goes on"):
            handle.result(timeout=0.1)
        go.set()
        assert handle.result(timeout=120)["state"] == "done"
    with Client(near, set_as_default=False) as client:
        assert dumap.attach(output, client).result()["state"] == "done", "it is known afterwards too"


def test_a_run_is_driven_once(client, data, new_path, held):
    there, go = held
    output = new_path("run.zarr")
    first = dumap.submit(data, client, output=output, **QUICK)
    there.wait(60)
    again = dumap.submit(data, client, output=output, **QUICK)
    with pytest.raises(LockError, match="is driven on this cluster with other settings"):
        dumap.submit(data, client, output=output, **{**QUICK, "n_epochs": 6})
    go.set()
    assert first.result(timeout=120)["stages"] == again.result()["stages"]
    assert again.progress()["stages"] == list(STAGES)


def test_a_run_that_is_cancelled_ends_and_goes_on_later(client, data, new_path, held):
    there, go = held
    output = new_path("run.zarr")
    handle = dumap.submit(data, client, output=output, **QUICK)
    there.wait(60)
    handle.cancel()
    time.sleep(1)
    go.set()
    with pytest.raises(dumap.CancelledError, match="the run was cancelled; ") as cancelled:
        handle.result(timeout=120)
    assert cancelled.value.exit_code == 130
    assert handle.status()["task"] == "cancelled"
    assert dumap.status(output)["driver"] is None
    later = dumap.submit(data, client, output=output, **QUICK)
    assert later.result(timeout=120)["state"] == "done"
    assert later.progress()["stages"] == list(STAGES[STAGES.index("graph") :])


def test_a_runs_own_errors_reach_whoever_asks(client, data, new_path):
    output = new_path("run.zarr")
    nowhere = dumap.submit(new_path("no.zarr"), client, output=output, **QUICK)
    with pytest.raises(InputError, match="does not exist") as error:
        nowhere.result(timeout=60)
    assert error.value.exit_code == 3
    assert nowhere.status()["task"] == "failed"
    dumap.submit(data, client, output=output, **QUICK).result(timeout=120)
    with pytest.raises(RunMismatchError, match="n_epochs"):
        dumap.submit(data, client, output=output, **{**QUICK, "n_epochs": 6}).result(timeout=60)


def test_runs_at_once_do_not_mix(client, data, new_path):
    handles = [dumap.submit(data, client, output=new_path("run.zarr"), seed=seed, **QUICK) for seed in (1, 2)]
    maps = [handle.result(timeout=300).embedding[:] for handle in handles]
    assert [handle.progress()["stages"] for handle in handles] == [list(STAGES)] * 2
    for seed, y in zip((1, 2), maps, strict=True):
        alone = dumap.run(data, output=new_path("run.zarr"), seed=seed, cluster={"engine": "local"}, **QUICK)
        assert np.array_equal(alone.embedding[:], y)


def test_an_asynchronous_client_is_awaited(near, data, new_path):
    output = new_path("run.zarr")

    async def main():
        async with Client(near.scheduler_address, asynchronous=True, set_as_default=False) as client:
            handle = dumap.submit(data, client, output=output, **QUICK)
            assert (await handle.status())["task"] in ("waiting", "running")
            attached = await dumap.attach(output, client)
            result = await handle
            assert result["state"] == (await attached)["state"] == "done"
            assert (await handle.progress())["stages"] == list(STAGES)
            again = dumap.submit(data, client, output=output, **{**QUICK, "n_epochs": 6})
            with pytest.raises(RunMismatchError):
                await again.result(60)

    asyncio.run(main())


def test_who_leaves_at_once_is_not_missed(near, data, new_path):
    output = new_path("run.zarr")

    async def main():
        async with Client(near.scheduler_address, asynchronous=True, set_as_default=False) as client:
            dumap.submit(data, client, output=output, **QUICK)

    asyncio.run(main())
    with Client(near, set_as_default=False) as client:
        until = time.monotonic() + 60
        while dataset_name(output) not in client.list_datasets() and time.monotonic() < until:
            time.sleep(0.1)
        assert dumap.attach(output, client).result(timeout=120)["state"] == "done"


def test_a_notebook_awaits_with_a_client_of_its_own_thread(client, data, new_path):
    async def cell():
        handle = dumap.submit(data, client, output=new_path("run.zarr"), **QUICK)
        assert handle.status()["task"] in ("waiting", "running")
        return await handle

    assert asyncio.run(cell())["state"] == "done"


CELLS = (
    "client = await Client(address, asynchronous=True, set_as_default=False)",
    "handle = dumap.submit(data, client, output=output, **settings)",
    "states = [(await handle.status())['task']]",
    "result = await handle",
    "states.append((await (await dumap.attach(output, client)).status())['task'])",
    "shown = repr(result)",
    "await client.close()",
)


def test_cells_of_a_notebook_await_one_after_another(near, data, new_path):
    """Run each cell as a kernel does: in a loop that goes on, with `await` outside of functions."""
    names = {"Client": Client, "dumap": dumap, "address": near.scheduler_address, "data": data, "settings": QUICK}
    names["output"] = new_path("run.zarr")

    async def run_cells():
        for cell in CELLS:
            made = eval(compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
            if inspect.iscoroutine(made):
                await made

    asyncio.run(run_cells())
    assert names["states"][0] in ("waiting", "running")
    assert names["states"][1] == "done"
    assert names["result"]["state"] == "done"
    assert names["shown"] == f"<dumap.Result {names['output']}: done>"


def test_a_task_may_submit(client, data, new_path):
    output = new_path("run.zarr")

    def submit() -> str:
        return dumap.submit(data, get_client(), output=output, **QUICK).output

    assert client.submit(submit, pure=False).result(timeout=60) == output
    assert dumap.attach(output, client).result(timeout=120)["state"] == "done"


def test_a_task_may_wait_for_the_run_that_it_submits(client, data, new_path):
    output = new_path("run.zarr")

    def wait(followed: bool) -> str:
        handle = dumap.submit(data, get_client(), output=output, **QUICK)
        return handle.result(on_progress=NoteRecorder() if followed else None)["state"]

    for followed in (False, True):
        assert client.submit(wait, followed, pure=False).result(timeout=120) == "done", (
            "the driver takes the one thread"
        )


def test_what_a_cluster_cannot_drive_is_refused(client, data, digits_300, new_path, monkeypatch):
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="are in this process, which may leave"):
        dumap.submit(digits_300, client, output=new_path("run.zarr"))
    with pytest.raises(ConfigError, match="'local' runs in this process"):
        dumap.submit(data, client, output=new_path("run.zarr"), cluster={"engine": "local"})
    with pytest.raises(ConfigError, match="no cluster is named: give a client"):
        dumap.submit(data, output=new_path("run.zarr"))
    with pytest.raises(ClusterError, match="drives no run of"):
        dumap.attach(new_path("run.zarr"), client)


# drivers that die ----------------------------------------------------------------------------------


LONG = {**QUICK, "n_epochs": 120, "layout": {"mode": "rounds", "checkpoint_every": 10}}


@pytest.fixture(scope="module")
def long_map(data, new_path):
    """Return the map of a run of many rounds that nothing disturbed."""
    return dumap.run(data, output=new_path("run.zarr"), **{**LONG, "cluster": {"engine": "local"}}).embedding[:]


@pytest.fixture(scope="module")
def two_workers(compiled):
    """Return the client of a cluster of two processes, whose nannies start workers anew."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit="2GiB") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "retired"])
def test_a_driver_whose_worker_is_gone_goes_on_elsewhere(two_workers, long_map, data, new_path, end):
    two_workers.wait_for_workers(2, timeout=120)
    handle = dumap.submit(data, two_workers, output=new_path("run.zarr"), **LONG)
    until = time.monotonic() + 120
    while handle.progress()["stage"] != "layout" and time.monotonic() < until:
        time.sleep(0.2)
    worker = drivers(two_workers, handle)[0]
    if end == "killed":
        os.kill(two_workers.run(os.getpid, workers=[worker])[worker], signal.SIGKILL)
    else:
        two_workers.retire_workers([worker])  # it does not come back: the last test of these workers
    y = handle.result(timeout=240).embedding[:]
    assert len(drivers(two_workers, handle)) == 2
    assert handle.progress()["stages"].count("graph") == 1, "what was done is not done again"
    assert np.array_equal(long_map, y)


def drivers(client, handle) -> list[str]:
    """Return where drivers of a run began, first to last."""
    topics = [topic for topic in client.get_events() if topic.startswith(dataset_name(handle.output))]
    events = [event for topic in topics for _, event in client.get_events(topic)]
    return [event["worker"] for event in events if event["event"] == "driver"]


# the command line --------------------------------------------------------------------------------


def test_commands_submit_follow_and_cancel(near, data, new_path, cli, monkeypatch, tmp_path):
    output, scheduler = new_path("run.zarr"), ("--scheduler", near.scheduler_address)
    settings = ("--n-epochs", "5", "--set", "quality.queries=0", "--set", "audit.queries=0")
    submitted = cli("submit", "--input", data, "--output", output, *settings, *scheduler)
    assert (submitted.code, submitted.out) == (0, f"submitted: {output}; 'dumap attach {output}' follows it\n")
    followed = cli("attach", output, *scheduler)
    assert (followed.code, followed.out) == (0, f"done: {output}, arrays 'embedding' and 'status'\n")
    assert "layout: done in" in followed.err
    assert cli("cancel", output, *scheduler).code == 0, "it has ended before"
    unknown = cli("attach", new_path("no.zarr"), *scheduler)
    assert (unknown.code, "drives no run of" in unknown.err) == (5, True)
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    assert cli("cancel", output).code == 2
    nowhere = new_path("run.zarr")
    assert cli("submit", "--input", new_path("no.zarr"), "--output", nowhere, *scheduler).code == 0
    assert cli("attach", nowhere, *scheduler).code == 3, "the run's own exit code"
