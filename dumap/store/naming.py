"""Which keys in a run are dumap's own: those it may remove once nothing names them, and no other.

    <stage>/<part>-<attempt>/<array>/zarr.json, .../c/0/...     what a part's task wrote
    .<name>.<8 hex>.partial                                     beside any key of dumap's: a file being written
    lock/probe-<16 hex>                                         written to see whether a place can be written to

All else in a run is somebody's who put it there, whatever it is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

from dumap.store.manifests import IDENTITY, MANIFESTS, PART

LOCKS = "lock"
"""Folder of the objects by which drivers and workers get to know of one another."""
FINALS = ("embedding", "status")
"""The run's final arrays."""

_HEX = "[0-9a-f]"
_ARRAY = r"(zarr\.json|c(/\d+)+)"
"""What lies below an array's path."""
_PROBE = rf"{LOCKS}/probe-{_HEX}{{16}}"


class Naming:
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
        """Match what a part's task wrote; nothing of it counts unless a manifest names it."""
        return re.compile(rf"({_any(self.stages)})/{PART}-{_HEX}{{8}}/[^/.][^/]*/{_ARRAY}|{_PROBE}")

    @cached_property
    def _lasting(self) -> re.Pattern[str]:
        """Match what stays of a run."""
        manifest = rf"{MANIFESTS}/({_any(self.groups)})/{PART}\.json"
        return re.compile(rf"zarr\.json|{manifest}|{LOCKS}/\d{{8,}}\.json|({_any(FINALS)})/{_ARRAY}")

    @cached_property
    def _of_zarr(self) -> re.Pattern[str]:
        """Match what Zarr leaves that dies as it writes a chunk of a final array."""
        return re.compile(rf"({_any(FINALS)})/c(/\d+)+\.{_HEX}{{32}}\.partial")

    @cached_property
    def folder(self) -> re.Pattern[str]:
        """Match the folders that a part's task made, which are nothing once they are empty."""
        return re.compile(rf"({_any(self.stages)})/{PART}-{_HEX}{{8}}(/[^/.][^/]*(/c(/\d+)*)?)?")

    def is_lasting(self, key: str) -> bool:
        """Tell whether a key is one of what stays of a run."""
        return self._lasting.fullmatch(key) is not None

    def is_removable(self, key: str) -> bool:
        """Tell whether a key is one of dumap's that may be removed where no manifest names it."""
        if self._written.fullmatch(key) or self._of_zarr.fullmatch(key):
            return True
        partial = re.fullmatch(rf"(.*/)?\.([^/]+)\.{_HEX}{{8}}\.partial", key)
        if partial is None:
            return False
        whole = (partial[1] or "") + partial[2]
        return self.is_lasting(whole) or self._written.fullmatch(whole) is not None

    @staticmethod
    def is_array(key: str) -> bool:
        """Tell whether a key below a part's folder is of an array, or of one that was being written."""
        whole = re.sub(rf"\.([^/]+)\.{_HEX}{{8}}\.partial$", r"\1", key)
        return re.fullmatch(rf"[^/.][^/]*/{_ARRAY}", whole) is not None

    def own_folders(self) -> list[str]:
        """Name the folders that a run's drivers and tasks write in."""
        return [
            *(LOCKS, MANIFESTS, *(f"{MANIFESTS}/{group}" for group in self.groups)),
            *(*self.stages, *FINALS, *(f"{name}/c" for name in FINALS)),
        ]


def _any(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, names))
