"""Drivers that are asked to end, that start together, or that come back: one at a time drives a run."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from faults.harness import SECONDS, SETTING_OPTIONS, Fleet, all_kept, commits, results, until
from helpers import NoteRecorder

from dumap.artifacts.job import Job
from dumap.engine.cluster import DaskEngine
from dumap.errors import LockError
from dumap.recipe.damage import verify
from dumap.recipe.pipeline import plan, run
from dumap.store import MANIFESTS, Lock, Run
from dumap.store import lock as module
from dumap.store.objects import seal, unseal
from dumap.store.run import lock_key

FAST_LOCK_DRIVER = Path(__file__).with_name("fast_lock_driver.py")
EMBEDDED = {"cluster.workers": 1, "cluster.memory_limit": 2**31}


@pytest.fixture
def drivers(new_path):
    """Return a fleet without a scheduler, to start drivers that end with the test."""
    with Fleet(new_path) as fleet:
        yield fleet


def drive(fleet: Fleet, config, **env: str):
    """Run the command line with locks that are renewed many times a second."""
    file = fleet.new_path("run.yaml")
    Path(file).write_text(yaml.safe_dump(config.model_dump()))
    return fleet.start([str(FAST_LOCK_DRIVER), "run", file], **env)


def reached(fleet: Fleet, name: str, driver) -> None:
    """Wait until a driver or its worker has come to a fault."""
    until(lambda: fleet.faults.happened(name) or driver.code is not None, f"{name}:\n{driver.output}")
    assert driver.code is None, driver.output


def held(output: str, term: int = 1) -> dict:
    """Return what a term's lock says; nothing where there is none."""
    path = Path(output, lock_key(term))
    return (unseal(path.read_bytes()) or {}) if path.exists() else {}


# asked to end ------------------------------------------------------------------------------------

MOMENTS = {
    "its cluster starts": None,
    "vectors": ("worker", "task", "vectors"),
    "neighbors": ("worker", "task", "neighbors"),
    "layout": ("worker", "task", "layout"),
    "a commit": ("driver", "manifest", "done"),
}
ENDINGS = [
    ("neighbors", signal.SIGTERM, False),
    ("its cluster starts", signal.SIGTERM, False),
    ("layout", signal.SIGTERM, False),
    ("a commit", signal.SIGTERM, False),
    ("its cluster starts", signal.SIGTERM, True),
    ("vectors", signal.SIGTERM, True),
    ("neighbors", signal.SIGINT, True),
]


@pytest.mark.fault(8)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number", "group"),
    ENDINGS,
    ids=[f"{moment}-{number.name}-{'group' if group else 'alone'}" for moment, number, group in ENDINGS],
)
def test_a_driver_asked_to_end_lets_go(drivers, prepare, client, expected, moment, number, group):
    config = prepare(EMBEDDED)
    if MOMENTS[moment]:
        role, point, stage = MOMENTS[moment]
        (name,) = drivers.faults.plan({"role": role, "point": point, "stage": stage, "action": "sleep", "seconds": 600})
    driver = drivers.drive(config)
    if MOMENTS[moment]:
        reached(drivers, name, driver)
    else:
        until(lambda: len(driver.members()) > 1, moment)
    assert driver.code is None, driver.output
    (os.killpg if group else os.kill)(driver.pid, number)
    assert driver.wait() == (143 if number == signal.SIGTERM else 130), driver.output
    until(lambda: not driver.members(), f"its workers' end: {driver.members()}")
    assert "interrupted; what is committed is kept" in driver.output
    if MOMENTS[moment]:  # of a cluster that is half there, Dask says so itself
        assert "Traceback" not in driver.output
        assert held(config.output)["released"]
    before, watching = commits(config.output), NoteRecorder()
    assert run(config, client=client, observer=watching)["state"] == "done"
    assert not any("held by" in note for note in watching.notes), watching.notes
    assert all_kept(before, config.output)
    assert results(config.output) == expected


@pytest.mark.fault(8)
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.5])
def test_a_driver_asked_to_end_as_it_begins_leaves_nothing(drivers, prepare, seconds):
    """It may have loaded no more than Python, which then ends by the signal itself."""
    config = prepare(EMBEDDED)
    driver = drivers.drive(config)
    time.sleep(seconds)
    os.kill(driver.pid, signal.SIGTERM)
    assert driver.wait() in (143, -signal.SIGTERM), driver.output
    until(lambda: not driver.members(), "its workers' end")
    assert "Traceback" not in driver.output
    assert not Path(config.output).exists()


