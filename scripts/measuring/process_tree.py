"""Run a command and watch all its processes: seconds, peak memory, and what it writes to a folder."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

SAMPLE_SECONDS = 0.2
"""How often memory is looked at, at the most."""
SAMPLING_SHARE = 0.02
"""The share of a processor that looking may take: the processes' pages are walked for it."""
DISK_SECONDS = 2.0
"""How often the folder's size is looked at, at the most."""
ENDING_SECONDS = 20.0
SHOWN = 2000
"""How many characters of the command's last words are kept."""


@dataclass(frozen=True)
class Watched:
    """What a command took.

    Attributes
    ----------
    code : int
        Its exit code; None where it was ended since its time was up.
    seconds : float
        From its start to its exit.
    peak_bytes : int
        The most memory of all its processes together, sampled; what several of them share is counted once.
    peak_process_bytes : int
        The most that one of them has held, as the system keeps it.
    peak_disk_bytes, disk_bytes : int
        What the folder held, at the most and at the end.
    out, err : str
        What it printed, and the last of what it said beside.
    """

    code: int | None
    seconds: float
    peak_bytes: int
    peak_process_bytes: int
    peak_disk_bytes: int
    disk_bytes: int
    out: str
    err: str


class Held(NamedTuple):
    """The memory of a process: its share of what it made, the pages of files (such as libraries) that are there for it,
    and the most that it has ever held.
    """

    made: int = 0
    files: int = 0
    most: int = 0


def sizes(path: str) -> dict[str, int]:
    """Read the sizes in a file of the system's, by name, in bytes."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) << 10 for line in lines if line[-1] == "kB"}


def held(process: psutil.Process) -> Held:
    """Return what a process holds; nothing where it has ended."""
    try:
        shares, status = (sizes(f"/proc/{process.pid}/{name}") for name in ("smaps_rollup", "status"))
        return Held(shares["Pss_Anon"] + shares["Pss_Shmem"], status["RssFile"], status["VmHWM"])
    except (OSError, KeyError):  # it has ended, or the system has no such files
        with contextlib.suppress(psutil.Error):
            resident = process.memory_info().rss
            return Held(resident, 0, resident)
    return Held()


def together(found: Sequence[Held]) -> int:
    """Return what processes hold together: they map much the same files, which are counted once."""
    return sum(one.made for one in found) + max(one.files for one in found)


def folder_bytes(folder: Path) -> int:
    """Return what a folder takes on disk."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                found += os.lstat(os.path.join(place, name)).st_blocks * 512
    return found


class Watch:
    """Samples the memory of a process and all its children, and a folder's size, until it is stopped."""

    def __init__(self, pid: int, folder: Path | None) -> None:
        self._root, self._folder = psutil.Process(pid), folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak_bytes = self.peak_process_bytes = self.peak_disk_bytes = 0
        self._thread.start()

    def _sample(self) -> None:
        next_disk = 0.0
        while True:
            began = time.perf_counter()
            with contextlib.suppress(psutil.Error):
                found = [held(one) for one in [self._root, *self._root.children(recursive=True)]]
                self.peak_bytes = max(self.peak_bytes, together(found))
                self.peak_process_bytes = max(self.peak_process_bytes, *(one.most for one in found))
            if self._folder is not None and began >= next_disk:
                self.peak_disk_bytes = max(self.peak_disk_bytes, folder_bytes(self._folder))
                took = time.perf_counter() - began
                next_disk = began + max(DISK_SECONDS, took / SAMPLING_SHARE)
            if self._stop.wait(max(SAMPLE_SECONDS, (time.perf_counter() - began) / SAMPLING_SHARE)):
                return

    def stop(self) -> None:
        """End sampling."""
        self._stop.set()
        self._thread.join()


def run_watched(
    command: Sequence[str],
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Watched:
    """Run a command to its end, watching all its processes.

    Parameters
    ----------
    command : sequence of str
    folder : Path, optional
        Where it writes.
    environment : mapping, optional
        Variables beside this process's own.
    timeout : float, optional
        Seconds after which it is ended.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **(environment or {})})
        watch = Watch(process.pid, folder)
        code: int | None = None
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            end(process)
        except BaseException:
            end(process)
            raise
        finally:
            seconds = time.perf_counter() - began
            watch.stop()
        out.seek(0)
        err.seek(0)
        left = 0 if folder is None else folder_bytes(folder)
        peak_disk = max(watch.peak_disk_bytes, left)
        words = out.read(), err.read()[-SHOWN:]
    return Watched(code, seconds, watch.peak_bytes, watch.peak_process_bytes, peak_disk, left, *words)


def end(process: subprocess.Popen) -> None:
    """End a process that this one started, and its children."""
    with contextlib.suppress(psutil.Error):
        whole = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in whole:
            with contextlib.suppress(psutil.Error):
                one.terminate()
        for one in psutil.wait_procs(whole, ENDING_SECONDS)[1]:
            with contextlib.suppress(psutil.Error):
                one.kill()
    process.wait()
