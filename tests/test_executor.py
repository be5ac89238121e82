"""Tasks on Dask: how a cluster is reached, and what becomes of tasks that fail or kill their workers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster, worker_client

from dumap.errors import ClusterError, ConfigError, InputError, StorageError, TaskError
from dumap.executor import ATTEMPTS, POLL_SECONDS, Executor
from dumap.pipeline import STAGES, Silent, plan
from dumap.stages import Job, numbered
from dumap.submit import run

SECONDS = 60


@pytest.fixture(scope="module")
def data(digits, save):
    return save(digits[0][:200])


@pytest.fixture
def job(configure, data):
    config = configure(data)
    os.makedirs(config.output)
    return Job(config, plan(config).geometry)


@pytest.fixture
def workers(client, job):
    """Return the executor of both workers."""
    client.wait_for_workers(2, timeout=SECONDS)
    executor = Executor(client, 30)
    executor.preflight()
    yield executor
    client.wait_for_workers(2, timeout=SECONDS)


@pytest.fixture
def mortal(request):
    """Return the client of a cluster that may be ruined; the parameter is how many deaths it allows a task."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": request.param}),
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


# Tasks are made by functions, so that workers get their code and need not find this file.


def marking(folder: str):
    """Make a task that leaves a file a part."""

    def mark(job, part, seconds=0.0):
        time.sleep(seconds)
        Path(folder, part).touch()

    return mark


def killing(folder: str, chosen: str, times: int):
    """Make a task that kills its worker, the first `times` times that it has the chosen part."""

    def kill(job, part):
        deaths = len(list(Path(folder).glob("death-*")))
        if part == chosen and deaths < times:
            Path(folder, f"death-{deaths}").touch()
            time.sleep(1)  # a worker that dies while its nanny still starts it is not started again
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        Path(folder, part).touch()

    return kill


def raising(error: Exception):
    """Make a task that fails at its third part."""

    def fail(job, part):
        if part.endswith("2"):
            raise error

    return fail


def silent(done, total):
    return None


# mapping -----------------------------------------------------------------------------------------


def test_every_part_is_run_and_counted(workers, job, fresh):
    folder, seen = fresh(), []
    parts = numbered("part", 20)
    workers.map(marking(folder), job, parts, {}, lambda done, total: seen.append((done, total)))
    assert sorted(os.listdir(folder)) == parts
    assert seen == [(done, 20) for done in range(1, 21)]
    assert workers.peak_bytes > 2**26


def test_few_tasks_are_in_flight(client, workers, job, fresh, monkeypatch):
    submitted, settled, flying = [], [], []
    submit = client.submit

    def counting(*arguments, **options):
        submitted.append(1)
        flying.append(len(submitted) - len(settled))
        return submit(*arguments, **options)

    monkeypatch.setattr(client, "submit", counting)
    workers.map(marking(fresh()), job, numbered("part", 40), {"seconds": 0.01}, lambda done, total: settled.append(1))
    assert len(submitted) == 40
    assert 2 <= max(flying) <= 2 * sum(worker.threads for worker in workers.workers)


def test_nothing_stays_on_the_scheduler(client, workers, job, fresh):
    def tasks(dask_scheduler=None):
        return [key for key in dask_scheduler.tasks if str(key).startswith("dumap")]

    before = set(client.run_on_scheduler(tasks))
    for _ in range(3):
        workers.map(marking(fresh()), job, numbered("part", 10), {}, silent)
    deadline = time.monotonic() + 10
    while set(client.run_on_scheduler(tasks)) - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert set(client.run_on_scheduler(tasks)) <= before


def test_another_client_that_is_the_default_slows_nothing(client, workers, job, fresh):
    """Futures are waited for by the client they are of: another's loop never hears that they are done."""
    with Client(client.scheduler.address, set_as_default=True):
        workers.map(marking(fresh()), job, ["part-00000"], {}, silent)
        began = time.monotonic()
        for _ in range(8):
            workers.map(marking(fresh()), job, ["part-00000"], {}, silent)
        assert time.monotonic() - began < 8 * POLL_SECONDS / 2


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ZeroDivisionError("by nothing"), TaskError),
        (OSError(28, "No space left on device"), StorageError),
        (InputError("rows 3 to 5 cannot be read"), InputError),
    ],
)
def test_a_failing_task_is_named(workers, job, error, raised):
    with pytest.raises(raised, match=str(error.args[-1])) as caught:
        workers.map(raising(error), job, numbered("part", 6), {}, silent)
    if raised is not type(error):
        assert "test_executor part-00002" in str(caught.value)


# dying workers -----------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("mortal", [0], indirect=True)
def test_one_death_is_forgiven_even_where_the_cluster_allows_none(mortal, job, fresh):
    folder, parts = fresh(), numbered("part", 12)
    executor = Executor(mortal, 30)
    executor.preflight()
    executor.map(killing(folder, "part-00003", 1), job, parts, {}, silent)
    assert sorted(os.listdir(folder)) == ["death-0", *parts]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("mortal", [0, 3], indirect=True)
def test_a_part_that_kills_every_worker_is_named(mortal, job, fresh, request):
    folder, parts, began = fresh(), numbered("part", 12), time.monotonic()
    allowed = request.node.callspec.params["mortal"]
    executor = Executor(mortal, 60)
    executor.preflight()
    with pytest.raises(TaskError, match=r"test_executor part-00003: its worker died"):
        executor.map(killing(folder, "part-00003", 1000), job, parts, {}, silent)
    assert time.monotonic() - began < 180
    assert len(list(Path(folder).glob("death-*"))) <= ATTEMPTS * (allowed + 1)
    assert {name for name in os.listdir(folder) if name in parts} == set(parts) - {"part-00003"}


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("mortal", [0], indirect=True)
def test_a_run_completes_where_the_cluster_allows_no_failure(mortal, configure, embed, data, inspect):
    class Killer(Silent):
        deaths = 0

        def started(self, stage, projected_bytes):
            mortal.wait_for_workers(2, timeout=SECONDS)
            os.kill(next(iter(mortal.run(os.getpid, on_error="ignore").values())), signal.SIGKILL)
            self.deaths += 1

    config, killer = configure(data), Killer()
    run(config, client=mortal, observer=killer)
    assert killer.deaths == len(STAGES)
    assert inspect(config.output).y.tobytes() == embed(data).y.tobytes()


