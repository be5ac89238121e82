"""Finds the stores that match a pattern: a path or a URL with *, ? or [...]."""

from __future__ import annotations

import glob
import os
from fnmatch import fnmatchcase

from dumap.errors import InputError, StorageError
from dumap.store.disk import is_remote, normalize
from dumap.store.objects import Objects


def is_pattern(location: str) -> bool:
    """Return whether a location has a wildcard and is not the path of an existing file."""
    return glob.has_magic(location) and (is_remote(location) or not os.path.exists(normalize(location)))


def matching(pattern: str) -> list[str]:
    """Return the locations that match a pattern, sorted by name, without hidden files.

    Raises
    ------
    InputError
        No location matches, or a folder cannot be listed.
    """
    if is_remote(pattern):
        scheme, rest = pattern.split("://", 1)
        bucket, *steps = rest.rstrip("/").split("/")
        locations = _below(f"{scheme}://{bucket}", steps)
    else:
        locations = sorted(glob.glob(normalize(pattern), recursive=True))
    if not locations:
        raise InputError(f"input.path: nothing is there by the pattern {pattern}")
    return locations


def _below(location: str, steps: list[str]) -> list[str]:
    """List the folders of a bucket that match the steps of a pattern below a location."""
    plain = next((number for number, step in enumerate(steps) if glob.has_magic(step)), len(steps))
    location = "/".join([location, *steps[:plain]])
    if plain == len(steps):
        return [location]
    try:
        names = Objects(location, read_only=True).folders_below("")
    except StorageError as error:
        raise InputError(f"input.path: {location} cannot be listed ({error})") from error
    matches = [name for name in names if fnmatchcase(name, steps[plain])]
    return [folder for name in matches for folder in _below(f"{location}/{name}", steps[plain + 1 :])]
