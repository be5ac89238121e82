"""The dotted keys of the configuration, and suggestions for an unknown key."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dumap.config.model import Config
from dumap.config.values import shorten

MOST_NAMES = 3
"""The most keys that a message suggests."""
RENAMED = {"max_copies": "cells.max_cells_per_row"}
"""Keys of renamed settings, by the last word of the old key."""


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is a section; None if the field is a setting."""
    kind: Any = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def fields_by_key(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Return all sections and settings by their dotted keys, in order."""
    fields = {}
    for name, field in model.model_fields.items():
        fields[f"{prefix}{name}"] = field
        if (section := section_of(field)) is not None:
            fields |= fields_by_key(section, f"{prefix}{name}.")
    return fields


def umap_learn_name(field: FieldInfo) -> str | None:
    """Return the name of a setting in umap-learn; None if umap-learn has no such setting."""
    extra = field.json_schema_extra
    name = extra.get("umap_learn") if isinstance(extra, dict) else None
    return name if isinstance(name, str) else None


def nearest(key: str) -> list[str]:
    """Return the keys that an unknown key may stand for.

    These are the keys with the same last word, or the same name in umap-learn, else the keys with a similar last word.

    Parameters
    ----------
    key : str
        A dotted key, with or without a section; '-' counts as '_'.
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
    for candidates, cutoff in ((inside, 0.6), (dict(ends), 0.75)):
        if matches := difflib.get_close_matches(last, candidates, MOST_NAMES, cutoff):
            return [candidates[end] for end in matches]
    return []


def unknown(key: str) -> str:
    """Return the message about an unknown key: the allowed keys, and suggestions."""
    fields, section = fields_by_key(), key.rpartition(".")[0]
    while section and (section not in fields or section_of(fields[section]) is None):
        section = section.rpartition(".")[0]
    below = f"{section}." if section else ""
    allowed = [name[len(below) :] for name in fields if name.startswith(below) and "." not in name[len(below) :]]
    names = nearest(key)
    meant = f"; did you mean {' or '.join(names)}?" if names else ""
    return f"{shorten(key)}: unknown key; allowed keys: {', '.join(allowed)}{meant}"
