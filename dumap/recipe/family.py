"""The parents and the children of runs, and the stages that a run inherits."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable

from dumap.errors import DamageError, StorageError
from dumap.recipe.stage_names import DONE
from dumap.store import IDENTITY, INHERITED, Run, absolute_location, relative_location

CHILD = "child"
"""Kind of the identity parts that name the children of a run."""


def parent_of(run: Run) -> str | None:
    """Return the location of a run's parent; None if it has none."""
    relative = run.attributes.get("parent")
    return absolute_location(relative, run.location) if isinstance(relative, str) else None


def children_of(run: Run) -> list[str]:
    """List the locations of the children that a run knows; the children may have been deleted."""
    children = []
    for name in run.committed_parts(IDENTITY):
        if name.startswith(f"{CHILD}-"):
            with contextlib.suppress(DamageError):  # 'dumap verify' reports it
                children.append(absolute_location(run.part_facts(IDENTITY, name)["run"], run.location))
    return sorted(children)


def inherited_stages(run: Run) -> dict[str, str]:
    """Return the location of the run that holds each inherited stage, by stage."""
    origins = {}
    for stage in run.committed_parts(DONE):
        with contextlib.suppress(DamageError):  # of a manifest: the pipeline finds it when it reaches the stage
            if isinstance(relative := run.part_facts(DONE, stage).get(INHERITED), str):
                origins[stage] = absolute_location(relative, run.location)
    return origins


def register_child(parent: str, child: str, log: Callable[[str], None]) -> None:
    """Record in a parent that it has a child, which its status then lists; call `log` if that cannot be written."""
    run, name = Run(parent, inherited={}), f"{CHILD}-{hashlib.sha256(child.encode()).hexdigest()[:16]}"
    if run.is_committed(IDENTITY, name):
        return
    try:
        with run.part(IDENTITY, name) as out:
            out.attributes["run"] = relative_location(child, parent)
    except StorageError as error:
        log(f"{error}; so its status does not list {child}")
