"""AnnData: objects in memory and backed, and stores as anndata writes them, sharded too."""

from __future__ import annotations

import warnings

import anndata
import dask.array as da
import numpy as np
import pytest
import scipy.sparse
import zarr

import dumap
from dumap.errors import InputError
from dumap.sources.annotated import element_of
from dumap.sources.objects import rows_of
from dumap.sources.zarr_array import ArrayInput

QUICK = {"n_epochs": 5, "quality": {"queries": 0}, "audit": {"queries": 0}, "cluster": {"engine": "local"}}
INPUT = {"array": "obsm/X_pca"}


@pytest.fixture(scope="module")
def expected(digits_300, save, new_path):
    """Bytes of the embedding of the same rows, saved as a Zarr array."""
    return dumap.run(save(digits_300), output=new_path("run.zarr"), **QUICK).embedding[:].tobytes()


@pytest.fixture
def cells(digits_300):
    """Three hundred cells with digits as X_pca, halves of them as a layer, and sparse counts."""
    return anndata.AnnData(
        X=scipy.sparse.csr_matrix(digits_300.astype("f4")),
        obsm={"X_pca": digits_300, "X_other": digits_300[:, :8]},
        layers={"half": digits_300 / 2, "counts": scipy.sparse.csr_matrix(digits_300)},
    )


def write(cells: anndata.AnnData, path: str) -> str:
    """Write as anndata 0.13 does: in format 3, sharded."""
    with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        cells.write_zarr(path)
    return path


@pytest.mark.parametrize(
    ("name", "expected"), [("vectors", "obsm/X_pca"), ("obsm/X_other", "obsm/X_other"), ("layers/half", "layers/half")]
)
def test_an_array_is_named_as_in_its_store(cells, digits_300, name, expected):
    named, element = element_of(cells, name)
    assert named == expected
    assert rows_of(element).read(0, 300).shape == np.asarray(element).shape


def test_all_columns_are_embedded_without_components(digits_300):
    name, element = element_of(anndata.AnnData(X=digits_300), "vectors")
    assert name == "X"
    assert np.array_equal(rows_of(element).read(5, 9), digits_300[5:9])


def test_what_is_not_there_is_refused_beside_what_is(cells):
    with pytest.raises(InputError, match=r"no 'obsm/nothing' in the AnnData object; its arrays are: X .*, obsm/X_pca"):
        element_of(cells, "obsm/nothing")


@pytest.mark.parametrize("name", ["X", "layers/counts"])
def test_sparse_arrays_are_read_by_rows(cells, digits_300, name):
    rows = rows_of(element_of(cells, name)[1])
    assert rows.sparse
    assert np.array_equal(rows.read(7, 11).toarray(), digits_300[7:11])


def test_backed_arrays_are_read_from_their_file(cells, digits_300, tmp_path):
    cells.X = digits_300
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert np.array_equal(rows_of(element_of(backed, "X")[1]).read(7, 11), digits_300[7:11])
    cells.X = scipy.sparse.csr_matrix(digits_300)
    cells.write_h5ad(tmp_path / "sparse.h5ad")
    backed = anndata.read_h5ad(tmp_path / "sparse.h5ad", backed="r")
    rows = rows_of(element_of(backed, "X")[1])
    assert rows.token == rows_of(scipy.sparse.csr_matrix(digits_300)).token
    cells.X = scipy.sparse.csc_matrix(digits_300)
    assert rows_of(element_of(cells, "X")[1]).token == rows.token
    cells.write_h5ad(tmp_path / "columns.h5ad")
    backed = anndata.read_h5ad(tmp_path / "columns.h5ad", backed="r")
    with pytest.raises(InputError, match=r"'X' of the AnnData object is sparse by columns, in a file: .*obsm/X_other"):
        element_of(backed, "X")


def test_an_object_and_its_store_come_to_one_map(cells, expected, new_path):
    path = write(cells, new_path("cells.zarr"))
    for data in (cells, path):
        result = dumap.run(data, output=new_path("run.zarr"), input=INPUT, **QUICK)
        assert result.embedding[:].tobytes() == expected
    cells.obsm["X_pca"] = da.from_array(cells.obsm["X_pca"], chunks=(70, 64))
    assert dumap.run(cells, output=new_path("run.zarr"), **QUICK).embedding[:].tobytes() == expected
    cells.obsm["X_pca"] = zarr.open_group(path, mode="r")["obsm/X_pca"]
    result = dumap.run(cells, output=new_path("run.zarr"), **QUICK)
    assert result.embedding[:].tobytes() == expected
    assert result["stages"][0]["name"] == "vectors", "read where it lies"


def test_a_store_that_holds_a_sparse_matrix_says_what_to_take(cells, new_path):
    cells.X = cells.X.tocsc()
    path = write(cells, new_path("cells.zarr"))
    with pytest.raises(InputError, match=r"'X' in .* is a sparse matrix .*take one of its rows instead, such as obsm/"):
        dumap.run(path, output=new_path("run.zarr"), input={"array": "X"}, **QUICK)


def sharded(path: str, x: np.ndarray, chunk_rows: int) -> str:
    """Write an AnnData store as anndata 0.13 does: one shard, of small chunks."""
    root = zarr.create_group(path)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    obsm = root.create_group("obsm", attributes={"encoding-type": "dict", "encoding-version": "0.1.0"})
    options = {"chunks": (chunk_rows, x.shape[1]), "shards": (-(-len(x) // chunk_rows) * chunk_rows, x.shape[1])}
    attributes = {"encoding-type": "array", "encoding-version": "0.2.0"}
    obsm.create_array("X_pca", shape=x.shape, dtype=x.dtype, attributes=attributes, **options)[...] = x
    return path


def test_shards_larger_than_a_task_are_read_by_their_chunks(new_path):
    x = np.random.default_rng(0).normal(size=(40_000, 50)).astype("f4")
    path = sharded(new_path("cells.zarr"), x, 1000)
    assert ArrayInput(path, "obsm/X_pca").chunk_rows == 1000
    plan = dumap.plan(path, output="nowhere.zarr", input=INPUT, task_memory="4MiB")
    assert plan.geometry.block_rows * 50 * 4 < 2**20, "a shard of 8 MB is twice what a task may hold"


def test_a_sharded_store_comes_to_the_same_map(digits_300, expected, new_path):
    path = sharded(new_path("cells.zarr"), digits_300, 37)
    assert dumap.run(path, output=new_path("run.zarr"), input=INPUT, **QUICK).embedding[:].tobytes() == expected
