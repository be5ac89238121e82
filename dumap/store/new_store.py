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
from dumap.store.lock import describe_this_process, has_ended
from dumap.store.objects import Objects

METADATA_NAME = "zarr.json"
WRITER_FILE = ".dumap-writer.json"
"""The file of an unfinished store that says which process writes it."""


class _DeferredMetadataStore(WrapperStore):
    """A store that holds metadata in memory instead of writing them."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.held: dict[str, Buffer] = {}

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return metadata from memory, and other objects from the store."""
        if key.endswith(METADATA_NAME):
            return self.held.get(key)
        return await self._store.get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Hold metadata, and write other objects."""
        if key.endswith(METADATA_NAME):
            self.held[key] = value
        else:
            await self._store.set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Hold metadata unless they are held, and write other objects unless they exist."""
        if key.endswith(METADATA_NAME):
            self.held.setdefault(key, value)
        else:
            await self._store.set_if_not_exists(key, value)

    async def exists(self, key: str) -> bool:
        """Return whether metadata are held, or another object exists."""
        return key in self.held if key.endswith(METADATA_NAME) else await self._store.exists(key)


def delete_leftovers(final_path: Path) -> None:
    """Remove the unfinished stores at a location whose writers were processes of this machine and have ended."""
    partial_name = re.compile(rf"\.{re.escape(final_path.name)}\.[0-9a-f]{{8}}\.partial")
    for folder in final_path.parent.iterdir():
        if partial_name.fullmatch(folder.name) and has_ended(_read_writer(folder)):
            shutil.rmtree(folder, ignore_errors=True)


def _read_writer(folder: Path) -> dict[str, Any]:
    """Return which process writes an unfinished store; empty if the folder does not say."""
    try:
        writer = json.loads((folder / WRITER_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return writer if isinstance(writer, dict) else {}


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
        self._is_remote = is_remote(self.path)
        final_path = Path(self.path)
        partial_path = str(final_path.with_name(f".{final_path.name}.{uuid.uuid4().hex[:8]}.partial"))
        self._location = self.path if self._is_remote else partial_path
        self._arrays: dict[str, zarr.Array] = {}
        self._chunk_buffers: dict[str, np.ndarray] = {}
        self._buffered_rows = 0

    def __enter__(self) -> NewStore:
        if self._is_remote:
            objects = Objects(self.path)
            existing_keys = objects.keys()
            if any(re.fullmatch(r"[^/]+/c(/\d+)+", key) is None for key in existing_keys):
                raise StorageError(f"{self.path} exists; remove it, or name another")
            objects.delete_keys(existing_keys)  # chunks without metadata, which an unfinished store left
        elif os.path.lexists(self.path):
            raise StorageError(f"{self.path} exists; remove it, or name another")
        elif not os.path.isdir(parent := os.path.dirname(self.path)):
            raise StorageError(f"{self.path}: there is no folder {parent}; make it, or name another place")
        self._objects = Objects(self._location)
        if not self._is_remote:
            delete_leftovers(Path(self.path))
            self._objects.put(WRITER_FILE, json.dumps(describe_this_process()).encode())
        self._store = _DeferredMetadataStore(self._objects.store)
        self._group = self._objects.call_with_retries("", lambda: zarr.create_group(self._store))
        return self

    @property
    def total(self) -> int:
        """The number of rows that were added, written or not."""
        return self.rows + self._buffered_rows

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
        self._chunk_buffers[name] = np.empty((self.chunk_rows, *dims), object if dtype is str else dtype)

    def append(self, blocks: dict[str, Any], rows: int) -> None:
        """Add a block of `rows` rows to each array."""
        appended_rows = 0
        while appended_rows < rows:
            count = min(rows - appended_rows, self.chunk_rows - self._buffered_rows)
            for name, block in blocks.items():
                self._chunk_buffers[name][self._buffered_rows : self._buffered_rows + count] = block[
                    appended_rows : appended_rows + count
                ]
            self._buffered_rows += count
            appended_rows += count
            if self._buffered_rows == self.chunk_rows:
                self._write_chunk()

    def _write_chunk(self) -> None:
        """Write a chunk of each array: a full chunk, or the last chunk."""
        first, self.rows = self.rows, self.rows + self._buffered_rows
        for name, array in self._arrays.items():
            rows = self._chunk_buffers[name][: self._buffered_rows]

            def write(array: zarr.Array = array, rows: np.ndarray = rows) -> None:
                array.resize((self.rows, *array.shape[1:]))
                array[first : self.rows] = rows

            self._objects.call_with_retries(name, write)
        self._buffered_rows = 0

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                if self._buffered_rows:
                    self._write_chunk()
                for key in sorted(self._store.held, key=lambda key: (-key.count("/"), key)):  # the group's come last
                    self._objects.put(key, self._store.held[key].to_bytes())
                if not self._is_remote:
                    self._objects.call_with_retries("", lambda: os.rename(self._location, self.path))
                    os.remove(os.path.join(self.path, WRITER_FILE))
        finally:
            if not self._is_remote:
                shutil.rmtree(self._location, ignore_errors=True)
