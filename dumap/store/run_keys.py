"""The keys in a run that are dumap's own.

dumap removes only keys of these three forms that no manifest names:

    _dumap/parts/<stage>/<part>-<attempt>    arrays of a part; further objects have the suffix .<number>
    .<name>.<8 hex>.partial                  a file being written, beside any key of dumap's
    _dumap/lock/probe-<16 hex>               tests whether the location can be written to

All other keys in a run belong to other programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

from dumap.store.manifests import IDENTITY, INSIDE, LOCKS, MANIFESTS, PART_NAME_PATTERN, PARTS

FINAL_ARRAYS = ("embedding", "status")
"""The run's final arrays."""
ROW_NAMES = "row"
"""The array of the rows' names, if the input has names."""

METADATA_FOLDERS = (INSIDE, LOCKS, MANIFESTS, PARTS)
"""Folders of dumap's that have Zarr metadata, so that Zarr does not warn of unreadable nodes in them."""

_HEX = "[0-9a-f]"
_ARRAY_KEY = r"(zarr\.json|c(/\d+)+)"
"""Keys below the path of an array."""
_PROBE_KEY = rf"{LOCKS}/probe-{_HEX}{{16}}"


class RunKeys:
    """The naming of the keys of a run.

    Parameters
    ----------
    stages : iterable of str
        The stages; each has a folder for the objects of its parts.
    other_groups : iterable of str
        Further groups of manifests.
    """

    def __init__(self, stages: Iterable[str], other_groups: Iterable[str] = ()) -> None:
        self.stages, self.groups = tuple(stages), (*stages, *other_groups, IDENTITY)

    @cached_property
    def _object_pattern(self) -> re.Pattern[str]:
        """The pattern of the keys that need a manifest: objects of parts, and probes."""
        return re.compile(
            rf"{PARTS}/({_any_of(self.stages)})/{PART_NAME_PATTERN}-{_HEX}{{8}}(\.[1-9]\d*)?|{_PROBE_KEY}"
        )

    @cached_property
    def _permanent_pattern(self) -> re.Pattern[str]:
        """The pattern of the keys that a run keeps without a manifest: metadata, manifests, locks and final arrays."""
        manifest = rf"{MANIFESTS}/({_any_of(self.groups)})/{PART_NAME_PATTERN}\.json"
        array_key = f"({_any_of((*FINAL_ARRAYS, ROW_NAMES))})/{_ARRAY_KEY}"
        return re.compile(rf"(({_any_of(METADATA_FOLDERS)})/)?zarr\.json|{manifest}|{LOCKS}/\d{{8,}}\.json|{array_key}")

    def is_permanent(self, key: str) -> bool:
        """Return whether a key is one of dumap's that is kept even if no manifest names it."""
        return self._permanent_pattern.fullmatch(key) is not None

    def is_deletable(self, key: str) -> bool:
        """Return whether a key is one of dumap's that may be removed if no manifest names it."""
        if self._object_pattern.fullmatch(key):
            return True
        partial = re.fullmatch(rf"(.*/)?\.([^/]+)\.{_HEX}{{8}}\.partial", key)
        if partial is None:
            return False
        whole = (partial[1] or "") + partial[2]
        return self.is_permanent(whole) or self._object_pattern.fullmatch(whole) is not None

    def all_folders(self) -> list[str]:
        """List the folders that a run's drivers and tasks write to."""
        return [*self.internal_folders(), *FINAL_ARRAYS, *(f"{name}/c" for name in FINAL_ARRAYS)]

    def internal_folders(self) -> list[str]:
        """List the folders in `_dumap`, and `_dumap` itself, parents first."""
        groups = [f"{MANIFESTS}/{group}" for group in self.groups]
        stages = [f"{PARTS}/{stage}" for stage in self.stages]
        return [*METADATA_FOLDERS, *groups, *stages]


def _any_of(names: Iterable[str]) -> str:
    """Return a pattern that matches any of the names."""
    return "|".join(map(re.escape, names))
