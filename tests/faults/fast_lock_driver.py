"""The command line as hooks.py runs it, with locks renewed many times a second; it can wait for a signal to start."""

from __future__ import annotations

import os
import time
from pathlib import Path

import hooks

from dumap.cli import main
from dumap.store import lock

lock.HEARTBEAT_SECONDS = 0.2
GUN = "DUMAP_GUN"
"""Names a folder: each driver makes a file 'ready-*' there, and takes the lock once there is a file 'go'."""


def _await_gun(original):
    """Wrap taking the lock: wait for the file 'go' first."""

    def enter(self):
        if GUN in os.environ:
            folder = Path(os.environ[GUN])
            (folder / f"ready-{os.getpid()}").touch()
            while not (folder / "go").exists():
                time.sleep(0.001)
        return original(self)

    return enter


if __name__ == "__main__":
    lock.Lock.__enter__ = _await_gun(lock.Lock.__enter__)
    hooks.install("driver")
    main()
