"""Whole runs by each metric, number of components and start."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import K, brute_force_neighbors, mark_slow_except

from dumap.errors import InputError

METRICS = {
    "euclidean": {},
    "cosine": {},
    "correlation": {},
    "manhattan": {},
    "chebyshev": {},
    "canberra": {},
    "hamming": {},
    "minkowski": {"p": 3.0},
}


@pytest.mark.parametrize("metric", mark_slow_except(METRICS, "euclidean", "cosine"))
def test_one_cell_finds_every_neighbor(embed, digits_300, metric):
    """By distance, since whole numbers tie."""
    done = embed(digits_300, {"neighbors.metric": metric, "neighbors.metric_kwds": METRICS[metric]})
    indices, distances = done.neighbors()
    exact = brute_force_neighbors(digits_300, {"manhattan": "cityblock"}.get(metric, metric), **METRICS[metric])
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :K], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, indices, axis=1), distances, rtol=1e-5, atol=2e-6)
    assert np.isfinite(done.y).all()


@pytest.mark.parametrize("metric", mark_slow_except(METRICS, "cosine"))
def test_many_cells_find_most_neighbors(embed, digits, metric):
    settings = {"neighbors.metric": metric, "neighbors.metric_kwds": METRICS[metric], "audit.queries": 500}
    done = embed(digits[0], {**settings, "cells.max_rows": 800})
    assert done.facts("cells")["cells"] > 1
    assert done.facts("audit")["recall"] >= 0.85
    assert np.isfinite(done.y).all()


@pytest.mark.parametrize("components", mark_slow_except([1, 3, 64], 3))
def test_components(embed, digits_300, components):
    y = embed(digits_300, {"layout.n_components": components}).y
    assert y.shape == (len(digits_300), components)
    assert np.isfinite(y).all()
    assert (y.std(axis=0) > 0).all()


@pytest.mark.parametrize("init", ["pca", "random"])
def test_starts(embed, digits_300, init):
    y = embed(digits_300, {"start.init": init}).y
    assert np.isfinite(y).all()
    assert (y.std(axis=0) > 0.1).all()


def test_start_from_an_array_keeps_its_picture(embed, digits, new_path):
    """Two groups that are far apart in the array stay on their sides."""
    x, labels = digits[0][digits[1] < 2], digits[1][digits[1] < 2]
    init = new_path("init.npy")
    np.save(init, np.column_stack([np.where(labels, 10.0, -10.0), np.linspace(-1, 1, len(x))]))
    y = embed(x, {"start.init": init}).y
    assert ((y[:, 0] > np.median(y[:, 0])) == (labels == 1)).mean() > 0.95
    short = new_path("short.npy")
    np.save(short, np.zeros((len(x) - 1, 2)))
    with pytest.raises(Exception, match="must have shape") as refused:
        embed(x, {"start.init": short})
    assert refused.value.exit_code == 2


@pytest.mark.fault(31)
def test_booleans(embed, digits_300):
    done = embed(digits_300 > 8, {"neighbors.metric": "hamming"})
    distances = done.neighbors()[1]
    np.testing.assert_allclose(
        distances, np.sort(brute_force_neighbors(digits_300 > 8, "hamming"), axis=1)[:, :K], atol=1e-6
    )
    assert np.isfinite(done.y).all()


BITS = {"bit_hamming": ("hamming", 64), "bit_jaccard": ("jaccard", 1)}
"""Metrics of packed bits: SciPy's of the bits, and by what that is multiplied."""


@pytest.mark.parametrize("metric", BITS)
def test_packed_bits_have_the_distances_of_their_bits(embed, digits_300, metric):
    bits = digits_300 > 6
    done = embed(np.packbits(bits, axis=1), {"neighbors.metric": metric, "neighbors.recall_target": 0})
    indices, distances = done.neighbors()
    name, factor = BITS[metric]
    exact = brute_force_neighbors(bits, name) * factor
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :K], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, indices, axis=1), distances, atol=1e-5)
    assert np.isfinite(done.y).all()


@pytest.mark.parametrize("metric", mark_slow_except(BITS, "bit_hamming"))
def test_packed_bits_in_many_cells(embed, digits, metric):
    settings = {"neighbors.metric": metric, "audit.queries": 300, "quality.queries": 50, "cells.max_rows": 800}
    done = embed(np.packbits(digits[0] > 6, axis=1), settings)
    assert done.facts("cells")["cells"] > 1
    assert done.facts("audit")["recall"] >= 0.9
    assert np.isfinite(done.y).all()


def test_numbers_are_no_packed_bits(embed, digits_300):
    with pytest.raises(InputError, match=r"is of bits packed into uint8, and the rows are float32: pack them"):
        embed(digits_300, {"neighbors.metric": "bit_hamming"})


@pytest.mark.fault(28)
@pytest.mark.parametrize("k", [1, 2, 14])
def test_as_few_rows_as_there_can_be(embed, digits_300, k):
    y = embed(digits_300[: k + 2], {"neighbors.n_neighbors": k + 1, "audit.queries": 10}).y
    assert y.shape == (k + 2, 2)
    assert np.isfinite(y).all()
    with pytest.raises(InputError, match=rf"{k + 1} rows are too few .* at least {k + 2}"):
        embed(digits_300[: k + 1], {"neighbors.n_neighbors": k + 1})
