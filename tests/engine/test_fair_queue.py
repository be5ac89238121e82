"""The order of the tasks of several runs on one cluster."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from distributed import Client, LocalCluster

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import part_names
from dumap.engine.cluster import DaskEngine
from dumap.engine.fair_queue import INACTIVE_SECONDS, MESSAGE_SECONDS, FairQueue
from dumap.recipe.pipeline import plan


class Bus:
    """Carries what runs tell one another, at once, in time that only the test passes."""

    def __init__(self):
        self.time, self.hearers, self.events = 0.0, [], []

    def now(self) -> float:
        return self.time

    def send_message(self, topic: str, message: dict) -> None:
        self.events.append((self.time, message))
        for hear in list(self.hearers):
            hear(message)

    def exchange_messages(self, topic: str, message: dict) -> list:
        self.send_message(topic, message)
        return list(self.events)

    def listen(self, topic: str, on_message: Callable) -> None:
        self.hearers.append(on_message)


class Run:
    """A run that always has as many tasks on their way, each of which lasts as long."""

    def __init__(self, bus: Bus, seconds: float, window: int, since: float = 0.0):
        self.fair_queue, self.seconds, self.window, self.since = FairQueue(bus), seconds, window, since
        self.waiting, self.served = 0, 0.0


def share_out(runs: list[Run], threads: int, until: float) -> list[float]:
    """Schedule as Dask does, by priority and then first come first served; return the seconds that each run was served.

    Seconds are counted from when all runs are there.
    """
    bus, queue, running, numbers = runs[0].fair_queue._bus, [], [], itertools.count()
    begin = max(run.since for run in runs)
    while bus.time < until:
        for run in runs:
            if bus.time >= run.since:
                run.fair_queue.announce()
                while run.waiting < run.window:
                    heapq.heappush(queue, (run.fair_queue.next_start(run.seconds), next(numbers), run))
                    run.waiting += 1
        while queue and len(running) < threads:
            due, number, run = heapq.heappop(queue)
            run.fair_queue.record_start(due)
            heapq.heappush(running, (bus.time + run.seconds, number, run))
        bus.time, _, ended = heapq.heappop(running)
        ended.waiting -= 1
        ended.served += ended.seconds * (bus.time > begin)
    return [run.served for run in runs]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_runs_get_equal_times_however_long_and_many_their_tasks_are(threads):
    bus = Bus()
    runs = [Run(bus, 10.0, 64), Run(bus, 0.1, 64), Run(bus, 1.0, 3 * threads), Run(bus, 2.0, 64, since=500.0)]
    served = share_out(runs, threads, 4500.0)
    assert served == pytest.approx([4000.0 * threads / 4] * 4, rel=0.05)


def test_a_run_with_little_to_do_is_served_at_once_and_others_get_the_rest():
    bus = Bus()
    wide, narrow = share_out([Run(bus, 0.5, 64), Run(bus, 0.5, 1)], 3, 1000.0)
    assert narrow == pytest.approx(1000.0, rel=0.05)
    assert wide == pytest.approx(2000.0, rel=0.05)


def test_who_was_away_has_saved_nothing_up_and_who_had_idle_threads_owes_nothing():
    bus = Bus()
    early, late = FairQueue(bus), FairQueue(bus)
    for one in (early, late):
        one.announce()
    for _ in range(100):
        early.record_start(early.next_start(1.0))
    bus.time += MESSAGE_SECONDS
    early.announce()
    assert late.next_start(1.0) == 99.0
    assert early.next_start(1.0) == 100.0


def test_what_a_task_took_beyond_what_was_thought_is_counted():
    queue = FairQueue(Bus())
    assert [queue.next_start(1.0), queue.next_start(1.0)] == [0.0, 1.0]
    queue.correct_duration(9.0)
    assert queue.next_start(1.0) == 11.0


def test_runs_hear_of_one_another_and_forget_who_is_silent():
    bus = Bus()
    first, second = FairQueue(bus), FairQueue(bus)
    first.announce()
    assert not first.has_other_runs
    second.announce()
    assert (first.has_other_runs, second.has_other_runs) == (True, True)
    bus.time += INACTIVE_SECONDS / 2
    first.announce()
    assert (first.has_other_runs, second.has_other_runs) == (True, True)
    bus.time += INACTIVE_SECONDS / 2
    assert (first.has_other_runs, second.has_other_runs) == (False, True)
    first.pause()
    third = FairQueue(bus)
    third.announce()
    assert not third.has_other_runs, "the one is silent, and the other said that it is in no step"


def test_a_run_of_short_steps_is_heard_by_one_that_begins():
    bus = Bus()
    first, second = FairQueue(bus), FairQueue(bus)
    for _ in range(3):
        first.announce()
        first.record_start(first.next_start(1.0))
        first.pause()
        bus.time += MESSAGE_SECONDS / 10
    first.announce()
    second.announce()
    assert second.has_other_runs
    assert second.next_start(1.0) > 0, "the new run begins at the virtual time of the other"


# on a cluster ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_thread(compiled):
    """Return the client of a cluster in this process, of one thread, which several runs share."""
    with (
        LocalCluster(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


DONE: Counter[str] = Counter()
"""How many tasks of each kind have run in this process."""


def wide(job: Job, part: str) -> None:
    time.sleep(0.02)
    DONE["wide"] += 1


def narrow(job: Job, part: str) -> None:
    DONE["narrow"] += 1


def test_steps_of_few_parts_do_not_wait_for_all_that_another_run_has_sent(one_thread, configure, digits_300):
    jobs = [Job(config, plan(config).geometry) for config in (configure(digits_300), configure(digits_300))]
    executors = [DaskEngine(one_thread, 30), DaskEngine(one_thread, 30)]
    ended = threading.Event()

    def map_wide():
        while not ended.is_set():
            executors[0].map(wide, jobs[0], part_names("part", 200), {}, lambda done, total: None)

    for executor in executors:
        executor.preflight()
    thread = threading.Thread(target=map_wide, daemon=True)
    thread.start()
    try:
        executors[1].map(narrow, jobs[1], ["part"], {}, lambda done, total: None)  # the other run hears of this one
        time.sleep(2 * MESSAGE_SECONDS)
        before = DONE["wide"]
        for _ in range(20):
            executors[1].map(narrow, jobs[1], ["part"], {}, lambda done, total: None)
        assert (DONE["narrow"], before > 0) == (21, True)
        assert DONE["wide"] - before < 20 * 10, "of 64 that wait, each time"
    finally:
        ended.set()
        thread.join(60)
        for executor in executors:
            executor.close()
