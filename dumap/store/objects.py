"""Reads, writes, creates and lists objects by key in a folder, a bucket or a zip file, with errors for users."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache, cached_property
from typing import Any, TypeVar

import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, ObjectStore, ZipStore

from dumap.errors import DumapError, StorageError
from dumap.json_values import to_json
from dumap.store import disk
from dumap.store.backends import Bucket, ByteStream, describe_error, is_zip_archive, open_backend, open_bucket
from dumap.store.disk import normalize
from dumap.store.manifests import LOCKS

T = TypeVar("T")

DIGEST_PIECE_BYTES = 32 << 20
"""The digest of an object in a bucket is computed in pieces of this size."""

RETRY_SECONDS = (1.0, 2.0, 4.0)
"""Seconds before each new try of a failed request. obstore makes further tries itself."""

ERROR_ADVICE = {
    errno.ENOSPC: "no space is left: make room, then the same command goes on",
    errno.EDQUOT: "the quota is used up: make room, then the same command goes on",
    errno.EACCES: "not allowed: look at the folder's owner and mode",
    errno.EPERM: "not allowed: look at the folder's owner and mode",
    errno.EROFS: "the file system is read-only",
}


def limit_zarr_threads(threads: int) -> None:
    """Limit the threads of Zarr in this process; Zarr starts them once, when it first needs them."""
    zarr.config.set({"threading.max_workers": threads})


def limit_zarr_requests(requests: int) -> AbstractContextManager:
    """Return a context in which Zarr makes at most `requests` requests at once for an array."""
    return zarr.config.set({"async.concurrency": requests})


def open_store(location: str, read_only: bool) -> Store:
    """Open a folder, a zip file or a bucket as a store of Zarr."""
    if disk.is_remote(location):
        return ObjectStore(open_bucket(location), read_only=read_only)
    return (
        ZipStore(location, mode="r", read_only=True)
        if is_zip_archive(location)
        else LocalStore(location, read_only=read_only)
    )


@cache
def bucket_errors() -> tuple[type[Exception], tuple[type[Exception], ...]]:
    """Return obstore's errors: the base class, and the classes of errors after which a new try may succeed."""
    try:
        from obstore import exceptions
    except ImportError:
        return OSError, ()
    return exceptions.BaseError, (exceptions.GenericError, exceptions.JoinError)


def digest(data: bytes | memoryview) -> str:
    """Return the digest of an object: SHA-256, for which processors have instructions, shortened to 32 digits."""
    return _shorten_digest(hashlib.sha256(data).hexdigest())


def _shorten_digest(hexdigest: str) -> str:
    """Return the first half of a SHA-256."""
    return hexdigest[:32]


def seal(document: dict[str, Any]) -> bytes:
    """Return the bytes of a document with its digest; numbers that are not finite become null."""
    body = to_json(document, sort_keys=True)
    return to_json({"digest": digest(body.encode()), "document": document}, sort_keys=True).encode()


