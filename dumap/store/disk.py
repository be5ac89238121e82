"""Local disks: what is a path, and how a file comes to be there for good."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from urllib.parse import unquote

from dumap.errors import StorageError

LINKLESS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems say that have no hard links."""
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""What is raised where there is no such file."""


PIECE_BYTES = 1 << 20
"""A file is read for its digest in pieces of this size."""


def is_remote(location: str) -> bool:
    """Tell whether a location is a URL rather than a path of the file system."""
    return "://" in location and not _is_file_url(location)


def _is_file_url(location: str) -> bool:
    return location[:7].lower() == "file://"


def normalize(location: str) -> str:
    """Return a location that means the same on every worker: a URL, or an absolute path."""
    if is_remote(location):
        return location
    if _is_file_url(location):
        path = location[7:]
        location = unquote(path[9:] if path[:10].lower() == "localhost/" else path)
    return str(Path(location).absolute())


def is_same(one: Path, other: Path) -> bool:
    """Tell whether two paths lead to one folder or file, be it by letters that the file system holds for equal."""
    return one == other or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other))


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


def keys(root: str, below: str = "") -> Iterator[str]:
    """Name every file below a folder, hidden ones too, and every link, which leads nowhere here."""
    for folder, names, files in os.walk(Path(root) / below):
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *links):
            yield Path(folder, name).relative_to(root).as_posix()


def folders(root: str, below: str) -> Iterator[str]:
    """Name every folder below a folder; none behind a link."""
    for folder, names, _ in os.walk(Path(root) / below):
        for name in names:
            yield Path(folder, name).relative_to(root).as_posix()


def is_link(root: str, key: str) -> bool:
    """Tell whether a name stands for what lies elsewhere."""
    return (Path(root) / key).is_symlink()


def linked_folder(root: str, key: str) -> str | None:
    """Return the first folder on the way from a root to a key that is a link; the root itself may be one."""
    steps = key.split("/")[:-1]
    ways = ("/".join(steps[:count]) for count in range(1, len(steps) + 1))
    return next((way for way in ways if os.path.islink(f"{root}/{way}")), None)


def refuse_linked(root: str, key: str) -> None:
    """Raise a StorageError where what lies at a key lies outside the root, in a folder that a link leads to."""
    if (way := linked_folder(root, key)) is not None:
        raise StorageError(
            f"{root}: {way} is a link to {os.readlink(f'{root}/{way}')}, where nothing is written: a run's own folders "
            f"lie in the run. Put the folder itself there; the run as a whole may lie behind a link"
        )


def read(root: str, key: str, most: int | None = None) -> bytes | None:
    """Return a file's bytes, or None where there is none, or where it has more bytes than it may."""
    path = Path(root) / key
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or (most is not None and status.st_size > most):  # a device has no end
            return None
        return path.read_bytes()
    except ABSENT:
        return None


def digest(root: str, key: str, size: int) -> str | None:
    """Return the SHA-256 of a file of a size; None where there is no such file."""
    found, path = hashlib.sha256(), Path(root) / key
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            return None
        with path.open("rb") as file:
            while size and (piece := file.read(min(size, PIECE_BYTES))):
                found.update(piece)
                size -= len(piece)
    except ABSENT:
        return None
    return None if size else found.hexdigest()


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
    refuse_linked(root, key)
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
    refuse_linked(root, key)
    path = Path(root) / key
    partial = _write_partial(path, [data])
    try:
        os.link(partial, path)
    except FileExistsError:
        return read(root, key) == data
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


def remove(root: str, key: str) -> None:
    """Remove a file, or a link; never what lies behind a link, and no folder that holds anything."""
    if linked_folder(root, key) is not None:
        return
    path = Path(root) / key
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (IsADirectoryError, PermissionError):  # systems differ in what they say of a folder
        if not path.is_dir():
            raise
        path.rmdir()


def prune(root: str, folders: Iterable[str]) -> None:
    """Remove those of some folders below a root that are empty, and those above them that are then."""
    left = {Path(folder) for folder in folders if folder}
    while left:
        folder = max(left, key=lambda path: len(path.parts))
        left.remove(folder)
        whole = Path(root) / folder
        if whole.is_symlink() or linked_folder(root, folder.as_posix()) is not None:
            continue
        try:
            whole.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
                raise
        else:
            left |= {folder.parent} - {Path(".")}


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
