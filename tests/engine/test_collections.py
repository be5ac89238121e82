"""Dask collections: which rows are taken of them, and that each chunk is computed once."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from hypothesis import given
from hypothesis import strategies as st

import dumap
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import part_names
from dumap.config import load_config
from dumap.engine.collections import DaskRows, assemble_blocks, is_collection
from dumap.engine.connect import connect
from dumap.errors import InputError, RunMismatchError
from dumap.recipe.observers import SilentObserver
from dumap.recipe.recipes import geometry_of
from dumap.sources import spooled
from dumap.stages.spool import write_spool_part
from dumap.store import Run

QUICK = {"n_epochs": 5, "quality": {"queries": 0}, "audit": {"queries": 0}}
LOCAL = {**QUICK, "cluster": {"engine": "local"}}


@pytest.fixture
def small_parts(monkeypatch):
    """Let a part have 100 rows of the digits."""
    monkeypatch.setattr(spooled, "PART_BYTES", 100 * 64 * 4)


@pytest.fixture(scope="module")
def expected(digits_300, save, new_path):
    """Bytes of the embedding of the same rows, saved as a Zarr array."""
    return dumap.run(save(digits_300), output=new_path("run.zarr"), **LOCAL).embedding[:].tobytes()


ODD = ((1, 130, 0, 68, 101), (60, 4))
"""Chunks of the few digits' rows and columns."""


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data()
)
def test_slices_of_chunks_are_the_rows_of_a_part(rows, columns, data):
    x = np.arange(sum(rows) * sum(columns)).reshape(sum(rows), sum(columns))
    if not len(x):
        return
    start = data.draw(st.integers(0, len(x) - 1))
    stop = data.draw(st.integers(start + 1, len(x)))
    object_rows = DaskRows(da.from_array(x, chunks=(tuple(rows), tuple(columns))))
    (grid,) = (grid for _, grid in object_rows.part_grids({"part": (start, stop)}))
    assert (
        assemble_blocks(dask.compute(grid, scheduler="sync")[0], object_rows.dtype).tolist() == x[start:stop].tolist()
    )


def test_collections_of_rows_are_recognised():
    frame = dd.from_pandas(pd.DataFrame({"a": [1.0, 2.0]}), npartitions=1)
    assert [is_collection(data) for data in (da.ones((3, 2)), frame, np.ones((3, 2)), dask.delayed(1))] == [
        *(True, True, False, False)
    ]


def test_unknown_chunks_are_refused_with_what_to_do(digits_300):
    x = da.from_array(digits_300, chunks=(100, 64))
    selected = x[x[:, 20] > 3]
    with pytest.raises(InputError, match=r"does not know how many rows .*call compute_chunk_sizes\(\)"):
        dumap.run(selected, output="nowhere.zarr", **LOCAL)
    assert DaskRows(selected.compute_chunk_sizes()).rows == int((digits_300[:, 20] > 3).sum())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (da.ones(5), r"has shape \(5,\); dumap reads \(rows, dims\)"),
        (da.ones((5, 2), dtype=complex), "has dtype complex128"),
        (da.ones((0, 2)), "is empty"),
    ],
    ids=["1-D", "complex", "empty"],
)
def test_collections_without_rows_of_numbers_are_refused(array, message):
    with pytest.raises(InputError, match=message):
        DaskRows(array)


def test_a_frame_of_other_columns_is_refused():
    frame = dd.from_pandas(pd.DataFrame({"a": [1.0, 2.0], "name": ["x", "y"]}), npartitions=1)
    with pytest.raises(InputError, match="hold no numbers: name"):
        DaskRows(frame)


def test_the_name_tells_one_array_from_another(digits_300):
    x = da.from_array(digits_300, chunks=(100, 64))
    assert DaskRows(x).token == DaskRows(da.from_array(digits_300, chunks=(100, 64))).token
    assert (
        len({DaskRows(array).token for array in (x, x + 1, x[:-1], da.from_array(digits_300 + 1, chunks=(100, 64)))})
        == 4
    )


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: xr.DataArray(x, dims=("r", "c"))], ids=["dask", "xarray"])
def test_an_array_of_odd_chunks_comes_to_the_bytes_of_a_store(digits_300, expected, new_path, wrap):
    result = dumap.run(wrap(da.from_array(digits_300, chunks=ODD)), output=new_path("run.zarr"), **LOCAL)
    assert result.embedding[:].tobytes() == expected
    assert result["stages"][0]["parts"] == 3


