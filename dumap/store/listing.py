"""Lists the arrays of a Zarr store, at any depth, for messages to people who named one that does not exist."""

from __future__ import annotations

import asyncio
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import zarr
from zarr.abc.store import Store
from zarr.api import asynchronous
from zarr.errors import ArrayNotFoundError, GroupNotFoundError

from dumap.store.objects import describe_error

MOST_NODES = 4000
"""Arrays and groups that are looked at: each takes requests."""
MOST_NAMED = 20
"""Arrays that a message names."""
AT_ONCE = 32
"""Nodes that are looked at at once."""
NO_NODE = (ArrayNotFoundError, GroupNotFoundError, FileNotFoundError)
SPARSE = ("csr_matrix", "csc_matrix", "csr", "csc")
"""AnnData's names of sparse matrices, in new and old versions."""


@dataclass(frozen=True)
class Found:
    """An array of a store, or a node that is listed in its place.

    Attributes
    ----------
    path : str
    shape : tuple of int
        Empty where it is not known.
    dense : bool
        It is an array of real numbers.
    said : str
        What is told of it.
    """

    path: str
    shape: tuple[int, ...]
    dense: bool
    said: str


def sparse_kind(group: zarr.Group | zarr.AsyncGroup) -> tuple[str, tuple[int, ...]] | None:
    """Return the encoding and the shape of the sparse matrix that a group holds; None if it holds none."""
    attributes = group.attrs if isinstance(group.attrs, dict) else group.attrs.asdict()
    kind = str(attributes.get("encoding-type", attributes.get("h5sparse_format", "")))
    if kind not in SPARSE:
        return None
    shape = attributes.get("shape", attributes.get("h5sparse_shape", ()))
    return kind, tuple(size for size in shape if isinstance(size, int)) if isinstance(shape, list | tuple) else ()


async def _look(store: Store, path: str, turn: asyncio.Semaphore) -> zarr.AsyncArray | zarr.AsyncGroup | Found | None:
    async with turn:
        try:
            return await asynchronous.open(store=store, path=path, mode="r", use_consolidated=False)
        except NO_NODE:
            return None
        except Exception as error:  # of whatever kind: it is told beside what can be read
            return Found(path, (), False, f"{path} (not readable: {describe_error(error).splitlines()[0][:100]})")


async def _walk(store: Store) -> tuple[list[Found], bool]:
    found: list[Found] = []
    groups, looked, turn = deque([""]), 0, asyncio.Semaphore(AT_ONCE)
    while groups:
        group = groups.popleft()
        names = sorted([name async for name in store.list_dir(group)])
        names = [name.rstrip("/") for name in names if not name.startswith(".") and name != "zarr.json"]
        paths = [f"{group}/{name}".lstrip("/") for name in names][: MOST_NODES - looked]
        looked += len(paths)
        nodes = await asyncio.gather(*(_look(store, path, turn) for path in paths))
        for path, node in zip(paths, nodes, strict=True):
            if isinstance(node, Found):
                found.append(node)
            elif isinstance(node, zarr.AsyncArray):
                shape, kind = tuple(node.shape), node.dtype.kind
                found.append(Found(path, shape, kind in "fiub", f"{path} {shape}"))
            elif node is not None and (sparse := sparse_kind(node)):
                found.append(Found(path, sparse[1], False, f"{path} {sparse[1] or ''} (sparse, {sparse[0]}: not read)"))
            elif node is not None:
                groups.append(path)
        if looked >= MOST_NODES:
            return found, bool(groups) or len(paths) < len(names)
    return found, False


def _rank(found: Found) -> tuple[bool, bool, str]:
    """Order what may be embedded before other arrays, and those before what cannot be read."""
    return not (found.dense and len(found.shape) == 2), not found.shape, found.path


def find_arrays(store: Store) -> tuple[list[Found], bool]:
    """List the arrays of a store: first those of rows of numbers, then others; a sparse matrix counts as one.

    Returns
    -------
    found : list of Found
    more : bool
        There are more than were looked at.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that nobody asked for
        with ThreadPoolExecutor(1) as apart:  # whose thread has no event loop yet
            found, more = apart.submit(asyncio.run, _walk(store)).result()
    return sorted(found, key=_rank), more


def describe_arrays(store: Store) -> str:
    """Name a store's arrays, or the first of them."""
    try:
        found, more = find_arrays(store)
    except Exception as error:  # of a store of whatever kind; the reader is told so
        return f"not to be listed ({describe_error(error)})"
    names = [own.said for own in found[:MOST_NAMED]]
    left = len(found) - len(names)
    if left or more:
        names.append(f"and {'at least ' if more else ''}{left} more")
    return ", ".join(names) or "none"


def dense_rows(store: Store, rows: int | None) -> list[str]:
    """Name arrays of rows of numbers, so many rows if that is known; those that AnnData keeps by its rows first."""
    found, _ = find_arrays(store)
    fitting = [own for own in found if own.dense and len(own.shape) == 2 and rows in (None, own.shape[0])]
    by_row = {"obsm": 0, "layers": 1}
    fitting.sort(key=lambda own: (by_row.get(own.path.split("/")[0], 2), own.path))
    return [f"{own.path} {own.shape}" for own in fitting]
