"""The places that a run reads and writes: named the same on every worker, apart from each other, and usable."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from dumap.config import INITS, Config
from dumap.disk import is_remote, normalize
from dumap.errors import StorageError
from dumap.store import LOCKS, MANIFESTS, Run, probe


def with_places(config: Config) -> Config:
    """Return the configuration with places that mean the same on every worker."""
    given = config.neighbors.precomputed
    update: dict[str, Any] = {
        "output": normalize(config.output),
        "input": config.input.model_copy(update={"path": normalize(config.input.path)}),
    }
    if given is not None:
        update["neighbors"] = config.neighbors.model_copy(update={"precomputed": normalize(given)})
    if config.start.init not in INITS:
        update["start"] = config.start.model_copy(update={"init": normalize(config.start.init)})
    return config.model_copy(update=update)


def check_apart(output: str, source: str) -> None:
    """Refuse an output that is, holds or lies in what is read."""
    if is_remote(output) or is_remote(source):
        same = output.rstrip("/") == source.rstrip("/")
    else:
        written, read = Path(output).resolve(), Path(source).resolve()
        same = written == read or read in written.parents or written in read.parents
    if same:
        raise StorageError(f"output: {output} is, holds or lies in the input {source}; name another")


def check_places(config: Config) -> None:
    """Refuse an output that is, holds or lies in what is read, or that is something else than a run."""
    check_apart(config.output, config.input.path)
    if config.neighbors.precomputed is not None:
        check_apart(config.output, config.neighbors.precomputed)
    if not is_remote(config.output) and os.path.exists(config.output):
        if not os.path.isdir(config.output):
            raise StorageError(f"output: {config.output} is a file; name a folder that is a run, or does not exist")
        begun = {MANIFESTS, LOCKS}  # all there is where a driver died before it said what the run is of
        if set(os.listdir(config.output)) - begun and not Run(config.output, read_only=True).exists():
            raise StorageError(f"output: {config.output} exists and is not a dumap run; nothing was touched")
    run = Run(config.output, read_only=True)
    if run.exists():
        run.attributes  # noqa: B018  refuses another format, or something else than a run


def probe_output(location: str) -> None:
    """Make the output's folder, and fail unless it can be written to."""
    if not is_remote(location):
        try:
            os.makedirs(location, exist_ok=True)
        except OSError as error:
            raise StorageError(f"output: {location} cannot be made ({error.strerror})") from error
    probe(location)


def free_disk(location: str) -> int | None:
    """Return the bytes free where the output lies, where that is known."""
    if is_remote(location):
        return None
    path = Path(location)
    usage = shutil.disk_usage(next(folder for folder in [path, *path.parents] if folder.exists()))
    return usage.free if usage.total else None
