"""Makes Dask write a performance report of a run."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from distributed import Client, performance_report

from dumap.errors import ConfigError, needs

CODE = "dumap"
"""The text that a report shows in the place of the code that ran."""


def check_report(file: str | None) -> None:
    """Refuse a report that cannot be written.

    Raises
    ------
    ConfigError
    """
    if file is None:
        return
    if find_spec("bokeh") is None:
        raise needs("a performance report (cluster.report)", "bokeh")
    folder = Path(file).absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"cluster.report: there is no folder {folder}; make it, or name another file")


@contextlib.contextmanager
def reported(client: Client, file: str | None, seconds: float, note: Callable[[str], None]) -> Iterator[None]:
    """Write a performance report of all that a client runs in this context, even if the run fails.

    Parameters
    ----------
    client : distributed.Client
    file : str, optional
        Without a file, no report is written.
    seconds : float
        Seconds within which the scheduler must answer.
    note : callable
        Called with the reason if no report can be written.
    """
    if file is None:
        yield
        return
    whole = Path(file).absolute()
    partial = whole.with_name(f".{whole.name}.{uuid.uuid4().hex[:8]}.partial")
    report = performance_report(str(partial))
    with client.as_current():
        client.sync(report.__aenter__, callback_timeout=seconds)
    try:
        yield
    finally:
        try:
            with client.as_current():
                client.sync(report.__aexit__, None, None, None, code=CODE, callback_timeout=seconds)
            os.replace(partial, whole)
        except Exception as error:  # of any kind: a missing report must not hide how the run ended
            note(f"no performance report in {file}: {type(error).__name__}: {error}")
        finally:
            partial.unlink(missing_ok=True)
