"""Runs with a work place: what lies where, and that every command finds it."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from helpers import ActAtStageStart, uncommit_stages

import dumap
from dumap.engine.cluster import DaskEngine
from dumap.errors import RunMismatchError, StorageError
from dumap.recipe.damage import clean, verify
from dumap.recipe.observers import SilentObserver
from dumap.recipe.pipeline import run
from dumap.recipe.status import status
from dumap.show.export import export
from dumap.store import write_work_pointer

LOCAL = {"cluster.engine": "local"}


def ignore_note(message: str) -> None:
    """Ignore a message."""
    return None


@pytest.fixture(scope="module")
def data(digits_300, save):
    """Save 300 digits; return their path."""
    return save(digits_300)


@pytest.fixture(scope="module")
def alone(embed, data):
    """Return a finished run without a work place, to compare with."""
    return embed(data)


@pytest.fixture
def begun(configure, data, new_path):
    """Return the configuration of a run with a work place, and that place."""

    def make(**settings):
        work = new_path("work")
        return configure(data, {**LOCAL, "work": work, **settings}), work

    return make


@pytest.fixture(scope="module")
def apart(configure, data, new_path):
    """Return the status of a finished run with a work place."""
    return run(configure(data, {**LOCAL, "work": new_path("work")}), observer=SilentObserver())


def paths_below(folder: str) -> set[str]:
    """Return the paths of all files below a folder, relative to it."""
    root = Path(folder)
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


# what is where -----------------------------------------------------------------------------------


def test_the_output_holds_the_results_alone(apart, alone):
    held = paths_below(apart["output"])
    inside = {"_dumap/work.json", "_dumap/zarr.json"}
    assert {name for name in held if name.startswith("_dumap/")} == inside
    assert held - inside == {name for name in paths_below(alone.output) if not name.startswith("_dumap/")}
    for name in [name for name in held if "/c/" in name]:
        assert Path(apart["output"], name).read_bytes() == Path(alone.output, name).read_bytes()
    assert any(name.startswith("_dumap/parts/") for name in paths_below(apart["work"]))


def test_the_output_is_read_without_a_warning(apart, alone):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for consolidated in (True, False):
            group = zarr.open_group(apart["output"], mode="r", use_consolidated=consolidated)
            np.testing.assert_array_equal(group["embedding"][:], alone.y)
            assert group["status"][:].tolist() == alone.flags.tolist()
            assert {name for name, _ in group.arrays()} >= {"embedding", "status"}
        assert group.attrs["dumap"]["kind"] == "dumap run"


def test_the_answer_does_not_depend_on_the_place(apart, alone):
    before, after = alone.status, status(apart["output"])
    assert after["parameters"] == before["parameters"]
    assert [s["digest"] for s in after["stages"]] == [s["digest"] for s in before["stages"]]


def test_a_run_that_ends_with_its_lists_publishes_no_map(begun):
    """Also where the run was stopped after its final arrays were made."""
    config, _ = begun()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, observer=ActAtStageStart("quality", stop))
    run(config, observer=SilentObserver(), last="audit")
    assert not any(name.startswith(("embedding", "status")) for name in paths_below(config.output))
    run(config, observer=SilentObserver())
    assert any(name.startswith("embedding") for name in paths_below(config.output))


@pytest.mark.slow
def test_workers_are_asked_whether_they_see_the_work_place(begun, client, monkeypatch):
    """Only the driver writes to the output."""
    checked, check = [], DaskEngine.check_output_visible
    monkeypatch.setattr(
        DaskEngine, "check_output_visible", lambda self, place: checked.append(place) or check(self, place)
    )
    config, work = begun(**{"cluster.engine": "dask"})
    assert run(config, client, SilentObserver())["work"] == work
    assert checked == [work]


# found again -------------------------------------------------------------------------------------


def test_every_command_finds_the_work_place(apart, alone, new_path):
    state, output = status(apart["output"]), apart["output"]
    assert (state["output"], state["work"], state["state"]) == (output, apart["work"], "done")
    assert verify(output, ignore_note) == []
    assert clean(output, ignore_note) == ([], [])
    out = new_path("knn.npz")
    export(output, "neighbors", out)
    with np.load(out) as exported, np.load(alone.export("neighbors", ".npz")) as expected:
        np.testing.assert_array_equal(exported["indices"], expected["indices"])
    result = dumap.open_run(output)
    assert (result.path, result["work"]) == (output, apart["work"])
    np.testing.assert_array_equal(result.embedding[:], alone.y)


def test_the_command_tells_of_the_work_place(cli, apart):
    assert f"all but the results is in {apart['work']}\n" in cli("status", apart["output"]).out


def test_a_stopped_run_goes_on_without_being_told(begun, alone):
    config, work = begun()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, observer=ActAtStageStart("graph", stop))
    assert status(config.output)["state"] == "partial"
    assert paths_below(config.output) == {"_dumap/work.json", "_dumap/zarr.json"}
    again = run(config.model_copy(update={"work": None}), observer=SilentObserver())
    assert (again["state"], again["work"]) == ("done", work)
    np.testing.assert_array_equal(zarr.open_array(config.output, path="embedding", mode="r")[:], alone.y)


def test_a_finished_run_is_left_as_it_is(cli, begun, contents, new_path):
    config, work = begun()
    run(config, observer=SilentObserver())
    before, file = (contents(config.output), contents(work)), new_path("run.yaml")
    Path(file).write_text(yaml.safe_dump(config.model_dump(mode="json")))
    outcome = cli("run", file)
    assert (outcome.code, outcome.out.startswith("finished before, nothing to do")) == (0, True), outcome.err
    assert (contents(config.output), contents(work)) == before


def test_it_is_a_parent(apart, configure, data):
    child = run(configure(data, {**LOCAL, "layout.min_dist": 0.5}), observer=SilentObserver(), parent=apart["output"])
    assert child["parent"] == apart["work"]
    assert {stage["name"] for stage in child["stages"] if stage["from"] == apart["work"]} >= {"neighbors", "graph"}
    assert verify(child["output"], ignore_note) == []


def test_it_is_a_child(begun, alone):
    config, work = begun(**{"layout.min_dist": 0.5})
    state = run(config, observer=SilentObserver(), parent=alone.output)
    assert (state["parent"], state["work"]) == (alone.output, work)
    assert next(stage for stage in state["stages"] if stage["name"] == "graph")["from"] == alone.output


def test_both_may_be_moved_together(begun, new_path):
    config, _ = begun()
    folder = Path(new_path("together"))
    folder.mkdir()
    moved = {name: str(folder / name) for name in ("run.zarr", "work")}
    config = config.model_copy(update={"output": str(folder / "run.zarr"), "work": str(folder / "work")})
    run(config, observer=SilentObserver())
    elsewhere = new_path("elsewhere")
    shutil.move(folder, elsewhere)
    assert not Path(moved["work"]).exists()
    assert status(f"{elsewhere}/run.zarr")["work"] == f"{elsewhere}/work"


# what goes wrong ---------------------------------------------------------------------------------


def test_a_work_place_that_is_gone_is_told(begun, new_path):
    config, work = begun()
    run(config, observer=SilentObserver())
    shutil.move(work, new_path("hidden"))
    for ask in (status, verify, lambda output: clean(output, ignore_note), lambda output: dumap.open_run(output)):
        with pytest.raises(StorageError, match=r"internal folder in .*work.* put it back; its arrays .* whole"):
            ask(config.output)
    with pytest.raises(StorageError, match="name another output"):
        run(config, observer=SilentObserver())


def test_damaged_results_are_found_and_copied_again(begun, alone):
    config, _ = begun()
    run(config, observer=SilentObserver())
    chunk, metadata = Path(config.output, "embedding/c/0/0"), Path(config.output, "status/zarr.json")
    chunk.write_bytes(bytes(chunk.stat().st_size))
    metadata.write_text("{}")
    keys = {f"{config.output}/embedding/c/0/0", f"{config.output}/status/zarr.json"}
    assert {key for *_, key in verify(config.output, ignore_note)} == keys
    assert {key for *_, key in verify(config.output, ignore_note, should_repair=True)} == keys
    run(config, observer=SilentObserver())
    assert verify(config.output, ignore_note) == []
    np.testing.assert_array_equal(zarr.open_array(config.output, path="embedding", mode="r")[:], alone.y)


def test_damage_in_the_work_place_is_made_good(begun):
    config, work = begun()
    run(config, observer=SilentObserver())
    part = next(path for path in Path(work, "_dumap/parts/graph").iterdir() if path.name.startswith("united"))
    part.write_bytes(b"x")
    assert verify(config.output, ignore_note, should_repair=True) != []
    run(config, observer=SilentObserver())
    assert verify(config.output, ignore_note) == []


def test_files_that_people_add_to_the_output_stay(begun):
    config, work = begun()
    run(config, observer=SilentObserver())
    group = zarr.open_group(config.output, mode="a")
    group.attrs["mine"] = "kept"
    group.create_array("labels", data=np.arange(3))
    Path(config.output, "notes.txt").write_text("kept")
    uncommit_stages(work, ["embedding", "quality"])
    run(config, observer=SilentObserver())
    group = zarr.open_group(config.output, mode="r")
    assert group.attrs["mine"] == "kept"
    assert group["labels"][:].tolist() == [0, 1, 2]
    assert Path(config.output, "notes.txt").read_text() == "kept"


def test_another_place_is_refused(begun, alone, new_path):
    config, _ = begun()
    run(config, observer=SilentObserver())
    other = config.model_copy(update={"work": new_path("other")})
    with pytest.raises(RunMismatchError, match=r"keeps its internal folder in .*work, not in .*other"):
        run(other, observer=SilentObserver())
    inside = config.model_copy(update={"output": alone.output})
    with pytest.raises(RunMismatchError, match="was begun with its internal folder inside"):
        run(inside, observer=SilentObserver())


def test_another_driver_that_has_begun_meanwhile_is_told(begun, monkeypatch, new_path):
    config, _ = begun()
    monkeypatch.setattr("dumap.recipe.pipeline.find_work_place", lambda config: config.work)
    other = new_path("other")
    write_work_pointer(config.output, other)
    with pytest.raises(RunMismatchError, match=rf"keeps its internal folder in {other}, not in .*work"):
        run(config, observer=SilentObserver())


@pytest.mark.parametrize("place", ["output", "inside", "input"])
def test_places_that_lie_in_one_another_are_refused(begun, data, place):
    config, _ = begun()
    work = {"output": config.output, "inside": f"{config.output}/work", "input": f"{data}/work"}[place]
    with pytest.raises(StorageError, match="is, holds or lies in"):
        run(config.model_copy(update={"work": work}), observer=SilentObserver())
    assert not Path(config.output).exists()


@pytest.mark.parametrize("place", ["output", "work"])
def test_places_that_hold_something_else_are_refused(begun, place):
    config, _ = begun()
    folder = Path(getattr(config, place))
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="exists and is not a dumap run"):
        run(config, observer=SilentObserver())
    assert os.listdir(folder) == ["thesis.txt"]


def test_a_pointer_that_is_damaged_is_told(begun):
    config, _ = begun()
    run(config, observer=SilentObserver())
    Path(config.output, "_dumap/work.json").write_text("{}")
    with pytest.raises(StorageError, match="damaged, so that it is not known"):
        status(config.output)
