"""A run that a task drives: the function that is sent to the cluster, and the events that it sends back."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dumap.config import Config
from dumap.engine import Observer
from dumap.json_values import to_json
from dumap.recipe import pipeline
from dumap.recipe.observers import LogObserver

if TYPE_CHECKING:
    from distributed import Client

EVENT_SECONDS = 1.0
"""Seconds between two events about a stage's progress, at least."""


class EventObserver(LogObserver):
    """An observer that sends each call as an event, and also logs it.

    An event is a dict of plain values: 'event' is the name of the method, and the other keys are its arguments.
    """

    def __init__(self, send_event: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._send_event, self._last_sent = send_event, float("-inf")

    def note(self, message: str) -> None:
        """Send a message."""
        super().note(message)
        self._send_event({"event": "note", "message": message})

    def started(self, stage: str, projected_bytes: int) -> None:
        """Send that a stage begins."""
        super().started(stage, projected_bytes)
        self._last_sent = float("-inf")
        self._send_event({"event": "started", "stage": stage, "projected_bytes": int(projected_bytes)})

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Send a stage's progress, at most every `EVENT_SECONDS` and when a step ends."""
        super().advanced(stage, done, total)
        if time.monotonic() - self._last_sent >= EVENT_SECONDS or done >= total:
            self._last_sent = time.monotonic()
            self._send_event({"event": "advanced", "stage": stage, "done": float(done), "total": float(total)})

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Send a finished stage's time, memory and facts."""
        super().finished(stage, seconds, projected_bytes, peak_bytes, facts)
        usage = {"seconds": float(seconds), "projected_bytes": int(projected_bytes), "peak_bytes": int(peak_bytes)}
        self._send_event({"event": "finished", "stage": stage, **usage, "facts": json.loads(to_json(facts))})


class EventReplay:
    """Calls an observer for events. If the event that a stage began was missed, `started` is called all the same."""

    def __init__(self, observer: Observer) -> None:
        self._observer, self._running_stage = observer, ""

    def replay(self, event: dict[str, Any]) -> None:
        """Call the observer for one event, if the event names one of its methods."""
        arguments = {name: value for name, value in event.items() if name != "worker"}  # Dask adds 'worker'
        name = arguments.pop("event")
        if name in ("advanced", "finished") and arguments["stage"] != self._running_stage:
            self._observer.started(arguments["stage"], arguments.get("projected_bytes", 0))
        if name in ("note", "started", "advanced", "finished"):
            getattr(self._observer, name)(**arguments)
        if name != "note":
            self._running_stage = arguments.get("stage", "") if name in ("started", "advanced") else ""


@dataclass(frozen=True)
class SubmittedRun:
    """A run to be driven by a task; see `dumap.engine.submission.DriverFunction`."""

    config: Config
    parent: str | None = None
    force: bool = False

    def digest(self) -> str:
        """Return the digest of the configuration and the arguments."""
        values = [self.config.model_dump(mode="json"), self.parent, self.force]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def __call__(self, client: Client, send_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Run all stages; return the run's status as plain values."""
        status = pipeline.run(self.config, client, EventObserver(send_event), self.force, self.parent)
        plain: dict[str, Any] = json.loads(to_json(status))
        return plain
