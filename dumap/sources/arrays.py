"""Rows of objects in this process: objects in memory, or objects that read their rows on access."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from dumap.errors import InputError
from dumap.sources.spooled import PART_BYTES, check_rows


class ArrayRows:
    """Rows of a NumPy array, or of an object whose slices are NumPy arrays.

    Parameters
    ----------
    kind : str
        The object's type, for messages: 'numpy.ndarray'.
    shape : tuple of int
    dtype : numpy.dtype
    get : callable
        `get(start, stop)` returns rows [start, stop) as an object that NumPy can convert to an array.

    Attributes
    ----------
    kind, rows, dims, dtype, names
        See `ObjectRows`.

    Raises
    ------
    InputError
        It holds no rows of numbers.
    """

    names: np.ndarray | None = None
    sparse, entries, max_window_entries = False, 0, 0

    def __init__(self, kind: str, shape: tuple[int, ...], dtype: np.dtype, get: Callable[[int, int], Any]) -> None:
        check_rows(kind, shape, dtype)
        self.kind, self.dtype, self._get = kind, dtype.newbyteorder("="), get
        self.rows, self.dims = (int(length) for length in shape)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop), in C order and native byte order."""
        found = np.ascontiguousarray(np.asarray(self._get(start, stop)), self.dtype)
        if found.shape != (stop - start, self.dims):
            raise InputError(f"the {self.kind} gives shape {found.shape} for its rows {start} to {stop}")
        return found

    @property
    def task_bytes(self) -> int:
        """Bytes that a task takes: a part's rows as read and as written."""
        return 3 * min(PART_BYTES, self.rows * self.dims * self.dtype.itemsize)

    @property
    def min_task_bytes(self) -> int:
        """The same as `task_bytes`."""
        return self.task_bytes

    @cached_property
    def token(self) -> str:
        """A hash of the rows, their shape and dtype. It depends neither on the type of the object nor on its memory
        layout.
        """
        digest = hashlib.sha256(f"{self.rows}x{self.dims} {self.dtype.str}".encode())
        step = max(1, PART_BYTES // (self.dims * self.dtype.itemsize))
        for start in range(0, self.rows, step):
            digest.update(self.read(start, min(self.rows, start + step)).data)
        return digest.hexdigest()[:32]


def rows_of(data: Any) -> ArrayRows | None:
    """Return the rows of a NumPy array, or of what makes one of itself; None of what is neither.

    Raises
    ------
    InputError
        It holds no rows of numbers.
    """
    kind = f"{type(data).__module__.split('.')[0]}.{type(data).__name__}"
    if isinstance(data, np.ma.MaskedArray):
        if np.ma.is_masked(data):
            raise InputError("the masked array has values that are masked: fill them, or leave their rows out")
        data = data.data
    if not isinstance(data, np.ndarray):
        if not hasattr(data, "__array__"):
            return None
        data = _as_array(data, kind)
    array = np.asarray(data)
    return ArrayRows(kind, array.shape, array.dtype, lambda start, stop: array[start:stop])


def _as_array(data: Any, kind: str) -> np.ndarray:
    try:
        return np.asarray(data)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"the {kind} cannot be made a NumPy array ({type(error).__name__}: {error})") from error
