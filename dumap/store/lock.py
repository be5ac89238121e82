"""Who drives a run: one driver at a time, and none for ever.

A driver's term begins when it creates the object of the next number, which only one can. It renews the object
every few seconds, and marks it released at its end. A driver that finds an unreleased object takes over at once
where its holder was a process of this machine that is gone, else after having seen it unchanged for `LEASE`
seconds. Whoever lost its term can no longer commit: see `Run.commit`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from dumap.errors import LockError, StorageError
from dumap.store.objects import seal, unseal
from dumap.store.run import Run, lock_key

BEAT = 5.0
"""Seconds between renewals."""
LEASE = 30.0
"""Seconds without one after which a driver counts as gone."""


def _machine() -> list[str]:
    """Name this machine's run of processes: a process number means something only within it."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"
    return [
        socket.gethostname(),
        boot.read_text().strip() if boot.exists() else "",
        os.readlink(space) if os.path.exists(space) else "",
    ]


def _holder() -> dict[str, Any]:
    return {"machine": _machine(), "process": os.getpid(), "started": psutil.Process().create_time()}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Tell whether a holder was a process of this machine that has ended."""
    if holder.get("machine") != _machine():
        return False
    try:
        return psutil.Process(holder["process"]).create_time() != holder["started"]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return True


class Lock:
    """The right to drive a run, held as a context.

    Parameters
    ----------
    run : Run
        Its `term` is set while the lock is held.
    note : callable
        Told what a person may want to know.

    Raises
    ------
    LockError
        Another driver is at work.
    """

    def __init__(self, run: Run, note: Callable[[str], None]) -> None:
        self.run, self.note = run, note
        self.document: dict[str, Any] = {}
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="dumap-lock", daemon=True)

    def __enter__(self) -> Lock:
        while True:
            last = max([0, *self.run.terms()])
            if last:
                self._await_end(last)
            self.document = {"term": last + 1, "holder": _holder(), "beat": 0, "released": False}
            if self.run.put_new(lock_key(last + 1), seal(self.document)):
                break
        self.run.term = last + 1
        self._renewing.start()
        return self

    def _await_end(self, term: int) -> None:
        """Return once a term has ended; fail where its driver shows a sign of life."""
        key, since, told = lock_key(term), time.monotonic(), False
        first = self.run.get(key)
        while True:
            data = self.run.get(key)
            document = unseal(data or b"") or {}
            holder = document.get("holder", {})
            if document.get("released") or _is_gone(holder):
                return
            who = f"process {holder.get('process', '?')} on {(holder.get('machine') or ['?'])[0]}"
            if data != first:
                raise LockError(
                    f"{self.run.location} is driven by {who}: wait until it is done, stop it, or name another output"
                )
            if time.monotonic() - since > LEASE:
                self.note(f"{who}, which drove {self.run.location}, gives no sign of life: taking over")
                return
            if not told:
                self.note(f"{self.run.location} is held by {who}: seeing for {LEASE:.0f} s whether it is alive")
                told = True
            time.sleep(min(1.0, BEAT / 4))

    def _write(self, **changes: Any) -> None:
        self.document |= changes
        self.run.put(lock_key(self.document["term"]), seal(self.document))

    def _renew(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self._write(beat=self.document["beat"] + 1)
            except StorageError as error:  # the next beat may get through; if none does, another may take over
                self.note(f"the lock could not be renewed: {error}")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        self._renewing.join()
        self.run.term = None
        try:
            self._write(released=True)
        except StorageError as failure:
            self.note(f"the lock could not be released, and is free after {LEASE:.0f} s: {failure}")
