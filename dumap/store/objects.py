"""Objects by key, in a folder or a bucket: read, written once or over, listed; what fails is named."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeVar

import zarr
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore, ZipStore

from dumap.errors import ConfigError, DumapError, StorageError, needs
from dumap.figures import to_json
from dumap.store import disk
from dumap.store.disk import is_remote, normalize
from dumap.store.naming import LOCKS

T = TypeVar("T")

PIECE_BYTES = 32 << 20
"""An object of a bucket is read for its digest in pieces of this size."""

AT_ONCE = 64
"""Objects of a bucket that are removed at once."""

PAUSES = (1.0, 2.0, 4.0)
"""Seconds between tries of a request that failed, on top of the tries that the bucket's library makes itself."""

ADVICE = {
    errno.ENOSPC: "no space is left: make room, then the same command goes on",
    errno.EDQUOT: "the quota is used up: make room, then the same command goes on",
    errno.EACCES: "not allowed: look at the folder's owner and mode",
    errno.EPERM: "not allowed: look at the folder's owner and mode",
    errno.EROFS: "the file system is read-only",
}


def set_threads(threads: int) -> None:
    """Bound the threads of Zarr in this process for good: they are started once."""
    zarr.config.set({"threading.max_workers": threads})


def requests_at_once(requests: int) -> AbstractContextManager:
    """Bound the requests that Zarr makes at once for an array in this process, until what this returns is left."""
    return zarr.config.set({"async.concurrency": requests})


def open_store(location: str, read_only: bool) -> Store:
    """Open a folder, a zip file or a bucket."""
    if is_remote(location):
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise needs(f"{location}: a URL", "obstore") from error
        try:
            return ObjectStore(from_url(location), read_only=read_only)
        except Exception as error:  # of many kinds: what a URL may hold is its library's to say
            raise ConfigError(f"{location} cannot be opened: {told(error)}") from error
    if location.endswith(".zip") and os.path.isfile(location):
        return ZipStore(location, mode="r", read_only=True)
    return LocalStore(location, read_only=read_only)


@cache
def bucket_errors() -> tuple[type[Exception], tuple[type[Exception], ...]]:
    """Return what a bucket's library raises: the base of all, and what may not fail another time."""
    try:
        from obstore import exceptions
    except ImportError:
        return OSError, ()
    return exceptions.BaseError, (exceptions.GenericError, exceptions.JoinError)


def told(error: Exception) -> str:
    """Return what an error says to people: a bucket's library adds how the error looks within it."""
    return f"{type(error).__name__}: {error}".split("\n\nDebug source")[0]


def digest(data: bytes | memoryview) -> str:
    """Return the digest by which an object is known: processors have instructions for this one."""
    return _shortened(hashlib.sha256(data).hexdigest())


def _shortened(found: str) -> str:
    return found[:32]


def seal(document: dict[str, Any]) -> bytes:
    """Write a small document with its digest; a number that is not finite is null."""
    body = to_json(document, sort_keys=True)
    return to_json({"digest": digest(body.encode()), "document": document}, sort_keys=True).encode()


