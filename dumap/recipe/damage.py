"""Finds damaged parts and uncommits them, so that they are made again. Removes objects that no manifest names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from dumap.errors import DamageError, LockError, StorageError
from dumap.recipe.identity import missing_identity_parts
from dumap.recipe.lineage import lost_stages
from dumap.recipe.observers import LogObserver
from dumap.recipe.stage_names import ALL_STAGES, DONE, RUN_KEYS
from dumap.recipe.work import drop_damaged_copies
from dumap.store import (
    IDENTITY,
    INHERITED,
    LOCKS,
    Lock,
    Run,
    internal_location,
    manifest_key,
    wait_for_driver_end,
    work_location,
)


def uncommit_part(run: Run, stage: str, part: str) -> None:
    """Remove the manifests of a part and of its finished stage, but no other objects. Both are then made again."""
    run.uncommit(stage, part)
    if stage in ALL_STAGES:
        run.uncommit(DONE, stage)


def verify(
    location: str, log: Callable[[str], None] | None = None, should_repair: bool = False
) -> list[tuple[str, str, str]]:
    """Check every committed object of a run against its digest.

    Parameters
    ----------
    location : str
    log : callable, optional
        Called with messages for people.
    should_repair : bool
        Hold the run's lock during the check, and uncommit damaged parts, so that the next run makes exactly these parts
        again. A run that cannot be written to is only read.

    Returns
    -------
    list of tuple of str
        Stage, part and key of each damaged object. Stage and part are empty for objects of the whole run, and for an
        inherited stage that the other run no longer holds unchanged.

    Raises
    ------
    LockError
        A driver holds the lock. Objects that it replaces would look damaged.
    """
    log = log or LogObserver().note
    if (work_place := work_location(location)) is not None:
        return verify(internal_location(location), log, should_repair) + drop_damaged_copies(
            work_place, location, should_repair
        )
    store = Run(location, read_only=True, inherited={})
    if not store.exists():
        raise StorageError(f"{store.location} holds no run")
    with contextlib.suppress(DamageError):  # the check below finds this damage
        store.attributes  # noqa: B018  (raises an error unless it is a run)
    lost = [("", "", f"{origin}: stage {stage}") for stage, origin in lost_stages(store)]
    if lost:
        log(f"{store.location} reads stages of other runs that are not there as they were: make them there again")
    if should_repair:
        return _repair_run(Run(location, inherited={}), log) + lost
    terms = store.list_terms()
    if terms:
        wait_for_driver_end(store, terms[-1], log, "looking at what it left")
    damaged = _find_damage(store)
    if damaged and store.list_terms() != terms:
        raise LockError(f"{store.location}: a driver began to work on it meanwhile; verify again once it is done")
    return damaged + lost


def _repair_run(store: Run, log: Callable[[str], None]) -> list[tuple[str, str, str]]:
    """List and uncommit damaged parts; if the lock cannot be written, only list them."""
    store.refuse_linked_folders(RUN_KEYS)
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(Lock(store, log))
        except StorageError as error:
            log(f"{error}; it is read without its lock, and stays as it is")
            return _find_damage(Run(store.location, read_only=True, inherited={}))
        damaged = _find_damage(store)
        if damaged:
            _uncommit_damaged(store, damaged)
            log(f"the next 'dumap run' into {store.location} makes exactly that again")
        return damaged


def _find_damage(store: Run) -> list[tuple[str, str, str]]:
    """List the damaged and the missing objects of a run, in the form of `verify`."""
    damaged = list(store.find_damaged(RUN_KEYS.groups))
    damaged_stages = {part for stage, part, _ in damaged if stage == DONE}
    for stage in ALL_STAGES:
        is_committed = stage not in damaged_stages and store.is_committed(DONE, stage)
        if is_committed and INHERITED not in store.part_facts(DONE, stage):
            missing_parts = set(store.part_facts(DONE, stage)["parts"]) - set(store.committed_parts(stage))
            damaged += [(stage, part, manifest_key(stage, part)) for part in sorted(missing_parts)]
    return damaged + [(IDENTITY, part, manifest_key(IDENTITY, part)) for part in missing_identity_parts(store)]


def uncommit_damage(location: str, damaged: list[tuple[str, str, str]], log: Callable[[str], None]) -> None:
    """Uncommit damaged parts, so that the next run makes exactly these parts again.

    Parameters
    ----------
    location : str
    damaged : list of tuple of str
        The result of `verify`.
    log : callable
        Called with messages for people.

    Raises
    ------
    LockError
        A driver holds the lock.
    """
    store = Run(internal_location(location), inherited={})
    store.refuse_linked_folders(RUN_KEYS)
    with Lock(store, log):
        _uncommit_damaged(store, damaged)


def _uncommit_damaged(store: Run, damaged: list[tuple[str, str, str]]) -> None:
    """Uncommit damaged parts, remove damaged locks, and write the group's metadata again."""
    for stage, part in dict.fromkeys((stage, part) for stage, part, _ in damaged if stage):
        uncommit_part(store, stage, part)
    for _, _, key in damaged:
        if key.startswith(f"{LOCKS}/"):
            store.delete(key)
    store.create(store.attributes)


def clean(location: str, log: Callable[[str], None], is_dry_run: bool = False) -> tuple[list[str], list[str]]:
    """Remove dumap's objects that no manifest names: leftovers of tasks that died, failed or committed second.

    Parameters
    ----------
    location : str
    log : callable
        Called with messages for people.
    is_dry_run : bool
        Remove nothing.

    Returns
    -------
    leftovers, foreign : list of str
        The keys of the leftovers, and the keys of other programs, which are not removed.

    Raises
    ------
    LockError
        A driver holds the lock. No manifest names the objects of its running tasks yet.
    """
    location = internal_location(location)
    store = Run(location, read_only=True, inherited={})
    store.attributes  # noqa: B018  (raises an error unless it is a run)
    if is_dry_run:
        return store.find_unnamed_keys(RUN_KEYS)
    store = Run(location, inherited={})
    store.refuse_linked_folders(RUN_KEYS)
    with Lock(store, log):
        leftovers, foreign = store.find_unnamed_keys(RUN_KEYS)
        store.delete_keys(leftovers)
        store.delete_empty_folders(RUN_KEYS, leftovers)
        with contextlib.suppress(DamageError):  # the next run repairs it
            store.update_metadata()
    return leftovers, foreign
