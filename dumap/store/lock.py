"""The lock of a run: one driver at a time, and a takeover from drivers that are gone.

A driver's term begins when it creates the object of the next number, which only one can. It renews the object
every few seconds, and marks it released at its end. A driver that finds an unreleased object takes over at once
where its holder was a process of this machine that is gone, else after having seen it unchanged for `LEASE`
seconds. A driver checks before each commit that the term is still its own, and fails if not: see `Run.commit`. A commit
that is under way at that moment may still land, with the same bytes.
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

BEAT = 5.0
"""Seconds between renewals."""
LEASE = 30.0
"""Seconds without one after which a driver counts as gone."""
PROGRESS_KEYS = ("stage", "done", "total")
"""What the lock says of the driver's work: how many parts of how many of a stage are done."""


def _machine() -> list[str]:
    """Name host, boot and process namespace: a process number means something only within these."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"
    return [
        socket.gethostname(),
        boot.read_text().strip() if boot.exists() else "",
        os.readlink(space) if os.path.exists(space) else "",
    ]


def _started(process: int) -> float | None:
    """Return when a process started, in ticks since the boot where that is known; None where it cannot be seen."""
    try:
        if os.path.exists("/proc/self/stat"):
            return float(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[19])
        return psutil.Process(process).create_time()
    except (OSError, psutil.Error):
        return None


def _holder() -> dict[str, Any]:
    """Describe this process as the holder of a lock; a random token makes each description differ."""
    token = os.urandom(8).hex()
    return {"machine": _machine(), "process": os.getpid(), "started": _started(os.getpid()), "token": token}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Return whether a holder was a process of this machine that has ended."""
    if holder.get("machine") != _machine():
        return False
    if not isinstance(holder.get("process"), int) or holder["process"] < 1:
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is alive, and another user's
        pass
    started = _started(holder["process"])
    if started is None:
        return False
    return started != holder.get("started") or psutil.Process(holder["process"]).status() == psutil.STATUS_ZOMBIE


def name_of(holder: dict[str, Any]) -> str:
    """Name a holder to people."""
    return f"process {holder.get('process', '?')} on {(holder.get('machine') or ['?'])[0]}"


def last_progress(run: Run) -> dict[str, Any]:
    """Return the progress that a run's last driver wrote: 'stage', 'done' and 'total'; empty if it wrote none."""
    said = run.lock(max(run.terms(), default=0)) or {}
    return {name: said[name] for name in PROGRESS_KEYS} if all(name in said for name in PROGRESS_KEYS) else {}


def driver_status(run: Run) -> dict[str, Any] | None:
    """Return who drives a run, by its lock; None if nobody does.

    Returns
    -------
    dict or None
        'process', 'machine', 'seconds' since its last sign of life, by this machine's clock, and 'alive': whether that
        is less than a lease.
    """
    last = max(run.terms(), default=0)
    document, holder = run.lock(last) or {}, run.holder(last)
    if not document or document.get("released") or _is_gone(holder):
        return None
    beaten = document.get("time")
    seconds = max(0.0, time.time() - (beaten if isinstance(beaten, float) else 0.0))
    return {
        "process": holder.get("process"),
        "machine": (holder.get("machine") or [None])[0],
        "seconds": round(seconds, 1),
        "alive": seconds < LEASE,
    }


def await_end(run: Run, term: int, note: Callable[[str], None], then: str = "taking over") -> None:
    """Return once a term has ended; only reads.

    Parameters
    ----------
    run : Run
    term : int
    note : callable
        Called with messages for people.
    then : str
        What is done once the term's holder has given no sign of life.

    Raises
    ------
    LockError
        Its driver shows a sign of life.
    """
    since, said = time.monotonic(), False
    first = run.lock(term)
    while True:
        document, holder = run.lock(term), run.holder(term)
        if (document or {}).get("released") or _is_gone(holder) or run.size(lock_key(term)) < 0:
            return
        who = name_of(holder)
        if document != first:
            raise LockError(
                f"{run.location} is driven by {who}: wait until it is done, stop it, or name another output"
            )
        if time.monotonic() - since > LEASE:
            note(f"{who}, which drove {run.location}, gives no sign of life: {then}")
            return
        if not said:
            note(f"{run.location} is held by {who}: seeing for {LEASE:.0f} s whether it is alive")
            said = True
        time.sleep(min(1.0, BEAT / 4))


class Lock:
    """The right to drive a run, held as a context.

    Parameters
    ----------
    run : Run
        Its `term` and `token` are set while the lock is held.
    note : callable
        Called with messages for people.

    Raises
    ------
    LockError
        Another driver is at work.
    """

    def __init__(self, run: Run, note: Callable[[str], None]) -> None:
        self.run, self.note = run, note
        self.document: dict[str, Any] = {}
        self._progress: dict[str, Any] = {}
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="dumap-lock", daemon=True)

    def __enter__(self) -> Lock:
        while True:
            last = max([0, *self.run.terms()])
            if last:
                await_end(self.run, last, self.note)
            holder = _holder()
            self.document = {"term": last + 1, "holder": holder, "beat": 0, "time": time.time(), "released": False}
            if self.run.put_new(lock_key(last + 1), seal(self.document)):
                break
        self.run.term, self.run.token = last + 1, holder["token"]
        self._renewing.start()
        return self

    def at(self, stage: str, done: float, total: float) -> None:
        """Write progress with the next renewals."""
        self._progress = dict(zip(PROGRESS_KEYS, (stage, round(done, 3), total), strict=True))

    def _write(self, **changes: Any) -> bool:
        """Renew the lock, unless it was removed or is another's; tell whether it is this driver's."""
        if self.run.holder(self.document["term"]).get("token") != self.document["holder"]["token"]:
            return False
        self.document |= {**changes, **self._progress, "time": time.time()}
        self.run.put(lock_key(self.document["term"]), seal(self.document))
        return True

    def _renew(self) -> None:
        """Show signs of life until the end, or until the lock is lost: then no commit succeeds, see `Run.commit`."""
        while not self._ended.wait(BEAT):
            try:
                if not self._write(beat=self.document["beat"] + 1):
                    self._tell(
                        f"the lock of {self.run.location} was removed or is another's: nothing more is committed"
                    )
                    return
            except Exception as error:  # the next beat may get through; if none does, another may take over
                self._tell(f"the lock could not be renewed: {error}")

    def _tell(self, what: str) -> None:
        with contextlib.suppress(Exception):  # an error of the listener must not end the renewals
            self.note(what)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        self._renewing.join()
        self.run.term = self.run.token = None
        try:
            self._write(released=True)
        except StorageError as failure:
            self.note(f"the lock could not be released, and is free after {LEASE:.0f} s: {failure}")
