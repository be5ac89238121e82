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
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from dumap import disk
from dumap.errors import DamageError, LockError, StorageError
from dumap.store.arrays import refuse_code
from dumap.store.manifests import IDENTITY, MANIFESTS, Manifest, is_sound, manifest_key
from dumap.store.objects import LOCKS, Objects, digest, seal, unseal
from dumap.store.shards import Broken, Shard

FORMAT = 10
"""Version of the run's format; a run of another version is refused."""

OBJECT_BYTES = 32 << 20
"""Rows that are gathered are written as objects of at most this size: a bucket takes an object out of memory."""

SECTIONS = ("parameters", "versions", "input")
"""Attributes of a run that hold keys and values."""


def lock_key(term: int) -> str:
    """Name the object that says who drives the run in a term."""
    return f"{LOCKS}/{term:08d}.json"


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

        def fill() -> None:
            array[first : first + len(values)] = values

        self.run.attempt(name, fill)
        tail = ["0"] * (array.ndim - 1)
        for number in range(first // chunk, -(-(first + len(values)) // chunk)):
            self._seal("/".join([name, "c", str(number), *tail]))

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
        for key, buffer in encoded.items():
            data = buffer.to_bytes()
            self._put(f"{name}/{key}", lambda data=data: [data])  # type: ignore[misc]

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


class Run(Objects):
    """A run's store.

    Parameters
    ----------
    location : str
        A path or a URL.
    read_only : bool
    term : int, optional
        The term of the driver for which this is opened: once another driver took over, nothing can be committed
        or removed.
    """

    def __init__(self, location: str, read_only: bool = False, term: int | None = None) -> None:
        super().__init__(location, read_only)
        self.term = term
        self._manifests: dict[tuple[str, str], Manifest] = {}
        self._shards: dict[tuple[str, str, str], list[tuple[str, Shard]]] = {}

    # the group ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Tell whether a run, or another Zarr node, is there."""
        return self.is_committed(IDENTITY, "run") or self.get("zarr.json") is not None

    def create(self, attributes: dict[str, Any]) -> None:
        """Create the group, unless it is there; mend its metadata where it is damaged."""
        if not self.is_committed(IDENTITY, "run"):
            with self.part(IDENTITY, "run") as out:
                out.attributes |= {"format": FORMAT, **attributes}
        self._write_metadata()

    def describe(self, found: dict[str, Any]) -> None:
        """Add to the group's attributes what was found out of the input."""
        if not self.is_committed(IDENTITY, "input"):
            with self.part(IDENTITY, "input") as out:
                out.attributes |= found
        self._write_metadata()

    def _write_metadata(self) -> None:
        whole = self._metadata()
        if self.get("zarr.json") != whole:
            self.put("zarr.json", whole)

    def _metadata(self) -> bytes:
        meta = {"zarr_format": 3, "node_type": "group", "attributes": self.attributes}
        return json.dumps(meta, indent=1, sort_keys=True).encode()

    def _is_described(self) -> bool:
        """Tell whether the group's metadata says what the run is of: more than that where a manifest of it is lost."""
        known = json.loads(self._metadata())
        try:
            found = json.loads(self.get("zarr.json") or b"")
            return known.pop("attributes").items() <= found.pop("attributes").items() and known == found
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False

    @property
    def attributes(self) -> dict[str, Any]:
        """What the run is of; refuses what is not a run of this format."""
        if self.is_committed(IDENTITY, "run"):
            attributes = dict(self.summary(IDENTITY, "run"))
            if self.is_committed(IDENTITY, "input"):
                attributes |= self.summary(IDENTITY, "input")
        else:
            data = self.get("zarr.json")
            if data is None:
                raise StorageError(f"{self.location} holds no run")
            try:
                attributes = json.loads(data)["attributes"]
            except (ValueError, KeyError, TypeError, RecursionError):
                attributes = {}
        version = attributes.get("format") if isinstance(attributes, dict) else None
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
        self._check_object(IDENTITY, "results", key)

        def open_it() -> zarr.Array:
            opened = zarr.open_array(self.store, path=name, mode="r" if self.store.read_only else "r+")
            return refuse_code(opened).with_config({"write_empty_chunks": True})

        return self.attempt(key, open_it)

    def read_final(self, name: str, stage: str) -> np.ndarray:
        """Read one of the run's final arrays whole; fails on what is missing or damaged."""
        array = self.final(name)
        for part in self.committed(stage):
            self._check_sizes(stage, part, name)
        try:
            return np.asarray(self.attempt(name, lambda: array[...]))
        except (ValueError, RuntimeError) as error:
            raise StorageError(f"{self.location}: {name} is damaged; {self._advice()}") from error

    # parts -------------------------------------------------------------------------------------

    def part(self, stage: str, name: str) -> Part:
        """Begin a part; see `Part`."""
        return Part(self, stage, name)

    def commit(self, stage: str, name: str, manifest: Manifest) -> None:
        """Commit a manifest unless one is there: what it names is there for good before it is."""
        self._check_term()
        self.flush_folders(manifest["objects"])
        self.put_new(manifest_key(stage, name), seal({**manifest, "time": time.time()}))
        self._manifests.pop((stage, name), None)

    def _check_term(self) -> None:
        """Fail where another driver took over."""
        if self.term is not None and self.get(lock_key(self.term + 1)) is not None:
            raise LockError(f"{self.location}: another driver took this run over; nothing more was written by this one")

    def committed(self, stage: str) -> list[str]:
        """List a stage's committed parts."""
        names = self.names_below(f"{MANIFESTS}/{stage}")
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]

    def is_committed(self, stage: str, name: str) -> bool:
        """Tell whether a part is committed."""
        return self.get(manifest_key(stage, name)) is not None

    def manifest(self, stage: str, name: str) -> Manifest:
        """Read a committed part's manifest and check it."""
        if (stage, name) not in self._manifests:
            key = manifest_key(stage, name)
            manifest = unseal(self.get(key) or b"")
            if manifest is None or not is_sound(manifest):
                raise self._damaged(stage, name, key)
            self._manifests[stage, name] = manifest
        return self._manifests[stage, name]

    def summary(self, stage: str, name: str) -> dict[str, Any]:
        """Return the small facts that a part's task left in its manifest."""
        return self.manifest(stage, name)["attributes"]

    def discard(self, stage: str, name: str) -> None:
        """Remove a part: its manifest first, then its objects."""
        manifest = self.manifest(stage, name)
        self.forget(stage, name)
        if manifest["arrays"]:
            self.delete_folder(f"{stage}/{name}-{manifest['attempt']}")

    def forget(self, stage: str, name: str) -> None:
        """Remove a part's manifest, readable or not; what it named no longer counts."""
        self._check_term()
        self.delete(manifest_key(stage, name))
        self._manifests.pop((stage, name), None)
        for known in [key for key in self._shards if key[:2] == (stage, name)]:
            del self._shards[known]

    def _pieces(self, stage: str, name: str, array: str) -> list[tuple[str, Shard]]:
        """Return where an array's objects lie, and how."""
        if (stage, name, array) not in self._shards:
            told = self.manifest(stage, name)["arrays"][array]
            self._shards[stage, name, array] = [(path, Shard.parse(shape, dtype)) for path, shape, dtype in told]
        return self._shards[stage, name, array]

    def _check_sizes(self, stage: str, name: str, below: str) -> None:
        """Fail unless what a part wrote below a path is there, and as long as it was."""
        for key, (size, _) in self.manifest(stage, name)["objects"].items():
            if key.startswith(f"{below}/") and self.size(key) != size:
                raise self._damaged(stage, name, key)

    def _check_object(self, stage: str, name: str, key: str) -> None:
        """Fail unless an object is what its part wrote."""
        known = self.manifest(stage, name)["objects"].get(key)
        if known is None or not self._is_whole(key, *known):
            raise self._damaged(stage, name, key)

    def _is_whole(self, key: str, size: int, known: str) -> bool:
        """Tell whether an object is there, and what was written."""
        data = self.get(key)
        return data is not None and len(data) == size and digest(data) == known

    def _damaged(self, stage: str, name: str, what: str) -> DamageError:
        return DamageError(
            f"{self.location}: {what} ({stage} {name}) is missing or damaged; {self._advice()}", stage, name
        )

    def _advice(self) -> str:
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
        """Read rows [start, stop) of a committed array, into `out` if given; fails on what is missing or damaged."""
        pieces = self._pieces(stage, name, array)
        offsets = [0, *accumulate(shard.shape[0] for _, shard in pieces)]
        stop = offsets[-1] if stop is None else min(stop, offsets[-1])
        if out is None:
            out = np.empty((max(0, stop - start), *pieces[0][1].shape[1:]), pieces[0][1].dtype)
        elif len(out) != max(0, stop - start):
            raise self._damaged(stage, name, array)
        for (path, shard), first, last in zip(pieces, offsets[:-1], offsets[1:], strict=True):
            low, high = max(start, first), min(stop, last)
            if low < high:
                self._read_object(stage, name, path, shard, low - first, high - first, out[low - start : high - start])
        return out

    def _read_object(
        self, stage: str, name: str, path: str, shard: Shard, start: int, stop: int, out: np.ndarray
    ) -> None:
        """Fill `out` with rows [start, stop) of an object."""
        key, span = shard.key(path), shard.span(start, stop)

        def fill() -> None:
            with self.open_span(key, *span, shard.size) as source:
                shard.read(source, start, stop, out)

        try:
            self.attempt(key, fill)
        except (FileNotFoundError, EOFError, Broken) as error:
            raise self._damaged(stage, name, key) from error
        except StorageError as error:
            if self.size(key) not in (-1, shard.size):  # buckets refuse a range that begins after the end
                raise self._damaged(stage, name, key) from error
            raise

    def read_span(
        self, stage: str, names: Sequence[str], offsets: np.ndarray, array: str, start: int, stop: int
    ) -> np.ndarray:
        """Read rows [start, stop) of what parts hold one after another; part p's rows begin at offsets[p]."""
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
        shard = self._pieces(stage, spans[0][0], array)[0][1]
        out, done = np.empty((sum(high - low for _, low, high in spans), *shard.shape[1:]), shard.dtype), 0
        for name, low, high in spans:
            self.read(stage, name, array, low, high, out[done : done + high - low])
            done += high - low
        return out

    # the whole ---------------------------------------------------------------------------------

    def stages(self) -> list[str]:
        """List the stages that have committed anything."""
        return self.names_below(MANIFESTS)

    def damaged(self) -> Iterator[tuple[str, str, str]]:
        """Read every committed object against its digest; yield stage, part and key of each that fails.

        Stage and part are empty for what no part names: the group's metadata and the lock.
        """
        for stage in self.stages():
            for name in self.committed(stage):
                try:
                    objects = self.manifest(stage, name)["objects"]
                except DamageError:
                    yield stage, name, manifest_key(stage, name)
                    continue
                for key, written in objects.items():
                    if not self._is_whole(key, *written):
                        yield stage, name, key
        with contextlib.suppress(DamageError):  # of what the run is of, told above
            if not self._is_described():
                yield "", "", "zarr.json"
        for term in self.terms():
            if unseal(self.get(lock_key(term)) or b"") is None:
                yield "", "", lock_key(term)

    def terms(self) -> list[int]:
        """List the terms of the run's drivers."""
        names = [name.removesuffix(".json") for name in self.names_below(LOCKS)]
        return sorted(int(name) for name in names if name.isdigit())

    def prune(self) -> None:
        """Remove empty folders, on local disks."""
        if self.is_local:
            self.attempt("", lambda: disk.prune(self.location))

    def unnamed(self) -> list[str]:
        """List the objects that no manifest names.

        Raises
        ------
        DamageError
            A manifest is damaged, so that what it named is not known.
        """
        named = {"zarr.json"}
        for stage in self.stages():
            for name in self.committed(stage):
                named |= {manifest_key(stage, name), *self.manifest(stage, name)["objects"]}
        named |= {lock_key(term) for term in self.terms()}
        return [key for key in self.keys() if key not in named]
