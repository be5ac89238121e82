"""Runs that are stopped, damaged or given other parameters: the same bytes, or a refusal that touches nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
import zarr

from dumap import executor
from dumap.pipeline import STAGES, Silent, verify
from dumap.submit import run

pytestmark = pytest.mark.faults

SETTINGS = {"task_memory": 2**19, "layout.n_epochs": 20, "quality.queries": 20}
"""Two blocks, some ten cells."""
LONG = {"layout.n_epochs": 200, "layout.checkpoint_every": 1}
ROUNDS = {"layout.n_epochs": 20, "layout.mode": "rounds"}
WORDS = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
SECONDS = 120


@pytest.fixture(scope="module")
def data(digits, save):
    return save(digits[0][:500], 100)


@pytest.fixture(scope="module")
def clean(embed, data):
    """Return a run that nothing disturbed; not to be changed."""
    return embed(data, SETTINGS)


@pytest.fixture
def own(configure, data, clean):
    """Return the configuration of a finished run that a test may damage: a copy, since no file names its place."""
    config = configure(data, SETTINGS)
    shutil.copytree(clean.output, config.output)
    return config


def results(output: str) -> dict[str, bytes]:
    """Return the bytes of what a run is for: the embedding, the status and the graph."""
    manifests = sorted(Path(output, "manifests", "graph").glob("united-*.json"))
    parts = [json.loads(m.read_text())["document"] for m in manifests]
    found = {p: zarr.open_array(output, path=p, mode="r")[:].tobytes() for p in ("embedding", "status")}
    for number, part in enumerate(parts):
        for name, (path,) in part["arrays"].items():
            found[f"graph {number} {name}"] = zarr.open_array(output, path=path, mode="r")[:].tobytes()
    return found


# finished ----------------------------------------------------------------------------------------


def test_a_finished_run_starts_no_cluster(configure, own, monkeypatch, contents):
    def never(*_):
        raise AssertionError("a cluster was started")

    before = contents(own.output)
    monkeypatch.setattr(executor, "connect", never)
    assert run(own)["state"] == "done"
    assert contents(own.output) == before


def test_results_are_those_of_another_run(embed, data, clean):
    assert results(embed(data, SETTINGS).output) == results(clean.output)


# the driver is killed ----------------------------------------------------------------------------


def kill_at(config, found, fresh) -> None:
    """Run the command line, SIGKILL it as soon as `found()`, and wait until its workers are gone."""
    file = fresh("run.yaml")
    Path(file).write_text(yaml.safe_dump(config.model_dump()))
    command = [sys.executable, "-m", "dumap.cli", "run", file]
    with open(fresh("log"), "w+") as log:
        driver = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)
        deadline = time.monotonic() + SECONDS
        try:
            while not found():
                assert driver.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline, "the point was not reached"
                time.sleep(0.001)
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            while members := [p for p in psutil.process_iter(["pid"]) if _group(p.pid) == driver.pid]:
                assert time.monotonic() < deadline, f"workers outlived their driver: {members}"
                time.sleep(0.05)
        finally:
            if driver.poll() is None or any(_group(p.pid) == driver.pid for p in psutil.process_iter(["pid"])):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid) if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else 0
    except (ProcessLookupError, psutil.NoSuchProcess):
        return 0


POINTS = {
    "vectors": ("vectors", "block-*", {}),
    "cells": ("cells", "assign-*", {}),
    "neighbors": ("neighbors", "cell-*", {}),
    "neighbors merged": ("neighbors", "merged-*", {}),
    "graph": ("graph", "directed-*", {}),
    "layout begins": ("layout", "generation-*", LONG),
    "layout goes on": ("layout", "generation-0005?", LONG),
    "round begins": ("layout", "epoch-00002-*", ROUNDS),
    "round steps": ("layout", "step-00003-*", ROUNDS),
    "round ends": ("layout", "generation-00004", ROUNDS),
    "quality": ("quality", "queries", {}),
}


@pytest.mark.parametrize("point", [p if p == "neighbors" else pytest.param(p, marks=pytest.mark.slow) for p in POINTS])
def test_a_killed_driver_loses_no_commit(configure, embed, client, data, clean, fresh, contents, inspect, point):
    stage, pattern, more = POINTS[point]
    expected = embed(data, {**SETTINGS, **more}) if more is LONG else clean
    cluster = {"cluster.workers": 1, "cluster.memory_limit": 2**31}
    config = configure(data, {**SETTINGS, **more, **cluster})
    manifests = Path(config.output, "manifests")
    kill_at(config, lambda: any((manifests / stage).glob(f"{pattern}.json")), fresh)

    assert not (manifests / "run" / f"{stage}.json").exists(), "killed too late to tell"
    committed = contents(str(manifests))
    assert inspect(config.output).status["state"] == "partial"
    assert run(config, client=client)["state"] == "done"
    after = contents(str(manifests))
    kept = {k for k in committed if not k.startswith("layout/") and not Path(k).name.startswith(".")}
    assert {k: committed[k] for k in kept} == {k: after.get(k) for k in kept}
    assert results(config.output) == results(expected.output)
    assert verify(config.output) == []


@pytest.mark.slow
def test_a_driver_killed_again_and_again(configure, embed, client, data, fresh):
    config = configure(data, {**SETTINGS, **LONG, "cluster.workers": 2, "cluster.memory_limit": 2**31})
    manifests = Path(config.output, "manifests")
    for stage, pattern in (("cells", "sorted-*"), ("graph", "united-*"), ("layout", "generation-0015?")):
        kill_at(config, lambda at=manifests / stage, what=pattern: any(at.glob(f"{what}.json")), fresh)
    assert run(config, client=client)["state"] == "done"
    assert results(config.output) == results(embed(data, {**SETTINGS, **LONG}).output)


# a worker is killed ------------------------------------------------------------------------------


class Killer(Silent):
    """Kills a worker as a stage begins, while its first tasks are on their way."""

    def __init__(self, client, stage: str) -> None:
        self.client, self.stage, self.killed = client, stage, 0

    def started(self, stage, projected_bytes):
        if stage == self.stage:
            self.killed = next(iter(self.client.run(os.getpid, on_error="ignore").values()))
            os.kill(self.killed, signal.SIGKILL)


@pytest.mark.parametrize("stage", [s if s == "neighbors" else pytest.param(s, marks=pytest.mark.slow) for s in STAGES])
def test_a_killed_worker_changes_no_byte(configure, client, data, clean, stage):
    client.wait_for_workers(2, timeout=SECONDS)
    config, killer = configure(data, SETTINGS), Killer(client, stage)
    assert run(config, client=client, observer=killer)["state"] == "done"
    client.wait_for_workers(2, timeout=SECONDS)
    assert killer.killed not in client.run(os.getpid).values()
    assert results(config.output) == results(clean.output)


# other parameters, other input -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("neighbors.n_neighbors=10", "neighbors.n_neighbors: 15 -> 10"),
        ("seed=7", "seed: 42 -> 7"),
        ("layout.n_epochs=21", "layout.n_epochs: 20 -> 21"),
    ],
)
def test_other_parameters_are_refused(cli, clean, data, contents, setting, said):
    before = contents(clean.output)
    outcome = cli("run", "--input", data, "--output", clean.output, *WORDS, "--set", setting)
    assert outcome.code == 7
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert contents(clean.output) == before


def test_what_the_answer_does_not_depend_on_may_change(cli, clean, data, contents):
    before = contents(clean.output)
    more = ["--workers", "7", "--set", "layout.checkpoint_every=3", "--set", "layout.mode=rounds"]
    assert cli("run", "--input", data, "--output", clean.output, *WORDS, *more).code == 0
    assert contents(clean.output) == before


@pytest.mark.parametrize("change", ["a value", "more rows", "another dtype"])
def test_other_input_is_refused(cli, configure, client, digits, save, contents, change):
    x = digits[0][:100].copy()
    config = configure(save(x))
    run(config, client=client)
    path, before = config.input.path, contents(config.output)
    if change == "a value":
        zarr.open_array(path, path="vectors")[3, 3] = 99
    else:
        x = np.vstack([x, x[:1]]) if change == "more rows" else x.astype(np.float64)
        zarr.open_group(path).create_array("vectors", data=x, overwrite=True)
    outcome = cli("run", "--input", path, "--output", config.output, "--set", "layout.n_epochs=20")
    assert outcome.code == 7
    assert path in outcome.err
    assert contents(config.output) == before


def test_other_versions_are_refused_unless_forced(configure, client, own, clean, monkeypatch, contents):
    from dumap.errors import RunMismatchError

    versions = executor.versions()
    before = contents(own.output)
    monkeypatch.setattr(executor, "versions", lambda: {**versions, "numpy": "1.0"})
    with pytest.raises(RunMismatchError, match=r"numpy: .* -> '1.0'"):
        run(own, client=client)
    assert run(own, client=client, force=True)["state"] == "done"
    assert contents(own.output) == before


# damage ------------------------------------------------------------------------------------------


def objects(output: str, stage: str, prefix: str) -> list[str]:
    """Return the keys of the data that a stage's first part of that name wrote."""
    manifest = min(Path(output, "manifests", stage).glob(f"{prefix}*.json"))
    keys = json.loads(manifest.read_text())["document"]["objects"]
    return sorted((k for k in keys if "/c/" in k), key=lambda k: -os.path.getsize(Path(output, k)))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "one bit flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_is_found_and_named(cli, own, kind):
    key = objects(own.output, "neighbors", "merged-")[0]
    DAMAGE[kind](Path(own.output, key))
    outcome = cli("verify", own.output, "--dry-run")
    assert outcome.code == 1
    assert f"damaged: {key}" in outcome.out
    assert json.loads(cli("verify", own.output, "--json").out)["damaged"] == [key]
    assert cli("verify", own.output).code == 0, "what is damaged no longer counts"


