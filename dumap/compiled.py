"""The folder in which numba keeps compiled code, if numba can write to none of its own folders.

Without such a folder, numba raises an error when it imports a function with `cache=True`. So dumap chooses a folder as
soon as it is imported, on workers too, before numba is imported. No other user can write to the folder, since its
content is executed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

CACHED_PACKAGES = ("dumap.kernels", "pynndescent")
"""Packages whose compiled functions numba keeps."""
LOCK_TIMEOUT_SECONDS, POLL_SECONDS = 120.0, 0.02
"""How long a process waits for another that compiles the same function, before it compiles the function itself; and how
often it looks."""
INDEX_ERRORS = (AttributeError, ImportError, EOFError, IndexError, TypeError, ValueError, pickle.UnpicklingError)
"""What may go wrong where an index names classes that are not there any more, or was not written to its end."""


def choose_cache_folder() -> None:
    """Set a temporary folder for compiled code, unless numba can write to a folder of its own."""
    folders = [os.environ.get("NUMBA_CACHE_DIR") or "", _user_cache_folder()]
    if (
        os.environ.get("NUMBA_CACHE_LOCATOR_CLASSES")
        or any(map(_is_writable, folders))
        or all(map(_is_writable, _pycache_folders()))
    ):
        return
    os.environ["NUMBA_CACHE_DIR"] = folder = _private_folder()
    if "numba" in sys.modules:  # numba has read the environment already
        sys.modules["numba"].config.CACHE_DIR = folder


def _user_cache_folder() -> str:
    cache_root = os.path.expanduser("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    return os.path.join(
        os.environ.get("XDG_CACHE_HOME", cache_root) if sys.platform != "darwin" else cache_root, "numba"
    )


def _pycache_folders() -> Iterator[str]:
    """Yield the cache folders beside the source files."""
    for package in CACHED_PACKAGES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            yield os.path.join(os.path.dirname(spec.origin), "__pycache__")


def _is_writable(folder: str) -> bool:
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
    shared_folder = os.path.join(tempfile.gettempdir(), f"dumap-compiled-{os.geteuid()}")
    with contextlib.suppress(OSError):  # the path exists already
        os.mkdir(shared_folder, 0o700)
    if _is_private(shared_folder):
        return shared_folder
    new_folder = tempfile.mkdtemp(prefix="dumap-compiled-")
    atexit.register(shutil.rmtree, new_folder, ignore_errors=True)
    return new_folder


def _is_private(folder: str) -> bool:
    try:
        folder_stat = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(folder_stat.st_mode) and folder_stat.st_uid == os.geteuid() and not folder_stat.st_mode & 0o077


def patch_numba_cache() -> None:
    """Let processes compile a function one after the other, and pass over indices that they cannot read."""
    from numba.core.caching import IndexDataCacheFile
    from numba.core.dispatcher import Dispatcher

    if hasattr(Dispatcher.compile, "__wrapped__"):
        return
    for owner, name, wrap in (
        (Dispatcher, "compile", _compile_one_at_a_time),
        (IndexDataCacheFile, "_load_index", _skip_unreadable_index),
    ):
        setattr(owner, name, wrap(getattr(owner, name)))


def _skip_unreadable_index(load_index: Callable[[Any], dict]) -> Callable[[Any], dict]:
    """Return numba's reader of an index, for which one that cannot be read is empty.

    numba unpickles all that an index holds before it compares the time of the source.
    """

    def load_readable_index(index_file: Any) -> dict:
        try:
            return load_index(index_file)
        except INDEX_ERRORS:
            return {}

    return load_readable_index


def _compile_one_at_a_time(compile_function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return numba's way to compile a function, for one process at a time; the next ones load what the first kept."""
    from numba.core.compiler_lock import global_compiler_lock

    held_locks: set[str] = set()

    def compile_locked(dispatcher: Any, signature: Any) -> Any:
        # numba's lock first, as threads that took the two in turns would wait for one another.
        with global_compiler_lock, contextlib.ExitStack() as exit_stack:
            path = _lock_path(dispatcher, signature)
            if path is not None and path not in held_locks:
                exit_stack.enter_context(_hold_file_lock(path))
                exit_stack.callback(held_locks.discard, path)
                held_locks.add(path)
            return compile_function(dispatcher, signature)

    compile_locked.__wrapped__ = compile_function  # type: ignore[attr-defined]
    return compile_locked


def _lock_path(dispatcher: Any, signature: Any) -> str | None:
    """Return the lock of a function that is to be compiled and kept; None where it is there already, or is not kept."""
    from numba.core.sigutils import normalize_signature

    cache_file = getattr(dispatcher._cache, "_cache_file", None)
    if cache_file is None or tuple(normalize_signature(signature)[0]) in dispatcher.overloads:
        return None
    key = dispatcher._cache._index_key(signature, dispatcher.targetctx.codegen())
    return None if key in cache_file._load_index() else f"{cache_file._index_path}.lock"


@contextlib.contextmanager
def _hold_file_lock(path: str) -> Iterator[None]:
    """Hold a lock, which ends with its process; go on without it where there are none, or after some time."""
    try:
        import fcntl

        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (ImportError, OSError):
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(POLL_SECONDS)
            except OSError:  # a file system without locks
                break
            else:
                break
        yield
    finally:
        os.close(descriptor)
