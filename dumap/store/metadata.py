"""Metadata of Zarr nodes. Others may add to it: dumap compares and renews its own part alone."""

from __future__ import annotations

import json
from typing import Any

Document = dict[str, Any]
OWN = "dumap"
"""The group's attribute that is dumap's."""
CONSOLIDATED = "consolidated_metadata"


def parse(data: bytes | None) -> Document:
    """Read a node's metadata; empty if it is not valid."""
    try:
        found = json.loads(data or b"")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def attributes_of(document: Document) -> Document:
    """Return a node's attributes; empty if they are not valid."""
    found = document.get("attributes")
    return found if isinstance(found, dict) else {}


def holds(found: Document, own: Document) -> bool:
    """Return whether metadata holds all of dumap's own, whatever else it holds."""
    there, attributes = attributes_of(found), attributes_of(own)
    pairs = [(found, {name: value for name, value in own.items() if name != "attributes"}), (there, attributes)]
    if isinstance(attributes.get(OWN), dict) and isinstance(there.get(OWN), dict):
        pairs[1] = there, {name: value for name, value in attributes.items() if name != OWN}
        pairs.append((there[OWN], attributes[OWN]))
    return all(name in some and some[name] == value for some, wanted in pairs for name, value in wanted.items())


def renewed(found: Document, own: Document) -> bytes:
    """Write a node's metadata again, keeping what others have added to a node of the same kind."""
    added = found if all(found.get(key) == own[key] for key in ("zarr_format", "node_type")) else {}
    whole = {**added, **own, "attributes": {**attributes_of(found), **attributes_of(own)}}
    return written(whole)


def written(document: Document) -> bytes:
    """Write a node's metadata."""
    return json.dumps(document, indent=1, sort_keys=True).encode()


def group_of(attributes: Document) -> Document:
    """Return the metadata of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def closed_of(folder: str) -> Document:
    """Return the metadata of an array of one value, so that Zarr does not look for nodes in a folder of dumap's."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": []}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "dimension_names": [],
        "attributes": {"comment": f"{folder} holds dumap's own objects, no values: see dumap/store/FORMAT.md"},
    }


def is_node(document: Document) -> bool:
    """Return whether this is the metadata of an array or a group of Zarr v3."""
    return document.get("zarr_format") == 3 and document.get("node_type") in ("array", "group")


def consolidate(nodes: dict[str, Document]) -> Document:
    """Return the consolidated metadata of a group, from the metadata of the nodes below it, by path.

    As `zarr.consolidate_metadata` writes it.
    """
    entries = {}
    for path in sorted(nodes, key=lambda path: (path.count("/"), path)):
        entries[path] = {name: value for name, value in nodes[path].items() if name != CONSOLIDATED}
        if nodes[path]["node_type"] == "group":
            entries[path][CONSOLIDATED] = {"kind": "inline", "must_understand": False, "metadata": {}}
    return {"kind": "inline", "must_understand": False, "metadata": entries}


def consolidates(document: Document, arrays: dict[str, Document]) -> bool:
    """Return whether a group's consolidated metadata, if it has any, are whole and hold those of the arrays."""
    if CONSOLIDATED not in document:  # or under a damaged name
        return document.keys() <= {"zarr_format", "node_type", "attributes"}
    block = document[CONSOLIDATED]
    if not isinstance(block, dict) or block.get("kind") != "inline" or block.get("must_understand") is not False:
        return False
    copies = block.get("metadata")
    return isinstance(copies, dict) and all(
        isinstance(copies.get(name), dict) and holds(copies[name], array) for name, array in arrays.items()
    )
