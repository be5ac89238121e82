"""Provenance: the versions and processors that made each stage.

A stage that has committed parts and is not done continues only with the same versions and processors, unless forced.
For a finished stage they are recorded, but nothing depends on them.
"""

from __future__ import annotations

import contextlib
from typing import Any

from dumap.config import describe_differences
from dumap.engine import Engine
from dumap.errors import DamageError, RunMismatchError
from dumap.recipe.stage_names import DONE
from dumap.stages import Recipe
from dumap.store import IDENTITY, Run

PROVENANCE_KEYS = ("versions", "cpus")
"""The attributes that record it."""


def engine_provenance(engine: Engine) -> dict[str, Any]:
    """Return the versions and processors of an engine's workers."""
    return {"versions": engine.versions, "cpus": engine.cpus}


def _provenance_part(stage: str) -> str:
    """Return the name of the part that records the versions and processors that began a stage."""
    return f"began-{stage}"


def initial_provenance(run: Run, stage: str) -> dict[str, Any]:
    """Return the versions and processors that began a stage; those that began the run if none are recorded."""
    name, record = _provenance_part(stage), run.attributes
    if run.is_committed(IDENTITY, name):
        with contextlib.suppress(DamageError):  # 'dumap verify' reports it; the stage's parts are not affected
            record = run.part_facts(IDENTITY, name)
    return {key: record.get(key, []) for key in PROVENANCE_KEYS}


def half_done_stages(run: Run, recipe: Recipe) -> list[str]:
    """List the stages that have committed parts but are not done."""
    return [
        stage.name for stage in recipe if not run.is_committed(DONE, stage.name) and run.committed_parts(stage.name)
    ]


def required_provenance(run: Run, recipe: Recipe) -> dict[str, Any]:
    """Return the versions and processors that workers should have: those of a half-done stage, else of the run."""
    stages = half_done_stages(run, recipe)
    return initial_provenance(run, stages[0]) if stages else run.attributes


def check_provenance(run: Run, recipe: Recipe, engine: Engine, force: bool) -> None:
    """Refuse to continue a half-done stage with other versions or on other processors, unless forced."""
    for stage in () if force else half_done_stages(run, recipe):
        _check_stage_provenance(run, stage, engine)


def _check_stage_provenance(run: Run, stage: str, engine: Engine) -> None:
    """Raise RunMismatchError if an engine has other versions or processors than those that began a stage."""
    recorded, current = initial_provenance(run, stage), engine_provenance(engine)
    changes = describe_differences(recorded["versions"], current["versions"])
    if not set(current["cpus"]) <= set(recorded["cpus"]):
        changes.append(f"processors: {', '.join(recorded['cpus'])} -> {', '.join(current['cpus'])}")
    if changes:
        raise RunMismatchError(
            f"{run.location}: stage {stage} is half done, with other versions or processors:\n  "
            + "\n  ".join(changes)
            + "\nUse the old ones, name another output, or go on with --force"
        )


def begin_stage(run: Run, stage: str, engine: Engine, force: bool) -> None:
    """Record the versions and processors that begin a stage; if it has parts, refuse others unless forced."""
    if run.committed_parts(stage):
        if not force:
            _check_stage_provenance(run, stage, engine)
    elif initial_provenance(run, stage) != (current := engine_provenance(engine)):
        run.uncommit(IDENTITY, _provenance_part(stage))
        with run.part(IDENTITY, _provenance_part(stage)) as out:
            out.attributes |= current


def final_provenance(run: Run, stage: str, engine: Engine) -> dict[str, Any]:
    """Return the versions and processors that finished a stage, and those that began the stage if they differ."""
    current, initial = engine_provenance(engine), initial_provenance(run, stage)
    return current if initial == current else {**current, "begun_with": initial}
