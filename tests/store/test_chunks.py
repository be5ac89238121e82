"""Chunks of the input that are not there: found by one listing, and refused or filled, never silently."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from dumap.artifacts.job import Job
from dumap.errors import InputError
from dumap.recipe.identity import check_chunks
from dumap.recipe.pipeline import plan, run
from dumap.sources.zarr_array import ArrayInput, PrecomputedNeighbors
from dumap.store import chunks, read_array

VALUES = np.arange(1, 81, dtype=np.float32).reshape(20, 4)
TINY = {"neighbors.n_neighbors": 3, "layout.n_epochs": 5}
SEPARATED = {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}}
LAYOUTS = {
    "v2": ({"zarr_format": 2}, "{}.{}"),
    "v2_nested": (SEPARATED, "{}/{}"),
    "v3": ({"zarr_format": 3}, "c/{}/{}"),
    "v3_flat": ({"zarr_format": 3, "chunk_key_encoding": {"name": "default", "separator": "."}}, "c.{}.{}"),
    "v3_as_v2": ({"zarr_format": 3, "chunk_key_encoding": {"name": "v2", "separator": "."}}, "{}.{}"),
}


def make(path: Path, values: np.ndarray = VALUES, chunk: tuple[int, ...] = (6, 3), **options) -> Path:
    """Write an array as 'vectors' of a group; return its folder."""
    store = zarr.open_group(path, mode="a", zarr_format=options.get("zarr_format", 3)).store
    zarr.create_array(
        store, name="vectors", shape=values.shape, dtype=values.dtype, chunks=chunk, fill_value=0, **options
    )[...] = values
    return path / "vectors"


@pytest.mark.fault(46)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_absent_chunks_are_counted_and_named(tmp_path, layout, form):
    options, key = LAYOUTS[layout]
    folder = make(tmp_path / "in.zarr", **options)
    for index in ((0, 1), (1, 0), (3, 0), (3, 1)):
        (folder / key.format(*index)).unlink()
    path = str(tmp_path / "in.zarr")
    path = shutil.make_archive(path, "zip", path) if form == "zip" else path
    missing_chunks = ArrayInput(path, "vectors").missing_chunks
    assert (missing_chunks.chunks, missing_chunks.of, missing_chunks.rows) == (4, 8, 14)
    assert missing_chunks.keys == [key.format(*index) for index in ((0, 1), (1, 0), (3, 0), (3, 1))]
    assert missing_chunks.spans == [(0, 12), (18, 20)]
    with pytest.raises(InputError, match=r"4 of 8 chunks .*14 rows .*lost.*never written.*write_empty_chunks") as error:
        ArrayInput(path, "vectors").require_chunks("input.missing=fill")
    assert "--set input.missing=fill" in str(error.value)


@pytest.mark.fault(46)
@pytest.mark.parametrize("options", [{}, {"shards": (12, 4), "chunks": (6, 2)}], ids=["chunks", "shards"])
def test_chunks_that_are_there_are_not_missed(tmp_path, options):
    """Nor are chunks within a shard, which Zarr leaves out for good reason; nor what lies beyond the array's end."""
    values = VALUES.copy()
    values[:6] = 0 if options else values[:6]
    folder = make(tmp_path / "in.zarr", values, options.pop("chunks", (6, 3)), **options)
    (folder / "c" / "9").mkdir()
    (folder / "c" / "9" / "0").write_bytes(b"")
    (folder / "notes.txt").write_text("3/0")
    array = ArrayInput(str(tmp_path / "in.zarr"), "vectors")
    assert array.missing_chunks.chunks == 0
    array.require_chunks()
    assert array.read(0, 20).tolist() == values.tolist()


@pytest.mark.fault(46)
def test_chunks_behind_links_are_there_and_broken_links_are_not(tmp_path):
    folder = make(tmp_path / "in.zarr")
    shutil.move(folder / "c", tmp_path / "elsewhere")
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    assert ArrayInput(str(tmp_path / "in.zarr"), "vectors").missing_chunks.chunks == 0
    (tmp_path / "elsewhere" / "1" / "0").unlink()
    (tmp_path / "elsewhere" / "1" / "0").symlink_to(tmp_path / "gone")
    assert ArrayInput(str(tmp_path / "in.zarr"), "vectors").missing_chunks.keys == ["c/1/0"]


@pytest.mark.fault(46)
def test_an_array_of_which_nothing_is_there(tmp_path):
    folder = make(tmp_path / "in.zarr")
    shutil.rmtree(folder / "c")
    missing_chunks = ArrayInput(str(tmp_path / "in.zarr"), "vectors").missing_chunks
    assert (missing_chunks.chunks, missing_chunks.rows, missing_chunks.spans) == (8, 20, [(0, 18)])
    assert str(missing_chunks).startswith(
        "8 of 8 chunks are not there (c/0/0, c/0/1, c/1/0, c/1/1, c/2/0, ...), of 20 rows"
    )