def unseal(data: bytes) -> dict[str, Any] | None:
    """Return a sealed document; None if its bytes are not those that `seal` returned."""
    try:
        document = json.loads(data)["document"]
        return document if isinstance(document, dict) and seal(document) == data else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class Objects:
    """The objects below a location.

    Parameters
    ----------
    location : str
        A path or a URL.
    read_only : bool

    Raises
    ------
    StorageError
        Every method raises it if the file system or the bucket fails.
    """

    def __init__(self, location: str, read_only: bool = False) -> None:
        self.location, self.read_only = normalize(location), read_only
        self.backend = open_backend(self.location)
        self.is_local = self.backend.is_local

    @cached_property
    def store(self) -> Store:
        """The location as a store of Zarr."""
        if isinstance(self.backend, Bucket):
            return ObjectStore(self.backend.bucket, read_only=self.read_only)
        return open_store(self.location, self.read_only)

    def call_with_retries(self, key: str, action: Callable[[], T]) -> T:
        """Call an action on an object, and again if a request to a bucket failed for a passing cause.

        An action must have the same result when it is done twice.
        """
        base_error, transient_errors = bucket_errors()
        for wait_seconds in (*RETRY_SECONDS, None):
            try:
                return action()
            except (DumapError, FileNotFoundError):
                raise
            except (OSError, base_error) as error:
                if wait_seconds is None or not isinstance(error, transient_errors):
                    error_number = error.errno if isinstance(error, OSError) else None
                    reason = ERROR_ADVICE.get(error_number or 0, describe_error(error))
                    raise StorageError(f"{self.location}, {key}: {reason}") from error
                time.sleep(wait_seconds)
        raise AssertionError("unreachable")

    def get(self, key: str, max_bytes: int | None = None) -> bytes | None:
        """Return an object's bytes; None if it does not exist or has more than `max_bytes` bytes."""
        return self.call_with_retries(key, lambda: self.backend.get(key, max_bytes))

    def digest(self, key: str, size: int) -> str | None:
        """Return the digest of an object, read piece by piece; None if it does not exist or has another size."""
        if self.is_local:
            sha256 = self.call_with_retries(key, lambda: disk.digest(self.location, key, size))
            return None if sha256 is None else _shorten_digest(sha256)
        if self.size(key) != size:
            return None
        hasher = hashlib.sha256()
        for start in range(0, size, DIGEST_PIECE_BYTES):
            try:
                hasher.update(self.open_range(key, start, min(start + DIGEST_PIECE_BYTES, size), size).read() or b"")
            except FileNotFoundError:
                return None
        return _shorten_digest(hasher.hexdigest())

    def open_range(self, key: str, start: int, stop: int, size: int) -> ByteStream:
        """Open bytes [start, stop) of an object of `size` bytes. An object of a bucket may have fewer bytes.

        Raises
        ------
        FileNotFoundError
            The object does not exist.
        EOFError
            The object is a file of another size.
        """
        return self.call_with_retries(key, lambda: self.backend.open_range(key, start, stop, size))

    def put(self, key: str, data: bytes) -> None:
        """Write a whole object durably, replacing any object of the key."""
        self.put_with_digest(key, data, durable=True)
        self.flush_folders([key])

    def put_with_digest(self, key: str, data: bytes, durable: bool) -> tuple[int, str]:
        """Write a whole object, replacing any object of the key; return its size and its digest.

        A durable file survives a power cut once its folder is flushed.
        """
        self.call_with_retries(key, lambda: self.backend.put(key, data, durable))
        return len(data), digest(data)

    def put_new(self, key: str, data: bytes, durable: bool = True) -> bool:
        """Write a whole object unless it exists; return whether it now holds `data`.

        If the response to a request is lost, the next try finds its own bytes and returns True.
        """
        return self.call_with_retries(key, lambda: self.backend.create(key, data, durable))

    def delete(self, key: str) -> None:
        """Remove an object, but no file behind a link."""
        self.delete_keys([key])

    def delete_keys(self, keys: Sequence[str]) -> None:
        """Remove objects, but no files behind links."""
        if keys:
            self.call_with_retries(keys[0], lambda: self.backend.remove(keys))

    def size(self, key: str) -> int:
        """Return an object's size in bytes, -1 if it does not exist."""
        return self.call_with_retries(key, lambda: self.backend.size(key))

    def list_names(self, folder: str) -> list[str]:
        """List the names of the objects directly in a folder."""
        return self._visible_names(folder, 0)

    def folders_below(self, folder: str) -> list[str]:
        """List the names of the folders directly in a folder."""
        return self._visible_names(folder, 1)

    def _visible_names(self, folder: str, kind: int) -> list[str]:
        """List the names that are not hidden: of objects (kind 0) or folders (kind 1)."""
        names = self.call_with_retries(folder, lambda: self.backend.names_in(folder))[kind]
        return sorted(name for name in names if not name.startswith("."))

    def keys(self, folder: str = "") -> list[str]:
        """List the keys of all objects below a folder, also of hidden files and of links to folders."""
        return sorted(self.call_with_retries(folder, lambda: list(self.iterate_keys(folder))))

    def has_objects(self) -> bool:
        """Return whether any object exists."""
        return self.call_with_retries("", lambda: next(iter(self.iterate_keys()), None) is not None)

    def iterate_keys(self, folder: str = "") -> Iterator[str]:
        """Yield the keys of all objects below a folder, in any order."""
        return self.backend.keys(folder)

    def flush_folders(self, keys: Iterable[str]) -> None:
        """Flush the folders of objects to the disk, if the objects are files."""
        if self.is_local:
            self.call_with_retries("", lambda: disk.flush_folders(self.location, keys))


