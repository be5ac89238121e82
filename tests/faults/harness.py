"""Real schedulers, workers and drivers as processes on the loopback, that a test may kill, stop and continue."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import yaml
import zarr
from distributed import Client

import dumap
from dumap.config import Config
from dumap.recipe.pipeline import run
from dumap.store import MANIFESTS, Run

HOOKS = Path(__file__).with_name("hooks.py")
ROOT = Path(dumap.__file__).parents[1]
SECONDS = 240
"""The longest that anything is waited for: a machine may be busy. Drivers wait half of it for a quiet cluster."""
SETTINGS = {
    "task_memory": 2**19,
    "cells.max_cells_per_row": 2,
    "neighbors.recall_target": 1.0,
    "neighbors.max_repairs": 1,
    "start.coarse_epochs": 20,
    "layout.n_epochs": 12,
    "audit.queries": 40,
    "keep": "all",
}
"""Three blocks, four cells or more, one repair."""
SETTING_OPTIONS = [option for key, value in SETTINGS.items() for option in ("--set", f"{key}={value}")]
"""The same, for the command line."""
ROUNDS = {"layout.mode": "rounds"}


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Wait until a condition holds; return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return value


def results(output: str) -> dict[str, bytes]:
    """Return the bytes of what a run is for: the embedding, the status and the graph."""
    run = Run(output, read_only=True)
    arrays = {p: zarr.open_array(output, path=p, mode="r")[:].tobytes() for p in ("embedding", "status")}
    for part in (part for part in run.committed_parts("graph") if part.startswith("united-")):
        for name in run.manifest("graph", part)["arrays"]:
            arrays[f"graph {part} {name}"] = run.read("graph", part, name).tobytes()
    return arrays


def commits(output: str) -> dict[str, bytes]:
    """Return the manifests that no run may ever touch again.

    They are all but those of the layout and of passes over the graph, which replace their own, and of what travels in a
    repair.
    """
    root = Path(output, MANIFESTS)
    manifests = {}
    for path in root.glob("*/[!.]*.json"):
        stage, kind = path.parent.name, path.name.split("-")[0].removesuffix(".json")
        kept = {"coarsen": ("seeds", "edges"), "start": ("coordinates", "box"), "layout": ()}
        temporary = stage in kept and kind not in kept[stage]
        if not temporary and kind not in ("halo", "requests", "sent", "offers"):
            manifests[str(path.relative_to(root))] = path.read_bytes()
    return manifests


def all_kept(before: dict[str, bytes], output: str) -> bool:
    """Tell whether every manifest that was there is there still, byte by byte."""
    after = commits(output)
    return before.items() <= after.items()


class Faults:
    """The plan that processes with hooks look into, and what came of it."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._ids = itertools.count()

    def plan(self, *faults: dict[str, Any]) -> list[str]:
        """Replace the plan; return a name for each fault."""
        assert all("stage" in fault for fault in faults if "part" in fault), "stages may have parts of one name"
        base = {"role": "", "stage": "*", "part": "*", "times": 1, "skip": 0, "pid": None}
        named = [{"id": f"{next(self._ids):04d}", **base, **fault} for fault in faults]
        partial = self.folder / "partial"
        partial.write_text(json.dumps(named))
        partial.replace(self.folder / "plan.json")
        return [fault["id"] for fault in named]

    def happened(self, name: str) -> list[int]:
        """Return the processes that a fault happened to, in that order."""
        processes = []
        for token in sorted(self.folder.glob(f"done-{name}-*")):
            with contextlib.suppress(ValueError):  # just being written
                processes.append(json.loads(token.read_text())[0])
        return processes


class Process:
    """A command in a session of its own, so that all that it starts can be found and ended."""

    def __init__(self, command: list[str], log: str, env: dict[str, str], cwd: str) -> None:
        self.log = Path(log)
        with open(log, "w") as file:
            self._popen = subprocess.Popen(
                command, stdout=file, stderr=file, env=env, cwd=cwd, start_new_session=True, stdin=subprocess.DEVNULL
            )
        self.pid = self._popen.pid

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self._popen.poll()

    @property
    def output(self) -> str:
        """All that it wrote."""
        return self.log.read_text()

    def kill(self) -> None:
        """Kill the process, as a power cut would; what it started is left."""
        self._popen.kill()
        self._popen.wait(SECONDS)

    def wait(self, seconds: float = SECONDS) -> int:
        """Wait until it ends; return its exit code."""
        until(lambda: self.code is not None, f"an end of {self._popen.args}:\n{self.output}", seconds)
        return self._popen.returncode

    def members(self) -> list[psutil.Process]:
        """List what lives of the process and what it started."""
        return [psutil.Process(pid) for pid in psutil.pids() if _lives_in(pid, self.pid)]

    def end(self) -> None:
        """Kill all of it, and wait until it is gone."""
        while members := self.members():
            for process in members:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._popen.poll()
            time.sleep(0.05)
        self._popen.wait(SECONDS)


