"""Sparse matrices by rows in Zarr stores: read as they are, checked, and their damage named."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

from dumap.config import InputConfig
from dumap.errors import InputError
from dumap.kernels.csr import WINDOW_ROWS
from dumap.sources.csr_group import CsrInput, open_array
from dumap.sources.opening import open_source
from dumap.sources.stores import ConcatenatedInput


@pytest.fixture
def counts():
    """Counts of 300 rows in 50 columns, row 7 without any, row 9 with many."""
    rng = np.random.default_rng(0)
    x = rng.poisson(0.1, (300, 50)).astype("f4")
    x[7], x[9] = 0, rng.integers(1, 9, 50)
    return x


def write(path, x, zarr_format=3, sharded=False, dtype="f4", **arrays):
    """Write rows as anndata does, but for the arrays that are given."""
    rows = sp.csr_matrix(x)
    members = {"data": rows.data.astype(dtype), "indices": rows.indices, "indptr": rows.indptr, **arrays}
    attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(rows.shape)}
    group = zarr.create_group(path, zarr_format=zarr_format).create_group("X", attributes=attributes)
    for name, values in members.items():
        more = {"shards": (400,)} if sharded else {}
        group.create_array(name, data=values, chunks=(100,), **more)
    return str(path)


@pytest.mark.parametrize(
    "options", [{}, {"zarr_format": 2}, {"sharded": True}, {"dtype": "u2"}, {"dtype": "f2"}, {"dtype": "?"}]
)
def test_rows_are_read_as_they_are(tmp_path, counts, options):
    counts = counts > 0 if options.get("dtype") == "?" else counts
    source = open_source(InputConfig(path=write(tmp_path / "x.zarr", counts, **options), array="X"))
    assert isinstance(source, CsrInput)
    assert source.sparse
    assert (source.rows, source.dims, source.entries) == (300, 50, np.count_nonzero(counts))
    assert source.dtype == {"u2": np.uint16, "?": np.uint8}.get(options.get("dtype"), np.float32)
    for start, stop in ((0, 300), (5, 8), (7, 8), (120, 121), (299, 300)):
        rows = source.read(start, stop)
        assert (rows.dtype, rows.indices.dtype) == (source.dtype, np.int32)
        assert np.array_equal(rows.toarray(), counts[start:stop])
    assert source.max_window_entries == np.count_nonzero(counts[:WINDOW_ROWS])
    assert source.missing_chunks.chunks == 0


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_anndata_writes_is_read(tmp_path, counts, zarr_format):
    cells = anndata.AnnData(sp.csr_matrix(counts), layers={"double": sp.csr_matrix(2 * counts)})
    with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=zarr_format):
        warnings.simplefilter("ignore")
        cells.write_zarr(tmp_path / "cells.zarr")
    for name, factor in (("X", 1), ("layers/double", 2)):
        assert np.array_equal(open_array(str(tmp_path / "cells.zarr"), name).read(0, 300).toarray(), factor * counts)
    assert np.array_equal(open_array(str(tmp_path / "cells.zarr" / "X"), "vectors").read(3, 5).toarray(), counts[3:5])


def test_entries_are_sorted_and_added_up_and_zeros_left_out(tmp_path):
    arrays = {"data": np.array([1, 2, 3, 4, 0, 5, -5], "f4"), "indices": np.array([4, 0, 4, 1, 2, 3, 3], "i8")}
    path = write(tmp_path / "x.zarr", np.ones((2, 5)), indptr=np.array([0, 3, 7]), **arrays)
    rows = open_array(path, "X").read(0, 2)
    assert (rows.indices.tolist(), rows.data.tolist(), rows.indptr.tolist()) == ([0, 4, 1], [2, 4, 4], [0, 2, 3])


def damaged(name, at, value):
    def change(rows):
        array = getattr(rows, name).copy()
        array[at] = value
        return {name: array}

    return change


DAMAGE = [
    (damaged("indptr", 100, 0), r"group 'X': 'indptr' says that row 99 has the entries \d+ to 0"),
    (damaged("indptr", 0, 3), r"'indptr' is 3 at 0, and must be 0"),
    (damaged("indptr", 300, 5), r"'indptr' says that row 299 has the entries"),
    (damaged("indices", 0, 50), r"row 0 has an entry in column 50, of 50"),
    (damaged("indices", -1, -1), r"row 299 has an entry in column -1, of 50"),
    (lambda rows: {"data": rows.data[:-1]}, r"no CSR matrix of shape \(300, 50\).* data of shape"),
    (lambda rows: {"indptr": rows.indptr[:-1]}, r"301 bounds in 'indptr'.* indptr of shape \(300,\)"),
    (lambda rows: {"indices": rows.indices.astype("f4")}, r"'indices' has dtype float32; allowed are integers"),
    (lambda rows: {"data": rows.data.astype("c8")}, r"has dtype complex64; allowed are real floats"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_damage_is_told_with_its_place(tmp_path, counts, change, message):
    counts[299, 49] = 1
    path = write(tmp_path / "x.zarr", counts, **change(sp.csr_matrix(counts)))
    with pytest.raises(InputError, match=message):
        open_array(path, "X").read(0, 300)


def test_chunks_that_are_not_there_are_named(tmp_path, counts):
    path = write(tmp_path / "x.zarr", counts)
    whole = open_array(path, "X").signature()
    shutil.rmtree(Path(path, "X", "data", "c", "1"), ignore_errors=True)
    Path(path, "X", "data", "c", "1").unlink(missing_ok=True)
    source = open_array(path, "X")
    assert source.signature() != whole
    assert (source.missing_chunks.chunks, source.missing_chunks.rows, source.missing_chunks.keys) == (
        1,
        100,
        ["data/c/1"],
    )
    with pytest.raises(
        InputError, match=r"array 'X/data': 1 of .* chunks are not there .*entries 100 to 199.*missing=f"
    ):
        source.require_chunks("input.missing=fill")


def test_a_matrix_by_columns_is_refused_with_the_way_out(tmp_path, counts):
    path = write(tmp_path / "x.zarr", counts)
    zarr.open_group(path)["X"].attrs["encoding-type"] = "csc_matrix"
    with pytest.raises(InputError, match=r"'X' in .* is a sparse matrix \(csc_matrix.*adata.X.tocsr\(\)"):
        open_array(path, "X")


def test_a_group_that_lacks_an_array_is_refused(tmp_path, counts):
    path = write(tmp_path / "x.zarr", counts)
    shutil.rmtree(Path(path, "X", "indices"))
    with pytest.raises(InputError, match="group 'X': it is to be a CSR matrix, and has no array 'indices'"):
        open_array(path, "X")


def test_several_stores_are_one(tmp_path, counts):
    paths = [write(tmp_path / "a.zarr", counts[:100]), write(tmp_path / "b.zarr", counts[100:], dtype="f8")]
    source = ConcatenatedInput(paths, "X")
    assert (source.rows, source.dtype, source.sparse, source.entries) == (
        300,
        np.float64,
        True,
        np.count_nonzero(counts),
    )
    for start, stop in ((0, 300), (95, 105), (100, 101)):
        assert np.array_equal(source.read(start, stop).toarray(), counts[start:stop])
    zarr.create_group(tmp_path / "dense.zarr").create_array("X", data=counts)
    with pytest.raises(InputError, match=r"rows of .*dense.zarr are dense, those of .*a.zarr sparse"):
        ConcatenatedInput([paths[0], str(tmp_path / "dense.zarr")], "X")