PLACES = {
    "vectors": "block-",
    "cells": "sorted-",
    "cells table": "table-",
    "neighbors": "merged-",
    "graph": "united-",
    "start": "coordinates",
    "layout": "epoch-",
    "embedding": "rows-",
    "quality": "report",
}


def forget(output: str, stages: tuple[str, ...]) -> None:
    """Undo the commits of some stages."""
    for stage in stages:
        shutil.rmtree(Path(output, "manifests", stage))
        Path(output, "manifests", "run", f"{stage}.json").unlink()


@pytest.mark.parametrize(
    "place",
    [p if p in ("neighbors", "layout") else pytest.param(p, marks=pytest.mark.slow) for p in PLACES],
)
def test_repaired_damage_gives_the_same_bytes(cli, client, own, clean, place):
    """The stages after it are made again too, so that what is repaired is seen to be as it was."""
    stage = place.split()[0]
    flip(Path(own.output, objects(own.output, stage, PLACES[place])[0]))
    assert cli("verify", own.output).code == 1
    forget(own.output, STAGES[STAGES.index(stage) + 1 :])
    assert run(own, client=client)["state"] == "done"
    assert verify(own.output) == []
    assert results(own.output) == results(clean.output)


@pytest.mark.parametrize(
    "place", [*(pytest.param(p, marks=pytest.mark.slow) for p in ("neighbors", "embedding")), "layout"]
)
def test_repair_alone_makes_a_finished_run_whole(cli, client, own, clean, place):
    key = objects(own.output, place, PLACES[place])[0]
    flip(Path(own.output, key))
    assert cli("verify", own.output).code == 1
    assert run(own, client=client)["state"] == "done"
    assert verify(own.output) == []
    assert results(own.output) == results(clean.output)
    committed = Path(own.output, "manifests", place).glob(f"{PLACES[place]}*.json")
    assert any(committed), f"{key} was removed and not made again"


