"""Count what a run reads and writes, and time its tasks, in every process of it; and run one that is counted so.

    python scripts/measuring/counting.py FOLDER DATA.zarr RUN.zarr [--set KEY=VALUE ...]

The driver and all its workers leave lines of JSON in FOLDER, which `read` puts together. Workers load this file as
one of Dask's preloads. A request is what a bucket would be asked: to get an object or a span of it, to put one, to tell
a size, to list, to delete. Bytes are those of the objects and spans, whatever is used of them.
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

FOLDER = "DUMAP_COUNTING_FOLDER"
"""The variable of the environment that tells workers where to write."""
KINDS = ("read_bytes", "written_bytes", "reads", "writes", "looks", "lists", "deletes")
REQUESTS = KINDS[2:]
START_UP = "start-up"
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
        self.path, self.role, self.stage = Path(folder) / f"{role}-{os.getpid()}.jsonl", role, START_UP
        self.counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(KINDS, 0))
        self._lock = threading.Lock()
        self._file = self.path.open("a", buffering=1)

    def add(self, **counts: int) -> None:
        """Add to the counts of the stage."""
        with self._lock:
            own = self.counts[self.stage]
            for kind, count in counts.items():
                own[kind] += int(count)

    def now(self) -> dict[str, int]:
        """Return the counts of all stages together."""
        with self._lock:
            return {kind: sum(counts[kind] for counts in self.counts.values()) for kind in KINDS}

    def tell(self, **entry: Any) -> None:
        """Write a line."""
        with self._lock:
            self._file.write(json.dumps({"role": self.role, "pid": os.getpid(), **entry}) + "\n")

    def tell_counts(self, *stages: str) -> None:
        """Write the counts of stages so far, of all where none is named; the last such line of a process holds."""
        for stage in stages or tuple(self.counts):
            self.tell(event="counts", stage=stage, counts=dict(self.counts[stage]))


_counter: Counter | None = None


def install(folder: str, role: str) -> Counter:
    """Begin to count in this process."""
    global _counter
    if _counter is None:
        _counter = Counter(folder, role)
        _count_backends(_counter)
        _count_zarr(_counter)
        _time_tasks(_counter)
        atexit.register(_counter.tell_counts)
    return _counter


def dask_setup(worker: Any) -> None:
    """Begin to count in a Dask worker, which loads this file."""
    install(os.environ[FOLDER], "worker")


def wrap(owner: Any, name: str, tell: Callable[..., None]) -> None:
    """Have a method also tell its result and its arguments."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        found = original(self, *arguments, **options)
        tell(found, *arguments, **options)
        return found

    setattr(owner, name, method)


def wrap_async(owner: Any, name: str, tell: Callable[..., None]) -> None:
    """As `wrap`, of a coroutine."""
    original = getattr(owner, name)

    @functools.wraps(original)
    async def method(self: Any, *arguments: Any, **options: Any) -> Any:
        found = await original(self, *arguments, **options)
        tell(found, *arguments, **options)
        return found

    setattr(owner, name, method)


def size_of(data: Any) -> int:
    """Return the bytes of an object."""
    return 0 if data is None else memoryview(data).nbytes


def _count_backends(counter: Counter) -> None:
    """Count what goes through dumap's own store."""
    from dumap.store import backends, objects

    for backend in (backends.Folder, backends.Bucket, backends.Archive):
        wrap(backend, "get", lambda found, *_: counter.add(reads=1, read_bytes=size_of(found)))
        wrap(backend, "open_span", lambda _, key, start, stop, size: counter.add(reads=1, read_bytes=stop - start))
        wrap(backend, "size", lambda *_: counter.add(looks=1))
        for name in ("names_in", "keys", "stamps"):
            wrap(backend, name, lambda *_: counter.add(lists=1))
        for name in ("put", "create"):
            wrap(backend, name, lambda _, key, data, *__: counter.add(writes=1, written_bytes=size_of(data)))
        wrap(backend, "remove", lambda _, keys: counter.add(deletes=len(keys)))

    kept = objects.ObjectWriter.keep

    @functools.wraps(kept)
    def keep(self: Any, *arguments: Any, **options: Any) -> Any:
        found = kept(self, *arguments, **options)
        if self.objects.is_local:  # elsewhere it is put by the backend, and counted there
            counter.add(writes=1, written_bytes=found[0])
        return found

    objects.ObjectWriter.keep = keep  # type: ignore[method-assign]


def _count_zarr(counter: Counter) -> None:
    """Count what Zarr reads and writes by itself: the input, and the results."""
    from zarr.storage import LocalStore, ObjectStore

    def got(found: Any, *_: Any, **__: Any) -> None:
        counter.add(reads=1, read_bytes=0 if found is None else len(found))

    def put(_: Any, key: str, value: Any, *__: Any) -> None:
        counter.add(writes=1, written_bytes=len(value))

    for store in (LocalStore, ObjectStore):
        wrap_async(store, "get", got)
        wrap_async(store, "set", put)
    for name, tell in (("get_sync", got), ("set_sync", put)):
        if hasattr(LocalStore, name):
            wrap(LocalStore, name, tell)


