"""Run tasks on Dask: an embedded cluster, one that is named, or a client handed over.

The executor knows no stage: it maps a function over parts, keeps few of them in flight, measures each task's
peak memory on its worker, tries again what a dying worker dropped, and never waits without a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import dask
import numba
import psutil
from distributed import Client, LocalCluster, Security, Worker, get_worker, wait
from distributed import comm as comms
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker
from llvmlite.binding import get_host_cpu_name
from threadpoolctl import threadpool_info

import dumap
from dumap.config import ClusterConfig, format_bytes
from dumap.engine import memory
from dumap.engine.task_queue import Line
from dumap.errors import ClusterError, ConfigError, DumapError, StorageError, TaskError
from dumap.kernels.threads import one_thread
from dumap.stages import Job
from dumap.store import Run, probe, probe_key, set_threads

ATTEMPTS = 4
"""Deaths of workers that had nothing but one part to do, before the run gives up on it."""
NAMED = 8
"""Parts that an error names."""
POLL_SECONDS = 0.5
SETTLING_SECONDS = 0.5
"""A worker that dies as soon as it is there may not be started again: its nanny is still waiting for it."""
TOPIC = "dumap"
LIBRARIES = ("numpy", "numba", "scipy", "scikit-learn", "pynndescent", "zarr")
"""Libraries on whose versions the answer may depend."""


class Observer(Protocol):
    """Who is told how a run goes on."""

    def started(self, stage: str, projected_bytes: int) -> None:
        """A stage has begun."""

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Some of the stage's current step is done."""

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """A stage is committed."""

    def note(self, message: str) -> None:
        """Something worth a line in the log."""


@dataclass(frozen=True)
class WorkerFacts:
    """What one worker says of itself."""

    address: str
    host: str
    threads: int
    memory_limit: int
    versions: dict[str, str]
    cpu: str


def versions() -> dict[str, str]:
    """Return the versions that an answer may depend on."""
    from importlib.metadata import version

    found = {"dumap": dumap.__version__, "python": platform.python_version(), "machine": platform.machine()}
    return found | {name: version(name) for name in LIBRARIES}


def cpu() -> str:
    """Name the processors that numba and the BLAS compute for: other ones may round otherwise."""
    blas = {pool["architecture"] for pool in threadpool_info() if "architecture" in pool}
    return "/".join([os.environ.get("NUMBA_CPU_NAME") or get_host_cpu_name(), *sorted(blas)])


@cache
def _met() -> float:
    """Return when this process was first asked for anything."""
    return time.monotonic()


def _facts(dask_worker: Worker) -> dict[str, Any]:
    _met()
    return {
        "memory_limit": dask_worker.memory_manager.memory_limit or 0,
        "versions": versions(),
        "cpu": cpu(),
    }


def _see(output: str, key: str) -> None:
    """Fail unless this worker sees an object that the client wrote, and may write as well."""
    run = Run(output)
    if run.get(key) is None:
        raise StorageError(f"it does not see {output} as this client does: name a shared folder or a URL")
    probe(output)


def _settle_in(worker: Worker) -> None:
    if worker.nanny is not None:
        time.sleep(max(0.0, _met() + SETTLING_SECONDS - time.monotonic()))


