"""A cache that a process keeps between tasks. Its threads share it; it stays within a budget of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    """A value, the value's size, and how many tasks use the value now."""

    value: T
    size: int
    users: int = 1


class TaskCache(Generic[T]):
    """A cache of values that tasks of one process use again. The least recently used values are freed first.

    The memory budget of a task includes the value that the task uses. So the cache may hold one such budget for each of
    the tasks that have run at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry[T]] = OrderedDict()
        self._users = self._max_users = 0

    @contextmanager
    def use(self, key: Hashable, task_bytes: int, value_bytes: int, make_value: Callable[[], T]) -> Iterator[T]:
        """Hold a value while it is used. The value is taken from the cache or made anew.

        Parameters
        ----------
        key : hashable
        task_bytes : int
            Bytes that one task may keep.
        value_bytes : int
            The value's bytes, as far as they are known before the value is made.
        make_value : callable
            Makes the value. Two threads that need the same value at once may both make it.
        """
        with self._lock:
            self._users += 1
            self._max_users = max(self._max_users, self._users)
            entry = self._entries.get(key)
            if entry is None:
                self._make_room(task_bytes * self._max_users - value_bytes)
            else:
                entry.users += 1
                self._entries.move_to_end(key)
        try:
            if entry is None:
                entry = _Entry(make_value(), value_bytes)
                with self._lock:
                    self._entries[key] = entry
            yield entry.value
        finally:
            with self._lock:
                self._users -= 1
                if entry is not None:
                    entry.users -= 1

    def _make_room(self, room: int) -> None:
        """Free values that no task uses, until the remaining values fit."""
        total_bytes = sum(entry.size for entry in self._entries.values())
        for key in [key for key, entry in self._entries.items() if not entry.users]:
            if total_bytes <= room:
                return
            total_bytes -= self._entries.pop(key).size

    @property
    def total_bytes(self) -> int:
        """The bytes of all values in the cache."""
        with self._lock:
            return sum(entry.size for entry in self._entries.values())

    def clear(self) -> None:
        """Free all values. A value that a task uses now is freed when the last task that uses it ends."""
        with self._lock:
            self._entries.clear()
            self._max_users = self._users
