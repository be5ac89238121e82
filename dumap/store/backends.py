"""Backends of objects: a folder of a local disk, a bucket, or a zip file, which is only read.

Each knows objects by key and says `FileNotFoundError` of what is not there; what else fails is its own kind of error.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from dumap.errors import ConfigError, needs
from dumap.store import disk
from dumap.store.options import arguments_of, hide

REMOVED_AT_ONCE = 1000
"""Objects of a bucket that one request removes."""


class ByteStream(Protocol):
    """A stream of bytes that is read in order: a file, or a bucket's answer."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill a buffer, or the beginning of it; tell how far."""

    def read(self, count: int = -1, /) -> bytes | None:
        """Return the bytes that follow."""

    def close(self) -> None:
        """Close the file, if there is one."""


class Backend(Protocol):
    """The operations of a backend. `Objects` turns their failures into errors for users."""

    is_local: bool

    def get(self, key: str, most: int | None) -> bytes | None:
        """Return an object's bytes; None if there is none, or if it has more than `most` bytes."""

    def open_span(self, key: str, start: int, stop: int, size: int) -> ByteStream:
        """Open bytes [start, stop) of an object of a size; EOFError where a file has another."""

    def size(self, key: str) -> int:
        """Return an object's size in bytes, -1 where there is none."""

    def names_in(self, folder: str) -> tuple[list[str], list[str]]:
        """Name the objects and the folders right below a folder."""

    def keys(self, below: str) -> Iterator[str]:
        """Yield the keys of all objects below a folder, in whatever order."""

    def stamps(self, below: str) -> Iterator[str]:
        """Yield a text of name, size and time (or tag) for each object below a folder, in order."""

    def put(self, key: str, data: bytes | memoryview, durable: bool) -> None:
        """Write an object whole, replacing what is there."""

    def create(self, key: str, data: bytes, durable: bool) -> bool:
        """Write an object whole unless it is there; tell whether it now holds `data`."""

    def remove(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error."""


class Folder:
    """A folder of a local disk."""

    is_local = True

    def __init__(self, root: str) -> None:
        self.root = root

    def get(self, key: str, most: int | None) -> bytes | None:
        """As `Backend`."""
        return disk.read(self.root, key, most)

    def open_span(self, key: str, start: int, stop: int, size: int) -> ByteStream:
        """As `Backend`."""
        return disk.open_at(self.root, key, start, size)

    def size(self, key: str) -> int:
        """As `Backend`."""
        return disk.size(self.root, key)

    def names_in(self, folder: str) -> tuple[list[str], list[str]]:
        """As `Backend`."""
        return disk.names_in(self.root, folder)

    def keys(self, below: str) -> Iterator[str]:
        """As `Backend`; hidden files of the file system and links to folders too."""
        return disk.keys(self.root, below)

    def stamps(self, below: str) -> Iterator[str]:
        """As `Backend`."""
        return disk.stamps(self.root, below)

    def put(self, key: str, data: bytes | memoryview, durable: bool) -> None:
        """As `Backend`; the file is there for good once its folder is flushed."""
        disk.write(self.root, key, data, durable)

    def create(self, key: str, data: bytes, durable: bool) -> bool:
        """As `Backend`."""
        return disk.create(self.root, key, data, durable)

    def remove(self, keys: Sequence[str]) -> None:
        """As `Backend`; not through a link."""
        for key in keys:
            disk.remove(self.root, key)


class Bucket:
    """A bucket, accessed by obstore's functions; every write is durable."""

    is_local = False

    def __init__(self, bucket: Any) -> None:
        import obstore

        self.bucket, self._call = bucket, obstore

    def get(self, key: str, most: int | None) -> bytes | None:
        """As `Backend`."""
        try:
            found = self._call.get(self.bucket, key)
        except FileNotFoundError:
            return None
        return None if most is not None and found.meta["size"] > most else found.bytes().to_bytes()

    def open_span(self, key: str, start: int, stop: int, size: int) -> ByteStream:
        """As `Backend`."""
        return io.BytesIO(self._call.get_range(self.bucket, key, start=start, end=stop).to_bytes())

    def size(self, key: str) -> int:
        """As `Backend`."""
        try:
            return int(self._call.head(self.bucket, key)["size"])
        except FileNotFoundError:
            return -1

    def names_in(self, folder: str) -> tuple[list[str], list[str]]:
        """As `Backend`."""
        found = self._call.list_with_delimiter(self.bucket, folder or None)
        paths = [meta["path"] for meta in found["objects"]], found["common_prefixes"]
        return tuple([path.rstrip("/").rpartition("/")[2] for path in some] for some in paths)  # type: ignore[return-value]

    def keys(self, below: str) -> Iterator[str]:
        """As `Backend`."""
        for batch in self._call.list(self.bucket, below or None):
            yield from (meta["path"] for meta in batch)

    def stamps(self, below: str) -> Iterator[str]:
        """As `Backend`."""
        listed = [meta for batch in self._call.list(self.bucket, below or None) for meta in batch]
        for meta in sorted(listed, key=lambda meta: meta["path"]):
            yield f"{meta['path']}:{meta['size']}:{meta['e_tag'] or meta['last_modified']};"

    def put(self, key: str, data: bytes | memoryview, durable: bool) -> None:
        """As `Backend`."""
        self._call.put(self.bucket, key, data)

    def create(self, key: str, data: bytes, durable: bool) -> bool:
        """As `Backend`: where the answer to a request is lost, the next finds its own bytes."""
        with contextlib.suppress(self._call.exceptions.AlreadyExistsError):
            self._call.put(self.bucket, key, data, mode="create")
        return self.get(key, None) == data

    def remove(self, keys: Sequence[str]) -> None:
        """As `Backend`."""
        for first in range(0, len(keys), REMOVED_AT_ONCE):
            some = list(keys[first : first + REMOVED_AT_ONCE])
            try:
                self._call.delete(self.bucket, some)
            except FileNotFoundError:  # some services say so of one, and leave the others
                for key in some:
                    with contextlib.suppress(FileNotFoundError):
                        self._call.delete(self.bucket, key)


class Archive:
    """A zip file, which is only read."""

    is_local = False

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, key: str, most: int | None) -> bytes | None:
        """As `Backend`."""
        with zipfile.ZipFile(self.path) as file:
            try:
                found = file.getinfo(key)
            except KeyError:
                return None
            return None if most is not None and found.file_size > most else file.read(found)

    def open_span(self, key: str, start: int, stop: int, size: int) -> ByteStream:
        """As `Backend`."""
        found = self.get(key, size)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        return io.BytesIO(found[start:stop])

    def size(self, key: str) -> int:
        """As `Backend`."""
        with zipfile.ZipFile(self.path) as file:
            return next((found.file_size for found in file.infolist() if found.filename == key), -1)

    def names_in(self, folder: str) -> tuple[list[str], list[str]]:
        """As `Backend`."""
        below = [key[len(folder) + bool(folder) :].split("/") for key in self.keys(folder)]
        return [way[0] for way in below if len(way) == 1], sorted({way[0] for way in below if len(way) > 1})

    def keys(self, below: str) -> Iterator[str]:
        """As `Backend`."""
        prefix = f"{below}/" if below else ""
        with zipfile.ZipFile(self.path) as file:
            yield from (name for name in file.namelist() if name.startswith(prefix) and not name.endswith("/"))

    def stamps(self, below: str) -> Iterator[str]:
        """As `Backend`: of the file as a whole."""
        return disk.stamps(self.path, below)

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
    """Open a bucket by its URL, as its library's own object."""
    try:
        from obstore import store
    except ImportError as error:
        raise needs(f"{location}: a URL", "obstore") from error
    try:
        open_url: Any = store.from_url  # which options there are is the service's to say
        return open_url(location, **arguments_of(location))
    except Exception as error:  # of many kinds: what a URL may hold is its library's to say
        raise ConfigError(f"{location} cannot be opened: {describe_error(error)}") from error


def describe_error(error: BaseException) -> str:
    """Return an error's kind and message, without the debugging text that a bucket's library appends."""
    return hide(f"{type(error).__name__}: {error}".split("\n\nDebug source")[0])


def is_archive(location: str) -> bool:
    """Return whether a path is that of a zip file."""
    return location.endswith(".zip") and os.path.isfile(location)


def open_backend(location: str) -> Backend:
    """Open a folder, a zip file or a bucket."""
    if disk.is_remote(location):
        return Bucket(open_bucket(location))
    return Archive(location) if is_archive(location) else Folder(location)
