"""A run, as a program reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dumap.recipe.status import status
from dumap.store import Run

if TYPE_CHECKING:
    import zarr


class Result(Mapping[str, Any]):
    """A run, read as it is asked for; also a mapping of its status, as it was when first asked for.

    Parameters
    ----------
    path : str
        Where it lies.
    found : dict, optional
        Its status, where that is known.

    Attributes
    ----------
    path : str
    """

    def __init__(self, path: str, found: dict[str, Any] | None = None) -> None:
        self.path = path
        if found is not None:
            self._status = found

    @classmethod
    def open(cls, path: str) -> Result:
        """Open a run, which has to be there."""
        run = Run(path, read_only=True)
        run.attributes  # noqa: B018  refuses what is no run of this format
        return cls(run.location)

    @cached_property
    def _status(self) -> dict[str, Any]:
        return status(self.path)

    def __getitem__(self, name: str) -> Any:
        return self._status[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._status)

    def __len__(self) -> int:
        return len(self._status)

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"<dumap.Result {self.path}: {self['state']}>"

    @property
    def embedding(self) -> zarr.Array:
        """The coordinates, an array (row, component) of float32, in the input's order."""
        return Run(self.path, read_only=True).final("embedding")

    @property
    def status(self) -> zarr.Array:
        """The flags of rows, an array (row) of uint8; 0 is a row that was embedded."""
        return Run(self.path, read_only=True).final("status")
