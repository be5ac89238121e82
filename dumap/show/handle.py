"""Handles, by which a program follows a run that a cluster drives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from dumap.engine import submission as submissions
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
TASK_STATES = {"finished": "done", "error": "failed", "cancelled": "cancelled", "lost": "failed"}
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

    def __init__(
        self, client: Client, submission: Submission, pending_submission: Awaitable[Submission] | None = None
    ) -> None:
        self._client, self._submission, self._pending_submission = client, submission, pending_submission
        self.output = submission.output

    def __repr__(self) -> str:
        return f"<dumap.Handle {self.output}>"

    def _run_coroutine(self, coroutine_function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Return the result of a coroutine; with an asynchronous client, a task."""
        return self._client.sync(coroutine_function)

    async def _wait_for_submission(self) -> Submission:
        if self._pending_submission is not None:
            self._submission = await self._pending_submission
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
        state: dict[str, Any] = self._run_coroutine(self._status)
        return state

    async def _status(self) -> dict[str, Any]:
        submission = await self._wait_for_submission()
        await submissions.wait_for_end(submission)
        events = await submissions.read_events(self._client, submission)
        task_state = TASK_STATES.get(submission.future.status or "lost")
        if task_state == "failed" and isinstance(await self._read_error(), CancelledError):
            task_state = "cancelled"
        if task_state is None:
            task_state = "running" if any(event["event"] == "driver" for _, event in events) else "waiting"
        run_status = await asyncio.to_thread(_read_status, self.output)
        return {**run_status, "task": task_state}

    def progress(self) -> dict[str, Any]:
        """Return the run's progress.

        Returns
        -------
        dict
            'stage', the name of the running stage or None; 'done' and 'total', the steps of this stage; 'stages', the
            stages that were finished since the run was submitted; 'notes', messages of the run.
        """
        state: dict[str, Any] = self._run_coroutine(self._progress)
        return state

    async def _progress(self) -> dict[str, Any]:
        events = await submissions.read_events(self._client, await self._wait_for_submission())
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
        nothing: None = self._run_coroutine(self._cancel)
        return nothing

    async def _cancel(self) -> None:
        await submissions.cancel_driver(self._client, await self._wait_for_submission())

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
            return self._wait_for_result(timeout)
        with secede_while_waiting():  # the driver may need the thread
            if on_progress is None:
                return self._wait_for_result(timeout)
            with CallbackObserver(on_progress) as observer:
                return self._follow_progress(timeout, observer)

    def _wait_for_result(self, timeout: float | None) -> Result:
        result: Result = self._run_coroutine(lambda: self._result(timeout))
        return result

    def _follow_progress(self, timeout: float | None, observer: Observer) -> Result:
        """Wait for the run, and report its progress to an observer in this thread."""
        deadline, last_time, replay = time.monotonic() + (timeout or 0.0), 0.0, EventReplay(observer)
        while True:
            is_late = timeout is not None and time.monotonic() >= deadline
            has_ended = self._client.sync(self._has_ended, POLL_SECONDS)
            for event_time, event in self._client.sync(
                submissions.read_events, self._client, self._submission, last_time
            ):
                replay.replay(event)
                last_time = event_time
            if has_ended or is_late:
                return self._wait_for_result(None if has_ended else 0.0)

    async def _has_ended(self, seconds: float) -> bool:
        await submissions.wait_for_end(self._submission, seconds)
        return self._submission.future.status != "pending"

    async def _read_error(self) -> Exception | None:
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
        submission = await self._wait_for_submission()
        await submissions.wait_for_end(submission, timeout)
        if submission.future.status == "pending":
            raise TimeoutError(f"the run of {self.output} is not done within {timeout} s; it goes on")
        if (error := await self._read_error()) is not None:
            raise error
        return Result(self.output, await submission.future)

    def __await__(self) -> Generator[Any, None, Result]:
        if self._client.asynchronous:
            return self._result(None).__await__()
        return asyncio.to_thread(self._wait_for_result, None).__await__()


def submit_run(client: Client, config: Config, parent: str | None, force: bool) -> Handle:
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
    submitted_run, scheduling = (
        SubmittedRun(config, None if parent is None else normalize(parent), force),
        SchedulingOptions.from_config(config.cluster),
    )
    send = partial(submissions.send_driver, client, submitted_run, config.output, submitted_run.digest(), scheduling)
    if client.asynchronous:
        submission = send()
        return Handle(client, submission, asyncio.ensure_future(submissions.publish_or_cancel(client, submission)))
    return Handle(client, client.sync(submissions.send_once, client, send, config.output, submitted_run.digest()))


def attach(client: Client, output: str) -> Any:
    """Find a run that a cluster drives. With an asynchronous client, an awaitable of the handle is returned.

    Raises
    ------
    ClusterError
        The cluster drives no such run.
    """
    location = normalize(output)

    async def find_handle() -> Handle:
        submission = await submissions.find_driver(client, location)
        if submission is None:
            raise ClusterError(f"the cluster drives no run of {location}: submit it")
        return Handle(client, submission)

    return client.sync(find_handle)


def _read_status(output: str) -> dict[str, Any]:
    """Return a run's status, or 'partial' if this process cannot read the run."""
    if not Run(output, read_only=True).exists():
        return {"output": output, "state": "partial", "stages": []}
    return status(output)
