"""The run on disk: one Zarr v3 group, whose parts count only once a manifest names them.

    RUN.zarr/
      zarr.json                    attributes: format, parameters, seed, versions, what the input was
      embedding, status            the results, one chunk per task
      <stage>/<part>-<attempt>/    what one task wrote: an array per name, one object an array
      manifests/<stage>/<part>.json
      manifests/identity/          what the run is of, and the metadata of the results
      lock/                        who drives the run; see `dumap.store.lock`

A task writes its objects under a name of its own, then the manifest, by create-if-absent: the first
manifest wins, and what no manifest names does not exist. Arrays carry a checksum per range of rows, which
every read verifies; manifests carry each array's objects with their shapes and dtypes, each object's size and
digest, and their own.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from dumap.errors import DamageError, StorageError
from dumap.store import disk, metadata
from dumap.store.arrays import refuse_code
from dumap.store.committed import Committed, lock_key
from dumap.store.manifests import IDENTITY, MANIFESTS, MOST_BYTES, manifest_key
from dumap.store.naming import LOCKS, Naming
from dumap.store.objects import digest
from dumap.store.shards import Shard

FORMAT = 10
"""Version of the run's format; a run of another version is refused."""

OBJECT_BYTES = 32 << 20
"""Rows that are gathered are written as objects of at most this size: a bucket takes an object out of memory."""

SECTIONS = ("parameters", "versions", "input")
"""Attributes of a run that hold keys and values."""
OWN = (
    *("format", "kind", "seed", "cpus", *SECTIONS),
    *("precomputed", "fingerprint", "precomputed_fingerprint"),
)
"""Attributes of the group that are dumap's; others are kept as somebody else's."""
METADATA = "metadata"
"""Attribute of the part that made the final arrays: their metadata by key, as dumap wrote it."""


