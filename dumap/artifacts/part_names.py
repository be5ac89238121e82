"""The names of stages and of their parts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dumap.planning.steps import MAX_PARTS_TO_SUM, ranges_of
from dumap.store import Run

VECTORS, CELLS, NEIGHBORS, AUDIT = "vectors", "cells", "neighbors", "audit"
GRAPH, COARSEN, START, LAYOUT = "graph", "coarsen", "start", "layout"
EMBEDDING, QUALITY = "embedding", "quality"


def part_name(kind: str, number: int) -> str:
    """Name one of the numbered parts of a kind: `sorted-00003`."""
    return f"{kind}-{number:05d}"


def part_names(kind: str, count: int) -> list[str]:
    """Name the first `count` numbered parts of a kind."""
    return [part_name(kind, number) for number in range(count)]


def kind_of(part: str) -> str:
    """Return the kind of a part: its name up to the first hyphen."""
    return part.split("-")[0]


def number_of(part: str) -> int:
    """Return the number in a part's name."""
    return int(part.rsplit("-", 1)[1])


def range_name(kind: str, first: int, last: int) -> str:
    """Name the part of a kind that holds a range [first, last) of shards, cells or parts."""
    return f"{kind}-{first:05d}-{last:05d}"


def range_of(part: str) -> tuple[int, int]:
    """Return the range [first, last) in a part's name."""
    first, last = part.rsplit("-", 2)[1:]
    return int(first), int(last)


def range_names(kind: str, count: int) -> list[str]:
    """Name the parts of a kind that hold ranges of `count` things: about as many parts as the square root of it."""
    return [range_name(kind, *ends) for ends in split_evenly(count, ranges_of(count))]


def parts_to_sum(kind: str, sums_kind: str, count: int) -> list[str]:
    """Name the parts to add up: the first `count` of a kind or, of many parts, the `sums_kind` of ranges of them."""
    return part_names(kind, count) if count <= MAX_PARTS_TO_SUM else range_names(sums_kind, count)


def sum_fact(run: Run, stage: str, parts: Sequence[str], fact: str) -> Any:
    """Add up a fact over the manifests of parts."""
    return sum(facts[fact] for facts in run.facts_of_parts(stage, parts))


def split_evenly(count: int, ranges: int) -> list[tuple[int, int]]:
    """Divide `count` things into at most `ranges` ranges of about the same length, none of them empty."""
    return list(pairwise(np.unique(np.linspace(0, count, ranges + 1).astype(int)).tolist()))
