"""Shares of the tests, for those that take too long to be run each time: `pytest --share 2/3`."""

from __future__ import annotations

import re
import zlib


def parse(words: str) -> tuple[int, int]:
    """Read 'K/N' as a share and the number of shares."""
    found = re.fullmatch(r"(\d+)/(\d+)", words)
    share, shares = map(int, found.groups()) if found else (0, 0)
    if not 1 <= share <= shares:
        raise ValueError(f"{words}: give K/N with K from 1 to N, as 2/3")
    return share, shares


def share_of(test: str, shares: int) -> int:
    """Return the share of a test by its name: it stays the same when others are added or removed."""
    return zlib.crc32(test.encode()) % shares + 1