def unseal(data: bytes) -> dict[str, Any] | None:
    """Read a sealed document; None where it is not byte for byte what was sealed."""
    try:
        document = json.loads(data)["document"]
        return document if isinstance(document, dict) and seal(document) == data else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class Objects:
    """What lies below a location.

    Parameters
    ----------
    location : str
        A path or a URL.
    read_only : bool

    Raises
    ------
    StorageError
        By every method, where the file system or the bucket fails.
    """

    def __init__(self, location: str, read_only: bool = False) -> None:
        self.location = normalize(location)
        self.store = open_store(self.location, read_only)
        self.is_local = isinstance(self.store, LocalStore)

    def attempt(self, key: str, action: Callable[[], T]) -> T:
        """Do something to an object; again where a request to a bucket failed in passing.

        Actions must come to the same when done twice.
        """
        base, passing = bucket_errors()
        for pause in (*PAUSES, None):
            try:
                return action()
            except (DumapError, FileNotFoundError):
                raise
            except (OSError, base) as error:
                if pause is None or not isinstance(error, passing):
                    number = error.errno if isinstance(error, OSError) else None
                    said = ADVICE.get(number or 0, told(error))
                    raise StorageError(f"{self.location}, {key}: {said}") from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    def get(self, key: str, most: int | None = None) -> bytes | None:
        """Return an object's bytes, or None where there is none, or a file of more bytes than it may have."""
        if self.is_local:
            return self.attempt(key, lambda: disk.read(self.location, key, most))
        try:
            buffer = self.attempt(key, lambda: sync(self.store.get(key, default_buffer_prototype())))
        except FileNotFoundError:  # a folder that is not there yet
            return None
        return None if buffer is None else buffer.to_bytes()

    def digest(self, key: str, size: int) -> str | None:
        """Return the digest of an object of a size, read piece by piece; None where there is no such object."""
        if self.is_local:
            found = self.attempt(key, lambda: disk.digest(self.location, key, size))
            return None if found is None else _shortened(found)
        if self.size(key) != size:
            return None
        digested = hashlib.sha256()
        for start in range(0, size, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, size)
            try:
                with self.open_span(key, start, stop, size) as piece:
                    digested.update(piece.read())
            except FileNotFoundError:
                return None
        return _shortened(digested.hexdigest())

    def open_span(self, key: str, start: int, stop: int, size: int) -> io.FileIO | io.BytesIO:
        """Open bytes [start, stop) of an object of a size, to be read in order; a bucket may have fewer of them.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        EOFError
            It is a file of another size.
        """
        if self.is_local:
            return self.attempt(key, lambda: disk.open_at(self.location, key, start, size))
        wanted = RangeByteRequest(start, stop)
        buffer = self.attempt(key, lambda: sync(self.store.get(key, default_buffer_prototype(), wanted)))
        if buffer is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        return io.BytesIO(buffer.to_bytes())

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole and for good, replacing what is there."""
        self.put_pieces(key, lambda: [data])
        self.flush_folders([key])

    def put_pieces(self, key: str, make: Callable[[], Iterable[bytes | memoryview]]) -> tuple[int, str]:
        """Write an object whole, replacing what is there; return its size and its digest.

        On local disks it is there for good once the folders above it are flushed.

        Parameters
        ----------
        key : str
        make : callable
            Returns the object's bytes in order, from the beginning every time. A piece is done with when the next
            is asked for.
        """

        def act() -> tuple[int, str]:
            size, digested = 0, hashlib.sha256()

            def passing() -> Iterator[bytes | memoryview]:
                nonlocal size
                for piece in make():
                    size += len(piece)
                    digested.update(piece)
                    yield piece

            if self.is_local:
                disk.write(self.location, key, passing())
            else:
                whole = io.BytesIO()
                for piece in passing():
                    whole.write(piece)
                buffer = default_buffer_prototype().buffer.from_bytes(whole.getvalue())
                sync(self.store.set(key, buffer))
            return size, _shortened(digested.hexdigest())

        return self.attempt(key, act)

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object unless it is there; tell whether it now holds `data`.

        So where the answer to a request is lost, the next try finds its own bytes.
        """
        if self.is_local:
            return self.attempt(key, lambda: disk.create(self.location, key, data))
        buffer = default_buffer_prototype().buffer.from_bytes(data)
        self.attempt(key, lambda: sync(self.store.set_if_not_exists(key, buffer)))
        return self.get(key) == data

    def delete(self, key: str) -> None:
        """Remove an object; not through a link."""
        if self.is_local:
            self.attempt(key, lambda: disk.remove(self.location, key))
        else:
            self.attempt(key, lambda: sync(self.store.delete(key)))

    def delete_all(self, keys: Sequence[str]) -> None:
        """Remove objects."""
        if self.is_local:
            for key in keys:
                self.delete(key)
            return

        async def remove() -> None:
            for first in range(0, len(keys), AT_ONCE):
                await asyncio.gather(*map(self.store.delete, keys[first : first + AT_ONCE]))

        self.attempt(keys[0] if keys else "", lambda: sync(remove()))

    def size(self, key: str) -> int:
        """Return an object's size in bytes, -1 where there is none."""
        if self.is_local:
            return self.attempt(key, lambda: disk.size(self.location, key))
        try:
            return int(self.attempt(key, lambda: sync(self.store.getsize(key))))
        except FileNotFoundError:
            return -1

    def names_below(self, folder: str) -> list[str]:
        """List the names right below a folder."""

        async def collect() -> list[str]:
            return [name async for name in self.store.list_dir(folder)]

        try:
            found = self.attempt(folder, lambda: sync(collect()))
        except FileNotFoundError:
            return []
        return sorted(name for name in found if not name.startswith("."))

    def keys(self, below: str = "") -> list[str]:
        """List every object below a folder: hidden files of the file system and links to folders too."""
        return sorted(self.attempt(below, lambda: list(self.each_key(below))))

    def holds_any(self) -> bool:
        """Tell whether there is any object."""
        return self.attempt("", lambda: next(iter(self.each_key()), None) is not None)

    def each_key(self, below: str = "") -> Iterator[str]:
        """Yield the keys of objects below a folder as they are found, in whatever order."""
        if self.is_local:
            yield from disk.keys(self.location, below)
        elif isinstance(self.store, ObjectStore):
            for batch in self.store.store.list(below or None):
                yield from (meta["path"] for meta in batch)
        else:
            yield from sync(self._listed(below))

    async def _listed(self, below: str) -> list[str]:
        return [key async for key in self.store.list_prefix(below)]

    def flush(self, key: str) -> None:
        """Bring an object to the disk, where it is a file; it is there for good once its folders are too."""
        if self.is_local:
            self.attempt(key, lambda: disk.flush(self.location, key))

    def flush_folders(self, keys: Iterable[str]) -> None:
        """Bring the folders above objects to the disk, where they are files."""
        if self.is_local:
            self.attempt("", lambda: disk.flush_folders(self.location, keys))


