"""What a run keeps, drops, and makes again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import NoteRecorder

from dumap.config import load_config
from dumap.errors import DroppedError, StorageError
from dumap.recipe import keep
from dumap.recipe.damage import clean, uncommit_damage, verify
from dumap.recipe.pipeline import run
from dumap.recipe.recipes import GIVEN_NEIGHBORS_RECIPE, SEARCH_RECIPE
from dumap.recipe.stage_names import STAGES
from dumap.recipe.status import status
from dumap.show.export import export
from dumap.store import PARTS, Run, disk

SETTINGS = {"cluster.engine": "local", "layout.n_epochs": 10, "audit.queries": 50, "cells.max_rows": 200}


@pytest.fixture(scope="module")
def configure(save, new_path, digits):
    """Configure a short run of 600 digits."""
    source = save(digits[0][:600])
    return lambda **more: load_config(
        None, (), {"input.path": source, "output": new_path("run.zarr"), **SETTINGS, **more}
    )


@pytest.fixture(scope="module")
def run_by_policy(configure) -> dict[str, str]:
    """Return the configuration of a finished run for each value of `keep`: three runs, which tests only read."""
    configs = {}
    for policy in ("results", "model", "all"):
        config = configure(keep=policy)
        run(config)
        configs[policy] = config
    return configs


@pytest.fixture
def copy_of_run(run_by_policy, new_path):
    """Return a function that copies a finished run of a policy, for one test to change."""

    def copy(policy: str):
        output = new_path("run.zarr")
        shutil.copytree(run_by_policy[policy].output, output)
        return run_by_policy[policy].model_copy(update={"output": output})

    return copy


def size(output: str) -> int:
    """Add up the bytes of all parts of a run."""
    return sum(path.stat().st_size for path in Path(output, PARTS).glob("*/*"))


def results(output: str) -> dict[str, bytes]:
    """Return the bytes of embedding and status."""
    store = Run(output, read_only=True)
    return {name: store.read_final(name, "embedding").tobytes() for name in ("embedding", "status")}


def held(output: str) -> set[tuple[str, str]]:
    """Return the kinds of parts that hold anything."""
    store = Run(output, read_only=True)
    return {(s, keep.kind_of(p)) for s in STAGES for p in store.committed_parts(s) if store.part_object_keys(s, p)}


@pytest.mark.parametrize("recipe", [SEARCH_RECIPE, GIVEN_NEIGHBORS_RECIPE])
def test_temporary_parts_go_after_all_stages_that_read_them(recipe):
    for stage in recipe:
        assert set(stage.temporary_kinds) <= set(stage.writes)
        for readers in stage.temporary_kinds.values():
            assert set(readers) <= {other.name for other in recipe if stage.name in other.reads}


def test_the_map_is_the_same_whatever_is_kept(run_by_policy):
    assert (
        results(run_by_policy["all"].output)
        == results(run_by_policy["model"].output)
        == results(run_by_policy["results"].output)
    )
    for config in run_by_policy.values():
        assert status(config.output)["state"] == "done"
        assert verify(config.output) == []
        assert clean(config.output, print, is_dry_run=True)[0] == [], "what was dropped is gone"


def test_a_run_keeps_what_it_was_told_to(run_by_policy):
    assert held(run_by_policy["results"].output) == set()
    model = held(run_by_policy["model"].output)
    assert {("cells", "tree"), ("cells", "positions"), ("neighbors", "lists"), ("graph", "united")} <= model
    assert {("layout", "state"), ("graph", "shards")} <= model
    assert not {("cells", "sorted"), ("cells", "near"), ("neighbors", "cell"), ("graph", "directed")} & model
    assert model < held(run_by_policy["all"].output)
    rows, raw = 600, 600 * 64 * 4
    bound = raw + rows * (100 + 25 * 15 + 8 * 2)
    assert size(run_by_policy["results"].output) == 0
    assert size(run_by_policy["model"].output) <= bound < size(run_by_policy["all"].output)


def test_reading_a_dropped_part_says_so(run_by_policy):
    store = Run(run_by_policy["model"].output, read_only=True)
    assert store.is_committed("cells", "sorted-00000")
    with pytest.raises(DroppedError, match="cells sorted-00000 was dropped"):
        store.read("cells", "sorted-00000", "vectors")
    with pytest.raises(StorageError, match="keep = model or all"):
        export(
            run_by_policy["results"].output, "graph", str(Path(run_by_policy["results"].output).parent / "graph.npz")
        )


def test_a_dropped_part_is_not_committed_again(copy_of_run):
    config = copy_of_run("model")
    store = Run(config.output)
    with store.part("cells", "sorted-00000") as out:
        out.write("vectors", np.ones(3))
    assert store.is_dropped("cells", "sorted-00000")


@pytest.mark.parametrize("policy", ["model", "results"])
def test_a_damaged_result_is_made_again_from_what_is_kept(copy_of_run, policy):
    config, notes = copy_of_run(policy), NoteRecorder()
    before = results(config.output)
    Path(config.output, "embedding/c/0/0").write_bytes(b"")
    uncommit_damage(config.output, verify(config.output), print)
    assert run(config, observer=notes)["state"] == "done"
    assert results(config.output) == before
    assert verify(config.output) == []
    again = [note for note in notes.notes if "were dropped, are needed and made again" in note]
    assert bool(again) == (policy == "results")
    assert held(config.output) == held(copy_of_run(policy).output), "and dropped again"


def test_a_damaged_part_of_the_model_is_made_again(copy_of_run):
    config, notes = copy_of_run("model"), NoteRecorder()
    before, store = results(config.output), Run(config.output)
    lists = store.read("neighbors", "lists-00000", "indices")
    for stage, part in (("neighbors", "lists-00000"), ("graph", "united-00000")):
        os.truncate(Path(config.output, store.part_object_keys(stage, part)[0]), 10)
    uncommit_damage(config.output, verify(config.output), print)
    assert run(config, observer=notes)["state"] == "done"
    assert any(note.startswith("cells: ") and "'sorted'" in note for note in notes.notes), notes.notes
    assert results(config.output) == before
    assert Run(config.output).read("neighbors", "lists-00000", "indices").tobytes() == lists.tobytes()


def test_less_may_be_kept_later(copy_of_run, run_by_policy):
    config = copy_of_run("all").model_copy(update={"keep": "results"})
    notes = NoteRecorder()
    assert run(config, observer=notes)["state"] == "done"
    assert "were dropped, since keep is results" in notes.notes[-1]
    assert held(config.output) == set()
    assert results(config.output) == results(run_by_policy["all"].output)
    assert run(config, observer=notes)["state"] == "done"
    assert "nothing to do" in notes.notes[-1]


class Killed(BaseException):
    """What ends a driver at once."""


@pytest.mark.fault(6)
@pytest.mark.parametrize("call", ["write", "remove"])
@pytest.mark.parametrize("policy", ["model", "results"])
def test_a_driver_killed_as_it_drops_goes_on(configure, run_by_policy, monkeypatch, policy, call):
    """After any number of manifests are written, or of objects removed, of any of the stages."""
    config, real, at = configure(keep=policy), getattr(disk, call), [0, 7]

    def dies(root, key, *more, **options):
        if call == "remove" or b'"dropped"' in more[0]:
            at[0] += 1
            if at[0] == at[1]:
                at[1] *= 3
                raise Killed
        return real(root, key, *more, **options)

    monkeypatch.setattr(disk, call, dies)
    deaths = 0
    while True:
        try:
            run(config)
            break
        except Killed:
            deaths += 1
    assert deaths >= 2
    assert results(config.output) == results(run_by_policy["all"].output)
    assert held(config.output) == held(run_by_policy[policy].output)
    assert verify(config.output) == []
    assert clean(config.output, print, is_dry_run=True)[0] == []
