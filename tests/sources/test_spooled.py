"""Objects without files: how their rows are copied into a run, and when the copy is removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import ActAtStageStart, NoteRecorder, uncommit_parts, uncommit_stages

from dumap.config import load_config
from dumap.errors import InputError, RunMismatchError
from dumap.recipe import pipeline
from dumap.recipe.damage import clean, uncommit_damage, verify
from dumap.recipe.status import status
from dumap.sources import spooled
from dumap.sources.objects import rows_of
from dumap.sources.spooled import SPOOL, SpooledInput, location_of
from dumap.stages.spool import write_spool_part
from dumap.store import MANIFESTS, PARTS, Run

SETTINGS = {
    **{"cluster.engine": "local", "layout.n_epochs": 5, "start.coarse_epochs": 20, "cells.max_rows": 200},
    **{"audit.queries": 20, "quality.queries": 20},
}


@pytest.fixture
def small_parts(monkeypatch):
    """Let a part have 100 rows of the digits, or 64 KiB of others."""
    monkeypatch.setattr(spooled, "PART_BYTES", 100 * 64 * 4)


@pytest.fixture
def embed_rows(new_path):
    """Run on threads of this process what is given as an object; return the output."""

    def go(x, output=None, client=None, observer=None, **settings):
        object_rows = rows_of(x)
        where = {"input.path": location_of(object_rows), "output": output or new_path("run.zarr")}
        engine = {"cluster.engine": "auto"} if client else {}
        config = load_config(None, (), {**where, **SETTINGS, **engine, **settings})
        pipeline.run(config, client, observer, object_rows=object_rows)
        return config.output

    return go


def embedding(output):
    """Return the bytes of a run's embedding."""
    return Run(output, read_only=True).read_final("embedding", "embedding").tobytes()


def spooled_parts(output):
    """Name the objects of the rows that were copied into a run."""
    return sorted(path.name for path in Path(output, PARTS, SPOOL).iterdir())


# what lies in the run ------------------------------------------------------------------------------


def test_a_token_is_of_the_content_alone():
    x = np.arange(2000.0).reshape(100, 20)
    same = [x.copy(), np.asfortranarray(x), x.astype(">f8"), np.repeat(x, 2, axis=1)[:, ::2]]
    assert {rows_of(array).token for array in same} == {rows_of(x).token}
    other = x.copy()
    other[99, 19] += 1
    others = [other, x.astype("f4"), x.reshape(200, 10), x[::-1]]
    assert len({rows_of(array).token for array in (x, *others)}) == 5


def test_a_location_says_what_it_is_of():
    source = SpooledInput("spool://numpy.ndarray/1000x64/float32/0123abcd")
    assert (source.rows, source.dims, source.dtype, source.signature()) == (1000, 64, np.float32, "0123abcd")
    assert source.what == "numpy.ndarray of shape (1000, 64) and dtype float32"
    for wrong in ("spool://x", "spool://numpy.ndarray/0x4/float32/0", "spool://numpy.ndarray/3x4/object_/0"):
        with pytest.raises(InputError, match=r"give the array itself|allowed are"):
            SpooledInput(wrong)


@pytest.mark.usefixtures("small_parts")
def test_rows_are_read_across_parts(new_path):
    x = np.random.default_rng(0).normal(size=(350, 64)).astype(np.float32)
    object_rows, run = rows_of(x), Run(new_path("run.zarr"))
    source = SpooledInput(location_of(object_rows), lambda: run)
    assert source.parts == 4
    for number in range(4):
        with run.part(SPOOL, f"rows-{number:05d}") as out:
            out.write("rows", object_rows.read(*source.span(number)))
    for start, stop in ((0, 350), (99, 101), (100, 200), (349, 350), (5, 5)):
        assert np.array_equal(source.read(start, stop), x[start:stop])
    with pytest.raises(InputError, match="lie in a run"):
        SpooledInput(location_of(object_rows)).read(0, 1)


# whole runs ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
def test_an_array_comes_to_the_bytes_of_its_store(digits_300, embed, embed_rows):
    of_store = embed(digits_300, {**SETTINGS, "keep": "model"})
    output = embed_rows(digits_300)
    assert embedding(output) == embedding(of_store.output)
    of_array, of_path = status(output), status(of_store.output)
    assert [stage["name"] for stage in of_array["stages"]] == ["spool", *(stage["name"] for stage in of_path["stages"])]
    assert of_array["fingerprint"] == of_path["fingerprint"]
    assert of_array["input"]["path"] == location_of(rows_of(digits_300))
    digests = [{stage["name"]: stage["digest"] for stage in state["stages"][-9:]} for state in (of_array, of_path)]
    assert digests[0] == digests[1], "what the rows are decides, not whence they come"
    assert verify(output) == []
    assert clean(output, print, is_dry_run=True) == ([], [])


@pytest.mark.usefixtures("small_parts")
def test_the_copy_goes_once_nothing_reads_it(digits_300, embed_rows):
    assert spooled_parts(embed_rows(digits_300)) == []
    assert spooled_parts(embed_rows(digits_300, keep="results")) == []
    assert len(spooled_parts(embed_rows(digits_300, keep="all"))) == 3


