"""Locks that were removed by hand, or that another driver holds: nobody writes under the name of another."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from faults.harness import until

from dumap.artifacts.job import Job
from dumap.errors import LockError, StorageError
from dumap.recipe import damage, pipeline
from dumap.recipe.damage import verify
from dumap.recipe.observers import SilentObserver
from dumap.recipe.pipeline import run
from dumap.recipe.status import status
from dumap.store import LOCKS, Lock, Run
from dumap.store import lock as module
from dumap.store.objects import seal
from dumap.store.run import MAPPING_ATTRIBUTES, lock_key

pytestmark = pytest.mark.fault(12)


@pytest.fixture(autouse=True)
def short_lease(monkeypatch):
    """Renew locks 20 times a second, and count drivers as gone after half a second."""
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.5)


@pytest.fixture
def begun_run(new_path) -> Run:
    """Return a run that has been created and holds nothing yet."""
    store = Run(new_path("run.zarr"))
    store.create({key: {} for key in MAPPING_ATTRIBUTES})
    return store


def commit(store: Run, name: str = "p") -> None:
    """Commit a part of three numbers."""
    with store.part("stage", name) as out:
        out.write("a", np.arange(3))


def token(store: Run, term: int = 1) -> str | None:
    """Return the token of the lock that a term has."""
    return Run(store.location).read_holder(term).get("token")


def test_a_lock_that_is_removed_by_hand_is_lost(begun_run):
    notes: list[str] = []
    with Lock(begun_run, notes.append):
        commit(begun_run)
        shutil.rmtree(Path(begun_run.location, LOCKS))
        until(lambda: notes, "a note")
        assert "was removed or is another's" in notes[0]
        with pytest.raises(LockError, match=r"this driver's lock _dumap/lock/00000001\.json was removed or is"):
            commit(begun_run, "q")
        with pytest.raises(LockError):
            begun_run.delete_part("stage", "p")
    assert begun_run.committed_parts("stage") == ["p"]
    assert begun_run.list_terms() == [], "it is not written again at the end"
    assert len(notes) == 1


def test_two_drivers_of_one_term_never_both_commit(begun_run, prepare):
    """The usual way to unlock: somebody removes the folder while a driver is at work, and starts another."""
    other, notes = Run(begun_run.location), []
    with Lock(begun_run, notes.append):
        workers = Run(begun_run.location, term=begun_run.term, token=begun_run.token)
        commit(workers, "first")
        shutil.rmtree(Path(begun_run.location, LOCKS))
        with Lock(other, notes.append):
            assert (other.term, begun_run.term) == (1, 1)
            assert other.token == token(begun_run) != begun_run.token
            until(lambda: notes, "a note")
            for store in (begun_run, workers):
                with pytest.raises(LockError, match="is another's"):
                    commit(store, "late")
            commit(other, "second")
            commit(Run(begun_run.location, term=other.term, token=other.token), "third")
            held = other.token
    assert begun_run.committed_parts("stage") == ["first", "second", "third"]
    assert token(begun_run) == held
    assert begun_run.read_lock(1)["released"]


def test_a_job_takes_the_token_with_it(prepare):
    config = prepare()
    job = Job(config, pipeline.plan(config).geometry, term=3, token="abc")
    assert (job.run.term, job.run.token) == (3, "abc")


@pytest.mark.parametrize("error", [RuntimeError("odd"), StorageError("passing"), ValueError("odd")], ids=repr)
def test_a_beat_that_fails_is_said_and_the_next_gets_through(begun_run, monkeypatch, error):
    notes, put, failed = [], begun_run.put, []

    def fail(key, data):
        if len(failed) < 2:
            failed.append(key)
            raise error
        put(key, data)

    def note(message):
        notes.append(message)
        raise TypeError("who is told fails too")

    with Lock(begun_run, note):
        monkeypatch.setattr(begun_run, "put", fail)
        until(lambda: (begun_run.read_lock(1) or {}).get("beat", 0) > 0, "a beat")
        commit(begun_run)
    assert notes == [f"the lock could not be renewed: {error}"] * 2
    assert begun_run.read_lock(1)["released"]


# verify ------------------------------------------------------------------------------------------


@pytest.mark.fault(13)
@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["verify", "dry run"])
def test_verify_beside_a_driver_is_refused(damageable, cli, options):
    store = Run(damageable.output)
    with Lock(store, print):
        outcome = cli("verify", damageable.output, *options)
        assert (outcome.code, outcome.out) == (8, "")
        assert f"is driven by process {os.getpid()}" in outcome.err
    assert cli("verify", damageable.output, *options).code == 0


def test_a_dry_run_writes_nothing_and_verify_holds_the_lock(damageable, cli, contents, monkeypatch):
    before = contents(damageable.output)
    assert cli("verify", damageable.output, "--dry-run").code == 0
    assert contents(damageable.output) == before
    locks = []
    monkeypatch.setattr(
        damage, "_find_damage", lambda store: locks.append((store.term, store.read_lock(2)["released"])) or []
    )
    assert cli("verify", damageable.output).code == 0
    assert locks == [(2, False)]
    assert Run(damageable.output).read_lock(2)["released"]


def test_a_driver_that_begins_meanwhile_is_no_damage(damageable, monkeypatch):
    key = Path(damageable.output, next(iter(Run(damageable.output).manifest("graph", "united-00000")["objects"])))
    key.unlink()
    list_damage = damage._find_damage

    def begin(store):
        Run(damageable.output).put(lock_key(9), seal({"released": True}))
        return list_damage(store)

    with monkeypatch.context() as patch:
        patch.setattr(damage, "_find_damage", begin)
        with pytest.raises(LockError, match="a driver began to work on it meanwhile"):
            verify(damageable.output)
    assert len(verify(damageable.output)) == 1


def test_a_run_that_cannot_be_locked_is_verified_by_reading(damageable, cli, monkeypatch):
    def refuse(self, key, data):
        raise StorageError(f"{self.location}, {key}: the file system is read-only")

    monkeypatch.setattr(Run, "put_new", refuse)
    outcome = cli("verify", damageable.output)
    assert (outcome.code, outcome.out) == (0, "all objects are as they were written\n")
    assert "the file system is read-only; it is read without its lock, and stays as it is" in outcome.err
    Path(damageable.output, "zarr.json").write_text("{}")
    assert cli("verify", damageable.output).code == 1
    assert Path(damageable.output, "zarr.json").read_text() == "{}"


# status ------------------------------------------------------------------------------------------


class Asking(SilentObserver):
    """Asks how a run goes on, once a stage is at work and the lock has said so."""

    def __init__(self, output: str, cli) -> None:
        self.output, self.cli, self.statuses = output, cli, []

    def advanced(self, stage, done, total):
        if stage == "neighbors" and not self.statuses:
            time.sleep(0.2)
            self.statuses = [status(self.output), self.cli("status", self.output).out]


def test_status_says_who_is_at_work_and_how_far(prepare, client, cli):
    config = prepare()
    asking = Asking(config.output, cli)
    assert run(config, client=client, observer=asking)["driver"] is None
    status, text = asking.statuses
    assert (status["driver"]["process"], status["driver"]["alive"]) == (os.getpid(), True)
    stages = {stage["name"]: stage for stage in status["stages"]}
    done, total = stages["neighbors"]["progress"]
    assert 0 < done <= total
    assert stages["cells"]["progress"] == [stages["cells"]["parts"]] * 2
    assert stages["layout"]["progress"] is None
    assert f"driven by process {os.getpid()} on {status['driver']['machine']}: at work" in text
    assert f"{done:.0f} of {total:.0f}" in text
    assert "driven" not in cli("status", config.output).out
    json.dumps(status, allow_nan=False)


def test_status_says_of_a_driver_that_it_is_silent(begun_run, damageable, cli):
    holder = {"machine": ["elsewhere", "", ""], "process": 7, "token": "x"}
    for beaten, message in ((time.time() - 90, "no sign of life for 9"), (None, "no sign of life for ")):
        document = {"term": 2, "holder": holder, "beat": 3, "released": False, "time": beaten}
        Run(damageable.output).put(lock_key(2), seal(document))
        assert f"driven by process 7 on elsewhere: {message}" in cli("status", damageable.output).out
        assert status(damageable.output)["driver"]["alive"] is False