class Part:
    """What one task writes: some arrays, whole, then the manifest that makes them count.

    Use as a context manager; leaving it without an error commits.
    """

    def __init__(self, run: Run, stage: str, name: str) -> None:
        self.run, self.stage, self.name = run, stage, name
        self.attempt = uuid.uuid4().hex[:8]
        self.folder = f"{stage}/{name}-{self.attempt}"
        self.arrays: dict[str, list[tuple]] = {}
        self.objects: dict[str, tuple[int, str]] = {}
        self.attributes: dict[str, Any] = {}

    def write(self, name: str, values: np.ndarray) -> None:
        """Write one array as one object."""
        self.arrays[name] = [self._write_object(name, values)]

    def write_gathered(self, name: str, values: np.ndarray, rows: np.ndarray) -> None:
        """Write `values[rows]` as objects of at most `OBJECT_BYTES`, gathered as they are written.

        Two at a time: one is gathered while the disk takes the other.
        """
        step = max(1, OBJECT_BYTES // max(1, values[:1].nbytes))
        values, starts = np.ascontiguousarray(values), range(0, max(1, len(rows)), step)

        def write(number: int) -> tuple:
            return self._write_object(f"{name}-{number}", values, rows[starts[number] : starts[number] + step])

        with ThreadPoolExecutor(2) as writers:
            self.arrays[name] = list(writers.map(write, range(len(starts))))

    def _write_object(self, name: str, values: np.ndarray, rows: np.ndarray | None = None) -> tuple:
        """Write an array, or some of its rows; return what the manifest tells of it."""
        path, shard = f"{self.folder}/{name}", Shard.of(values, len(values) if rows is None else len(rows))
        if shard.size:
            self._put(shard.key(path), lambda: shard.pieces(values, rows))
        self._put(f"{path}/zarr.json", lambda: [shard.metadata()])
        return path, shard.shape, shard.dtype.str

    def _put(self, key: str, make: Callable[[], Iterable[bytes | memoryview]]) -> None:
        self.objects[key] = self.run.put_pieces(key, make)

    def write_rows(self, name: str, first: int, values: np.ndarray) -> None:
        """Write whole chunks of one of the run's final arrays."""
        array = self.run.final(name)
        chunk = array.chunks[0]
        if first % chunk or (len(values) % chunk and first + len(values) != array.shape[0]):
            raise ValueError(f"rows {first}+{len(values)} of {name} are not whole chunks of {chunk}")

        tail = ["0"] * (array.ndim - 1)
        numbers = range(first // chunk, -(-(first + len(values)) // chunk))
        keys = ["/".join([name, "c", str(number), *tail]) for number in numbers]

        def fill() -> None:
            array[first : first + len(values)] = values

        if self.run.is_local:
            for key in keys:
                disk.refuse_linked(self.run.location, key)
        self.run.attempt(name, fill)
        for key in keys:
            self._seal(key)

    def create_final(
        self, name: str, shape: tuple[int, ...], dtype: str, chunk_rows: int, fill: float, dimensions: tuple[str, ...]
    ) -> None:
        """Create one of the run's final arrays, which other parts fill."""
        encoded: dict[str, Any] = {}  # made in memory, or Zarr would write groups above it that no manifest names
        zarr.create_array(
            MemoryStore(encoded),
            shape=shape,
            dtype=dtype,
            chunks=(chunk_rows, *shape[1:]),
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=fill,
            dimension_names=dimensions,
        )
        key, data = f"{name}/zarr.json", encoded["zarr.json"].to_bytes()
        own = self.attributes.setdefault(METADATA, {})[key] = metadata.parse(data)
        if found := metadata.parse(self.run.get(key)):
            data = metadata.renewed(found, own)
        self._put(key, lambda: [data])

    def _seal(self, key: str) -> None:
        data = self.run.get(key)
        if data is None:
            raise StorageError(f"{self.run.location}: {key} is gone right after it was written")
        self.objects[key] = (len(data), digest(data))
        self.run.flush(key)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.run.commit(
                self.stage,
                self.name,
                {
                    "attempt": self.attempt,
                    "arrays": self.arrays,
                    "objects": self.objects,
                    "attributes": self.attributes,
                },
            )


class Run(Committed):
    """A run's store: its parts, the group's metadata, and the final arrays.

    Parameters
    ----------
    location, read_only, term, token
        As of `Committed`.
    """

    def part(self, stage: str, name: str) -> Part:
        """Begin a part; see `Part`."""
        return Part(self, stage, name)

    # the group ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Tell whether a run, or another Zarr node, is there."""
        return self.is_committed(IDENTITY, "run") or self.size("zarr.json") >= 0

    def create(self, attributes: dict[str, Any]) -> None:
        """Create the group, unless it is there; mend its metadata where it is damaged."""
        if not self.is_committed(IDENTITY, "run"):
            with self.part(IDENTITY, "run") as out:
                out.attributes |= _own({"format": FORMAT, **attributes})
        self._write_metadata()

    def describe(self, found: dict[str, Any]) -> None:
        """Add to the group's attributes what was found out of the input."""
        if not self.is_committed(IDENTITY, "input"):
            with self.part(IDENTITY, "input") as out:
                out.attributes |= _own(found)
        self._write_metadata()

    def _write_metadata(self) -> None:
        """Write the group's metadata where it does not say what it must; what others added to it is kept."""
        found, own = self._found("zarr.json"), self._metadata()
        if not metadata.holds(found, own):
            self.put("zarr.json", metadata.renewed(found, own))

    def _metadata(self) -> metadata.Document:
        return {"zarr_format": 3, "node_type": "group", "attributes": self.attributes}

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
            told = metadata.attributes_of(self._found("zarr.json"))
            attributes = {name: told[name] for name in OWN if name in told}
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
        """Read one of the run's final arrays whole; fails on what is missing or damaged."""
        array = self.final(name)
        for part in self.committed(stage):
            self.check_sizes(stage, part, name)
        try:
            return np.asarray(self.attempt(name, lambda: array[...]))
        except (ValueError, RuntimeError) as error:
            raise StorageError(f"{self.location}: {name} is damaged; {self.advice()}") from error

    def _is_written(self, stage: str, name: str, key: str, written: Sequence) -> bool:
        """Tell whether an object is what its part wrote; of a final array's metadata, whether it still says all that.

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
        return self.names_below(MANIFESTS)

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
            if not metadata.holds(self._found("zarr.json"), self._metadata()):
                yield "", "", "zarr.json"
        for term in self.terms():
            if self.lock(term) is None:
                yield "", "", lock_key(term)

    def sizes(self, stage: str) -> int:
        """Add up the bytes of the objects that a stage's manifests name."""
        found = 0
        for name in self.committed(stage):
            with contextlib.suppress(DamageError):  # what it names is not known, and made again
                found += sum(size for size, _ in self.manifest(stage, name)["objects"].values())
        return found

    def unnamed(self, naming: Naming) -> tuple[list[str], list[str]]:
        """List what no manifest names: what dumap left over, and what is somebody else's.

        Raises
        ------
        DamageError
            A manifest is damaged, so that what it named is not known.
        """
        named: set[str] = set()
        for group in naming.groups:
            for name in self.committed(group):
                named |= {manifest_key(group, name), *self.manifest(group, name)["objects"]}
        left: list[str] = []
        others: list[str] = []
        for key in self.keys():
            linked = self.is_local and disk.is_link(self.location, key)
            if key in named or (naming.is_lasting(key) and not linked):
                continue
            (left if naming.is_removable(key) and not linked else others).append(key)
        return left, others

    def prune(self, naming: Naming, keys: Iterable[str]) -> None:
        """Remove the folders of removed keys that are empty, and those that tasks left, on local disks."""
        if not self.is_local:
            return
        folders = {f"{MANIFESTS}/{group}" for group in naming.groups} | {key.rpartition("/")[0] for key in keys}
        for stage in naming.stages:
            folders |= set(filter(naming.folder.fullmatch, disk.folders(self.location, stage)))
        self.attempt("", lambda: disk.prune(self.location, folders))

    def refuse_links(self, naming: Naming) -> None:
        """Raise a StorageError where a folder of the run's own is a link: what is written would lie elsewhere."""
        if self.is_local:
            for folder in naming.own_folders():
                disk.refuse_linked(self.location, f"{folder}/")

    def first_other(self, naming: Naming) -> str | None:
        """Return a key that no run holds before it says what it is of; None where there is none."""

        def look() -> str | None:
            begun = (f"{MANIFESTS}/", f"{LOCKS}/")
            for key in self.each_key():
                if not key.startswith(begun) or not (naming.is_lasting(key) or naming.is_removable(key)):
                    return key
            return None

        return self.attempt("", look)


def _own(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return attributes of a run, if they are known to be: others in the group's metadata are somebody else's."""
    if unknown := set(attributes) - set(OWN):
        raise ValueError(f"not among the run's own attributes: {', '.join(sorted(unknown))}")
    return attributes
