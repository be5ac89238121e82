"""JSON in which a number that is not finite is null, and the format of facts for people."""

from __future__ import annotations

import json
import math
from typing import Any


def replace_nonfinite(value: Any) -> Any:
    """Return a document with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any, **options: Any) -> str:
    """Format a document as JSON that any reader accepts, with null for each number that is not finite."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(replace_nonfinite(value), allow_nan=False, **options)


def format_fact(value: Any, number_format: str) -> str:
    """Format a fact for people. `number_format` is the format of a number."""
    if value is None:
        return "not defined"
    return format(value, number_format) if isinstance(value, float) else str(value)
