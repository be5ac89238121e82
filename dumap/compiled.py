"""The folder in which numba keeps compiled code, if numba can write to none of its own folders.

Without such a folder, numba raises an error when it imports a function with `cache=True`. So dumap chooses a folder as
soon as it is imported, on workers too, before numba is imported. No other user can write to the folder, since its
content is executed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec

KEEPING = ("dumap.kernels", "pynndescent")
"""Packages whose compiled functions numba keeps."""


def find_place() -> None:
    """Set a temporary folder for compiled code, unless numba can write to a folder of its own."""
    own = [os.environ.get("NUMBA_CACHE_DIR") or "", _user_cache()]
    if os.environ.get("NUMBA_CACHE_LOCATOR_CLASSES") or any(map(_writable, own)) or all(map(_writable, _beside())):
        return
    os.environ["NUMBA_CACHE_DIR"] = folder = _private_folder()
    if "numba" in sys.modules:  # numba has read the environment already
        sys.modules["numba"].config.CACHE_DIR = folder


def _user_cache() -> str:
    caches = os.path.expanduser("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    return os.path.join(os.environ.get("XDG_CACHE_HOME", caches) if sys.platform != "darwin" else caches, "numba")


def _beside() -> Iterator[str]:
    """Yield the cache folders beside the source files."""
    for package in KEEPING:
        found = find_spec(package)
        if found is not None and found.origin is not None:
            yield os.path.join(os.path.dirname(found.origin), "__pycache__")


def _writable(folder: str) -> bool:
    """Return whether a folder can be written to or made. A relative path ('~' without a home folder) is not
    writable.
    """
    if not os.path.isabs(folder):
        return False
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _private_folder() -> str:
    """Return a temporary folder that belongs to this user alone: the one for all runs if it is private, otherwise a new
    one.
    """
    shared = os.path.join(tempfile.gettempdir(), f"dumap-compiled-{os.geteuid()}")
    with contextlib.suppress(OSError):  # the path exists already
        os.mkdir(shared, 0o700)
    if _is_private(shared):
        return shared
    folder = tempfile.mkdtemp(prefix="dumap-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_private(folder: str) -> bool:
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
