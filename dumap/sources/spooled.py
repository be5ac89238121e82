"""Rows of an object, such as a NumPy array, that were copied into the run and are read from it.

A task cannot open an object in another process's memory. So stage spool writes the object's rows into parts of the run.
All parts but the last have the same number of rows, so the shape alone says where a row is. The location of such an
input describes the object:

    spool://<kind>/<rows>x<dims>/<dtype>/<token>

and of sparse rows then also /csr-<entries>-<densest>.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from dumap.errors import InputError
from dumap.store import MissingChunks, Run, StoredArray, read_csr

SPOOL = "spool"
"""The stage that writes the rows, which is also the folder of its parts."""
SPOOLED = "rows"
"""The kind of the stage's parts, and the name of their array."""
PART_BYTES = 16 * 2**20
"""About how many bytes of rows a part has. The number is part of the format."""
KINDS = "fiub"
"""Kinds of NumPy's dtypes that can be embedded."""
_LOCATION = re.compile(r"spool://([\w.-]+)/([1-9]\d*)x([1-9]\d*)/(\w+)/(\w+)(?:/csr-(\d+)-(\d+))?")


class ObjectRows(Protocol):
    """Rows of an object that was given to this process.

    Attributes
    ----------
    kind : str
        The object's type, such as 'numpy.ndarray'.
    rows, dims : int
    dtype : numpy.dtype
        In native byte order.
    token : str
        Letters and digits that are equal only for equal rows.
    task_bytes, min_task_bytes : int
        Bytes that a task takes to write a part, and the least bytes with which it can be done.
    names : ndarray or None
        Names of the rows, (rows,) of int64 or of texts.
    sparse, entries, max_window_entries
        See `Source`.
    """

    kind: str
    rows: int
    dims: int
    dtype: np.dtype
    names: np.ndarray | None
    sparse: bool
    entries: int

    @property
    def max_window_entries(self) -> int:
        """As above."""

    @property
    def token(self) -> str:
        """See above; computed on first access."""

    @property
    def task_bytes(self) -> int:
        """As above."""

    @property
    def min_task_bytes(self) -> int:
        """As above."""


def check_rows(kind: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse an object that holds no rows of numbers.

    Raises
    ------
    InputError
    """
    if len(shape) != 2:
        raise InputError(f"the {kind} has shape {shape}; dumap reads (rows, dims): reshape it, one row a vector")
    if dtype.kind not in KINDS or dtype.itemsize > 8:
        raise InputError(
            f"the {kind} has dtype {dtype}; allowed are real floats, integers and booleans of up to 64 bits"
        )
    if 0 in shape:
        raise InputError(f"the {kind} is empty: its shape is {shape}")


def location_of(object_rows: ObjectRows) -> str:
    """Return the location that stands for an object in the configuration."""
    form = f"/csr-{object_rows.entries}-{object_rows.max_window_entries}" if object_rows.sparse else ""
    shape = f"{object_rows.rows}x{object_rows.dims}"
    return f"spool://{object_rows.kind}/{shape}/{object_rows.dtype.name}/{object_rows.token}{form}"


def is_spooled(location: str) -> bool:
    """Return whether a location stands for an object."""
    return location.startswith("spool://")


def sparse_row_bytes(entries: int, rows: int, dtype: np.dtype) -> int:
    """Return the bytes of a mean sparse row: its values, and columns of 32 bits."""
    return max(1, -(-entries * (dtype.itemsize + 4) // rows) + 8)


class SpooledInput:
    """The rows of an object, in the run.

    Parameters
    ----------
    location : str
        See `location_of`.
    run : callable, optional
        Opens the run. Without it, no row can be read.

    Attributes
    ----------
    kind : str
    path, rows, dims, dtype, chunk_rows, sparse, entries, max_window_entries
        See `Source`.
    part_rows, parts : int
        Rows of each part but the last, and the number of parts.

    Raises
    ------
    InputError
        The location does not have this form.
    """

    def __init__(self, location: str, run: Callable[[], Run] | None = None) -> None:
        found = _LOCATION.fullmatch(location)
        if found is None or not hasattr(np, found[4]):
            raise InputError(f"input.path: {location} stands for no array; give the array itself to dumap.run")
        self.path, self.kind, self._token, self._run = location, found[1], found[5], run
        self.rows, self.dims, self.dtype = int(found[2]), int(found[3]), np.dtype(found[4])
        check_rows(self.kind, (self.rows, self.dims), self.dtype)
        self.sparse, self.entries, self.max_window_entries = (
            found[6] is not None,
            int(found[6] or 0),
            int(found[7] or 0),
        )
        row_bytes = self.dims * self.dtype.itemsize
        if self.sparse:
            row_bytes = sparse_row_bytes(self.entries, self.rows, self.dtype)
        self.part_rows = min(self.rows, max(1, PART_BYTES // row_bytes))
        self.chunk_rows = StoredArray((self.part_rows, row_bytes), np.dtype(np.uint8)).range_rows
        self.parts = -(-self.rows // self.part_rows)

    @property
    def what(self) -> str:
        """A description of the object, for messages."""
        return f"{self.kind} of shape {(self.rows, self.dims)} and dtype {self.dtype}"

    def span(self, number: int) -> tuple[int, int]:
        """Return the rows [start, stop) of a part."""
        return number * self.part_rows, min(self.rows, (number + 1) * self.part_rows)

    def read(self, start: int, stop: int) -> Any:
        """Read rows [start, stop) from the run."""
        if self._run is None:
            raise InputError(f"{self.path}: the rows of the {self.what} lie in a run")
        run = self._run()
        numbers = range(start // self.part_rows, -(-stop // self.part_rows))
        parts = [f"{SPOOLED}-{number:05d}" for number in numbers]
        firsts = [number * self.part_rows for number in numbers]
        spans = [(max(start, first) - first, min(stop, first + self.part_rows) - first) for first in firsts]
        if self.sparse:
            from scipy.sparse import vstack  # a slow import that only sparse rows need

            rows = [
                read_csr(run, SPOOL, part, SPOOLED, self.dims, *span) for part, span in zip(parts, spans, strict=True)
            ]
            return rows[0] if len(rows) == 1 else vstack(rows, "csr", self.dtype)
        out = np.empty((stop - start, self.dims), self.dtype)
        for part, first, (low, high) in zip(parts, firsts, spans, strict=True):
            run.read(SPOOL, part, SPOOLED, low, high, out[first + low - start : first + high - start])
        return out

    @property
    def missing_chunks(self) -> MissingChunks:
        """No chunk is missing: the stage has written all rows, or it is not done."""
        return MissingChunks(0, self.parts, 0)

    def require_chunks(self, fill: str | None = None) -> None:
        """Refuse nothing."""

    def signature(self) -> str:
        """Return the object's token."""
        return self._token

    def describe(self) -> dict[str, Any]:
        """Return what a run records of the source."""
        return {
            "path": self.path,
            "array": "",
            "shape": [self.rows, self.dims],
            "dtype": str(self.dtype),
            "signature": self._token,
        }
