"""Drops parts that no stage needs any more. A dropped part that is needed later is made again."""

from __future__ import annotations

from collections.abc import Callable

from dumap.artifacts.audit import count_repairs
from dumap.artifacts.part_names import AUDIT, NEIGHBORS, kind_of
from dumap.config.values import format_bytes
from dumap.errors import DamageError, StorageError
from dumap.recipe.damage import uncommit_part
from dumap.recipe.stage_names import ALL_STAGES, DONE
from dumap.stages import Recipe
from dumap.store import Run


def is_outdated_list(repairs: int, stage: str, part: str) -> bool:
    """Return whether a part holds lists that a later repair has replaced."""
    if kind_of(part) != "lists" or stage not in (NEIGHBORS, AUDIT):
        return False
    return not part.startswith(f"lists-{repairs}-") if stage == AUDIT else repairs > 0


def find_droppable(run: Run, recipe: Recipe, keep: str) -> dict[str, list[str]]:
    """List the parts that no stage needs any more, by stage, also those that are dropped already.

    Parameters
    ----------
    run : Run
    recipe : tuple of Stage
    keep : str
        The setting `keep`.
    """
    if keep == "all":
        return {}
    done, repairs = {stage.name for stage in recipe if run.is_committed(DONE, stage.name)}, count_repairs(run)
    droppable_parts: dict[str, list[str]] = {}
    for stage in recipe:
        if (
            stage.name not in done or run.inherited_location(stage.name) is not None
        ):  # another run drops the parts that it holds
            continue
        later_stages = {other.name for other in recipe if stage.name in other.reads}
        for part in run.committed_parts(stage.name):
            readers = stage.temporary_kinds.get(kind_of(part))
            is_unneeded = readers is not None or keep == "results" or is_outdated_list(repairs, stage.name, part)
            if is_unneeded and done.issuperset(later_stages if readers is None else readers):
                droppable_parts.setdefault(stage.name, []).append(part)
    return droppable_parts


def check_not_dropped(stages: Recipe, run: Run) -> None:
    """Refuse to read stages of a run that kept only its results. One part of each kind is checked.

    Raises
    ------
    StorageError
    """
    repairs = count_repairs(run)
    for stage in stages:
        for kind, part in {kind_of(part): part for part in run.committed_parts(stage.name)}.items():
            is_temporary = kind in stage.temporary_kinds or is_outdated_list(repairs, stage.name, part)
            if not is_temporary and run.is_dropped(stage.name, part):
                raise StorageError(
                    f"{run.location} keeps its results alone (keep = results): stage {stage.name} cannot be read "
                    f"there. Name a parent that was run with keep = model or all, or leave the parent out"
                )


def drop_unneeded(run: Run, recipe: Recipe, keep: str, should_finish_drops: bool = False) -> int:
    """Drop the parts that no stage needs any more; return the bytes that were freed.

    With `should_finish_drops`, also delete the objects that remain because an earlier driver ended while it
    dropped parts.
    """
    freed_bytes = 0
    for stage, parts in find_droppable(run, recipe, keep).items():
        if should_finish_drops:
            run.finish_drops(stage)
        freed_bytes += run.drop_parts(stage, [part for part in parts if not run.is_dropped(stage, part)])
    return freed_bytes


def has_nothing_to_drop(run: Run, recipe: Recipe, keep: str) -> bool:
    """Return whether a run holds no part that the setting `keep` would drop, nor what is left of one that a driver was
    dropping as it ended; True if a manifest is damaged.
    """
    try:
        droppable = find_droppable(run, recipe, keep)
        if any(run.part_object_keys(stage, part) for stage, parts in droppable.items() for part in parts):
            return False
        return not any(run.leftovers_of_drops(stage) for stage in droppable)
    except DamageError:
        return True


def uncommit_dropped(run: Run, error: DamageError, log: Callable[[str], None]) -> bool:
    """If the missing part was dropped, uncommit all dropped parts of its kind, and return True.

    The pipeline then makes these parts again.
    """
    stage, kind = error.stage, kind_of(error.part)
    if stage not in ALL_STAGES or not run.is_committed(stage, error.part) or not run.is_dropped(stage, error.part):
        return False
    parts = [part for part in run.committed_parts(stage) if kind_of(part) == kind and run.is_dropped(stage, part)]
    total_bytes = sum(size for part in parts for size, _ in run.manifest(stage, part)["dropped"].values())
    log(f"{stage}: {len(parts)} parts '{kind}' of {format_bytes(total_bytes)} were dropped, are needed and made again")
    run.uncommit_parts(stage, parts)
    uncommit_part(run, stage, error.part)
    return True
