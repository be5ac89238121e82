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
TERMINATION_SECONDS = 20.0
MAX_ERROR_CHARACTERS = 2000
"""How many characters of the command's last words are kept."""


@dataclass(frozen=True)
class ProcessResult:
    """What a command took.

    Attributes
    ----------
    exit_code : int
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

    exit_code: int | None
    seconds: float
    peak_bytes: int
    peak_process_bytes: int
    peak_disk_bytes: int
    disk_bytes: int
    out: str
    err: str


class MemoryUse(NamedTuple):
    """The memory of a process: its share of what it made, the pages of files (such as libraries) that are there for it,
    and the most that it has ever held.
    """

    own_bytes: int = 0
    file_bytes: int = 0
    peak_bytes: int = 0


def read_sizes(path: str) -> dict[str, int]:
    """Read the sizes in a file of the system's, by name, in bytes."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) << 10 for line in lines if line[-1] == "kB"}


def memory_use(process: psutil.Process) -> MemoryUse:
    """Return what a process holds; nothing where it has ended."""
    try:
        rollup, status = (read_sizes(f"/proc/{process.pid}/{name}") for name in ("smaps_rollup", "status"))
        return MemoryUse(rollup["Pss_Anon"] + rollup["Pss_Shmem"], status["RssFile"], status["VmHWM"])
    except (OSError, KeyError):  # it has ended, or the system has no such files
        with contextlib.suppress(psutil.Error):
            resident = process.memory_info().rss
            return MemoryUse(resident, 0, resident)
    return MemoryUse()


def total_bytes(uses: Sequence[MemoryUse]) -> int:
    """Return what processes hold together: they map much the same files, which are counted once."""
    return sum(use.own_bytes for use in uses) + max(use.file_bytes for use in uses)


def folder_bytes(folder: Path) -> int:
    """Return what a folder takes on disk."""
    total = 0
    for subfolder, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                total += os.lstat(os.path.join(subfolder, name)).st_blocks * 512
    return total


class ProcessSampler:
    """Samples the memory of a process and all its children, and a folder's size, until it is stopped."""

    def __init__(self, pid: int, folder: Path | None) -> None:
        self._root_process, self._folder = psutil.Process(pid), folder
        self._should_stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)
        self.peak_bytes = self.peak_process_bytes = self.peak_disk_bytes = 0
        self._thread.start()

    def _sample_until_stopped(self) -> None:
        next_disk_time = 0.0
        while True:
            start_time = time.perf_counter()
            with contextlib.suppress(psutil.Error):
                processes = [self._root_process, *self._root_process.children(recursive=True)]
                uses = [memory_use(process) for process in processes]
                self.peak_bytes = max(self.peak_bytes, total_bytes(uses))
                self.peak_process_bytes = max(self.peak_process_bytes, *(use.peak_bytes for use in uses))
            if self._folder is not None and start_time >= next_disk_time:
                self.peak_disk_bytes = max(self.peak_disk_bytes, folder_bytes(self._folder))
                elapsed = time.perf_counter() - start_time
                next_disk_time = start_time + max(DISK_SECONDS, elapsed / SAMPLING_SHARE)
            if self._should_stop.wait(max(SAMPLE_SECONDS, (time.perf_counter() - start_time) / SAMPLING_SHARE)):
                return

    def stop(self) -> None:
        """End sampling."""
        self._should_stop.set()
        self._thread.join()


def run_watched(
    command: Sequence[str],
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> ProcessResult:
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
        start_time = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **(environment or {})})
        sampler = ProcessSampler(process.pid, folder)
        exit_code: int | None = None
        try:
            exit_code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            end_processes(process)
        except BaseException:
            end_processes(process)
            raise
        finally:
            seconds = time.perf_counter() - start_time
            sampler.stop()
        out.seek(0)
        err.seek(0)
        disk_bytes = 0 if folder is None else folder_bytes(folder)
        peak_disk_bytes = max(sampler.peak_disk_bytes, disk_bytes)
        outputs = out.read(), err.read()[-MAX_ERROR_CHARACTERS:]
    return ProcessResult(
        exit_code, seconds, sampler.peak_bytes, sampler.peak_process_bytes, peak_disk_bytes, disk_bytes, *outputs
    )


def end_processes(process: subprocess.Popen) -> None:
    """End a process that this one started, and its children."""
    with contextlib.suppress(psutil.Error):
        processes = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for child in processes:
            with contextlib.suppress(psutil.Error):
                child.terminate()
        for child in psutil.wait_procs(processes, TERMINATION_SECONDS)[1]:
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.wait()
