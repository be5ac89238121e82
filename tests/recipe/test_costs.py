"""What a whole run asks of the disk: writes and flushes by stage."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from dumap.recipe.stage_names import EMBEDDING, STAGES
from dumap.store import Run
from dumap.store.run_keys import INSIDE, LOCKS

SETTINGS = {"cells.max_rows": 300, "layout.n_epochs": 30, "audit.queries": 50}
ROUNDS = {"layout.mode": "rounds", "graph.shard_rows": 4096}
ENDS = 2
"""Manifests that are written as a stage ends: its facts, and those of parts that are dropped."""


@pytest.fixture
def costs(monkeypatch) -> Counter[tuple[str, str]]:
    """Count parts, names given to files, and flushes, by the stage whose part was begun last.

    Renewals of the lock, and files of numba's cache, are not counted: their number depends on the machine.
    """
    counts: Counter[tuple[str, str]] = Counter()
    under_way = ["none"]

    def counted(name: str, what: str) -> None:
        real = getattr(os, name)

        def call(*arguments):
            path = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else os.fspath(arguments[1])
            if f"/{INSIDE}/" in path and f"/{LOCKS}/" not in path:
                counts[under_way[0], what] += 1
            return real(*arguments)

        monkeypatch.setattr(os, name, call)

    for name, what in (("replace", "writes"), ("link", "writes"), ("fsync", "flushes")):
        counted(name, what)
    real_part = Run.part

    def part(self, stage, name, durable=True):
        under_way[0] = stage
        counts[stage, "parts"] += 1
        return real_part(self, stage, name, durable)

    monkeypatch.setattr(Run, "part", part)
    return counts


@pytest.mark.parametrize("settings", [{}, ROUNDS], ids=["host", "rounds"])
def test_a_part_of_any_stage_takes_three_writes_and_four_flushes_at_the_most(costs, embed, digits, settings):
    embed(digits[0][:600], {**SETTINGS, **settings})
    for stage in set(STAGES) - {EMBEDDING}:  # which writes what others read
        parts = costs[stage, "parts"]
        assert parts > 0
        assert costs[stage, "writes"] <= 3 * parts + ENDS, stage
        assert costs[stage, "flushes"] <= 4 * (parts + ENDS), stage
    if settings:
        assert costs["layout", "parts"] > 2 * SETTINGS["layout.n_epochs"], "a piece and its checkpoint an epoch"
        assert costs["layout", "flushes"] <= costs["layout", "parts"] / 2, "between checkpoints nothing is flushed"
