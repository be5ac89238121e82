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


def expand_pattern(pattern: str) -> list[str]:
    """Return the locations that match a pattern, sorted by name, without hidden files.

    Raises
    ------
    InputError
        No location matches, or a folder cannot be listed.
    """
    if is_remote(pattern):
        scheme, remainder = pattern.split("://", 1)
        bucket, *pattern_steps = remainder.rstrip("/").split("/")
        locations = _matching_folders(f"{scheme}://{bucket}", pattern_steps)
    else:
        locations = sorted(glob.glob(normalize(pattern), recursive=True))
    if not locations:
        raise InputError(f"input.path: nothing is there by the pattern {pattern}")
    return locations


def _matching_folders(location: str, pattern_steps: list[str]) -> list[str]:
    """List the folders of a bucket that match the steps of a pattern below a location."""
    first_wildcard = next(
        (number for number, step in enumerate(pattern_steps) if glob.has_magic(step)), len(pattern_steps)
    )
    location = "/".join([location, *pattern_steps[:first_wildcard]])
    if first_wildcard == len(pattern_steps):
        return [location]
    try:
        names = Objects(location, read_only=True).folders_below("")
    except StorageError as error:
        raise InputError(f"input.path: {location} cannot be listed ({error})") from error
    matches = [name for name in names if fnmatchcase(name, pattern_steps[first_wildcard])]
    return [
        folder
        for name in matches
        for folder in _matching_folders(f"{location}/{name}", pattern_steps[first_wildcard + 1 :])
    ]
