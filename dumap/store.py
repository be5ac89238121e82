"""The run on disk: one Zarr v3 group, whose parts count only once a manifest names them.

    RUN.zarr/
      zarr.json                    attributes: format, parameters, seed, versions, the input's fingerprint
      embedding, status            the results, one chunk per task
      <stage>/<part>-<attempt>/    what one task wrote: an array per name, one object an array
      manifests/<stage>/<part>.json

A task writes its objects under a name of its own, then the manifest, by create-if-absent: the first
manifest wins, and what no manifest names does not exist. Arrays carry a checksum per range of rows, which
every read verifies; manifests carry each object's size and digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any
from zipfile import BadZipFile

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ArrayNotFoundError, GroupNotFoundError
from zarr.storage import LocalStore, ObjectStore, ZipStore

from dumap import disk
from dumap.disk import is_remote, normalize
from dumap.errors import ConfigError, InputError, StorageError

FORMAT = 1
"""Version of the run's format; a run of another version is refused."""

MANIFESTS = "manifests"
OBJECT_BYTES = 32 << 20
"""Long arrays are written as objects of at most this size: Zarr encodes an object in memory."""
RANGE_BYTES = 1 << 19
"""Rows are read in ranges of about this size, each with a checksum of its own."""

Manifest = dict[str, Any]


def set_threads(threads: int) -> None:
    """Bound what Zarr does at once in this process, since Dask's workers multiply it."""
    zarr.config.set({"async.concurrency": 4 * threads, "threading.max_workers": threads})


def open_store(location: str, read_only: bool) -> Store:
    """Open a folder, a zip file or a bucket."""
    if is_remote(location):
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise ConfigError(f"{location}: URLs need the extra 'cloud': pip install 'dumap[cloud]'") from error
        return ObjectStore(from_url(location), read_only=read_only)
    if location.endswith(".zip") and os.path.isfile(location):
        return ZipStore(location, mode="r", read_only=True)
    return LocalStore(location, read_only=read_only)


def refuse_code(array: zarr.Array) -> zarr.Array:
    """Refuse an array whose chunks are programs: to decode 'pickle' is to run what a chunk holds.

    Raises
    ------
    InputError
    """
    metadata = array.metadata.to_dict()
    codecs: list[Any] = [metadata.get(name) for name in ("filters", "compressor", "codecs")]
    while codecs:
        codec = codecs.pop()
        if isinstance(codec, dict):
            codecs += codec.values()
            if "pickle" in str(codec.get("id", codec.get("name", ""))).lower():
                raise InputError(f"{array.store_path}: its codec 'pickle' would run what its chunks hold; not read")
        elif isinstance(codec, list | tuple):
            codecs += codec
    return array


def find_array(path: str, name: str) -> zarr.Array:
    """Open the array at a path, or that of a name in the group at the path.

    Raises
    ------
    InputError
        There is none; the message lists the arrays there are.
    """
    store = open_store(path, read_only=True)
    absent = (ArrayNotFoundError, GroupNotFoundError, FileNotFoundError, KeyError, ValueError)
    try:
        node = zarr.open(store, mode="r", use_consolidated=False)
    except absent as error:
        raise InputError(f"input.path: {path} is not a Zarr group or array ({error})") from error
    if isinstance(node, zarr.Array):
        return refuse_code(node)
    try:
        found = zarr.open(store, path=name, mode="r", use_consolidated=False)
    except (ArrayNotFoundError, GroupNotFoundError, FileNotFoundError, KeyError):
        found = None
    except ValueError as error:
        raise InputError(f"input.array: {name!r} in {path} is not an array that can be read ({error})") from error
    if not isinstance(found, zarr.Array):
        try:
            arrays = ", ".join(f"{n} {a.shape}" for n, a in sorted(node.arrays())) or "none"
        except ValueError as error:  # one of them is of a kind that Zarr does not know
            arrays = f"not all readable ({error})"
        raise InputError(f"input.array: no array {name!r} in {path}; its arrays are: {arrays}")
    return refuse_code(found)


def read_array(path: str) -> np.ndarray:
    """Read a whole array outside any run: .npy, or the path of a Zarr array."""
    try:
        if path.endswith(".npy"):
            with open(path, "rb") as file:
                return np.load(file, allow_pickle=False)
        return np.asarray(refuse_code(zarr.open_array(path, mode="r"))[...])
    except (ValueError, OSError, EOFError, MemoryError, BadZipFile) as error:
        raise InputError(f"{path} is neither a .npy file nor a Zarr array ({error})") from error