class ObjectWriter:
    """Writes an object piece by piece; it replaces any object of the key once it is whole.

    Parameters
    ----------
    objects : Objects
    key : str

    Attributes
    ----------
    size : int
        Bytes written so far.
    """

    def __init__(self, objects: Objects, key: str) -> None:
        self.objects, self.key, self.size, self._hasher = objects, key, 0, hashlib.sha256()
        self._file = (
            objects.call_with_retries(key, lambda: disk.FileWriter(objects.location, key)) if objects.is_local else None
        )
        self._buffer = io.BytesIO()

    def add(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Append pieces of bytes. Each piece is used before the next one is taken from the iterable."""

        def write_pieces() -> None:
            for piece in pieces:
                (self._buffer if self._file is None else self._file).write(piece)
                self._hasher.update(piece)
                self.size += len(piece)

        self.objects.call_with_retries(self.key, write_pieces)

    def keep(self, durable: bool = True) -> tuple[int, str]:
        """Finish the object; return its size and its digest. A file is durable once its folder is flushed."""
        try:
            self.objects.call_with_retries(self.key, lambda: self._finish_object(durable))
        except BaseException:
            self.discard()
            raise
        return self.size, _shorten_digest(self._hasher.hexdigest())

    def _finish_object(self, durable: bool) -> None:
        """Send the object to the bucket, or give the file its name."""
        if self._file is None:
            self.objects.backend.put(self.key, self._buffer.getbuffer(), durable)
        else:
            self._file.keep(durable)

    def discard(self) -> None:
        """Remove the unfinished file."""
        if self._file is not None:
            self._file.discard()


def stamps(location: str, folder: str) -> Iterator[str]:
    """Yield a text of name, size and time (or tag) for each object below a folder."""
    objects = Objects(location, read_only=True)
    yield from objects.call_with_retries(folder, lambda: list(objects.backend.stamps(folder)))


def list_names_below(location: str, folder: str, depth: int, consume: Callable[[Iterable[str]], T]) -> T:
    """Return `consume(names)` for an iterator of the names of the objects below a folder, relative to it.

    Parameters
    ----------
    location, folder : str
    depth : int
        On a local disk, only folders up to this depth are listed.
    consume : callable
        Called again if a listing failed for a passing cause.
    """
    objects, prefix = Objects(location, read_only=True), f"{folder}/" if folder else ""
    if objects.is_local:
        return objects.call_with_retries(folder, lambda: consume(disk.names(objects.location, folder, depth)))
    return objects.call_with_retries(
        folder, lambda: consume(key.removeprefix(prefix) for key in objects.iterate_keys(folder))
    )


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether a full disk or quota caused an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def probe_key() -> str:
    """Return a new key for an object that tests whether a location can be written to."""
    return f"{LOCKS}/probe-{os.urandom(8).hex()}"


def check_writable(location: str) -> None:
    """Fail unless a location can be written to and refuses to create an object twice.

    Raises
    ------
    StorageError
    """
    objects, key = Objects(location), probe_key()
    try:
        is_supported = (
            objects.put_new(key, b"first") and not objects.put_new(key, b"second") and objects.get(key) == b"first"
        )
        objects.delete(key)
    except Exception as error:  # stores raise errors of many kinds
        reason = str(error) if isinstance(error, DumapError) else describe_error(error)
        raise StorageError(f"output: {location} cannot be written to ({reason})") from error
    if not is_supported:
        raise StorageError(
            f"output: {location} does not support writing an object only where there is none, by which a run commits; "
            f"name a folder on a file system with hard links, or a bucket with conditional writes"
        )
