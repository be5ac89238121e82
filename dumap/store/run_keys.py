"""Which keys in a run are dumap's own: those it may remove once nothing names them, and no other.

    _dumap/parts/<stage>/<part>-<attempt>    what a part's task wrote; more of it: <part>-<attempt>.<number>
    .<name>.<8 hex>.partial                  beside any key of dumap's: a file being written
    _dumap/lock/probe-<16 hex>               written to see whether a place can be written to

All else in a run is somebody's who put it there, whatever it is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

from dumap.store.manifests import IDENTITY, INSIDE, LOCKS, MANIFESTS, PART, PARTS

FINALS = ("embedding", "status")
"""The run's final arrays."""
ROW = "row"
"""The array of the rows' names, where they have some."""

NODES = (INSIDE, LOCKS, MANIFESTS, PARTS)
"""Folders of dumap's with metadata of their own, so that Zarr does not warn of unreadable nodes in them."""

_HEX = "[0-9a-f]"
_ARRAY = r"(zarr\.json|c(/\d+)+)"
"""What lies below an array's path."""
_PROBE = rf"{LOCKS}/probe-{_HEX}{{16}}"


class RunKeys:
    """How the keys of a run are named.

    Parameters
    ----------
    stages : iterable of str
        The stages, each with a folder for what its parts write.
    marks : iterable of str
        Other groups of manifests.
    """

    def __init__(self, stages: Iterable[str], marks: Iterable[str] = ()) -> None:
        self.stages, self.groups = tuple(stages), (*stages, *marks, IDENTITY)

    @cached_property
    def _written(self) -> re.Pattern[str]:
        """The pattern of objects that tasks write, which do not count unless a manifest names them."""
        return re.compile(rf"{PARTS}/({_any(self.stages)})/{PART}-{_HEX}{{8}}(\.[1-9]\d*)?|{_PROBE}")

    @cached_property
    def _lasting(self) -> re.Pattern[str]:
        """The pattern of keys that a run keeps."""
        manifest = rf"{MANIFESTS}/({_any(self.groups)})/{PART}\.json"
        return re.compile(
            rf"(({_any(NODES)})/)?zarr\.json|{manifest}|{LOCKS}/\d{{8,}}\.json|({_any((*FINALS, ROW))})/{_ARRAY}"
        )

    def is_lasting(self, key: str) -> bool:
        """Return whether a run keeps a key, whether a manifest names it or not."""
        return self._lasting.fullmatch(key) is not None

    def is_removable(self, key: str) -> bool:
        """Return whether a key is one of dumap's that may be removed where no manifest names it."""
        if self._written.fullmatch(key):
            return True
        partial = re.fullmatch(rf"(.*/)?\.([^/]+)\.{_HEX}{{8}}\.partial", key)
        if partial is None:
            return False
        whole = (partial[1] or "") + partial[2]
        return self.is_lasting(whole) or self._written.fullmatch(whole) is not None

    def own_folders(self) -> list[str]:
        """Name the folders that a run's drivers and tasks write in."""
        return [
            *(*self.inner_folders(), *FINALS, *(f"{name}/c" for name in FINALS)),
        ]

    def inner_folders(self) -> list[str]:
        """Name dumap's inner folders, parents first."""
        groups, stages = (
            (f"{MANIFESTS}/{group}" for group in self.groups),
            (f"{PARTS}/{stage}" for stage in self.stages),
        )
        return [*NODES, *groups, *stages]


def _any(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, names))
