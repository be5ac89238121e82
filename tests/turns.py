"""Shares of the tests, for those that take too long to be run each time: `pytest --turn 2/3`."""

from __future__ import annotations

import re
import zlib


def parse(words: str) -> tuple[int, int]:
    """Read 'K/N' as a turn and the number of turns."""
    found = re.fullmatch(r"(\d+)/(\d+)", words)
    turn, turns = map(int, found.groups()) if found else (0, 0)
    if not 1 <= turn <= turns:
        raise ValueError(f"{words}: give K/N with K from 1 to N, as 2/3")
    return turn, turns


def turn_of(test: str, turns: int) -> int:
    """Return the turn of a test by its name: it stays the same when others are added or removed."""
    return zlib.crc32(test.encode()) % turns + 1
