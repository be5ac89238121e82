"""Backends of objects: a folder of a local disk, a bucket, or a zip file, which is read-only.

A backend finds objects by key. It raises `FileNotFoundError` for a missing object, and its own errors otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from dumap.errors import ConfigError, missing_packages
from dumap.store import disk
from dumap.store.options import bucket_arguments, hide

MAX_KEYS_PER_DELETE = 1000
"""The most objects of a bucket that one request removes."""


class ByteStream(Protocol):
    """Bytes that are read in order: a file, or a bucket's response."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Read bytes into a buffer; return how many."""

    def read(self, count: int = -1, /) -> bytes | None:
        """Return the next `count` bytes, by default all that follow."""

    def close(self) -> None:
        """Close the stream."""


class Backend(Protocol):
    """The operations of a backend. `Objects` turns their failures into errors for users."""

    is_local: bool

    def get(self, key: str, max_bytes: int | None) -> bytes | None:
        """Return an object's bytes; None if it does not exist or has more than `max_bytes` bytes."""

    def open_range(self, key: str, start: int, stop: int, size: int) -> ByteStream:
        """Open bytes [start, stop) of an object of `size` bytes; raise EOFError if a file has another size."""

    def size(self, key: str) -> int:
        """Return an object's size in bytes, -1 if it does not exist."""

    def names_in(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the objects and of the folders directly in a folder."""

    def keys(self, folder: str) -> Iterator[str]:
        """Yield the keys of all objects below a folder, in any order."""

    def stamps(self, folder: str) -> Iterator[str]:
        """Yield a text of name, size and time (or tag) for each object below a folder, in order."""

    def put(self, key: str, data: bytes | memoryview, durable: bool) -> None:
        """Write a whole object, replacing any object of the key."""

    def create(self, key: str, data: bytes, durable: bool) -> bool:
        """Write a whole object unless it exists; return whether it now holds `data`."""

    def remove(self, keys: Sequence[str]) -> None:
        """Remove those of the objects that exist."""


class Folder:
    """A folder of a local disk."""

    is_local = True

    def __init__(self, root: str) -> None:
        self.root = root

    def get(self, key: str, max_bytes: int | None) -> bytes | None:
        """See `Backend`."""
        return disk.read(self.root, key, max_bytes)

    def open_range(self, key: str, start: int, stop: int, size: int) -> ByteStream:
        """See `Backend`."""
        return disk.open_at(self.root, key, start, size)

    def size(self, key: str) -> int:
        """See `Backend`."""
        return disk.size(self.root, key)

    def names_in(self, folder: str) -> tuple[list[str], list[str]]:
        """See `Backend`."""
        return disk.names_in(self.root, folder)

    def keys(self, folder: str) -> Iterator[str]:
        """See `Backend`; also yields hidden files and links to folders."""
        return disk.keys(self.root, folder)

    def stamps(self, folder: str) -> Iterator[str]:
        """See `Backend`."""
        return disk.stamps(self.root, folder)

    def put(self, key: str, data: bytes | memoryview, durable: bool) -> None:
        """See `Backend`; the file is durable once its folder is flushed."""
        disk.write(self.root, key, data, durable)

    def create(self, key: str, data: bytes, durable: bool) -> bool:
        """See `Backend`."""
        return disk.create(self.root, key, data, durable)

    def remove(self, keys: Sequence[str]) -> None:
        """See `Backend`; removes no file behind a link."""
        for key in keys:
            disk.remove(self.root, key)


class Bucket:
    """A bucket, accessed by obstore's functions; every write is durable."""

    is_local = False

    def __init__(self, bucket: Any) -> None:
        import obstore

        self.bucket, self._obstore = bucket, obstore

    def get(self, key: str, max_bytes: int | None) -> bytes | None:
        """See `Backend`."""
        try:
            response = self._obstore.get(self.bucket, key)
        except FileNotFoundError:
            return None
        return None if max_bytes is not None and response.meta["size"] > max_bytes else response.bytes().to_bytes()

    def open_range(self, key: str, start: int, stop: int, size: int) -> ByteStream:
        """See `Backend`."""
        return io.BytesIO(self._obstore.get_range(self.bucket, key, start=start, end=stop).to_bytes())

    def size(self, key: str) -> int:
        """See `Backend`."""
        try:
            return int(self._obstore.head(self.bucket, key)["size"])
        except FileNotFoundError:
            return -1

    def names_in(self, folder: str) -> tuple[list[str], list[str]]:
        """See `Backend`."""
        listing = self._obstore.list_with_delimiter(self.bucket, folder or None)
        objects, folders = [entry["path"] for entry in listing["objects"]], listing["common_prefixes"]
        return _last_path_steps(objects), _last_path_steps(folders)

    def keys(self, folder: str) -> Iterator[str]:
        """See `Backend`."""
        for entries in self._obstore.list(self.bucket, folder or None):
            yield from (entry["path"] for entry in entries)

    def stamps(self, folder: str) -> Iterator[str]:
        """See `Backend`."""
        objects = [entry for entries in self._obstore.list(self.bucket, folder or None) for entry in entries]
        for entry in sorted(objects, key=lambda entry: entry["path"]):
            yield f"{entry['path']}:{entry['size']}:{entry['e_tag'] or entry['last_modified']};"

    def put(self, key: str, data: bytes | memoryview, durable: bool) -> None:
        """See `Backend`."""
        self._obstore.put(self.bucket, key, data)

    def create(self, key: str, data: bytes, durable: bool) -> bool:
        """See `Backend`. If the response to a request is lost, the next try finds its own bytes."""
        with contextlib.suppress(self._obstore.exceptions.AlreadyExistsError):
            self._obstore.put(self.bucket, key, data, mode="create")
        return self.get(key, None) == data

    def remove(self, keys: Sequence[str]) -> None:
        """See `Backend`."""
        for start in range(0, len(keys), MAX_KEYS_PER_DELETE):
            batch = list(keys[start : start + MAX_KEYS_PER_DELETE])
            try:
                self._obstore.delete(self.bucket, batch)
            except FileNotFoundError:  # some services raise it for one missing object, and remove no others
                for key in batch:
                    with contextlib.suppress(FileNotFoundError):
                        self._obstore.delete(self.bucket, key)


def _last_path_steps(paths: Sequence[str]) -> list[str]:
    """Return the last step of each path."""
    return [path.rstrip("/").rpartition("/")[2] for path in paths]


class ZipArchive:
    """A zip file, which is read-only."""

    is_local = False

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, key: str, max_bytes: int | None) -> bytes | None:
        """See `Backend`."""
        with zipfile.ZipFile(self.path) as file:
            try:
                info = file.getinfo(key)
            except KeyError:
                return None
            return None if max_bytes is not None and info.file_size > max_bytes else file.read(info)

    def open_range(self, key: str, start: int, stop: int, size: int) -> ByteStream:
        """See `Backend`."""
        data = self.get(key, size)
        if data is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        return io.BytesIO(data[start:stop])

    def size(self, key: str) -> int:
        """See `Backend`."""
        with zipfile.ZipFile(self.path) as file:
            return next((info.file_size for info in file.infolist() if info.filename == key), -1)

    def names_in(self, folder: str) -> tuple[list[str], list[str]]:
        """See `Backend`."""
        path_steps = [key[len(folder) + bool(folder) :].split("/") for key in self.keys(folder)]
        return [steps[0] for steps in path_steps if len(steps) == 1], sorted(
            {steps[0] for steps in path_steps if len(steps) > 1}
        )

    def keys(self, folder: str) -> Iterator[str]:
        """See `Backend`."""
        prefix = f"{folder}/" if folder else ""
        with zipfile.ZipFile(self.path) as file:
            yield from (name for name in file.namelist() if name.startswith(prefix) and not name.endswith("/"))

    def stamps(self, folder: str) -> Iterator[str]:
        """Yield the stamp of the zip file itself."""
        return disk.stamps(self.path, folder)

    def put(self, key: str, data: bytes | memoryview, durable: bool) -> None:
        """Refuse."""
        raise OSError(errno.EROFS, "zip files are only read", self.path)

    def create(self, key: str, data: bytes, durable: bool) -> bool:
        """Refuse."""
        raise OSError(errno.EROFS, "zip files are only read", self.path)

    def remove(self, keys: Sequence[str]) -> None:
        """Refuse."""
        raise OSError(errno.EROFS, "zip files are only read", self.path)


def open_bucket(location: str) -> Any:
    """Open a bucket by its URL; return obstore's object."""
    try:
        from obstore import store
    except ImportError as error:
        raise missing_packages(f"{location}: a URL", "obstore") from error
    try:
        open_url: Any = store.from_url  # untyped, since the options depend on the service
        return open_url(location, **bucket_arguments(location))
    except Exception as error:  # obstore raises errors of many kinds for URLs and options
        raise ConfigError(f"{location} cannot be opened: {describe_error(error)}") from error


def describe_error(error: BaseException) -> str:
    """Return the type and the message of an error, without secrets and the debugging text that obstore appends."""
    return hide(f"{type(error).__name__}: {error}".split("\n\nDebug source")[0])


def is_zip_archive(location: str) -> bool:
    """Return whether a path is a zip file."""
    return location.endswith(".zip") and os.path.isfile(location)


def open_backend(location: str) -> Backend:
    """Open a folder, a zip file or a bucket."""
    if disk.is_remote(location):
        return Bucket(open_bucket(location))
    return ZipArchive(location) if is_zip_archive(location) else Folder(location)
