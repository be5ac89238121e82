"""Converts locations of other runs to relative paths and back, so that runs may be moved together."""

from __future__ import annotations

import os
import posixpath
from urllib.parse import urlsplit

from dumap.store.disk import is_remote


def relative_location(location: str, base: str) -> str:
    """Return a location relative to `base` if both are paths or lie in one bucket; otherwise unchanged."""
    if not is_remote(location) and not is_remote(base):
        return os.path.relpath(os.path.realpath(location), os.path.realpath(base))
    if is_remote(location) and is_remote(base):
        url, base_url = urlsplit(location), urlsplit(base)
        if (url.scheme, url.netloc) == (base_url.scheme, base_url.netloc) and not (url.query or base_url.query):
            return posixpath.relpath(url.path or "/", base_url.path or "/")
    return location


def absolute_location(location: str, base: str) -> str:
    """Return the location that `relative_location` made relative to `base`."""
    if is_remote(location) or os.path.isabs(location):
        return location
    if is_remote(base):
        url = urlsplit(base)
        return url._replace(path=posixpath.normpath(posixpath.join(url.path or "/", location))).geturl()
    return os.path.normpath(os.path.join(os.path.realpath(base), location))
