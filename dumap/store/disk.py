"""Files and folders of a local disk. Files are written whole, and durably if asked for."""

from __future__ import annotations

import contextlib
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

NO_HARD_LINK_ERRORS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of file systems without hard links."""
MISSING_FILE_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""Errors that mean that a file does not exist."""


DIGEST_PIECE_BYTES = 1 << 20
"""The digest of a file is computed in pieces of this size."""


def is_remote(location: str) -> bool:
    """Return whether a location is a URL rather than a path of the file system."""
    return "://" in location and not _is_file_url(location)


def _is_file_url(location: str) -> bool:
    """Return whether a location is a URL of the file system."""
    return location[:7].lower() == "file://"


def normalize(location: str) -> str:
    """Return a location as a URL or an absolute path, so that every worker reads it alike."""
    if is_remote(location):
        return location
    if _is_file_url(location):
        path = location[7:]
        location = unquote(path[9:] if path[:10].lower() == "localhost/" else path)
    return str(Path(location).absolute())


def is_same_path(path: Path, other: Path) -> bool:
    """Return whether two paths name the same folder or file, also if the file system ignores case."""
    return path == other or (os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other))


def stamps(root: str, top_folder: str) -> Iterator[str]:
    """Yield name, size and time of each file below a folder, or of a single file."""
    top_path = Path(root)
    for file in [top_path] if top_path.is_file() else sorted((top_path / top_folder).rglob("*")):
        if file.is_file():
            status = file.stat()
            yield f"{file.name}:{status.st_size}:{status.st_mtime_ns};"


def names(root: str, top_folder: str, depth: int) -> Iterator[str]:
    """Yield the names of the files below a folder, at most `depth` folders down; follow links.

    Raises
    ------
    OSError
        A folder cannot be read.
    """
    folders = [("", 0)]
    while folders:
        inner, level = folders.pop()
        try:
            entries = os.scandir(os.path.join(root, top_folder, inner))
        except MISSING_FILE_ERRORS:
            continue
        with entries:
            for entry in entries:
                if entry.is_file():
                    yield f"{inner}{entry.name}"
                elif level < depth and entry.is_dir():
                    folders.append((f"{inner}{entry.name}/", level + 1))


def keys(root: str, top_folder: str = "") -> Iterator[str]:
    """Yield the key of every file and of every link below a folder, hidden or not; do not follow links."""
    for folder, names, files in os.walk(Path(root) / top_folder):
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *links):
            yield Path(folder, name).relative_to(root).as_posix()


def folders(root: str, top_folder: str) -> Iterator[str]:
    """Yield the key of every folder below a folder; do not follow links."""
    for folder, names, _ in os.walk(Path(root) / top_folder):
        for name in names:
            yield Path(folder, name).relative_to(root).as_posix()


def is_link(root: str, key: str) -> bool:
    """Return whether the file of a key is a link."""
    return (Path(root) / key).is_symlink()


def find_linked_folder(root: str, key: str) -> str | None:
    """Return the first folder between a root and a key that is a link; None if there is none. The root may be one."""
    folder_names = key.split("/")[:-1]
    folders = ("/".join(folder_names[:count]) for count in range(1, len(folder_names) + 1))
    return next((folder for folder in folders if os.path.islink(f"{root}/{folder}")), None)


def refuse_linked_folder(root: str, key: str) -> None:
    """Raise a StorageError if a folder between a root and a key is a link: the file would lie outside the root."""
    if (folder := find_linked_folder(root, key)) is not None:
        target = os.readlink(f"{root}/{folder}")
        raise StorageError(
            f"{root}: {folder} is a link to {target}, where nothing is written: a run's own folders lie in the run. "
            f"Put the folder itself there; the run as a whole may lie behind a link"
        )


def read(root: str, key: str, max_bytes: int | None = None) -> bytes | None:
    """Return a file's bytes; None if it does not exist or has more than `max_bytes` bytes."""
    path = Path(root) / key
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or (
            max_bytes is not None and status.st_size > max_bytes
        ):  # reading a device would not end
            return None
        return path.read_bytes()
    except MISSING_FILE_ERRORS:
        return None


def digest(root: str, key: str, size: int) -> str | None:
    """Return the SHA-256 of a file; None if it does not exist or has another size."""
    hasher, path = hashlib.sha256(), Path(root) / key
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            return None
        with path.open("rb") as file:
            while size and (piece := file.read(min(size, DIGEST_PIECE_BYTES))):
                hasher.update(piece)
                size -= len(piece)
    except MISSING_FILE_ERRORS:
        return None
    return None if size else hasher.hexdigest()


def size(root: str, key: str) -> int:
    """Return a file's size in bytes, -1 if it does not exist."""
    try:
        return (Path(root) / key).stat().st_size
    except MISSING_FILE_ERRORS:
        return -1


