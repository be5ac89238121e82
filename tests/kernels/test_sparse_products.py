"""Products that rule out pairs of sparse rows, against exact distances: no pair within a limit is ruled out."""

import numpy as np
import pytest
import scipy.sparse as sp

from dumap.kernels import pairs, sparse_products

DIMS = 200


def near(rows, metric, limits):
    """Return which pairs are not ruled out at limits of squared distances, (n, n)."""
    x = pairs.SparseRows.from_csr(rows, metric)
    scaled, every = sparse_products.ScaledRows.from_sparse_rows(x), np.arange(rows.shape[0])
    tile = sparse_products.index_tile(x, scaled, every, np.empty(DIMS, np.int32))
    products, column_buffer = (
        np.empty(len(every), np.float32),
        np.empty(DIMS + sparse_products.DENSE_COLUMNS_AT_ONCE, np.int64),
    )
    out = np.zeros((len(every), len(every)), bool)
    for i in every:
        sparse_products.write_tile_products(
            x, i, scaled.factors[i], tile, 0, products, column_buffer, column_buffer.astype("f4")
        )
        for j in every:
            at, limit = slice(j, j + 1), np.float32(limits[i, j] * scaled.unit)
            ends = scaled.means[at], scaled.halves[at], np.array([limit])
            out[i, j] = sparse_products.count_near_rows(products[at], scaled.means[i], scaled.halves[i], limit, *ends)
    return out


def random_rows(scale):
    """Return 60 rows, some columns of them dense: a zero row, equal rows, one nearly constant, and of two lengths."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, DIMS)) * (rng.random((60, DIMS)) < rng.choice([0.02, 0.5], DIMS)) * scale
    x[0], x[1], x[3], x[20:30] = 0, 2.5 * scale, x[2], 1e-12 * x[20:30]
    x[4, :], x[4, 7] = scale, 1.001 * scale
    return sp.csr_matrix(x.astype("f4"))


@pytest.mark.parametrize("scale", [1, 1e18, 1e-18])
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
def test_no_pair_within_its_limit_is_ruled_out(metric, scale):
    rows = random_rows(scale)
    x = pairs.SparseRows.from_csr(rows, metric)
    squared = np.array([[pairs.sparse_distance(x, i, j) for j in range(60)] for i in range(60)])
    assert near(rows, metric, squared).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
def test_pairs_beyond_their_limit_are_ruled_out(metric):
    rows = random_rows(1)[30:]
    x = pairs.SparseRows.from_csr(rows, metric)
    squared = np.array([[pairs.sparse_distance(x, i, j) for j in range(30)] for i in range(30)])
    others = ~np.eye(30, dtype=bool)
    assert not near(rows, metric, 0.999 * squared)[others].any()
