"""Objects that a program gives as data: what is taken, what is refused, and where it is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
import zarr
from zarr.storage import MemoryStore, ZipStore

import dumap
from dumap.errors import ConfigError, InputError
from dumap.sources.objects import paths_of, rows_of
from dumap.sources.spooled import SpooledInput, location_of

VALUES = np.arange(6.0).reshape(3, 2)


class Made:
    """Something that makes an array of itself."""

    def __array__(self, dtype=None, copy=None):
        return np.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (np.arange(6, dtype=">f4").reshape(3, 2), "float32"),
        (np.asfortranarray(np.arange(6, dtype="f2").reshape(3, 2)), "float16"),
        (np.arange(12, dtype="i8").reshape(3, 4)[:, ::2], "int64"),
        (np.eye(3, 2, dtype=bool), "bool"),
        (np.ma.MaskedArray(np.ones((3, 2), "u1")), "uint8"),
        (Made(), "float64"),
    ],
    ids=["big_endian", "fortran", "strided", "bool", "masked_nowhere", "made"],
)
def test_rows_of_an_object_come_in_native_order(data, dtype):
    rows = rows_of(data)
    assert (rows.rows, rows.dims, rows.dtype) == (3, 2, np.dtype(dtype))
    values = rows.read(1, 3)
    assert values.flags.c_contiguous
    assert values.dtype.isnative
    assert values.tolist() == np.asarray(data)[1:].tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones(3), r"the numpy.ndarray has shape \(3,\); dumap reads \(rows, dims\)"),
        (np.ones((3, 2), complex), "has dtype complex128; allowed are real floats"),
        (np.array([["a", "b"]]), "has dtype <U1"),
        (np.empty((0, 2)), "is empty"),
        (np.ma.masked_less(np.arange(4).reshape(2, 2), 2), "values that are masked: fill them"),
    ],
    ids=["1-D", "complex", "text", "empty", "masked"],
)
def test_objects_without_rows_of_numbers_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        rows_of(data)


@pytest.mark.parametrize(
    "data", [object(), 3, {"x": VALUES}, xr.Dataset({"x": (("r", "c"), VALUES)})], ids=lambda data: type(data).__name__
)
def test_the_refusal_of_an_object_lists_what_is_taken(data):
    with pytest.raises(ConfigError, match=r"cannot be embedded: give the path|holds several arrays"):
        rows_of(data)


KINDS = ["csr_matrix", "csr_array", "csc_matrix", "coo_array", "dok_matrix"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_matrix_of_any_kind_is_read_by_rows(kind):
    object_rows = rows_of(getattr(scipy.sparse, kind)(VALUES))
    assert (object_rows.sparse, object_rows.kind, object_rows.entries) == (
        True,
        f"scipy.{kind}",
        np.count_nonzero(VALUES),
    )
    assert object_rows.token == rows_of(scipy.sparse.csr_matrix(VALUES)).token
    rows = object_rows.read(1, 3)
    assert rows.dtype == VALUES.dtype
    assert np.array_equal(rows.toarray(), VALUES[1:3])
    location = location_of(object_rows)
    spooled = SpooledInput(location)
    assert (spooled.sparse, spooled.entries, spooled.max_window_entries) == (
        True,
        object_rows.entries,
        object_rows.max_window_entries,
    )


def test_a_sparse_matrix_is_left_as_it_is():
    data, indices = np.array([1.0, 2, 0, 3]), np.array([2, 0, 1, 2])
    matrix = scipy.sparse.csr_matrix((data, indices, np.array([0, 4])), shape=(1, 3))
    assert rows_of(matrix).read(0, 1).toarray().tolist() == [[2, 0, 4]]
    assert (matrix.data.tolist(), matrix.indices.tolist()) == ([1, 2, 0, 3], [2, 0, 1, 2])
    other = scipy.sparse.csr_matrix(np.array([[2.0, 0, 4]]))
    assert rows_of(matrix).token == rows_of(other).token != rows_of(other * 2).token
    matrix.indices[0] = 7
    with pytest.raises(InputError, match=r"scipy.csr_matrix, rows 0 to 1: its indices are damaged"):
        rows_of(matrix).read(0, 1)


def test_a_data_frame_is_of_numbers():
    frame = pd.DataFrame({"a": np.array([1, 2, 3], "i2"), "b": np.array([0.5, 1, 2], "f4"), "c": [True, False, True]})
    rows = rows_of(frame)
    assert (rows.rows, rows.dims, rows.dtype) == (3, 3, np.float32)
    assert rows.read(1, 3).tolist() == [[2, 1, 0], [3, 2, 1]]
    assert rows_of(frame.set_index("a")).dims == 2
    with pytest.raises(InputError, match="hold no numbers: name, when; leave them out"):
        rows_of(frame.assign(name=list("xyz"), when=pd.Timestamp(0)))
    with pytest.raises(InputError, match="one column"):
        rows_of(frame["a"])


def test_missing_values_of_a_data_frame_are_not_finite():
    frame = pd.DataFrame({"a": pd.array([1.5, None, 3], "Float32"), "b": pd.array([1, 2, 3], "Int8")})
    rows = rows_of(frame)
    assert rows.dtype == np.float32
    assert np.array_equal(rows.read(0, 3), [[1.5, 1], [np.nan, 2], [3, 3]], equal_nan=True)
    with pytest.raises(InputError, match="fill what is missing"):
        rows_of(pd.DataFrame({"a": pd.array([1, None], "Int8")})).read(0, 2)


def test_objects_that_read_rows_are_read_in_ranges(tmp_path):
    requested = []

    class Noting(xr.backends.BackendArray):
        shape, dtype = (1000, 2), np.dtype("f4")

        def __getitem__(self, key):
            requested.append(key.tuple[0])
            return np.ones((1000, 2), "f4")[key.tuple]

    lazy = xr.core.indexing.LazilyIndexedArray(Noting())
    rows = rows_of(xr.DataArray(lazy, dims=("row", "component")))
    assert (rows.rows, rows.dims, rows.dtype, requested) == (1000, 2, np.float32, [])
    assert rows.read(10, 20).shape == (10, 2)
    assert requested == [slice(10, 20, 1)]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        assert rows_of(file.create_dataset("x", data=VALUES)).read(1, 3).tolist() == VALUES[1:].tolist()
    memory = zarr.create_array(MemoryStore(), data=VALUES)
    assert paths_of(memory) is None
    assert rows_of(memory).read(0, 2).tolist() == VALUES[:2].tolist()


def test_an_array_of_zarr_is_read_where_it_lies(tmp_path):
    group = zarr.create_group(tmp_path / "in.zarr")
    inner, alone = group.create_array("deep/x", data=VALUES), zarr.create_array(tmp_path / "x.zarr", data=VALUES)
    assert paths_of(inner) == {"path": str(tmp_path / "in.zarr"), "array": "deep/x"}
    assert paths_of(alone) == {"path": str(tmp_path / "x.zarr")}
    file = shutil.make_archive(str(tmp_path / "in.zarr"), "zip", tmp_path / "in.zarr")
    with ZipStore(file, mode="r") as store:
        assert paths_of(zarr.open_array(store, path="deep/x", mode="r")) == {"path": file, "array": "deep/x"}


def test_paths_are_settings(tmp_path):
    assert paths_of("DATA.zarr") == {"path": "DATA.zarr"}
    assert paths_of([Path("a.zarr"), "b.zarr"]) == {"path": ["a.zarr", "b.zarr"]}
    assert paths_of([[1.0, 2.0]]) is None


# whole runs ----------------------------------------------------------------------------------------

QUICK = {"n_epochs": 5, "quality": {"queries": 0}, "audit": {"queries": 0}, "cluster": {"engine": "local"}}


@pytest.fixture(scope="module")
def expected(digits_300, save, new_path):
    """Bytes of the embedding of the same rows, saved as a Zarr array."""
    return dumap.run(save(digits_300), output=new_path("run.zarr"), **QUICK).embedding[:].tobytes()


@pytest.mark.parametrize(
    "convert",
    [np.asfortranarray, pd.DataFrame, lambda x: xr.DataArray(x, dims=("r", "c"))],
    ids=["numpy", "pandas", "xarray"],
)
def test_the_same_rows_come_to_the_same_map_whatever_holds_them(digits_300, expected, new_path, convert):
    result = dumap.run(convert(digits_300), output=new_path("run.zarr"), **QUICK)
    assert result.embedding[:].tobytes() == expected
    assert dumap.plan(convert(digits_300), output="nowhere.zarr").stages[0].name == "spool"


def test_a_zarr_array_is_not_copied(digits_300, expected, save, new_path):
    array = zarr.open_group(save(digits_300), mode="r")["vectors"]
    result = dumap.run(array, output=new_path("run.zarr"), **QUICK)
    assert result.embedding[:].tobytes() == expected
    assert result["stages"][0]["name"] == "vectors"


def test_data_and_a_path_beside_it_are_one_too_many(digits_300):
    with pytest.raises(ConfigError, match=r"input\.path"):
        dumap.run(digits_300, output="RUN.zarr", input={"path": "DATA.zarr"})