def write_arrays(path: str, arrays: dict[str, tuple[tuple[int, ...], str, Iterator[tuple[int, np.ndarray]]]]) -> None:
    """Write arrays block by block to a new Zarr group outside any run.

    Parameters
    ----------
    path : str
    arrays : dict
        Name to (shape, dtype, blocks); a block is (first row, rows).
    """
    if not is_remote(path) and os.path.exists(path):
        raise StorageError(f"{path} exists; remove it, or name another")
    group = zarr.open_group(open_store(path, read_only=False), mode="w")
    for name, (shape, dtype, blocks) in arrays.items():
        chunk = max(1, min(shape[0], 65536))
        target = group.create_array(
            name, shape=shape, chunks=(chunk, *shape[1:]), dtype=dtype, config={"write_empty_chunks": True}
        )
        for first, block in blocks:
            target[first : first + len(block)] = block


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _range_rows(shape: Sequence[int], itemsize: int) -> int:
    row_bytes = max(1, int(np.prod(shape[1:], dtype=np.int64)) * itemsize)
    return int(min(max(1, shape[0]), max(16, RANGE_BYTES // row_bytes)))


class Part:
    """What one task writes: some arrays, whole, then the manifest that makes them count.

    Use as a context manager; leaving it without an error commits.
    """

    def __init__(self, run: Run, stage: str, name: str) -> None:
        self.run, self.stage, self.name = run, stage, name
        self.attempt = uuid.uuid4().hex[:8]
        self.folder = f"{stage}/{name}-{self.attempt}"
        self.arrays: dict[str, list[str]] = {}
        self.objects: dict[str, list] = {}
        self.attributes: dict[str, Any] = {}

    def write(self, name: str, values: np.ndarray) -> None:
        """Write one array as one object."""
        self.arrays[name] = [self._write_object(name, values)]

    def write_gathered(self, name: str, values: np.ndarray, rows: np.ndarray) -> None:
        """Write `values[rows]` as objects of at most `OBJECT_BYTES`, gathered one at a time."""
        step = max(1, OBJECT_BYTES // max(1, values[:1].nbytes))
        starts = range(0, max(1, len(rows)), step)
        self.arrays[name] = [
            self._write_object(f"{name}-{number}", values[rows[start : start + step]])
            for number, start in enumerate(starts)
        ]

    def _write_object(self, name: str, values: np.ndarray) -> str:
        path = f"{self.folder}/{name}"
        values = np.ascontiguousarray(values)
        rows = _range_rows(values.shape, values.dtype.itemsize)
        whole = max(rows, -(-len(values) // rows) * rows)
        array = zarr.create_array(
            self.run.store,
            name=path,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(rows, *values.shape[1:]),
            shards=(whole, *values.shape[1:]),
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        if len(values):
            array[...] = values
        self._seal(f"{path}/zarr.json")
        if len(values):
            self._seal("/".join([path, "c", *["0"] * values.ndim]))
        return path

    def write_rows(self, name: str, first: int, values: np.ndarray) -> None:
        """Write whole chunks of one of the run's final arrays."""
        array = self.run.final(name)
        chunk = array.chunks[0]
        if first % chunk or (len(values) % chunk and first + len(values) != array.shape[0]):
            raise ValueError(f"rows {first}+{len(values)} of {name} are not whole chunks of {chunk}")
        array[first : first + len(values)] = values
        tail = ["0"] * (array.ndim - 1)
        self._seal(f"{name}/zarr.json")
        for number in range(first // chunk, -(-(first + len(values)) // chunk)):
            self._seal("/".join([name, "c", str(number), *tail]))

    def _seal(self, key: str) -> None:
        data = self.run.get(key)
        if data is None:
            raise StorageError(f"{self.run.location}: {key} is gone right after it was written")
        self.objects[key] = [len(data), _digest(data)]
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


class Run:
    """A run's store.

    Parameters
    ----------
    location : str
        A path or a URL.
    read_only : bool
    """

    def __init__(self, location: str, read_only: bool = False) -> None:
        self.location = normalize(location)
        self.store = open_store(self.location, read_only)
        self._manifests: dict[tuple[str, str], Manifest] = {}
        self._opened: dict[tuple[str, str, str], list[zarr.Array]] = {}

    # the group ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Tell whether a run is there."""
        return self.get("zarr.json") is not None

    def create(self, attributes: dict[str, Any]) -> None:
        """Create the group, unless it is there."""
        meta = {"zarr_format": 3, "node_type": "group", "attributes": {"format": FORMAT, **attributes}}
        self.put_new("zarr.json", json.dumps(meta, indent=1).encode())

    def create_final(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        chunk_rows: int,
        fill: float,
        dimensions: tuple[str, ...],
    ) -> None:
        """Create one of the run's final arrays, unless it is there."""
        if self.get(f"{name}/zarr.json") is None:
            zarr.create_array(
                self.store,
                name=name,
                shape=shape,
                dtype=dtype,
                chunks=(chunk_rows, *shape[1:]),
                fill_value=fill,
                dimension_names=dimensions,
                compressors=[Crc32cCodec()],
                filters=None,
            )
            self.flush(f"{name}/zarr.json")

    @property
    def attributes(self) -> dict[str, Any]:
        """The group's attributes; refuses what is not a run of this format."""
        data = self.get("zarr.json")
        if data is None:
            raise StorageError(f"{self.location} holds no run")
        try:
            attributes = json.loads(data)["attributes"]
            version = attributes["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self.location} is not a dumap run: its zarr.json has no 'format'") from error
        if version != FORMAT:
            raise StorageError(f"{self.location} has format {version}; this version of dumap reads format {FORMAT}")
        return attributes

    def set_attributes(self, more: dict[str, Any]) -> None:
        """Add attributes to the group, replacing its metadata in one write."""
        meta = {"zarr_format": 3, "node_type": "group", "attributes": {**self.attributes, **more}}
        self.put("zarr.json", json.dumps(meta, indent=1).encode())

    def read_final(self, name: str) -> np.ndarray:
        """Read one of the run's final arrays whole."""
        return np.asarray(self.final(name)[...])

    def final(self, name: str) -> zarr.Array:
        """Open one of the run's final arrays."""
        with zarr.config.set({"array.write_empty_chunks": True}):
            return refuse_code(zarr.open_array(self.store, path=name, mode="r" if self.store.read_only else "r+"))

    # objects -----------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        """Return an object's bytes, or None where there is none."""
        try:
            buffer = sync(self.store.get(key, default_buffer_prototype()))
        except FileNotFoundError:  # a folder that is not there yet
            return None
        return None if buffer is None else buffer.to_bytes()

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole, replacing what is there."""
        sync(self.store.set(key, default_buffer_prototype().buffer.from_bytes(data)))
        self.flush(key)

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object unless it is there; tell whether it now holds `data`."""
        if isinstance(self.store, LocalStore):
            return disk.create(self.location, key, data)
        sync(self.store.set_if_not_exists(key, default_buffer_prototype().buffer.from_bytes(data)))
        return self.get(key) == data

    def delete(self, key: str) -> None:
        """Remove an object, or all below a folder."""
        sync(self.store.delete(key))

    def delete_folder(self, key: str) -> None:
        """Remove all below a folder."""
        sync(self.store.delete_dir(key))

    def names_below(self, folder: str) -> list[str]:
        """List the names right below a folder."""

        async def collect() -> list[str]:
            return [name async for name in self.store.list_dir(folder)]

        try:
            return sorted(name for name in sync(collect()) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def flush(self, key: str) -> None:
        """Make an object survive a power cut, on local disks."""
        if isinstance(self.store, LocalStore):
            disk.flush(self.location, key)

    # parts -------------------------------------------------------------------------------------

    def part(self, stage: str, name: str) -> Part:
        """Begin a part; see `Part`."""
        return Part(self, stage, name)

    def commit(self, stage: str, name: str, manifest: Manifest) -> Manifest:
        """Commit a manifest unless one is there; return the one that counts."""
        manifest = {**manifest, "time": time.time()}
        body = json.dumps(manifest, sort_keys=True)
        data = json.dumps({"manifest": manifest, "digest": _digest(body.encode())}).encode()
        self.put_new(f"{MANIFESTS}/{stage}/{name}.json", data)
        self._manifests.pop((stage, name), None)
        return self.manifest(stage, name)

    def committed(self, stage: str) -> list[str]:
        """List a stage's committed parts."""
        names = self.names_below(f"{MANIFESTS}/{stage}")
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]

    def is_committed(self, stage: str, name: str) -> bool:
        """Tell whether a part is committed."""
        return self.get(f"{MANIFESTS}/{stage}/{name}.json") is not None

    def manifest(self, stage: str, name: str) -> Manifest:
        """Read a committed part's manifest and check it."""
        if (stage, name) not in self._manifests:
            key = f"{MANIFESTS}/{stage}/{name}.json"
            data = self.get(key)
            if data is None:
                raise StorageError(f"{self.location}: {key} is missing, so {stage} {name} is not done")
            try:
                wrapped = json.loads(data)
                manifest = wrapped["manifest"]
                good = wrapped["digest"] == _digest(json.dumps(manifest, sort_keys=True).encode())
            except (ValueError, KeyError, TypeError):
                good = False
            if not good:
                raise StorageError(f"{self.location}: {key} is damaged; run 'dumap verify {self.location}'")
            self._manifests[stage, name] = manifest
        return self._manifests[stage, name]

    def summary(self, stage: str, name: str) -> dict[str, Any]:
        """Return the small facts that a part's task left in its manifest."""
        return self.manifest(stage, name)["attributes"]

    def discard(self, stage: str, name: str) -> None:
        """Remove a part: its manifest first, then its objects."""
        manifest = self.manifest(stage, name)
        self.delete(f"{MANIFESTS}/{stage}/{name}.json")
        self._manifests.pop((stage, name), None)
        for array in manifest["arrays"]:
            self._opened.pop((stage, name, array), None)
        if manifest["arrays"]:
            self.delete_folder(f"{stage}/{name}-{manifest['attempt']}")

    def forget(self, stage: str, name: str) -> None:
        """Remove a part's manifest, readable or not; what it named no longer counts."""
        if self.is_committed(stage, name):
            self.delete(f"{MANIFESTS}/{stage}/{name}.json")
        self._manifests.pop((stage, name), None)

    def _open(self, stage: str, name: str, array: str) -> list[zarr.Array]:
        """Open an array's objects; each read first sees that they are there, and of the size that was written."""
        manifest = self.manifest(stage, name)
        paths, objects = manifest["arrays"][array], manifest["objects"]
        for path in paths:
            for key, (size, _) in objects.items():
                if key.startswith(f"{path}/") and self._size(key) != size:
                    raise self._damaged(stage, name, key)
        if (stage, name, array) not in self._opened:
            for path in paths:
                data = self.get(f"{path}/zarr.json")
                if data is None or _digest(data) != objects[f"{path}/zarr.json"][1]:
                    raise self._damaged(stage, name, f"{path}/zarr.json")
            self._opened[stage, name, array] = [zarr.open_array(self.store, path=path, mode="r") for path in paths]
        return self._opened[stage, name, array]

    def _size(self, key: str) -> int:
        try:
            return int(sync(self.store.getsize(key)))
        except FileNotFoundError:
            return -1

    def _damaged(self, stage: str, name: str, key: str) -> StorageError:
        return StorageError(
            f"{self.location}: {key} ({stage} {name}) is missing or damaged; "
            f"'dumap verify {self.location} --repair' removes what is damaged, 'dumap run' makes it again"
        )

    def read(self, stage: str, name: str, array: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows [start, stop) of a committed array; fails on what is missing or damaged."""
        opened = self._open(stage, name, array)
        offsets = np.cumsum([0, *(piece.shape[0] for piece in opened)])
        stop = int(offsets[-1]) if stop is None else stop
        if stop <= start:
            return np.empty((0, *opened[0].shape[1:]), opened[0].dtype)
        found = []
        for piece, low, high in zip(opened, offsets[:-1], offsets[1:], strict=True):
            if low < stop and high > start:
                try:
                    found.append(np.asarray(piece[max(start, low) - low : min(stop, high) - low]))
                except (ValueError, FileNotFoundError, RuntimeError) as error:
                    raise self._damaged(stage, name, f"{piece.path} rows {start} to {stop}") from error
        return found[0] if len(found) == 1 else np.concatenate(found)

    def read_span(
        self, stage: str, names: Sequence[str], offsets: np.ndarray, array: str, start: int, stop: int
    ) -> np.ndarray:
        """Read rows [start, stop) of what parts hold one after another; part p's rows begin at offsets[p]."""
        pieces = []
        begin = int(np.searchsorted(offsets, start, side="right")) - 1
        for p in range(max(begin, 0), len(names)):
            low, high = int(offsets[p]), int(offsets[p + 1])
            if low >= stop:
                break
            if high > start and high > low:
                pieces.append(self.read(stage, names[p], array, max(start, low) - low, min(stop, high) - low))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    # the whole ---------------------------------------------------------------------------------

    def stages(self) -> list[str]:
        """List the stages that have committed anything."""
        return self.names_below(MANIFESTS)

    def damaged(self) -> Iterator[tuple[str, str, str]]:
        """Read every committed object against its digest; yield stage, part and key of each that fails."""
        for stage in self.stages():
            for name in self.committed(stage):
                try:
                    objects = self.manifest(stage, name)["objects"]
                except StorageError:
                    yield stage, name, f"{MANIFESTS}/{stage}/{name}.json"
                    continue
                for key, (size, digest) in objects.items():
                    data = self.get(key)
                    if data is None or len(data) != size or _digest(data) != digest:
                        yield stage, name, key


def probe(location: str) -> None:
    """Fail unless the location can be written to."""
    run = Run(location)
    key = f"{MANIFESTS}/probe-{uuid.uuid4().hex[:8]}"
    try:
        run.put(key, b"probe")
        run.delete(key)
    except Exception as error:  # any store's own kind of refusal
        raise StorageError(f"output: {location} cannot be written to ({type(error).__name__}: {error})") from error
