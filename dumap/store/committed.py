"""Committed parts: their manifests, the terms of the drivers that write them, and reading of their rows."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Self

import numpy as np

from dumap.errors import DamageError, DroppedError, LockError, StorageError
from dumap.store.concurrent_reads import call_concurrently
from dumap.store.manifests import (
    DONE,
    IDENTITY,
    INHERITED,
    LOCKS,
    MANIFESTS,
    MAX_MANIFEST_BYTES,
    PART_NAME_PATTERN,
    PARTS,
    Manifest,
    is_valid_manifest,
    manifest_key,
    part_object_key,
)
from dumap.store.objects import Objects, seal, unseal
from dumap.store.relative_paths import absolute_location
from dumap.store.stored_array import ChecksumError, StoredArray

MAX_LOCK_BYTES = 1 << 20
"""The most bytes of a lock; a larger object counts as damaged."""

MAX_CONCURRENT_READS = 8
"""Reads that a task makes at once from a bucket; from a local disk it makes one at a time."""


def lock_key(term: int) -> str:
    """Return the key of a term's lock."""
    return f"{LOCKS}/{term:08d}.json"


class CommittedParts(Objects):
    """The parts of a run.

    Parameters
    ----------
    location : str
        A path or a URL.
    read_only : bool
    term : int, optional
        The term of the driver for which the run is opened. Each commit and each removal first checks that no other
        driver has taken over.
    token : str, optional
        The token of the driver's lock. Each commit and each removal first checks that the lock holds this token.
    inherited : mapping, optional
        The locations of the runs that hold stages of this run, by stage. [read from the manifests of finished stages]
    child : str, optional
        The location of the run that reads this one. Damage here is then an error that names both runs, and the driver
        of the child does not make the damaged part again.
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
        self._inherited_locations: dict[str, str | None] = {}
        self._parent_runs: dict[str, CommittedParts] = {}
        self._manifests: dict[tuple[str, str], Manifest] = {}
        self._array_pieces_by_name: dict[tuple[str, str, str], list[tuple[str, int, StoredArray]]] = {}

    # other runs --------------------------------------------------------------------------------

    def owning_run(self, stage: str) -> CommittedParts:
        """Return the run that holds a stage's parts: this run, or the run that it inherits the stage from."""
        inherited_location = self.inherited_location(stage)
        if inherited_location is None:
            return self
        if inherited_location not in self._parent_runs:
            self._parent_runs[inherited_location] = type(self)(
                inherited_location, read_only=True, inherited={}, child=self.location
            )
        return self._parent_runs[inherited_location]

    def reopen(self) -> Self:
        """Return the same run with caches of its own, for another thread."""
        return type(self)(self.location, self.read_only, self.term, self.token, self.inherited, self.child)

    def inherited_location(self, stage: str) -> str | None:
        """Return the location of the run that holds an inherited stage; None if the stage is not inherited."""
        if self.inherited is not None or stage in (DONE, IDENTITY):
            return (self.inherited or {}).get(stage)
        if stage not in self._inherited_locations:
            done = unseal(
                self.get(manifest_key(DONE, stage), MAX_MANIFEST_BYTES) or b""
            )  # `manifest` reports its damage
            relative = done["attributes"].get(INHERITED) if done is not None and is_valid_manifest(done) else None
            self._inherited_locations[stage] = (
                absolute_location(relative, self.location) if isinstance(relative, str) else None
            )
        return self._inherited_locations[stage]

    # manifests ---------------------------------------------------------------------------------

    def commit(self, stage: str, name: str, manifest: Manifest, durable: bool = True) -> None:
        """Write a part's manifest unless the part has one.

        If `durable`, the folders of the objects that it names are flushed first.
        """
        self._check_term()
        if durable:
            self.flush_folders(manifest["objects"])
        self.put_new(manifest_key(stage, name), seal({**manifest, "time": time.time()}), durable)
        self._manifests.pop((stage, name), None)

    def _check_term(self) -> None:
        """Fail if another driver has taken over, or if the lock was removed or replaced."""
        if self.term is None:
            return
        if self.size(lock_key(self.term + 1)) >= 0:
            raise LockError(f"{self.location}: another driver took this run over; nothing more was written by this one")
        if self.token is not None and self.read_holder(self.term).get("token") != self.token:
            raise LockError(
                f"{self.location}: this driver's lock {lock_key(self.term)} was removed or is another's; nothing more "
                f"was written by this one"
            )

    def read_lock(self, term: int) -> dict[str, Any] | None:
        """Read the lock of a term; None if it is missing or damaged."""
        return unseal(self.get(lock_key(term), MAX_LOCK_BYTES) or b"")

    def read_holder(self, term: int) -> dict[str, Any]:
        """Return the description of a term's holder; empty if the lock is missing or damaged."""
        holder = (self.read_lock(term) or {}).get("holder")
        return holder if isinstance(holder, dict) else {}

    def list_terms(self) -> list[int]:
        """List the terms that have a lock, in order."""
        names = [name.removesuffix(".json") for name in self.list_names(LOCKS)]
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{8,}", name))

    def committed_parts(self, stage: str) -> list[str]:
        """List a stage's committed parts."""
        names = self.owning_run(stage).list_names(f"{MANIFESTS}/{stage}")
        return [name.removesuffix(".json") for name in names if re.fullmatch(rf"{PART_NAME_PATTERN}\.json", name)]

    def is_committed(self, stage: str, name: str) -> bool:
        """Return whether a part is committed."""
        return self.owning_run(stage).size(manifest_key(stage, name)) >= 0

    def manifest(self, stage: str, name: str) -> Manifest:
        """Read and check a committed part's manifest."""
        if (owning_run := self.owning_run(stage)) is not self:
            return owning_run.manifest(stage, name)
        if (stage, name) not in self._manifests:
            key = manifest_key(stage, name)
            manifest = unseal(self.get(key, MAX_MANIFEST_BYTES) or b"")
            if manifest is None or not is_valid_manifest(manifest):
                raise self.damage_error(stage, name, key)
            self._manifests[stage, name] = manifest
        return self._manifests[stage, name]

    def part_facts(self, stage: str, name: str) -> dict[str, Any]:
        """Return the facts in a part's manifest."""
        return self.manifest(stage, name)["attributes"]

    def facts_of_parts(self, stage: str, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the facts of parts, in order."""
        return call_concurrently(
            (partial(self.part_facts, stage, name) for name in names), self._concurrent_reads(stage)
        )

    def _concurrent_reads(self, stage: str) -> int:
        """Return the number of reads of a stage's parts to make at once."""
        return 1 if self.owning_run(stage).is_local else MAX_CONCURRENT_READS

    def delete_part(self, stage: str, name: str) -> None:
        """Remove a part: its manifest first, then its objects."""
        self.delete_parts(stage, [name])

    def delete_parts(self, stage: str, names: Sequence[str]) -> None:
        """Remove parts: their manifests first, then their objects, all at once."""
        deque(self.facts_of_parts(stage, names), maxlen=0)  # reads the manifests, several at a time
        objects = [key for name in names for key in self.part_object_keys(stage, name)]
        self.uncommit_parts(stage, names)
        self.delete_keys(objects)

    def part_object_keys(self, stage: str, name: str) -> list[str]:
        """Return the keys of the objects that hold a part's arrays.

        A manifest may also name chunks of final arrays, which are not returned.
        """
        return self._array_keys(stage, name, self.manifest(stage, name)["objects"])

    def _array_keys(self, stage: str, name: str, objects: dict[str, list]) -> list[str]:
        """Return the keys among `objects` that follow the naming of a part's arrays."""
        attempt = self.manifest(stage, name)["attempt"]
        array_keys = {part_object_key(stage, name, attempt, number) for number in range(len(objects))}
        return [key for key in objects if key in array_keys]

    def is_dropped(self, stage: str, name: str) -> bool:
        """Return whether a committed part was dropped."""
        return "dropped" in self.manifest(stage, name)

    def drop_parts(self, stage: str, names: Sequence[str]) -> int:
        """Delete the objects of parts, but not their manifests; return the bytes that were freed.

        The manifests are rewritten durably, to name the deleted objects under `dropped`, before any object is deleted.
        So the parts count as dropped even if this process ends halfway.
        """
        self._check_term()
        sizes: dict[str, int] = {}
        dropped = {}
        for name in names:
            manifest, keys = self.manifest(stage, name), self.part_object_keys(stage, name)
            if keys:
                others = {key: value for key, value in manifest["objects"].items() if key not in keys}
                dropped[name] = {**manifest, "arrays": {}, "objects": others}
                dropped[name]["dropped"] = {key: manifest["objects"][key] for key in keys}
                sizes |= {key: manifest["objects"][key][0] for key in keys}
        for name, manifest in dropped.items():
            self.put_with_digest(manifest_key(stage, name), seal(manifest), durable=True)
            self.clear_cached(stage, [name])
            self._manifests[stage, name] = manifest
        self.flush_folders(manifest_key(stage, name) for name in dropped)
        self.delete_keys(list(sizes))
        return sum(sizes.values())

    def finish_drops(self, stage: str) -> None:
        """Delete the objects of dropped parts that still exist because an earlier driver ended halfway."""
        self._check_term()
        keys = []
        for name in self.committed_parts(stage):
            keys += self._array_keys(stage, name, self.manifest(stage, name).get("dropped", {}))
        self.delete_keys(keys)

    def leftovers_of_drops(self, stage: str) -> set[str]:
        """Return the names of the objects of dropped parts that still exist because a driver ended halfway."""
        existing = set(self.list_names(f"{PARTS}/{stage}"))
        dropped = (self.manifest(stage, name).get("dropped", {}) for name in self.committed_parts(stage))
        return existing & {key.rpartition("/")[2] for keys in dropped for key in keys}

    def uncommit(self, stage: str, name: str) -> None:
        """Remove a part's manifest, damaged or not, but not its objects. The part is then no longer committed."""
        self.uncommit_parts(stage, [name])

    def uncommit_parts(self, stage: str, names: Sequence[str]) -> None:
        """Remove the manifests of parts, damaged or not, but not their objects."""
        self._check_term()
        self.delete_keys([manifest_key(stage, name) for name in names])
        self.clear_cached(stage, names)

    def clear_cached(self, stage: str, names: Iterable[str]) -> None:
        """Remove parts from the caches of this object."""
        parts = {(stage, name) for name in names}
        for part in parts & self._manifests.keys():
            del self._manifests[part]
        for array in [array for array in self._array_pieces_by_name if array[:2] in parts]:
            del self._array_pieces_by_name[array]

    def _array_pieces(self, stage: str, name: str, array: str) -> list[tuple[str, int, StoredArray]]:
        """Return an array's pieces: the key of the object, the offset in it, and the layout."""
        if (stage, name, array) not in self._array_pieces_by_name:
            if self.is_dropped(stage, name):
                raise DroppedError(f"{self.location}: {stage} {name} was dropped when nothing needed it", stage, name)
            pieces = self.manifest(stage, name)["arrays"][array]
            self._array_pieces_by_name[stage, name, array] = [
                (key, at, StoredArray.parse(*layout)) for key, at, *layout in pieces
            ]
        return self._array_pieces_by_name[stage, name, array]

    def check_object_sizes(self, stage: str, name: str, below: str) -> None:
        """Fail unless the objects that a part wrote below a path exist and have the sizes in its manifest."""
        for key, (size, _) in self.manifest(stage, name)["objects"].items():
            if key.startswith(f"{below}/") and self.size(key) != size:
                raise self.damage_error(stage, name, key)

    def is_whole(self, key: str, size: int, known: str) -> bool:
        """Return whether an object exists and has a size and a digest."""
        return self.digest(key, size) == known

    def damage_error(self, stage: str, name: str, what: str) -> StorageError:
        """Return the error about a damaged part.

        It is a `DamageError`, after which the driver makes the part again, unless the run is read for a child.
        """
        if self.child is not None:
            return StorageError(
                f"{self.location}: {what} ({stage} {name}) is missing or damaged, and {self.child} reads it there: "
                f"'dumap verify {self.location}' finds what is, 'dumap run' with that output makes it again"
            )
        return DamageError(
            f"{self.location}: {what} ({stage} {name}) is missing or damaged; {self.advice()}", stage, name
        )

    def advice(self) -> str:
        """Return what a message advises to do about damage."""
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
        """Read rows [start, stop) of a committed array, into `out` if given; fail if they are missing or damaged."""
        if (owning_run := self.owning_run(stage)) is not self:
            return owning_run.read(stage, name, array, start, stop, out)
        pieces = self._array_pieces(stage, name, array)
        offsets = [0, *accumulate(stored.shape[0] for *_, stored in pieces)]
        stop = offsets[-1] if stop is None else min(stop, offsets[-1])
        if out is None:
            out = np.empty((max(0, stop - start), *pieces[0][2].shape[1:]), pieces[0][2].dtype)
        elif len(out) != max(0, stop - start):
            raise self.damage_error(stage, name, array)
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
            with contextlib.closing(self.open_range(key, offset + first, offset + last, size)) as source:
                stored.read(source, start, stop, out)

        try:
            self.call_with_retries(key, fill)
        except (FileNotFoundError, EOFError, ChecksumError) as error:
            raise self.damage_error(stage, name, key) from error
        except StorageError as error:
            if self.size(key) not in (-1, size):  # buckets raise an error for a range after the end of an object
                raise self.damage_error(stage, name, key) from error
            raise

    def read_many(self, stage: str, requests: Iterable[tuple[str, str, int, int | None]]) -> Iterator[np.ndarray]:
        """Yield rows of arrays, in order. A request is a part, an array, and the rows [start, stop)."""
        return call_concurrently(
            (partial(self.read, stage, *request) for request in requests), self._concurrent_reads(stage)
        )

    def read_from_parts(
        self, stage: str, names: Sequence[str], offsets: np.ndarray, array: str, start: int, stop: int
    ) -> np.ndarray:
        """Read rows [start, stop) of an array that consecutive parts hold. The rows of part p begin at offsets[p]."""
        if (owning_run := self.owning_run(stage)) is not self:
            return owning_run.read_from_parts(stage, names, offsets, array, start, stop)
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
        stored = self._array_pieces(stage, spans[0][0], array)[0][2]
        ends = list(accumulate(high - low for _, low, high in spans))
        out = np.empty((ends[-1], *stored.shape[1:]), stored.dtype)
        reads = (
            partial(self.read, stage, name, array, low, high, out[end - (high - low) : end])
            for end, (name, low, high) in zip(ends, spans, strict=True)
        )
        deque(call_concurrently(reads, self._concurrent_reads(stage)), maxlen=0)
        return out