def execute(task: Callable[..., None], job: Job, part: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run one task on the worker: libraries on one thread, peak memory measured."""
    worker, last = get_worker(), 0.0
    _settle_in(worker)

    def tick(done: float, total: float) -> None:
        nonlocal last
        if time.monotonic() - last > 1.0:
            last = time.monotonic()
            worker.log_event(TOPIC, {"run": job.config.output, "part": part, "done": done, "total": total})

    numba.set_num_threads(1)
    set_threads(1)
    memory.reset_peak()
    start = time.perf_counter()
    with one_thread(), memory.reused():
        task(replace(job, tick=tick), part, **options)
    return {"peak_bytes": memory.peak(), "seconds": time.perf_counter() - start}


class Executor:
    """Maps tasks over parts on a Dask client.

    Parameters
    ----------
    client : distributed.Client
    timeout : float
        Seconds to wait for a cluster that has gone quiet.
    """

    def __init__(self, client: Client, timeout: float) -> None:
        self.client, self.timeout = client, timeout
        self.peak_bytes = 0
        self.workers: list[WorkerFacts] = []

    def preflight(self) -> None:
        """Wait for workers, and refuse those that cannot do the work.

        Raises
        ------
        ClusterError
            No worker in time, or dumap missing or of another version.
        """
        answers: dict[str, Any] = {}
        while not answers:
            try:
                self.client.wait_for_workers(1, timeout=self.timeout)
            except TimeoutError:
                raise ClusterError(
                    f"{self._where()}: no worker within {self.timeout:.0f} s; start workers, or raise cluster.timeout"
                ) from None
            try:
                asked = self.client.run(_facts, on_error="return")
                threads = self.client.nthreads()
            except Exception as error:
                raise ClusterError(f"{self._where()}: the workers could not be asked ({error})") from error
            answers = {who: said for who, said in asked.items() if not isinstance(said, CommClosedError)}  # has left
        own = versions()
        self.workers = []
        for address, answer in answers.items():
            if isinstance(answer, Exception):
                raise ClusterError(
                    f"worker {address} cannot run dumap ({type(answer).__name__}: {answer}): install "
                    f"dumap {own['dumap']} there"
                )
            if answer["versions"] != own:
                other = {k: v for k, v in answer["versions"].items() if own.get(k) != v}
                raise ClusterError(
                    f"worker {address} has other versions than this client: {other}, here "
                    f"{ {k: own.get(k) for k in other} }; install the same on both"
                )
            host = address.split("://")[-1].rsplit(":", 1)[0]
            self.workers.append(WorkerFacts(address, host, threads.get(address, 1), **answer))

    def check_sight(self, output: str) -> None:
        """Refuse workers that do not see the output, or cannot write to it.

        Raises
        ------
        ClusterError
        """
        run, key = Run(output), probe_key()
        run.put(key, b"seen")
        try:
            answers = self.client.run(_see, output, key, on_error="return")
        finally:
            run.delete(key)
        for address, answer in answers.items():
            if isinstance(answer, Exception) and not isinstance(answer, CommClosedError):  # it may have just left
                raise ClusterError(f"worker {address}: {answer}")

    def _where(self) -> str:
        scheduler = self.client.scheduler
        return f"the cluster at {scheduler.address if scheduler else 'an unknown address'}"

    @property
    def worker_memory(self) -> int:
        """The smallest worker's memory limit for one task, 0 where none has any."""
        limits = [w.memory_limit // max(1, w.threads) for w in self.workers if w.memory_limit]
        return min(limits, default=0)

    @property
    def cpus(self) -> list[str]:
        """The kinds of processors that the workers compute on."""
        return sorted({worker.cpu for worker in self.workers})

    @property
    def threads(self) -> int:
        """The threads of all workers."""
        return max(1, sum(worker.threads for worker in self.workers))

    @property
    def host_threads(self) -> int:
        """The threads of the workers on the host that has most."""
        totals: dict[str, int] = {}
        for worker in self.workers:
            totals[worker.host] = totals.get(worker.host, 0) + worker.threads
        return max(totals.values(), default=1)

    def map(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        advanced: Callable[[float, float], None],
    ) -> None:
        """Run `task(job, part, **options)` for every part.

        Raises
        ------
        DumapError
            The task's own error; `TaskError` for one from below, or for a part that kills its workers;
            `ClusterError` when the cluster is lost.
        """
        line = Line(parts, window=max(2, 2 * sum(w.threads for w in self.workers)))
        flying: dict[Any, str] = {}
        finished, quiet_since, single = 0, time.monotonic(), len(parts) == 1

        def ticked(event: Any) -> None:
            message = event[1] if isinstance(event, tuple) else event
            if single and message.get("run") == job.config.output:
                advanced(message["done"], message["total"])

        self.client.subscribe_topic(TOPIC, ticked)
        try:
            while finished < len(parts):
                while (part := line.take(len(flying))) is not None:
                    key = f"dumap-{task.__name__}-{part}-{time.time_ns():x}"
                    flying[self.client.submit(execute, task, job, part, options, key=key, pure=False)] = part
                try:
                    with self.client.as_current():
                        done = wait(list(flying), timeout=POLL_SECONDS, return_when="FIRST_COMPLETED").done
                except TimeoutError:
                    done = set()
                except Exception:  # some were cancelled with the scheduler: _alive decides
                    done = {future for future in flying if future.done()}
                names = f"{_title(task)} {_some([*flying.values(), *line.suspects])}"
                quiet_since = time.monotonic() if done else self._alive(quiet_since, names)
                for future in done:
                    died = self._settle(future, f"{_title(task)} {flying[future]}")
                    future.release()
                    part = flying.pop(future)
                    if died == 0:
                        finished += 1
                        advanced(finished, len(parts))
                    elif died is None:
                        self._alive(quiet_since, names)
                        line.put_back(part)
                    elif line.died(part, died) >= ATTEMPTS:
                        raise TaskError(
                            f"{_title(task)} {part}: its worker died {line.deaths[part]} times with nothing else to "
                            f"do; what is committed is kept. Look at the workers' logs: memory is the usual cause"
                        )
        finally:
            if self.client.status == "running":  # a client that lost its scheduler has nothing left to cancel
                for future in flying:
                    future.cancel()
                    future.release()
                self.client.unsubscribe_topic(TOPIC)

    def _settle(self, future: Any, name: str) -> int | None:
        """Take what became of a task: 0 where it is done, how many workers died with it, or None where it is lost."""
        if future.status == "finished":  # and so committed, even if what it measured is lost with its worker
            with contextlib.suppress(Exception):
                self.peak_bytes = max(self.peak_bytes, future.result(timeout=self.timeout)["peak_bytes"])
            return 0
        if future.status in ("cancelled", "lost"):
            return None
        error = future.exception()
        if isinstance(error, KilledWorker):
            return int(error.allowed_failures) + 1
        if isinstance(error, DumapError):
            raise error
        if isinstance(error, OSError):
            raise StorageError(f"{name}: {error}") from error
        raise TaskError(f"{name} failed: {type(error).__name__}: {error}") from error

    def _alive(self, quiet_since: float, names: str) -> float:
        """Fail once the scheduler or every worker has been gone for too long; return since when."""
        if self.client.status == "running":
            try:
                if self.client.nthreads(callback_timeout=self.timeout):
                    return time.monotonic()
            except (OSError, ValueError):
                pass
        if time.monotonic() - quiet_since > self.timeout or self.client.status == "closed":
            raise ClusterError(
                f"{self._where()} is lost: no scheduler or no worker for {self.timeout:.0f} s; on its way was {names}"
            )
        return quiet_since


def _title(task: Callable[..., None]) -> str:
    """Name a task's stage."""
    return task.__module__.split(".")[-1]


def _some(parts: Sequence[str]) -> str:
    """Name a few parts."""
    return ", ".join(parts[:NAMED]) + (f" and {len(parts) - NAMED} more" if len(parts) > NAMED else "")


def _embedded(cluster: ClusterConfig) -> LocalCluster:
    workers = cluster.workers or max(1, len(os.sched_getaffinity(0)))
    limit = cluster.memory_limit or int(psutil.virtual_memory().available * 0.9 / workers)
    pinned = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):  # every death comes back, to be judged
        try:
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=limit,
                dashboard_address=":0",
                silence_logs=50,
                env=pinned,
            )
        except (RuntimeError, OSError) as error:
            raise ClusterError(
                f"the embedded cluster cannot start ({type(error).__name__}: {error}): look at memory, and at the room "
                f"in Dask's temporary-directory"
            ) from error


