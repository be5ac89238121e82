"""Provenance: the versions and processors with which stages are made.

A stage with committed parts that is not done goes on with the same alone, or by force. What made a finished stage is
recorded, and binds nothing.
"""

from __future__ import annotations

import contextlib
from typing import Any

from dumap.config import differences
from dumap.engine import Engine
from dumap.errors import DamageError, RunMismatchError
from dumap.recipe.stage_names import DONE
from dumap.stages import Recipe
from dumap.store import IDENTITY, Run

PROVENANCE = ("versions", "cpus")
"""Attributes that say it."""


def provenance_of(engine: Engine) -> dict[str, Any]:
    """Return the versions and processors of an engine's workers."""
    return {"versions": engine.versions, "cpus": engine.cpus}


def _name(stage: str) -> str:
    """Name the part that records with which versions and processors a stage was begun."""
    return f"began-{stage}"


def begun_with(run: Run, stage: str) -> dict[str, Any]:
    """Return the versions and processors with which a stage was begun; those of the run where nothing says so."""
    name, found = _name(stage), run.attributes
    if run.is_committed(IDENTITY, name):
        with contextlib.suppress(DamageError):  # which verify tells; the stage's parts are as good as they were
            found = run.summary(IDENTITY, name)
    return {what: found.get(what, []) for what in PROVENANCE}


def half_done(run: Run, recipe: Recipe) -> list[str]:
    """List the stages that have committed parts and are not done."""
    return [stage.name for stage in recipe if not run.is_committed(DONE, stage.name) and run.committed(stage.name)]


def record_of(run: Run, recipe: Recipe) -> dict[str, Any]:
    """Return the versions and processors that workers should have: those of a stage that is half done, if any."""
    stages = half_done(run, recipe)
    return begun_with(run, stages[0]) if stages else run.attributes


def check_provenance(run: Run, recipe: Recipe, engine: Engine, force: bool) -> None:
    """Refuse, unless forced, to go on with a stage with versions, or on processors, that it was not begun with."""
    for stage in () if force else half_done(run, recipe):
        _check(run, stage, engine)


def _check(run: Run, stage: str, engine: Engine) -> None:
    began, now = begun_with(run, stage), provenance_of(engine)
    differs = differences(began["versions"], now["versions"])
    if not set(now["cpus"]) <= set(began["cpus"]):
        differs.append(f"processors: {', '.join(began['cpus'])} -> {', '.join(now['cpus'])}")
    if differs:
        raise RunMismatchError(
            f"{run.location}: stage {stage} is half done, with other versions or processors:\n  "
            + "\n  ".join(differs)
            + "\nUse the old ones, name another output, or go on with --force"
        )


def begin_stage(run: Run, stage: str, engine: Engine, force: bool) -> None:
    """Record the versions and processors that begin a stage; if it has parts already, refuse others unless forced."""
    if run.committed(stage):
        if not force:
            _check(run, stage, engine)
    elif begun_with(run, stage) != (now := provenance_of(engine)):
        run.forget(IDENTITY, _name(stage))
        with run.part(IDENTITY, _name(stage)) as out:
            out.attributes |= now


def made_with(run: Run, stage: str, engine: Engine) -> dict[str, Any]:
    """Return the versions and processors that finished a stage, and those that began it if they differ."""
    now, began = provenance_of(engine), begun_with(run, stage)
    return now if began == now else {**now, "begun_with": began}
