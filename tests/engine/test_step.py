"""A step on a simulated cluster: workers join, die, leave, differ or straggle, and each part is done once."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from simulated import Cluster

from dumap.artifacts.part_names import part_names
from dumap.engine.backups import MIN_BACKUP_SECONDS, TaskDurations
from dumap.engine.fair_queue import FairQueue
from dumap.engine.step import MAX_DEATHS, Step, StepSpec
from dumap.engine.worker_pool import MIN_IN_FLIGHT, WorkerPool
from dumap.errors import ClusterError, DamageError, InputError, LockError, TaskError

WORKER_TIMEOUT = 100.0
NUMPY = ("numpy is 1.0, 2.0 on the other workers or in the run",)


class Run:
    """A step of so many parts on a cluster, and what was told of it."""

    def __init__(
        self, cluster: Cluster, parts: list[str], repeatable: bool = True, task_timeout: float | None = None
    ) -> None:
        self.cluster, self.notes, self.advanced = cluster, [], []
        worker_pool = WorkerPool(cluster, 60.0, WORKER_TIMEOUT, self.notes.append)
        spec = StepSpec(
            "stage",
            "stage task",
            parts,
            lambda part, number: (None, number),
            cluster.committed.__contains__,
            lambda done, total: self.advanced.append((done, total)),
            repeatable,
        )
        fair_queue, messages = FairQueue(cluster), cluster.messages
        self.step = Step(spec, cluster, worker_pool, TaskDurations(), messages, lambda: False, fair_queue, task_timeout)

    def go(self) -> float:
        """Return when it ended."""
        self.step.run()
        parts = self.step.spec.parts
        assert self.cluster.committed >= set(parts)
        assert self.advanced == [(done, len(parts)) for done in range(1, len(parts) + 1)]
        assert not self.cluster.in_flight
        return self.cluster.time

    def times(self, part: str) -> int:
        """Return how often a part was computed."""
        return sum(name == part for name, _ in self.cluster.computed)


# histories ---------------------------------------------------------------------------------------


def history(seed: int) -> tuple[Cluster, Run, list[str]]:
    """Make a cluster with a history, and a step on it; two workers come late, and stay."""
    draw = random.Random(seed)
    parts = part_names("part", draw.choice([1, 2, 7, 30, 90, 200]))
    cluster = Cluster(seed, lambda part: 0.5 + 4 * random.Random(f"{seed} {part}").random(), draw.choice([0, 1, 3]))
    unfit: list[str] = []

    def come() -> None:
        if draw.random() < 0.25:
            unfit.append(cluster.join(draw.choice([1, 2]), unfit=NUMPY))
        else:
            cluster.join(draw.choice([1, 1, 2, 4]), slowness=draw.choice([1.0] * 9 + [30.0]))

    def go(how: str) -> None:
        if not cluster.workers:
            return
        address = draw.choice(sorted(cluster.workers))
        if how == "stop":
            cluster.stop(address, cluster.time + draw.choice([5, 60, 300]))
        else:
            getattr(cluster, how)(address)

    def lose() -> None:
        if cluster.in_flight:
            cluster.lose(draw.choice(sorted(cluster.in_flight, key=lambda task: task.number)))

    for _ in range(draw.randint(0, 3)):
        come()
    for _ in range(draw.randint(0, 8)):
        cluster.at(draw.uniform(0, 60), come)
    for how in draw.choices(["leave", "leave", "lose"], k=draw.randint(0, 6)):
        cluster.at(draw.uniform(0, 60), lose if how == "lose" else lambda: go("leave"))
    for how in draw.choices(["die", "stop"], k=draw.randint(0, MAX_DEATHS - 1)):
        cluster.at(draw.uniform(0, 60), lambda how=how: go(how))
    for _ in range(2):
        cluster.at(61, cluster.join)
    return cluster, Run(cluster, parts), unfit


@pytest.mark.fault(42, 43)
def test_histories_of_joins_deaths_departures_and_unfit_workers_end_with_every_part_done():
    for seed in range(200):
        cluster, run, unfit = history(seed)
        try:
            run.go()
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        assert not {where for _, where in cluster.computed} & set(unfit), seed
        assert len(run.notes) == len({note.split()[1] for note in run.notes}) <= len(unfit), seed
        assert cluster.polls < 3000 + 20 * len(run.step.spec.parts), seed
        again = Counter(part for part, _ in cluster.computed)
        assert max(again.values()) <= 2 + MAX_DEATHS, seed


@pytest.mark.fault(4)
@pytest.mark.parametrize("allowed", [0, 3])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("count", [1, 20, 150])
def test_a_part_that_kills_is_named_with_many_on_their_way(count, threads, allowed):
    for seed in range(3):
        cluster = Cluster(seed, allowed=allowed)
        cluster.respawns = True
        for _ in range(3):
            cluster.join(threads)
        parts = part_names("part", count)
        deadly = random.Random(seed).choice(parts)
        cluster.kills.add(deadly)
        run = Run(cluster, parts)
        with pytest.raises(TaskError, match=f"stage {deadly}: its worker died"):
            run.go()
        assert not cluster.in_flight


# growing -----------------------------------------------------------------------------------------


@pytest.mark.fault(43)
@pytest.mark.parametrize("beside", [0, 1])
def test_workers_that_come_later_are_used_at_once(beside):
    """Beside one that is unfit, too: what waits for others is sent anew."""
    cluster = Cluster(0, lambda part: 4.0)
    cluster.join()
    for _ in range(beside):
        cluster.join(unfit=NUMPY)
    for _ in range(5):
        cluster.at(8.0, cluster.join)
    run = Run(cluster, part_names("part", 40))
    ended = run.go()
    assert ended - 8.0 <= 1.3 * 4 * -(-38 // 6)
    assert len({where for _, where in cluster.computed}) == 6
    assert max(run.times(part) for part in run.step.spec.parts) == 1


@pytest.mark.parametrize(("workers", "threads", "most"), [(1, 1, MIN_IN_FLIGHT), (4, 16, 128)])
def test_as_many_are_on_their_way_as_make_a_cluster_grow(workers, threads, most):
    cluster = Cluster(0)
    for _ in range(workers):
        cluster.join(threads)
    Run(cluster, part_names("part", 300)).go()
    assert cluster.most_in_flight == most


def test_little_is_sent_where_there_is_nobody():
    """All that waits for the first worker would be given to it."""
    cluster = Cluster(0)
    cluster.at(30, cluster.join)
    cluster.at(29.9, lambda: in_flight.append(len(cluster.in_flight)))
    in_flight: list[int] = []
    Run(cluster, part_names("part", 50)).go()
    assert 1 <= in_flight[0] <= 2


# nobody ------------------------------------------------------------------------------------------


@pytest.mark.fault(3)
def test_no_worker_for_too_long_is_an_error():
    cluster = Cluster(0)
    cluster.at(10, lambda: cluster.leave(address))
    address = cluster.join()
    with pytest.raises(ClusterError, match=r"no worker for 100 s; .*on its way was stage part-000"):
        Run(cluster, part_names("part", 50)).go()
    assert 110 <= cluster.time < 115


@pytest.mark.fault(42)
def test_no_fit_worker_for_too_long_is_an_error_that_says_why():
    cluster = Cluster(0)
    names = [cluster.join(unfit=NUMPY), cluster.join(unfit=("its memory limit of 1 GiB is less than the plan needs",))]
    with pytest.raises(ClusterError, match="no fit worker for 100 s") as caught:
        Run(cluster, part_names("part", 50)).go()
    assert all(name in str(caught.value) for name in names)
    assert "numpy is 1.0" in str(caught.value)
    assert "less than the plan needs" in str(caught.value)
    assert cluster.computed == []


def test_a_silent_scheduler_is_an_error_in_time(monkeypatch):
    cluster = Cluster(0)
    cluster.join()
    cluster.at(3, lambda: monkeypatch.setattr(cluster, "threads_by_worker", lambda: None))
    with pytest.raises(ClusterError, match="has not answered for 60 s"):
        Run(cluster, part_names("part", 500)).go()
    assert 60 <= cluster.time < 70


# stragglers --------------------------------------------------------------------------------------


@pytest.mark.fault(49)
@pytest.mark.parametrize(("seconds", "first"), [(MIN_BACKUP_SECONDS + 1.5, "straggler"), (500.0, "copy")])
def test_a_straggler_gets_one_copy_on_another_worker_and_the_first_counts(seconds, first):
    cluster = Cluster(0, lambda part: 2.0)
    cluster.join()
    slow = cluster.join(slowness=seconds / 2)
    run = Run(cluster, part_names("part", 12))
    ended = run.go()
    assert MIN_BACKUP_SECONDS < ended < MIN_BACKUP_SECONDS + 6
    late = [part for part in run.step.spec.parts if part in run.step.parts_with_backup]
    assert len(late) == 1 or first == "copy"
    assert [where == slow for part, where in cluster.computed if part == late[0]] == [first == "straggler"]


@pytest.mark.fault(49)
def test_parts_that_wait_at_a_stopped_worker_are_done_by_others():
    cluster = Cluster(0)
    cluster.join()
    cluster.at(2.5, lambda: cluster.stop(stopped, 1000.0))
    stopped = cluster.join(2)
    run = Run(cluster, part_names("part", 20))
    assert run.go() < 100


@pytest.mark.fault(49)
def test_a_task_that_must_not_run_twice_gets_no_backup():
    cluster = Cluster(0)
    cluster.join()
    cluster.join(slowness=200.0)
    run = Run(cluster, part_names("part", 20), repeatable=False)
    assert run.go() >= 200
    assert run.step.parts_with_backup == set()


def test_few_that_have_ended_tell_nothing_of_what_is_slow():
    cluster = Cluster(0)
    cluster.join()
    cluster.join(slowness=200.0)
    run = Run(cluster, part_names("part", 7))
    assert run.go() >= 200
    assert run.step.parts_with_backup == set()


# errors ------------------------------------------------------------------------------------------


def test_an_error_of_a_part_that_is_committed_is_ignored():
    cluster = Cluster(0)
    cluster.join()
    parts = part_names("part", 5)
    cluster.committed.add(parts[3])
    cluster.raises[parts[3]] = DamageError("its input is gone", "stage", parts[3])
    Run(cluster, parts).go()


@pytest.mark.parametrize("error", [InputError("row 3 is bad"), LockError("another driver took over")])
def test_an_error_of_a_task_ends_the_step(error):
    cluster = Cluster(0)
    cluster.join()
    parts = part_names("part", 5)
    cluster.raises[parts[3]] = error
    if isinstance(error, LockError):
        cluster.committed.add(parts[3])
    with pytest.raises(type(error), match=str(error)):
        Run(cluster, parts).go()
    assert not cluster.in_flight


def test_a_task_that_fit_workers_cannot_read_ends_the_run():
    cluster = Cluster(0)
    cluster.join()
    cluster.raises["part-00001"] = ModuleNotFoundError("No module named 'x'")
    with pytest.raises(ClusterError, match=r"part-00001 cannot be run .ModuleNotFoundError: No module named 'x'"):
        Run(cluster, part_names("part", 5)).go()


# what is stuck -----------------------------------------------------------------------------------


def stuck(repeatable: bool = True, hang: int = 1) -> Run:
    """Return a step with a part that hangs on the first workers to which it is given, for ever but for its commit."""
    left = [hang]

    def seconds(part: str) -> float:
        if part == "part-00002" and left[0]:
            left[0] -= 1
            return 10_000.0
        return 1.0

    cluster = Cluster(0, seconds)
    for _ in range(6):
        cluster.join()
    return Run(cluster, part_names("part", 20), repeatable, task_timeout=20.0)


@pytest.mark.parametrize("hang", [1, 2])
def test_a_part_that_is_stuck_goes_elsewhere_and_its_worker_is_left_out(hang):
    run = stuck(hang=hang)
    assert run.go() < 20 * hang + 10
    assert run.times("part-00002") == 1
    assert len(run.step.worker_pool.unfit_workers) == len(run.notes) == hang
    assert all("part-00002 told nothing for 20 s" in note for note in run.notes)


def test_a_part_that_is_stuck_everywhere_ends_the_run():
    run = stuck(hang=9)
    with pytest.raises(TaskError, match=r"part-00002 told nothing for 20 s .* 3 times in all"):
        run.step.run()
    assert not run.cluster.in_flight


def test_a_part_of_which_no_two_may_run_ends_the_run_when_it_is_stuck():
    run = stuck(repeatable=False)
    with pytest.raises(TaskError, match=r"part-00002 told nothing for 20 s .* 1 times in all"):
        run.step.run()


def test_a_part_that_is_committed_is_not_stuck():
    run = stuck()
    run.cluster.at(10, lambda: run.cluster.committed.add("part-00002"))
    run.go()
    assert run.notes == []


def test_slow_parts_are_no_matter_without_a_limit():
    run = stuck()
    run.step.task_timeout = None
    run.go()
    assert run.notes == [], "a second copy was sent, and nobody left out"