# two at once -------------------------------------------------------------------------------------


@pytest.mark.fault(12)
@pytest.mark.slow
def test_a_second_driver_is_refused_and_the_first_undisturbed(drivers, prepare, client, cli, expected, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.2)
    config = prepare(EMBEDDED)
    busy = {"role": "worker", "stage": "neighbors", "part": "cell-00003", "action": "sleep", "seconds": 5}
    (name,) = drivers.faults.plan({**busy, "point": "task"})
    first = drive(drivers, config)
    reached(drivers, name, first)
    arguments = ["--input", config.input.path, "--output", config.output]
    address = ["--scheduler", client.scheduler.address]
    for command in (["run", *arguments, *SETTING_OPTIONS, *address], ["clean", config.output]):
        second = cli(*command)
        assert second.code == 8, second.err
        assert f"{config.output} is driven by process {first.pid} on {held(config.output)['holder']['machine'][0]}" in (
            second.err
        )
    assert cli("status", config.output).code == 0
    assert first.wait() == 0, first.output
    assert "Traceback" not in first.output
    assert Run(config.output).list_terms() == [1]
    assert results(config.output) == expected
    assert verify(config.output) == []


@pytest.mark.fault(12)
@pytest.mark.slow
def test_two_drivers_that_start_at_once(drivers, prepare, client, expected, new_path):
    config, gun = prepare({"cluster.scheduler": client.scheduler.address}), Path(new_path())
    both = [drive(drivers, config, DUMAP_GUN=str(gun)) for _ in range(2)]
    until(lambda: len(list(gun.glob("ready-*"))) == 2, "both drivers")
    (gun / "go").touch()
    assert sorted(driver.wait() for driver in both) == [0, 8], [driver.output for driver in both]
    assert "is driven by process" in next(driver.output for driver in both if driver.code == 8)
    assert Run(config.output).list_terms() == [1]
    assert results(config.output) == expected


@pytest.mark.fault(12)
def test_one_of_many_drivers_gets_the_lock(new_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
    output, begin, end = new_path("run.zarr"), threading.Barrier(8), threading.Event()

    def try_lock() -> int | None:
        begin.wait()
        try:
            with Lock(Run(output), lambda _: None) as lock:
                end.wait(60)
                return lock.run.term
        except LockError:
            return None
        finally:
            losses.append(1)
            if len(losses) == 7:
                end.set()

    losses: list[int] = []
    with ThreadPoolExecutor(8) as pool:
        terms = [future.result() for future in [pool.submit(try_lock) for _ in range(8)]]
    assert sorted(terms, key=str) == [1, *[None] * 7]


# holders that are gone ---------------------------------------------------------------------------


@pytest.fixture
def left_lock(new_path):
    """Return a run, and a function that leaves a lock in it."""
    output = Run(new_path("run.zarr"))

    def leave(data: bytes | None = None, **holder) -> bytes:
        who = {
            "machine": module._machine_id(),
            "process": os.getpid(),
            "started": module._process_start(os.getpid()),
            **holder,
        }
        data = seal({"term": 1, "holder": who, "beat": 3, "released": False}) if data is None else data
        output.put(lock_key(1), data)
        return data

    return output, leave


def taken(output: Run) -> tuple[int, float, list[str]]:
    """Take and release the lock; return the term, how long that took, and what was told."""
    notes, began = [], time.monotonic()
    with Lock(output, notes.append):
        term = output.term
    return term, time.monotonic() - began, notes


def ended() -> tuple[int, float]:
    """Return the number of a process that ended, and when it had started."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        numbers = process.pid, module._process_start(process.pid)
    return numbers


@pytest.mark.fault(12)
def test_the_lock_of_a_process_that_ended_is_taken_at_once(left_lock):
    output, leave = left_lock
    process, started = ended()
    leave(process=process, started=started)
    assert taken(output)[::2] == (2, [])
    assert held(output.location, 2)["released"]


@pytest.mark.fault(12)
def test_the_lock_of_another_process_of_the_same_number_is_taken_at_once(left_lock):
    output, leave = left_lock
    leave(started=module._process_start(os.getpid()) - 1)
    assert taken(output)[::2] == (2, [])


@pytest.mark.fault(12)
def test_the_lock_of_a_process_that_ended_unnoticed_by_its_parent_is_taken_at_once(left_lock):
    output, leave = left_lock
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave(process=process.pid, started=module._process_start(process.pid))
    process.stdin.close()
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, "its end")
    assert taken(output)[::2] == (2, [])
    process.wait()


@pytest.mark.fault(12)
def test_a_process_that_cannot_be_looked_at_is_not_gone(left_lock, monkeypatch):
    """Such as another user's, where the system hides those."""
    output, leave = left_lock
    leave(started=1.0)
    monkeypatch.setattr(module, "_process_start", lambda process: None)
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.5)
    term, seconds, _ = taken(output)
    assert term == 2
    assert seconds > 0.5


