"""Children of a run: they read the stages that are equal, make the others, and leave the parent unchanged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from faults.harness import results
from helpers import ActAtStageStart, NoteRecorder, uncommit_parts, uncommit_stages

from dumap.config import Config
from dumap.engine.local import LocalEngine
from dumap.engine.process import versions
from dumap.errors import LockError, RunMismatchError, StorageError
from dumap.recipe import lineage
from dumap.recipe.damage import clean, verify
from dumap.recipe.pipeline import plan, run
from dumap.recipe.stage_names import STAGES
from dumap.recipe.status import status
from dumap.store import MANIFESTS, PARTS, Lock, Run
from dumap.store import lock as lock_module

SHORT = {"layout.n_epochs": 10, "audit.queries": 20, "cluster.engine": "local"}
NEAR = {"layout.min_dist": 0.5}
BEFORE = STAGES[: STAGES.index("start")]
"""Stages that no setting of the layout changes."""


@pytest.fixture(scope="module")
def data(digits, save) -> str:
    """Save 400 digits; return their path."""
    return save(digits[0][:400], 100)


@pytest.fixture(scope="module")
def child(configure, data) -> Callable[..., Config]:
    """Make the configuration of a short run of the data."""
    return lambda settings=None, data=data: configure(data, {**SHORT, **(settings or {})})


@pytest.fixture(scope="module")
def finished_path(child) -> str:
    """Return the path of a finished run that tests only read."""
    config = child()
    run(config)
    return config.output


@pytest.fixture
def parent(finished_path, new_path) -> str:
    """Return a finished run that one test may change."""
    shutil.copytree(finished_path, path := new_path("parent.zarr"))
    return path


@pytest.fixture(scope="module")
def results_of_other_min_dist(child) -> dict[str, bytes]:
    """Return the results of a run from scratch with another min_dist."""
    config = child(NEAR)
    run(config)
    return results(config.output)


@pytest.fixture
def tasks(monkeypatch) -> Iterator[list[str]]:
    """List the stages that tasks were run for."""
    ran: list[str] = []
    plain = LocalEngine.map

    def count(self: Any, task: Any, job: Any, parts: Any, options: Any, advanced: Any) -> None:
        ran.append(job.stage)
        plain(self, task, job, parts, options, advanced)

    monkeypatch.setattr(LocalEngine, "map", count)
    return ran


def origins(output: str) -> dict[str, str]:
    """Return where stages come from, of those that a run has of others."""
    return {stage["name"]: stage["from"] for stage in status(output)["stages"] if stage["from"] is not None}


def refused(config: Config, parent: str | None, error: type[Exception], message: str) -> None:
    """Assert that a run with a parent is refused, and why."""
    with pytest.raises(error, match=message):
        run(config, parent=parent)


# what is read through ------------------------------------------------------------------------------


def test_another_min_dist_makes_the_start_and_what_follows(child, parent, results_of_other_min_dist, tasks):
    config = child(NEAR)
    run(config, parent=parent)
    assert set(tasks) == set(STAGES) - set(BEFORE)
    assert origins(config.output) == dict.fromkeys(BEFORE, parent)
    assert results(config.output) == results_of_other_min_dist
    assert {path.parent.name for path in Path(config.output, PARTS).glob("*/*")} <= set(tasks)


def test_another_seed_of_the_layout_makes_another_map_of_the_same_graph(child, parent, tasks):
    config, scratch = child({"layout.seed": 5}), child({"layout.seed": 5})
    run(config, parent=parent)
    assert set(tasks) == set(STAGES) - set(BEFORE)
    run(scratch)
    child_results, parent_results = results(config.output), results(parent)
    assert child_results == results(scratch.output)
    assert {key for key in child_results if child_results[key] != parent_results[key]} == {"embedding"}


def test_a_run_of_the_same_settings_writes_its_results_alone(child, parent, tasks):
    config = child()
    run(config, parent=parent)
    assert set(tasks) == {"embedding"}
    assert results(config.output) == results(parent)


@pytest.mark.parametrize("width", [pytest.param(20, marks=pytest.mark.slow), None])
def test_fewer_neighbors_read_lists_that_are_as_wide_as_theirs(child, tasks, width):
    """Theirs are as wide as the parent's where nothing else is asked for."""
    wide = child({"neighbors.n_neighbors": 20})
    few = child({"neighbors.n_neighbors": 8, "neighbors.width": width})
    scratch = child({"neighbors.n_neighbors": 8, "neighbors.width": 20})
    run(wide)
    del tasks[:]
    run(few, parent=wide.output)
    assert set(tasks) == set(STAGES[STAGES.index("graph") :])
    run(scratch)
    assert results(few.output) == results(scratch.output)
    del tasks[:]
    run(few)  # which knows what it took
    assert tasks == []


