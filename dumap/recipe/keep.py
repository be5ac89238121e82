"""Drops parts that nothing needs any more, and has them made again if something needs them after all."""

from __future__ import annotations

from collections.abc import Callable

from dumap.artifacts.neighbors import repairs_made
from dumap.artifacts.part_names import AUDIT, NEIGHBORS, kind_of
from dumap.config.values import format_bytes
from dumap.errors import DamageError, StorageError
from dumap.recipe.damage import forget
from dumap.recipe.stage_names import ALL_STAGES, DONE
from dumap.stages import Recipe
from dumap.store import Run


def is_outdated(repairs: int, stage: str, part: str) -> bool:
    """Return whether a part holds lists that have been repaired since, so that later ones replace it."""
    if kind_of(part) != "lists" or stage not in (NEIGHBORS, AUDIT):
        return False
    return not part.startswith(f"lists-{repairs}-") if stage == AUDIT else repairs > 0


def droppable(run: Run, recipe: Recipe, keep: str) -> dict[str, list[str]]:
    """List the parts by stage that nothing needs any more, dropped already or not.

    Parameters
    ----------
    run : Run
    recipe : tuple of Stage
    keep : str
        As the setting.
    """
    if keep == "all":
        return {}
    done, repairs = {stage.name for stage in recipe if run.is_committed(DONE, stage.name)}, repairs_made(run)
    found: dict[str, list[str]] = {}
    for stage in recipe:
        if stage.name not in done or run.origin(stage.name) is not None:  # another run's, which drops its own
            continue
        later = {other.name for other in recipe if stage.name in other.reads}
        for part in run.committed(stage.name):
            temporary = stage.temporary.get(kind_of(part))
            needless = temporary is not None or keep == "results" or is_outdated(repairs, stage.name, part)
            if needless and done.issuperset(later if temporary is None else temporary):
                found.setdefault(stage.name, []).append(part)
    return found


def check_kept(stages: Recipe, run: Run) -> None:
    """Refuse to read stages of a run that kept nothing but its results; a part of each kind tells.

    Raises
    ------
    StorageError
    """
    repairs = repairs_made(run)
    for stage in stages:
        for kind, part in {kind_of(part): part for part in run.committed(stage.name)}.items():
            temporary = kind in stage.temporary or is_outdated(repairs, stage.name, part)
            if not temporary and run.is_dropped(stage.name, part):
                raise StorageError(
                    f"{run.location} keeps its results alone (keep = results): stage {stage.name} cannot be read "
                    f"there. Name a parent that was run with keep = model or all, or leave the parent out"
                )


def drop_needless(run: Run, recipe: Recipe, keep: str, finish: bool = False) -> int:
    """Drop the parts that nothing needs any more; return the bytes that were freed.

    With `finish`, what an earlier driver dropped halfway too.
    """
    freed = 0
    for stage, parts in droppable(run, recipe, keep).items():
        if finish:
            run.finish_drops(stage)
        freed += run.drop(stage, [part for part in parts if not run.is_dropped(stage, part)])
    return freed


def holds_nothing_needless(run: Run, recipe: Recipe, keep: str) -> bool:
    """Return whether a run holds no part that the setting `keep` would drop; damage is not looked for."""
    try:
        needless = droppable(run, recipe, keep)
        return not any(run.part_objects(stage, part) for stage, parts in needless.items() for part in parts)
    except DamageError:
        return True


def remake_dropped(run: Run, error: DamageError, note: Callable[[str], None]) -> bool:
    """If the missing part was dropped, uncommit all dropped parts of its kind, so that they are made again; return
    whether so.
    """
    stage, kind = error.stage, kind_of(error.part)
    if stage not in ALL_STAGES or not run.is_committed(stage, error.part) or not run.is_dropped(stage, error.part):
        return False
    parts = [part for part in run.committed(stage) if kind_of(part) == kind and run.is_dropped(stage, part)]
    size = sum(size for part in parts for size, _ in run.manifest(stage, part)["dropped"].values())
    note(f"{stage}: {len(parts)} parts '{kind}' of {format_bytes(size)} were dropped, are needed and made again")
    run.forget_all(stage, parts)
    forget(run, stage, error.part)
    return True
