"""Hold libraries to one thread, since their results depend on the number of threads."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from threadpoolctl import LibController, ThreadpoolController


class SharedSetting:
    """A setting of the whole process that several threads may hold at once.

    The first thread that enters makes the setting; the last thread that leaves undoes it.

    Parameters
    ----------
    setting : callable
        Returns a context manager that makes the setting and undoes it.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager]) -> None:
        self._setting, self._lock, self._held, self._undo = setting, threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._held:
                self._undo.enter_context(self._setting())
            self._held += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._held -= 1
            if not self._held:
                self._undo.close()


def _is_by_thread(library: LibController) -> bool:
    """Return whether a library's number of threads is set separately for each thread, as in OpenMP and in an OpenBLAS
    that uses OpenMP.
    """
    on_top = getattr(library, "threading_layer", "") == "openmp" and hasattr(library, "clear_controlling_thread")
    return library.user_api == "openmp" or on_top


def _set(library: LibController, threads: int) -> None:
    """Set a library's number of threads, whichever thread of this process set it before."""
    # With threadpoolctl 3.8 or later, OpenBLAS ignores all threads but the first that sets it, unless it is released.
    release = getattr(library, "clear_controlling_thread", None)
    if release:
        release(force=True)
    library.set_num_threads(threads)
    if release:
        release(force=True)


class _LoadedLibrary(ctypes.Structure):
    """The C library's record of a loaded library, with the counts of all loads and unloads: `dl_phdr_info`."""

    _fields_ = (
        *(("address", ctypes.c_void_p), ("name", ctypes.c_char_p), ("headers", ctypes.c_void_p)),
        *(("header_count", ctypes.c_uint16), ("loads", ctypes.c_ulonglong), ("unloads", ctypes.c_ulonglong)),
    )


_VISITOR = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_LoadedLibrary), ctypes.c_size_t, ctypes.c_void_p)


def _count_loads() -> tuple[int, int] | None:
    """Return how many libraries this process has loaded and unloaded so far, or None if the system does not count
    them.
    """
    visit = getattr(ctypes.CDLL(None), "dl_iterate_phdr", None)
    if visit is None:
        return None
    counts: list[tuple[int, int]] = []

    def read_first(library: Any, size: int, _: Any) -> int:
        if size >= ctypes.sizeof(_LoadedLibrary):
            counts.append((library.contents.loads, library.contents.unloads))
        return 1  # a value other than 0 ends the visits

    visit(_VISITOR(read_first), None)
    return counts[0] if counts else None


class _Libraries:
    """The libraries with threads of their own that this process has loaded so far."""

    def __init__(self) -> None:
        self._lock, self._within = threading.Lock(), threading.local()
        self._controllers: list[LibController] = []
        self._modules = 0
        self._loads: tuple[int, int] | None = None
        self._before: dict[str, tuple[LibController, int]] = {}
        self._held = 0

    def _look(self) -> list[LibController]:
        """Return the libraries; search for them again if libraries were loaded or unloaded.

        If the system does not count loads, search again when a thread enters, and after modules were imported.
        """
        loads = _count_loads()
        if loads is None:
            stale = not getattr(self._within, "depth", 0) or len(sys.modules) != self._modules
        else:
            stale = loads != self._loads
        if stale:
            self._modules, self._loads = len(sys.modules), loads
            self._controllers = ThreadpoolController().lib_controllers
        return self._controllers

    def enter(self) -> list[tuple[LibController, int]]:
        """Set all libraries to one thread; return the settings that this thread has to undo itself."""
        with self._lock:
            by_thread = []
            for library in self._look():
                threads = library.num_threads
                if _is_by_thread(library):
                    by_thread.append((library, threads))
                elif library.filepath not in self._before:
                    self._before[library.filepath] = library, threads
                if threads != 1:
                    _set(library, 1)
            self._held += 1
            self._within.depth = getattr(self._within, "depth", 0) + 1
            return by_thread

    def leave(self, by_thread: list[tuple[LibController, int]]) -> None:
        """Undo `enter`: this thread's settings at once, and the settings of the process when the last thread leaves."""
        with self._lock:
            self._within.depth -= 1
            self._held -= 1
            for library, threads in by_thread:
                _set(library, threads)
            if not self._held:
                for library, threads in self._before.values():
                    _set(library, threads)
                self._before.clear()


_libraries = _Libraries()


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS and OpenMP to one thread.

    Several threads may hold them at once. Each entry also sets libraries that were loaded since.
    """
    by_thread = _libraries.enter()
    try:
        yield
    finally:
        _libraries.leave(by_thread)
