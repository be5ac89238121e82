"""Objects that are lost, truncated or changed, and objects without a manifest: found, named, made again, removed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from faults.harness import SETTING_OPTIONS, results
from helpers import mark_slow_except, uncommit_parts
from zarr.codecs import Crc32cCodec

from dumap.recipe.damage import verify
from dumap.recipe.pipeline import run
from dumap.recipe.stage_names import RUN_KEYS, STAGES
from dumap.recipe.status import status
from dumap.store import IDENTITY, LOCKS, MANIFESTS, PARTS
from dumap.store import lock as lock_module


def keys(output: str) -> list[str]:
    """Return the names of all files of a run."""
    return sorted(str(p.relative_to(output)) for p in Path(output).rglob("*") if p.is_file())


# one object --------------------------------------------------------------------------------------


def objects(output: str, stage: str, prefix: str) -> list[str]:
    """Return the keys of the data that a stage's first part of that name wrote."""
    manifest = min(Path(output, MANIFESTS, stage).glob(f"{prefix}*.json"))
    keys = json.loads(manifest.read_text())["document"]["objects"]
    return sorted((k for k in keys if not k.endswith("zarr.json")), key=lambda k: -os.path.getsize(Path(output, k)))


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "one bit flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.fault(13, 14)
@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_is_found_and_named(cli, damageable, kind):
    key = objects(damageable.output, "neighbors", "lists-")[0]
    DAMAGE[kind](Path(damageable.output, key))
    outcome = cli("verify", damageable.output, "--dry-run")
    assert outcome.code == 1
    assert f"damaged: {key}" in outcome.out
    assert json.loads(cli("verify", damageable.output, "--json").out)["damaged"] == [key]
    assert cli("verify", damageable.output).code == 0, "what is damaged no longer counts"


DAMAGED = {
    "vectors": "block-",
    "cells": "sorted-",
    "cells table": "table",
    "neighbors": "lists-",
    "audit": "lists-1-",
    "graph": "united-",
    "coarsen": "edges",
    "start": "coordinates-",
    "layout": "state-",
    "embedding": "rows-",
    "quality": "report",
}
"""What is damaged, and how the name of the part begins: at least one of each stage."""


def test_a_part_of_each_stage_is_damaged():
    assert list(dict.fromkeys(what.split()[0] for what in DAMAGED)) == list(STAGES)


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    "place",
    mark_slow_except(DAMAGED, "neighbors", "layout"),
)
def test_repaired_damage_gives_the_same_bytes(cli, damageable, expected, place):
    """The stages after it are made again too, so that what is repaired is seen to be as it was."""
    stage = place.split()[0]
    flip(Path(damageable.output, objects(damageable.output, stage, DAMAGED[place])[0]))
    assert cli("verify", damageable.output).code == 1
    uncommit_parts(damageable.output, STAGES[STAGES.index(stage) + 1 :])
    assert run(damageable)["state"] == "done"
    assert verify(damageable.output) == []
    assert results(damageable.output) == expected


@pytest.mark.fault(13)
@pytest.mark.parametrize("place", mark_slow_except(["neighbors", "embedding", "layout"], "layout"))
def test_repair_alone_makes_a_finished_run_whole(cli, damageable, expected, place):
    key = objects(damageable.output, place, DAMAGED[place])[0]
    flip(Path(damageable.output, key))
    assert cli("verify", damageable.output).code == 1
    assert run(damageable)["state"] == "done"
    assert verify(damageable.output) == []
    assert results(damageable.output) == expected
    committed = Path(damageable.output, MANIFESTS, place).glob(f"{DAMAGED[place]}*.json")
    assert any(committed), f"{key} was removed and not made again"


@pytest.mark.fault(13)
def test_a_damaged_manifest_is_found_and_made_again(cli, damageable, expected):
    manifest = min(Path(damageable.output, MANIFESTS, "graph").glob("united-*.json"))
    flip(manifest)
    assert str(manifest.relative_to(damageable.output)) in cli("verify", damageable.output).out
    assert run(damageable)["state"] == "done"
    assert results(damageable.output) == expected


