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
NEAR = 0.1
"""A step has as many tasks as the plan says of something where it differs by no more than this share."""
MOST_GROWTH = 2.0
"""Figures of a task that grow faster than with this power of the rows are not believed."""
SEED = 1
MIB = 2**20


@dataclass(frozen=True)
class Kind:
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
    def work(self) -> float:
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
class Store:
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

    def seconds(self, kind: Kind) -> float:
        """Return what a task waits for it, however few do."""
        return kind.requests * self.latency / READS_AT_ONCE + kind.data_bytes / self.worker_bandwidth


# one step ----------------------------------------------------------------------------------------


def simulate_step(kind: Kind, workers: int, overhead: Overhead, store: Store) -> float:
    """Return the seconds of one step: a list of events, the earliest first."""
    if not kind.task:
        return kind.seconds
    draws = np.random.default_rng(SEED).random(kind.tasks)
    factors = np.interp(draws, np.linspace(0, 1, len(kind.spread)), kind.spread)
    durations = kind.seconds * factors / factors.mean() + store.seconds(kind)
    occupied = kind.data_bytes / store.shared_bandwidth
    free, store_free, last = [0.0] * min(workers, kind.tasks), 0.0, 0.0
    for number, duration in enumerate(durations.tolist()):
        begun = max((number + 1) * overhead.sending, heapq.heappop(free))
        store_free = max(store_free, begun) + occupied
        ended = max(begun + duration, store_free)
        heapq.heappush(free, ended + overhead.gap)
        last = max(last, ended)
    return last + overhead.step


def bounds(kind: Kind, overhead: Overhead, store: Store) -> dict[str, float]:
    """Return how long one step takes at the least, by what it would wait for."""
    if not kind.task:
        return {"between steps": kind.seconds}
    task = kind.seconds * max(kind.spread) + store.seconds(kind)
    alone = {"one task" if kind.tasks == 1 else "few tasks": task}
    sent = kind.tasks * overhead.sending
    return {**alone, "sending": sent, "store": kind.tasks * kind.data_bytes / store.shared_bandwidth}


def simulate(kinds: Sequence[Kind], workers: int, overhead: Overhead, store: Store) -> dict[str, float]:
    """Return the seconds of each stage."""
    found: dict[str, float] = defaultdict(float)
    for kind in kinds:
        found[kind.stage] += kind.calls * simulate_step(kind, workers, overhead, store)
    return dict(found)


def limits(kinds: Sequence[Kind], overhead: Overhead, store: Store) -> dict[str, str]:
    """Say for each stage what its workers wait for most, and in which of its steps."""
    waited: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for kind in kinds:
        name, seconds = max(bounds(kind, overhead, store).items(), key=lambda one: one[1])
        waited[kind.stage][name + (f": {kind.task}" if kind.task else "")] += kind.calls * seconds
    return {stage: max(own, key=lambda name: own[name]) for stage, own in waited.items()}


# what was measured -------------------------------------------------------------------------------


def kinds_of(rung: dict[str, Any]) -> list[Kind]:
    """Return the kinds of steps of a measured run."""
    found = []
    for step in rung["steps"]:
        if not step["task"]:
            found.append(Kind(step["stage"], "", 1, 0, step["wall"]))
            continue
        moved, tasks = step["read_bytes"] + step["written_bytes"], round(step["tasks"] / step["calls"])
        own = step["stage"], step["task"], step["calls"], max(1, tasks), step["seconds"]
        found.append(Kind(*own, moved, step["requests"], tuple(step["spread"])))
    return found


def overhead_of(rungs: Sequence[dict[str, Any]]) -> Overhead:
    """Return what tasks cost beside themselves, by measured runs on Dask."""
    steps = [step for rung in rungs for step in rung["steps"] if step["task"]]
    sizes = np.array([[step["calls"], step["tasks"]] for step in steps], float)
    sending = max(
        nnls(sizes, np.array([step[cpu] for step in steps], float))[0][1] for cpu in ("driver_cpu", "scheduler_cpu")
    )
    gaps = [step["gap"] for step in steps if step["gap"] is not None for _ in range(min(100, step["tasks"]))]
    single = [step["wall"] / step["calls"] - step["seconds"] for step in steps if step["tasks"] == step["calls"]]
    return Overhead(float(sending), float(np.median(gaps or [0.0])), max(0.0, float(np.median(single or [0.0]))))


