"""One thread for libraries whose results depend on how many there are."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

import sklearn.cluster  # noqa: F401  (brings the OpenMP that the controller must see)
from threadpoolctl import ThreadpoolController


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def one_thread() -> AbstractContextManager:
    """Hold BLAS and OpenMP to one thread; their libraries are looked for once a process."""
    return _controller().limit(limits=1)