@pytest.mark.usefixtures("small_parts")
def test_a_killed_copy_is_gone_on_with(digits_300, embed_rows, new_path, monkeypatch):
    output, copied = new_path("run.zarr"), []

    def failing(job, part, rows=None):
        if len(copied) == 2:
            raise KeyboardInterrupt
        copied.append(part)
        write_spool_part(job, part, rows)

    with monkeypatch.context() as patch:
        patch.setattr("dumap.stages.spool.write_spool_part", failing)
        with pytest.raises(KeyboardInterrupt):
            embed_rows(digits_300, output)
    assert status(output)["stages"][0]["state"] == "partial"
    before = spooled_parts(output)
    embed_rows(digits_300, output, observer=ActAtStageStart("vectors", lambda: before.append(spooled_parts(output))))
    assert set(before[:-1]) <= set(before[-1]), "what was committed is not copied again"


@pytest.mark.usefixtures("small_parts")
def test_the_same_array_again_does_nothing_and_another_is_refused(digits_300, embed_rows):
    output, notes = embed_rows(digits_300), NoteRecorder()
    embed_rows(digits_300.copy(), output, observer=notes)
    assert any("finished before; nothing to do" in note for note in notes.notes)
    with pytest.raises(RunMismatchError, match=r"other data than the numpy.ndarray of shape \(300, 64\)"):
        embed_rows(digits_300 + 1, output)
    with pytest.raises(RunMismatchError, match=r"has \(299, 64\) and float32"):
        embed_rows(digits_300[1:], output)


@pytest.mark.usefixtures("small_parts")
def test_a_store_of_the_same_rows_goes_on_with_an_arrays_run(digits_300, embed_rows, save):
    output, notes = embed_rows(digits_300), NoteRecorder()
    before = embedding(output)
    uncommit_stages(output, ["quality"])
    config = load_config(None, (), {"input.path": save(digits_300), "output": output, **SETTINGS})
    assert pipeline.run(config, observer=notes)["state"] == "done"
    assert embedding(output) == before
    other = load_config(None, (), {"input.path": save(digits_300[::-1]), "output": output, **SETTINGS})
    with pytest.raises(RunMismatchError, match="holds other data"):
        pipeline.run(other)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("keep", ["model", "results"])
def test_a_repair_that_needs_the_rows_copies_them_anew(digits_300, embed_rows, keep):
    output, notes = embed_rows(digits_300, keep=keep), NoteRecorder()
    before = embedding(output)
    uncommit_parts(output, ["vectors", "cells", "neighbors", "audit", "quality"])
    embed_rows(digits_300, output, observer=notes, keep=keep)
    assert any("spool: 3 parts 'rows' of" in note and "are needed and made again" in note for note in notes.notes)
    assert embedding(output) == before
    assert spooled_parts(output) == []


@pytest.mark.usefixtures("small_parts")
def test_without_the_array_the_error_says_what_to_do(digits_300, embed_rows):
    output = embed_rows(digits_300)
    uncommit_parts(output, ["vectors"])
    config = load_config(None, (), {"input.path": location_of(rows_of(digits_300)), "output": output, **SETTINGS})
    with pytest.raises(InputError, match=r"call dumap\.run again with the same data and this output"):
        pipeline.run(config)


@pytest.mark.usefixtures("small_parts")
def test_a_damaged_part_of_the_copy_is_copied_again(digits_300, embed_rows):
    output = embed_rows(digits_300, keep="all")
    before = embedding(output)
    file = next(Path(output, PARTS, SPOOL).glob("rows-00001-*"))
    file.write_bytes(file.read_bytes()[:-9] + b"nonsense!")
    assert [part for _, part, _ in verify(output)] == ["rows-00001"]
    uncommit_damage(output, verify(output), print)
    notes = NoteRecorder()
    embed_rows(digits_300, output, observer=notes, keep="all")
    assert verify(output) == []
    assert embedding(output) == before
    uncommit_parts(output, ["vectors"])
    file = next(Path(output, PARTS, SPOOL).glob("rows-00002-*"))
    file.unlink()
    embed_rows(digits_300, output, observer=notes, keep="all")
    assert any("rows-00002" in note and "made again" in note for note in notes.notes)
    assert verify(output) == []


@pytest.mark.usefixtures("small_parts")
def test_a_child_of_an_arrays_run_reads_what_is_equal(digits_300, new_path, embed_rows):
    parent = embed_rows(digits_300)
    object_rows = rows_of(digits_300)
    settings = {
        "input.path": location_of(object_rows),
        "output": new_path("run.zarr"),
        **SETTINGS,
        "layout.min_dist": 0.5,
    }
    state = pipeline.run(load_config(None, (), settings), parent=parent, object_rows=object_rows)
    made_here = [stage["name"] for stage in state["stages"] if stage["from"] is None]
    assert made_here == ["spool", "start", "layout", "embedding", "quality"]
    assert embedding(settings["output"]) == embedding(embed_rows(digits_300, **{"layout.min_dist": 0.5}))


@pytest.mark.slow
def test_workers_read_what_this_process_copied(digits_300, embed_rows, client):
    output, observer = embed_rows(digits_300), NoteRecorder()
    assert embedding(embed_rows(digits_300, client=client, observer=observer)) == embedding(output)


def test_a_plan_of_an_array_has_its_copy():
    path = location_of(rows_of(np.zeros((5000, 64), np.float32)))
    plan = pipeline.plan(load_config(None, (), {"input.path": path, "output": "nowhere.zarr"}))
    assert plan.stage("spool").disk_bytes == 5000 * 64 * 4
    assert plan.final_disk_bytes < plan.peak_disk_bytes
    assert plan.stages[0].name == "spool"


def test_manifests_lie_where_those_of_stages_do(digits_300, embed_rows):
    assert len(list(Path(embed_rows(digits_300), MANIFESTS, SPOOL).iterdir())) == 1
