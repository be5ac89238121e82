"""The keys of the configuration by their dotted names, and those that an unknown one may have meant."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dumap.config.model import Config
from dumap.config.values import shorten

MOST_NAMES = 3
"""Keys that a message suggests."""
RENAMED = {"max_copies": "cells.max_cells_per_row"}
"""Settings that had other names, by the last word of the old key."""


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is a section, None of a setting."""
    kind: Any = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def fields_by_key(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Return all sections and settings by their dotted keys, in order."""
    found = {}
    for name, field in model.model_fields.items():
        found[f"{prefix}{name}"] = field
        if (section := section_of(field)) is not None:
            found |= fields_by_key(section, f"{prefix}{name}.")
    return found


def umap_learn_name(field: FieldInfo) -> str | None:
    """Return what umap-learn calls a setting, if it has it."""
    extra = field.json_schema_extra
    name = extra.get("umap_learn") if isinstance(extra, dict) else None
    return name if isinstance(name, str) else None


def nearest(key: str) -> list[str]:
    """Return the keys that an unknown one may have meant: those that end alike, by umap-learn's names too, else alike.

    Parameters
    ----------
    key : str
        Dotted; with or without a section, '-' is '_'.
    """
    fields, key = fields_by_key(), key.replace("-", "_").lower()
    section, _, last = key.rpartition(".")
    if last in RENAMED:
        return [RENAMED[last]]
    ends = [(name.rpartition(".")[2], name) for name in fields]
    alike = [name for end, name in ends if last in (end, umap_learn_name(fields[name]))]
    if alike:
        return alike[:MOST_NAMES]
    inside = {end: name for end, name in ends if section and name.rpartition(".")[0] == section}
    for among, cutoff in ((inside, 0.6), (dict(ends), 0.75)):
        if found := difflib.get_close_matches(last, among, MOST_NAMES, cutoff):
            return [among[end] for end in found]
    return []


def unknown(key: str) -> str:
    """Write the message about a key that there is not: what is allowed there, and what may have been meant."""
    fields, section = fields_by_key(), key.rpartition(".")[0]
    while section and (section not in fields or section_of(fields[section]) is None):
        section = section.rpartition(".")[0]
    below = f"{section}." if section else ""
    allowed = [name[len(below) :] for name in fields if name.startswith(below) and "." not in name[len(below) :]]
    names = nearest(key)
    meant = f"; did you mean {' or '.join(names)}?" if names else ""
    return f"{shorten(key)}: unknown key; allowed keys: {', '.join(allowed)}{meant}"
