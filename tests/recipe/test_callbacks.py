"""Callbacks of a program: what they are called with, from which thread, and what happens to their errors."""

from __future__ import annotations

import threading

import pytest

import dumap
from dumap.errors import LockError
from dumap.recipe import observers, pipeline
from dumap.recipe.stage_names import STAGES


class Recorder:
    """Keeps what it is told, and from which thread; fails at one of its methods."""

    def __init__(self, at: str = "", error: BaseException | None = None) -> None:
        self.events: list[tuple] = []
        self.threads: set[int] = set()
        self._at, self._error = at, error

    def _take(self, name: str, *values) -> None:
        self.events.append((name, *values))
        self.threads.add(threading.get_ident())
        if name == self._at and self._error is not None:
            raise self._error

    def started(self, stage, projected_bytes):
        self._take("started", stage, projected_bytes)

    def advanced(self, stage, done, total):
        self._take("advanced", stage, done, total)

    def finished(self, stage, seconds, projected_bytes, peak_bytes, facts):
        self._take("finished", stage, seconds, projected_bytes, peak_bytes, facts)

    def note(self, message):
        self._take("note", message)


@pytest.fixture
def config(configure, digits_300):
    """Return the configuration of a run in several cells on the local engine."""
    return configure(digits_300, {"cluster.engine": "local", "cells.max_rows": 100})


def test_an_observer_hears_of_every_stage_from_one_thread(config):
    recorder = Recorder()
    dumap.run(config, on_progress=recorder)
    assert [event[1] for event in recorder.events if event[0] == "started"] == list(STAGES)
    assert [event[1] for event in recorder.events if event[0] == "finished"] == list(STAGES)
    assert any(event[:2] == ("advanced", "neighbors") for event in recorder.events)
    assert recorder.threads == {threading.get_ident()}


def test_a_function_hears_how_far_stages_are(config):
    heard = []
    dumap.run(config, on_progress=lambda stage, done, total: heard.append((stage, done / total)))
    assert {stage for stage, _ in heard} == set(STAGES) - {"audit", "quality"}, "of which nothing was asked"
    assert all(0 <= share <= 1 for _, share in heard)
    assert [share for stage, share in heard if stage == "neighbors"][-1] == 1


def test_no_stage_is_said_to_be_further_than_its_end(configure, digits_300):
    heard = []
    config = configure(digits_300, {"cluster.engine": "local", "layout.mode": "rounds", "layout.n_epochs": 3})
    dumap.run(config, on_progress=lambda stage, done, total: heard.append((stage, done, total)))
    assert max(done for stage, done, _ in heard if stage == "layout") == 3
    assert all(done <= total for _, done, total in heard)


def test_notes_of_other_threads_are_passed_on_by_the_runs_thread(monkeypatch):
    recorder, there = Recorder(), threading.Event()

    def run(config, observer, **options):
        other = threading.Thread(target=lambda: (observer.note("from afar"), there.set()))
        other.start()
        other.join()
        assert recorder.events == []
        observer.note("from here")
        other = threading.Thread(target=lambda: observer.note("at last"))
        other.start()
        other.join()
        return {"output": "RUN.zarr"}

    monkeypatch.setattr(pipeline, "run", run)
    dumap.run("DATA.zarr", output="RUN.zarr", on_progress=recorder)
    assert recorder.events == [("note", "from afar"), ("note", "from here"), ("note", "at last")]
    assert recorder.threads == {threading.get_ident()}


@pytest.mark.parametrize("at", ["started", "advanced", "finished"])
@pytest.mark.parametrize(
    "error", [ValueError("mine"), TimeoutError("mine"), StopIteration("mine"), LockError("mine"), KeyboardInterrupt()]
)
def test_an_error_of_a_callback_ends_the_run_unchanged(config, at, error):
    with pytest.raises(type(error)) as raised:
        dumap.run(config, on_progress=Recorder(at, error))
    assert raised.value is error
    assert dumap.status(config.output)["driver"] is None, "the lock is free at once"


def test_a_run_goes_on_after_a_callback_failed(config):
    def stop(stage, done, total):
        if stage == "graph":
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        dumap.run(config, on_progress=stop)
    recorder = Recorder()
    assert dumap.run(config, on_progress=recorder)["state"] == "done"
    assert [event[1] for event in recorder.events if event[0] == "started"] == list(STAGES[STAGES.index("graph") :])


def test_the_log_is_written_without_callbacks(config, caplog):
    caplog.set_level("INFO", "dumap")
    dumap.run(config)
    assert {record.dumap["stage"] for record in caplog.records if record.dumap["event"] == "finished"} == set(STAGES)
    assert observers.LOGGER.name == "dumap"