def stamps(location: str, below: str) -> Iterator[str]:
    """Tell what can be seen of the objects below a key without reading them: names, sizes, times or tags."""
    objects = Objects(location, read_only=True)
    if isinstance(objects.store, ObjectStore):
        bucket = objects.store.store
        listed = objects.attempt(below, lambda: [meta for batch in bucket.list(below or None) for meta in batch])
        for meta in sorted(listed, key=lambda meta: meta["path"]):
            yield f"{meta['path']}:{meta['size']}:{meta['e_tag'] or meta['last_modified']};"
    else:
        yield from disk.stamps(objects.location, below)


def names_below(location: str, folder: str, depth: int, collect: Callable[[Iterable[str]], T]) -> T:
    """Hand the names of the objects below a folder, relative to it, to what collects them as they come.

    Parameters
    ----------
    location, folder : str
    depth : int
        Folders further down are not looked at, where there are folders.
    collect : callable
        Called anew where a listing failed in passing.
    """
    objects, prefix = Objects(location, read_only=True), f"{folder}/" if folder else ""
    if objects.is_local:
        return objects.attempt(folder, lambda: collect(disk.names(objects.location, folder, depth)))

    def keys() -> Iterator[str]:
        if isinstance(objects.store, ObjectStore):
            for batch in objects.store.store.list(prefix or None):
                yield from (meta["path"] for meta in batch)
        else:
            with zipfile.ZipFile(objects.location) as file:
                yield from file.namelist()

    return objects.attempt(
        folder, lambda: collect(key.removeprefix(prefix) for key in keys() if key.startswith(prefix))
    )


def lacks_room(error: BaseException | None) -> bool:
    """Tell whether an error comes of a store that is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def probe_key() -> str:
    """Name an object that is written to see whether it can be."""
    return f"{LOCKS}/probe-{os.urandom(8).hex()}"


def probe(location: str) -> None:
    """Fail unless the location can be written to, and keeps what was written first.

    Raises
    ------
    StorageError
    """
    objects, key = Objects(location), probe_key()
    try:
        kept = objects.put_new(key, b"first") and not objects.put_new(key, b"second") and objects.get(key) == b"first"
        objects.delete(key)
    except Exception as error:  # any store's own kind of refusal
        said = str(error) if isinstance(error, DumapError) else told(error)
        raise StorageError(f"output: {location} cannot be written to ({said})") from error
    if not kept:
        raise StorageError(
            f"output: {location} does not support writing an object only where there is none, by which a run commits; "
            f"name a folder on a file system with hard links, or a bucket with conditional writes"
        )
