"""Handles, by which a program follows a run that a cluster drives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from dumap.engine import submission as sent
from dumap.engine.connect import secede_while_waiting
from dumap.engine.scheduling import SchedulingOptions
from dumap.engine.submission import DRIVER_DIED_ERROR, Submission
from dumap.errors import CancelledError, ClusterError, ConfigError
from dumap.recipe.locations import with_normalized_locations
from dumap.recipe.observers import CallbackObserver
from dumap.recipe.status import status
from dumap.recipe.submitted_run import EventReplay, SubmittedRun
from dumap.show.result import Result
from dumap.store import Run
from dumap.store.disk import normalize

if TYPE_CHECKING:
    from distributed import Client

    from dumap.config import Config
    from dumap.engine import Observer

POLL_SECONDS = 0.5
"""Seconds between two checks whether a run has ended, while a program waits for it."""
STATES = {"finished": "done", "error": "failed", "cancelled": "cancelled", "lost": "failed"}
"""The state of a driver's task, by Dask's name for the state."""


class Handle:
    """A run that a cluster drives: what `dumap.submit` and `dumap.attach` return.

    The program may end; `dumap.attach` finds the run again. With an asynchronous client each method returns an
    awaitable. `await handle` waits for the result with either kind of client.

    Attributes
    ----------
    output : str
        Where the run is stored.

    Examples
    --------
    >>> import dumap
    >>> from dask.distributed import Client
    >>> with Client(processes=False, n_workers=1, dashboard_address=":0") as client:
    ...     handle = dumap.submit("DATA.zarr", client, output="HANDLED.zarr", n_epochs=5)
    ...     result = handle.result()
    ...     handle.status()["task"], handle.progress()["stages"][-1]
    ('done', 'quality')
    """

    def __init__(self, client: Client, submission: Submission, begun: Awaitable[Submission] | None = None) -> None:
        self._client, self._submission, self._begun = client, submission, begun
        self.output = submission.output

    def __repr__(self) -> str:
        return f"<dumap.Handle {self.output}>"

    def _sync(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Return the result of a coroutine; with an asynchronous client, a task."""
        return self._client.sync(call)

    async def _published(self) -> Submission:
        if self._begun is not None:
            self._submission = await self._begun
        return self._submission

    # state of the run -----------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return the run's status.

        Returns
        -------
        dict
            The result of `dumap.status`, if this process can read the run, and 'task', the state of the driver:
            waiting, running, done, failed or cancelled.
        """
        state: dict[str, Any] = self._sync(self._status)
        return state

    async def _status(self) -> dict[str, Any]:
        submission = await self._published()
        await sent.wait_for_end(submission)
        events = await sent.read_events(self._client, submission)
        task = STATES.get(submission.future.status or "lost")
        if task == "failed" and isinstance(await self._error(), CancelledError):
            task = "cancelled"
        if task is None:
            task = "running" if any(event["event"] == "driver" for _, event in events) else "waiting"
        run_status = await asyncio.to_thread(_seen, self.output)
        return {**run_status, "task": task}

    def progress(self) -> dict[str, Any]:
        """Return the run's progress.

        Returns
        -------
        dict
            'stage', the name of the running stage or None; 'done' and 'total', the steps of this stage; 'stages', the
            stages that were finished since the run was submitted; 'notes', messages of the run.
        """
        state: dict[str, Any] = self._sync(self._progress)
        return state

    async def _progress(self) -> dict[str, Any]:
        events = await sent.read_events(self._client, await self._published())
        state: dict[str, Any] = {"stage": None, "done": 0.0, "total": 0.0, "stages": [], "notes": []}
        for _, event in events:
            if event["event"] == "driver":
                state |= {"stage": None, "done": 0.0, "total": 0.0}
            elif event["event"] == "started":
                state |= {"stage": event["stage"], "done": 0.0, "total": 0.0}
            elif event["event"] == "advanced":
                state |= {"done": event["done"], "total": event["total"]}
            elif event["event"] == "finished":
                state |= {"stage": None, "done": 0.0, "total": 0.0}
                state["stages"].append(event["stage"])
            elif event["event"] == "note":
                state["notes"].append(event["message"])
        return state

    # control of the run ----------------------------------------------------------------------

    def cancel(self) -> None:
        """End the run. Committed parts are kept, and `run` or `submit` goes on from them.

        The run ends within seconds. `result` then raises `CancelledError`.
        """
        done: None = self._sync(self._cancel)
        return done

    async def _cancel(self) -> None:
        await sent.cancel_driver(self._client, await self._published())

    def result(self, timeout: float | None = None, on_progress: Any = None) -> Result:
        """Wait for the run, and return its result.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; by default without a limit.
        on_progress : Observer or callable, optional
            Receives the run's progress, as in `dumap.run`. It is not available with an asynchronous client.

        Returns
        -------
        Result

        Raises
        ------
        DumapError
            The run's own error, with its `exit_code`; `CancelledError` if the run was cancelled; `ClusterError` if its
            driver could not go on.
        TimeoutError
            The run is not done yet.
        """
        if self._client.asynchronous:
            return self._wait(timeout)
        with secede_while_waiting():  # the driver may need the thread
            if on_progress is None:
                return self._wait(timeout)
            with CallbackObserver(on_progress) as observer:
                return self._follow(timeout, observer)

    def _wait(self, timeout: float | None) -> Result:
        run_result: Result = self._sync(lambda: self._result(timeout))
        return run_result

    def _follow(self, timeout: float | None, observer: Observer) -> Result:
        """Wait for the run, and report its progress to an observer in this thread."""
        deadline, last_time, replayed = time.monotonic() + (timeout or 0.0), 0.0, EventReplay(observer)
        while True:
            late = timeout is not None and time.monotonic() >= deadline
            ended = self._client.sync(self._ended, POLL_SECONDS)
            for when, event in self._client.sync(sent.read_events, self._client, self._submission, last_time):
                replayed.tell(event)
                last_time = when
            if ended or late:
                return self._wait(None if ended else 0.0)

    async def _ended(self, seconds: float) -> bool:
        await sent.wait_for_end(self._submission, seconds)
        return self._submission.future.status != "pending"

    async def _error(self) -> Exception | None:
        """Return the error of the driver as the program sees it, or None."""
        future = self._submission.future
        if future.status not in ("error", "cancelled", "lost"):
            return None
        error = await future.exception() if future.status == "error" else None
        if error is None:
            return CancelledError(f"the driver of {self.output} was cancelled, or is gone with its scheduler")
        if isinstance(error, (DRIVER_DIED_ERROR, ImportError)):
            return ClusterError(
                f"the driver of {self.output} cannot go on ({type(error).__name__}: {error}): workers must have this "
                f"dumap, and memory; what is committed is kept"
            )
        return error

    async def _result(self, timeout: float | None) -> Result:
        submission = await self._published()
        await sent.wait_for_end(submission, timeout)
        if submission.future.status == "pending":
            raise TimeoutError(f"the run of {self.output} is not done within {timeout} s; it goes on")
        if (error := await self._error()) is not None:
            raise error
        return Result(self.output, await submission.future)

    def __await__(self) -> Generator[Any, None, Result]:
        if self._client.asynchronous:
            return self._result(None).__await__()
        return asyncio.to_thread(self._wait, None).__await__()


def begin(client: Client, config: Config, parent: str | None, force: bool) -> Handle:
    """Submit a run to a cluster, which drives it.

    Raises
    ------
    ConfigError
        The configuration asks for another engine.
    LockError
        The cluster drives the run already, with other settings.
    """
    if config.cluster.engine == "local":
        raise ConfigError("cluster.engine = 'local' runs in this process: set it to auto, or call dumap.run")
    config = with_normalized_locations(config, parent)
    work, scheduling = (
        SubmittedRun(config, None if parent is None else normalize(parent), force),
        SchedulingOptions.from_config(config.cluster),
    )
    make = partial(sent.send_driver, client, work, config.output, work.digest(), scheduling)
    if client.asynchronous:
        submission = make()
        return Handle(client, submission, asyncio.ensure_future(sent.publish_or_cancel(client, submission)))
    return Handle(client, client.sync(sent.send_once, client, make, config.output, work.digest()))


def attach(client: Client, output: str) -> Any:
    """Find a run that a cluster drives. With an asynchronous client, an awaitable of the handle is returned.

    Raises
    ------
    ClusterError
        The cluster drives no such run.
    """
    place = normalize(output)

    async def find_handle() -> Handle:
        submission = await sent.find_driver(client, place)
        if submission is None:
            raise ClusterError(f"the cluster drives no run of {place}: submit it")
        return Handle(client, submission)

    return client.sync(find_handle)


def _seen(output: str) -> dict[str, Any]:
    """Return a run's status, or 'partial' if this process cannot read the run."""
    if not Run(output, read_only=True).exists():
        return {"output": output, "state": "partial", "stages": []}
    return status(output)
