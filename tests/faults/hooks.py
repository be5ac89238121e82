"""Faults at exact points of a real run, from outside it.

Workers load this file as a preload, drivers by running it: `python hooks.py run RUN.yaml`. Whenever a process comes
to a point it looks into the folder that DUMAP_FAULTS names: what `plan.json` there says of the point is done.

A point is where the program stands: 'task' (a task begins), 'object' (an object is written), 'manifest' (all objects
are written, the manifest is not), 'committed' (the manifest is there, its writer does not know), 'discard' (a
part's manifest is deleted, its objects are not).
"""

from __future__ import annotations

import ctypes
import fnmatch
import functools
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER, VERSIONS = "DUMAP_FAULTS", "DUMAP_VERSIONS"
POINTS = ("task", "object", "manifest", "committed", "discard")


def pass_point(role: str, point: str, stage: str, part: str) -> None:
    """Do what the plan says of this point."""
    folder = Path(os.environ[FOLDER])
    try:
        plan = json.loads((folder / "plan.json").read_text())
    except FileNotFoundError:
        return
    for fault in plan:
        if point != fault["point"] or role not in (fault["role"], fault["role"] or role):
            continue
        if not (fnmatch.fnmatch(stage, fault["stage"]) and fnmatch.fnmatch(part, fault["part"])):
            continue
        if _claim(folder / f"passed-{fault['id']}", fault["skip"]):
            continue  # not yet
        if fault["times"] is None or _claim(folder / f"done-{fault['id']}", fault["times"], f"{stage} {part}"):
            _act(fault)


def _claim(name: Path, count: int, what: str = "") -> bool:
    """Take one of `count` tokens that all processes share."""
    for number in range(count):
        try:
            handle = os.open(f"{name}-{number:04d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            continue
        os.write(handle, json.dumps([os.getpid(), what]).encode())
        os.close(handle)
        return True
    return False


def _act(fault: dict[str, Any]) -> None:
    """Do what a fault says, to this process or to another."""
    action, pid = fault["action"], fault["pid"] or os.getpid()
    if action == "kill":
        os.kill(pid, signal.SIGKILL)
        time.sleep(0 if fault["pid"] else 60)
    elif action == "kill driver":  # it leads the session that its embedded cluster is in
        os.kill(os.getsid(0), signal.SIGKILL)
        time.sleep(60)
    elif action == "segfault":
        ctypes.string_at(0)
    elif action == "exit":
        os._exit(17)
    elif action == "stop":
        os.kill(pid, signal.SIGSTOP)
    elif action == "close":
        from distributed import get_worker

        worker = get_worker()
        worker.loop.add_callback(functools.partial(worker.close, nanny=False, reason="a test"))
    elif action == "sleep":
        time.sleep(fault["seconds"])
    elif action == "raise":
        raise OSError(fault["errno"], os.strerror(fault["errno"]))
    else:
        raise ValueError(f"no such action: {action}")


def install(role: str) -> None:
    """Wrap what passes the points."""
    from dumap import store
    from dumap.engine import worker
    from dumap.store.part import Part

    at, discarding = functools.partial(pass_point, role), threading.local()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def around(owner: Any, name: str, make: Callable[[Any], Callable]) -> None:
        original = getattr(owner, name)
        setattr(owner, name, functools.wraps(original)(make(original)))

    def execute_task(original):
        def call(task, job, part, options):
            @functools.wraps(task)
            def begin(*arguments, **more):
                at("task", job.stage, part)
                return task(*arguments, **more)

            return original(begin, job, part, options)

        return call

    def written(original):
        def call(self, name, *arguments):
            result = original(self, name, *arguments)
            at("object", self.stage, self.name)
            return result

        return call

    def commit(original):
        def call(self, stage, name, *arguments):
            at("manifest", stage, name)
            result = original(self, stage, name, *arguments)
            at("committed", stage, name)
            return result

        return call

    def discard(original):
        def call(self, stage, names):
            discarding.part = (stage, names[0]) if names else None
            try:
                original(self, stage, names)
            finally:
                discarding.part = None

        return call

    def delete(original):
        def call(self, keys):
            if getattr(discarding, "part", None) and not any(key.startswith(store.MANIFESTS) for key in keys):
                at("discard", *discarding.part)
            return original(self, keys)

        return call

    around(worker, "execute_task", execute_task)
    around(Part, "_append_rows", written)
    around(Part, "write_rows", written)
    around(store.Run, "commit", commit)
    around(store.Run, "delete_parts", discard)
    around(store.Run, "delete_keys", delete)


def pretend(pretended: dict[str, str]) -> None:
    """Have this process say that it has other versions than it has."""
    from dumap.engine import worker

    versions = worker.versions
    worker.versions = lambda: {**versions(), **pretended}


def dask_setup(worker: Any) -> None:
    """Be a preload of a worker."""
    install("worker")
    pretend(json.loads(os.environ.get(VERSIONS, "{}")))


if __name__ == "__main__":
    from dumap.cli import main

    sys.argv[0] = "dumap"
    install("driver")
    main()
