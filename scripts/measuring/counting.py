"""Count what a run reads and writes, and time its tasks, in every process of it; and run one that is counted so.

    python scripts/measuring/counting.py FOLDER DATA.zarr RUN.zarr [--set KEY=VALUE ...]

The driver and all its workers leave lines of JSON in FOLDER, which `read_counts` puts together. Workers load this file
as one of Dask's preloads. A request is what a bucket would be asked: to get an object or a span of it, to put one, to
tell a size, to list, to delete. Bytes are those of the objects and spans, whatever is used of them.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "DUMAP_COUNTING_FOLDER"
"""The variable of the environment that tells workers where to write."""
COUNT_NAMES = ("read_bytes", "written_bytes", "reads", "writes", "looks", "lists", "deletes")
REQUEST_NAMES = COUNT_NAMES[2:]
START_UP_STAGE = "start-up"
"""The stage that is counted before any has begun."""


class Counter:
    """Counts of this process, by stage.

    Attributes
    ----------
    stage : str
        What is counted now.
    counts : dict of str to dict of str to int
    """

    def __init__(self, folder: str, role: str) -> None:
        self.path, self.role, self.stage = Path(folder) / f"{role}-{os.getpid()}.jsonl", role, START_UP_STAGE
        self.counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNT_NAMES, 0))
        self._lock = threading.Lock()
        self._file = self.path.open("a", buffering=1)

    def add(self, **counts: int) -> None:
        """Add to the counts of the stage."""
        with self._lock:
            stage_counts = self.counts[self.stage]
            for name, count in counts.items():
                stage_counts[name] += int(count)

    def total_counts(self) -> dict[str, int]:
        """Return the counts of all stages together."""
        with self._lock:
            return {kind: sum(counts[kind] for counts in self.counts.values()) for kind in COUNT_NAMES}

    def write_line(self, **entry: Any) -> None:
        """Write a line."""
        with self._lock:
            self._file.write(json.dumps({"role": self.role, "pid": os.getpid(), **entry}) + "\n")

    def write_counts(self, *stages: str) -> None:
        """Write the counts of stages so far, of all where none is named; the last such line of a process holds."""
        for stage in stages or tuple(self.counts):
            self.write_line(event="counts", stage=stage, counts=dict(self.counts[stage]))


_counter: Counter | None = None


def start_counting(folder: str, role: str) -> Counter:
    """Begin to count in this process."""
    global _counter
    if _counter is None:
        _counter = Counter(folder, role)
        _count_backends(_counter)
        _count_zarr(_counter)
        _time_tasks(_counter)
        atexit.register(_counter.write_counts)
    return _counter


def dask_setup(worker: Any) -> None:
    """Begin to count in a Dask worker, which loads this file."""
    start_counting(os.environ[FOLDER_VARIABLE], "worker")


def call_after(owner: Any, name: str, callback: Callable[..., None]) -> None:
    """Have a method also call a function with its result and its arguments."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, *arguments, **options)
        callback(result, *arguments, **options)
        return result

    setattr(owner, name, method)


def call_after_async(owner: Any, name: str, callback: Callable[..., None]) -> None:
    """As `call_after`, of a coroutine."""
    original = getattr(owner, name)

    @functools.wraps(original)
    async def method(self: Any, *arguments: Any, **options: Any) -> Any:
        result = await original(self, *arguments, **options)
        callback(result, *arguments, **options)
        return result

    setattr(owner, name, method)


def byte_size(data: Any) -> int:
    """Return the bytes of an object."""
    return 0 if data is None else memoryview(data).nbytes


def _count_backends(counter: Counter) -> None:
    """Count what goes through dumap's own store."""
    from dumap.store import backends, objects

    for backend in (backends.Folder, backends.Bucket, backends.ZipArchive):
        call_after(backend, "get", lambda written, *_: counter.add(reads=1, read_bytes=byte_size(written)))
        call_after(
            backend, "open_range", lambda _, key, start, stop, size: counter.add(reads=1, read_bytes=stop - start)
        )
        call_after(backend, "size", lambda *_: counter.add(looks=1))
        for name in ("names_in", "keys", "stamps"):
            call_after(backend, name, lambda *_: counter.add(lists=1))
        for name in ("put", "create"):
            call_after(backend, name, lambda _, key, data, *__: counter.add(writes=1, written_bytes=byte_size(data)))
        call_after(backend, "remove", lambda _, keys: counter.add(deletes=len(keys)))

    original_keep = objects.ObjectWriter.keep

    @functools.wraps(original_keep)
    def keep_and_count(self: Any, *arguments: Any, **options: Any) -> Any:
        written = original_keep(self, *arguments, **options)
        if self.objects.is_local:  # elsewhere it is put by the backend, and counted there
            counter.add(writes=1, written_bytes=written[0])
        return written

    objects.ObjectWriter.keep = keep_and_count  # type: ignore[method-assign]


def _count_zarr(counter: Counter) -> None:
    """Count what Zarr reads and writes by itself: the input, and the results."""
    from zarr.storage import LocalStore, ObjectStore

    def count_read(data: Any, *_: Any, **__: Any) -> None:
        counter.add(reads=1, read_bytes=0 if data is None else len(data))

    def count_write(_: Any, key: str, value: Any, *__: Any) -> None:
        counter.add(writes=1, written_bytes=len(value))

    for store in (LocalStore, ObjectStore):
        call_after_async(store, "get", count_read)
        call_after_async(store, "set", count_write)
    for name, callback in (("get_sync", count_read), ("set_sync", count_write)):
        if hasattr(LocalStore, name):
            call_after(LocalStore, name, callback)


