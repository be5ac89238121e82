"""How a cluster is reached: by a client, an address, a file, with TLS, from tasks and event loops; or started."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Client, LocalCluster, Security, get_client, get_worker, worker_client
from helpers import NoteRecorder

from dumap.config import ClusterConfig
from dumap.engine import connect as engine
from dumap.engine.connect import connect, plan_embedded_cluster
from dumap.errors import ClusterError, ConfigError
from dumap.recipe.observers import SilentObserver

SECONDS = 60
GIB = 2**30


def settings(**given) -> ClusterConfig:
    """Return the section `cluster` with a timeout of half a minute."""
    return ClusterConfig(**{"timeout": 30.0, **given})


def answers(client: Client | None = None, **given) -> bool:
    """Reach a cluster as a run does, and compute on it."""
    with connect(settings(**given), client, SilentObserver()) as engine:
        return engine.client.submit(sum, [1, 2], pure=False).result(timeout=SECONDS) == 3


@pytest.fixture(scope="module")
def cluster():
    """Start a scheduler and a worker in this process that are connected by TCP."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=":0"
    ) as started:
        yield started


@pytest.fixture
def nobody():
    """Return an address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def mute():
    """Return the address of a port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


# files of schedulers -----------------------------------------------------------------------------


@pytest.mark.fault(38)
@pytest.mark.parametrize("before", ["late", "half-written", "without an address", "of nobody", "of a mute one"])
def test_a_file_is_read_until_its_scheduler_answers(cluster, nobody, mute, tmp_path, monkeypatch, before):
    file, whole = tmp_path / "scheduler.json", json.dumps({"address": cluster.scheduler_address})
    texts = {
        "half-written": whole[:20],
        "without an address": "{}",
        "of nobody": json.dumps({"address": nobody}),
        "of a mute one": json.dumps({"address": mute}),
    }
    if before in texts:
        file.write_text(texts[before])
    monkeypatch.setattr(engine, "FIRST_TRY_TIMEOUT", 0.3)
    writing = threading.Timer(0.7, file.write_text, [whole])
    writing.start()
    try:
        assert answers(scheduler_file=str(file))
    finally:
        writing.join()


@pytest.mark.fault(38)
@pytest.mark.parametrize("text", [None, '{"addr', "[]", '{"address": "nowhere://1"}'])
def test_a_file_that_never_names_a_scheduler(tmp_path, text):
    file = tmp_path / "scheduler.json"
    if text is not None:
        file.write_text(text)
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"within 1 s") as caught:
        answers(scheduler_file=str(file), timeout=1.0)
    assert str(file) in str(caught.value)
    assert time.monotonic() - began < SECONDS / 4


# TLS ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secured():
    """Start a cluster with TLS; return it with the security options of its clients."""
    pytest.importorskip("cryptography")
    security = Security.temporary()
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tls", security=security, dashboard_address=":0"
    ) as started:
        yield started, security


def test_tls_through_a_client(secured):
    started, security = secured
    with Client(started.scheduler_address, security=security) as client:
        assert answers(client)


@pytest.mark.parametrize("by", ["scheduler", "scheduler_file"])
def test_tls_by_the_configuration_of_dask(secured, tmp_path, by):
    started, security = secured
    tls = {}
    for name in ("ca_file", "client_cert", "client_key"):
        file = tmp_path / name
        file.write_text(getattr(security, f"tls_{name}"))
        tls[f"distributed.comm.tls.{name.replace('client_', 'client.').replace('_', '-')}"] = str(file)
    location = started.scheduler_address
    if by == "scheduler_file":
        (tmp_path / "scheduler.json").write_text(json.dumps({"address": location}))
        location = str(tmp_path / "scheduler.json")
    with dask.config.set(tls):
        assert answers(**{by: location})
    with pytest.raises(ClusterError, match=r"distributed\.comm\.tls"):
        answers(**{by: location}, timeout=1.0)


# one cluster, not two ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheduler": "tcp://a:1", "scheduler_file": "b"}, "scheduler = 'tcp://a:1' and scheduler_file = 'b' name a"),
        ({"scheduler": "tcp://a:1", "workers": 2}, "workers = 2 would be of an embedded cluster, but scheduler = "),
        ({"scheduler_file": "b", "memory_limit": GIB}, "memory_limit = .* but scheduler_file = 'b' names another"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**values)