@pytest.mark.parametrize("name", ["embedding", "status"])
def test_verify_covers_all_that_the_results_need(damageable, name):
    """Whatever file of a result loses its last byte, the run is no longer called whole."""
    unseen = []
    for path in sorted(p for p in Path(damageable.output, name).rglob("*") if p.is_file()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        if not verify(damageable.output):
            unseen.append(str(path.relative_to(damageable.output)))
        path.write_bytes(whole)
    assert unseen == []


@pytest.mark.fault(14)
def test_damage_met_on_the_way_is_made_again(cli, damageable, expected):
    """Never fill values: a lost object of a stage that is read again is said, and its part made anew."""
    Path(damageable.output, lost := objects(damageable.output, "graph", "united-")[0]).unlink()
    uncommit_parts(damageable.output, ("start", "layout", "embedding", "quality"))
    outcome = cli("run", "--input", damageable.input.path, "--output", damageable.output, *SETTING_OPTIONS)
    assert outcome.code == 0, outcome.err
    assert f"{lost} (graph united-00000) is missing or damaged" in outcome.err
    assert verify(damageable.output) == []
    assert results(damageable.output) == expected


# all of a run ------------------------------------------------------------------------------------

MARKS = [f"{MANIFESTS}/done/{stage}.json" for stage in STAGES]
"""What says that a stage is done. Without one it is not: the next run says so again."""


def part_of(output: str) -> dict[str, tuple[str, str]]:
    """Return the part to which each object belongs, its manifest too."""
    parts = {}
    for manifest in Path(output, MANIFESTS).glob("*/*.json"):
        part = (manifest.parent.name, manifest.stem)
        parts[str(manifest.relative_to(output))] = part
        parts |= dict.fromkeys(json.loads(manifest.read_text())["document"]["objects"], part)
    return parts


@pytest.mark.fault(13, 14)
@pytest.mark.parametrize("kind", DAMAGE)
def test_every_object_of_a_run_is_watched(damageable, monkeypatch, kind):
    """All objects are harmed, then all manifests: each is named."""
    monkeypatch.setattr(lock_module, "LEASE_SECONDS", 0.5)
    every = set(keys(damageable.output))
    manifests = {k for k in every if k.startswith((MANIFESTS, LOCKS)) or (k.endswith("zarr.json") and "/" not in k)}
    for damaged in (
        every - manifests,
        manifests - {f"{MANIFESTS}/{IDENTITY}/{part}.json" for part in ("run", "input")} - set(MARKS),
    ):
        before = {key: Path(damageable.output, key).read_bytes() for key in damaged}
        for key in damaged:
            DAMAGE[kind](Path(damageable.output, key))
        lost = {k for k in damaged if k.startswith(f"{LOCKS}/0")} if kind == "deleted" else set()
        assert {key for _, _, key in verify(damageable.output)} == damaged - lost
        for key, data in before.items():
            Path(damageable.output, key).parent.mkdir(parents=True, exist_ok=True)
            Path(damageable.output, key).write_bytes(data)
    assert verify(damageable.output) == []


@pytest.mark.fault(13, 14)
@pytest.mark.slow
@pytest.mark.parametrize("nth", range(16))
def test_only_damaged_parts_are_made_again(cli, damageable, expected, monkeypatch, nth):
    """One object in sixteen, others each time, so that every object of a run is harmed once."""
    monkeypatch.setattr(lock_module, "LEASE_SECONDS", 0.5)
    of, kind = part_of(damageable.output), list(DAMAGE)[(nth + nth // 4) % 4]
    harmed = keys(damageable.output)[nth::16]
    if {f"{MANIFESTS}/{IDENTITY}/{part}.json" for part in ("run", "input")} & set(harmed):
        harmed = [key for key in harmed if key != "zarr.json"]  # either tells what the run is of
    headless = {of[key] for key in harmed if key in of and key.startswith(MANIFESTS)}
    unseen = {k for k in harmed if of.get(k) in headless and not k.startswith(MANIFESTS)}  # its part is made anew
    if kind == "deleted":  # where a stage is not done, no part of it is missed
        undone = {stage for stage in STAGES if f"{MANIFESTS}/done/{stage}.json" in harmed}
        unseen_manifests = {f"{MANIFESTS}/{stage}/{part}.json" for stage, part in headless if stage in undone}
        unseen |= unseen_manifests | {k for k in harmed if k in MARKS or k.startswith(f"{LOCKS}/0")}
    parts = {of[key] for key in harmed if key in of}
    dropped = {("done", stage) for stage, _ in parts if stage in STAGES}
    kept, replaced = (
        {},
        (f"{MANIFESTS}/layout/", f"{MANIFESTS}/coarsen/checkpoint-"),
    )  # committed anew with their pieces
    for key in set(of) - set(harmed):
        if of[key] not in parts | dropped and not key.startswith(("embedding/", "status/", *replaced)):
            path = Path(damageable.output, key)
            kept[key] = (path.stat().st_mtime_ns, path.read_bytes())
    for key in harmed:
        DAMAGE[kind](Path(damageable.output, key))
    outcome = cli("verify", damageable.output, "--json")
    assert outcome.code == 1, outcome
    assert set(json.loads(outcome.out)["damaged"]) == set(harmed) - unseen
    assert run(damageable)["state"] == "done"
    assert results(damageable.output) == expected
    assert verify(damageable.output) == []
    after = {k: (Path(damageable.output, k).stat().st_mtime_ns, Path(damageable.output, k).read_bytes()) for k in kept}
    assert after == kept
    assert len(kept) > len(of) / 4


IDENTITY_PARTS = ("run", "results", "input")


@pytest.mark.fault(13, 14)
@pytest.mark.parametrize("kind", mark_slow_except(DAMAGE, "deleted"))
@pytest.mark.parametrize(
    "key",
    [
        *("zarr.json", "embedding/zarr.json", "embedding/c/0/0"),
        *(f"{MANIFESTS}/identity/{n}.json" for n in IDENTITY_PARTS),
    ],
)
def test_a_finished_run_is_made_whole(cli, damageable, expected, new_path, key, kind):
    DAMAGE[kind](Path(damageable.output, key))
    out = new_path("map.npy")
    exported = cli("export", damageable.output, "embedding", out)
    if key in ("embedding/zarr.json", "embedding/c/0/0"):
        assert exported.code == 6
        assert f"{key} " in exported.err or "embedding is damaged" in exported.err, exported.err
        assert "'dumap verify" in exported.err
    else:
        assert exported.code in (0, 6)
    assert not os.path.exists(out) or np.load(out).tobytes() == expected["embedding"]
    outcome = cli("verify", damageable.output)
    assert outcome.code == 1
    assert re.findall(r"damaged: (.*)", outcome.out) == [key]
    assert run(damageable)["state"] == "done"
    assert verify(damageable.output) == []
    assert results(damageable.output) == expected


@pytest.mark.fault(14)
def test_a_lost_mark_of_a_stage_is_work_not_done(damageable, expected, contents):
    before = contents(damageable.output)
    Path(damageable.output, MARKS[2]).unlink()
    assert status(damageable.output)["state"] == "partial"
    assert run(damageable)["state"] == "done"
    after = contents(damageable.output)
    changed = {k for k in after if after[k] != before.get(k) and not k.startswith(LOCKS)}
    assert changed == {MARKS[2]}
    assert results(damageable.output) == expected


@pytest.mark.fault(13)
def test_damage_to_an_input_with_checksums_is_an_error_that_names_its_rows(cli, digits, save, new_path):
    for kind, harm in DAMAGE.items():
        if kind == "deleted":  # is how Zarr writes a chunk of zeros
            continue
        source, output = save(digits[0][:300], 100, compressors=[Crc32cCodec()]), new_path("run.zarr")
        harm(Path(source, "vectors", "c", "1", "0"))
        outcome = cli("run", "--input", source, "--output", output, *SETTING_OPTIONS)
        assert outcome.code == 3, outcome.err
        assert f"{source}: rows " in outcome.err
        assert "cannot be read" in outcome.err
        assert "Traceback" not in outcome.err


# what nobody counts ------------------------------------------------------------------------------


@pytest.fixture
def littered(damageable):
    """Add to a run what tasks and drivers leave behind when they die; return the keys."""
    left = [
        f"{PARTS}/vectors/block-00000-01234567",
        f"{PARTS}/neighbors/cell-00099-89abcdef",
        f"{PARTS}/neighbors/cell-00099-89abcdef.1",
        f"{PARTS}/neighbors/.cell-00099-89abcdef.01234567.partial",
        f"{MANIFESTS}/graph/.united-00000.json.01234567.partial",
        f"{LOCKS}/.00000001.json.01234567.partial",
        f"{LOCKS}/probe-0123456789abcdef",
        "embedding/c/0/.0.01234567.partial",
    ]
    for key in left:
        path = Path(damageable.output, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left over")
    return left


@pytest.mark.fault(24)
def test_leftovers_of_dead_tasks_do_not_count(cli, damageable, littered, expected, contents):
    before = contents(damageable.output)
    assert verify(damageable.output) == []
    assert status(damageable.output)["state"] == "done"
    assert run(damageable)["state"] == "done"
    assert contents(damageable.output) == before
    uncommit_parts(damageable.output, STAGES[1:])
    assert run(damageable)["state"] == "done"
    assert results(damageable.output) == expected
    assert verify(damageable.output) == []


@pytest.mark.fault(24)
def test_clean_removes_exactly_what_is_left_over(cli, damageable, littered, expected, contents):
    before = contents(damageable.output)
    outcome = cli("clean", damageable.output, "--dry-run")
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        *(f"not named: {key}" for key in sorted(littered)),
        "8 objects that no manifest names",
    ]
    assert contents(damageable.output) == before
    done = cli("clean", damageable.output, "--json")
    assert json.loads(done.out) == {
        "output": damageable.output,
        "unnamed": sorted(littered),
        "removed": True,
        "left": [],
    }
    after = {k: v for k, v in contents(damageable.output).items() if not k.startswith(LOCKS)}
    assert after == {k: v for k, v in before.items() if k not in littered and not k.startswith(LOCKS)}
    empty = {
        os.path.relpath(folder, damageable.output)
        for folder, _, _ in os.walk(damageable.output)
        if not os.listdir(folder)
    }
    assert empty <= set(RUN_KEYS.internal_folders())
    again = cli("clean", damageable.output)
    assert (again.code, again.out) == (0, "0 objects that no manifest names\n")
    assert verify(damageable.output) == []
    assert results(damageable.output) == expected


@pytest.mark.fault(24)
def test_clean_touches_nothing_while_a_manifest_is_damaged(cli, damageable, littered, contents):
    """What it named is not known, and not to be removed."""
    flip(min(Path(damageable.output, MANIFESTS, "graph").glob("united-*.json")))
    before = {k: v for k, v in contents(damageable.output).items() if not k.startswith(LOCKS)}
    for words in (["clean", damageable.output, "--dry-run"], ["clean", damageable.output]):
        outcome = cli(*words)
        assert outcome.code == 6
        assert "united-00000.json (graph united-00000) is missing or damaged; 'dumap verify" in outcome.err
    assert {k: v for k, v in contents(damageable.output).items() if not k.startswith(LOCKS)} == before


@pytest.mark.fault(24)
@pytest.mark.parametrize("command", ["clean", "verify"])
def test_folders_that_are_no_runs_are_left_alone(cli, data, new_path, contents, command):
    nothing, folder, file = new_path("nothing"), Path(new_path("folder")), Path(new_path("file"))
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file.write_text("years of work")
    before = contents(data)
    for place, message in (
        (nothing, "holds no run"),
        (folder, "holds no run"),
        (file, "holds no run"),
        (data, "is not a"),
    ):
        outcome = cli(command, place)
        assert (outcome.code, outcome.out) == (6, ""), outcome
        assert f"{place} {message}" in outcome.err
    assert not os.path.exists(nothing)
    assert contents(data) == before
    assert os.listdir(folder) == ["thesis.txt"]
    assert file.read_text() == "years of work"
