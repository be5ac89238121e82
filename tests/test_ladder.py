"""scripts/ladder.py, small: what is counted, and how it grows."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import ladder
import numpy as np
import pytest
from measuring import counting, records

SCRIPTS = Path(__file__).parents[1] / "scripts"
STAGES = ("vectors", "cells", "neighbors", "audit", "graph", "coarsen", "start", "layout", "embedding", "quality")


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """Run two rungs on a worker, then ask for the first again."""
    output = tmp_path_factory.mktemp("ladder") / "small"
    words = ["--workers", "1", "--cold", "--set", "layout.n_epochs=3", "--set", "audit.queries=50"]

    def climb(rows):
        command = [sys.executable, str(SCRIPTS / "ladder.py"), "--output", str(output), "--rows", rows, *words]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def climb_here(rows):
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
            patch.setattr(sys, "argv", ["ladder.py", "--output", str(output), "--rows", rows, *words])
            ladder.main()
        return printed.getvalue()

    output_text = climb("1000,2000")
    return {
        **json.loads(Path(f"{output}.json").read_text()),
        "said": output_text,
        "again": climb_here("1000"),
        "output": output,
    }


@pytest.mark.slow
def test_rungs_have_time_memory_disk_bytes_and_requests_of_every_stage(climbed):
    first, second = climbed["rungs"]
    assert (first["rows"], second["rows"], first["dims"]) == (1000, 2000, 64)
    for rung in (first, second):
        assert tuple(stage for stage in rung["stages"] if stage != counting.START_UP_STAGE) == STAGES
        for stage in STAGES:
            report = rung["stages"][stage]
            assert report["seconds"] > 0
            assert 0 < report["peak_bytes"] < 2**30
            assert report["read_bytes"] > 0
            assert report["requests"] > report["driver_requests"] > 0
        assert rung["whole_seconds"] > rung["whole"]["seconds"] > 0
        assert rung["peak_disk_bytes"] >= rung["disk_bytes"] > rung["rows"] * 8
        assert rung["stages"]["vectors"]["read_bytes"] > 0.8 * rung["rows"] * 64 * 4, "the input is read, compressed"
    grown = climbed["growth"][0]["exponents"]
    assert 0.5 < grown["vectors"]["read_bytes"] < 1.2
    assert "growth from 1,000 to 2,000 rows" in climbed["said"]


@pytest.mark.slow
def test_steps_are_kept_with_what_their_tasks_took(climbed):
    steps = {(step["stage"], step["task"]): step for step in climbed["rungs"][1]["steps"]}
    rounds = steps["layout", "run_round"]
    assert rounds["calls"] == 3
    assert rounds["tasks"] >= 3
    assert rounds["scheduler_cpu"] > 0
    assert rounds["read_bytes"] > 2000 * 8
    assert len(rounds["spread"]) == records.QUANTILES
    assert sum(step["wall"] for step in steps.values()) == pytest.approx(
        climbed["rungs"][1]["whole"]["seconds"], rel=0.1
    )


@pytest.mark.slow
def test_rungs_that_were_measured_are_not_measured_again(climbed):
    assert "1,000 rows: measured before" in climbed["again"]
    kept = json.loads(Path(f"{climbed['output']}.json").read_text())
    assert kept["rungs"] == climbed["rungs"]
    assert [path.name for path in climbed["output"].parent.iterdir() if path.is_dir()] == [], "data was left"


def test_exponents_are_those_of_powers():
    assert ladder.growth_exponent(8 * 27.0, 8.0, 3000, 1000) == pytest.approx(3)
    assert ladder.growth_exponent(5.0, 5.0, 3000, 1000) == pytest.approx(0)
    assert ladder.growth_exponent(0.0, 5.0, 3000, 1000) is None


def test_growth_is_told_by_stage_and_for_the_whole():
    def rung(rows, seconds):
        stage = {**dict.fromkeys(ladder.GROWING_FIGURES, float(rows)), "seconds": seconds}
        return {"rows": rows, "stages": {"cells": stage}, "whole": stage}

    (report,) = ladder.growth_exponents([rung(10, 1.0), rung(1000, 10.0)])
    assert (report["from"], report["to"]) == (10, 1000)
    assert report["exponents"]["cells"] == dict.fromkeys(ladder.GROWING_FIGURES, 1.0) | {"seconds": 0.5}
    assert report["exponents"]["whole"] == report["exponents"]["cells"]


def test_lines_of_several_processes_are_put_together(tmp_path):
    def counts(**known):
        return dict.fromkeys(counting.COUNT_NAMES, 0) | known

    def line(event, **entry):
        return json.dumps({"event": event, "stage": "cells", **entry}) + "\n"

    text = line("counts", role="worker", pid=1, counts=counts(reads=1)) + line("task", began=2.0)
    (tmp_path / "worker-1.jsonl").write_text(text + line("counts", role="worker", pid=1, counts=counts(reads=5)))
    (tmp_path / "worker-2.jsonl").write_text(line("counts", role="worker", pid=2, counts=counts(reads=2, writes=1)))
    text = (
        line("counts", role="driver", pid=3, counts=counts(looks=7))
        + line("finished", at=9.0)
        + line("step", began=1.0)
    )
    (tmp_path / "driver-3.jsonl").write_text(text)
    report = counting.read_counts(str(tmp_path))
    assert report["counts"]["cells"]["worker"] == counts(reads=7, writes=1)  # the last of each process
    assert report["counts"]["cells"]["driver"] == counts(looks=7)
    assert (len(report["tasks"]), len(report["steps"]), len(report["stages"])) == (1, 1, 1)


def test_steps_are_shortened_to_kinds():
    def task(began, pid, seconds):
        counted = dict.fromkeys(counting.COUNT_NAMES, 2)
        return {"stage": "layout", "task": "step", "began": began, "pid": pid, "seconds": seconds, **counted}

    tasks = [task(0.0, 1, 1.0), task(0.0, 2, 3.0), task(1.5, 1, 2.0), task(10.0, 1, 2.0)]
    step = {"stage": "layout", "task": "step", "driver_cpu": 0.1, "scheduler_cpu": 0.2}
    steps = [{**step, "began": 0.0, "ended": 4.0}, {**step, "began": 9.0, "ended": 12.5}]
    kind, between = records.summarize_steps(
        {"tasks": tasks, "steps": steps, "stages": [{"stage": "layout", "seconds": 9.0}]}
    )
    assert (kind["calls"], kind["tasks"], kind["seconds"], kind["wall"]) == (2, 4, 2.0, 7.5)
    assert (kind["spread"][0], kind["spread"][-1]) == (0.5, 1.5)
    assert kind["gap"] == 0.5  # not from one step to the next
    assert kind["requests"] == 2 * len(counting.REQUEST_NAMES)
    assert between == {"stage": "layout", "task": "", "calls": 1, "tasks": 0, "wall": 1.5}


def test_sizes_are_those_of_bytes():
    assert counting.byte_size(None) == 0
    assert counting.byte_size(b"abc") == 3
    assert counting.byte_size(memoryview(np.zeros(4, np.int64))) == 32
