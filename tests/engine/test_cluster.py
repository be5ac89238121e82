"""Tasks on Dask: how a cluster is reached, and what happens when tasks fail or kill their workers."""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster
from faults.harness import fleet
from helpers import failing

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import part_names
from dumap.engine import cluster
from dumap.engine.cluster import DaskEngine
from dumap.engine.cluster_connection import ClusterConnection
from dumap.errors import ClusterError, TaskError
from dumap.recipe.pipeline import plan, run

SECONDS = 60


@pytest.fixture(scope="module")
def data(digits, save):
    """Save 200 digits; return their path."""
    return save(digits[0][:200])


@pytest.fixture
def job(configure, data):
    """Return the job of a run that has an empty folder."""
    config = configure(data)
    os.makedirs(config.output)
    return Job(config, plan(config).geometry)


@pytest.fixture
def workers(client, job):
    """Return the engine on the two workers of the session's cluster."""
    client.wait_for_workers(2, timeout=SECONDS)
    engine = DaskEngine(client, 30)
    engine.preflight()
    yield engine
    client.wait_for_workers(2, timeout=SECONDS)


# Tasks are made by functions, so that workers get their code and need not find this file.


def marking(folder: str):
    """Make a task that leaves a file a part."""

    def mark(job, part, seconds=0.0):
        time.sleep(seconds)
        Path(folder, part).touch()

    return mark


def raising(error: Exception):
    """Make a task that fails at its third part."""

    def fail(job, part):
        if part.endswith("00002"):
            raise error

    return fail


def silent(done, total):
    """Be told of progress, and do nothing."""
    return None


def test_a_worker_that_leaves_as_it_is_asked_is_not_called_unfit(client, workers, job, monkeypatch):
    ask, left = workers.connection.threads_by_worker, [{"tcp://127.0.0.1:9": 1}]

    def threads():
        return ask() | (left.pop() if left else {})

    monkeypatch.setattr(workers.connection, "threads_by_worker", threads)
    workers.preflight()
    assert left == []
    assert len(workers.worker_facts) == 2


# mapping -----------------------------------------------------------------------------------------


def test_every_part_is_run_and_counted(workers, job, new_path):
    folder, progress = new_path(), []
    parts = part_names("part", 20)
    workers.map(marking(folder), job, parts, {}, lambda done, total: progress.append((done, total)))
    assert sorted(os.listdir(folder)) == parts
    assert progress == [(done, 20) for done in range(1, 21)]
    assert workers.peak_bytes > 2**26


def naming_worker(folder: str):
    """Make a task whose units are its parts' last numbers; it leaves a file that names its worker."""

    def name_worker(job, part):
        from distributed import get_worker

        time.sleep(0.05)
        Path(folder, part).write_text(get_worker().address)

    name_worker.unit_of = lambda part: part[-5:]
    return name_worker


def test_units_stay_on_the_worker_that_ran_them_last(workers, job, new_path):
    folder, rounds = new_path(), range(5)
    task, parts = naming_worker(folder), [part_names(f"round_{number}", 4) for number in rounds]
    for parts_of_round in parts:
        workers.map(task, job, parts_of_round, {}, silent)
    addresses = [[Path(folder, part).read_text() for part in parts_of_round] for parts_of_round in parts]
    stays = [
        before == after for earlier, later in pairwise(addresses) for before, after in zip(earlier, later, strict=True)
    ]
    assert len(set(addresses[-1])) == 2
    assert sum(stays) >= 0.7 * len(stays)


def test_few_tasks_are_in_flight(client, workers, job, new_path, monkeypatch):
    submitted, settled, in_flight = [], [], []
    submit = client.submit

    def counting(*arguments, **options):
        submitted.append(1)
        in_flight.append(len(submitted) - len(settled))
        return submit(*arguments, **options)

    monkeypatch.setattr(client, "submit", counting)
    workers.map(
        marking(new_path()), job, part_names("part", 80), {"seconds": 0.01}, lambda done, total: settled.append(1)
    )
    assert len(submitted) == 80
    assert max(in_flight) == 64


def ticking(to: int):
    """Make a task that tells how far it is."""

    def tick(job, part):
        for done in range(3):
            job.report_progress(done, to)
            time.sleep(1.1)

    return tick


def test_two_runs_on_one_client_hear_each_of_its_own(client, workers, job, configure, data):
    other = configure(data)
    os.makedirs(other.output)
    second, heard = DaskEngine(client, 30), {10: set(), 20: set()}
    second.preflight()
    with ThreadPoolExecutor(2) as both:
        for engine, to, its in ((workers, 10, job), (second, 20, Job(other, plan(other).geometry))):
            ticks = heard[to]
            both.submit(
                engine.map, ticking(to), its, ["part-00000"], {}, lambda done, of, ticks=ticks: ticks.add((done, of))
            )
    workers.close()
    second.close()
    assert heard == {10: {(0, 10), (1, 10), (2, 10), (1, 1)}, 20: {(0, 20), (1, 20), (2, 20), (1, 1)}}
    assert left_on(client) == []