def test_other_neighbors_are_searched_as_wide_as_they_are_asked_for(child, parent):
    config, notes = child({"neighbors.n_neighbors": 8, "neighbors.metric": "cosine"}), NoteRecorder()
    run(config, parent=parent, observer=notes)
    assert origins(config.output) == {}
    assert any("none of its finished stages" in note for note in notes.notes)
    assert "width" not in status(config.output)["parameters"]["neighbors"]


def test_a_parent_that_is_not_finished_is_read_as_far_as_it_is(child, parent, results_of_other_min_dist, tasks):
    uncommit_parts(parent, STAGES[STAGES.index("graph") :])
    config = child(NEAR)
    run(config, parent=parent)
    assert origins(config.output) == dict.fromkeys(STAGES[: STAGES.index("graph")], parent)
    assert results(config.output) == results_of_other_min_dist


def test_stages_of_a_grandparent_are_read_where_they_lie(child, parent, results_of_other_min_dist):
    middle, last = child({"layout.min_dist": 0.3}), child(NEAR)
    run(middle, parent=parent)
    run(last, parent=middle.output)
    assert origins(last.output) == dict.fromkeys(BEFORE, parent)
    assert results(last.output) == results_of_other_min_dist
    assert status(parent)["children"] == sorted([middle.output, last.output])
    assert status(middle.output)["children"] == [last.output]
    assert status(last.output)["parent"] == middle.output


def test_a_copy_of_the_input_is_read_once_and_all_else_through(
    child, parent, data, new_path, results_of_other_min_dist, tasks
):
    shutil.copytree(data, copy := new_path("copy.zarr"))
    for path in Path(copy).rglob("*"):
        os.utime(path, (1, 1))
    config = child(NEAR, copy)
    run(config, parent=parent)
    assert origins(config.output) == dict.fromkeys(BEFORE[1:], parent)
    assert results(config.output) == results_of_other_min_dist


def test_runs_that_are_moved_together_know_each_other(child, parent, new_path, results_of_other_min_dist):
    folder = Path(new_path("before"))
    folder.mkdir()
    shutil.move(parent, folder / "p")
    config = child(NEAR).model_copy(update={"output": str(folder / "c")})
    run(config, parent=str(folder / "p"))
    shutil.move(folder, after := Path(new_path("after")))
    assert verify(str(after / "c")) == []
    assert results(str(after / "c")) == results_of_other_min_dist
    assert status(str(after / "p"))["children"] == [str(after / "c")]


@pytest.mark.slow
def test_workers_read_through_a_parent_as_well(child, parent, results_of_other_min_dist, client):
    config = child({**NEAR, "cluster.engine": "auto", "layout.mode": "rounds"})
    run(config, client=client, parent=parent)
    assert origins(config.output) == dict.fromkeys(BEFORE, parent)
    assert results(config.output) == results_of_other_min_dist


def test_the_plan_counts_what_is_left(child, parent):
    config = child(NEAR)
    whole, left = plan(config), plan(config, parent)
    assert left.inherited == BEFORE
    assert tuple(stage.name for stage in left.stages) == STAGES[len(BEFORE) :]
    assert left.disk_bytes < whole.disk_bytes
    assert left.core_seconds < whole.core_seconds


def test_the_command_line_says_which_stages_are_whose(cli, child, parent):
    config = child(NEAR)
    words = ("--input", config.input.path, "--output", config.output, "--parent", parent, "--min-dist", "0.5")
    words += ("--n-epochs", "10", "--set", "audit.queries=20", "--engine", "local")
    assert f"read through the parent: {', '.join(BEFORE)}" in cli("plan", *words).out
    assert cli("run", *words).code == 0
    lines, digest = cli("status", config.output).out.splitlines(), status(config.output)["stages"][0]["digest"]
    assert f"child of {parent}" in lines
    assert next(line for line in lines if line.startswith("vectors")).endswith(f"{digest[:8]}  of {parent}")
    assert f"parent of {config.output}" in cli("status", parent).out


def test_a_stage_whose_parts_a_parent_dropped_is_made_here(
    child, parent, results_of_other_min_dist, tasks, monkeypatch
):
    config, notes, store = child(NEAR), NoteRecorder(), Run(parent)
    store.drop_parts("coarsen", store.committed_parts("coarsen"))
    monkeypatch.setattr("dumap.recipe.pipeline.check_not_dropped", lambda stages, run: None)
    run(config, parent=parent, observer=notes)
    assert set(tasks) == {"coarsen", *STAGES[len(BEFORE) :]}
    assert any(note.startswith(f"coarsen: {parent} dropped ") for note in notes.notes)
    assert set(origins(config.output)) == set(BEFORE) - {"coarsen"}
    assert results(config.output) == results_of_other_min_dist