@pytest.mark.fault(46)
def test_a_grid_far_larger_than_what_is_there_takes_no_memory(tmp_path):
    folder = make(tmp_path / "in.zarr")
    metadata = json.loads((folder / "zarr.json").read_text())
    (folder / "zarr.json").write_text(json.dumps({**metadata, "shape": [6 * 10**12, 4]}))
    missing_chunks = ArrayInput(str(tmp_path / "in.zarr"), "vectors").missing_chunks
    assert (missing_chunks.chunks, missing_chunks.of) == (2 * 10**12 - 8, 2 * 10**12)
    assert missing_chunks.keys == ["c/4/0", "c/4/1", "c/5/0", "c/5/1", "c/6/0"]


@pytest.mark.fault(46)
@pytest.mark.parametrize("missing", ["error", "fill"])
def test_chunks_in_folders_that_the_metadata_do_not_name_are_told_of(configure, tmp_path, missing):
    """As writers left them that did not yet say so; to fill what is there elsewhere would be no help."""
    folder = make(tmp_path / "in.zarr", **SEPARATED)
    metadata = json.loads((folder / ".zarray").read_text())
    assert metadata.pop("dimension_separator") == "/"
    (folder / ".zarray").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match=r"8 of 8 chunks .*but 0/0, 0/1, .* another layout .*dimension_separator"):
        run(configure(str(tmp_path / "in.zarr"), {**TINY, "input.missing": missing}))


@pytest.mark.fault(46)
@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_chunks_that_cannot_be_listed(tmp_path):
    folder = make(tmp_path / "in.zarr")
    (folder / "c" / "1").chmod(0)
    with pytest.raises(InputError, match=r"chunks cannot be listed .*not allowed"):
        _ = ArrayInput(str(tmp_path / "in.zarr"), "vectors").missing_chunks


@pytest.mark.fault(46)
def test_a_run_refuses_absent_chunks_before_anything_is_made_and_fills_them_when_told(configure, embed, tmp_path):
    folder = make(tmp_path / "in.zarr", chunk=(5, 4))
    (folder / "c" / "2" / "0").unlink()
    config = configure(str(tmp_path / "in.zarr"), TINY)
    with pytest.raises(InputError, match=r"1 of 4 chunks are not there \(c/2/0\), of 5 rows \(rows 10 to 14\)"):
        run(config)
    assert not Path(config.output).exists()
    done = embed(str(tmp_path / "in.zarr"), {**TINY, "input.missing": "fill"})
    assert done.facts("vectors")["missing_chunks"] == 1
    assert np.flatnonzero(done.flags).tolist() == [10, 11, 12, 13, 14], "zero rows are flagged"
    assert "missing" not in done.status["parameters"]["input"], "it is no part of what the answer depends on"


@pytest.mark.fault(46)
def test_filled_chunks_are_noted(configure, tmp_path):
    folder, notes = make(tmp_path / "in.zarr", chunk=(5, 4)), []
    (folder / "c" / "2" / "0").unlink()
    config = configure(str(tmp_path / "in.zarr"), {"input.missing": "fill"})
    check_chunks(Job(config, plan(configure(str(tmp_path / "in.zarr"), TINY)).geometry), notes.append)
    (message,) = notes
    assert "1 of 4 chunks are not there (c/2/0), of 5 rows (rows 10 to 14); they are read as" in message


@pytest.mark.fault(46)
def test_other_arrays_that_are_read_are_refused_too(configure, save, tmp_path):
    zeros = tmp_path / "zeros.zarr"
    zarr.create_array(zeros, data=np.repeat([1.0, 0.0], 10), chunks=(5,))
    with pytest.raises(InputError, match=r"zeros.zarr.*2 of 4 chunks .*write_empty_chunks=True"):
        read_array(str(zeros))
    start = tmp_path / "start.zarr"
    zarr.create_array(start, data=np.repeat([[1.0, 0.0], [0.0, 0.0]], 10, axis=0), chunks=(10, 2))
    with pytest.raises(InputError, match=r"start.zarr.*1 of 2 chunks"):
        run(configure(save(VALUES), {**TINY, "start.init": str(start)}))
    given = zarr.create_group(tmp_path / "given.zarr")
    given.create_array("indices", data=np.tile(np.arange(4), (20, 1)), chunks=(20, 4))
    given.create_array("distances", data=np.repeat([[0.0], [1.0]], 10, axis=0) * np.ones((1, 4)), chunks=(10, 4))
    with pytest.raises(InputError, match=r"array 'distances': 1 of 2 chunks"):
        PrecomputedNeighbors(str(tmp_path / "given.zarr"), 20).require_chunks()


def test_missing_numbers_are_the_first_ones():
    for present in ([], [0], [3], [0, 1, 2, 4], [1, 3, 5, 7, 9], [8, 9], list(range(10))):
        expected = [number for number in range(10) if number not in present][: chunks.MAX_LISTED]
        assert chunks._first_missing(np.array(present, np.int64), 10).tolist() == expected
