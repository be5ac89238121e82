"""Checks of the locations that a run reads and writes: the same on every worker, separate, and usable."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dumap.config import INITS, Config
from dumap.errors import StorageError
from dumap.sources.opening import locate
from dumap.store import INSIDE, Run, RunKeys, probe, use_options
from dumap.store.disk import is_remote, is_same, normalize

BEGUN = {INSIDE}
"""Folders of a run whose driver died before it wrote the run's identity."""
SCHEMES = {"s3a": "s3", "gcs": "gs", "azure": "az", "adl": "az", "abfs": "az", "abfss": "az"}
"""Schemes of URLs that mean the same as another."""
AMAZON = (
    re.compile(r"s3[.-]([a-z0-9-]+\.)?amazonaws\.com(:443)?"),
    re.compile(r"(?P<bucket>.+)\.s3[.-]([a-z0-9-]+\.)?amazonaws\.com(:443)?"),
)
"""Hosts by which buckets of s3:// are reached too: the bucket is the first step of the path, or in the host's name."""


def with_places(config: Config, parent: str | None = None) -> Config:
    """Return the configuration with places that mean the same on every worker; open these, and a parent, as it says."""
    use_options(filter(None, [*sources(config), config.output, config.work, parent]), config.storage)
    given = config.neighbors.precomputed
    paths = locate(config.input)
    update: dict[str, Any] = {
        "output": normalize(config.output),
        "input": config.input.model_copy(update={"path": paths[0] if len(paths) == 1 else paths}),
    }
    if config.work is not None:
        update["work"] = normalize(config.work)
    if given is not None:
        update["neighbors"] = config.neighbors.model_copy(update={"precomputed": normalize(given)})
    if config.start.init not in INITS:
        update["start"] = config.start.model_copy(update={"init": normalize(config.start.init)})
    return config.model_copy(update=update)


def place_of(url: str) -> tuple[str, str, tuple[str, ...]]:
    """Return service, bucket and path of a URL, the same for all ways to write it."""
    parts = urlsplit(url)
    scheme, host, path = parts.scheme.lower(), parts.netloc.lower(), parts.path
    scheme = SCHEMES.get(scheme, scheme)
    steps: list[str] = []
    for step in unquote(path).split("/"):
        if step == "..":
            del steps[-1:]
        elif step not in ("", "."):
            steps.append(step)
    for form in AMAZON if scheme in ("http", "https") else ():
        if (found := form.fullmatch(host)) is not None:
            scheme, host = "s3", found["bucket"] if "bucket" in found.groupdict() else "".join(steps[:1]).lower()
            steps = steps if "bucket" in found.groupdict() else steps[1:]
            break
    return scheme, host, tuple(steps)


def is_one_place(one: str, other: str) -> bool:
    """Return whether two locations are the same, however they are written."""
    if is_remote(one) or is_remote(other):
        return is_remote(one) and is_remote(other) and place_of(one) == place_of(other)
    return is_same(Path(normalize(one)).resolve(), Path(normalize(other)).resolve())


def check_apart(output: str, source: str, what: str = "input") -> None:
    """Refuse an output that is a source, or contains one, or lies in one."""
    if is_remote(output) and is_remote(source):
        (*bucket, below), (*other, inside) = place_of(output), place_of(source)
        shorter = min(len(below), len(inside))
        same = bucket == other and below[:shorter] == inside[:shorter]
    elif is_remote(output) or is_remote(source):
        same = False
    else:
        here, there = Path(normalize(output)).resolve(), Path(normalize(source)).resolve()
        same = any(is_same(here, path) for path in (there, *there.parents))
        same = same or any(is_same(there, path) for path in here.parents)
    if same:
        raise StorageError(f"output: {output} is, holds or lies in the {what} {source}; name another")


def sources(config: Config) -> list[str]:
    """List the locations that a run reads: the input, and given neighbours and coordinates."""
    given = [config.neighbors.precomputed, None if config.start.init in INITS else config.start.init]
    return [*config.input.paths, *(path for path in given if path is not None)]


def check_places(config: Config, run_keys: RunKeys) -> None:
    """Refuse an output that overlaps with a source, or is something else than a run."""
    output = config.output
    for source in sources(config):
        check_apart(output, source)
    local = not is_remote(output)
    if local and os.path.exists(output) and not os.path.isdir(output):
        raise StorageError(f"output: {output} is a file; name a folder that is a run, or does not exist")
    run = Run(output, read_only=True)
    if run.exists():
        run.attributes  # noqa: B018  refuses another format, or something else than a run
    elif run.first_other(run_keys) is not None or (local and os.path.isdir(output) and set(os.listdir(output)) - BEGUN):
        raise StorageError(f"output: {output} exists and is not a dumap run; nothing was touched")
    run.refuse_links(run_keys)


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