def test_a_parent_that_kept_its_results_alone_is_refused(child):
    bare = child({"keep": "results"})
    run(bare)
    refused(child(NEAR), bare.output, StorageError, "keep = results.*keep = model or all")


# stopped and gone on with ---------------------------------------------------------------------------


def stop() -> bool:
    """Interrupt the run."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("again", [True, False], ids=["named again", "known"])
@pytest.mark.parametrize("at", ["cells", "layout", "quality"])
def test_a_child_that_is_stopped_goes_on(child, parent, results_of_other_min_dist, tasks, monkeypatch, at, again):
    config, plain = child(NEAR), lineage.inherit_stage

    def inherit(recipe: Any, stage: Any, *rest: Any) -> bool:
        return stop() if stage.name == at else plain(recipe, stage, *rest)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("dumap.recipe.pipeline.inherit_stage", inherit if at == "cells" else plain)
        with pytest.raises(KeyboardInterrupt):
            run(config, parent=parent, observer=ActAtStageStart(at, stop))
    run(config, parent=parent if again else None)
    assert set(tasks) == set(STAGES) - set(BEFORE)
    assert origins(config.output) == dict.fromkeys(BEFORE, parent)
    assert results(config.output) == results_of_other_min_dist


def test_a_stage_that_a_child_began_itself_is_gone_on_with(child, parent, results_of_other_min_dist):
    config = child(NEAR)
    shutil.move(Path(parent, MANIFESTS, "done", "graph.json"), kept := Path(parent).with_name("graph.json"))
    with pytest.raises(KeyboardInterrupt):
        run(config, parent=parent, observer=ActAtStageStart("start", stop))
    shutil.move(kept, Path(parent, MANIFESTS, "done", "graph.json"))
    uncommit_stages(config.output, ["graph"])
    run(config)
    assert "graph" not in origins(config.output)
    assert results(config.output) == results_of_other_min_dist


# refused ------------------------------------------------------------------------------------------


def test_a_parent_of_other_data_is_refused(child, parent, digits, save):
    x = digits[0][:400].copy()
    x[3, 3] += 1
    refused(child(NEAR, save(x, 100)), parent, RunMismatchError, "held other data")
    refused(child(NEAR, save(x[:300], 100)), parent, RunMismatchError, r"shape \(400, 64\).*\(300, 64\)")


def test_a_parent_that_is_driven_is_refused(child, parent, monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.2)
    config = child(NEAR)
    with Lock(Run(parent), print):
        refused(config, parent, LockError, "is driven by")
    assert not os.path.exists(config.output)


@pytest.mark.parametrize("output", ["{}", "{}/below", "{}/embedding/new"])
def test_a_parent_that_is_the_output_or_holds_it_is_refused(child, parent, contents, output):
    before = contents(parent)
    config = child().model_copy(update={"output": output.format(parent)})
    refused(config, parent, StorageError, f"lies in the parent {parent}; name another")
    assert contents(parent) == before


def test_a_parent_within_the_output_is_refused(child, parent):
    config = child()
    run(config)
    shutil.move(parent, inside := f"{config.output}/parent.zarr")
    refused(config, inside, StorageError, f"lies in the parent {inside}; name another")


def test_a_parent_must_be_a_run_of_this_format(child, parent, new_path):
    refused(child(NEAR), new_path("nothing"), StorageError, "holds no run")
    shutil.rmtree(Path(parent, "_dumap"))
    group = json.loads(Path(parent, "zarr.json").read_text())
    group["attributes"] = {"format": 9}
    Path(parent, "zarr.json").write_text(json.dumps(group))
    refused(child(NEAR), parent, StorageError, "has format 9")


def test_a_run_has_one_parent_for_good(child, parent, finished_path):
    config, alone = child(NEAR), child(NEAR)
    run(config, parent=parent)
    refused(config, finished_path, RunMismatchError, f"begun with the parent {parent}")
    run(alone)
    refused(alone, parent, RunMismatchError, "begun without a parent")


# damage and loss -----------------------------------------------------------------------------------


def a_part(output: str, stage: str, prefix: str) -> Path:
    """Return the first object that a stage's parts of a kind wrote."""
    return min(Path(output, PARTS, stage).glob(f"{prefix}-*"))


