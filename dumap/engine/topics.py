"""Events of a Dask client, heard by several at once: Dask lets one function of a client hear a topic."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client

Hearer = Callable[[dict[str, Any]], None]

_lock = threading.Lock()
_hearers: WeakKeyDictionary[Client, dict[str, tuple[Hearer, ...]]] = WeakKeyDictionary()


def listen(client: Client, topic: str, hearer: Hearer) -> None:
    """Have a function called, on the client's thread, with each message on a topic."""

    def spread(event: Any) -> None:
        for one in _hearers.get(client, {}).get(topic, ()):
            one(event[1] if isinstance(event, tuple) else event)

    with _lock:
        of = _hearers.setdefault(client, {})
        first, of[topic] = topic not in of, (*of.get(topic, ()), hearer)
    if first:
        client.subscribe_topic(topic, spread)


def stop_listening(client: Client, topic: str, hearer: Hearer) -> None:
    """Call a function no more."""
    with _lock:
        of = _hearers.get(client, {})
        left = tuple(one for one in of.get(topic, ()) if one is not hearer)
        if left:
            of[topic] = left
            return
        of.pop(topic, None)
    if client.status == "running":
        with contextlib.suppress(ValueError):  # Dask's own way to say that nobody listens: as well
            client.unsubscribe_topic(topic)
