"""Maps tasks over the parts of a stage, on Dask.

The executor knows no stage: it maps a function over parts, keeps few of them in flight, measures each task's
peak memory on its worker, tries again what a dying worker dropped, and never waits without a bound.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from distributed import Client, wait
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from dumap.engine import worker
from dumap.engine.task_queue import Line
from dumap.engine.worker import WorkerFacts
from dumap.errors import ClusterError, DumapError, StorageError, TaskError
from dumap.stages import Job
from dumap.store import Run, probe_key

ATTEMPTS = 4
"""Deaths of workers that had nothing but one part to do, before the run gives up on it."""
NAMED = 8
"""Parts that an error names."""
POLL_SECONDS = 0.5


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
                asked = self.client.run(worker.facts, on_error="return")
                threads = self.client.nthreads()
            except Exception as error:
                raise ClusterError(f"{self._where()}: the workers could not be asked ({error})") from error
            answers = {who: said for who, said in asked.items() if not isinstance(said, CommClosedError)}  # has left
        own = worker.versions()
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
            answers = self.client.run(worker.see, output, key, on_error="return")
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
        return sorted({w.cpu for w in self.workers})

    @property
    def threads(self) -> int:
        """The threads of all workers."""
        return max(1, sum(w.threads for w in self.workers))

    @property
    def host_threads(self) -> int:
        """The threads of the workers on the host that has most."""
        totals: dict[str, int] = {}
        for one in self.workers:
            totals[one.host] = totals.get(one.host, 0) + one.threads
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

        self.client.subscribe_topic(worker.TOPIC, ticked)
        try:
            while finished < len(parts):
                while (part := line.take(len(flying))) is not None:
                    key = f"dumap-{task.__name__}-{part}-{time.time_ns():x}"
                    flying[self.client.submit(worker.execute, task, job, part, options, key=key, pure=False)] = part
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
                self.client.unsubscribe_topic(worker.TOPIC)

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