# other numbers of rows ---------------------------------------------------------------------------


def planned(rows: int, dims: int, settings: Sequence[str]) -> dict[str, int]:
    """Return how many blocks, cells, shards and chunks of the result a run is divided into."""
    import dumap
    from dumap.config import load_config

    with tempfile.TemporaryDirectory() as folder:
        shape: Any = {"shape": (rows, dims), "chunks": (min(rows, 65_536), dims), "dtype": "float32"}
        zarr.create_group(f"{folder}/data.zarr").create_array("vectors", **shape)
        places = {"input.path": f"{folder}/data.zarr", "output": f"{folder}/run.zarr"}
        geometry = dumap.plan(config=load_config(None, settings, places)).geometry
    return {name: getattr(geometry, name) for name in ("blocks", "cells", "shards", "outputs")}


class Growth:
    """Says what the steps of a run of any number of rows are, by measured rungs.

    Parameters
    ----------
    rungs : sequence of dict
        Of one file of scripts/ladder.py, the smallest first.
    """

    def __init__(self, rungs: Sequence[dict[str, Any]]) -> None:
        self.rungs = list(rungs)[-2:]
        self.last = {(kind.stage, kind.task): kind for kind in kinds_of(self.rungs[-1])}
        self.before = {(kind.stage, kind.task): kind for kind in kinds_of(self.rungs[0])} if len(self.rungs) > 1 else {}
        self.plans = [self._planned(rung["rows"]) for rung in self.rungs]

    def _planned(self, rows: int) -> dict[str, int]:
        return planned(rows, self.rungs[-1]["dims"], self.rungs[-1]["settings"])

    def kinds(self, rows: int) -> list[Kind]:
        """Return the kinds of steps of a run of so many rows."""
        if rows == self.rungs[-1]["rows"]:
            return list(self.last.values())
        plan = self._planned(rows)
        return [self._grown(kind, rows, plan) for kind in self.last.values()]

    def _grown(self, kind: Kind, rows: int, plan: dict[str, int]) -> Kind:
        factor = rows / self.rungs[-1]["rows"]
        before = self.before.get((kind.stage, kind.task))
        powers = {}
        for name in ("calls", "tasks", "seconds", "data_bytes", "requests"):
            alone = kind.tasks <= 1 and name not in ("calls", "tasks")
            powers[name] = self._power(getattr(kind, name), getattr(before, name)) if before else float(alone)
        tasks = self._tasks(kind, before, plan)
        return replace(
            kind,
            calls=kind.calls * factor ** powers["calls"],
            tasks=round(kind.tasks * factor ** powers["tasks"]) if tasks is None else tasks,
            seconds=kind.seconds * factor ** powers["seconds"],
            data_bytes=kind.data_bytes * factor ** powers["data_bytes"],
            requests=kind.requests * factor ** powers["requests"],
        )

    def _power(self, value: float, before: float) -> float:
        """Return how a figure grew from rung to rung, as a power of the rows."""
        if value <= 0 or before <= 0:
            return 0.0
        rows = [rung["rows"] for rung in self.rungs]
        return min(MOST_GROWTH, max(0.0, math.log(value / before) / math.log(rows[1] / rows[0])))

    def _tasks(self, kind: Kind, before: Kind | None, plan: dict[str, int]) -> int | None:
        """Return how many tasks a step has, where that is told by what there was one of for each."""
        measured = [one.tasks for one in (before, kind) if one is not None]
        if max(measured) <= 1:
            return kind.tasks
        for name, count in plan.items():
            said = [own[name] for own in self.plans[-len(measured) :]]
            if all(abs(tasks - some) <= NEAR * some for tasks, some in zip(measured, said, strict=True)):
                return count
        return None


# what is printed ---------------------------------------------------------------------------------