def test_a_worker_that_does_not_answer_holds_nobody_up(client, workers, new_path, monkeypatch):
    """It is stopped, and so may be for minutes before the scheduler gives it up."""
    monkeypatch.setattr(cluster, "ANSWER_TIMEOUT", 1.0)
    pid = client.submit(os.getpid, workers=[workers.worker_facts[0].address], pure=False).result()
    os.kill(pid, signal.SIGSTOP)
    try:
        engine = DaskEngine(client, 30)
        engine.preflight()
        assert [worker.address for worker in engine.worker_facts] == [workers.worker_facts[1].address]
        engine.check_output_visible(new_path())
        engine.close()
    finally:
        os.kill(pid, signal.SIGCONT)


def left_on(client) -> list[str]:
    """Return the tasks that the scheduler still knows, once it had time to forget them."""

    def tasks(dask_scheduler=None):
        return [str(key) for key in dask_scheduler.tasks if "dumap" in str(key)]

    deadline = time.monotonic() + 10
    while client.run_on_scheduler(tasks) and time.monotonic() < deadline:
        time.sleep(0.1)
    return client.run_on_scheduler(tasks)


def test_nothing_stays_on_the_scheduler(client, workers, job, new_path):
    for _ in range(3):
        workers.map(marking(new_path()), job, part_names("part", 10), {}, silent)
    assert left_on(client) == []


def test_tasks_are_called_after_the_stage(client, workers, job, new_path, monkeypatch):
    """Not after the module that they are in."""
    submit, keys = client.submit, []

    def noting(*arguments, **options):
        keys.append(options["key"])
        return submit(*arguments, **options)

    monkeypatch.setattr(client, "submit", noting)
    workers.map(marking(new_path()), replace(job, stage="layout"), ["part-00000"], {}, silent)
    assert [key[0].split("-")[:2] for key in keys] == [["dumap", "layout"]]


def test_an_error_of_a_part_that_is_committed_is_none(workers, job):
    with job.run.part("layout", "part-00002"):
        pass
    workers.map(
        raising(ZeroDivisionError("by nothing")), replace(job, stage="layout"), part_names("part", 4), {}, silent
    )


def test_nothing_stays_on_the_scheduler_after_an_error(client, workers, job):
    with pytest.raises(TaskError) as caught:
        workers.map(raising(ZeroDivisionError("by nothing")), job, part_names("part", 10), {}, silent)
    assert left_on(client) == [], caught
    assert client.futures == {}


def test_another_client_that_is_the_default_slows_nothing(client, workers, job, new_path, monkeypatch):
    """Futures are waited for by the client they are of: another's loop never hears that they are done."""
    counts, wait = [], ClusterConnection.wait_for_done

    def counted(self, seconds):
        counts.append(len(finished := wait(self, SECONDS / 2)))
        return finished

    monkeypatch.setattr(ClusterConnection, "wait_for_done", counted)
    with Client(client.scheduler.address, set_as_default=True):
        for _ in range(8):
            workers.map(marking(new_path()), job, ["part-00000"], {}, silent)
    assert counts == [1] * 8


@failing
def test_a_failing_task_is_named(workers, job, error, raised):
    with pytest.raises(raised, match=str(error.args[-1])) as caught:
        workers.map(raising(error), job, part_names("part", 6), {}, silent)
    if raised is not type(error):
        assert "test_cluster part-00002" in str(caught.value)


# reaching a cluster ------------------------------------------------------------------------------


def test_a_client_handed_over_stays_open(client, configure, data):
    assert run(configure(data), client=client)["state"] == "done"
    assert client.submit(sum, [1, 2]).result() == 3


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
def scheduled(new_path):
    """Start `dask scheduler` and `dask worker`; return the scheduler's file and its address."""
    with fleet(new_path, 1, nanny=False) as started:
        yield started.file, started.address


@pytest.mark.parametrize("option", ["--scheduler-file", "DASK_SCHEDULER_ADDRESS"])
def test_a_cluster_that_runs_already(scheduled, cli, embed, data, new_path, inspect, monkeypatch, option):
    file, address = scheduled
    output = new_path("run.zarr")
    arguments = ["--input", data, "--output", output, "--set", "layout.n_epochs=20", "--set", "audit.queries=0"]
    if option == "DASK_SCHEDULER_ADDRESS":
        monkeypatch.setenv(option, address)
        dask.config.refresh()
    else:
        arguments += [option, file]
    try:
        outcome = cli("run", *arguments)
    finally:
        monkeypatch.undo()
        dask.config.refresh()
    assert outcome.code == 0, outcome.err
    assert "embedded cluster" not in outcome.err
    assert inspect(output).y.tobytes() == embed(data).y.tobytes()


@pytest.mark.faults
@pytest.mark.fault(3)
def test_a_cluster_without_workers(configure, data):
    """Nobody comes: an error within the timeout."""
    with (
        LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        Client(cluster) as nobody,
        pytest.raises(ClusterError, match="no worker for 1 s"),
    ):
        run(configure(data, {"cluster.worker_timeout": 1.0}), client=nobody)
