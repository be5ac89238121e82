"""Writes the defaults as YAML that can be loaded, with a description above each setting."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from dumap.config.keys import fields_by_key, section_of, unknown_key_message
from dumap.config.values import bytes_with_unit, parse_bytes, shorten
from dumap.errors import ConfigError

COMMENT_WIDTH = 96
"""The most characters in a line of comment."""
EXAMPLE_CONFIGS = ("cluster", "one_machine", "quickstart", "scheduled")
"""The configurations that come with dumap; the other files in `configs/` are for job schedulers."""
BINARY_SUFFIXES = {".png", ".pyc"}
"""Suffixes of files in `configs/` that are not text."""
BOUND_TEXTS = {
    "ge": "{:g} or more",
    "gt": "above {:g}",
    "le": "at most {:g}",
    "lt": "below {:g}",
    "multiple_of": "multiples of {:g}",
}
"""The text for each kind of bound."""
MAX_SHOWN_BOUND = 2**63
"""Bounds from this on are not mentioned."""


def annotated_defaults(key: str | None = None) -> str:
    """Return all defaults, or those of one key, as YAML with comments.

    Parameters
    ----------
    key : str, optional
        The key of a setting or a section, such as 'layout.min_dist' or 'layout'.

    Raises
    ------
    ConfigError
        There is no such key; the message suggests similar keys.
    """
    fields = fields_by_key()
    if key is not None and key not in fields:
        raise ConfigError(unknown_key_message(key))
    text = ""
    for name, field in fields.items():
        indent = "  " * name.count(".")
        is_parent = key is not None and key.startswith(f"{name}.")
        if key is not None and not is_parent and not f"{name}.".startswith(f"{key}."):
            continue
        if text and not text.endswith(":\n"):  # no empty line before the first key of a section
            text += "\n"
        text += "" if is_parent else comment_lines(field, indent)
        text += indent + yaml_line(name.rpartition(".")[2], field)
    return text


def read_example(name: str) -> str:
    """Return the text of a file in `configs/`, which is named with or without its suffix.

    Raises
    ------
    ConfigError
        There is no such file; the message lists the files.
    """
    folders = [
        Path(__file__).parents[1] / "configs",
        Path(__file__).parents[2] / "configs",
    ]  # of a wheel, of the source
    files = [
        file
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file() and file.suffix not in BINARY_SUFFIXES
    ]
    files_by_name = {file.name: file for file in files} | {file.stem: file for file in files}
    if name not in files_by_name:
        job_files = sorted({file.name for file in files if file.stem not in EXAMPLE_CONFIGS})
        raise ConfigError(
            f"{shorten(name)}: no such example; there are {', '.join(EXAMPLE_CONFIGS)}, and for jobs "
            f"{', '.join(job_files)}"
        )
    return files_by_name[name].read_text()


def comment_lines(field: FieldInfo, indent: str) -> str:
    """Return the description of a field as lines of comment."""
    effect, _, remarks = (field.description or "").partition("\n")
    paragraphs = filter(None, [effect, " ".join(filter(None, [allowed_values(field), remarks]))])
    wrapped = [line for text in paragraphs for line in textwrap.wrap(text, COMMENT_WIDTH, break_on_hyphens=False)]
    return "".join(f"{indent}# {line}\n" for line in wrapped)


def allowed_values(field: FieldInfo) -> str:
    """Return the text about the values that a setting takes; empty if its type says enough."""
    for annotation in (field.annotation, *get_args(field.annotation)):
        if get_origin(annotation) is Literal:
            return f"Allowed: {' | '.join(map(str, get_args(annotation)))}."
    bounds = {
        name: getattr(constraint, name)
        for constraint in field.metadata
        for name in BOUND_TEXTS
        if hasattr(constraint, name)
    }
    bound_texts = [BOUND_TEXTS[name].format(value) for name, value in bounds.items() if value < MAX_SHOWN_BOUND]
    return f"Allowed: {', '.join(bound_texts)}." if bound_texts and not is_byte_size(field) else ""


def is_byte_size(field: FieldInfo) -> bool:
    """Return whether a setting is a size in bytes."""
    metadata = [*field.metadata, *(inner for kind in get_args(field.annotation) for inner in get_args(kind))]
    return any(getattr(item, "func", None) is parse_bytes for item in metadata)


def yaml_line(name: str, field: FieldInfo) -> str:
    """Return the line of YAML for a key and its default, or an example if it has no default."""
    if section_of(field) is not None:
        return f"{name}:\n"
    value: Any = field.examples[0] if field.is_required() and field.examples else field.default
    if is_byte_size(field) and value is not None:
        value = bytes_with_unit(value)
    if isinstance(value, Mapping):
        value = dict(value)
    return f"{name}: {yaml.safe_dump([value], default_flow_style=True, width=10**6).strip()[1:-1]}\n"
