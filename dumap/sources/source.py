"""What every source has."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from dumap.store import Absent


class Source(Protocol):
    """Rows to embed; each process that reads them opens them by the configuration.

    Attributes
    ----------
    path : str
        What messages call it.
    rows, dims : int
    dtype : numpy.dtype
        In native byte order.
    chunk_rows : int
        Rows that are decoded at once at the least.
    sparse : bool
        Rows are read as a scipy.sparse.csr_matrix: see `dumap.kernels.csr.canonical`.
    entries, densest : int
        Of sparse rows: how many entries all have, at the most, and the most that `kernels.csr.WINDOW_ROWS` rows have.
        0 of others.
    """

    path: str
    rows: int
    dims: int
    dtype: np.dtype
    chunk_rows: int
    sparse: bool
    entries: int

    @property
    def densest(self) -> int:
        """As above; found when it is first asked for."""

    def read(self, start: int, stop: int) -> Any:
        """Read rows [start, stop) in the source's dtype, C order."""

    @property
    def absent(self) -> Absent:
        """The chunks that are not there."""

    def require_chunks(self, fill: str | None = None) -> None:
        """Refuse chunks that are not there; name the setting by which they are filled, where there is one."""

    def signature(self) -> str:
        """Digest what can be seen without reading the data; it changes with them."""

    def describe(self) -> dict[str, Any]:
        """Return what a run remembers: 'path', 'array', 'shape', 'dtype' and 'signature', maybe more."""
