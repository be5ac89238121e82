"""Exports hold what the run holds, in the order of the input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import K, brute_force_neighbors, mark_slow_except
from pyarrow import parquet
from scipy import sparse
from umap_learn import umap_in_python


@pytest.fixture(scope="module")
def finished_run(embed, digits):
    """Return a finished run of 600 digits in several cells."""
    return embed(digits[0][:600], {"cells.max_rows": 200})


def test_exported_neighbors_are_the_inputs_rows(finished_run, digits):
    indices, distances = finished_run.neighbors()
    rows = np.arange(len(indices))[:, None]
    assert indices.shape == distances.shape == (600, K)
    assert ((indices >= 0) & (indices != rows)).all()
    assert all(len(set(row)) == K for row in indices.tolist())
    np.testing.assert_allclose(distances, brute_force_neighbors(digits[0][:600], "euclidean")[rows, indices], rtol=1e-5)
    assert (np.diff(distances, axis=1) >= 0).all()
    group = zarr.open_group(finished_run.export("neighbors", ".zarr"), mode="r")
    np.testing.assert_array_equal(group["indices"][:], indices)
    np.testing.assert_array_equal(group["distances"][:], distances)


@pytest.mark.parametrize(
    ("mix", "connectivity"),
    mark_slow_except([(1.0, 1.0), (0.25, 1.0), (1.0, 2.5)], (1.0, 1.0)),
)
def test_exported_graph_is_umap_learns(embed, digits_300, mix, connectivity):
    done = embed(digits_300, {"graph.set_op_mix_ratio": mix, "graph.local_connectivity": connectivity})
    indices, distances = done.neighbors()
    rows = np.arange(len(digits_300))
    with umap_in_python() as umap_:
        expected, *_ = umap_.fuzzy_simplicial_set(
            digits_300,
            K + 1,
            np.random.RandomState(0),
            "euclidean",
            knn_indices=np.column_stack([rows, indices]),
            knn_dists=np.column_stack([np.zeros(len(digits_300), np.float32), distances]),
            set_op_mix_ratio=mix,
            local_connectivity=connectivity,
        )
    exported = sparse.load_npz(done.export("graph", ".npz"))
    assert exported.shape == expected.shape
    assert abs(exported - expected).max() <= 1e-5
    assert abs(exported - exported.T).max() == 0


def test_exported_embeddings_agree(finished_run):
    y, flags = finished_run.y, finished_run.flags
    np.testing.assert_array_equal(np.load(finished_run.export("embedding", ".npy")), y)
    lines = Path(finished_run.export("embedding", ".csv")).read_text().splitlines()
    table = np.loadtxt(lines[1:], delimiter=",")
    assert lines[0] == "row,component_0,component_1,status"
    np.testing.assert_array_equal(table[:, 1:3].astype(np.float32), y)
    columns = parquet.read_table(finished_run.export("embedding", ".parquet"))
    assert columns.column_names == lines[0].split(",")
    for name, values in (("row", np.arange(len(y))), ("component_1", y[:, 1]), ("status", flags)):
        np.testing.assert_array_equal(columns[name].to_numpy(), values)