def test_damage_of_a_parent_is_named_and_left_to_it(child, parent, contents, results_of_other_min_dist):
    part, config = a_part(parent, "graph", "united"), child(NEAR)
    data = bytearray(part.read_bytes())
    part.write_bytes(bytes(byte ^ 1 for byte in data))
    register = lineage.register_child
    register(parent, config.output, print)
    before = contents(parent)
    refused(config, parent, StorageError, f"'dumap verify {parent}'.*'dumap run' with that output")
    assert contents(parent) == before
    assert [stage for stage, *_ in verify(parent, should_repair=True)] == ["graph"]
    refused(config, None, StorageError, "not there any more: graph of")
    run(child().model_copy(update={"output": parent}))
    run(config)
    assert results(config.output) == results_of_other_min_dist


def test_a_parent_that_is_gone_is_missed_where_it_is_needed(child, parent, cli):
    config = child(NEAR)
    run(config, parent=parent)
    shutil.move(parent, elsewhere := f"{parent}.moved")
    assert run(config)["state"] == "done"  # it needs nothing more
    outcome = cli("verify", config.output)
    assert outcome.code == 1
    assert f"damaged: {parent}: stage graph" in outcome.out
    uncommit_stages(config.output, ["quality"])
    refused(config, None, StorageError, f"{parent} is no run")
    shutil.move(elsewhere, parent)
    assert run(config)["state"] == "done"
    assert verify(config.output) == []


def test_neither_verify_nor_clean_of_the_one_touches_the_other(child, parent, contents):
    config = child(NEAR)
    run(config, parent=parent)
    before = contents(parent), contents(config.output)
    for output in (parent, config.output):
        assert verify(output, should_repair=True) == []
        assert clean(output, print) == ([], [])
    after = contents(parent), contents(config.output)
    assert [{key for key in one if "/lock/" not in key} for one in after] == [
        {key for key in one if "/lock/" not in key} for one in before
    ]


def test_damage_of_a_child_is_its_own(child, parent, results_of_other_min_dist):
    config = child(NEAR)
    run(config, parent=parent)
    a_part(config.output, "start", "coordinates").write_bytes(b"")
    Path(config.output, MANIFESTS, "done", "cells.json").write_bytes(b"{}")
    assert {(stage, part) for stage, part, _ in verify(config.output, should_repair=True)} == {
        ("done", "cells"),
        ("start", "coordinates-00000"),
    }
    run(config)
    assert origins(config.output) == dict.fromkeys(BEFORE, parent)
    assert results(config.output) == results_of_other_min_dist


def test_a_parent_that_cannot_be_written_to_is_read_all_the_same(child, parent, results_of_other_min_dist, monkeypatch):
    config, notes, plain = child(NEAR), NoteRecorder(), Run.put_new

    def put_new(self: Run, key: str, *rest: Any) -> bool:
        if self.location == parent:
            raise StorageError("it is only read")
        return plain(self, key, *rest)

    monkeypatch.setattr(Run, "put_new", put_new)
    run(config, parent=parent, observer=notes)
    assert f"it is only read; so its status does not list {config.output}" in notes.notes
    assert results(config.output) == results_of_other_min_dist


# versions -----------------------------------------------------------------------------------------


def test_versions_bind_a_stage_until_it_is_done(child, parent, monkeypatch):
    config, versions_here = child().model_copy(update={"output": parent}), versions()
    uncommit_parts(parent, ["embedding", "quality"])
    monkeypatch.setattr(LocalEngine, "versions", property(lambda self: {**versions_here, "numpy": "1.0"}))
    run(config)
    made = {stage["name"]: stage["versions"]["numpy"] for stage in status(parent)["stages"]}
    assert made == {**dict.fromkeys(STAGES, versions_here["numpy"]), "embedding": "1.0", "quality": "1.0"}
    uncommit_stages(parent, ["layout"])
    refused(config, None, RunMismatchError, "stage layout is half done.*\n  numpy: ")
    assert run(config, force=True)["state"] == "done"


def test_stages_of_a_parent_of_other_versions_are_read_and_told(cli, child, parent, monkeypatch):
    config, versions_here = child(NEAR), versions()
    monkeypatch.setattr(LocalEngine, "versions", property(lambda self: {**versions_here, "numpy": "1.0"}))
    run(config, parent=parent)
    assert set(origins(config.output)) == set(BEFORE)
    line = next(line for line in cli("status", config.output).out.splitlines() if line.startswith("graph"))
    assert line.endswith(f"of {parent}, made with numpy {versions_here['numpy']}")


def test_arrays_of_a_child_open_as_those_of_any_run(child, parent):
    config = child(NEAR)
    run(config, parent=parent)
    group = zarr.open_group(config.output, mode="r")
    assert np.isfinite(group["embedding"][:]).all()
    assert group.attrs["dumap"]["parent"] == os.path.relpath(parent, config.output)
