"""The run on disk: a Zarr v3 group. A part counts only if a manifest names it.

    RUN.zarr/
      zarr.json                    attribute `dumap`: format, parameters, seed, versions, description of the input
      embedding, status            the results, whole chunks per task
      _dumap/                      everything else of dumap's
        parts/<stage>/<part>-<attempt>    the arrays that one task wrote, one after another
        manifests/<stage>/<part>.json     commits a part: places of its arrays, sizes and digests of its objects
        manifests/identity/               input and parameters of the run, and the metadata of the results
        lock/                             the driver of the run; see `dumap.store.lock`

A task writes its object under a unique name, and then the manifest by create-if-absent. The first manifest of a part
wins, and objects that no manifest names are ignored. Arrays have a checksum for each range of rows, which every read
verifies. Manifests hold the offset, shape and dtype of each array, the size and digest of each object, and a digest of
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
from dumap.store.arrays import is_readable, refuse_pickle
from dumap.store.committed import CommittedParts, lock_key
from dumap.store.manifests import IDENTITY, INSIDE, LOCKS, MANIFESTS, MAX_MANIFEST_BYTES, manifest_key
from dumap.store.part import WRITTEN_METADATA, Part
from dumap.store.run_keys import FINAL_ARRAYS, METADATA_FOLDERS, RunKeys

FORMAT = 13
"""The version of the run's format. Runs of other versions are refused."""

MAPPING_ATTRIBUTES = ("parameters", "versions", "input")
"""Attributes of a run that are mappings."""
OWN = (
    *("format", "kind", "seed", "cpus", *MAPPING_ATTRIBUTES),
    *("precomputed", "fingerprint", "precomputed_fingerprint", "parent"),
)
"""The entries of the group's attribute `dumap`."""
MAX_NODES = 4000
"""The most nodes in the group's consolidated metadata."""
NODE_DOCUMENTS = {
    f"{INSIDE}/zarr.json": metadata.group_of({}),
    **{f"{folder}/zarr.json": metadata.placeholder_array(folder) for folder in METADATA_FOLDERS if folder != INSIDE},
}
"""Metadata of dumap's own folders by key: a group of arrays of one value, below which Zarr looks for no nodes."""


