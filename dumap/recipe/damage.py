"""Finds damaged parts and uncommits them, so that they are made again; removes objects that no manifest names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from dumap.errors import DamageError, LockError, StorageError
from dumap.recipe.identity import lost_identity
from dumap.recipe.lineage import lost_stages
from dumap.recipe.observers import Logged
from dumap.recipe.stage_names import ALL_STAGES, DONE, RUN_KEYS
from dumap.recipe.work import drop_damaged_copies
from dumap.store import IDENTITY, INHERITED, LOCKS, Lock, Run, await_end, internal_location, manifest_key, work_of


def forget(run: Run, stage: str, part: str) -> None:
    """Remove the manifests of a part and of its finished stage, so that both are made again; objects stay."""
    run.forget(stage, part)
    if stage in ALL_STAGES:
        run.forget(DONE, stage)


def verify(location: str, note: Callable[[str], None] | None = None, mend: bool = False) -> list[tuple[str, str, str]]:
    """Read every committed object against its checksum.

    Parameters
    ----------
    location : str
    note : callable, optional
        Called with messages for people.
    mend : bool
        Hold the run's lock meanwhile, and uncommit what is damaged, so that the next run makes exactly that again.
        What cannot be written to is only read.

    Returns
    -------
    list of tuple of str
        Stage, part and key of each damaged object; stage and part are empty for what belongs to the whole run, and for
        a stage that is read through another run and is not there any more as it was.

    Raises
    ------
    LockError
        A driver is at work: what it replaces would look like damage.
    """
    note = note or Logged().note
    if (work := work_of(location)) is not None:
        return verify(internal_location(location), note, mend) + drop_damaged_copies(work, location, mend)
    store = Run(location, read_only=True, inherited={})
    if not store.exists():
        raise StorageError(f"{store.location} holds no run")
    with contextlib.suppress(DamageError):  # which is found below
        store.attributes  # noqa: B018  refuses what is not a run
    lost = [("", "", f"{where}: stage {stage}") for stage, where in lost_stages(store)]
    if lost:
        note(f"{store.location} reads stages of other runs that are not there as they were: make them there again")
    if mend:
        return _mend(Run(location, inherited={}), note) + lost
    terms = store.terms()
    if terms:
        await_end(store, terms[-1], note, "looking at what it left")
    found = _damage(store)
    if found and store.terms() != terms:
        raise LockError(f"{store.location}: a driver began to work on it meanwhile; verify again once it is done")
    return found + lost


def _mend(store: Run, note: Callable[[str], None]) -> list[tuple[str, str, str]]:
    """Uncommit damaged parts; if the run cannot be locked, since nothing can be written, only list them."""
    store.refuse_links(RUN_KEYS)
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(Lock(store, note))
        except StorageError as error:
            note(f"{error}; it is read without its lock, and stays as it is")
            return _damage(Run(store.location, read_only=True, inherited={}))
        found = _damage(store)
        if found:
            _uncommit(store, found)
            note(f"the next 'dumap run' into {store.location} makes exactly that again")
        return found


def _damage(store: Run) -> list[tuple[str, str, str]]:
    """List what is damaged of a run, as `verify` does."""
    found = list(store.damaged(RUN_KEYS.groups))
    broken = {part for stage, part, _ in found if stage == DONE}
    for stage in ALL_STAGES:
        if stage not in broken and store.is_committed(DONE, stage) and INHERITED not in store.summary(DONE, stage):
            gone = set(store.summary(DONE, stage)["parts"]) - set(store.committed(stage))
            found += [(stage, part, manifest_key(stage, part)) for part in sorted(gone)]
    return found + [(IDENTITY, part, manifest_key(IDENTITY, part)) for part in lost_identity(store)]


def uncommit_damage(location: str, damaged: list[tuple[str, str, str]], note: Callable[[str], None]) -> None:
    """Uncommit what is damaged, so that the next run makes exactly that again.

    Parameters
    ----------
    location : str
    damaged : list of tuple of str
        As `verify` returns it.
    note : callable
        Called with messages for people.

    Raises
    ------
    LockError
        A driver is at work.
    """
    store = Run(internal_location(location), inherited={})
    store.refuse_links(RUN_KEYS)
    with Lock(store, note):
        _uncommit(store, damaged)


def _uncommit(store: Run, damaged: list[tuple[str, str, str]]) -> None:
    for stage, part in dict.fromkeys((stage, part) for stage, part, _ in damaged if stage):
        forget(store, stage, part)
    for _, _, key in damaged:
        if key.startswith(f"{LOCKS}/"):
            store.delete(key)
    store.create(store.attributes)


def clean(location: str, note: Callable[[str], None], look_only: bool = False) -> tuple[list[str], list[str]]:
    """Remove objects of dumap's that no manifest names: leftovers of tasks that died, failed or came second.

    Parameters
    ----------
    location : str
    note : callable
        Called with messages for people.
    look_only : bool
        Remove nothing.

    Returns
    -------
    tuple of list of str
        The keys of those objects, and of those that are not dumap's, which are left as they are.

    Raises
    ------
    LockError
        A driver is at work: its tasks' objects are not named yet.
    """
    location = internal_location(location)
    store = Run(location, read_only=True, inherited={})
    store.attributes  # noqa: B018  refuses what is not a run
    if look_only:
        return store.unnamed(RUN_KEYS)
    store = Run(location, inherited={})
    store.refuse_links(RUN_KEYS)
    with Lock(store, note):
        found, others = store.unnamed(RUN_KEYS)
        store.delete_all(found)
        store.prune(RUN_KEYS, found)
        with contextlib.suppress(DamageError):  # which is for the next run to make good
            store.renew()
    return found, others
