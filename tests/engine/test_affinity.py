"""Units go to the worker that ran them last, unless it has left, is slow, or has its share."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from simulated import Cluster

from dumap.engine.affinity import UnitWorkers
from dumap.engine.backups import TaskDurations
from dumap.engine.fair_queue import FairQueue
from dumap.engine.step import Step, StepSpec
from dumap.engine.worker_pool import WorkerPool

UNITS = 16


def unit_of(part: str) -> str:
    """Return the unit of a part, as of `round-00003-unit-00001`."""
    return part.partition("-unit-")[2]


def part_names_of(number: int) -> list[str]:
    """Name the parts of a round, one a unit."""
    return [f"round-{number:05d}-unit-{unit:05d}" for unit in range(UNITS)]


@pytest.fixture
def cluster() -> Cluster:
    """Return a cluster of two workers of two threads; a part takes between 1 and 2 seconds."""
    cluster = Cluster(0, lambda part: 1 + random.Random(part).random())
    cluster.join(2)
    cluster.join(2)
    return cluster


def run_rounds(cluster: Cluster, numbers: range, unit_workers: UnitWorkers | None) -> list[dict[str, str]]:
    """Run rounds; return for each the worker of each unit. Without `unit_workers`, no worker is preferred."""
    workers = []
    for number in numbers:
        parts, before = part_names_of(number), len(cluster.computed)
        preference = {} if unit_workers is None else {"unit_of": unit_of, "unit_workers": unit_workers}
        make_call, committed = (lambda part, attempt: (None, attempt)), cluster.committed.__contains__
        spec = StepSpec("layout", "layout round", parts, make_call, committed, lambda *progress: None, **preference)
        pool, durations = WorkerPool(cluster, 60.0, 100.0, lambda message: None), TaskDurations()
        Step(spec, cluster, pool, durations, cluster.messages, lambda: False, FairQueue(cluster)).run()
        workers.append({unit_of(part): address for part, address in cluster.computed[before:]})
    return workers


def share_that_stays(rounds: list[dict[str, str]]) -> float:
    """Return the share of units that the next round runs on the same worker."""
    stays = [before[unit] == after[unit] for before, after in pairwise(rounds) for unit in before]
    return sum(stays) / len(stays)


def test_most_units_stay_on_their_worker(cluster):
    assert share_that_stays(run_rounds(cluster, range(8), UnitWorkers())) > 0.8
    assert share_that_stays(run_rounds(cluster, range(8, 16), None)) < 0.7


def test_the_units_of_a_lost_worker_go_elsewhere_and_a_new_one_gets_its_share(cluster):
    unit_workers = UnitWorkers()
    run_rounds(cluster, range(3), unit_workers)
    lost, stays = cluster.workers
    cluster.die(lost)
    (alone,) = run_rounds(cluster, range(3, 4), unit_workers)
    assert set(alone.values()) == {stays}
    joined = cluster.join(2)
    *_, last = run_rounds(cluster, range(4, 7), unit_workers)
    assert Counter(last.values())[joined] >= UNITS // 4


def test_units_whose_worker_left_when_there_was_no_other_are_sent_to_one_that_joins(cluster):
    unit_workers = UnitWorkers()
    run_rounds(cluster, range(3), unit_workers)
    for address in tuple(cluster.workers):
        cluster.at(cluster.time + 0.5, lambda address=address: cluster.leave(address))
    cluster.at(cluster.time + 10, lambda: cluster.join(2))
    cluster.at(cluster.time + 1000, lambda: pytest.fail("units wait for a worker that has left"))
    (last,) = run_rounds(cluster, range(3, 4), unit_workers)
    assert set(last.values()) == set(cluster.workers)


def test_a_slow_worker_is_not_waited_for(cluster):
    unit_workers = UnitWorkers()
    run_rounds(cluster, range(3), unit_workers)
    slow = next(iter(cluster.workers))
    cluster.workers[slow].slowness = 10.0
    began = cluster.time
    (last,) = run_rounds(cluster, range(3, 4), unit_workers)
    assert Counter(last.values())[slow] <= 3
    assert cluster.time - began < 40, "each of the slow worker's threads has run one part"


def test_a_worker_is_preferred_for_its_share_by_threads():
    unit_workers = UnitWorkers()
    for unit in range(6):
        unit_workers.record(unit, "a")
    preferred = [unit_workers.prefer(unit, 6, {"a": 1, "b": 2}) for unit in range(6)]
    assert preferred == ["a", "a", None, None, None, None]
    unit_workers.begin_step()
    assert unit_workers.prefer(0, 6, {"a": 1, "b": 2}) == "a"
    assert unit_workers.prefer(0, 6, {"b": 2}) is None
    assert unit_workers.prefer("unknown", 6, {"a": 1}) is None
