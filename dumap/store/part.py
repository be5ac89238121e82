"""Writes a part: the arrays of one task, and the manifest that commits them."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from dumap.store import metadata
from dumap.store.manifests import part_object_key
from dumap.store.objects import ObjectWriter
from dumap.store.stored_array import StoredArray, encode_chunk

if TYPE_CHECKING:
    from dumap.store.run import Run

OBJECT_BYTES = 32 << 20
"""The largest piece of an array in a bucket, in bytes: an object is held in memory until it is sent."""
WRITTEN_METADATA = "metadata"
"""Attribute of the part that made the final arrays: the metadata that dumap wrote, by key."""


class Part:
    """A part being written: arrays, facts, and at the end the manifest.

    Use it as a context. If the context ends without an error, the part is committed.

    Parameters
    ----------
    run : Run
    stage, name : str
    durable : bool
        Whether the objects are flushed to the disk before the manifest is written.
    """

    def __init__(self, run: Run, stage: str, name: str, durable: bool = True) -> None:
        self.run, self.stage, self.name, self.durable = run, stage, name, durable
        self.attempt = uuid.uuid4().hex[:8]
        self.arrays: dict[str, list[tuple]] = {}
        self.objects: dict[str, tuple[int, str]] = {}
        self.attributes: dict[str, Any] = {}
        self._open_object: ObjectWriter | None = None

    def write(self, name: str, values: np.ndarray, rows_per_range: int = 0) -> None:
        """Write an array in ranges of `rows_per_range` rows, by default of about `RANGE_BYTES`."""
        self.arrays[name] = self._append_rows(values, None, rows_per_range)

    def write_gathered(self, name: str, values: np.ndarray, rows: np.ndarray, rows_per_range: int = 0) -> None:
        """Write the array `values[rows]`, gathered piece by piece, in ranges as `write` does."""
        self.arrays[name] = self._append_rows(np.ascontiguousarray(values), rows, rows_per_range)

    def _append_rows(self, values: np.ndarray, rows: np.ndarray | None, rows_per_range: int) -> list[tuple]:
        """Append an array, or some of its rows, to the part's object; return its pieces for the manifest.

        An object of a bucket is held in memory until it is sent. So in a bucket a piece has at most `OBJECT_BYTES`, and
        an object has less than twice as many.
        """
        count, pieces = len(values) if rows is None else len(rows), []
        step = max(1, count)
        if not self.run.is_local:
            step = max(1, OBJECT_BYTES // max(1, values[:1].nbytes))
        for start in range(0, max(1, count), step):
            block = values[start : start + step] if rows is None else values
            block_rows = None if rows is None else rows[start : start + step]
            layout = StoredArray.of(values, min(step, count - start), rows_per_range)
            if self._open_object is None:
                self._open_object = ObjectWriter(
                    self.run, part_object_key(self.stage, self.name, self.attempt, len(self.objects))
                )
            pieces.append((self._open_object.key, self._open_object.size, *layout.described()))
            self._open_object.add(layout.pieces(block, block_rows))
            if not self.run.is_local and self._open_object.size >= OBJECT_BYTES:
                self._close_object()
        return pieces

    def _close_object(self) -> None:
        """Finish the object that is open."""
        if self._open_object is not None:
            self.objects[self._open_object.key] = self._open_object.keep(self.durable)
            self._open_object = None

    def _put_object(self, key: str, data: bytes) -> None:
        """Write an object, and name it in the manifest."""
        self.objects[key] = self.run.put_with_digest(key, data, self.durable)

    def write_rows(self, name: str, first: int, values: np.ndarray) -> None:
        """Write rows from `first` on to one of the run's final arrays; the rows are whole chunks."""
        array = self.run.open_final(name)
        chunk = array.chunks[0]
        if first % chunk or (len(values) % chunk and first + len(values) != array.shape[0]):
            raise ValueError(f"rows {first}+{len(values)} of {name} are not whole chunks of {chunk}")
        for start in range(0, len(values), chunk):
            rows = np.full((chunk, *values.shape[1:]), array.fill_value, array.dtype)
            rows[: len(values) - start] = values[start : start + chunk]
            key = "/".join([name, "c", str((first + start) // chunk), *["0"] * (array.ndim - 1)])
            self._put_object(key, encode_chunk(rows))

    def create_final_array(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        chunk_rows: int,
        fill: float,
        attributes: dict[str, Any],
    ) -> None:
        """Create one of the run's final arrays, (row, component) or (row,). Other parts write its rows."""
        stored_objects: dict[
            str, Any
        ] = {}  # in memory, since Zarr would write groups above the array that no manifest names
        zarr.create_array(
            MemoryStore(stored_objects),
            shape=shape,
            dtype=dtype,
            chunks=(chunk_rows, *shape[1:]),
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=fill,
            dimension_names=("row", "component")[: len(shape)],
            attributes=attributes,
        )
        key, data = f"{name}/zarr.json", stored_objects["zarr.json"].to_bytes()
        written_metadata = self.attributes.setdefault(WRITTEN_METADATA, {})[key] = metadata.parse(data)
        if stored := metadata.parse(self.run.get(key)):
            data = metadata.renewed(stored, written_metadata)
        self._put_object(key, data)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            if self._open_object is not None:
                self._open_object.discard()
            return
        self._close_object()
        written = {name: getattr(self, name) for name in ("attempt", "arrays", "objects", "attributes")}
        self.run.commit(self.stage, self.name, written, self.durable)
