"""The run on disk: one Zarr v3 group, whose parts count only once a manifest names them.

    RUN.zarr/
      zarr.json                    attribute `dumap`: format, parameters, seed, versions, what the input was
      embedding, status            the results, one chunk per task
      _dumap/                      all else that is dumap's own
        parts/<stage>/<part>-<attempt>    what one task wrote: its arrays, one after another
        manifests/<stage>/<part>.json     commits a part: where its arrays are, sizes and checksums
        manifests/identity/               input and parameters of the run, and the metadata of the results
        lock/                             who drives the run; see `dumap.store.lock`

A task writes its object under a name of its own, then the manifest, by create-if-absent: the first manifest wins, and
objects that no manifest names are ignored. Arrays have a checksum for each range of rows, which every read verifies.
Manifests hold the offset, shape and dtype of each array, the size and digest of each object, and a digest of
themselves. See FORMAT.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import zarr

from dumap.errors import DamageError, StorageError
from dumap.store import disk, metadata
from dumap.store.arrays import is_readable, refuse_code
from dumap.store.committed import CommittedParts, lock_key
from dumap.store.manifests import IDENTITY, INSIDE, LOCKS, MANIFESTS, MOST_BYTES, manifest_key
from dumap.store.part import METADATA, Part
from dumap.store.run_keys import FINALS, NODES, RunKeys

FORMAT = 13
"""Version of the run's format; a run of another version is refused."""

SECTIONS = ("parameters", "versions", "input")
"""Attributes of a run that hold keys and values."""
OWN = (
    *("format", "kind", "seed", "cpus", *SECTIONS),
    *("precomputed", "fingerprint", "precomputed_fingerprint", "parent"),
)
"""What the group's attribute of dumap's own holds."""
MOST_NODES = 4000
"""Nodes whose metadata the group's consolidates."""
NODE_DOCUMENTS = {
    f"{INSIDE}/zarr.json": metadata.group_of({}),
    **{f"{folder}/zarr.json": metadata.closed_of(folder) for folder in NODES if folder != INSIDE},
}
"""What dumap's own folders say to Zarr: a group of arrays without values, below which it looks for nothing."""


