"""The output of commands on standard error: lines for people, or one JSON object per line."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from dumap.json_values import to_json

LOGGER = logging.getLogger("dumap")
LOG_JSON_OPTION = "log_json"
"""Name of the option, and key of the click context's `meta`, that asks for JSON."""


class LineFormatter(logging.Formatter):
    """Formats records as lines with a time stamp, or as JSON if the click context's `meta` has `LOG_JSON_OPTION`.

    An object has 'time' (UTC), 'level', 'event', 'message' and the fields of the event. The events 'started',
    'advanced' and 'finished' are about a stage, see `dumap.recipe.observers.LogObserver`. The event 'error' is the last
    and has 'exit_code' and 'notes'. Every other event is 'note'.
    """

    def __init__(self, meta: Mapping[str, Any]) -> None:
        super().__init__()
        self._meta = meta

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line."""
        if LOG_JSON_OPTION not in self._meta:
            time_stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
            return f"{time_stamp} dumap {super().format(record)}"
        time_stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {"time": f"{time_stamp}.{int(record.msecs):03d}Z", "level": record.levelname, "event": "note"}
        return to_json({**entry, **getattr(record, "dumap", {}), "message": super().format(record)})


DASK_LOGGERS = ("distributed", "distributed.client")
"""The loggers whose levels Dask sets when it is imported."""


@contextlib.contextmanager
def dask_log_level(level: str) -> Iterator[None]:
    """Return a context in which Dask logs from a level on, whether it is imported before or within the context."""
    for name in DASK_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())
    previous_value = os.environ.get("DASK_LOGGING")
    os.environ.setdefault("DASK_LOGGING", str(dict.fromkeys(DASK_LOGGERS, level)))
    try:
        yield
    finally:
        if previous_value is None:
            os.environ.pop("DASK_LOGGING", None)


@contextlib.contextmanager
def log_to_stderr(meta: Mapping[str, Any]) -> Iterator[None]:
    """Return a context in which records of the logger `dumap` go to standard error."""
    handler, level = logging.StreamHandler(), LOGGER.level
    handler.setFormatter(LineFormatter(meta))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


def should_log_json() -> bool:
    """Return whether the running command was given --log-json."""
    context = click.get_current_context(silent=True)
    return context is not None and LOG_JSON_OPTION in context.meta


def log_message(message: str) -> None:
    """Write a message to standard error, as a line or as JSON."""
    if should_log_json():
        LOGGER.info("%s", message)
    else:
        click.echo(f"dumap: {message}", err=True)


def log_error(exit_code: int, message: str, notes: list[str]) -> None:
    """Write the error that ends a command to standard error, as lines or as JSON."""
    if should_log_json():
        fields = {"event": "error", "exit_code": exit_code, "notes": notes}
        LOGGER.error("%s", message, extra={"dumap": fields})
        return
    for line in (message, *notes):
        log_message(line)