def test_a_frame_comes_to_the_bytes_of_a_store(digits_300, expected, new_path):
    frame = dd.from_pandas(pd.DataFrame(digits_300), npartitions=4)
    assert dumap.run(frame, output=new_path("run.zarr"), **LOCAL).embedding[:].tobytes() == expected


@pytest.mark.usefixtures("small_parts")
def test_a_task_that_several_chunks_share_is_computed_once(digits_300, new_path):
    made = []

    def make(block):
        made.append(block.shape)
        return block

    x = da.from_array(digits_300, chunks=(70, 64)).map_blocks(make, dtype=digits_300.dtype, meta=digits_300[:0])
    result = dumap.run(x - x.mean(axis=0), output=new_path("run.zarr"), **LOCAL)
    assert result["state"] == "done"
    assert sorted(made) == [(20, 64), *[(70, 64)] * 4]


@pytest.mark.usefixtures("small_parts")
def test_a_failed_copy_is_gone_on_with(digits_300, new_path):
    made, failing = [], [True]

    def make(block, block_info):
        at = block_info[0]["chunk-location"][0]
        made.append(at)
        if at == 2 and failing[0]:
            raise ZeroDivisionError("by nothing")
        return block

    x = da.from_array(digits_300, chunks=(100, 64)).map_blocks(
        make, dtype=digits_300.dtype, meta=digits_300[:0], name="made"
    )
    output = new_path("run.zarr")
    with pytest.raises(InputError, match=r"the dask.Array cannot be computed \(ZeroDivisionError: by nothing\)"):
        dumap.run(x, output=output, **LOCAL)
    there = dumap.status(output)["stages"][0]["parts"]
    made.clear()
    failing[0] = False
    assert dumap.run(x, output=output, **LOCAL)["state"] == "done"
    assert len(made) == 3 - there, "what was committed is not computed again"
    with pytest.raises(RunMismatchError, match=r"other data than the dask\.Array"):
        dumap.run(x + 1, output=output, **LOCAL)


@pytest.mark.slow
def test_workers_compute_what_they_write(digits_300, expected, new_path, client):
    x = da.from_array(digits_300, chunks=ODD)
    result = dumap.run(x, output=new_path("run.zarr"), client=client, **QUICK)
    assert result.embedding[:].tobytes() == expected
    persisted = client.persist(x + 0)
    assert dumap.run(persisted, output=new_path("run.zarr"), **QUICK).embedding[:].tobytes() == expected, (
        "by its client"
    )


@pytest.mark.slow
def test_an_array_that_cannot_be_computed_is_an_error(digits_300, new_path, client):
    def fail(block):
        raise ZeroDivisionError("by nothing")

    x = da.from_array(digits_300, chunks=ODD).map_blocks(fail, dtype=digits_300.dtype, meta=digits_300[:0])
    with pytest.raises(InputError, match=r"cannot be computed \(ZeroDivisionError: by nothing\)"):
        dumap.run(x, output=new_path("run.zarr"), client=client, **QUICK)


class KillsAWorker(SilentObserver):
    """Kills one of a client's workers once the first parts of the copy are there."""

    def __init__(self, client: Client) -> None:
        self.client, self.killed = client, 0

    def advanced(self, stage: str, done: float, total: float) -> None:
        if stage == "spool" and done and not self.killed:
            self.killed = next(iter(self.client.run(os.getpid).values()))
            os.kill(self.killed, signal.SIGKILL)


@pytest.mark.faults
@pytest.mark.slow
def test_a_worker_that_dies_as_it_copies_is_made_up_for(new_path):
    x = da.random.default_rng(0).normal(size=(400_000, 32), chunks=((77_777,) * 5 + (11_115,), (20, 12)))
    x = x.astype(np.float32)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        output, killer = new_path("run.zarr"), KillsAWorker(client)
        object_rows = DaskRows(x)
        config = load_config(
            None, (), {"input.path": spooled.location_of(object_rows), "output": output, "keep": "all"}
        )
        job = Job(config, geometry_of(config), object_rows=object_rows)
        with connect(config.cluster, client, killer) as engine:
            engine.preflight()
            advanced = lambda done, total: killer.advanced("spool", done, total)  # noqa: E731
            names = part_names("rows", job.input.parts)
            engine.spool(write_spool_part, replace(job, stage=spooled.SPOOL), names, {}, advanced)
        expected = x[99_999:200_001].compute(scheduler="threads")
    assert killer.killed
    assert Run(output).committed_parts(spooled.SPOOL) == names
    assert np.array_equal(job.input.read(99_999, 200_001), expected)
