"""Clusters that are lost, never answer, have unfit workers, or are replaced by others."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from distributed import Client, worker_client
from faults.harness import ROUNDS, SECONDS, all_kept, commits, fleet, results, until
from helpers import NoteRecorder

import dumap
from dumap.errors import ClusterError
from dumap.recipe.observers import SilentObserver
from dumap.recipe.pipeline import run
from dumap.recipe.status import status

HINT = "the same command goes on from there"
QUIET = 10.0
"""Seconds after which these runs call a cluster lost: enough to reach it on a busy machine."""
# lost --------------------------------------------------------------------------------------------


@pytest.mark.fault(3)
@pytest.mark.slow
@pytest.mark.parametrize("place", [("neighbors", "cell-00001"), ("layout", "state-00004-*")])
def test_a_run_whose_workers_are_all_gone(new_path, prepare, expected, place):
    stage, part = place
    with fleet(new_path, 2, nanny=False) as dying:
        config = prepare({**ROUNDS, "cluster.scheduler": dying.address, "cluster.worker_timeout": QUIET})
        dying.faults.plan({"point": "manifest", "stage": stage, "part": part, "action": "kill", "times": 2})
        driver = dying.drive(config)
        until(
            lambda: all(w.code is not None for w in dying.workers) or driver.code is not None, "an end of the workers"
        )
        assert driver.code is None, driver.output
        assert driver.wait() == ClusterError.exit_code, driver.output
        assert "no worker for 10 s" in driver.output
        assert f"{stage} " in driver.output
        assert HINT in driver.output
        before = commits(config.output)
        dying.start_workers(1)
        dying.ready(1)
        assert run(config, client=dying.client)["state"] == "done"
    assert all_kept(before, config.output)
    assert results(config.output) == expected


@pytest.mark.fault(7)
@pytest.mark.slow
@pytest.mark.parametrize("place", [("neighbors", "cell-00001"), ("layout", "state-00004-*")])
def test_a_run_whose_scheduler_is_killed(new_path, prepare, expected, place):
    stage, part = place
    with fleet(new_path, 2) as first:
        config = prepare({**ROUNDS, "cluster.scheduler_file": first.file, "cluster.timeout": QUIET})
        kill = {"point": "object", "stage": stage, "part": part, "action": "kill", "pid": first.scheduler.pid}
        first.faults.plan(kill)
        driver = first.drive(config)
        until(lambda: first.scheduler.code is not None or driver.code is not None, "an end of the scheduler")
        assert driver.wait() == ClusterError.exit_code, driver.output
        assert "is lost" in driver.output
        assert HINT in driver.output
        assert "Traceback" not in driver.output
    assert status(config.output)["state"] == "partial"
    before = commits(config.output)
    with fleet(new_path, 1, 3) as second:
        assert run(config, client=second.client)["state"] == "done"
    assert all_kept(before, config.output)
    assert results(config.output) == expected


@pytest.mark.fault(7)
@pytest.mark.slow
def test_a_run_whose_scheduler_answers_no_more(new_path, prepare):
    """Stopped, not killed: its connections stay open."""
    with fleet(new_path, 1) as hung:
        config = prepare({"cluster.scheduler": hung.address, "cluster.timeout": QUIET})
        stop = {"point": "object", "stage": "neighbors", "action": "stop", "pid": hung.scheduler.pid}
        (name,) = hung.faults.plan(stop)
        driver = hung.drive(config)
        until(lambda: hung.faults.happened(name) or driver.code is not None, "a stopped scheduler")
        assert driver.wait() == ClusterError.exit_code, driver.output
        assert HINT in driver.output


# other -------------------------------------------------------------------------------------------


class Stop(Exception):
    """Ends a run from its observer."""


class Stopping(SilentObserver):
    """Stops a run when a stage's step is partly done."""

    def __init__(self, stage):
        self.stage, self.now = stage, ""

    def started(self, stage, projected_bytes):
        self.now = stage

    def advanced(self, stage, done, total):
        if self.now == self.stage and done >= total / 3:
            raise Stop


@pytest.mark.fault(9)
@pytest.mark.slow
def test_a_run_that_goes_on_with_other_workers_and_threads(new_path, prepare, expected):
    config = prepare(ROUNDS)
    with fleet(new_path, 0) as changing:
        for stage, workers, threads in (("cells", 2, 1), ("neighbors", 1, 3), ("layout", 3, 1), ("", 1, 2)):
            for process in changing.workers:
                process.end()
            changing.ready(0)
            changing.start_workers(workers, threads)
            changing.ready(workers)
            before = commits(config.output)
            if stage:
                with pytest.raises(Stop):
                    run(config, client=changing.client, observer=Stopping(stage))
                assert status(config.output)["state"] == "partial"
            else:
                assert run(config, client=changing.client)["state"] == "done"
            assert all_kept(before, config.output)
    assert results(config.output) == expected