# reaching a cluster ------------------------------------------------------------------------------


def test_an_asynchronous_client_is_refused(client, configure, data):
    config = configure(data)

    async def hand_over():
        async with Client(client.scheduler.address, asynchronous=True) as other:
            run(config, client=other)

    with pytest.raises(ConfigError, match="asynchronous=False"):
        asyncio.run(hand_over())
    assert not os.path.exists(config.output)


def test_a_client_handed_over_stays_open(client, configure, data):
    assert run(configure(data), client=client)["state"] == "done"
    assert client.submit(sum, [1, 2]).result() == 3


def test_a_run_from_inside_a_task(client, configure, data, embed, inspect):
    client.wait_for_workers(2, timeout=SECONDS)
    config = configure(data)

    def inside():
        with worker_client() as own:
            return run(config, client=own)["state"]

    assert client.submit(inside, pure=False).result(timeout=SECONDS) == "done"
    assert inspect(config.output).y.tobytes() == embed(data).y.tobytes()


@pytest.mark.slow
def test_an_embedded_cluster_needs_no_certain_port(configure, data, monkeypatch):
    """A second run on a machine, or a dashboard that is there already, is nothing to warn of."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("", 8787))
            taken.listen()
        except OSError:
            pass  # something else has it: as well
        assert run(configure(data, {"cluster.workers": 1, "cluster.memory_limit": 2**31}))["state"] == "done"


@pytest.fixture(scope="module")
def scheduled(fresh):
    """Start a scheduler and a worker as commands; return the scheduler's file and its address."""
    file, folder = fresh("scheduler.json"), fresh()
    dask_command = [sys.executable, "-m", "dask"]
    alone = ["--host", "127.0.0.1", "--scheduler-file", file, "--no-dashboard"]
    commands = [
        [*dask_command, "scheduler", "--port", "0", "--dashboard-address", ":0", *alone],
        [*dask_command, "worker", "--nthreads", "1", "--memory-limit", "2GiB", "--local-directory", folder, *alone],
    ]
    with open(fresh("log"), "w") as log:
        running = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
        try:
            with Client(scheduler_file=_appeared(file), timeout=SECONDS) as own:
                own.wait_for_workers(1, timeout=SECONDS)
                yield file, own.scheduler.address
        finally:
            for process in reversed(running):
                process.terminate()
                process.wait(SECONDS)


def _appeared(file: str) -> str:
    deadline = time.monotonic() + SECONDS
    while not os.path.exists(file):
        assert time.monotonic() < deadline, f"no {file}"
        time.sleep(0.05)
    return file


@pytest.mark.parametrize("way", ["--scheduler-file", "DASK_SCHEDULER_ADDRESS"])
def test_a_cluster_that_runs_already(scheduled, cli, embed, data, fresh, inspect, monkeypatch, way):
    file, address = scheduled
    output = fresh("run.zarr")
    words = ["--input", data, "--output", output, "--set", "layout.n_epochs=20", "--set", "quality.queries=0"]
    if way == "DASK_SCHEDULER_ADDRESS":
        monkeypatch.setenv(way, address)
        dask.config.refresh()
    else:
        words += [way, file]
    try:
        outcome = cli("run", *words)
    finally:
        monkeypatch.undo()
        dask.config.refresh()
    assert outcome.code == 0, outcome.err
    assert "embedded cluster" not in outcome.err
    assert inspect(output).y.tobytes() == embed(data).y.tobytes()


@pytest.mark.faults
def test_a_cluster_without_workers(configure, data):
    """Nobody comes: an error within the timeout."""
    with LocalCluster(n_workers=0, dashboard_address=":0") as cluster, Client(cluster) as nobody:
        began = time.monotonic()
        with pytest.raises(ClusterError, match="no worker within 1 s"):
            run(configure(data, {"cluster.timeout": 1.0}), client=nobody)
        assert time.monotonic() - began < 10


@pytest.mark.faults
@pytest.mark.slow
def test_a_cluster_that_is_lost_on_the_way(configure, data, inspect, fresh):
    """The scheduler is killed as the graph begins: an error in bounded time, that says how to go on."""
    file = fresh("scheduler.json")
    command = [sys.executable, "-m", "dask"]
    alone = ["--host", "127.0.0.1", "--scheduler-file", file, "--no-dashboard"]
    scheduler = subprocess.Popen([*command, "scheduler", "--port", "0", "--dashboard-address", ":0", *alone])
    worker = subprocess.Popen([*command, "worker", "--nthreads", "1", "--death-timeout", "10", *alone])

    class Killer(Silent):
        def started(self, stage, projected_bytes):
            if stage == "graph":
                scheduler.kill()

    try:
        config = configure(data, {"cluster.scheduler_file": _appeared(file), "cluster.timeout": 15.0})
        began = time.monotonic()
        with pytest.raises(ClusterError, match="is lost") as caught:
            run(config, observer=Killer())
        assert time.monotonic() - began < 90
        assert "goes on from there" in "".join(caught.value.__notes__)
        assert inspect(config.output).status["state"] == "partial"
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()
