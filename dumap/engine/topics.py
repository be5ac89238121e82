"""Lets several functions listen to one topic of a Dask client; Dask itself allows one function for each topic."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client

Listener = Callable[[dict[str, Any]], None]

_lock = threading.Lock()
_listeners: WeakKeyDictionary[Client, dict[str, tuple[Listener, ...]]] = WeakKeyDictionary()


def listen(client: Client, topic: str, listener: Listener) -> None:
    """Call a function, on the client's thread, with each message on a topic."""

    def call_listeners(event: Any) -> None:
        for function in _listeners.get(client, {}).get(topic, ()):
            function(event[1] if isinstance(event, tuple) else event)

    with _lock:
        topics = _listeners.setdefault(client, {})
        is_first, topics[topic] = topic not in topics, (*topics.get(topic, ()), listener)
        if is_first:  # within the lock, so that another run does not unsubscribe in the meantime
            client.subscribe_topic(topic, call_listeners)


def stop_listening(client: Client, topic: str, listener: Listener) -> None:
    """Stop calling a function with messages on a topic."""
    with _lock:
        topics = _listeners.get(client, {})
        remaining = tuple(function for function in topics.get(topic, ()) if function is not listener)
        if remaining:
            topics[topic] = remaining
            return
        topics.pop(topic, None)
        if client.status == "running":
            with contextlib.suppress(ValueError):  # Dask raises it if the client is not subscribed any more
                client.unsubscribe_topic(topic)