@pytest.mark.parametrize("given", [{"workers": 2}, {"memory_limit": GIB}])
def test_workers_beside_another_cluster_are_refused(cluster, given):
    name = next(iter(given))
    with (
        dask.config.set({"scheduler-address": cluster.scheduler_address}),
        pytest.raises(ConfigError, match=rf"cluster\.{name} = .*{cluster.scheduler_address}.*DASK_SCHEDULER_ADDRESS"),
    ):
        answers(**given)


def test_a_client_that_is_given_wins_and_it_is_said(cluster):
    noting = NoteRecorder()
    with Client(cluster) as client, connect(settings(workers=2), client, noting) as engine:
        assert engine.client is client
    assert noting.notes == ["cluster.workers = 2: left aside, the client that is given has workers of its own"]


def test_a_named_scheduler_wins_over_that_of_the_environment(cluster, nobody):
    with dask.config.set({"scheduler-address": nobody}):
        assert answers(scheduler=cluster.scheduler_address)


# clients of all kinds ----------------------------------------------------------------------------


def test_a_client_within_the_process():
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as started:
        assert started.scheduler_address.startswith("inproc://")
        with Client(started) as client:
            assert answers(client)


def test_a_closed_client_is_refused(cluster):
    with Client(cluster) as client:
        pass
    with pytest.raises(ConfigError, match="the client is closed"):
        answers(client)


@pytest.mark.fault(41)
def test_an_asynchronous_client(cluster):
    async def within_its_loop():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            return answers(client)

    async def beside_its_loop():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            return await asyncio.to_thread(answers, client)

    assert asyncio.run(within_its_loop())
    assert asyncio.run(beside_its_loop())


@pytest.mark.fault(41)
def test_an_asynchronous_client_of_a_cluster_that_this_call_keeps_from_answering():
    async def within_its_loop():
        options = {"n_workers": 1, "processes": False, "dashboard_address": ":0", "asynchronous": True}
        async with LocalCluster(**options) as cluster, Client(cluster, asynchronous=True) as client:
            with pytest.raises(ClusterError, match=r"await asyncio\.to_thread\(dumap\.run"):
                answers(client, timeout=1.0)
            return await asyncio.to_thread(answers, client)

    began = time.monotonic()
    assert asyncio.run(within_its_loop())
    assert time.monotonic() - began < SECONDS / 2


@pytest.mark.fault(41)
def test_an_asynchronous_client_that_was_not_awaited(cluster):
    async def hand_over():
        client = Client(cluster.scheduler_address, asynchronous=True)
        try:
            with pytest.raises(ConfigError, match="await it"):
                answers(client)
        finally:
            await client
            await client.close()

    asyncio.run(hand_over())


@pytest.mark.fault(48)
def test_a_client_within_a_running_event_loop(cluster):
    async def notebook():
        return answers(), answers(client)

    with Client(cluster) as client, dask.config.set({"scheduler-address": cluster.scheduler_address}):
        assert asyncio.run(notebook()) == (True, True)


# from inside a task ------------------------------------------------------------------------------


@pytest.mark.fault(41, 48)
@pytest.mark.parametrize("from_where", ["get_client", "worker_client", "address"])
def test_from_inside_a_task_of_a_worker_of_one_thread(cluster, from_where):
    def inside():
        if from_where == "get_client":
            return answers(get_client())
        if from_where == "worker_client":
            with worker_client() as inner:
                return answers(inner)
        return answers(scheduler=get_worker().scheduler.address)

    with Client(cluster) as client:
        for _ in range(2):  # the thread is given back
            assert client.submit(inside, pure=False).result(timeout=SECONDS)


@pytest.mark.fault(48)
def test_a_task_that_is_a_coroutine_is_told(cluster):
    async def inside():
        return answers(get_client())

    with Client(cluster) as client, pytest.raises(ConfigError, match=r"await asyncio\.to_thread"):
        client.submit(inside, pure=False).result(timeout=SECONDS)


# an embedded cluster -----------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """Return a function that pretends a number of CPUs and an amount of free memory."""

    def pretend(cpus: int, free: int, process: int | None = None):
        monkeypatch.setattr(engine, "cpu_count", lambda: cpus)
        monkeypatch.setattr(engine, "free_memory", lambda: free)
        monkeypatch.setattr(engine, "process_memory_limit", lambda: process)

    return pretend


