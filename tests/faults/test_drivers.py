"""Drivers that are killed at any point, and whole runs among random kills: the same bytes, and no commit redone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from faults.harness import ROUNDS, Fleet, all_kept, commits, results, until
from helpers import mark_slow_except

from dumap.recipe.damage import verify
from dumap.recipe.observers import SilentObserver
from dumap.recipe.pipeline import run
from dumap.recipe.status import status
from dumap.store import MANIFESTS

HOST = {"layout.checkpoint_every": 4}


def epochs(output: str) -> list[int]:
    """Return the epochs whose checkpoints are committed."""
    return sorted(int(p.stem.split("-")[1]) for p in Path(output, MANIFESTS, "layout").glob("checkpoint-*.json"))


class Counting(SilentObserver):
    """Notes from where the layout goes on."""

    first = None

    def advanced(self, stage, done, total):
        if stage == "layout" and self.first is None:
            self.first = int(np.ceil(done)) - 1


AT = {
    "the run is made": ("manifest", "done", "vectors", ROUNDS),
    "a stage is to be committed": ("manifest", "done", "neighbors", ROUNDS),
    "a repair is cleaned up": ("discard", "audit", "sent-1-00001", {}),
    "a stage is committed": ("committed", "done", "graph", ROUNDS),
    "a pass of labels is committed": ("committed", "coarsen", "checkpoint-00001", {}),
    "a pass of the start is cleaned up": ("discard", "start", "smoothed-00002-*", {}),
    "a round is to be committed": ("manifest", "layout", "checkpoint-00005", ROUNDS),
    "a round is committed": ("committed", "layout", "checkpoint-00005", ROUNDS),
    "a round is cleaned up": ("discard", "layout", "state-00004-*", ROUNDS),
    "all is to be committed": ("manifest", "done", "quality", ROUNDS),
}


@pytest.mark.fault(6)
@pytest.mark.parametrize("at", mark_slow_except(AT, "a round is cleaned up"))
def test_a_killed_driver_loses_no_commit(cluster_with_nannies, prepare, expected, at):
    point, stage, part, settings = AT[at]
    config = prepare({**settings, "cluster.scheduler": cluster_with_nannies.address})
    (name,) = cluster_with_nannies.faults.plan(
        {"role": "driver", "point": point, "stage": stage, "part": part, "action": "kill"}
    )
    driver = cluster_with_nannies.drive(config)
    assert driver.wait() == -9, driver.output
    assert cluster_with_nannies.faults.happened(name) == [driver.pid]
    if stage == "layout":
        assert epochs(config.output)[-1] in (4, 5), "more than one round is lost"
    goes_on(config, cluster_with_nannies.client, expected)


BENEATH = {
    "an object of neighbors": ("object", "neighbors", "lists-00002", {}),
    "a manifest of cells": ("manifest", "cells", "table", {}),
    "an object of a checkpoint": ("object", "layout", "state-00008-*", HOST),
    "a clean-up": ("discard", "layout", "state-00004-*", HOST),
    "an object of the embedding": ("object", "embedding", "rows-*", {}),
}


@pytest.mark.fault(6)
@pytest.mark.slow
@pytest.mark.parametrize("at", BENEATH)
def test_a_killed_driver_takes_its_embedded_cluster_along(cluster_with_nannies, client, prepare, expected, at):
    point, stage, part, settings = BENEATH[at]
    config = prepare({**settings, "cluster.workers": 1, "cluster.memory_limit": 2**31})
    at_once = {"role": "worker", "point": point, "stage": stage, "part": part, "action": "kill driver"}
    (name,) = cluster_with_nannies.faults.plan(at_once)
    driver = cluster_with_nannies.drive(config)
    assert driver.wait() == -9, driver.output
    assert cluster_with_nannies.faults.happened(name)
    until(lambda: not driver.members(), "an end of the embedded cluster")
    if stage == "layout":
        assert epochs(config.output)[-1] in (4, 8), "more than one checkpoint is lost"
    goes_on(config, client, expected)


def goes_on(config, client, expected) -> None:
    """Go on with a run that was stopped, and see that nothing was lost."""
    before, checkpoints = commits(config.output), epochs(config.output)
    assert status(config.output)["state"] == "partial"
    counting = Counting()
    assert run(config, client=client, observer=counting)["state"] == "done"
    if checkpoints and config.layout.mode == "rounds":
        assert counting.first is None or counting.first >= checkpoints[-1], "rounds were done again"
    assert all_kept(before, config.output)
    assert results(config.output) == expected
    assert verify(config.output) == []


# random kills ------------------------------------------------------------------------------------

POINTS = ("task", "object", "manifest", "committed", "discard")


class Loop:
    """Runs among random kills: a seed gives the victims and their moments."""

    def __init__(self, fleet: Fleet, prepare, seed: int) -> None:
        self.fleet, self.prepare, self.random = fleet, prepare, np.random.default_rng(seed)
        self.outputs: list[str] = []
        self.kept: dict[str, bytes] = {}
        self.driver = None
        self.killed: list[str] = []

    def begin(self) -> None:
        """Begin another run."""
        self.config = self.prepare(ROUNDS)
        self.outputs.append(self.config.output)
        self.kept = {}

    def drive(self) -> None:
        """Start a driver where none runs."""
        if self.driver is None:
            cluster = self.config.cluster.model_copy(update={"scheduler": self.fleet.address, "timeout": 30.0})
            self.driver = self.fleet.drive(self.config.model_copy(update={"cluster": cluster}))

    def kill(self) -> None:
        """Kill somebody as something is reached, unless the run is done before; start again who died."""
        victim = self.random.choice(["driver", "worker", "scheduler"], p=[0.45, 0.4, 0.15])
        role = "driver" if victim == "driver" else "worker"
        points = ("manifest", "committed", "discard") if role == "driver" else POINTS
        fault = {"role": role, "point": str(self.random.choice(points)), "skip": int(self.random.integers(0, 12))}
        if victim == "scheduler":
            fault["pid"] = self.fleet.scheduler.pid
        (name,) = self.fleet.faults.plan({**fault, "action": "kill"})
        self.drive()
        until(lambda: self.fleet.faults.happened(name) or self.driver.code is not None, f"{fault}")
        if self.fleet.faults.happened(name):
            self.killed.append(victim)
            if victim != "worker":
                code = self.driver.wait()
                assert code == {"driver": -9, "scheduler": 5}[victim], self.driver.output
                self.driver = None
            if victim == "scheduler":
                self.restart()
        else:
            self.done()
        assert all_kept(self.kept, self.config.output)
        self.kept = commits(self.config.output)

    def restart(self) -> None:
        """Start another cluster."""
        for process in [self.fleet.scheduler, *self.fleet.workers]:
            process.end()
        self.fleet.workers.clear()
        self.fleet.start_scheduler()
        self.fleet.start_workers(2)

    def done(self) -> None:
        """See a run to its end, and begin the next."""
        self.drive()
        assert self.driver.wait() == 0, self.driver.output
        assert all_kept(self.kept, self.config.output)
        self.driver = None
        self.begin()


@pytest.mark.fault(1, 2, 6, 7)
@pytest.mark.slow
def test_random_kills_change_no_byte(new_path, prepare, expected, request):
    kills = request.config.getoption("--kills")
    with Fleet(new_path) as fleet:
        fleet.start_scheduler()
        fleet.start_workers(2)
        loop = Loop(fleet, prepare, seed=kills)
        loop.begin()
        while len(loop.killed) < kills:
            loop.kill()
        fleet.faults.plan()
        loop.done()
    for output in loop.outputs[:-1]:
        assert results(output) == expected
        assert verify(output) == []
    assert len(loop.killed) == kills
    assert {"driver", "worker", "scheduler"} <= set(loop.killed) or kills < 20
