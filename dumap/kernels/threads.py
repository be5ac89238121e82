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
    make_context : callable
        Returns a context manager that makes the setting and undoes it.
    """

    def __init__(self, make_context: Callable[[], AbstractContextManager]) -> None:
        self._make_context, self._lock, self._n_holders, self._exit_stack = (
            make_context,
            threading.Lock(),
            0,
            ExitStack(),
        )

    def __enter__(self) -> None:
        with self._lock:
            if not self._n_holders:
                self._exit_stack.enter_context(self._make_context())
            self._n_holders += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n_holders -= 1
            if not self._n_holders:
                self._exit_stack.close()


def _is_set_per_thread(library: LibController) -> bool:
    """Return whether a library's number of threads is set separately for each thread, as in OpenMP and in an OpenBLAS
    that uses OpenMP.
    """
    uses_openmp = getattr(library, "threading_layer", "") == "openmp" and hasattr(library, "clear_controlling_thread")
    return library.user_api == "openmp" or uses_openmp


def _set_threads(library: LibController, n_threads: int) -> None:
    """Set a library's number of threads, whichever thread of this process set it before."""
    # With threadpoolctl 3.8 or later, OpenBLAS ignores all threads but the first that sets it, unless it is released.
    release = getattr(library, "clear_controlling_thread", None)
    if release:
        release(force=True)
    library.set_num_threads(n_threads)
    if release:
        release(force=True)


class _LoadedLibrary(ctypes.Structure):
    """The C library's record of a loaded library, with the counts of all loads and unloads: `dl_phdr_info`."""

    _fields_ = (
        *(("address", ctypes.c_void_p), ("name", ctypes.c_char_p), ("headers", ctypes.c_void_p)),
        *(("header_count", ctypes.c_uint16), ("loads", ctypes.c_ulonglong), ("unloads", ctypes.c_ulonglong)),
    )


_VisitorType = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_LoadedLibrary), ctypes.c_size_t, ctypes.c_void_p)


def _count_loads() -> tuple[int, int] | None:
    """Return how many libraries this process has loaded and unloaded so far, or None if the system does not count
    them.
    """
    iterate_libraries = getattr(ctypes.CDLL(None), "dl_iterate_phdr", None)
    if iterate_libraries is None:
        return None
    counts: list[tuple[int, int]] = []

    def read_counts(library: Any, size: int, _: Any) -> int:
        if size >= ctypes.sizeof(_LoadedLibrary):
            counts.append((library.contents.loads, library.contents.unloads))
        return 1  # a value other than 0 ends the visits

    iterate_libraries(_VisitorType(read_counts), None)
    return counts[0] if counts else None


class _ThreadedLibraries:
    """The libraries with threads of their own that this process has loaded so far."""

    def __init__(self) -> None:
        self._lock, self._thread_local = threading.Lock(), threading.local()
        self._controllers: list[LibController] = []
        self._n_modules = 0
        self._load_counts: tuple[int, int] | None = None
        self._threads_before: dict[str, tuple[LibController, int]] = {}
        self._n_holders = 0

    def _find_libraries(self) -> list[LibController]:
        """Return the libraries; search for them again if libraries were loaded or unloaded.

        If the system does not count loads, search again when a thread enters, and after modules were imported.
        """
        load_counts = _count_loads()
        if load_counts is None:
            is_stale = not getattr(self._thread_local, "depth", 0) or len(sys.modules) != self._n_modules
        else:
            is_stale = load_counts != self._load_counts
        if is_stale:
            self._n_modules, self._load_counts = len(sys.modules), load_counts
            self._controllers = ThreadpoolController().lib_controllers
        return self._controllers

    def limit_threads(self) -> list[tuple[LibController, int]]:
        """Set all libraries to one thread; return the settings that this thread has to undo itself."""
        with self._lock:
            thread_settings = []
            for library in self._find_libraries():
                n_threads = library.num_threads
                if _is_set_per_thread(library):
                    thread_settings.append((library, n_threads))
                elif library.filepath not in self._threads_before:
                    self._threads_before[library.filepath] = library, n_threads
                if n_threads != 1:
                    _set_threads(library, 1)
            self._n_holders += 1
            self._thread_local.depth = getattr(self._thread_local, "depth", 0) + 1
            return thread_settings

    def restore_threads(self, thread_settings: list[tuple[LibController, int]]) -> None:
        """Undo `limit_threads`: this thread's settings at once, and the process's when the last thread leaves."""
        with self._lock:
            self._thread_local.depth -= 1
            self._n_holders -= 1
            for library, n_threads in thread_settings:
                _set_threads(library, n_threads)
            if not self._n_holders:
                for library, n_threads in self._threads_before.values():
                    _set_threads(library, n_threads)
                self._threads_before.clear()


_libraries = _ThreadedLibraries()


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS and OpenMP to one thread.

    Several threads may hold them at once. Each entry also sets libraries that were loaded since.
    """
    thread_settings = _libraries.limit_threads()
    try:
        yield
    finally:
        _libraries.restore_threads(thread_settings)
