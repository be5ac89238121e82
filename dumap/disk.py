"""Local disks: what is a path, and how a file comes to be there for good."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from dumap.errors import StorageError

LINKLESS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems say that have no hard links."""


def is_remote(location: str) -> bool:
    """Tell whether a location is a URL rather than a path of the file system."""
    return "://" in location and not location.startswith("file://")


def normalize(location: str) -> str:
    """Return a location that means the same on every worker: a URL, or an absolute path."""
    return location if is_remote(location) else str(Path(location.removeprefix("file://")).absolute())


def stamps(root: str, below: str) -> Iterator[str]:
    """Tell names, sizes and times of the files below a folder's folder, or of a file."""
    top = Path(root)
    for file in [top] if top.is_file() else sorted((top / below).rglob("*")):
        if file.is_file():
            found = file.stat()
            yield f"{file.name}:{found.st_size}:{found.st_mtime_ns};"


def create(root: str, key: str, data: bytes) -> bool:
    """Create a file whole and for good, unless it is there; tell whether it now holds `data`.

    The bytes reach the disk under another name first: a link to them either appears, or does not.
    """
    path = Path(root) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)
    except FileExistsError:
        return path.read_bytes() == data
    except OSError as error:
        if error.errno in LINKLESS and partial.exists():
            raise StorageError(
                f"{root} lies on a file system without hard links, by which a run commits; name a folder on another"
            ) from error
        raise
    finally:
        partial.unlink(missing_ok=True)
    _flush_folders(Path(root), path.parent)
    return True


def prune(root: str) -> None:
    """Remove the empty folders below a folder."""
    for folder, _, _ in os.walk(root, topdown=False):
        if folder != root and not os.listdir(folder):
            os.rmdir(folder)


def flush(root: str, key: str) -> None:
    """Make a file and the folders above it survive a power cut."""
    path = Path(root) / key
    _flush(path)
    _flush_folders(Path(root), path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folders(root: Path, folder: Path) -> None:
    for path in [folder, *folder.parents]:
        _flush(path)
        if path == root:
            break
