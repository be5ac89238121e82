"""The simulation of many workers, scripts/simulate.py: steps whose length is known."""

import json
import sys

import numpy as np
import pytest
import simulate
from simulate import GrowthModel, Overhead, StepKind, StoreSpeed


def kind(tasks, seconds=1.0, **more):
    return StepKind("stage", "task", 1, tasks, seconds, **more)


FREE, NEAR = Overhead(), StoreSpeed()


@pytest.mark.parametrize(
    ("tasks", "workers", "seconds"), [(1, 8, 1), (8, 1, 8), (8, 8, 1), (9, 8, 2), (100, 7, 15), (3, 512, 1)]
)
def test_equal_tasks_take_as_many_turns_as_workers_need(tasks, workers, seconds):
    assert simulate.simulate_step(kind(tasks), workers, FREE, NEAR) == pytest.approx(seconds)


def test_tasks_are_sent_one_after_another():
    sent = simulate.simulate_step(kind(1000, 0.01), 512, Overhead(sending=0.002), NEAR)
    assert sent == pytest.approx(1000 * 0.002 + 0.01)


def test_a_worker_pauses_between_tasks_and_a_step_takes_its_own_time():
    seconds = simulate.simulate_step(kind(6), 2, Overhead(gap=0.5, step=0.25), NEAR)
    assert seconds == pytest.approx(3 * 1 + 2 * 0.5 + 0.25)


def test_unequal_tasks_have_the_mean_that_was_measured():
    spread = (0.5, 0.5, 2.0)
    alone = simulate.simulate_step(kind(64, spread=spread), 1, FREE, NEAR)
    many = simulate.simulate_step(kind(64, spread=spread), 64, FREE, NEAR)
    assert alone == pytest.approx(64)
    assert 1.3 < many <= 2.0 / 0.6  # that of the longest


def test_a_store_that_is_far_adds_latency_and_shares_its_bandwidth():
    far = StoreSpeed(latency=0.08, worker_bandwidth=10.0)
    one = simulate.simulate_step(kind(1, requests=16, data_bytes=20), 1, FREE, far)
    assert one == pytest.approx(1 + 16 * 0.08 / simulate.READS_AT_ONCE + 20 / 10)
    shared = simulate.simulate_step(kind(50, data_bytes=20), 50, FREE, StoreSpeed(shared_bandwidth=100.0))
    assert shared == pytest.approx(50 * 20 / 100)


def test_what_workers_wait_for_is_named():
    kinds = [
        StepKind("tree", "grow", 1, 1, 9.0),
        StepKind("search", "find", 1, 600, 1.0),
        StepKind("layout", "step", 200, 4000, 0.01),
        StepKind("keep", "", 1, 0, 3.0),
    ]
    why = simulate.name_bottlenecks(kinds, Overhead(sending=0.001), NEAR)
    assert why == {
        "tree": "one task: grow",
        "search": "few tasks: find",
        "layout": "sending: step",
        "keep": "between steps",
    }


def step(stage, task, calls, tasks, seconds, **more):
    figures = {"read_bytes": 100.0, "written_bytes": 20.0, "requests": 4.0, "spread": [1.0, 1.0], "gap": 0.01}
    figures |= {"wall": calls * seconds + 0.02 * calls, "driver_cpu": 0.001 * tasks, "scheduler_cpu": 0.002 * tasks}
    return {"stage": stage, "task": task, "calls": calls, "tasks": tasks, "seconds": seconds, **figures, **more}


def rung(rows, steps, stages=None, workers=2):
    return {"rows": rows, "dims": 64, "workers": workers, "settings": [], "steps": steps, "stages": stages or {}}


@pytest.fixture(scope="module")
def rungs():
    """Return a million rows and four: a single task that grows, one a block, some others, and time between steps."""

    def of(rows):
        m = rows // 1_000_000
        blocks = simulate.plan_counts(rows, 64, [])["blocks"]
        steps = [
            step("a", "alone", 1, 1, 2.0 * m),
            step("a", "block", 1, blocks, 0.5),
            step("b", "other", 10, 70 * m, 1),
        ]
        return rung(rows, [*steps, {"stage": "b", "task": "", "calls": 1, "tasks": 0, "wall": 0.5 * m}])

    return [of(1_000_000), of(4_000_000)]


def test_steps_grow_as_the_rungs_did(rungs):
    rows = 100_000_000
    result = {kind.task: kind for kind in GrowthModel(rungs).predict_kinds(rows)}
    assert result["alone"].tasks == 1
    assert result["alone"].seconds == pytest.approx(200)
    assert result["block"].tasks == simulate.plan_counts(rows, 64, [])["blocks"]
    assert result["block"].seconds == 0.5
    assert (result["other"].tasks, result["other"].calls) == (700, 10)
    assert result[""].seconds == pytest.approx(50)


def test_a_single_rung_tells_of_tasks_that_are_alone_or_one_a_block(rungs):
    result = {kind.task: kind for kind in GrowthModel(rungs[:1]).predict_kinds(10_000_000)}
    assert result["alone"].seconds == pytest.approx(20)
    assert result["block"].tasks == simulate.plan_counts(10_000_000, 64, [])["blocks"]
    assert result["block"].seconds == 0.5


def test_overheads_are_those_of_the_slower_of_driver_and_scheduler(rungs):
    overhead = simulate.fit_overhead(rungs)
    assert (overhead.sending, overhead.gap, overhead.step) == pytest.approx((0.002, 0.01, 0.02))


def test_a_prediction_says_how_many_workers_are_of_use(rungs):
    result = simulate.predict_seconds(GrowthModel(rungs), 4_000_000, [1, 2, 8, 64], Overhead(), NEAR)
    assert result["stages"]["a"]["seconds"]["64"] == pytest.approx(
        8 + 0.5 * np.ceil(rungs[1]["steps"][1]["tasks"] / 64)
    )
    assert result["stages"]["a"]["then"] == "one task: alone"
    assert result["stages"]["a"]["half_used"] < result["stages"]["b"]["half_used"]
    assert result["whole"]["1"] > result["whole"]["8"] > result["whole"]["64"]


def test_too_few_rows_are_told(rungs, tmp_path, monkeypatch, capsys):
    few = [{**rung, "rows": rows} for rung, rows in zip(rungs, (1000, 2000), strict=True)]
    (tmp_path / "few.json").write_text(json.dumps({"rungs": few}))
    monkeypatch.setattr(sys, "argv", ["simulate.py", str(tmp_path / "few.json"), "--rows", "2000", "--workers", "1"])
    simulate.main()
    assert "too few: one of blocks and of cells and of shards" in capsys.readouterr().out


def test_a_check_compares_measured_and_predicted_seconds(rungs, tmp_path, monkeypatch, capsys):
    measured = [rung(4_000_000, rungs[1]["steps"], {"a": {"seconds": 40.0}, "b": {"seconds": 150.0}})]
    for name, content in (("model", rungs), ("other", measured)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rungs": content}))
    words = [str(tmp_path / "model.json"), "--check", str(tmp_path / "other.json"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["simulate.py", *words])
    simulate.main()
    assert "4,000,000 rows on 2 workers" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "out.json").read_text())["checks"]
    tasks = rungs[1]["steps"][1]["tasks"]
    by_hand = 8 + np.ceil(tasks / 2) * 0.5, 10 * np.ceil(28 / 2) + 2
    assert [result["stages"][stage][1] for stage in "ab"] == pytest.approx(by_hand, rel=0.05)  # overheads come on top
    assert result["stages"]["whole"] == [190.0, pytest.approx(sum(by_hand), rel=0.05)]