# never there -------------------------------------------------------------------------------------


@pytest.fixture
def mute():
    """Return the address of a port that accepts connections and never answers."""
    held, open_ = [], True
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)

        def accept():
            while open_:
                try:
                    held.append(server.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        open_ = False
        thread.join()
    for connection in held:
        connection.close()


@pytest.fixture
def nobody():
    """Return an address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.fault(38)
@pytest.mark.parametrize("by", ["scheduler", "scheduler_file"])
@pytest.mark.parametrize("who", ["mute", "nobody"])
def test_a_scheduler_that_never_answers(prepare, new_path, request, who, by):
    address = request.getfixturevalue(who)
    if by == "scheduler_file":
        location = new_path("scheduler.json")
        Path(location).write_text(json.dumps({"address": address}))
    else:
        location = address
    config, began = prepare({f"cluster.{by}": location, "cluster.timeout": 1.0}), time.monotonic()
    with pytest.raises(ClusterError, match=r"no scheduler answers at .* within 1 s") as caught:
        run(config)
    assert location in str(caught.value)
    assert time.monotonic() - began < 25, "Dask itself waits for 30 s"
    assert not Path(config.output).exists()


# unfit -------------------------------------------------------------------------------------------

UNFIT = {
    "no dumap": "raise ModuleNotFoundError(\"No module named 'dumap'\")",
    "another version": f"__path__.append({str(Path(dumap.__file__).parent)!r})",
}


@pytest.fixture
def unfit(new_path):
    """Return a function that makes the environment of an unfit worker."""

    def make(kind: str) -> dict[str, str]:
        package = Path(new_path(), "dumap")
        package.mkdir()
        (package / "__init__.py").write_text(UNFIT[kind])
        (package / "version.py").write_text('__version__ = "0.0.1"')
        return {"PYTHONPATH": str(package.parent), "DASK_DISTRIBUTED__WORKER__PRELOAD": "[]"}

    return make


MESSAGES = {"no dumap": "cannot run dumap .* install dumap", "another version": "has dumap 0.0.1, this client .*"}


@pytest.mark.fault(39, 42)
@pytest.mark.slow
@pytest.mark.parametrize("kind", UNFIT)
def test_a_worker_that_cannot_do_the_work_is_left_out(cluster_with_nannies, prepare, expected, unfit, kind):
    """It stands beside two that can."""
    (process,) = cluster_with_nannies.start_workers(1, **unfit(kind))
    try:
        cluster_with_nannies.ready(3)
        config, noting = prepare(), NoteRecorder()
        assert run(config, client=cluster_with_nannies.client, observer=noting)["state"] == "done"
        (note,) = noting.left_out()
        assert re.search(MESSAGES[kind], note)
        assert results(config.output) == expected
        assert process.code is None, "others may have work for it"
    finally:
        process.end()


@pytest.mark.fault(39)
@pytest.mark.slow
@pytest.mark.parametrize("kind", UNFIT)
def test_workers_that_all_cannot_do_the_work_are_named(new_path, prepare, unfit, kind):
    config = prepare({"cluster.worker_timeout": QUIET})
    with fleet(new_path, 0) as useless:
        useless.start_workers(1, **unfit(kind))
        useless.ready(1)
        with pytest.raises(ClusterError, match=f"no fit worker for 10 s; .*Left out: tcp://.*{MESSAGES[kind]}"):
            run(config, client=useless.client)
    assert not Path(config.output).exists()


# called from where it matters --------------------------------------------------------------------


@pytest.mark.fault(41)
@pytest.mark.slow
def test_a_run_from_inside_a_task(cluster_with_nannies, prepare, expected):
    config = prepare()

    def inside():
        with worker_client() as inner:
            return run(config, client=inner)["state"]

    assert cluster_with_nannies.client.submit(inside, pure=False).result(timeout=SECONDS) == "done"
    assert results(config.output) == expected


@pytest.mark.fault(41)
@pytest.mark.slow
def test_a_run_with_an_asynchronous_client(cluster_with_nannies, prepare, expected):
    config = prepare()

    async def hand_over():
        async with Client(cluster_with_nannies.address, asynchronous=True) as other:
            return run(config, client=other)["state"]

    assert asyncio.run(hand_over()) == "done"
    assert results(config.output) == expected
