"""Manifests: what a part wrote; and checks of those that are read.

    attempt      names the part's object
    arrays       name to the array's pieces in order: the object's key, where it begins there, shape, dtype, and the
                 rows of a range where these are not of the usual size
    objects      key to size and digest
    attributes   small facts
    dropped      of a part that nothing needed any more: its objects, which then are not among the others, nor arrays

Manifests may come from anywhere: one that dumap would not have written counts as damaged.
"""

from __future__ import annotations

import re
from typing import Any

from dumap.store.stored_array import StoredArray

INSIDE = "_dumap"
"""The folder of a run for all but its results."""
MANIFESTS, PARTS, LOCKS = f"{INSIDE}/manifests", f"{INSIDE}/parts", f"{INSIDE}/lock"
"""Folders in it: of manifests, of the objects of parts, and of locks."""
IDENTITY = "identity"
"""Group of the manifests of the run's identity: its parameters, input and results."""
DONE = "done"
"""Group of the manifests that commit whole stages."""
INHERITED = "inherited"
"""Attribute of a manifest of `DONE` if another run holds the stage's parts: that run's relative location."""
PART = "[a-z0-9_]+(?:-[a-z0-9_]+)*"
"""What a part may be called."""
MOST_BYTES = 1 << 28
"""The most bytes of a manifest; a longer file is not taken for one."""

Manifest = dict[str, Any]


def manifest_key(stage: str, name: str) -> str:
    """Name the object that commits a part."""
    return f"{MANIFESTS}/{stage}/{name}.json"


def part_key(stage: str, name: str, attempt: str, number: int = 0) -> str:
    """Name the object that one attempt at a part writes; or, where it may not be that large, one of them."""
    return f"{PARTS}/{stage}/{name}-{attempt}" + (f".{number}" if number else "")


def _is_below(path: Any) -> bool:
    """Return whether a path of a manifest stays below the run."""
    steps = path.split("/") if isinstance(path, str) else [""]
    return all(step not in ("", ".", "..") for step in steps) and not re.search(r"[\\\x00]", str(path))


def is_sound(manifest: Any) -> bool:
    """Return whether a manifest has the form of those that parts write, and names nothing outside the run."""
    try:
        return (
            re.fullmatch(r"[0-9a-f]{8}", manifest["attempt"]) is not None
            and all(_is_below(key) and isinstance(size, int) for key, (size, _) in manifest["objects"].items())
            and all(_holds(pieces, manifest["objects"]) for pieces in manifest["arrays"].values())
            and isinstance(manifest["attributes"], dict)
            and isinstance(manifest.get("dropped", {}), dict)
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _holds(pieces: Any, objects: dict[str, list]) -> bool:
    """Return whether an array's pieces lie within the objects, and are of one kind."""
    stored = [(key, offset, StoredArray.parse(*layout)) for key, offset, *layout in pieces]
    return (
        len({(array.shape[1:], array.dtype.str) for *_, array in stored}) == 1
        and all(type(offset) is int and offset >= 0 for _, offset, _ in stored)
        and all(offset + array.size <= objects[key][0] for key, offset, array in stored)
    )
