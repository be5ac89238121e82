"""The interface of all sources."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from dumap.store import MissingChunks


class Source(Protocol):
    """Rows to embed. Each process opens the source by the configuration.

    Attributes
    ----------
    path : str
        The source's name in messages.
    rows, dims : int
    dtype : numpy.dtype
        In native byte order.
    chunk_rows : int
        The least rows that are decoded at once.
    sparse : bool
        Rows are read as a scipy.sparse.csr_matrix: see `dumap.kernels.csr.canonical_rows`.
    entries, max_window_entries : int
        For sparse rows, the number of all entries or an upper bound of it, and the most entries of
        `kernels.csr.WINDOW_ROWS` rows. 0 for other rows.
    """

    path: str
    rows: int
    dims: int
    dtype: np.dtype
    chunk_rows: int
    sparse: bool
    entries: int

    @property
    def max_window_entries(self) -> int:
        """See above; computed on first access."""

    def read(self, start: int, stop: int) -> Any:
        """Read rows [start, stop) in the source's dtype, C order."""

    @property
    def missing_chunks(self) -> MissingChunks:
        """The missing chunks."""

    def require_chunks(self, fill: str | None = None) -> None:
        """Refuse missing chunks. `fill` names the setting that fills them, if there is one."""

    def signature(self) -> str:
        """Return a digest that changes with the data. It is made without reading them."""

    def describe(self) -> dict[str, Any]:
        """Return what a run records of the source: 'path', 'array', 'shape', 'dtype' and 'signature', perhaps more."""