def _time_tasks(counter: Counter) -> None:
    """Time each task, and have what is counted meanwhile be its stage's."""
    from dumap.engine import process

    run_task = process.run_task

    @functools.wraps(run_task)
    def timed(task: Any, job: Any, part: str, *arguments: Any) -> Any:
        stage, before = job.title(task), counter.now()
        counter.stage = stage
        began, cpu = time.time(), time.process_time()
        try:
            return run_task(task, job, part, *arguments)
        finally:
            seconds, cpu = time.time() - began, time.process_time() - cpu
            after = counter.now()
            counted = {kind: after[kind] - before[kind] for kind in KINDS}
            entry = {"stage": stage, "task": task.__name__, "part": part, "began": began}
            counter.tell(event="task", **entry, seconds=seconds, cpu=cpu, **counted)
            counter.tell_counts(stage)

    import dumap.engine.worker as worker

    modules: tuple[Any, ...] = (process, worker)  # the latter has imported it by name
    for module in modules:
        module.run_task = timed


def _time_steps(counter: Counter) -> None:
    """Time each step of the driver's, with the time of its own and of the scheduler's processor."""
    from dumap.engine.cluster import DaskEngine
    from dumap.engine.local import LocalEngine

    def timed_map(engine: Any) -> None:
        original = engine.map

        @functools.wraps(original)
        def timed(self: Any, task: Any, job: Any, parts: Any, *arguments: Any) -> Any:
            began, driver, scheduler = time.time(), time.process_time(), _scheduler_seconds(self)
            try:
                return original(self, task, job, parts, *arguments)
            finally:
                ended, driver = time.time(), time.process_time() - driver
                spent = _scheduler_seconds(self) - scheduler
                entry = {"stage": job.title(task), "task": task.__name__, "parts": len(parts), "began": began}
                counter.tell(event="step", **entry, ended=ended, driver_cpu=driver, scheduler_cpu=spent)

        engine.map = timed

    for engine in (DaskEngine, LocalEngine):
        timed_map(engine)


def _scheduler_seconds(engine: Any) -> float:
    """Return the processor's time of the scheduler, 0 where there is none."""
    client = getattr(engine, "client", None)
    return 0.0 if client is None else float(client.run_on_scheduler(time.process_time))


class Observer:
    """Tells the counter which stage the driver is at, and what the stages took."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def started(self, stage: str, projected_bytes: int) -> None:
        """A stage has begun."""
        self.counter.stage = stage
        self.counter.tell(event="started", stage=stage, at=time.time())

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Say nothing."""

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """A stage is committed."""
        figures = {"seconds": seconds, "projected_bytes": projected_bytes, "peak_bytes": peak_bytes}
        self.counter.tell(event="finished", stage=stage, at=time.time(), **figures)

    def note(self, message: str) -> None:
        """Say nothing."""


def environment(folder: str) -> dict[str, str]:
    """Return the variables that have Dask's workers count too."""
    return {FOLDER: folder, "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([os.path.abspath(__file__)])}


def read(folder: str) -> dict[str, Any]:
    """Put together what the processes of a run have left.

    Returns
    -------
    dict
        'counts', by stage and role ('driver', 'worker'); 'tasks', 'steps' and 'stages': their lines, in order of time.
    """
    lines = [json.loads(line) for path in Path(folder).glob("*.jsonl") for line in path.read_text().splitlines()]
    found: dict[str, list[dict]] = defaultdict(list)
    last: dict[tuple[str, int, str], dict[str, int]] = {}
    for line in lines:
        found[line["event"]].append(line)
        if line["event"] == "counts":
            last[line["role"], line["pid"], line["stage"]] = line["counts"]
    counts: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(lambda: dict.fromkeys(KINDS, 0)))
    for (role, _, stage), own in last.items():
        for kind, count in own.items():
            counts[stage][role][kind] += count
    return {
        "counts": {stage: dict(roles) for stage, roles in counts.items()},
        "tasks": sorted(found["task"], key=lambda line: line["began"]),
        "steps": sorted(found["step"], key=lambda line: line["began"]),
        "stages": sorted(found["finished"], key=lambda line: line["at"]),
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
    os.environ.update(environment(folder))  # before Dask is imported, which reads it
    import dumap
    from dumap.config import load_config

    counter = install(folder, "driver")
    _time_steps(counter)
    places = {"input.path": os.path.abspath(args.data), "output": os.path.abspath(args.run)}
    dumap.run(config=load_config(None, args.settings, places), on_progress=Observer(counter))


if __name__ == "__main__":
    main()
