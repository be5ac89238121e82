"""Predict a run on many workers, and of many rows, from measured ones: a simulation of events, stage by stage.

    python scripts/ladder.py --output figures/ladder --rows 1000000,3000000
    python scripts/ladder.py --output figures/one-worker --rows 1000000 --workers 1
    python scripts/simulate.py figures/one-worker.json --check figures/ladder.json      # is it to be believed?
    python scripts/simulate.py figures/ladder.json --rows 10000000,1000000000 --workers 8,64,512

The measured runs are those of scripts/ladder.py. A run is a row of steps, each a task for many parts; the next begins
when the last task of one has ended. In the simulation

- the driver sends tasks one after another, each after what the driver or the scheduler, whichever is slower, was
  measured to take for one of their processors (that of tasks is counted apart),
- a worker that is free takes the task that was sent first, after the gap that was measured between two tasks,
- a task takes the seconds measured, drawn from the quantiles of its kind, and what its requests and bytes take of a
  store that is further off than the disk measured on: see --latency, --worker-bandwidth, --shared-bandwidth,
- a step takes beside its tasks what was measured of steps of one task, and between steps what was measured there.

For other numbers of rows, a step has as many tasks as the plan says blocks, cells or shards, where it had so many when
measured, one where it had one, and else as grew between the two largest rungs; so do seconds, bytes and requests of a
task. From a single rung, tasks that are alone grow as the rows do and others not at all: give two or more.

'half used' is the most workers of which a stage uses half the time; 'then' names what more of them wait for: 'one task'
(steps of a single task), 'few tasks' (fewer than workers), 'sending' (driver and scheduler), 'between steps' (the
driver alone), 'store' (--shared-bandwidth). Not simulated: that more tasks at once wait for memory or one disk, as two
on one machine do; workers that die; a scheduler that slows down as it has more workers.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from scipy.optimize import nnls

ROWS, WORKERS = "10000000,100000000,1000000000", "1,8,16,32,64,128,256,512"
READS_AT_ONCE = 8
"""Requests of a task that are under way at once in a bucket."""
COUNT_TOLERANCE = 0.1
"""A step has as many tasks as the plan says of something where it differs by no more than this share."""
MAX_EXPONENT = 2.0
"""Figures of a task that grow faster than with this power of the rows are not believed."""
SEED = 1
MIB = 2**20


@dataclass(frozen=True)
class StepKind:
    """Steps of a stage that do the same.

    Attributes
    ----------
    stage, task : str
        The task's name is empty for the time between steps, which is `seconds`, once.
    calls : float
        How many steps there are.
    tasks : int
        Of one step.
    seconds, data_bytes, requests : float
        Of a task, on the mean.
    spread : tuple of float
        Quantiles of the seconds over their mean.
    """

    stage: str
    task: str
    calls: float
    tasks: int
    seconds: float
    data_bytes: float = 0.0
    requests: float = 0.0
    spread: tuple[float, ...] = (1.0, 1.0)

    @property
    def total_seconds(self) -> float:
        """The seconds of all its tasks."""
        return self.calls * max(1, self.tasks) * self.seconds


@dataclass(frozen=True)
class Overhead:
    """What tasks cost beside themselves.

    Attributes
    ----------
    sending : float
        Seconds from one task that is sent to the next, at the least.
    gap : float
        Seconds of a worker between two tasks.
    step : float
        Seconds of a step beside its tasks.
    """

    sending: float = 0.0
    gap: float = 0.0
    step: float = 0.0


@dataclass(frozen=True)
class StoreSpeed:
    """What a store takes beyond the one that was measured on.

    Attributes
    ----------
    latency : float
        Seconds of a request.
    worker_bandwidth, shared_bandwidth : float
        Bytes a second, to one worker and to all.
    """

    latency: float = 0.0
    worker_bandwidth: float = math.inf
    shared_bandwidth: float = math.inf

    def wait_seconds(self, kind: StepKind) -> float:
        """Return what a task waits for it, however few do."""
        return kind.requests * self.latency / READS_AT_ONCE + kind.data_bytes / self.worker_bandwidth


# one step ----------------------------------------------------------------------------------------


def simulate_step(kind: StepKind, workers: int, overhead: Overhead, store: StoreSpeed) -> float:
    """Return the seconds of one step: a list of events, the earliest first."""
    if not kind.task:
        return kind.seconds
    draws = np.random.default_rng(SEED).random(kind.tasks)
    factors = np.interp(draws, np.linspace(0, 1, len(kind.spread)), kind.spread)
    durations = kind.seconds * factors / factors.mean() + store.wait_seconds(kind)
    transfer_seconds = kind.data_bytes / store.shared_bandwidth
    worker_free_times, store_free_time, last_end = [0.0] * min(workers, kind.tasks), 0.0, 0.0
    for number, duration in enumerate(durations.tolist()):
        start = max((number + 1) * overhead.sending, heapq.heappop(worker_free_times))
        store_free_time = max(store_free_time, start) + transfer_seconds
        end = max(start + duration, store_free_time)
        heapq.heappush(worker_free_times, end + overhead.gap)
        last_end = max(last_end, end)
    return last_end + overhead.step


def least_seconds(kind: StepKind, overhead: Overhead, store: StoreSpeed) -> dict[str, float]:
    """Return how long one step takes at the least, by what it would wait for."""
    if not kind.task:
        return {"between steps": kind.seconds}
    task_seconds = kind.seconds * max(kind.spread) + store.wait_seconds(kind)
    by_task = {"one task" if kind.tasks == 1 else "few tasks": task_seconds}
    sending_seconds = kind.tasks * overhead.sending
    return {**by_task, "sending": sending_seconds, "store": kind.tasks * kind.data_bytes / store.shared_bandwidth}


def simulate(kinds: Sequence[StepKind], workers: int, overhead: Overhead, store: StoreSpeed) -> dict[str, float]:
    """Return the seconds of each stage."""
    seconds_by_stage: dict[str, float] = defaultdict(float)
    for kind in kinds:
        seconds_by_stage[kind.stage] += kind.calls * simulate_step(kind, workers, overhead, store)
    return dict(seconds_by_stage)


def name_bottlenecks(kinds: Sequence[StepKind], overhead: Overhead, store: StoreSpeed) -> dict[str, str]:
    """Say for each stage what its workers wait for most, and in which of its steps."""
    waits: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for kind in kinds:
        name, seconds = max(least_seconds(kind, overhead, store).items(), key=lambda item: item[1])
        waits[kind.stage][name + (f": {kind.task}" if kind.task else "")] += kind.calls * seconds
    return {stage: max(stage_waits, key=lambda name: stage_waits[name]) for stage, stage_waits in waits.items()}


# what was measured -------------------------------------------------------------------------------


def step_kinds(rung: dict[str, Any]) -> list[StepKind]:
    """Return the kinds of steps of a measured run."""
    kinds = []
    for step in rung["steps"]:
        if not step["task"]:
            kinds.append(StepKind(step["stage"], "", 1, 0, step["wall"]))
            continue
        data_bytes, tasks = step["read_bytes"] + step["written_bytes"], round(step["tasks"] / step["calls"])
        common_fields = step["stage"], step["task"], step["calls"], max(1, tasks), step["seconds"]
        kinds.append(StepKind(*common_fields, data_bytes, step["requests"], tuple(step["spread"])))
    return kinds


def fit_overhead(rungs: Sequence[dict[str, Any]]) -> Overhead:
    """Return what tasks cost beside themselves, by measured runs on Dask."""
    steps = [step for rung in rungs for step in rung["steps"] if step["task"]]
    calls_and_tasks = np.array([[step["calls"], step["tasks"]] for step in steps], float)
    sending = max(
        nnls(calls_and_tasks, np.array([step[cpu] for step in steps], float))[0][1]
        for cpu in ("driver_cpu", "scheduler_cpu")
    )
    gaps = [step["gap"] for step in steps if step["gap"] is not None for _ in range(min(100, step["tasks"]))]
    step_overheads = [
        step["wall"] / step["calls"] - step["seconds"] for step in steps if step["tasks"] == step["calls"]
    ]
    return Overhead(
        float(sending), float(np.median(gaps or [0.0])), max(0.0, float(np.median(step_overheads or [0.0])))
    )


# other numbers of rows ---------------------------------------------------------------------------


def plan_counts(rows: int, dims: int, settings: Sequence[str]) -> dict[str, int]:
    """Return how many blocks, cells, shards and chunks of the result a run is divided into."""
    import dumap
    from dumap.config import load_config

    with tempfile.TemporaryDirectory() as folder:
        shape: Any = {"shape": (rows, dims), "chunks": (min(rows, 65_536), dims), "dtype": "float32"}
        zarr.create_group(f"{folder}/data.zarr").create_array("vectors", **shape)
        places = {"input.path": f"{folder}/data.zarr", "output": f"{folder}/run.zarr"}
        geometry = dumap.plan(config=load_config(None, settings, places)).geometry
    return {name: getattr(geometry, name) for name in ("blocks", "cells", "shards", "outputs")}


class GrowthModel:
    """Says what the steps of a run of any number of rows are, by measured rungs.

    Parameters
    ----------
    rungs : sequence of dict
        Of one file of scripts/ladder.py, the smallest first.
    """

    def __init__(self, rungs: Sequence[dict[str, Any]]) -> None:
        self.rungs = list(rungs)[-2:]
        self.last_kinds = {(kind.stage, kind.task): kind for kind in step_kinds(self.rungs[-1])}
        earlier_kinds = [kind for rung in self.rungs[:-1] for kind in step_kinds(rung)]
        self.earlier_kinds = {(kind.stage, kind.task): kind for kind in earlier_kinds}
        self.plans = [self._plan_counts(rung["rows"]) for rung in self.rungs]

    def _plan_counts(self, rows: int) -> dict[str, int]:
        return plan_counts(rows, self.rungs[-1]["dims"], self.rungs[-1]["settings"])

    def predict_kinds(self, rows: int) -> list[StepKind]:
        """Return the kinds of steps of a run of so many rows."""
        if rows == self.rungs[-1]["rows"]:
            return list(self.last_kinds.values())
        plan = self._plan_counts(rows)
        return [self._scale_kind(kind, rows, plan) for kind in self.last_kinds.values()]

    def _scale_kind(self, kind: StepKind, rows: int, plan: dict[str, int]) -> StepKind:
        factor = rows / self.rungs[-1]["rows"]
        earlier = self.earlier_kinds.get((kind.stage, kind.task))
        exponents = {}
        for name in ("calls", "tasks", "seconds", "data_bytes", "requests"):
            is_single = kind.tasks <= 1 and name not in ("calls", "tasks")
            exponents[name] = (
                self._exponent(getattr(kind, name), getattr(earlier, name)) if earlier else float(is_single)
            )
        tasks = self._scale_tasks(kind, earlier, plan)
        return replace(
            kind,
            calls=kind.calls * factor ** exponents["calls"],
            tasks=round(kind.tasks * factor ** exponents["tasks"]) if tasks is None else tasks,
            seconds=kind.seconds * factor ** exponents["seconds"],
            data_bytes=kind.data_bytes * factor ** exponents["data_bytes"],
            requests=kind.requests * factor ** exponents["requests"],
        )

    def _exponent(self, value: float, earlier_value: float) -> float:
        """Return how a figure grew from rung to rung, as a power of the rows."""
        if value <= 0 or earlier_value <= 0:
            return 0.0
        rows = [rung["rows"] for rung in self.rungs]
        return min(MAX_EXPONENT, max(0.0, math.log(value / earlier_value) / math.log(rows[1] / rows[0])))

    def _scale_tasks(self, kind: StepKind, earlier: StepKind | None, plan: dict[str, int]) -> int | None:
        """Return how many tasks a step has, where that is told by what there was one of for each."""
        measured = [rung_kind.tasks for rung_kind in (earlier, kind) if rung_kind is not None]
        if max(measured) <= 1:
            return kind.tasks
        for name, count in plan.items():
            planned_counts = [plan_of_rung[name] for plan_of_rung in self.plans[-len(measured) :]]
            if all(
                abs(tasks - planned) <= COUNT_TOLERANCE * planned
                for tasks, planned in zip(measured, planned_counts, strict=True)
            ):
                return count
        return None


# what is printed ---------------------------------------------------------------------------------


def predict_seconds(
    growth: GrowthModel, rows: int, workers: Sequence[int], overhead: Overhead, store: StoreSpeed
) -> dict[str, Any]:
    """Return the seconds of each stage by the number of workers, and where it stops scaling."""
    kinds = growth.predict_kinds(rows)
    seconds = {count: simulate(kinds, count, overhead, store) for count in workers}
    task_seconds: dict[str, float] = defaultdict(float)
    for kind in kinds:
        task_seconds[kind.stage] += kind.total_seconds + kind.calls * kind.tasks * store.wait_seconds(kind)
    stages: dict[str, Any] = {}
    for stage, bottleneck in name_bottlenecks(kinds, overhead, store).items():
        well_used = [count for count in workers if task_seconds[stage] >= 0.5 * count * seconds[count][stage]]
        stages[stage] = {
            "seconds": {str(count): round(seconds[count][stage], 2) for count in workers},
            "half_used": max(well_used, default=0),
            "then": bottleneck,
        }
    totals = {str(count): round(sum(seconds[count].values()), 1) for count in workers}
    well_used = [count for count in workers if sum(task_seconds.values()) >= 0.5 * count * sum(seconds[count].values())]
    return {"rows": rows, "stages": stages, "whole": totals, "half_used": max(well_used, default=0)}


def format_prediction(prediction: dict[str, Any]) -> str:
    """Write a prediction for people."""
    lines = [f"{prediction['rows']:,} rows, seconds by workers"]
    lines.append(f"{'stage':<10}" + "".join(f"{count:>9}" for count in prediction["whole"]) + "  half used, then")
    for stage, figures in prediction["stages"].items():
        cells = "".join(f"{seconds:>9.1f}" for seconds in figures["seconds"].values())
        lines.append(f"{stage:<10}{cells}  {figures['half_used']:>9}, {figures['then']}")
    cells = "".join(f"{seconds:>9.1f}" for seconds in prediction["whole"].values())
    return "\n".join([*lines, f"{'whole':<10}{cells}  {prediction['half_used']:>9}"])


def check_predictions(growth: GrowthModel, rungs: Sequence[dict[str, Any]], overhead: Overhead) -> list[dict[str, Any]]:
    """Predict measured runs; return what was measured, what was predicted, and the ratio, by stage and whole."""
    comparisons = []
    for rung in rungs:
        predicted = simulate(growth.predict_kinds(rung["rows"]), max(1, rung["workers"]), overhead, StoreSpeed())
        measured = {stage: rung["stages"][stage]["seconds"] for stage in predicted}
        stages = {stage: [measured[stage], predicted[stage]] for stage in predicted}
        stages["whole"] = [sum(measured.values()), sum(predicted.values())]
        comparisons.append({"rows": rung["rows"], "workers": rung["workers"], "stages": stages})
    return comparisons


def format_comparison(comparisons: list[dict[str, Any]]) -> str:
    """Write a check for people."""
    lines = []
    for comparison in comparisons:
        lines.append(
            f"{comparison['rows']:,} rows on {comparison['workers']} workers: measured, predicted, predicted / measured"
        )
        for stage, (measured, predicted) in comparison["stages"].items():
            ratio = predicted / measured if measured else math.nan
            lines.append(f"{stage:<10}{measured:>9.1f}{predicted:>9.1f}{ratio:>7.2f}")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", help="a file of scripts/ladder.py")
    parser.add_argument("--check", action="append", default=[], metavar="FILE", help="predict the runs of this file")
    parser.add_argument("--rows", default=ROWS, help="(%(default)s)")
    parser.add_argument("--workers", default=WORKERS, help="of one thread each (%(default)s)")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of a request beyond what was measured (0)")
    parser.add_argument("--worker-bandwidth", type=float, default=math.inf, help="MiB a second to a worker (no bound)")
    parser.add_argument("--shared-bandwidth", type=float, default=math.inf, help="MiB a second to all (no bound)")
    parser.add_argument("--output", metavar="PREFIX", help="PREFIX.json is written too")
    args = parser.parse_args()
    args.rows, args.workers = ([int(number) for number in text.split(",")] for text in (args.rows, args.workers))
    return args


def main() -> None:
    """Check or predict, and print."""
    args = parse_arguments()
    rungs = json.loads(Path(args.measured).read_text())["rungs"]
    if not rungs:
        raise SystemExit(f"{args.measured} has no rungs")
    overhead, growth = fit_overhead(rungs), GrowthModel(rungs)
    store = StoreSpeed(args.latency, args.worker_bandwidth * MIB, args.shared_bandwidth * MIB)
    print(
        f"measured at {', '.join(format(rung['rows'], ',') for rung in rungs)} rows: {overhead.sending * 1e3:.2f} ms "
        f"to send a task, {overhead.gap * 1e3:.1f} ms between two of a worker, {overhead.step * 1e3:.1f} ms a step"
    )
    if single_parts := [name for name in ("blocks", "cells", "shards") if growth.plans[-1][name] == 1]:
        print(
            f"the measured rows are too few: one of {' and of '.join(single_parts)}, "
            f"whose steps are taken for single tasks"
        )
    document: dict[str, Any] = {"overhead": overhead.__dict__, "checks": [], "predictions": []}
    for file in args.check:
        comparisons = check_predictions(growth, json.loads(Path(file).read_text())["rungs"], overhead)
        document["checks"] += comparisons
        print(format_comparison(comparisons))
    for rows in () if args.check else args.rows:
        document["predictions"].append(predict_seconds(growth, rows, args.workers, overhead, store))
        print(format_prediction(document["predictions"][-1]))
    if args.output:
        Path(f"{args.output}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
