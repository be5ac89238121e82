"""Metadata of Zarr nodes that others may add to: dumap's own part of it is compared and renewed, theirs is kept."""

from __future__ import annotations

import json
from typing import Any

Document = dict[str, Any]


def parse(data: bytes | None) -> Document:
    """Read a node's metadata; empty where that is none."""
    try:
        found = json.loads(data or b"")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def attributes_of(document: Document) -> Document:
    """Return a node's attributes, none where they are no attributes."""
    found = document.get("attributes")
    return found if isinstance(found, dict) else {}


def holds(found: Document, own: Document) -> bool:
    """Tell whether metadata says all that it must, whatever else it says."""
    attributes = attributes_of(found)
    return all(name in attributes and attributes[name] == value for name, value in attributes_of(own).items()) and all(
        name in found and found[name] == value for name, value in own.items() if name != "attributes"
    )


def renewed(found: Document, own: Document) -> bytes:
    """Write a node's metadata anew; what others added to a node of the same kind is kept."""
    added = found if all(found.get(key) == own[key] for key in ("zarr_format", "node_type")) else {}
    whole = {**added, **own, "attributes": {**attributes_of(found), **attributes_of(own)}}
    return json.dumps(whole, indent=1, sort_keys=True).encode()