def test_a_damaged_manifest_is_found_and_made_again(cli, client, own, clean):
    manifest = min(Path(own.output, "manifests", "graph").glob("united-*.json"))
    flip(manifest)
    assert str(manifest.relative_to(own.output)) in cli("verify", own.output).out
    assert run(own, client=client)["state"] == "done"
    assert results(own.output) == results(clean.output)


@pytest.mark.parametrize("name", ["embedding", "status"])
def test_verify_covers_all_that_the_results_need(own, name):
    """Whatever file of a result loses its last byte, the run is no longer called whole."""
    unseen = []
    for path in sorted(p for p in Path(own.output, name).rglob("*") if p.is_file()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        if not verify(own.output):
            unseen.append(str(path.relative_to(own.output)))
        path.write_bytes(whole)
    assert unseen == []


def test_damage_met_on_the_way_is_made_again(cli, client, own, clean):
    """Never fill values: a lost object of a stage that is read again is said, and its part made anew."""
    Path(own.output, lost := objects(own.output, "graph", "united-")[0]).unlink()
    forget(own.output, ("start", "layout", "embedding", "quality"))
    address = ("--scheduler", client.scheduler.address)
    outcome = cli("run", "--input", own.input.path, "--output", own.output, *WORDS, *address)
    assert outcome.code == 0, outcome.err
    assert f"{lost} (graph united-00000) is missing or damaged" in outcome.err
    assert verify(own.output) == []
    assert results(own.output) == results(clean.output)
