"""Metadata of Zarr nodes. Other programs may add to it, so dumap compares and renews only its own entries."""

from __future__ import annotations

import json
from typing import Any

Document = dict[str, Any]
OWN = "dumap"
"""The attribute of the group that holds dumap's attributes."""
CONSOLIDATED = "consolidated_metadata"


def parse(data: bytes | None) -> Document:
    """Read a node's metadata; empty if they are not valid."""
    try:
        document = json.loads(data or b"")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def attributes_of(document: Document) -> Document:
    """Return a node's attributes; empty if they are not valid."""
    attributes = document.get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def holds(stored: Document, required: Document) -> bool:
    """Return whether stored metadata hold all of dumap's own entries; they may hold more."""
    stored_attributes, attributes = attributes_of(stored), attributes_of(required)
    entries = {name: value for name, value in required.items() if name != "attributes"}
    pairs = [(stored, entries), (stored_attributes, attributes)]
    if isinstance(attributes.get(OWN), dict) and isinstance(stored_attributes.get(OWN), dict):
        pairs[1] = stored_attributes, {name: value for name, value in attributes.items() if name != OWN}
        pairs.append((stored_attributes[OWN], attributes[OWN]))
    return all(
        name in mapping and mapping[name] == value for mapping, required in pairs for name, value in required.items()
    )


def renewed(stored: Document, required: Document) -> bytes:
    """Return a node's metadata with dumap's own entries; other entries of a node of the same kind are kept."""
    other_entries = stored if all(stored.get(key) == required[key] for key in ("zarr_format", "node_type")) else {}
    merged = {**other_entries, **required, "attributes": {**attributes_of(stored), **attributes_of(required)}}
    return written(merged)


def written(document: Document) -> bytes:
    """Return the bytes of a node's metadata."""
    return json.dumps(document, indent=1, sort_keys=True).encode()


def group_of(attributes: Document) -> Document:
    """Return the metadata of a group with attributes."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def placeholder_array(folder: str) -> Document:
    """Return the metadata of an array of one value for one of dumap's folders, so that Zarr finds no nodes below it."""
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
    """Return whether metadata are those of an array or a group of Zarr v3."""
    return document.get("zarr_format") == 3 and document.get("node_type") in ("array", "group")


def consolidate(nodes: dict[str, Document]) -> Document:
    """Return the consolidated metadata of a group, given the metadata of the nodes below it by path.

    The result has the form that `zarr.consolidate_metadata` writes.
    """
    entries = {}
    for path in sorted(nodes, key=lambda path: (path.count("/"), path)):
        entries[path] = {name: value for name, value in nodes[path].items() if name != CONSOLIDATED}
        if nodes[path]["node_type"] == "group":
            entries[path][CONSOLIDATED] = {"kind": "inline", "must_understand": False, "metadata": {}}
    return {"kind": "inline", "must_understand": False, "metadata": entries}


def consolidates(document: Document, arrays: dict[str, Document]) -> bool:
    """Return whether a group's consolidated metadata, if it has any, are whole and hold the arrays' metadata."""
    if CONSOLIDATED not in document:  # any other key may be a damaged name of the block
        return document.keys() <= {"zarr_format", "node_type", "attributes"}
    consolidated = document[CONSOLIDATED]
    if (
        not isinstance(consolidated, dict)
        or consolidated.get("kind") != "inline"
        or consolidated.get("must_understand") is not False
    ):
        return False
    copies = consolidated.get("metadata")
    return isinstance(copies, dict) and all(
        isinstance(copies.get(name), dict) and holds(copies[name], array) for name, array in arrays.items()
    )
