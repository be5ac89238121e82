"""Values of settings: sizes, locations and YAML as they are read, and values of any size as messages show them."""

from __future__ import annotations

import os
import re
import reprlib
from typing import Any

import yaml

from dumap.errors import ConfigError

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def parse_bytes(value: Any) -> Any:
    """Read '2GiB', '500 MB' or a number of bytes."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", value.lower())
        if not match:
            raise ValueError("not a size: write a number of bytes, or one with a unit, such as 2GiB")
        value = float(match[1]) * _UNITS[match[2] or ""]
        return int(min(value, 2.0**63))
    return value


def exact_bytes(value: int) -> str:
    """Write a number of bytes as `parse_bytes` reads it, in the greatest unit in which it is a whole number."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return f"{value}B"


def format_bytes(value: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


_shown = reprlib.Repr()
_shown.maxlevel, _shown.maxstring, _shown.maxother = 3, 200, 200


def shorten(text: str) -> str:
    """Leave out the middle of a text too long for a message."""
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-60:]}"


def show(value: Any) -> str:
    """Write a value of whatever size: aliases of YAML make large ones of few bytes."""
    try:
        return re.sub(r"(?<=://)[^/\s]*@|(?<=\?).*", "***", _shown.repr(value))
    except ValueError:  # an integer of more digits than Python writes
        return f"<{type(value).__name__}>"


def location(value: str) -> str:
    """Refuse what is neither a path nor a URL, or holds a secret."""
    try:
        name = os.fsencode(value)
    except UnicodeEncodeError:
        name = b"\0"
    if not name or len(name) > 4096 or any(byte < 32 or byte == 127 for byte in name):
        raise ValueError("a path or a URL has 1 to 4096 characters, and no control characters")
    if re.match(r"[\w+.-]+://([^/]*@|[^?]*\?)", value):
        raise ValueError("a URL is written to logs and runs: give user, password or token in the environment instead")
    return value


SECRET = "storage"
"""The setting whose values no message shows."""


class FrozenDict(dict):
    """A mapping that cannot be changed; to JSON, pickle and comparisons it is a dict like others."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a configuration cannot be changed; build another")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple:
        return FrozenDict, (dict(self),)


class SecretDict(FrozenDict):
    """A mapping whose values are not shown."""

    def __repr__(self) -> str:
        return repr(dict.fromkeys(self, "***"))

    __str__ = __repr__

    def __reduce__(self) -> tuple:
        return SecretDict, (dict(self),)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _line(mark: Any) -> str:
    return "" if mark is None else f" in line {mark.line + 1}"


def read_yaml(text: str, where: str) -> Any:
    """Read YAML; `where` begins the message of what is none."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        if SECRET in text or SECRET in where:  # lines that the error quotes may hold a key
            mark = getattr(error, "problem_mark", None)
            raise ConfigError(f"{where}: {getattr(error, 'problem', 'it ends too soon')}{_line(mark)}") from None
        raise ConfigError(f"{where}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # its constructors' own
        raise ConfigError(f"{where}: {type(error).__name__}: {shorten(str(error))}") from error
