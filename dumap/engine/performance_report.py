"""Makes Dask write a performance report of a run."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from distributed import Client, performance_report

from dumap.errors import ConfigError, missing_packages

SHOWN_CODE = "dumap"
"""The text that a report shows in the place of the code that ran."""


def check_report(path: str | None) -> None:
    """Refuse a report that cannot be written.

    Raises
    ------
    ConfigError
    """
    if path is None:
        return
    if find_spec("bokeh") is None:
        raise missing_packages("a performance report (cluster.report)", "bokeh")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"cluster.report: there is no folder {folder}; make it, or name another file")


@contextlib.contextmanager
def write_performance_report(
    client: Client, path: str | None, timeout: float, log: Callable[[str], None]
) -> Iterator[None]:
    """Write a performance report of all that a client runs in this context, even if the run fails.

    Parameters
    ----------
    client : distributed.Client
    path : str, optional
        Without a file, no report is written.
    timeout : float
        Seconds within which the scheduler must answer.
    log : callable
        Called with the reason if no report can be written.
    """
    if path is None:
        yield
        return
    report_path = Path(path).absolute()
    partial_path = report_path.with_name(f".{report_path.name}.{uuid.uuid4().hex[:8]}.partial")
    report = performance_report(str(partial_path))
    with client.as_current():
        client.sync(report.__aenter__, callback_timeout=timeout)
    try:
        yield
    finally:
        try:
            with client.as_current():
                client.sync(report.__aexit__, None, None, None, code=SHOWN_CODE, callback_timeout=timeout)
            os.replace(partial_path, report_path)
        except Exception as error:  # of any kind: a missing report must not hide how the run ended
            log(f"no performance report in {path}: {type(error).__name__}: {error}")
        finally:
            partial_path.unlink(missing_ok=True)