class Run(CommittedParts):
    """A run's store: its parts, the group's metadata, and the final arrays.

    Parameters
    ----------
    location, read_only, term, token, inherited, child
        As of `CommittedParts`.
    """

    def part(self, stage: str, name: str, durable: bool = True) -> Part:
        """Begin a part; see `Part`."""
        return Part(self, stage, name, durable)

    # the group ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Return whether a run, or another Zarr node, is there."""
        return self.is_committed(IDENTITY, "run") or self.size("zarr.json") >= 0

    def create(self, attributes: dict[str, Any]) -> None:
        """Create the group, unless it is there; mend its metadata where it is damaged."""
        if not self.is_committed(IDENTITY, "run"):
            with self.part(IDENTITY, "run") as out:
                out.attributes |= _own({"format": FORMAT, **attributes})
        self.renew()

    def make_folders(self, run_keys: RunKeys) -> None:
        """Make dumap's folders on a local disk, durably, so that no commit has to."""
        if not self.is_local:
            return

        def make() -> None:
            for folder in run_keys.inner_folders():
                disk.make_folders(self.location, folder)
            disk.flush_folders(self.location, run_keys.inner_folders())

        self.attempt(INSIDE, make)

    def describe(self, found: dict[str, Any]) -> None:
        """Add the input's fingerprints to the group's attributes."""
        if not self.is_committed(IDENTITY, "input"):
            with self.part(IDENTITY, "input") as out:
                out.attributes |= _own(found)
            self.renew()

    def renew(self) -> None:
        """Write the group's metadata if it lacks something of dumap's; what others have added is kept.

        It consolidates that of the nodes that lie there now, whoever put them there.
        """
        for key, own in NODE_DOCUMENTS.items():
            if not metadata.holds(self._found(key), own):
                self.put(key, metadata.written(own))
        found = self._found("zarr.json")
        own = {**self._metadata(), metadata.CONSOLIDATED: metadata.consolidate(self.nodes())}
        whole = metadata.renewed(found, own)
        if metadata.parse(whole) != found:
            self.put("zarr.json", whole)

    def _metadata(self) -> metadata.Document:
        return metadata.group_of({metadata.OWN: self.attributes})

    def nodes(self) -> dict[str, metadata.Document]:
        """Return the metadata of the run's arrays and groups, those of other people too, but not of dumap's folder."""
        found: dict[str, metadata.Document] = {}
        folders = [name for name in self.folders_below("") if name != INSIDE]
        while folders and len(found) < MOST_NODES:
            path = folders.pop()
            document = self._found(f"{path}/zarr.json")
            if metadata.is_node(document) and is_readable(self.store, path):
                found[path] = document
                if document["node_type"] == "group":
                    folders += [f"{path}/{name}" for name in self.folders_below(path)]
        return found

    def _found(self, key: str) -> metadata.Document:
        return metadata.parse(self.get(key, MOST_BYTES))

    @property
    def attributes(self) -> dict[str, Any]:
        """What the run is of; refuses what is not a run of this format."""
        if self.is_committed(IDENTITY, "run"):
            attributes = dict(self.summary(IDENTITY, "run"))
            if self.is_committed(IDENTITY, "input"):
                attributes |= self.summary(IDENTITY, "input")
        else:
            if self.size("zarr.json") < 0:
                raise StorageError(f"{self.location} holds no run")
            held = metadata.attributes_of(self._found("zarr.json"))
            held = held.get(metadata.OWN, held)  # formats up to 10 had no attribute of their own
            attributes = {name: held[name] for name in OWN if name in held} if isinstance(held, dict) else {}
        version = attributes.get("format")
        if version is None:
            raise StorageError(f"{self.location} is not a dumap run: its attributes have no 'format'")
        if version != FORMAT:
            raise StorageError(
                f"{self.location} has format {version}; this version of dumap reads format {FORMAT}: name another "
                f"output, or use the version of dumap that wrote this one"
            )
        odd = [name for name in SECTIONS if not isinstance(attributes.get(name), dict)]
        if odd:
            raise StorageError(f"{self.location} is not a dumap run: it does not say its {', '.join(odd)}")
        return attributes

    def final(self, name: str) -> zarr.Array:
        """Open one of the run's final arrays."""
        key = f"{name}/zarr.json"
        written = self.manifest(IDENTITY, "results")["objects"].get(key)
        if written is None or not self._is_written(IDENTITY, "results", key, written):
            raise self.damage(IDENTITY, "results", key)

        def open_it() -> zarr.Array:
            opened = zarr.open_array(self.store, path=name, mode="r" if self.store.read_only else "r+")
            return refuse_code(opened).with_config({"write_empty_chunks": True})

        return self.attempt(key, open_it)

    def read_final(self, name: str, stage: str) -> np.ndarray:
        """Read one of the run's final arrays whole; fails if it is missing or damaged."""
        array = self.final(name)
        for part in self.committed(stage):
            self.check_sizes(stage, part, name)
        try:
            return np.asarray(self.attempt(name, lambda: array[...]))
        except (ValueError, RuntimeError) as error:
            raise StorageError(f"{self.location}: {name} is damaged; {self.advice()}") from error

    def _is_written(self, stage: str, name: str, key: str, written: Sequence) -> bool:
        """Return whether an object is as its part wrote it. The metadata of a final array may hold more than was
        written.

        So attributes that somebody gives a final array are no damage.
        """
        own = self.summary(stage, name).get(METADATA)
        document = own.get(key) if isinstance(own, dict) else None
        if isinstance(document, dict):
            return metadata.holds(self._found(key), document)
        return self.is_whole(key, *written)

    # the whole ---------------------------------------------------------------------------------

    def stages(self) -> list[str]:
        """List the stages that have committed anything."""
        return self.folders_below(MANIFESTS)

    def damaged(self, groups: Sequence[str] | None = None) -> Iterator[tuple[str, str, str]]:
        """Read every committed object against its digest; yield stage, part and key of each that fails.

        Stage and part are empty for what no part names: the group's metadata and the lock.

        Parameters
        ----------
        groups : sequence of str, optional
            Groups of manifests to look at; all there are, where not given.
        """
        for stage in self.stages() if groups is None else groups:
            for name in self.committed(stage):
                try:
                    objects = self.manifest(stage, name)["objects"]
                except DamageError:
                    yield stage, name, manifest_key(stage, name)
                    continue
                for key, written in objects.items():
                    if not self._is_written(stage, name, key, written):
                        yield stage, name, key
        with contextlib.suppress(DamageError):  # of what the run is of, told above
            if not self._tells("zarr.json", self._metadata()):
                yield "", "", "zarr.json"
        for key, own in NODE_DOCUMENTS.items():
            if not metadata.holds(self._found(key), own):
                yield "", "", key
        for term in self.terms():
            if self.lock(term) is None:
                yield "", "", lock_key(term)

    def _tells(self, key: str, own: metadata.Document) -> bool:
        """Return whether the group's metadata is complete, and its copies of the final arrays' metadata are right."""
        found = self._found(key)
        results: dict[str, Any] = {}
        with contextlib.suppress(DamageError):  # told where it lies
            results = self.summary(IDENTITY, "results")
        arrays = {name: results.get(METADATA, {}).get(f"{name}/zarr.json") for name in FINALS}
        there = {name: array for name, array in arrays.items() if array is not None}
        return metadata.holds(found, own) and metadata.consolidates(found, there)

    def sizes(self, stage: str) -> int:
        """Add up the bytes of the objects that a stage's manifests name."""
        found = 0
        for name in self.committed(stage):
            with contextlib.suppress(DamageError):  # what it names is not known, and made again
                found += sum(size for size, _ in self.manifest(stage, name)["objects"].values())
        return found

    def unnamed(self, run_keys: RunKeys) -> tuple[list[str], list[str]]:
        """List the keys that no manifest names: leftovers of dumap's, and keys of other people.

        Raises
        ------
        DamageError
            A manifest is damaged, so that what it named is not known.
        """
        named: set[str] = set()
        for group in run_keys.groups:
            for name in self.committed(group):
                named |= {manifest_key(group, name), *self.manifest(group, name)["objects"]}
        left: list[str] = []
        others: list[str] = []
        for key in self.keys():
            linked = self.is_local and disk.is_link(self.location, key)
            if key in named or (run_keys.is_lasting(key) and not linked):
                continue
            (left if run_keys.is_removable(key) and not linked else others).append(key)
        return left, others

    def prune(self, run_keys: RunKeys, keys: Iterable[str]) -> None:
        """Remove empty folders of removed keys from a local disk, but not those that every run has."""
        if self.is_local:
            folders = {key.rpartition("/")[0] for key in keys} - set(run_keys.own_folders())
            self.attempt("", lambda: disk.prune(self.location, folders))

    def refuse_links(self, run_keys: RunKeys) -> None:
        """Raise a StorageError if one of dumap's folders is a link, so that objects would be written elsewhere."""
        if self.is_local:
            for folder in run_keys.own_folders():
                disk.refuse_linked(self.location, f"{folder}/")

    def first_other(self, run_keys: RunKeys) -> str | None:
        """Return a key that a run without an identity cannot hold; None if there is none."""

        def look() -> str | None:
            begun = (f"{MANIFESTS}/", f"{LOCKS}/")
            for key in self.each_key():
                if not key.startswith(begun) or not (run_keys.is_lasting(key) or run_keys.is_removable(key)):
                    return key
            return None

        return self.attempt("", look)


def _own(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return attributes, after checking that all of them are dumap's."""
    if unknown := set(attributes) - set(OWN):
        raise ValueError(f"not among the run's own attributes: {', '.join(sorted(unknown))}")
    return attributes
