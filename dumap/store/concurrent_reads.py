"""Makes several reads at once, since each request to a bucket takes long, however little it reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def call_concurrently(calls: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """Make calls in threads, and yield their results in order.

    Parameters
    ----------
    calls : iterable of callable
        Functions without arguments.
    threads : int
        The number of calls to make at once. With 1, this thread makes each call when its result is asked for.
    """
    if threads == 1:
        for call in calls:
            yield call()
        return
    futures: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as executor:
        try:
            for call in calls:
                futures.append(executor.submit(call))
                if len(futures) == threads:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()
