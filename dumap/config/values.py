"""Values of settings: reads sizes, locations and YAML, and shortens values for messages."""

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
    """Return the bytes of a size such as '2GiB' or '500 MB'; values that are not texts are returned unchanged."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", value.lower())
        if not match:
            raise ValueError("not a size: write a number of bytes, or one with a unit, such as 2GiB")
        value = float(match[1]) * _UNITS[match[2] or ""]
        return int(min(value, 2.0**63))
    return value


def bytes_with_unit(value: int) -> str:
    """Return a number of bytes as a text for `parse_bytes`, in the largest unit in which it is a whole number."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return f"{value}B"


def format_bytes(value: float) -> str:
    """Return a number of bytes as a text for people."""
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


_short_repr = reprlib.Repr()
_short_repr.maxlevel, _short_repr.maxstring, _short_repr.maxother = 3, 200, 200


def shorten(text: str) -> str:
    """Return a text without its middle if it is too long for a message."""
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-60:]}"


def safe_repr(value: Any) -> str:
    """Return a value as a short text without secrets. Aliases in a small YAML file can make a very large value."""
    try:
        return re.sub(r"(?<=://)[^/\s]*@|(?<=\?).*", "***", _short_repr.repr(value))
    except ValueError:  # an integer of more digits than Python writes
        return f"<{type(value).__name__}>"


def check_location(value: str) -> str:
    """Return a location; raise ValueError if it is neither a path nor a URL, or holds a secret."""
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:
        encoded = b"\0"
    if not encoded or len(encoded) > 4096 or any(byte < 32 or byte == 127 for byte in encoded):
        raise ValueError("a path or a URL has 1 to 4096 characters, and no control characters")
    if re.match(r"[\w+.-]+://([^/]*@|[^?]*\?)", value):
        raise ValueError("a URL is written to logs and runs: give user, password or token in the environment instead")
    return value


SECRET_SECTION = "storage"
"""The setting whose values no message shows."""


class FrozenDict(dict):
    """A dict that cannot be changed. JSON, pickle and comparisons treat it as a dict."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        """Raise TypeError."""
        raise TypeError("a configuration cannot be changed; build another")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple:
        return FrozenDict, (dict(self),)


class SecretDict(FrozenDict):
    """A dict that cannot be changed, and whose values its text hides."""

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


def _line_text(mark: Any) -> str:
    """Return the line of a mark of YAML, as the end of a message."""
    return "" if mark is None else f" in line {mark.line + 1}"


def read_yaml(text: str, message_start: str) -> Any:
    """Read YAML; `message_start` begins the message if the text is not YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        if SECRET_SECTION in text or SECRET_SECTION in message_start:  # lines that the error quotes may hold a key
            mark = getattr(error, "problem_mark", None)
            raise ConfigError(
                f"{message_start}: {getattr(error, 'problem', 'it ends too soon')}{_line_text(mark)}"
            ) from None
        raise ConfigError(f"{message_start}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # raised by YAML's constructors
        raise ConfigError(f"{message_start}: {type(error).__name__}: {shorten(str(error))}") from error
