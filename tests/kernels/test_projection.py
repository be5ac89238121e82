"""Projections of sparse rows: how well they keep distances, and that they depend on the row and the seed alone."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import pdist

from dumap.kernels import projection, vectors


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return sp.random_array((60, 5000), density=0.03, format="csr", rng=rng, dtype="f4", data_sampler=rng.exponential)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
def test_distances_are_kept_about(rows, metric):
    projected = projection.project_rows(sp.csr_matrix(rows), projection.draw_column_places(5000, 3), metric)
    assert projected.shape == (60, projection.MAX_PROJECTED_DIMS)
    kept = pdist(projected) / pdist(vectors.to_euclidean(rows.toarray(), metric))
    assert abs(kept.mean() - 1) < 0.02
    assert kept.std() < 0.06  # 1 / sqrt(2 * DIMS) is 0.044


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
def test_few_columns_are_not_projected(metric):
    x = np.abs(np.random.default_rng(1).normal(size=(20, 50))).astype("f4")
    x[3] = 0
    projected = projection.project_rows(sp.csr_matrix(x), projection.draw_column_places(50, 0), metric)
    assert np.allclose(projected, vectors.to_euclidean(x, metric), atol=1e-6)


def test_a_row_is_projected_by_itself_and_the_seed(rows):
    rows = sp.csr_matrix(rows)
    targets = projection.draw_column_places(5000, 3)
    whole = projection.project_rows(rows, targets, "cosine")
    assert np.array_equal(whole[10:20], projection.project_rows(rows[10:20], targets, "cosine"))
    assert np.array_equal(targets, projection.draw_column_places(5000, 3))
    assert not np.array_equal(targets, projection.draw_column_places(5000, 4))
    eighths = (np.abs(targets) - 1) // (projection.MAX_PROJECTED_DIMS // projection.PLACES_PER_COLUMN)
    assert (eighths == np.arange(projection.PLACES_PER_COLUMN)).all(), "one place in each eighth"
    assert abs((targets > 0).mean() - 0.5) < 0.02
