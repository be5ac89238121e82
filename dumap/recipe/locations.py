"""Checks the locations that a run reads and writes: they must not overlap, and must be usable on every worker."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dumap.config import INIT_METHODS, Config
from dumap.errors import StorageError
from dumap.sources.opening import locate
from dumap.store import INSIDE, Run, RunKeys, check_writable, set_options
from dumap.store.disk import is_remote, is_same_path, normalize

ALLOWED_FOLDERS = {INSIDE}
"""Folders that a run may have if its driver died before it wrote the run's identity."""
SCHEME_ALIASES = {"s3a": "s3", "gcs": "gs", "azure": "az", "adl": "az", "abfs": "az", "abfss": "az"}
"""Schemes of URLs and the schemes that mean the same."""
S3_HOSTS = (
    re.compile(r"s3[.-]([a-z0-9-]+\.)?amazonaws\.com(:443)?"),
    re.compile(r"(?P<bucket>.+)\.s3[.-]([a-z0-9-]+\.)?amazonaws\.com(:443)?"),
)
"""Hosts of the buckets of s3://. The bucket is the first step of the path, or a part of the host's name."""


def with_normalized_locations(config: Config, parent: str | None = None) -> Config:
    """Return the configuration with locations that mean the same on every worker; set the options for their buckets."""
    set_options(filter(None, [*source_locations(config), config.output, config.work, parent]), config.storage)
    precomputed = config.neighbors.precomputed
    paths = locate(config.input)
    changes: dict[str, Any] = {
        "output": normalize(config.output),
        "input": config.input.model_copy(update={"path": paths[0] if len(paths) == 1 else paths}),
    }
    if config.work is not None:
        changes["work"] = normalize(config.work)
    if precomputed is not None:
        changes["neighbors"] = config.neighbors.model_copy(update={"precomputed": normalize(precomputed)})
    if config.start.init not in INIT_METHODS:
        changes["start"] = config.start.model_copy(update={"init": normalize(config.start.init)})
    return config.model_copy(update=changes)


def split_url(url: str) -> tuple[str, str, tuple[str, ...]]:
    """Return the scheme, the bucket and the steps of the path of a URL, the same for all spellings of the URL."""
    parts = urlsplit(url)
    scheme, host, path = parts.scheme.lower(), parts.netloc.lower(), parts.path
    scheme = SCHEME_ALIASES.get(scheme, scheme)
    steps: list[str] = []
    for step in unquote(path).split("/"):
        if step == "..":
            del steps[-1:]
        elif step not in ("", "."):
            steps.append(step)
    for pattern in S3_HOSTS if scheme in ("http", "https") else ():
        if (match := pattern.fullmatch(host)) is not None:
            scheme, host = "s3", match["bucket"] if "bucket" in match.groupdict() else "".join(steps[:1]).lower()
            steps = steps if "bucket" in match.groupdict() else steps[1:]
            break
    return scheme, host, tuple(steps)


def is_same_location(location: str, other: str) -> bool:
    """Return whether two locations are the same, in any spelling."""
    if is_remote(location) or is_remote(other):
        return is_remote(location) and is_remote(other) and split_url(location) == split_url(other)
    return is_same_path(Path(normalize(location)).resolve(), Path(normalize(other)).resolve())


def check_no_overlap(output: str, source: str, role: str = "input") -> None:
    """Refuse an output that is a source, contains a source, or lies in a source."""
    if is_remote(output) and is_remote(source):
        (*bucket, output_steps), (*source_bucket, source_steps) = split_url(output), split_url(source)
        shorter = min(len(output_steps), len(source_steps))
        overlaps = bucket == source_bucket and output_steps[:shorter] == source_steps[:shorter]
    elif is_remote(output) or is_remote(source):
        overlaps = False
    else:
        output_path, source_path = Path(normalize(output)).resolve(), Path(normalize(source)).resolve()
        overlaps = any(is_same_path(output_path, path) for path in (source_path, *source_path.parents))
        overlaps = overlaps or any(is_same_path(source_path, path) for path in output_path.parents)
    if overlaps:
        raise StorageError(f"output: {output} is, holds or lies in the {role} {source}; name another")


def source_locations(config: Config) -> list[str]:
    """List the locations that a run reads: the input, given neighbours and given coordinates."""
    paths = [config.neighbors.precomputed, None if config.start.init in INIT_METHODS else config.start.init]
    return [*config.input.paths, *(path for path in paths if path is not None)]


def check_locations(config: Config, run_keys: RunKeys) -> None:
    """Refuse an output that overlaps with a source, or that exists and is not a run."""
    output = config.output
    for source in source_locations(config):
        check_no_overlap(output, source)
    is_local = not is_remote(output)
    if is_local and os.path.exists(output) and not os.path.isdir(output):
        raise StorageError(f"output: {output} is a file; name a folder that is a run, or does not exist")
    run = Run(output, read_only=True)
    if run.exists():
        run.attributes  # noqa: B018  (raises an error unless it is a run of this format)
    elif run.find_foreign_key(run_keys) is not None or (
        is_local and os.path.isdir(output) and set(os.listdir(output)) - ALLOWED_FOLDERS
    ):
        raise StorageError(f"output: {output} exists and is not a dumap run; nothing was touched")
    run.refuse_linked_folders(run_keys)


def prepare_output(location: str) -> None:
    """Make the output's folder, and fail unless it can be written to."""
    if not is_remote(location):
        try:
            os.makedirs(location, exist_ok=True)
        except OSError as error:
            raise StorageError(f"output: {location} cannot be made ({error.strerror})") from error
    check_writable(location)


def free_disk_bytes(location: str) -> int | None:
    """Return the free bytes of the output's disk; None if they are not known."""
    if is_remote(location):
        return None
    path = Path(location)
    usage = shutil.disk_usage(next(folder for folder in [path, *path.parents] if folder.exists()))
    return usage.free if usage.total else None