def _time_tasks(counter: Counter) -> None:
    """Time each task, and have what is counted meanwhile be its stage's."""
    from dumap.engine import process

    run_task = process.run_task

    @functools.wraps(run_task)
    def run_timed_task(task: Any, job: Any, part: str, *arguments: Any) -> Any:
        stage, counts_before = job.step_title(task), counter.total_counts()
        counter.stage = stage
        start_time, cpu_seconds = time.time(), time.process_time()
        try:
            return run_task(task, job, part, *arguments)
        finally:
            seconds, cpu_seconds = time.time() - start_time, time.process_time() - cpu_seconds
            counts_after = counter.total_counts()
            task_counts = {name: counts_after[name] - counts_before[name] for name in COUNT_NAMES}
            entry = {"stage": stage, "task": task.__name__, "part": part, "began": start_time}
            counter.write_line(event="task", **entry, seconds=seconds, cpu=cpu_seconds, **task_counts)
            counter.write_counts(stage)

    import dumap.engine.worker as worker

    modules: tuple[Any, ...] = (process, worker)  # the latter has imported it by name
    for module in modules:
        module.run_task = run_timed_task


def _time_steps(counter: Counter) -> None:
    """Time each step of the driver's, with the time of its own and of the scheduler's processor."""
    from dumap.engine.cluster import DaskEngine
    from dumap.engine.local import LocalEngine

    def time_map(engine: Any) -> None:
        original = engine.map

        @functools.wraps(original)
        def map_timed(self: Any, task: Any, job: Any, parts: Any, *arguments: Any) -> Any:
            start_time, driver_seconds, scheduler_start = time.time(), time.process_time(), _scheduler_seconds(self)
            try:
                return original(self, task, job, parts, *arguments)
            finally:
                end_time, driver_seconds = time.time(), time.process_time() - driver_seconds
                scheduler_seconds = _scheduler_seconds(self) - scheduler_start
                entry = {"stage": job.step_title(task), "task": task.__name__, "parts": len(parts), "began": start_time}
                counter.write_line(
                    event="step", **entry, ended=end_time, driver_cpu=driver_seconds, scheduler_cpu=scheduler_seconds
                )

        engine.map = map_timed

    for engine in (DaskEngine, LocalEngine):
        time_map(engine)


def _scheduler_seconds(engine: Any) -> float:
    """Return the processor's time of the scheduler, 0 where there is none."""
    client = getattr(engine, "client", None)
    return 0.0 if client is None else float(client.run_on_scheduler(time.process_time))


class StageObserver:
    """Tells the counter which stage the driver is at, and what the stages took."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def started(self, stage: str, projected_bytes: int) -> None:
        """A stage has begun."""
        self.counter.stage = stage
        self.counter.write_line(event="started", stage=stage, at=time.time())

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Say nothing."""

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """A stage is committed."""
        figures = {"seconds": seconds, "projected_bytes": projected_bytes, "peak_bytes": peak_bytes}
        self.counter.write_line(event="finished", stage=stage, at=time.time(), **figures)

    def note(self, message: str) -> None:
        """Say nothing."""


def counting_environment(folder: str) -> dict[str, str]:
    """Return the variables that have Dask's workers count too."""
    return {FOLDER_VARIABLE: folder, "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([os.path.abspath(__file__)])}


def read_counts(folder: str) -> dict[str, Any]:
    """Put together what the processes of a run have left.

    Returns
    -------
    dict
        'counts', by stage and role ('driver', 'worker'); 'tasks', 'steps' and 'stages': their lines, in order of time.
    """
    lines = [json.loads(line) for path in Path(folder).glob("*.jsonl") for line in path.read_text().splitlines()]
    lines_by_event: dict[str, list[dict]] = defaultdict(list)
    last_counts: dict[tuple[str, int, str], dict[str, int]] = {}
    for line in lines:
        lines_by_event[line["event"]].append(line)
        if line["event"] == "counts":
            last_counts[line["role"], line["pid"], line["stage"]] = line["counts"]
    counts: dict[str, dict[str, dict[str, int]]] = defaultdict(
        lambda: defaultdict(lambda: dict.fromkeys(COUNT_NAMES, 0))
    )
    for (role, _, stage), process_counts in last_counts.items():
        for kind, count in process_counts.items():
            counts[stage][role][kind] += count
    return {
        "counts": {stage: dict(roles) for stage, roles in counts.items()},
        "tasks": sorted(lines_by_event["task"], key=lambda line: line["began"]),
        "steps": sorted(lines_by_event["step"], key=lambda line: line["began"]),
        "stages": sorted(lines_by_event["finished"], key=lambda line: line["at"]),
    }


def main() -> None:
    """Embed data, counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where lines are written")
    parser.add_argument("data")
    parser.add_argument("run")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    args = parser.parse_args()
    folder = os.path.abspath(args.folder)
    os.makedirs(folder, exist_ok=True)
    os.environ.update(counting_environment(folder))  # before Dask is imported, which reads it
    import dumap
    from dumap.config import load_config

    counter = start_counting(folder, "driver")
    _time_steps(counter)
    places = {"input.path": os.path.abspath(args.data), "output": os.path.abspath(args.run)}
    dumap.run(config=load_config(None, args.settings, places), on_progress=StageObserver(counter))


if __name__ == "__main__":
    main()
