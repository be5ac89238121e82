"""Where numba keeps compiled code: set before numba is imported, where none of its own places can be written to.

Without any place numba refuses to import a function that is to be kept. So dumap finds one as soon as it is imported,
on workers too: a folder of this user alone, since what is kept there is executed.
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
"""Packages whose compiled functions are kept."""


def find_place() -> None:
    """Name a temporary folder for compiled code, unless numba has a place of its own."""
    own = [os.environ.get("NUMBA_CACHE_DIR") or "", _user_cache()]
    if os.environ.get("NUMBA_CACHE_LOCATOR_CLASSES") or any(map(_writable, own)) or all(map(_writable, _beside())):
        return
    os.environ["NUMBA_CACHE_DIR"] = folder = _private_folder()
    if "numba" in sys.modules:  # it has read the environment already
        sys.modules["numba"].config.CACHE_DIR = folder


def _user_cache() -> str:
    caches = os.path.expanduser("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    return os.path.join(os.environ.get("XDG_CACHE_HOME", caches) if sys.platform != "darwin" else caches, "numba")


def _beside() -> Iterator[str]:
    """Yield the folders beside the source."""
    for package in KEEPING:
        found = find_spec(package)
        if found is not None and found.origin is not None:
            yield os.path.join(os.path.dirname(found.origin), "__pycache__")


def _writable(folder: str) -> bool:
    """Return whether a folder can be written to, or made; of a relative one ('~' where nobody has a home) it is not."""
    if not os.path.isabs(folder):
        return False
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _private_folder() -> str:
    """Return a temporary folder that no other user can have made or can write to: one for all runs, else a new one."""
    shared = os.path.join(tempfile.gettempdir(), f"dumap-compiled-{os.geteuid()}")
    with contextlib.suppress(OSError):  # it is there, or something else is
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