@pytest.mark.fault(44)
def test_workers_fit_the_memory_there_is(machine):
    need = 3 * GIB // 2
    machine(16, 8 * GIB)
    workers, limit, why = plan_embedded_cluster(settings(), need)
    assert workers == 4
    assert need <= limit <= 8 * GIB / 4
    assert why == " (16 CPUs, but room for 4: 7.20 GiB may be used, each takes 1.50 GiB)"
    assert plan_embedded_cluster(settings(memory_limit=3 * GIB), need)[:2] == (2, 3 * GIB)
    assert plan_embedded_cluster(settings(workers=3), need)[::2] == (3, "")
    assert plan_embedded_cluster(settings(workers=16, memory_limit=GIB), need) == (16, GIB, "")
    machine(2, 64 * GIB)
    assert plan_embedded_cluster(settings(), need)[::2] == (2, "")
    machine(16, GIB)
    assert plan_embedded_cluster(settings(), need)[:2] == (1, int(0.9 * GIB))
    machine(4, 64 * GIB, 2 * GIB)
    assert plan_embedded_cluster(settings(), need)[:2] == (4, 2 * GIB)


def descendants() -> set[int]:
    """Return the processes that this one has started."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_embedded_cluster_leaves_nothing_behind(tmp_path, error):
    before, levels = descendants(), {name: logging.getLogger(name).level for name in ("distributed", "tornado")}
    noting, pids = NoteRecorder(), {}

    def failing():
        with connect(settings(workers=2, memory_limit=GIB), None, noting) as engine:
            pids.update(engine.client.run(os.getpid))
            assert len(pids) == 2
            assert set(pids.values()) < descendants()
            assert list(tmp_path.iterdir())
            assert {name: logging.getLogger(name).level for name in levels} == levels
            raise error

    with dask.config.set({"temporary-directory": str(tmp_path)}), pytest.raises(error):
        failing()
    assert noting.notes == ["embedded cluster: 2 worker processes of 1.00 GiB"]
    assert descendants() == before
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    left = [path.name for path in tmp_path.rglob("*")]
    assert set(left) <= {"dask-scratch-space", "purge.lock", "global.lock"}, "which Dask keeps for all clusters"


@pytest.mark.parametrize("what", ["a file for a folder", "no such program", "an end"])
def test_an_embedded_cluster_that_cannot_start_says_why(tmp_path, monkeypatch, what):
    before, file, options = descendants(), tmp_path / "file", {}
    file.write_text("")
    if what == "a file for a folder":
        options, message = {"temporary-directory": str(file)}, "NotADirectoryError|FileExistsError"
    elif what == "no such program":
        message = "FileNotFoundError"
        monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    else:
        message = "exit code 1"
        monkeypatch.setattr("sys.executable", "/bin/false")
    with dask.config.set(options), pytest.raises(ClusterError, match=rf"embedded cluster cannot start .*({message})"):
        answers(workers=1, memory_limit=GIB)
    assert descendants() == before
    assert Path(file).read_text() == ""


IN_A_LOOP = """
import asyncio, dumap
async def notebook():
    return dumap.run({config})["state"]
print(asyncio.run(notebook()))
"""
DAEMONIC = """
import multiprocessing, dumap
def work():
    print(dumap.run({config})["state"], flush=True)
process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
process.start()
process.join()
"""


@pytest.mark.fault(48)
@pytest.mark.slow
@pytest.mark.parametrize("text", [IN_A_LOOP, DAEMONIC], ids=["in a loop", "daemonic"])
def test_a_script_that_multiprocessing_could_not_serve(configure, embed, digits, new_path, inspect, text):
    """Without a guard of its main module, and in a running event loop, or in a process that may have no children.

    The workers that its run starts change no byte.
    """
    config = configure(digits[0][:200], {"cluster.workers": 1, "cluster.memory_limit": 2 * GIB})
    script = Path(new_path("script.py"))
    script.write_text(text.format(config=config.model_dump(mode="json")))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=2 * SECONDS, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert inspect(config.output).y.tobytes() == embed(digits[0][:200]).y.tobytes()
