"""Parents and children of runs, and the stages that a run reads from others."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable

from dumap.errors import DamageError, StorageError
from dumap.recipe.stage_names import DONE
from dumap.store import IDENTITY, INHERITED, Run, absolute_location, relative_location

CHILD = "child"
"""What the parts are called by which a run knows its children."""


def parent_of(run: Run) -> str | None:
    """Return the location of a run's parent; None if it has none."""
    way = run.attributes.get("parent")
    return absolute_location(way, run.location) if isinstance(way, str) else None


def children_of(run: Run) -> list[str]:
    """List the runs that are known to read this one's stages; they may have been deleted."""
    found = []
    for name in run.committed(IDENTITY):
        if name.startswith(f"{CHILD}-"):
            with contextlib.suppress(DamageError):  # which verify tells
                found.append(absolute_location(run.summary(IDENTITY, name)["run"], run.location))
    return sorted(found)


def inherited_by(run: Run) -> dict[str, str]:
    """Return the locations of the runs that hold stages of this one, by stage."""
    found = {}
    for stage in run.committed(DONE):
        with contextlib.suppress(DamageError):  # of a manifest: the run finds it when it comes to the stage
            if isinstance(way := run.summary(DONE, stage).get(INHERITED), str):
                found[stage] = absolute_location(way, run.location)
    return found


def register(place: str, child: str, note: Callable[[str], None]) -> None:
    """Record in a run that it has a child, for its status to list; if it cannot be written to, say so."""
    run, name = Run(place, inherited={}), f"{CHILD}-{hashlib.sha256(child.encode()).hexdigest()[:16]}"
    if run.is_committed(IDENTITY, name):
        return
    try:
        with run.part(IDENTITY, name) as out:
            out.attributes["run"] = relative_location(child, place)
    except StorageError as error:
        note(f"{error}; so its status does not list {child}")