def _knock(address: str, seconds: float) -> None:
    """Fail with TimeoutError unless the scheduler shakes hands in time: a client would wait without a bound."""

    async def shake() -> None:
        arguments = Security().get_connection_args("client")
        comm = await asyncio.wait_for(comms.connect(address, timeout=seconds, **arguments), seconds)
        await comm.close()

    with ThreadPoolExecutor(1) as apart:  # the caller may be inside an event loop of its own
        apart.submit(asyncio.run, shake()).result()


@contextlib.contextmanager
def connect(cluster: ClusterConfig, client: Client | None, observer: Observer) -> Iterator[Executor]:
    """Reach a cluster: the client given, the scheduler named, or an embedded one.

    Raises
    ------
    ClusterError
        Nothing answers within `cluster.timeout` seconds.
    """
    if client is not None:
        if client.asynchronous:
            raise ConfigError("the client is asynchronous: hand over a client made with asynchronous=False")
        yield Executor(client, cluster.timeout)
        return
    address = cluster.scheduler or (None if cluster.scheduler_file else dask.config.get("scheduler-address", None))
    with contextlib.ExitStack() as stack:
        if address is None and cluster.scheduler_file is None:
            local = stack.enter_context(_embedded(cluster))
            observer.note(
                f"embedded cluster: {len(local.workers)} worker processes of "
                f"{format_bytes(next(iter(local.workers.values())).memory_manager.memory_limit or 0)}"
            )
            yield Executor(stack.enter_context(Client(local)), cluster.timeout)
            return
        deadline = time.monotonic() + cluster.timeout
        if cluster.scheduler_file is not None:
            while not os.path.exists(cluster.scheduler_file):
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"cluster.scheduler_file: no {cluster.scheduler_file} within {cluster.timeout:.0f} s"
                    )
                time.sleep(0.2)
        try:
            if address is None:
                address = str(json.loads(Path(str(cluster.scheduler_file)).read_text())["address"])
            remaining = max(1.0, deadline - time.monotonic())
            _knock(address, remaining)
            reached = Client(address, timeout=remaining)
        except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise ClusterError(
                f"no scheduler answers at {cluster.scheduler_file or address} within {cluster.timeout:.0f} s "
                f"({type(error).__name__}: {error})"
            ) from error
        yield Executor(stack.enter_context(reached), cluster.timeout)
