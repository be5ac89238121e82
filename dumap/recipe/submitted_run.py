"""A run as a task drives it: what goes there, and what it tells."""

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
from dumap.recipe.observers import Logged

if TYPE_CHECKING:
    from distributed import Client

TOLD_SECONDS = 1.0
"""It is told how far a stage is at most this often."""


class EventObserver(Logged):
    """An observer that sends what it is told as events, plain values each, and logs it where it is.

    An event has 'event', the name of an observer's method, and that method's arguments by their names.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._tell, self._told = tell, float("-inf")

    def note(self, message: str) -> None:
        """Tell a line."""
        super().note(message)
        self._tell({"event": "note", "message": message})

    def started(self, stage: str, projected_bytes: int) -> None:
        """Tell that a stage begins."""
        super().started(stage, projected_bytes)
        self._told = float("-inf")
        self._tell({"event": "started", "stage": stage, "projected_bytes": int(projected_bytes)})

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Tell how far a stage is, now and then."""
        super().advanced(stage, done, total)
        if time.monotonic() - self._told >= TOLD_SECONDS or done >= total:
            self._told = time.monotonic()
            self._tell({"event": "advanced", "stage": stage, "done": float(done), "total": float(total)})

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Tell what a stage took and found."""
        super().finished(stage, seconds, projected_bytes, peak_bytes, facts)
        took = {"seconds": float(seconds), "projected_bytes": int(projected_bytes), "peak_bytes": int(peak_bytes)}
        self._tell({"event": "finished", "stage": stage, **took, "facts": json.loads(to_json(facts))})


class Replay:
    """Tells an observer what events say; of a stage whose beginning was not heard, that it begins."""

    def __init__(self, observer: Observer) -> None:
        self._observer, self._under_way = observer, ""

    def tell(self, event: dict[str, Any]) -> None:
        """Tell what one event says, if it is of a run."""
        said = {name: value for name, value in event.items() if name != "worker"}  # which Dask adds
        name = said.pop("event")
        if name in ("advanced", "finished") and said["stage"] != self._under_way:
            self._observer.started(said["stage"], said.get("projected_bytes", 0))
        if name in ("note", "started", "advanced", "finished"):
            getattr(self._observer, name)(**said)
        if name != "note":
            self._under_way = said.get("stage", "") if name in ("started", "advanced") else ""


@dataclass(frozen=True)
class SubmittedRun:
    """A run to be driven elsewhere; see `dumap.engine.submission.DriverFunction`."""

    config: Config
    parent: str | None = None
    force: bool = False

    def digest(self) -> str:
        """Name all that is asked for."""
        asked = [self.config.model_dump(mode="json"), self.parent, self.force]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def __call__(self, client: Client, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Make the run; return its status as plain values."""
        found = pipeline.run(self.config, client, EventObserver(tell), self.force, self.parent)
        plain: dict[str, Any] = json.loads(to_json(found))
        return plain