class Run(CommittedParts):
    """A run's store: its parts, the group's metadata, and the final arrays.

    Parameters
    ----------
    location, read_only, term, token, inherited, child
        See `CommittedParts`.
    """

    def part(self, stage: str, name: str, durable: bool = True) -> Part:
        """Begin a part; see `Part`."""
        return Part(self, stage, name, durable)

    # the group ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Return whether the location holds a run or another Zarr node."""
        return self.is_committed(IDENTITY, "run") or self.size("zarr.json") >= 0

    def create(self, attributes: dict[str, Any]) -> None:
        """Create the group unless it exists, and repair its metadata if they are damaged."""
        if not self.is_committed(IDENTITY, "run"):
            with self.part(IDENTITY, "run") as out:
                out.attributes |= _check_attribute_names({"format": FORMAT, **attributes})
        self.update_metadata()

    def make_folders(self, run_keys: RunKeys) -> None:
        """Make dumap's folders on a local disk, durably, so that commits need not make them."""
        if not self.is_local:
            return

        def make_run_folders() -> None:
            for folder in run_keys.internal_folders():
                disk.make_folders(self.location, folder)
            disk.flush_folders(self.location, run_keys.internal_folders())

        self.call_with_retries(INSIDE, make_run_folders)

    def describe(self, fingerprints: dict[str, Any]) -> None:
        """Add the input's fingerprints to the group's attributes."""
        if not self.is_committed(IDENTITY, "input"):
            with self.part(IDENTITY, "input") as out:
                out.attributes |= _check_attribute_names(fingerprints)
            self.update_metadata()

    def update_metadata(self) -> None:
        """Write the group's metadata if they lack entries of dumap's; entries of other programs are kept.

        The consolidated metadata contain all nodes in the run, also those of other programs.
        """
        for key, required in NODE_DOCUMENTS.items():
            if not metadata.holds(self._stored_metadata(key), required):
                self.put(key, metadata.written(required))
        stored = self._stored_metadata("zarr.json")
        required = {**self._own_metadata(), metadata.CONSOLIDATED: metadata.consolidate(self.read_nodes())}
        merged = metadata.renewed(stored, required)
        if metadata.parse(merged) != stored:
            self.put("zarr.json", merged)

    def _own_metadata(self) -> metadata.Document:
        """Return dumap's own entries of the group's metadata."""
        return metadata.group_of({metadata.OWN: self.attributes})

    def read_nodes(self) -> dict[str, metadata.Document]:
        """Return the metadata of all arrays and groups in the run by path, except of dumap's own folder."""
        nodes: dict[str, metadata.Document] = {}
        folders = [name for name in self.folders_below("") if name != INSIDE]
        while folders and len(nodes) < MAX_NODES:
            path = folders.pop()
            document = self._stored_metadata(f"{path}/zarr.json")
            if metadata.is_node(document) and is_readable(self.store, path):
                nodes[path] = document
                if document["node_type"] == "group":
                    folders += [f"{path}/{name}" for name in self.folders_below(path)]
        return nodes

    def _stored_metadata(self, key: str) -> metadata.Document:
        """Read the metadata of a node; empty if they are missing or not valid."""
        return metadata.parse(self.get(key, MAX_MANIFEST_BYTES))

    @property
    def attributes(self) -> dict[str, Any]:
        """The run's attributes: its format, parameters, versions and input.

        Raises
        ------
        StorageError
            The location does not hold a run of this format.
        """
        if self.is_committed(IDENTITY, "run"):
            attributes = dict(self.part_facts(IDENTITY, "run"))
            if self.is_committed(IDENTITY, "input"):
                attributes |= self.part_facts(IDENTITY, "input")
        else:
            if self.size("zarr.json") < 0:
                raise StorageError(f"{self.location} holds no run")
            stored = metadata.attributes_of(self._stored_metadata("zarr.json"))
            stored = stored.get(metadata.OWN, stored)  # formats up to 10 had no attribute `dumap`
            attributes = {name: stored[name] for name in OWN if name in stored} if isinstance(stored, dict) else {}
        version = attributes.get("format")
        if version is None:
            raise StorageError(f"{self.location} is not a dumap run: its attributes have no 'format'")
        if version != FORMAT:
            raise StorageError(
                f"{self.location} has format {version}; this version of dumap reads format {FORMAT}: name another "
                f"output, or use the version of dumap that wrote this one"
            )
        missing_attributes = [name for name in MAPPING_ATTRIBUTES if not isinstance(attributes.get(name), dict)]
        if missing_attributes:
            raise StorageError(
                f"{self.location} is not a dumap run: it does not say its {', '.join(missing_attributes)}"
            )
        return attributes

    def open_final(self, name: str) -> zarr.Array:
        """Open one of the run's final arrays."""
        key = f"{name}/zarr.json"
        written = self.manifest(IDENTITY, "results")["objects"].get(key)
        if written is None or not self._is_as_written(IDENTITY, "results", key, written):
            raise self.damage_error(IDENTITY, "results", key)

        def open_array() -> zarr.Array:
            array = zarr.open_array(self.store, path=name, mode="r" if self.store.read_only else "r+")
            return refuse_pickle(array).with_config({"write_empty_chunks": True})

        return self.call_with_retries(key, open_array)

    def read_final(self, name: str, stage: str) -> np.ndarray:
        """Read one of the run's final arrays whole; fail if it is missing or damaged."""
        array = self.open_final(name)
        for part in self.committed_parts(stage):
            self.check_object_sizes(stage, part, name)
        try:
            return np.asarray(self.call_with_retries(name, lambda: array[...]))
        except (ValueError, RuntimeError) as error:
            raise StorageError(f"{self.location}: {name} is damaged; {self.advice()}") from error

    def _is_as_written(self, stage: str, name: str, key: str, written: Sequence) -> bool:
        """Return whether an object is as its part wrote it.

        The metadata of a final array may hold further entries, such as attributes that a user has added.
        """
        written_metadata = self.part_facts(stage, name).get(WRITTEN_METADATA)
        document = written_metadata.get(key) if isinstance(written_metadata, dict) else None
        if isinstance(document, dict):
            return metadata.holds(self._stored_metadata(key), document)
        return self.is_whole(key, *written)

    # all objects -------------------------------------------------------------------------------

    def list_stages(self) -> list[str]:
        """List the groups of manifests, among them the stages with committed parts."""
        return self.folders_below(MANIFESTS)

    def find_damaged(self, groups: Sequence[str] | None = None) -> Iterator[tuple[str, str, str]]:
        """Check every committed object against its digest; yield stage, part and key of each damaged object.

        For objects that no part names, which are metadata and locks, stage and part are empty.

        Parameters
        ----------
        groups : sequence of str, optional
            The groups of manifests to check. [all]
        """
        for stage in self.list_stages() if groups is None else groups:
            for name in self.committed_parts(stage):
                try:
                    objects = self.manifest(stage, name)["objects"]
                except DamageError:
                    yield stage, name, manifest_key(stage, name)
                    continue
                for key, written in objects.items():
                    if not self._is_as_written(stage, name, key, written):
                        yield stage, name, key
        with contextlib.suppress(DamageError):  # damage of the identity was yielded above
            if not self._is_complete("zarr.json", self._own_metadata()):
                yield "", "", "zarr.json"
        for key, required in NODE_DOCUMENTS.items():
            if not metadata.holds(self._stored_metadata(key), required):
                yield "", "", key
        for term in self.list_terms():
            if self.read_lock(term) is None:
                yield "", "", lock_key(term)

    def _is_complete(self, key: str, required: metadata.Document) -> bool:
        """Return whether the group's metadata hold dumap's own entries and the metadata of the final arrays."""
        stored = self._stored_metadata(key)
        results: dict[str, Any] = {}
        with contextlib.suppress(DamageError):  # `find_damaged` has yielded it
            results = self.part_facts(IDENTITY, "results")
        arrays = {name: results.get(WRITTEN_METADATA, {}).get(f"{name}/zarr.json") for name in FINAL_ARRAYS}
        array_documents = {name: array for name, array in arrays.items() if array is not None}
        return metadata.holds(stored, required) and metadata.consolidates(stored, array_documents)

    def stage_bytes(self, stage: str) -> int:
        """Return the bytes of all objects that a stage's manifests name."""
        total = 0
        for name in self.committed_parts(stage):
            with contextlib.suppress(DamageError):  # a part with a damaged manifest is made again
                total += sum(size for size, _ in self.manifest(stage, name)["objects"].values())
        return total

    def find_unnamed_keys(self, run_keys: RunKeys) -> tuple[list[str], list[str]]:
        """List the keys that no manifest names: those of dumap's leftovers, and those of other programs.

        Raises
        ------
        DamageError
            A manifest is damaged, so that the objects that it names are not known.
        """
        named_keys: set[str] = set()
        for group in run_keys.groups:
            for name in self.committed_parts(group):
                named_keys |= {manifest_key(group, name), *self.manifest(group, name)["objects"]}
        leftovers: list[str] = []
        others: list[str] = []
        for key in self.keys():
            is_link = self.is_local and disk.is_link(self.location, key)
            if key in named_keys or (run_keys.is_permanent(key) and not is_link):
                continue
            (leftovers if run_keys.is_deletable(key) and not is_link else others).append(key)
        return leftovers, others

    def delete_empty_folders(self, run_keys: RunKeys, keys: Iterable[str]) -> None:
        """Remove the empty folders of removed keys from a local disk, but not the folders that every run has."""
        if self.is_local:
            folders = {key.rpartition("/")[0] for key in keys} - set(run_keys.all_folders())
            self.call_with_retries("", lambda: disk.delete_empty_folders(self.location, folders))

    def refuse_linked_folders(self, run_keys: RunKeys) -> None:
        """Raise a StorageError if one of dumap's folders is a link, since objects would be written outside the run."""
        if self.is_local:
            for folder in run_keys.all_folders():
                disk.refuse_linked_folder(self.location, f"{folder}/")

    def find_foreign_key(self, run_keys: RunKeys) -> str | None:
        """Return the first key that shows that the location holds something else than a begun run; None if none does.

        A run that has no identity yet holds only locks, manifests and probes.
        """

        def search_keys() -> str | None:
            allowed_folders = (f"{MANIFESTS}/", f"{LOCKS}/")
            for key in self.iterate_keys():
                if not key.startswith(allowed_folders) or not (
                    run_keys.is_permanent(key) or run_keys.is_deletable(key)
                ):
                    return key
            return None

        return self.call_with_retries("", search_keys)


def _check_attribute_names(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes; raise ValueError if one of them is not in `OWN`."""
    if unknown := set(attributes) - set(OWN):
        raise ValueError(f"not among the run's own attributes: {', '.join(sorted(unknown))}")
    return attributes
