"""Locations of other runs, relative to a run if possible, so that both may be moved together."""

from __future__ import annotations

import os
import posixpath
from urllib.parse import urlsplit

from dumap.store.disk import is_remote


def relative_location(location: str, base: str) -> str:
    """Return a location relative to another on one file system or in one bucket; otherwise unchanged."""
    if not is_remote(location) and not is_remote(base):
        return os.path.relpath(os.path.realpath(location), os.path.realpath(base))
    if is_remote(location) and is_remote(base):
        there, here = urlsplit(location), urlsplit(base)
        if (there.scheme, there.netloc) == (here.scheme, here.netloc) and not (there.query or here.query):
            return posixpath.relpath(there.path or "/", here.path or "/")
    return location


def absolute_location(way: str, base: str) -> str:
    """Return the location that `relative_location` has made relative to another."""
    if is_remote(way) or os.path.isabs(way):
        return way
    if is_remote(base):
        here = urlsplit(base)
        return here._replace(path=posixpath.normpath(posixpath.join(here.path or "/", way))).geturl()
    return os.path.normpath(os.path.join(os.path.realpath(base), way))
