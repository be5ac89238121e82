"""Names of rows go from the input to the results."""

from __future__ import annotations

import json
import warnings

import anndata
import numpy as np
import pandas
import pytest
import xarray
import zarr
from pyarrow import parquet

import dumap
from dumap.store.row_names import find_row_names, normalize_names

QUICK = {"n_neighbors": 5, "n_epochs": 2, "audit": {"queries": 0}, "cluster": {"engine": "local"}, "init": "random"}
NAMES = [f"row-{number * 7 % 40}" for number in range(40)]


@pytest.fixture(scope="module")
def x(digits_300) -> np.ndarray:
    """Return the first 40 digits."""
    return digits_300[:40]


@pytest.fixture
def embed_rows(new_path):
    """Return a function that embeds data on the local engine."""
    return lambda data, **settings: dumap.run(data, output=new_path("run.zarr"), **QUICK, **settings)


def annotated(x) -> anndata.AnnData:
    adata = anndata.AnnData(x)
    adata.obs_names = NAMES
    return adata


def stored(data, path) -> str:
    """Write what anndata or xarray can write itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of formats to come
        data.write_zarr(path) if isinstance(data, anndata.AnnData) else data.to_zarr(path)
    return path


MADE = {
    "pandas": lambda x, path: pandas.DataFrame(x, index=NAMES),
    "AnnData": lambda x, path: annotated(x),
    "xarray": lambda x, path: xarray.DataArray(x, dims=("cell", "gene"), coords={"cell": NAMES}),
    "AnnData's store": lambda x, path: stored(annotated(x), path),
    "xarray's store": lambda x, path: stored(
        xarray.Dataset({"vectors": (("cell", "gene"), x)}, coords={"cell": NAMES}), path
    ),
}


@pytest.mark.parametrize("kind", MADE)
def test_names_travel(kind, x, new_path, embed_rows):
    settings = {"input": {"array": "X"}} if kind == "AnnData's store" else {}
    result = embed_rows(MADE[kind](x, new_path("data.zarr")), **settings)
    assert result.row_names.tolist() == NAMES
    frame = result.to_dataframe()
    assert (frame.index.tolist(), frame.index.name) == (NAMES, "row")
    assert result.to_xarray()["embedding"].sel(row="row-7").shape == (2,)
    out = new_path("map.parquet")
    dumap.export(result, "embedding", out)
    assert parquet.read_table(out)["row"].to_pylist() == NAMES
    assert dumap.open_run(result.path).row_names.tolist() == NAMES
    assert xarray.open_zarr(result.path).indexes["row"].tolist() == NAMES
    assert dumap.verify(result) == []
    assert dumap.clean(result) == ([], [])


def test_numbers_stay_numbers_and_none_are_none(x, embed_rows, save):
    numbered = embed_rows(pandas.DataFrame(x, index=np.arange(40) * 3))
    assert numbered.to_dataframe().index.tolist() == list(range(0, 120, 3))
    assert numbered.row_names.dtype == np.int64
    for data in (x, pandas.DataFrame(x), save(x)):
        result = embed_rows(data)
        assert result.row_names is None
        assert result.to_dataframe().index.tolist() == list(range(40))
        assert "row" not in result.to_xarray().coords


def test_names_of_several_stores_follow_one_another(x, new_path, embed_rows, save):
    paths = [stored(annotated(x), new_path("cells.zarr")) for _ in range(2)]
    for path, names in zip(paths, (NAMES, NAMES[::-1]), strict=True):
        zarr.open_group(path)["obs/_index"][:] = np.array(names, object)
    assert embed_rows(paths, input={"array": "X"}).row_names.tolist() == NAMES + NAMES[::-1]
    zarr.open_group(paths[1])["obs"].attrs["_index"] = "gone"
    assert embed_rows(paths, input={"array": "X"}).row_names is None


def test_names_that_were_not_written_whole_are_written_again(x, new_path, monkeypatch):
    frame, output = pandas.DataFrame(x, index=NAMES), new_path("run.zarr")

    def fail(array, attributes):
        raise KeyboardInterrupt

    monkeypatch.setattr(zarr.Array, "update_attributes", fail)
    with pytest.raises(KeyboardInterrupt):
        dumap.run(frame, output=output, **QUICK)
    monkeypatch.undo()
    assert dumap.run(frame, output=output, **QUICK).row_names.tolist() == NAMES


def test_names_lie_beside_the_results_where_there_is_a_work_place(x, new_path, embed_rows):
    result = embed_rows(pandas.DataFrame(x, index=NAMES), work=new_path("work"))
    assert result.row_names.tolist() == NAMES
    assert xarray.open_zarr(result.path).indexes["row"].tolist() == NAMES


def test_the_estimator_hands_names_on(x):
    reducer = dumap.UMAP(n_neighbors=5, n_epochs=2).fit(pandas.DataFrame(x, index=NAMES))
    assert reducer.run_.to_dataframe().index.tolist() == NAMES


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (np.array(["2026-01-02"], "M8[D]"), ["2026-01-02"]),
        ([b"one", "two"], ["one", "two"]),
        (np.array([3], np.uint8), [3]),
        (np.array([0.5, 2]), ["0.5", "2.0"]),
        (pandas.MultiIndex.from_tuples([("a", 1)]), ["('a', 1)"]),
    ],
)
def test_names_are_whole_numbers_or_texts(values, names):
    assert normalize_names(values).tolist() == names


def test_bfloat16_has_names_too(tmp_path):
    group = zarr.create_group(tmp_path / "in.zarr")
    bits = (np.random.default_rng(0).random((40, 3), np.float32).view(np.uint32) >> 16).astype(np.uint16)
    group.create_array("vectors", data=bits, dimension_names=("cell", "gene"))
    group.create_array("cell", data=np.arange(100, 140))
    file = tmp_path / "in.zarr/vectors/zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "data_type": "bfloat16", "fill_value": 0.0}))
    row_names = find_row_names(str(tmp_path / "in.zarr"), "vectors", 40)
    assert row_names is not None
    assert np.concatenate(list(row_names.blocks())).tolist() == list(range(100, 140))