def open_at(root: str, key: str, offset: int, size: int) -> FileIO:
    """Open a file for reading from an offset on.

    Raises
    ------
    FileNotFoundError
        The file does not exist.
    EOFError
        The file has another size.
    """
    try:
        file = FileIO(f"{root}/{key}")
    except MISSING_FILE_ERRORS as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key) from error
    try:
        if os.fstat(file.fileno()).st_size != size:
            raise EOFError(f"{key} is not of {size} bytes")
        file.seek(offset)
    except BaseException:
        file.close()
        raise
    return file


class FileWriter:
    """A file that is written piece by piece under a temporary name.

    Parameters
    ----------
    root, key : str
    """

    def __init__(self, root: str, key: str) -> None:
        refuse_linked_folder(root, key)
        self._path = Path(root) / key
        make_folders(root, key.rpartition("/")[0])
        self.partial = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex[:8]}.partial")
        self._file = self.partial.open("wb")

    def write(self, piece: bytes | memoryview) -> None:
        """Append bytes to the file."""
        self._file.write(piece)

    def close(self, durable: bool = True) -> None:
        """Close the file; if `durable`, flush its bytes to the disk."""
        with self._file:
            self._file.flush()
            if durable:
                os.fsync(self._file.fileno())

    def keep(self, durable: bool = True) -> None:
        """Close the file and rename it to its key, replacing any file. It is durable once its folder is flushed."""
        self.close(durable)
        os.replace(self.partial, self._path)

    def discard(self) -> None:
        """Remove the temporary file, if it exists."""
        with contextlib.suppress(OSError):  # a full disk cannot take the buffered bytes, which are not needed
            self._file.close()
        self.partial.unlink(missing_ok=True)


def make_folders(root: str, folder: str) -> None:
    """Make a folder below a root and all folders above it, durably."""
    missing_folders = []
    while not os.path.isdir(f"{root}/{folder}"):
        missing_folders.append(folder)
        if not folder:
            break
        folder = folder.rpartition("/")[0]
    for folder in reversed(missing_folders):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
        if folder:
            flush(root, folder.rpartition("/")[0])


def write(root: str, key: str, data: bytes | memoryview, durable: bool = True) -> None:
    """Write a whole file, replacing any file. If `durable`, it survives a power cut once its folder is flushed."""
    writer = FileWriter(root, key)
    try:
        writer.write(data)
        writer.keep(durable)
    except BaseException:
        writer.discard()
        raise


def create(root: str, key: str, data: bytes, durable: bool = True) -> bool:
    """Write a whole file unless it exists; return whether it now holds `data`. If `durable`, it survives a power cut.

    The bytes are written under a temporary name first. A hard link then creates the file in one step.
    """
    writer = FileWriter(root, key)
    try:
        writer.write(data)
        writer.close(durable)
        os.link(writer.partial, f"{root}/{key}")
    except FileExistsError:
        return read(root, key) == data
    except OSError as error:
        if error.errno in NO_HARD_LINK_ERRORS and writer.partial.exists():
            raise StorageError(
                f"{root} lies on a file system without hard links, by which a run commits; name a folder on another"
            ) from error
        raise
    finally:
        writer.discard()
    if durable:
        flush_folders(root, [key])
    return True


def remove(root: str, key: str) -> None:
    """Remove a file, a link or an empty folder, but nothing behind a link."""
    if find_linked_folder(root, key) is not None:
        return
    path = Path(root) / key
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (IsADirectoryError, PermissionError):  # systems raise different errors for a folder
        if not path.is_dir():
            raise
        path.rmdir()


def delete_empty_folders(root: str, folders: Iterable[str]) -> None:
    """Remove the empty folders among some folders below a root, and the folders above them that become empty."""
    remaining = {Path(folder) for folder in folders if folder}
    while remaining:
        folder = max(remaining, key=lambda path: len(path.parts))
        remaining.remove(folder)
        whole = Path(root) / folder
        if whole.is_symlink() or find_linked_folder(root, folder.as_posix()) is not None:
            continue
        try:
            whole.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
                raise
        else:
            remaining |= {folder.parent} - {Path(".")}


def flush(root: str, key: str) -> None:
    """Flush a file to the disk, or the names in a folder."""
    descriptor = os.open(Path(root) / key, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folders(root: str, keys: Iterable[str]) -> None:
    """Flush the folders of files to the disk. `make_folders` has flushed the folders above them."""
    for folder in sorted({key.rpartition("/")[0] for key in keys}):
        flush(root, folder)


def names_in(root: str, folder: str) -> tuple[list[str], list[str]]:
    """Return the names of the files and of the folders directly in a folder."""
    try:
        with os.scandir(Path(root) / folder) as entries:
            listed_names = [(entry.name, entry.is_dir()) for entry in entries]
    except MISSING_FILE_ERRORS:
        return [], []
    return [name for name, is_folder in listed_names if not is_folder], [
        name for name, is_folder in listed_names if is_folder
    ]
