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

MAX_NODES = 4000
"""The most arrays and groups that are opened, since each takes requests."""
MAX_LISTED = 20
"""The most arrays that a message names."""
CONCURRENT_OPENS = 32
"""The number of nodes that are opened at once."""
NO_NODE_ERRORS = (ArrayNotFoundError, GroupNotFoundError, FileNotFoundError)
SPARSE_ENCODINGS = ("csr_matrix", "csc_matrix", "csr", "csc")
"""AnnData's encodings of sparse matrices, in new and old versions."""


@dataclass(frozen=True)
class ListedNode:
    """An array of a store, or another node in the list of arrays: a sparse matrix, or a node that cannot be read.

    Attributes
    ----------
    path : str
    shape : tuple of int
        Empty if it is not known.
    is_dense : bool
        Whether the node is an array of real numbers.
    description : str
        The description of the node in messages.
    """

    path: str
    shape: tuple[int, ...]
    is_dense: bool
    description: str


def sparse_encoding(group: zarr.Group | zarr.AsyncGroup) -> tuple[str, tuple[int, ...]] | None:
    """Return the encoding and the shape of a group that is a sparse matrix; None for any other group."""
    attributes = group.attrs if isinstance(group.attrs, dict) else group.attrs.asdict()
    kind = str(attributes.get("encoding-type", attributes.get("h5sparse_format", "")))
    if kind not in SPARSE_ENCODINGS:
        return None
    shape = attributes.get("shape", attributes.get("h5sparse_shape", ()))
    return kind, tuple(size for size in shape if isinstance(size, int)) if isinstance(shape, list | tuple) else ()


async def _open_node(
    store: Store, path: str, semaphore: asyncio.Semaphore
) -> zarr.AsyncArray | zarr.AsyncGroup | ListedNode | None:
    """Open a node; return its description if it cannot be read, and None if it is not a node."""
    async with semaphore:
        try:
            return await asynchronous.open(store=store, path=path, mode="r", use_consolidated=False)
        except NO_NODE_ERRORS:
            return None
        except Exception as error:  # of any kind: the message lists the node with its error
            return ListedNode(path, (), False, f"{path} (not readable: {describe_error(error).splitlines()[0][:100]})")


async def _list_nodes(store: Store) -> tuple[list[ListedNode], bool]:
    """Return the arrays of a store, and whether it has more nodes than were opened."""
    listed: list[ListedNode] = []
    groups, opened_count, semaphore = deque([""]), 0, asyncio.Semaphore(CONCURRENT_OPENS)
    while groups:
        group = groups.popleft()
        names = sorted([name async for name in store.list_dir(group)])
        names = [name.rstrip("/") for name in names if not name.startswith(".") and name != "zarr.json"]
        paths = [f"{group}/{name}".lstrip("/") for name in names][: MAX_NODES - opened_count]
        opened_count += len(paths)
        nodes = await asyncio.gather(*(_open_node(store, path, semaphore) for path in paths))
        for path, node in zip(paths, nodes, strict=True):
            if isinstance(node, ListedNode):
                listed.append(node)
            elif isinstance(node, zarr.AsyncArray):
                shape, kind = tuple(node.shape), node.dtype.kind
                listed.append(ListedNode(path, shape, kind in "fiub", f"{path} {shape}"))
            elif node is not None and (sparse := sparse_encoding(node)):
                description = f"{path} {sparse[1] or ''} (sparse, {sparse[0]})"
                listed.append(ListedNode(path, sparse[1], False, description))
            elif node is not None:
                groups.append(path)
        if opened_count >= MAX_NODES:
            return listed, bool(groups) or len(paths) < len(names)
    return listed, False


def _listing_order(node: ListedNode) -> tuple[bool, bool, str]:
    """Return a sort key: arrays that may be embedded, then other arrays, then nodes that cannot be read."""
    return not (node.is_dense and len(node.shape) == 2), not node.shape, node.path


def find_arrays(store: Store) -> tuple[list[ListedNode], bool]:
    """List the arrays of a store: first those with rows of numbers. A sparse matrix counts as one array.

    Returns
    -------
    listed : list of ListedNode
    more : bool
        Whether the store has more nodes than were opened.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that the user did not name
        with ThreadPoolExecutor(1) as executor:  # asyncio.run needs a thread without an event loop
            listed, has_more = executor.submit(asyncio.run, _list_nodes(store)).result()
    return sorted(listed, key=_listing_order), has_more


def describe_arrays(store: Store) -> str:
    """Return the descriptions of a store's first arrays, and the number of the others."""
    try:
        listed, has_more = find_arrays(store)
    except Exception as error:  # of any kind, since the store may be of any kind; the text says so
        return f"not to be listed ({describe_error(error)})"
    names = [node.description for node in listed[:MAX_LISTED]]
    unlisted_count = len(listed) - len(names)
    if unlisted_count or has_more:
        names.append(f"and {'at least ' if has_more else ''}{unlisted_count} more")
    return ", ".join(names) or "none"


def describe_dense_arrays(store: Store, rows: int | None) -> list[str]:
    """Describe the arrays with rows of numbers, and with `rows` rows if given; AnnData's obsm and layers come first."""
    listed, _ = find_arrays(store)
    dense_arrays = [node for node in listed if node.is_dense and len(node.shape) == 2 and rows in (None, node.shape[0])]
    group_order = {"obsm": 0, "layers": 1}
    dense_arrays.sort(key=lambda node: (group_order.get(node.path.split("/")[0], 2), node.path))
    return [f"{node.path} {node.shape}" for node in dense_arrays]
