"""Tasks in threads of this process: errors and signals, when this engine is chosen, and the same bytes as on Dask."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import dask
import numba
import numpy as np
import pytest
import zarr
from distributed import Client
from faults.harness import until
from helpers import NoteRecorder, failing, mark_slow_except
from threadpoolctl import threadpool_info, threadpool_limits

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import part_names
from dumap.engine import engine_choice
from dumap.engine.engine_choice import choose_engine
from dumap.engine.local import LocalEngine
from dumap.errors import BudgetError, ConfigError, StorageError, TaskError
from dumap.recipe.pipeline import plan, run
from dumap.stages import rounds

SECONDS = 60
CTRL_C = pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)
SMALL_TASKS = {"cells.max_rows": 200, "graph.shard_rows": 4096, "task_memory": 2**25}


@pytest.fixture(scope="module")
def data(digits, save):
    """Save 500 digits; return their path."""
    return save(digits[0][:500], 100)


@pytest.fixture
def job(configure, data):
    """Return the job of a run that has an empty folder."""
    config = configure(data)
    os.makedirs(config.output)
    return Job(config, plan(config).geometry)


@pytest.fixture
def engine():
    """Return a local engine of two threads and 2 GiB."""
    return LocalEngine(2, 2**31)


def silent(done, total):
    """Be told of progress, and do nothing."""
    return None


# mapping -----------------------------------------------------------------------------------------


def test_every_part_is_run_and_counted(engine, job):
    ran, progress, parts = [], [], part_names("part", 20)
    engine.map(lambda job, part: ran.append(part), job, parts, {}, lambda *done: progress.append(done))
    assert sorted(ran) == parts
    assert progress == [(done, 20) for done in range(1, 21)]
    assert engine.peak_bytes > 2**26


def test_parts_run_side_by_side(engine, job):
    together = threading.Barrier(2)
    engine.map(lambda job, part: together.wait(SECONDS), job, part_names("part", 6), {}, silent)


def test_a_step_of_one_part_tells_how_far_it_is(engine, job):
    def slow(job, part, steps):
        for number in range(steps):
            time.sleep(0.15)
            job.report_progress(number, steps)

    progress = []
    engine.map(slow, job, ["part-00000"], {"steps": 5}, lambda *done: progress.append(done))
    assert len(progress) > 2
    assert progress[-1] == (1, 1)
    assert all(total == 5 for _, total in progress[:-1])


def test_a_failing_task_is_named_after_its_stage_whatever_module_it_is_in(engine, job):
    with pytest.raises(TaskError, match=r"^layout part-00000 failed"):
        engine.map(lambda job, part: 1 / 0, replace(job, stage="layout"), ["part-00000"], {}, silent)


@failing
def test_a_failing_task_is_named_and_ends_the_step(engine, job, error, raised):
    ran = []

    def fail(job, part):
        ran.append(part)
        if part.endswith("00002"):
            raise error

    with pytest.raises(raised, match=str(error.args[-1])) as caught:
        engine.map(fail, job, part_names("part", 1000), {}, silent)
    assert len(ran) < 1000
    if raised is not type(error):
        assert "test_local part-00002" in str(caught.value)
        assert caught.value.__cause__ is error
    engine.map(lambda job, part: ran.append("after"), job, ["part-00000"], {}, silent)
    assert ran[-1] == "after"


def test_an_interruption_waits_for_no_task(engine, job):
    """Tasks that tell how far they are end where they next do; others go on without anybody waiting for them."""
    begun, ended, go = threading.Barrier(3), [], threading.Event()

    def long(job, part):
        begun.wait(SECONDS)
        try:
            if part.endswith("0"):
                assert go.wait(SECONDS)
            while part.endswith("1"):
                time.sleep(0.01)
                job.report_progress(0, 1)
        finally:
            ended.append(part)

    def interrupt():
        begun.wait(SECONDS)
        signal.raise_signal(signal.SIGINT)  # in whichever thread, Python hears of it in the main one

    beside = threading.Thread(target=interrupt)
    beside.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        engine.map(long, job, part_names("part", 9), {}, silent)
    assert time.monotonic() - began < SECONDS / 2
    try:
        until(lambda: ended == ["part-00001"], "the end of the task that tells how far it is")
    finally:
        go.set()
    beside.join(SECONDS)


def test_an_interruption_while_threads_start_ends_the_step(engine, job, monkeypatch):
    ended, start = threading.Event(), threading.Thread.start

    def long(job, part):
        try:
            while True:
                time.sleep(0.01)
                job.report_progress(0, 1)
        finally:
            ended.set()

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.map(long, job, part_names("part", 9), {}, silent)
    assert ended.wait(SECONDS)


# whole runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(configure, data, embedded_by):
    """Return the bytes of a run on the local engine."""
    return embedded_by({**SMALL_TASKS, "cluster.engine": "local"})


@pytest.fixture(scope="module")
def embedded_by(configure, data):
    """Run with some settings; return the bytes of the embedding."""

    def go(settings, **options) -> bytes:
        config = configure(data, settings)
        assert run(config, **options)["state"] == "done"
        return bytes(np.asarray(zarr.open_array(config.output, path="embedding", mode="r")[:]).tobytes())

    return go


def test_local_bytes_are_those_of_dask_and_of_rounds(expected, embedded_by, client):
    assert embedded_by(SMALL_TASKS, client=client) == expected
    assert embedded_by({**SMALL_TASKS, "cluster.engine": "local", "layout.mode": "rounds"}) == expected
    assert rounds._cached_shards.total_bytes == 0


@pytest.mark.parametrize("threads", mark_slow_except([1, 2, 4], 2))
def test_threads_of_a_worker_in_this_process_change_no_byte_and_no_setting(expected, embedded_by, threads):
    def settings():
        blas = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
        return blas, numba.get_num_threads(), zarr.config.get("async.concurrency"), zarr.config.get("threading")

    with threadpool_limits(limits=2, user_api="blas"):
        before = settings()
        with Client(
            processes=False, n_workers=1, threads_per_worker=threads, memory_limit="8GiB", dashboard_address=":0"
        ) as client:
            assert embedded_by({**SMALL_TASKS, "layout.mode": "rounds"}, client=client) == expected
        assert rounds._cached_shards.total_bytes == 0
        assert embedded_by({**SMALL_TASKS, "cluster.engine": "local"}) == expected
        assert settings() == before


@pytest.mark.slow
def test_threads_of_a_worker_process_change_no_byte(expected, embedded_by):
    with Client(n_workers=1, threads_per_worker=4, memory_limit="8GiB", dashboard_address=":0") as client:
        assert embedded_by({**SMALL_TASKS, "layout.mode": "rounds"}, client=client) == expected
        assert set(client.run(lambda: rounds._cached_shards.total_bytes).values()) == {0}


def test_an_error_lets_go_of_what_was_kept(configure, data, monkeypatch):
    config = configure(data, {**SMALL_TASKS, "cluster.engine": "local", "layout.mode": "rounds"})
    held = []

    def fail(*given):
        held.append(rounds._cached_shards.total_bytes)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rounds, "write_state", fail)
    with pytest.raises(StorageError, match="No space left"):
        run(config)
    assert held[0] > 0
    assert rounds._cached_shards.total_bytes == 0


def test_the_run_says_which_engine_ran_it(configure, data):
    config = configure(data)
    observer = NoteRecorder()
    stages = run(config, observer=observer)["stages"]
    assert {stage["engine"] for stage in stages} == {"local"}
    assert any(note.startswith("local engine: ") and "s of work for one core" in note for note in observer.notes)


PROGRAM_ALONE = """
import sys
from dumap.cli import main
sys.argv[1:] = sys.argv[1:]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print([name for name in sys.modules if name.partition(".")[0] in ("dask", "distributed", "pynndescent", "sklearn")])
"""


def test_a_small_run_imports_no_dask(data, new_path):
    arguments = ["run", "--input", data, "--output", new_path("run.zarr"), "--set", "layout.n_epochs=5"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("DASK")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM_ALONE, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=alone,
        cwd=new_path(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "local engine" in done.stderr


@pytest.mark.faults
@pytest.mark.fault(1)
@pytest.mark.parametrize(("number", "code"), [CTRL_C, (signal.SIGTERM, 143)])
def test_a_signal_ends_a_local_run_which_then_goes_on(data, new_path, expected, number, code):
    output = new_path("run.zarr")
    arguments = ["--input", data, "--output", output, "--engine", "local"]
    arguments += [argument for key, value in SMALL_TASKS.items() for argument in ("--set", f"{key}={value}")]
    arguments += ["--set", "layout.n_epochs=20", "--set", "audit.queries=0"]
    command = [sys.executable, "-m", "dumap.cli", "run", *arguments]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in driver.stderr:
        if "neighbors: begins" in line:
            break
    driver.send_signal(number)
    errors = driver.communicate(timeout=SECONDS)[1]
    assert driver.returncode in (code, 0), errors
    assert "interrupted" in errors or driver.returncode == 0
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert zarr.open_array(output, path="embedding", mode="r")[:].tobytes() == expected


# choosing ------------------------------------------------------------------------------------------


@pytest.fixture
def decide(configure, data):
    """Choose an engine for a run of the data: `decide(settings, client)`."""

    def go(settings=None, client=None):
        config = configure(data, settings)
        return choose_engine(config.cluster, plan(config), client)

    return go


def test_small_work_is_local_with_a_thread_a_processor(decide):
    chosen = decide()
    assert (chosen.name, chosen.threads) == ("local", engine_choice.cpu_count())
    assert chosen.worker_memory > 2**28


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"cluster.workers": 2}, "cluster.workers is given"),
        ({"cluster.memory_limit": 2**31}, "cluster.memory_limit is given"),
        ({"cluster.scheduler": "tcp://127.0.0.1:8786"}, "cluster.scheduler is given"),
        ({"cluster.scheduler_file": "scheduler.json"}, "cluster.scheduler_file is given"),
        ({"layout.n_epochs": 30_000, "neighbors.n_neighbors": 200}, "s of work for one core"),
        ({"cluster.engine": "dask"}, "cluster.engine is dask"),
    ],
)
def test_a_cluster_is_chosen_where_one_is_asked_for_or_there_is_much_work(decide, settings, why):
    chosen = decide(settings)
    assert chosen.name == "dask"
    assert why in chosen.reason


def test_a_client_is_used(decide, client):
    assert decide(client=client).name == "dask"
    with pytest.raises(ConfigError, match="does not go with a client"):
        decide({"cluster.engine": "local"}, client)


@pytest.mark.parametrize("key", ["cluster.workers", "cluster.scheduler", "cluster.scheduler_file"])
def test_the_local_engine_beside_a_cluster_is_refused(configure, data, key):
    value = 2 if key == "cluster.workers" else "file"
    with pytest.raises(ConfigError, match=f"engine = 'local'.*leave out {key.split('.')[1]} = "):
        configure(data, {"cluster.engine": "local", key: value})


def test_a_scheduler_that_dask_is_told_of_is_used(decide):
    with dask.config.set({"scheduler-address": "tcp://127.0.0.1:8786"}):
        assert "tcp://127.0.0.1:8786" in decide().reason
    assert decide().name == "local"


def test_files_of_dask_are_read_for_an_address(monkeypatch, new_path):
    folder = Path(new_path())
    monkeypatch.setenv("DASK_CONFIG", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("DASK_ROOT_CONFIG", str(folder))
    (folder / "mine.yaml").write_text("# scheduler-address: tcp://a:1\n")
    assert not engine_choice._may_files_name_scheduler()
    (folder / "mine.yaml").write_text("scheduler-address: tcp://a:1\n")
    assert engine_choice._may_files_name_scheduler()


def test_little_memory_asks_for_a_cluster_and_for_fewer_threads(decide, monkeypatch):
    monkeypatch.setattr(engine_choice, "cpu_count", lambda: 16)
    monkeypatch.setattr(engine_choice, "free_memory", lambda: 2 * 2**30)
    assert "16 threads take" in decide().reason
    forced = decide({"cluster.engine": "local"})
    assert 1 < forced.threads < 16


def test_a_local_run_that_does_not_fit_is_refused_with_the_numbers(decide, monkeypatch):
    monkeypatch.setattr(engine_choice, "free_memory", lambda: 300 * 2**20)
    with pytest.raises(BudgetError, match=r"stage \w+ is projected to peak at .* in one thread, but 300 MiB"):
        decide({"cluster.engine": "local"})
    assert decide().name == "dask"


def test_the_engine_is_no_part_of_the_answer(configure, data):
    digests = {configure(data, {"cluster.engine": name}).digest() for name in ("auto", "local", "dask")}
    assert len(digests) == 1


def test_plan_tells_the_engine_and_the_work(cli, data, new_path):
    arguments = ["plan", "--input", data, "--output", new_path("run.zarr")]
    assert "\nengine local: about" in cli(*arguments).out
    assert '"engine": "dask"' in cli(*arguments, "--engine", "dask", "--json").out
    assert '"core_seconds": ' in cli(*arguments, "--json").out
