"""The dotted keys of the configuration, and suggestions for an unknown key."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dumap.config.model import Config
from dumap.config.values import shorten

MAX_SUGGESTIONS = 3
"""The most keys that a message suggests."""
RENAMED_SETTINGS = {"max_copies": "cells.max_cells_per_row"}
"""Keys of renamed settings, by the last word of the old key."""


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is a section; None if the field is a setting."""
    annotation: Any = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


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


def similar_keys(key: str) -> list[str]:
    """Return the keys that an unknown key may stand for.

    These are the keys with the same last word, or the same name in umap-learn, else the keys with a similar last word.

    Parameters
    ----------
    key : str
        A dotted key, with or without a section; '-' counts as '_'.
    """
    fields, key = fields_by_key(), key.replace("-", "_").lower()
    section, _, last_word = key.rpartition(".")
    if last_word in RENAMED_SETTINGS:
        return [RENAMED_SETTINGS[last_word]]
    names_and_keys = [(name.rpartition(".")[2], name) for name in fields]
    same_name = [name for end, name in names_and_keys if last_word in (end, umap_learn_name(fields[name]))]
    if same_name:
        return same_name[:MAX_SUGGESTIONS]
    keys_in_section = {end: name for end, name in names_and_keys if section and name.rpartition(".")[0] == section}
    for candidates, cutoff in ((keys_in_section, 0.6), (dict(names_and_keys), 0.75)):
        if matches := difflib.get_close_matches(last_word, candidates, MAX_SUGGESTIONS, cutoff):
            return [candidates[end] for end in matches]
    return []


def unknown_key_message(key: str) -> str:
    """Return the message about an unknown key: the allowed keys, and suggestions."""
    fields, section = fields_by_key(), key.rpartition(".")[0]
    while section and (section not in fields or section_of(fields[section]) is None):
        section = section.rpartition(".")[0]
    prefix = f"{section}." if section else ""
    allowed = [name[len(prefix) :] for name in fields if name.startswith(prefix) and "." not in name[len(prefix) :]]
    suggested_keys = similar_keys(key)
    suggestion = f"; did you mean {' or '.join(suggested_keys)}?" if suggested_keys else ""
    return f"{shorten(key)}: unknown key; allowed keys: {', '.join(allowed)}{suggestion}"
