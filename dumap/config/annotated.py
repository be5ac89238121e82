"""Writes the defaults as YAML, each setting below what it does; what is written loads back to the defaults."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from dumap.config.keys import fields_by_key, section_of, unknown
from dumap.config.values import exact_bytes, parse_bytes, shorten
from dumap.errors import ConfigError

WIDTH = 96
"""Columns of a line of comment."""
EXAMPLES = ("cluster", "one_machine", "quickstart", "scheduled")
"""Configurations that come with dumap; what else does is for those who schedule runs."""
NO_TEXT = {".png", ".pyc"}
BOUNDS = {
    "ge": "{:g} or more",
    "gt": "above {:g}",
    "le": "at most {:g}",
    "lt": "below {:g}",
    "multiple_of": "multiples of {:g}",
}
"""How a bound of a value is told."""
LARGE = 2**63
"""A bound that nobody meets."""


def annotated(key: str | None = None) -> str:
    """Write all defaults, or those of one key, as YAML with comments.

    Parameters
    ----------
    key : str, optional
        Of a setting or a section, such as 'layout.min_dist' or 'layout'.

    Raises
    ------
    ConfigError
        There is no such key; the message names the nearest.
    """
    fields = fields_by_key()
    if key is not None and key not in fields:
        raise ConfigError(unknown(key))
    text = ""
    for name, field in fields.items():
        indent = "  " * name.count(".")
        is_above = key is not None and key.startswith(f"{name}.")
        if key is not None and not is_above and not f"{name}.".startswith(f"{key}."):
            continue
        if text and not text.endswith(":\n"):  # but for the first key of a section
            text += "\n"
        text += "" if is_above else comment(field, indent)
        text += indent + entry(name.rpartition(".")[2], field)
    return text


def read_example(name: str) -> str:
    """Return the text of a file that comes with dumap, by its name, the ending left out or not: see `configs/`.

    Raises
    ------
    ConfigError
        There is none of that name; the message names those that there are.
    """
    folders = [Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs"]  # installed, or the source
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and file.suffix not in NO_TEXT]
    found = {file.name: file for file in files} | {file.stem: file for file in files}
    if name not in found:
        jobs = sorted({file.name for file in files if file.stem not in EXAMPLES})
        raise ConfigError(
            f"{shorten(name)}: no such example; there are {', '.join(EXAMPLES)}, and for jobs {', '.join(jobs)}"
        )
    return found[name].read_text()


def comment(field: FieldInfo, indent: str) -> str:
    """Write what a field does as lines of comment."""
    does, _, facts = (field.description or "").partition("\n")
    paragraphs = filter(None, [does, " ".join(filter(None, [allowed(field), facts]))])
    wrapped = [line for text in paragraphs for line in textwrap.wrap(text, WIDTH, break_on_hyphens=False)]
    return "".join(f"{indent}# {line}\n" for line in wrapped)


def allowed(field: FieldInfo) -> str:
    """Tell what values a setting takes, where its type alone does not."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if get_origin(kind) is Literal:
            return f"Allowed: {' | '.join(map(str, get_args(kind)))}."
    limits = {name: getattr(limit, name) for limit in field.metadata for name in BOUNDS if hasattr(limit, name)}
    words = [BOUNDS[name].format(value) for name, value in limits.items() if value < LARGE]
    return f"Allowed: {', '.join(words)}." if words and not has_unit(field) else ""


def has_unit(field: FieldInfo) -> bool:
    """Return whether a setting is a size in bytes."""
    metadata = [*field.metadata, *(more for kind in get_args(field.annotation) for more in get_args(kind))]
    return any(getattr(one, "func", None) is parse_bytes for one in metadata)


def entry(name: str, field: FieldInfo) -> str:
    """Write a key and its default; of what has none, an example."""
    if section_of(field) is not None:
        return f"{name}:\n"
    value: Any = field.examples[0] if field.is_required() and field.examples else field.default
    if has_unit(field) and value is not None:
        value = exact_bytes(value)
    if isinstance(value, Mapping):
        value = dict(value)
    return f"{name}: {yaml.safe_dump([value], default_flow_style=True, width=10**6).strip()[1:-1]}\n"
