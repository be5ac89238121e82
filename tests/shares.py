"""Shares of the tests, as in `pytest --share 2/3`, since all of them take too long to be run each time."""

from __future__ import annotations

import re
import zlib


def parse_share(text: str) -> tuple[int, int]:
    """Read 'K/N' as a share and the number of shares."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    share, shares = map(int, match.groups()) if match else (0, 0)
    if not 1 <= share <= shares:
        raise ValueError(f"{text}: give K/N with K from 1 to N, as 2/3")
    return share, shares


def share_of(test: str, shares: int) -> int:
    """Return the share of a test by its name: it stays the same when others are added or removed."""
    return zlib.crc32(test.encode()) % shares + 1
