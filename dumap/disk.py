"""Local disks: what is a path, and how a file comes to be there for good."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

from dumap.errors import StorageError

LINKLESS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems say that have no hard links."""
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""What is raised where there is no such file."""


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


def names(root: str, below: str, depth: int) -> Iterator[str]:
    """Name the files below a folder's folder, at most so many folders down; links are followed.

    Raises
    ------
    OSError
        A folder cannot be read.
    """
    folders = [("", 0)]
    while folders:
        inner, level = folders.pop()
        try:
            entries = os.scandir(os.path.join(root, below, inner))
        except ABSENT:
            continue
        with entries:
            for entry in entries:
                if entry.is_file():
                    yield f"{inner}{entry.name}"
                elif level < depth and entry.is_dir():
                    folders.append((f"{inner}{entry.name}/", level + 1))


def read(root: str, key: str) -> bytes | None:
    """Return a file's bytes, or None where there is none."""
    try:
        return (Path(root) / key).read_bytes()
    except ABSENT:
        return None


def size(root: str, key: str) -> int:
    """Return a file's size in bytes, -1 where there is none."""
    try:
        return (Path(root) / key).stat().st_size
    except ABSENT:
        return -1


def open_at(root: str, key: str, offset: int, size: int) -> FileIO:
    """Open a file to be read from a byte on.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    EOFError
        It is not of that size.
    """
    try:
        file = FileIO(f"{root}/{key}")
    except ABSENT as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key) from error
    try:
        if os.fstat(file.fileno()).st_size != size:
            raise EOFError(f"{key} is not of {size} bytes")
        file.seek(offset)
    except BaseException:
        file.close()
        raise
    return file


def write(root: str, key: str, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file whole, replacing what is there; once its folders are flushed too, it survives a power cut."""
    path = Path(root) / key
    partial = _write_partial(path, pieces)
    try:
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def create(root: str, key: str, data: bytes) -> bool:
    """Create a file whole and for good, unless it is there; tell whether it now holds `data`.

    The bytes reach the disk under another name first: a link to them either appears, or does not.
    """
    path = Path(root) / key
    partial = _write_partial(path, [data])
    try:
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
    flush_folders(root, [key])
    return True


def _write_partial(path: Path, pieces: Iterable[bytes | memoryview]) -> Path:
    """Bring bytes to the disk beside a path, under a name of their own; return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def prune(root: str) -> None:
    """Remove the empty folders below a folder."""
    for folder, _, _ in os.walk(root, topdown=False):
        if folder != root and not os.listdir(folder):
            os.rmdir(folder)


def flush(root: str, key: str) -> None:
    """Bring a file or a folder to the disk: of a folder, the names in it."""
    descriptor = os.open(Path(root) / key, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folders(root: str, keys: Iterable[str]) -> None:
    """Bring the folders above files to the disk, each once."""
    folders = set()
    for key in keys:
        while key:
            key = key.rpartition("/")[0]
            folders.add(key)
    for folder in sorted(folders, reverse=True):
        flush(root, folder)
