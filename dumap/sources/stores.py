"""Several stores whose rows follow one another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from scipy.sparse import vstack

from dumap.errors import InputError
from dumap.kernels.csr import max_window_entries
from dumap.sources.csr_group import CsrInput, open_array
from dumap.sources.zarr_array import ArrayInput
from dumap.store import MissingChunks

MAX_LISTED = 5
"""Keys, and ranges of rows, of missing chunks that a message names."""


class ConcatenatedInput:
    """An array in each of several stores, in order.

    Parameters
    ----------
    paths : sequence of str
    array : str
        The array's name in each.
    bfloat16 : bool
        See `ArrayInput`.

    Attributes
    ----------
    path, rows, dims, dtype, chunk_rows, sparse, entries, max_window_entries
        See `Source`. The dtype is the common dtype of all stores.
    stores : list of ArrayInput or CsrInput

    Raises
    ------
    InputError
        One cannot be read, has other dims than the first, or is sparse where the first is not.
    """

    def __init__(self, paths: Sequence[str], array: str, bfloat16: bool = False) -> None:
        self.stores = [open_array(path, array, bfloat16) for path in paths]
        first = self.stores[0]
        for store in self.stores[1:]:
            if store.dims != first.dims:
                raise InputError(
                    f"input.path: {store.path} has {store.dims} dims, {first.path} has {first.dims}: rows of one run "
                    f"have as many each"
                )
            if store.sparse != first.sparse:
                kinds = ("sparse", "dense") if store.sparse else ("dense", "sparse")
                raise InputError(
                    f"input.path: the rows of {store.path} are {kinds[0]}, those of {first.path} {kinds[1]}: write "
                    f"both alike"
                )
        self.path, self.dims = f"{len(self.stores)} stores, {first.path} to {self.stores[-1].path}", first.dims
        self.dtype = np.result_type(*(store.dtype for store in self.stores))
        self._offsets = [0, *accumulate(store.rows for store in self.stores)]
        self.rows = self._offsets[-1]
        self.chunk_rows = max(store.chunk_rows for store in self.stores)
        self.sparse, self.entries = first.sparse, sum(store.entries for store in self.stores)

    @property
    def max_window_entries(self) -> int:
        """As of `Source`."""
        return max_window_entries(
            counts for store in self.stores if isinstance(store, CsrInput) for counts in store.counts()
        )

    def read(self, start: int, stop: int) -> Any:
        """Read rows [start, stop) in the common dtype, C order."""
        spans = [
            (store, max(start, offset) - offset, min(stop, offset + store.rows) - offset)
            for store, offset in self._each()
        ]
        spans = [(store, low, high) for store, low, high in spans if low < high]
        if self.sparse:
            return vstack([store.read(low, high) for store, low, high in spans], "csr", self.dtype)
        out, done = np.empty((stop - start, self.dims), self.dtype), 0
        for store, low, high in spans:
            out[done : done + high - low] = store.read(low, high)
            done += high - low
        return out

    def _each(self) -> Iterator[tuple[ArrayInput | CsrInput, int]]:
        """Yield each store and the number of its first row."""
        return zip(self.stores, self._offsets[:-1], strict=True)

    @cached_property
    def missing_chunks(self) -> MissingChunks:
        """The missing chunks of all stores."""
        found = [(store.missing_chunks, store.path, offset) for store, offset in self._each()]
        keys = [f"{path}: {key}" for missing_chunks, path, _ in found for key in missing_chunks.keys]
        spans = [
            (low + offset, high + offset) for missing_chunks, _, offset in found for low, high in missing_chunks.spans
        ]
        chunks, of, rows = (sum(getattr(one, name) for one, *_ in found) for name in ("chunks", "of", "rows"))
        return MissingChunks(chunks, of, rows, keys[:MAX_LISTED], spans[:MAX_LISTED])

    def require_chunks(self, fill: str | None = None) -> None:
        """Refuse missing chunks. `fill` names the setting that fills them, if there is one."""
        for store in self.stores:
            store.require_chunks(fill)

    def signature(self) -> str:
        """Return a digest that is made without reading the data."""
        seen = [[store.rows, store.signature()] for store in self.stores]
        return hashlib.sha256(json.dumps([str(self.dtype), seen]).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what a run records of the source."""
        return {
            "path": self.path,
            "array": self.stores[0].name,
            "shape": [self.rows, self.dims],
            "dtype": str(self.dtype),
            "signature": self.signature(),
            "stores": [{"path": store.path, "rows": store.rows} for store in self.stores],
        }
