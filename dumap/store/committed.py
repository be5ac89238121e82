"""Committed parts: their manifests, the terms under which these are written, and reading rows of parts."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from dumap.errors import DamageError, DroppedError, LockError, StorageError
from dumap.store.concurrent_reads import in_order
from dumap.store.manifests import (
    DONE,
    IDENTITY,
    INHERITED,
    LOCKS,
    MANIFESTS,
    MOST_BYTES,
    PART,
    Manifest,
    is_sound,
    manifest_key,
    part_key,
)
from dumap.store.objects import Objects, seal, unseal
from dumap.store.relative_paths import absolute_location
from dumap.store.stored_array import ChecksumError, StoredArray

MOST_LOCK_BYTES = 1 << 20
"""The most bytes of a lock; a longer file is not taken for one."""

READS_AT_ONCE = 8
"""Reads of a task that are under way at once in a bucket; on a local disk one follows another."""


def lock_key(term: int) -> str:
    """Name the lock of a term."""
    return f"{LOCKS}/{term:08d}.json"


class CommittedParts(Objects):
    """The parts of a run.

    Parameters
    ----------
    location : str
        A path or a URL.
    read_only : bool
    term : int, optional
        The term of the driver for which this is opened. Before each commit and removal it is checked that no other
        driver has taken over since.
    token : str, optional
        The token of the driver's lock: if the lock holds another, nothing is committed or removed either.
    inherited : mapping, optional
        Where the runs lie that hold stages of this one, by stage. [read from the manifests of finished stages]
    child : str, optional
        The run that reads this one: damage here is then an error that names both, and is not repaired.
    """

    def __init__(
        self,
        location: str,
        read_only: bool = False,
        term: int | None = None,
        token: str | None = None,
        inherited: Mapping[str, str] | None = None,
        child: str | None = None,
    ) -> None:
        super().__init__(location, read_only)
        self.term, self.token, self.inherited, self.child = term, token, inherited, child
        self._origins: dict[str, str | None] = {}
        self._others: dict[str, CommittedParts] = {}
        self._manifests: dict[tuple[str, str], Manifest] = {}
        self._stored: dict[tuple[str, str, str], list[tuple[str, int, StoredArray]]] = {}

    # other runs --------------------------------------------------------------------------------

    def owner(self, stage: str) -> CommittedParts:
        """Return the run that holds a stage's parts: this one, or the one from which this one has the stage."""
        where = self.origin(stage)
        if where is None:
            return self
        if where not in self._others:
            self._others[where] = type(self)(where, read_only=True, inherited={}, child=self.location)
        return self._others[where]

    def origin(self, stage: str) -> str | None:
        """Return where the run lies from which this one has a stage; None where it is its own."""
        if self.inherited is not None or stage in (DONE, IDENTITY):
            return (self.inherited or {}).get(stage)
        if stage not in self._origins:
            done = unseal(self.get(manifest_key(DONE, stage), MOST_BYTES) or b"")  # or none, or damaged: told elsewhere
            way = done["attributes"].get(INHERITED) if done is not None and is_sound(done) else None
            self._origins[stage] = absolute_location(way, self.location) if isinstance(way, str) else None
        return self._origins[stage]

    # manifests ---------------------------------------------------------------------------------

    def commit(self, stage: str, name: str, manifest: Manifest, durable: bool = True) -> None:
        """Commit a manifest unless the part has one; if `durable`, the objects that it names reach the disk before it
        does.
        """
        self._check_term()
        if durable:
            self.flush_folders(manifest["objects"])
        self.put_new(manifest_key(stage, name), seal({**manifest, "time": time.time()}), durable)
        self._manifests.pop((stage, name), None)

    def _check_term(self) -> None:
        """Fail where another driver took over, or the lock is not this driver's any more."""
        if self.term is None:
            return
        if self.size(lock_key(self.term + 1)) >= 0:
            raise LockError(f"{self.location}: another driver took this run over; nothing more was written by this one")
        if self.token is not None and self.holder(self.term).get("token") != self.token:
            raise LockError(
                f"{self.location}: this driver's lock {lock_key(self.term)} was removed or is another's; nothing more "
                f"was written by this one"
            )

    def lock(self, term: int) -> dict[str, Any] | None:
        """Read the lock of a term; None if there is none, or it is damaged."""
        return unseal(self.get(lock_key(term), MOST_LOCK_BYTES) or b"")

    def holder(self, term: int) -> dict[str, Any]:
        """Return the holder of a term, as far as it is known."""
        found = (self.lock(term) or {}).get("holder")
        return found if isinstance(found, dict) else {}

    def terms(self) -> list[int]:
        """List the terms of the run's drivers."""
        names = [name.removesuffix(".json") for name in self.names_below(LOCKS)]
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{8,}", name))

    def committed(self, stage: str) -> list[str]:
        """List a stage's committed parts."""
        names = self.owner(stage).names_below(f"{MANIFESTS}/{stage}")
        return [name.removesuffix(".json") for name in names if re.fullmatch(rf"{PART}\.json", name)]

    def is_committed(self, stage: str, name: str) -> bool:
        """Return whether a part is committed."""
        return self.owner(stage).size(manifest_key(stage, name)) >= 0

    def manifest(self, stage: str, name: str) -> Manifest:
        """Read a committed part's manifest and check it."""
        if (owner := self.owner(stage)) is not self:
            return owner.manifest(stage, name)
        if (stage, name) not in self._manifests:
            key = manifest_key(stage, name)
            manifest = unseal(self.get(key, MOST_BYTES) or b"")
            if manifest is None or not is_sound(manifest):
                raise self.damage(stage, name, key)
            self._manifests[stage, name] = manifest
        return self._manifests[stage, name]

    def summary(self, stage: str, name: str) -> dict[str, Any]:
        """Return the small facts that a part's task left in its manifest."""
        return self.manifest(stage, name)["attributes"]

    def summaries(self, stage: str, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the small facts of parts, in order."""
        return in_order((partial(self.summary, stage, name) for name in names), self._at_once(stage))

    def _at_once(self, stage: str) -> int:
        """Return how many reads of a stage's parts are under way at once."""
        return 1 if self.owner(stage).is_local else READS_AT_ONCE

    def discard(self, stage: str, name: str) -> None:
        """Remove a part as if it had never been: its manifest first, then its objects."""
        self.discard_all(stage, [name])

    def discard_all(self, stage: str, names: Sequence[str]) -> None:
        """Remove parts: their manifests first, then their objects."""
        objects = [key for name in names for key in self.part_objects(stage, name)]
        self.forget_all(stage, names)
        self.delete_all(objects)

    def part_objects(self, stage: str, name: str) -> list[str]:
        """Name the objects that hold a part's arrays, but no others that its manifest may name."""
        return self._own(stage, name, self.manifest(stage, name)["objects"])

    def _own(self, stage: str, name: str, objects: dict[str, list]) -> list[str]:
        """Return those objects whose names are a part's own."""
        attempt = self.manifest(stage, name)["attempt"]
        own = {part_key(stage, name, attempt, number) for number in range(len(objects))}
        return [key for key in objects if key in own]

    def is_dropped(self, stage: str, name: str) -> bool:
        """Return whether a committed part was dropped."""
        return "dropped" in self.manifest(stage, name)

    def drop(self, stage: str, names: Sequence[str]) -> int:
        """Delete the objects of parts, whose manifests stay and count as made; return the bytes that were freed.

        Their manifests say so, durably, before anything is removed, so that they stay dropped if this ends halfway.
        """
        self._check_term()
        sizes: dict[str, int] = {}
        dropped = {}
        for name in names:
            manifest, own = self.manifest(stage, name), self.part_objects(stage, name)
            if own:
                others = {key: value for key, value in manifest["objects"].items() if key not in own}
                dropped[name] = {**manifest, "arrays": {}, "objects": others}
                dropped[name]["dropped"] = {key: manifest["objects"][key] for key in own}
                sizes |= {key: manifest["objects"][key][0] for key in own}
        for name, manifest in dropped.items():
            self.put_part(manifest_key(stage, name), seal(manifest), durable=True)
            self._forget_cached(stage, name)
        self.flush_folders(manifest_key(stage, name) for name in dropped)
        self.delete_all(list(sizes))
        return sum(sizes.values())

    def finish_drops(self, stage: str) -> None:
        """Delete the objects that are left of dropped parts, if an earlier driver ended while dropping them."""
        self._check_term()
        left = []
        for name in self.committed(stage):
            left += self._own(stage, name, self.manifest(stage, name).get("dropped", {}))
        self.delete_all(left)

    def forget(self, stage: str, name: str) -> None:
        """Remove a part's manifest alone, readable or not, so that the part no longer counts; its objects stay."""
        self.forget_all(stage, [name])

    def forget_all(self, stage: str, names: Sequence[str]) -> None:
        """Remove parts' manifests, readable or not, so that the parts no longer count."""
        self._check_term()
        self.delete_all([manifest_key(stage, name) for name in names])
        for name in names:
            self._forget_cached(stage, name)

    def _forget_cached(self, stage: str, name: str) -> None:
        """Remove a part's manifest from this object's cache."""
        self._manifests.pop((stage, name), None)
        for known in [key for key in self._stored if key[:2] == (stage, name)]:
            del self._stored[known]

    def _pieces(self, stage: str, name: str, array: str) -> list[tuple[str, int, StoredArray]]:
        """Return where an array's pieces lie, and how."""
        if (stage, name, array) not in self._stored:
            if self.is_dropped(stage, name):
                raise DroppedError(f"{self.location}: {stage} {name} was dropped when nothing needed it", stage, name)
            pieces = self.manifest(stage, name)["arrays"][array]
            self._stored[stage, name, array] = [(key, at, StoredArray.parse(*layout)) for key, at, *layout in pieces]
        return self._stored[stage, name, array]

    def check_sizes(self, stage: str, name: str, below: str) -> None:
        """Fail unless the objects that a part wrote below a path are there with their sizes."""
        for key, (size, _) in self.manifest(stage, name)["objects"].items():
            if key.startswith(f"{below}/") and self.size(key) != size:
                raise self.damage(stage, name, key)

    def is_whole(self, key: str, size: int, known: str) -> bool:
        """Return whether an object is there, and what was written."""
        return self.digest(key, size) == known

    def damage(self, stage: str, name: str, what: str) -> StorageError:
        """Return the error about a damaged part; the driver of this run makes the part again when it is raised."""
        if self.child is not None:
            return StorageError(
                f"{self.location}: {what} ({stage} {name}) is missing or damaged, and {self.child} reads it there: "
                f"'dumap verify {self.location}' finds what is, 'dumap run' with that output makes it again"
            )
        return DamageError(
            f"{self.location}: {what} ({stage} {name}) is missing or damaged; {self.advice()}", stage, name
        )

    def advice(self) -> str:
        """Say what to do about damage."""
        return f"'dumap verify {self.location}' finds what is, 'dumap run' makes it again"

    def read(
        self,
        stage: str,
        name: str,
        array: str,
        start: int = 0,
        stop: int | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Read rows [start, stop) of a committed array, into `out` if given; fails if they are missing or damaged."""
        if (owner := self.owner(stage)) is not self:
            return owner.read(stage, name, array, start, stop, out)
        pieces = self._pieces(stage, name, array)
        offsets = [0, *accumulate(stored.shape[0] for *_, stored in pieces)]
        stop = offsets[-1] if stop is None else min(stop, offsets[-1])
        if out is None:
            out = np.empty((max(0, stop - start), *pieces[0][2].shape[1:]), pieces[0][2].dtype)
        elif len(out) != max(0, stop - start):
            raise self.damage(stage, name, array)
        for piece, first, last in zip(pieces, offsets[:-1], offsets[1:], strict=True):
            low, high = max(start, first), min(stop, last)
            if low < high:
                self._read_piece(stage, name, piece, low - first, high - first, out[low - start : high - start])
        return out

    def _read_piece(
        self, stage: str, name: str, piece: tuple[str, int, StoredArray], start: int, stop: int, out: np.ndarray
    ) -> None:
        """Fill `out` with rows [start, stop) of an array's piece."""
        key, offset, stored = piece
        first, last = stored.span(start, stop)
        size = self.manifest(stage, name)["objects"][key][0]

        def fill() -> None:
            with contextlib.closing(self.open_span(key, offset + first, offset + last, size)) as source:
                stored.read(source, start, stop, out)

        try:
            self.attempt(key, fill)
        except (FileNotFoundError, EOFError, ChecksumError) as error:
            raise self.damage(stage, name, key) from error
        except StorageError as error:
            if self.size(key) not in (-1, size):  # buckets refuse a range that begins after the end
                raise self.damage(stage, name, key) from error
            raise

    def read_each(self, stage: str, requests: Iterable[tuple[str, str, int, int | None]]) -> Iterator[np.ndarray]:
        """Yield rows of parts' arrays, in order; each request names the part, the array, and rows [start, stop)."""
        return in_order((partial(self.read, stage, *request) for request in requests), self._at_once(stage))

    def read_span(
        self, stage: str, names: Sequence[str], offsets: np.ndarray, array: str, start: int, stop: int
    ) -> np.ndarray:
        """Read rows [start, stop) of an array that consecutive parts hold; the rows of part p begin at offsets[p]."""
        if (owner := self.owner(stage)) is not self:
            return owner.read_span(stage, names, offsets, array, start, stop)
        spans = []
        begin = int(np.searchsorted(offsets, start, side="right")) - 1
        for p in range(max(begin, 0), len(names)):
            low, high = int(offsets[p]), int(offsets[p + 1])
            if low >= stop:
                break
            if high > start and high > low:
                spans.append((names[p], max(start, low) - low, min(stop, high) - low))
        if len(spans) == 1:
            return self.read(stage, spans[0][0], array, *spans[0][1:])
        stored = self._pieces(stage, spans[0][0], array)[0][2]
        ends = list(accumulate(high - low for _, low, high in spans))
        out = np.empty((ends[-1], *stored.shape[1:]), stored.dtype)
        reads = (
            partial(self.read, stage, name, array, low, high, out[end - (high - low) : end])
            for end, (name, low, high) in zip(ends, spans, strict=True)
        )
        deque(in_order(reads, self._at_once(stage)), maxlen=0)
        return out
