"""The lock of a run: it allows one driver at a time, and a takeover from a driver that is gone.

The drivers of a run have consecutive numbers, their terms. A driver begins its term by creating the lock object of the
next number, which only one process can do. It renews the object every `HEARTBEAT_SECONDS`, and marks it as released at
the end. A driver that finds an unreleased lock takes over at once if the holder was a process of this machine that has
ended. Otherwise it takes over if the lock stays unchanged for `LEASE_SECONDS`. Before each commit, a driver or a task
checks that the driver still holds the lock, and fails if not: see `Run.commit`. A commit that is in progress when
another driver takes over may still succeed; it writes the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from dumap.errors import LockError, StorageError
from dumap.store.committed import lock_key
from dumap.store.objects import seal
from dumap.store.run import Run

HEARTBEAT_SECONDS = 5.0
"""Seconds between renewals."""
LEASE_SECONDS = 30.0
"""A driver counts as gone after this many seconds without a renewal."""
PROGRESS_KEYS = ("stage", "done", "total")
"""Keys of the lock that hold the driver's progress: a stage, and its parts that are done and all its parts."""


def _machine_id() -> list[str]:
    """Return the host, the boot and the process namespace within which process numbers are unique."""
    boot_file, namespace = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"
    return [
        socket.gethostname(),
        boot_file.read_text().strip() if boot_file.exists() else "",
        os.readlink(namespace) if os.path.exists(namespace) else "",
    ]


def _process_start(process: int) -> float | None:
    """Return when a process started, on Linux in clock ticks since the boot; None if the process is not visible."""
    try:
        if os.path.exists("/proc/self/stat"):
            return float(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[19])
        return psutil.Process(process).create_time()
    except (OSError, psutil.Error):
        return None


def describe_this_process() -> dict[str, Any]:
    """Describe this process as the holder of a lock; a random token makes each description differ."""
    token = os.urandom(8).hex()
    return {"machine": _machine_id(), "process": os.getpid(), "started": _process_start(os.getpid()), "token": token}


def has_ended(holder: dict[str, Any]) -> bool:
    """Return whether a holder was a process of this machine that has ended."""
    if holder.get("machine") != _machine_id():
        return False
    if not isinstance(holder.get("process"), int) or holder["process"] < 1:
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # the process is alive and belongs to another user
        pass
    started = _process_start(holder["process"])
    if started is None:
        return False
    return started != holder.get("started") or psutil.Process(holder["process"]).status() == psutil.STATUS_ZOMBIE


def holder_name(holder: dict[str, Any]) -> str:
    """Return a holder's name in messages."""
    return f"process {holder.get('process', '?')} on {(holder.get('machine') or ['?'])[0]}"


def last_progress(run: Run) -> dict[str, Any]:
    """Return the progress that a run's last driver wrote: 'stage', 'done' and 'total'; empty if it wrote none."""
    lock = run.read_lock(max(run.list_terms(), default=0)) or {}
    return {name: lock[name] for name in PROGRESS_KEYS} if all(name in lock for name in PROGRESS_KEYS) else {}


def driver_status(run: Run) -> dict[str, Any] | None:
    """Return the state of a run's driver, from its lock; None if no driver holds the lock.

    Returns
    -------
    dict or None
        'process'; 'machine'; 'seconds', the time since the last renewal by this machine's clock; and 'alive', whether
        this time is below `LEASE_SECONDS`.
    """
    last_term = max(run.list_terms(), default=0)
    document, holder = run.read_lock(last_term) or {}, run.read_holder(last_term)
    if not document or document.get("released") or has_ended(holder):
        return None
    renewed = document.get("time")
    seconds = max(0.0, time.time() - (renewed if isinstance(renewed, float) else 0.0))
    return {
        "process": holder.get("process"),
        "machine": (holder.get("machine") or [None])[0],
        "seconds": round(seconds, 1),
        "alive": seconds < LEASE_SECONDS,
    }


