"""Lists the arrays of a Zarr store, at any depth, for messages about an array that does not exist."""

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
"""The most arrays and groups that are opened, since each takes requests."""
MOST_NAMED = 20
"""The most arrays that a message names."""
AT_ONCE = 32
"""The number of nodes that are opened at once."""
NO_NODE = (ArrayNotFoundError, GroupNotFoundError, FileNotFoundError)
SPARSE = ("csr_matrix", "csc_matrix", "csr", "csc")
"""AnnData's encodings of sparse matrices, in new and old versions."""


@dataclass(frozen=True)
class Listed:
    """An array of a store, or another node in the list of arrays: a sparse matrix, or a node that cannot be read.

    Attributes
    ----------
    path : str
    shape : tuple of int
        Empty if it is not known.
    dense : bool
        Whether the node is an array of real numbers.
    text : str
        The description of the node in messages.
    """

    path: str
    shape: tuple[int, ...]
    dense: bool
    text: str


def sparse_kind(group: zarr.Group | zarr.AsyncGroup) -> tuple[str, tuple[int, ...]] | None:
    """Return the encoding and the shape of a group that is a sparse matrix; None for any other group."""
    attributes = group.attrs if isinstance(group.attrs, dict) else group.attrs.asdict()
    kind = str(attributes.get("encoding-type", attributes.get("h5sparse_format", "")))
    if kind not in SPARSE:
        return None
    shape = attributes.get("shape", attributes.get("h5sparse_shape", ()))
    return kind, tuple(size for size in shape if isinstance(size, int)) if isinstance(shape, list | tuple) else ()


async def _open(store: Store, path: str, limit: asyncio.Semaphore) -> zarr.AsyncArray | zarr.AsyncGroup | Listed | None:
    """Open a node; return its description if it cannot be read, and None if it is not a node."""
    async with limit:
        try:
            return await asynchronous.open(store=store, path=path, mode="r", use_consolidated=False)
        except NO_NODE:
            return None
        except Exception as error:  # of any kind: the message lists the node with its error
            return Listed(path, (), False, f"{path} (not readable: {describe_error(error).splitlines()[0][:100]})")


async def _walk(store: Store) -> tuple[list[Listed], bool]:
    """Return the arrays of a store, and whether it has more nodes than were opened."""
    listed: list[Listed] = []
    groups, opened, limit = deque([""]), 0, asyncio.Semaphore(AT_ONCE)
    while groups:
        group = groups.popleft()
        names = sorted([name async for name in store.list_dir(group)])
        names = [name.rstrip("/") for name in names if not name.startswith(".") and name != "zarr.json"]
        paths = [f"{group}/{name}".lstrip("/") for name in names][: MOST_NODES - opened]
        opened += len(paths)
        nodes = await asyncio.gather(*(_open(store, path, limit) for path in paths))
        for path, node in zip(paths, nodes, strict=True):
            if isinstance(node, Listed):
                listed.append(node)
            elif isinstance(node, zarr.AsyncArray):
                shape, kind = tuple(node.shape), node.dtype.kind
                listed.append(Listed(path, shape, kind in "fiub", f"{path} {shape}"))
            elif node is not None and (sparse := sparse_kind(node)):
                text = f"{path} {sparse[1] or ''} (sparse, {sparse[0]})"
                listed.append(Listed(path, sparse[1], False, text))
            elif node is not None:
                groups.append(path)
        if opened >= MOST_NODES:
            return listed, bool(groups) or len(paths) < len(names)
    return listed, False


def _rank(node: Listed) -> tuple[bool, bool, str]:
    """Return a sort key: arrays that may be embedded, then other arrays, then nodes that cannot be read."""
    return not (node.dense and len(node.shape) == 2), not node.shape, node.path


def find_arrays(store: Store) -> tuple[list[Listed], bool]:
    """List the arrays of a store: first those with rows of numbers. A sparse matrix counts as one array.

    Returns
    -------
    listed : list of Listed
    more : bool
        Whether the store has more nodes than were opened.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that the user did not name
        with ThreadPoolExecutor(1) as pool:  # asyncio.run needs a thread without an event loop
            listed, more = pool.submit(asyncio.run, _walk(store)).result()
    return sorted(listed, key=_rank), more


def describe_arrays(store: Store) -> str:
    """Return the descriptions of a store's first arrays, and the number of the others."""
    try:
        listed, more = find_arrays(store)
    except Exception as error:  # of any kind, since the store may be of any kind; the text says so
        return f"not to be listed ({describe_error(error)})"
    names = [node.text for node in listed[:MOST_NAMED]]
    left = len(listed) - len(names)
    if left or more:
        names.append(f"and {'at least ' if more else ''}{left} more")
    return ", ".join(names) or "none"


def dense_rows(store: Store, rows: int | None) -> list[str]:
    """Describe the arrays with rows of numbers, and with `rows` rows if given; AnnData's obsm and layers come first."""
    listed, _ = find_arrays(store)
    fitting = [node for node in listed if node.dense and len(node.shape) == 2 and rows in (None, node.shape[0])]
    order = {"obsm": 0, "layers": 1}
    fitting.sort(key=lambda node: (order.get(node.path.split("/")[0], 2), node.path))
    return [f"{node.path} {node.shape}" for node in fitting]
