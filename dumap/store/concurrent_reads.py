"""Reads from a bucket go on side by side: each takes a while to be answered, however little it asks for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_order(calls: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """Yield what each call returns, in their order, while the next ones are under way.

    Parameters
    ----------
    calls : iterable of callable
        Each is made in any thread.
    threads : int
        Calls that are under way at once; with 1, each is made in this thread when its turn comes.
    """
    if threads == 1:
        for call in calls:
            yield call()
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for call in calls:
                waiting.append(pool.submit(call))
                if len(waiting) == threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