def _lives_in(pid: int, session: int) -> bool:
    """Tell whether a process is alive and of a session."""
    try:
        return os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


class Fleet:
    """A scheduler, workers and drivers; a context manager that leaves no process behind.

    Parameters
    ----------
    new_path : callable
        Names new paths.
    config : dict
        Dask's configuration of all processes: 'distributed.scheduler.worker-ttl' to a value.
    """

    def __init__(self, new_path: Callable[[str], str], **config: Any) -> None:
        self.new_path, self.processes = new_path, []
        self.faults = Faults(new_path())
        hooked = {"distributed.worker.preload": [str(HOOKS)], **config}
        self.env = os.environ | {
            f"DASK_{k.upper().replace('.', '__').replace('-', '_')}": repr(v) for k, v in hooked.items()
        }
        self.env |= {"PYTHONPATH": str(ROOT), "DUMAP_FAULTS": str(self.faults.folder)}
        self.scheduler: Process | None = None
        self.workers: list[Process] = []
        self.client: Client | None = None
        self._threads = ThreadPoolExecutor(1)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        if self.client is not None:
            with contextlib.suppress(Exception):  # its scheduler may be dead
                self.client.close(timeout=5)
        for process in self.processes:
            process.end()
        self._threads.shutdown(cancel_futures=True)

    # processes ---------------------------------------------------------------------------------

    def start(self, command: list[str], **env: str) -> Process:
        """Start a Python process."""
        process = Process([sys.executable, *command], self.new_path("log"), {**self.env, **env}, self.new_path())
        self.processes.append(process)
        return process

    def start_scheduler(self) -> str:
        """Start a scheduler; return its address once it is there."""
        self.file = self.new_path("scheduler.json")
        command = ["-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", self.file]
        self.scheduler = self.start([*command, "--no-dashboard", "--dashboard-address", ":0"])
        written = lambda: os.path.exists(self.file) and Path(self.file).read_text().endswith("}")  # noqa: E731
        until(lambda: written() or self.scheduler.code is not None, "a scheduler's file")
        assert self.scheduler.code is None, self.scheduler.output
        self.address = str(json.loads(Path(self.file).read_text())["address"])
        return self.address

    def start_workers(self, count: int, threads: int = 1, nanny: bool = True, *more: str, **env: str) -> list[Process]:
        """Start workers that may use 2 GiB a thread."""
        command = ["-m", "dask", "worker", self.address, "--host", "127.0.0.1", "--nthreads", str(threads)]
        command += ["--nanny" if nanny else "--no-nanny", "--memory-limit", f"{2 * threads}GiB", "--no-dashboard"]
        command += ["--dashboard-address", ":0", "--death-timeout", str(SECONDS), *more]
        started = [self.start([*command, "--local-directory", self.new_path()], **env) for _ in range(count)]
        self.workers += started
        return started

    def connect(self) -> Client:
        """Make this process a client."""
        self.client = Client(self.address, timeout=SECONDS, set_as_default=False)
        return self.client

    def ready(self, count: int) -> Fleet:
        """Wait until there are so many workers, no more and no fewer, and forget faults planned before."""
        self.faults.plan()
        until(lambda: len(self.client.nthreads()) == count, f"{count} workers")
        return self

    def pids(self) -> dict[str, int]:
        """Return the processes of the workers by their addresses."""
        return self.client.run(os.getpid)

    # runs --------------------------------------------------------------------------------------

    def drive(self, config: Config) -> Process:
        """Run the command line."""
        file = self.new_path("run.yaml")
        Path(file).write_text(yaml.safe_dump(config.model_dump()))
        return self.start([str(HOOKS), "run", file])

    def begin(self, config: Config, **options: Any) -> Future:
        """Run in a thread, on this cluster."""
        return self._threads.submit(run, config, client=self.client, **options)


@contextlib.contextmanager
def fleet(
    new_path: Callable[[str], str], workers: int = 2, threads: int = 1, nanny: bool = True, **config: Any
) -> Iterator[Fleet]:
    """Start a scheduler and workers, and connect to them."""
    with Fleet(new_path, **config) as started:
        started.start_scheduler()
        started.start_workers(workers, threads, nanny)
        started.connect()
        started.ready(workers)
        yield started
