"""A Zarr group that is written row by row, and that nobody takes for whole before it is.

Chunks are written as they come; metadata, without which they are no store, once all are there. In a folder all of it is
written beside the place, and takes its name last.
"""

from __future__ import annotations

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
from dumap.store.objects import Objects

METADATA = "zarr.json"


class _Held(WrapperStore):
    """A store whose metadata is held back."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.held: dict[str, Buffer] = {}

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return what is held, or lies there."""
        if key.endswith(METADATA):
            return self.held.get(key)
        return await self._store.get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Hold metadata, and write all else."""
        if key.endswith(METADATA):
            self.held[key] = value
        else:
            await self._store.set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Hold metadata, unless it is held."""
        if key.endswith(METADATA):
            self.held.setdefault(key, value)
        else:
            await self._store.set_if_not_exists(key, value)

    async def exists(self, key: str) -> bool:
        """Tell what is held, or lies there."""
        return key in self.held if key.endswith(METADATA) else await self._store.exists(key)


class NewStore:
    """A group of arrays of as many rows each, which grow together; a context, which leaves nothing where it fails.

    Parameters
    ----------
    path : str
        Where it will be; nothing may be there.
    chunk_rows : int

    Raises
    ------
    StorageError
    """

    def __init__(self, path: str, chunk_rows: int) -> None:
        self.path, self.chunk_rows, self.rows = normalize(path), chunk_rows, 0
        self._remote = is_remote(self.path)
        whole = Path(self.path)
        self._place = (
            self.path if self._remote else str(whole.with_name(f".{whole.name}.{uuid.uuid4().hex[:8]}.partial"))
        )
        self._arrays: dict[str, zarr.Array] = {}
        self._waiting: dict[str, np.ndarray] = {}
        self._count = 0

    def __enter__(self) -> NewStore:
        if self._remote:
            objects = Objects(self.path)
            left = objects.keys()
            if any(re.fullmatch(r"[^/]+/c(/\d+)+", key) is None for key in left):
                raise StorageError(f"{self.path} exists; remove it, or name another")
            objects.delete_all(left)  # chunks without metadata: of a store that was not written to its end
        elif os.path.lexists(self.path):
            raise StorageError(f"{self.path} exists; remove it, or name another")
        elif not os.path.isdir(parent := os.path.dirname(self.path)):
            raise StorageError(f"{self.path}: there is no folder {parent}; make it, or name another place")
        self._objects = Objects(self._place)
        self._store = _Held(self._objects.store)
        self._group = self._objects.attempt("", lambda: zarr.create_group(self._store))
        return self

    @property
    def total(self) -> int:
        """Rows that were added, written or not."""
        return self.rows + self._count

    def add(self, name: str, dims: tuple[int, ...], dtype: Any) -> None:
        """Add an array of rows of a shape."""
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
        """Add rows to all arrays."""
        done = 0
        while done < rows:
            some = min(rows - done, self.chunk_rows - self._count)
            for name, block in blocks.items():
                self._waiting[name][self._count : self._count + some] = block[done : done + some]
            self._count += some
            done += some
            if self._count == self.chunk_rows:
                self._flush()

    def _flush(self) -> None:
        """Write the chunk that is full, or the last."""
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
                for key in sorted(self._store.held, key=lambda key: (-key.count("/"), key)):  # the group's last
                    self._objects.put(key, self._store.held[key].to_bytes())
                if not self._remote:
                    self._objects.attempt("", lambda: os.rename(self._place, self.path))
        finally:
            if not self._remote:
                shutil.rmtree(self._place, ignore_errors=True)
