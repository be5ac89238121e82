"""A run as others see it: with Zarr, xarray and Dask, without a warning."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import dask.array
import numpy as np
import pytest
import zarr

from dumap.config import load_config
from dumap.recipe.damage import clean, verify
from dumap.recipe.pipeline import run
from dumap.store import INSIDE

SETTINGS = {"cluster.engine": "local", "layout.n_epochs": 10, "audit.queries": 50}


@pytest.fixture(scope="module")
def finished_path(save, new_path, digits) -> str:
    """Return the path of a finished run; one row of its input was dropped."""
    x = digits[0][:300].copy()
    x[7] = np.nan
    output = new_path("run.zarr")
    given = {"input.path": save(x), "output": output, "input.nonfinite": "drop", **SETTINGS}
    run(load_config(None, (), given))
    return output


@pytest.fixture
def copy_of_run(finished_path, new_path) -> str:
    """Return the path of a copy, for one test to change."""
    return shutil.copytree(finished_path, new_path("run.zarr"))


def test_all_else_lies_in_one_folder(finished_path):
    assert {path.name for path in Path(finished_path).iterdir()} == {"zarr.json", "embedding", "status", INSIDE}


@pytest.mark.parametrize("consolidated", [None, False, True])
def test_zarr_sees_the_results_and_warns_of_nothing(finished_path, consolidated):
    group = zarr.open_group(finished_path, mode="r", use_consolidated=consolidated)
    assert {name for name, _ in group.arrays()} == {"embedding", "status"}
    everything = {name for name, _ in group.members(max_depth=None)}
    assert {name for name in everything if not name.startswith(INSIDE)} == {"embedding", "status"}
    assert len(everything) <= 6, "nothing is listed of what dumap's own folders hold"
    assert "status" in str(group.tree())
    assert group["embedding"].metadata.dimension_names == ("row", "component")
    assert set(group.attrs) == {"dumap"}


@pytest.mark.parametrize("consolidated", [None, False, True])
def test_xarray_opens_it_lazily_and_warns_of_nothing(finished_path, consolidated):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    dataset = xarray.open_zarr(finished_path, consolidated=consolidated)
    assert set(dataset.variables) == {"embedding", "status"}
    assert dict(dataset.sizes) == {"row": 300, "component": 2}
    assert (dataset.embedding.dtype, dataset.status.dtype) == (np.float32, np.uint8)
    assert dataset.embedding.chunks is not None
    assert {"long_name"} <= set(dataset.embedding.attrs)
    attributes = dataset.status.attrs
    flags = dict(zip(attributes["flag_meanings"].split(), attributes["flag_masks"], strict=True))
    assert flags == {"dropped": 1, "isolated": 2, "zero": 4, "duplicate": 8}
    dropped = (dataset.status & flags["dropped"]) > 0
    assert np.flatnonzero(dropped.values).tolist() == [7]
    assert np.isnan(dataset.embedding.values).any(axis=1).tolist() == dropped.values.tolist()


def test_dask_opens_it(finished_path):
    y = dask.array.from_zarr(finished_path, component="embedding")
    assert y.shape == (300, 2)
    assert int(dask.array.isnan(y).sum().compute(scheduler="synchronous")) == 2


def test_consolidated_metadata_equal_zarrs(copy_of_run):
    before = json.loads(Path(copy_of_run, "zarr.json").read_text())["consolidated_metadata"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")  # and of nothing else
        zarr.consolidate_metadata(copy_of_run)
    after = json.loads(Path(copy_of_run, "zarr.json").read_text())["consolidated_metadata"]
    assert {name: entry for name, entry in after["metadata"].items() if not name.startswith(INSIDE)} == before[
        "metadata"
    ]
    assert verify(copy_of_run) == []


def test_arrays_and_attributes_of_others_are_seen_after_the_next_command(copy_of_run):
    group = zarr.open_group(copy_of_run, mode="r+", use_consolidated=False)
    group.create_array("labels", data=np.arange(300))
    group.create_group("more").create_array("deep", data=np.arange(3))
    group.attrs["note"] = "mine"
    group["embedding"].attrs["units"] = "none"
    Path(copy_of_run, "odd").mkdir()
    Path(copy_of_run, "odd", "zarr.json").write_text('{"zarr_format": 3, "node_type": "array"}')
    assert verify(copy_of_run) == []
    clean(copy_of_run, print)
    group = zarr.open_group(copy_of_run, mode="r", use_consolidated=True)
    assert {name for name, _ in group.members(max_depth=None)} == {"embedding", "labels", "more", "more/deep", "status"}
    assert (group.attrs["note"], group["embedding"].attrs["units"]) == ("mine", "none")
    assert group["more/deep"][:].tolist() == [0, 1, 2]
    assert verify(copy_of_run) == []
    assert clean(copy_of_run, print)[1] == sorted(["labels/c/0", "labels/zarr.json", "more/deep/c/0", *ZARRS])


ZARRS = ["more/deep/zarr.json", "more/zarr.json", "odd/zarr.json"]


def test_wrong_consolidated_metadata_of_the_results_are_damage(copy_of_run):
    file = Path(copy_of_run, "zarr.json")
    document = json.loads(file.read_text())
    document["consolidated_metadata"]["metadata"]["embedding"]["shape"] = [3, 2]
    file.write_text(json.dumps(document))
    assert [key for _, _, key in verify(copy_of_run)] == ["zarr.json"]
    clean(copy_of_run, print)
    assert verify(copy_of_run) == []


def test_missing_consolidated_metadata_are_no_damage(copy_of_run):
    file = Path(copy_of_run, "zarr.json")
    document = json.loads(file.read_text())
    del document["consolidated_metadata"]
    file.write_text(json.dumps(document))
    assert verify(copy_of_run) == []
