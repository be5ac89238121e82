"""Reads a configuration from YAML, `--set` and options, and reports what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dumap.config.keys import unknown_key_message
from dumap.config.model import Config
from dumap.config.setting import Section
from dumap.config.values import SECRET_SECTION, read_yaml, safe_repr, shorten
from dumap.errors import ConfigError

SECTIONS = {
    name
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
"""The sections; an empty section is null in YAML."""
MAX_ERRORS = 20
"""The most errors that one message lists."""


def build_config(values: Mapping[str, Any]) -> Config:
    """Return the configuration of a mapping; the error lists each wrong key, its value and what is allowed."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = []
        for detail in error.errors():
            key = shorten(".".join(str(part) for part in detail["loc"]))
            if detail["type"] == "extra_forbidden":
                lines.append(unknown_key_message(key))
            elif detail["type"] == "missing":
                lines.append(f"{key}: required, and not given")
            elif key.split(".")[0] == SECRET_SECTION:
                lines.append(f"{key}: {detail['msg']}")
            else:
                lines.append(f"{key} = {safe_repr(detail['input'])}: {detail['msg']}" if key else detail["msg"])
        if len(lines) > MAX_ERRORS:
            lines[MAX_ERRORS:] = [f"and {len(lines) - MAX_ERRORS} faults more"]
        raise ConfigError("the configuration is not valid:\n  " + "\n  ".join(lines)) from None


def set_by_key(nested: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key in nested mappings."""
    *sections, last = key.split(".")
    for section in sections:
        nested = nested.setdefault(section, {})
        if not isinstance(nested, dict):
            raise ConfigError(f"{shorten(key)}: {shorten(section)!r} is a value, not a section")
    nested[last] = value


def _apply_settings(nested: dict[str, Any], settings: Sequence[str]) -> None:
    """Set the values of texts 'section.key=value' in nested mappings."""
    for setting in settings:
        key, separator, text = setting.partition("=")
        setting = SECRET_SECTION if key.strip().startswith(SECRET_SECTION) else setting
        if not separator:
            raise ConfigError(f"--set {shorten(setting)}: write it as section.key=value")
        set_by_key(nested, key.strip(), read_yaml(text, f"--set {shorten(setting)}: the value is not YAML"))


_ABSENT = object()


def _get_by_key(values: Any, key: str) -> Any:
    """Return the value of a dotted key in a model or in nested mappings; `_ABSENT` if there is none."""
    for name in key.split("."):
        values = values.get(name, _ABSENT) if isinstance(values, Mapping) else getattr(values, name, _ABSENT)
    return values


def contradictions(path: str | None, settings: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Describe the keys to which settings and options give different values, one line each; see `load_config`."""
    set_values: dict[str, Any] = {}
    _apply_settings(set_values, settings)
    common_keys = [key for key in options if _get_by_key(set_values, key) is not _ABSENT]
    if not common_keys:
        return []
    option_config = load_config(path, settings, options)
    set_config = load_config(path, settings, {key: value for key, value in options.items() if key not in common_keys})
    differing_values = [(key, _get_by_key(set_config, key), _get_by_key(option_config, key)) for key in common_keys]
    return [
        f"{key}: {safe_repr(set_value)} by --set, {safe_repr(option_value)} by its option"
        for key, set_value, option_value in differing_values
        if set_value != option_value
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


def load_config(path: str | None, settings: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> Config:
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
    _apply_settings(values, settings)
    for key, value in (options or {}).items():
        if value is not None:
            set_by_key(values, key, value)
    return build_config(values)
