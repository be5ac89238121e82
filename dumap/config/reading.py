"""Reads a configuration from YAML, `--set` and options, and reports what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dumap.config.keys import unknown
from dumap.config.model import Config
from dumap.config.setting import Section
from dumap.config.values import SECRET, read_yaml, shorten, show
from dumap.errors import ConfigError

SECTIONS = {
    name
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
"""The sections; an empty section is null in YAML."""
MOST_FAULTS = 20
"""The most errors that one message lists."""


def build(values: Mapping[str, Any]) -> Config:
    """Return the configuration of a mapping; the error lists each wrong key, its value and what is allowed."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            key = shorten(".".join(str(part) for part in fault["loc"]))
            if fault["type"] == "extra_forbidden":
                lines.append(unknown(key))
            elif fault["type"] == "missing":
                lines.append(f"{key}: required, and not given")
            elif key.split(".")[0] == SECRET:
                lines.append(f"{key}: {fault['msg']}")
            else:
                lines.append(f"{key} = {show(fault['input'])}: {fault['msg']}" if key else fault["msg"])
        if len(lines) > MOST_FAULTS:
            lines[MOST_FAULTS:] = [f"and {len(lines) - MOST_FAULTS} faults more"]
        raise ConfigError("the configuration is not valid:\n  " + "\n  ".join(lines)) from None


def merge(into: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key in nested mappings."""
    *sections, last = key.split(".")
    for section in sections:
        into = into.setdefault(section, {})
        if not isinstance(into, dict):
            raise ConfigError(f"{shorten(key)}: {shorten(section)!r} is a value, not a section")
    into[last] = value


def _set(into: dict[str, Any], settings: Sequence[str]) -> None:
    """Set the values of texts 'section.key=value' in nested mappings."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        setting = SECRET if key.strip().startswith(SECRET) else setting
        if not equals:
            raise ConfigError(f"--set {shorten(setting)}: write it as section.key=value")
        merge(into, key.strip(), read_yaml(text, f"--set {shorten(setting)}: the value is not YAML"))


_ABSENT = object()


def _find(values: Any, key: str) -> Any:
    """Return the value of a dotted key in a model or in nested mappings; `_ABSENT` if there is none."""
    for name in key.split("."):
        values = values.get(name, _ABSENT) if isinstance(values, Mapping) else getattr(values, name, _ABSENT)
    return values


def contradictions(path: str | None, settings: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Describe the keys to which settings and options give different values, one line each; see `load`."""
    set_values: dict[str, Any] = {}
    _set(set_values, settings)
    both = [key for key in options if _find(set_values, key) is not _ABSENT]
    if not both:
        return []
    by_option = load(path, settings, options)
    by_setting = load(path, settings, {key: value for key, value in options.items() if key not in both})
    values = [(key, _find(by_setting, key), _find(by_option, key)) for key in both]
    return [
        f"{key}: {show(first)} by --set, {show(second)} by its option"
        for key, first, second in values
        if first != second
    ]


def read_file(path: str) -> dict[str, Any]:
    """Read the keys and values of a YAML file; an empty section becomes an empty mapping."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {shorten(path)}: {error.strerror}") from error
    except ValueError as error:  # the file is not text, or the path is not valid
        raise ConfigError(f"{shorten(path)} is not YAML: {error}") from error
    values = read_yaml(text, f"{path} is not YAML") or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values; allowed keys: {', '.join(Config.model_fields)}")
    return {key: {} if value is None and key in SECTIONS else value for key, value in values.items()}


def load(path: str | None, settings: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> Config:
    """Read a configuration from a YAML file, settings and options. Later sources replace values of earlier ones.

    Parameters
    ----------
    path : str or None
    settings : sequence of str
        'section.key=value'; the value is read as YAML.
    options : mapping
        'section.key' to value; None means not given.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> import dumap
    >>> dumap.load_config(None, ["input.path=DATA.zarr", "output=RUN.zarr", "layout.min_dist=0.2"]).layout.min_dist
    0.2
    """
    values: dict[str, Any] = {} if path is None else read_file(path)
    _set(values, settings)
    for key, value in (options or {}).items():
        if value is not None:
            merge(values, key, value)
    return build(values)