def predict(growth: Growth, rows: int, workers: Sequence[int], overhead: Overhead, store: Store) -> dict[str, Any]:
    """Return the seconds of each stage by the number of workers, and where it stops scaling."""
    kinds = growth.kinds(rows)
    seconds = {many: simulate(kinds, many, overhead, store) for many in workers}
    work: dict[str, float] = defaultdict(float)
    for kind in kinds:
        work[kind.stage] += kind.work + kind.calls * kind.tasks * store.seconds(kind)
    stages: dict[str, Any] = {}
    for stage, why in limits(kinds, overhead, store).items():
        used = [many for many in workers if work[stage] >= 0.5 * many * seconds[many][stage]]
        stages[stage] = {
            "seconds": {str(many): round(seconds[many][stage], 2) for many in workers},
            "half_used": max(used, default=0),
            "then": why,
        }
    whole = {str(many): round(sum(seconds[many].values()), 1) for many in workers}
    used = [many for many in workers if sum(work.values()) >= 0.5 * many * sum(seconds[many].values())]
    return {"rows": rows, "stages": stages, "whole": whole, "half_used": max(used, default=0)}


def table(found: dict[str, Any]) -> str:
    """Write a prediction for people."""
    lines = [f"{found['rows']:,} rows, seconds by workers"]
    lines.append(f"{'stage':<10}" + "".join(f"{many:>9}" for many in found["whole"]) + "  half used, then")
    for stage, figures in found["stages"].items():
        cells = "".join(f"{seconds:>9.1f}" for seconds in figures["seconds"].values())
        lines.append(f"{stage:<10}{cells}  {figures['half_used']:>9}, {figures['then']}")
    cells = "".join(f"{seconds:>9.1f}" for seconds in found["whole"].values())
    return "\n".join([*lines, f"{'whole':<10}{cells}  {found['half_used']:>9}"])


def check(growth: Growth, rungs: Sequence[dict[str, Any]], overhead: Overhead) -> list[dict[str, Any]]:
    """Predict measured runs; return what was measured, what was predicted, and the ratio, by stage and whole."""
    found = []
    for rung in rungs:
        predicted = simulate(growth.kinds(rung["rows"]), max(1, rung["workers"]), overhead, Store())
        measured = {stage: rung["stages"][stage]["seconds"] for stage in predicted}
        stages = {stage: [measured[stage], predicted[stage]] for stage in predicted}
        stages["whole"] = [sum(measured.values()), sum(predicted.values())]
        found.append({"rows": rung["rows"], "workers": rung["workers"], "stages": stages})
    return found


def check_table(found: list[dict[str, Any]]) -> str:
    """Write a check for people."""
    lines = []
    for one in found:
        lines.append(f"{one['rows']:,} rows on {one['workers']} workers: measured, predicted, predicted / measured")
        for stage, (measured, predicted) in one["stages"].items():
            ratio = predicted / measured if measured else math.nan
            lines.append(f"{stage:<10}{measured:>9.1f}{predicted:>9.1f}{ratio:>7.2f}")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
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
    args.rows, args.workers = ([int(one) for one in some.split(",")] for some in (args.rows, args.workers))
    return args


def main() -> None:
    """Check or predict, and print."""
    args = parse()
    rungs = json.loads(Path(args.measured).read_text())["rungs"]
    if not rungs:
        raise SystemExit(f"{args.measured} has no rungs")
    overhead, growth = overhead_of(rungs), Growth(rungs)
    store = Store(args.latency, args.worker_bandwidth * MIB, args.shared_bandwidth * MIB)
    print(
        f"measured at {', '.join(format(rung['rows'], ',') for rung in rungs)} rows: {overhead.sending * 1e3:.2f} ms "
        f"to send a task, {overhead.gap * 1e3:.1f} ms between two of a worker, {overhead.step * 1e3:.1f} ms a step"
    )
    if single := [name for name in ("blocks", "cells", "shards") if growth.plans[-1][name] == 1]:
        print(
            f"the measured rows are too few: one of {' and of '.join(single)}, whose steps are taken for single tasks"
        )
    found: dict[str, Any] = {"overhead": overhead.__dict__, "checks": [], "predictions": []}
    for file in args.check:
        checks = check(growth, json.loads(Path(file).read_text())["rungs"], overhead)
        found["checks"] += checks
        print(check_table(checks))
    for rows in () if args.check else args.rows:
        found["predictions"].append(predict(growth, rows, args.workers, overhead, store))
        print(table(found["predictions"][-1]))
    if args.output:
        Path(f"{args.output}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
