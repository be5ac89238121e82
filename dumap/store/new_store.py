"""Writes a Zarr group row by row, so that no reader finds a group that is not whole.

Chunks are written as rows are added. Metadata, without which chunks are no store, are written at the end. On a local
disk everything is written under a temporary name, and renamed at the end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from dumap.errors import StorageError
from dumap.store.disk import is_remote, normalize
from dumap.store.lock import is_gone, this_process
from dumap.store.objects import Objects

METADATA = "zarr.json"
WRITER = ".dumap-writer.json"
"""The file of an unfinished store that says which process writes it."""


class _Held(WrapperStore):
    """A store that holds metadata in memory instead of writing them."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.held: dict[str, Buffer] = {}

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return metadata from memory, and other objects from the store."""
        if key.endswith(METADATA):
            return self.held.get(key)
        return await self._store.get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Hold metadata, and write other objects."""
        if key.endswith(METADATA):
            self.held[key] = value
        else:
            await self._store.set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Hold metadata unless they are held, and write other objects unless they exist."""
        if key.endswith(METADATA):
            self.held.setdefault(key, value)
        else:
            await self._store.set_if_not_exists(key, value)

    async def exists(self, key: str) -> bool:
        """Return whether metadata are held, or another object exists."""
        return key in self.held if key.endswith(METADATA) else await self._store.exists(key)


def remove_leftovers(whole: Path) -> None:
    """Remove the unfinished stores at a location whose writers were processes of this machine and have ended."""
    name = re.compile(rf"\.{re.escape(whole.name)}\.[0-9a-f]{{8}}\.partial")
    for folder in whole.parent.iterdir():
        if name.fullmatch(folder.name) and is_gone(_writer_of(folder)):
            shutil.rmtree(folder, ignore_errors=True)


def _writer_of(folder: Path) -> dict[str, Any]:
    """Return which process writes an unfinished store; empty if the folder does not say."""
    try:
        found = json.loads((folder / WRITER).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class NewStore:
    """A new group of arrays with equal numbers of rows, used as a context. If the context fails, no group is left.

    Parameters
    ----------
    path : str
        The location of the group, which must not exist.
    chunk_rows : int

    Raises
    ------
    StorageError
    """

    def __init__(self, path: str, chunk_rows: int) -> None:
        self.path, self.chunk_rows, self.rows = normalize(path), chunk_rows, 0
        self._remote = is_remote(self.path)
        whole = Path(self.path)
        partial = str(whole.with_name(f".{whole.name}.{uuid.uuid4().hex[:8]}.partial"))
        self._location = self.path if self._remote else partial
        self._arrays: dict[str, zarr.Array] = {}
        self._waiting: dict[str, np.ndarray] = {}
        self._count = 0

    def __enter__(self) -> NewStore:
        if self._remote:
            objects = Objects(self.path)
            left = objects.keys()
            if any(re.fullmatch(r"[^/]+/c(/\d+)+", key) is None for key in left):
                raise StorageError(f"{self.path} exists; remove it, or name another")
            objects.delete_all(left)  # chunks without metadata, which an unfinished store left
        elif os.path.lexists(self.path):
            raise StorageError(f"{self.path} exists; remove it, or name another")
        elif not os.path.isdir(parent := os.path.dirname(self.path)):
            raise StorageError(f"{self.path}: there is no folder {parent}; make it, or name another place")
        self._objects = Objects(self._location)
        if not self._remote:
            remove_leftovers(Path(self.path))
            self._objects.put(WRITER, json.dumps(this_process()).encode())
        self._store = _Held(self._objects.store)
        self._group = self._objects.attempt("", lambda: zarr.create_group(self._store))
        return self

    @property
    def total(self) -> int:
        """The number of rows that were added, written or not."""
        return self.rows + self._count

    def add(self, name: str, dims: tuple[int, ...], dtype: Any) -> None:
        """Add an array, (row, *dims)."""
        self._arrays[name] = self._group.create_array(
            name,
            shape=(0, *dims),
            chunks=(self.chunk_rows, *dims),
            dtype=dtype,
            dimension_names=("row", "column")[: 1 + len(dims)],
            config={"write_empty_chunks": True},
        )
        self._waiting[name] = np.empty((self.chunk_rows, *dims), object if dtype is str else dtype)

    def append(self, blocks: dict[str, Any], rows: int) -> None:
        """Add a block of `rows` rows to each array."""
        done = 0
        while done < rows:
            count = min(rows - done, self.chunk_rows - self._count)
            for name, block in blocks.items():
                self._waiting[name][self._count : self._count + count] = block[done : done + count]
            self._count += count
            done += count
            if self._count == self.chunk_rows:
                self._flush()

    def _flush(self) -> None:
        """Write a chunk of each array: a full chunk, or the last chunk."""
        first, self.rows = self.rows, self.rows + self._count
        for name, array in self._arrays.items():
            rows = self._waiting[name][: self._count]

            def write(array: zarr.Array = array, rows: np.ndarray = rows) -> None:
                array.resize((self.rows, *array.shape[1:]))
                array[first : self.rows] = rows

            self._objects.attempt(name, write)
        self._count = 0

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                if self._count:
                    self._flush()
                for key in sorted(self._store.held, key=lambda key: (-key.count("/"), key)):  # the group's come last
                    self._objects.put(key, self._store.held[key].to_bytes())
                if not self._remote:
                    self._objects.attempt("", lambda: os.rename(self._location, self.path))
                    os.remove(os.path.join(self.path, WRITER))
        finally:
            if not self._remote:
                shutil.rmtree(self._location, ignore_errors=True)