@pytest.mark.fault(12)
@pytest.mark.parametrize("data", [b"", b"{", b"null", b"\xff\x00", seal({"term": 1})[:-1]], ids=str)
def test_a_damaged_lock_is_waited_for_then_taken(left_lock, monkeypatch, data):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.5)
    output, leave = left_lock
    leave(data)
    term, seconds, notes = taken(output)
    assert (term, seconds > 0.5) == (2, True)
    assert "is held by process ? on ?: seeing for 0 s whether it is alive" in notes[0].replace("for 1 s", "for 0 s")
    assert "gives no sign of life: taking over" in notes[1]


@pytest.mark.fault(12)
def test_an_unknown_machine_is_waited_for_and_heard(left_lock, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(module, "LEASE_SECONDS", 1.0)
    output, leave = left_lock
    leave(machine=["elsewhere", "", ""], process=7)
    term, seconds, notes = taken(output)
    assert (term, seconds > 1.0) == (2, True)
    assert "process 7 on elsewhere, which drove" in notes[1]

    output.delete(lock_key(2))
    leave(machine=["elsewhere", "", ""], process=7)
    lock = Lock(output, lambda note: leave(machine=["elsewhere", "", ""], process=8))  # heard of as it is waited for
    with pytest.raises(LockError, match="is driven by process 8 on elsewhere: wait until it is done, stop it, or name"):
        lock.__enter__()
    assert output.list_terms() == [1]


@pytest.mark.fault(12)
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["neighbors", "layout"])
def test_a_stopped_driver_is_taken_over_and_cannot_commit(
    drivers, prepare, client, expected, monkeypatch, contents, stage
):
    config = prepare({**EMBEDDED, "layout.checkpoint_every": 2})
    (name,) = drivers.faults.plan(
        {"role": "driver", "point": "manifest", "stage": "done", "part": stage, "action": "stop"}
    )
    first = drive(drivers, config)
    reached(drivers, name, first)
    until(lambda: psutil.Process(first.pid).status() == psutil.STATUS_STOPPED, "its stop")
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(module, "LEASE_SECONDS", 2.0)
    before, watching = commits(config.output), NoteRecorder()
    assert run(config, client=client, observer=watching)["state"] == "done"
    (taking,) = [note for note in watching.notes if "taking over" in note]
    assert f"process {first.pid} on" in taking
    assert "gives no sign of life" in taking
    assert all_kept(before, config.output)
    manifests = contents(f"{config.output}/{MANIFESTS}")
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 8, first.output
    assert "another driver took this run over; nothing more was written by this one" in first.output
    assert contents(f"{config.output}/{MANIFESTS}") == manifests
    assert Run(config.output).list_terms() == [1, 2]
    assert json.loads(Path(config.output, lock_key(2)).read_text())["document"]["released"]
    assert results(config.output) == expected
    assert verify(config.output) == []


@pytest.mark.fault(12)
def test_the_workers_of_a_driver_that_was_taken_over_commit_nothing(prepare, client):
    config = prepare()
    job = Job(config, plan(config).geometry, term=1)
    job.run.put(lock_key(2), seal({"term": 2}))

    def write(job, part):
        with job.run.part("stage", part) as out:
            out.write("a", np.arange(3))

    engine = DaskEngine(client, SECONDS)
    engine.preflight()
    with pytest.raises(LockError, match="took this run over"):
        engine.map(write, job, ["part-00000"], {}, lambda done, total: None)
    assert job.run.committed_parts("stage") == []


def test_a_pickled_job_leaves_behind_what_it_has_read(prepare):
    config = prepare()
    job = Job(config, plan(config).geometry, term=3)
    before = len(pickle.dumps(job))
    job.run._manifests["stage", "part"] = {"long": "x" * 10_000}
    assert job.input.rows
    assert len(pickle.dumps(job)) == before
    assert pickle.loads(pickle.dumps(job)).run.term == 3
