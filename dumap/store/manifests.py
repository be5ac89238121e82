"""Manifests, which say what a part wrote, and their checks.

    attempt      a random text in the keys of the part's objects
    arrays       name to the array's pieces in order: key of the object, offset in it, shape, dtype, and the rows of a
                 range if its size is not the usual one
    objects      key to size and digest
    attributes   the part's facts
    dropped      only in a dropped part: its deleted objects, which are then in neither `arrays` nor `objects`

A run may come from any source, so a manifest that dumap would not have written counts as damaged.
"""

from __future__ import annotations

import re
from typing import Any

from dumap.store.stored_array import StoredArray

INSIDE = "_dumap"
"""The folder of a run for everything but its results."""
MANIFESTS, PARTS, LOCKS = f"{INSIDE}/manifests", f"{INSIDE}/parts", f"{INSIDE}/lock"
"""Folders in `_dumap`: of manifests, of the objects of parts, and of locks."""
IDENTITY = "identity"
"""The group of manifests that hold the run's identity: its parameters, input and results."""
DONE = "done"
"""The group of manifests that commit whole stages."""
INHERITED = "inherited"
"""Attribute of a manifest of `DONE` if another run holds the stage's parts: that run's relative location."""
PART_NAME_PATTERN = "[a-z0-9_]+(?:-[a-z0-9_]+)*"
"""The pattern of part names."""
MAX_MANIFEST_BYTES = 1 << 28
"""The most bytes of a manifest; a larger object counts as damaged."""

Manifest = dict[str, Any]


def manifest_key(stage: str, name: str) -> str:
    """Return the key of a part's manifest."""
    return f"{MANIFESTS}/{stage}/{name}.json"


def part_object_key(stage: str, name: str, attempt: str, number: int = 0) -> str:
    """Return the key of an object that one attempt at a part writes; a part may have several, numbered from 0."""
    return f"{PARTS}/{stage}/{name}-{attempt}" + (f".{number}" if number else "")


def _is_path_in_run(path: Any) -> bool:
    """Return whether a path in a manifest lies below the run."""
    steps = path.split("/") if isinstance(path, str) else [""]
    return all(step not in ("", ".", "..") for step in steps) and not re.search(r"[\\\x00]", str(path))


def is_valid_manifest(manifest: Any) -> bool:
    """Return whether a manifest has the form that `Part` writes, and names no object outside the run."""
    try:
        return (
            re.fullmatch(r"[0-9a-f]{8}", manifest["attempt"]) is not None
            and all(_is_path_in_run(key) and isinstance(size, int) for key, (size, _) in manifest["objects"].items())
            and all(_are_valid_pieces(pieces, manifest["objects"]) for pieces in manifest["arrays"].values())
            and isinstance(manifest["attributes"], dict)
            and isinstance(manifest.get("dropped", {}), dict)
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _are_valid_pieces(pieces: Any, objects: dict[str, list]) -> bool:
    """Return whether an array's pieces lie within the objects, and have one dtype and one shape of rows."""
    layouts = [(key, offset, StoredArray.parse(*layout)) for key, offset, *layout in pieces]
    return (
        len({(array.shape[1:], array.dtype.str) for *_, array in layouts}) == 1
        and all(type(offset) is int and offset >= 0 for _, offset, _ in layouts)
        and all(offset + array.size <= objects[key][0] for key, offset, array in layouts)
    )