def wait_for_driver_end(run: Run, term: int, log: Callable[[str], None], next_action: str = "taking over") -> None:
    """Wait until the driver of a term has ended or counts as gone; writes nothing.

    Parameters
    ----------
    run : Run
    term : int
    log : callable
        Called with messages for people.
    next_action : str
        What the caller does next, for the message that the driver is gone.

    Raises
    ------
    LockError
        The driver renews its lock.
    """
    started_at, has_logged = time.monotonic(), False
    first_document = run.read_lock(term)
    while True:
        document, holder = run.read_lock(term), run.read_holder(term)
        if (document or {}).get("released") or has_ended(holder) or run.size(lock_key(term)) < 0:
            return
        name = holder_name(holder)
        if document != first_document:
            raise LockError(
                f"{run.location} is driven by {name}: wait until it is done, stop it, or name another output"
            )
        if time.monotonic() - started_at > LEASE_SECONDS:
            log(f"{name}, which drove {run.location}, gives no sign of life: {next_action}")
            return
        if not has_logged:
            log(f"{run.location} is held by {name}: seeing for {LEASE_SECONDS:.0f} s whether it is alive")
            has_logged = True
        time.sleep(min(1.0, HEARTBEAT_SECONDS / 4))


class Lock:
    """The lock of a run, held as a context.

    Parameters
    ----------
    run : Run
        `run.term` and `run.token` are set while the lock is held.
    log : callable
        Called with messages for people.

    Raises
    ------
    LockError
        Another driver holds the lock.
    """

    def __init__(self, run: Run, log: Callable[[str], None]) -> None:
        self.run, self.note = run, log
        self.document: dict[str, Any] = {}
        self._progress: dict[str, Any] = {}
        self._end_event = threading.Event()
        self._renewal_thread = threading.Thread(target=self._renew_until_end, name="dumap-lock", daemon=True)

    def __enter__(self) -> Lock:
        while True:
            last_term = max([0, *self.run.list_terms()])
            if last_term:
                wait_for_driver_end(self.run, last_term, self.note)
            holder = describe_this_process()
            self.document = {"term": last_term + 1, "holder": holder, "beat": 0, "time": time.time(), "released": False}
            if self.run.put_new(lock_key(last_term + 1), seal(self.document)):
                break
        self.run.term, self.run.token = last_term + 1, holder["token"]
        self._renewal_thread.start()
        return self

    def set_progress(self, stage: str, done: float, total: float) -> None:
        """Set the progress that the next renewals write."""
        self._progress = dict(zip(PROGRESS_KEYS, (stage, round(done, 3), total), strict=True))

    def _renew_once(self, **changes: Any) -> bool:
        """Renew the lock; return False, and write nothing, if the lock was removed or replaced."""
        if self.run.read_holder(self.document["term"]).get("token") != self.document["holder"]["token"]:
            return False
        self.document |= {**changes, **self._progress, "time": time.time()}
        self.run.put(lock_key(self.document["term"]), seal(self.document))
        return True

    def _renew_until_end(self) -> None:
        """Renew the lock until the end. If the lock is lost, stop: no commit succeeds then, see `Run.commit`."""
        while not self._end_event.wait(HEARTBEAT_SECONDS):
            try:
                if not self._renew_once(beat=self.document["beat"] + 1):
                    self._log_safely(
                        f"the lock of {self.run.location} was removed or is another's: nothing more is committed"
                    )
                    return
            except Exception as error:  # the next renewal may succeed; if none does, another driver may take over
                self._log_safely(f"the lock could not be renewed: {error}")

    def _log_safely(self, message: str) -> None:
        """Call `log`, whose errors must not end the renewals."""
        with contextlib.suppress(Exception):
            self.note(message)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._end_event.set()
        self._renewal_thread.join()
        self.run.term = self.run.token = None
        try:
            self._renew_once(released=True)
        except StorageError as failure:
            self.note(f"the lock could not be released, and is free after {LEASE_SECONDS:.0f} s: {failure}")
