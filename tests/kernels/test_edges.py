"""Packed edges: how often each is sampled, beside umap-learn."""

import numpy as np
import pytest
import scipy.sparse as sparse
from graphs import FIXED_POINT_UNIT, SEED, expected_samples, heads_of_edges, pack_graph
from graphs import LAYOUT_EPOCHS as EPOCHS
from graphs import LAYOUT_ROWS as ROWS

from dumap.kernels import edges


def test_an_edge_is_sampled_in_proportion_to_its_weight_and_both_ends_agree(graph):
    edges_of_graph = pack_graph(graph)
    counts = sum(expected_samples(edges_of_graph, epoch) for epoch in range(EPOCHS))
    weight = graph.toarray()[heads_of_edges(edges_of_graph), edges_of_graph.tails] / graph.data.max()
    assert np.abs(counts - 2 * weight * EPOCHS).max() < 1 + 1e-2
    assert abs((counts - 2 * weight * EPOCHS).mean()) < 0.05
    for values in (edges_of_graph.relative_weights, edges_of_graph.sample_phases):
        both = sparse.csr_matrix(
            (values.astype(np.int64) + 1, edges_of_graph.tails.astype(np.int64), edges_of_graph.indptr),
            shape=(ROWS, ROWS),
        )
        assert (both != both.T).nnz == 0
    assert (
        np.histogram(edges_of_graph.sample_phases, 4, (0, FIXED_POINT_UNIT))[0].min()
        > len(edges_of_graph.sample_phases) / 5
    )


def test_pack_drops_the_edges_that_are_never_sampled(graph):
    kept = graph.data >= graph.data.max() / EPOCHS
    edges_of_graph = pack_graph(graph)
    assert 0 < len(edges_of_graph.tails) == kept.sum() < graph.nnz
    assert np.array_equal(edges_of_graph.tails, graph.indices[kept])
    assert edges_of_graph.relative_weights.max() == FIXED_POINT_UNIT
    assert (sum(expected_samples(edges_of_graph, epoch) for epoch in range(EPOCHS)) > 0).all()


@pytest.mark.parametrize("rows", [ROWS, 10_001])
@pytest.mark.parametrize("n_epochs", [1, 2, 10, 11, 60])
def test_pack_drops_the_edges_that_umap_learn_drops(graph, monkeypatch, rows, n_epochs):
    """In 10 epochs or fewer, those that are not sampled in 500, or 200 of many rows."""
    from umap import umap_

    umap_edges, whole = {}, graph.copy()
    whole.resize(rows, rows)
    monkeypatch.setattr(
        umap_,
        "optimize_layout_euclidean",
        lambda y, _, head, tail, *__, **___: umap_edges.update(head=head, tail=tail) or y,
    )
    umap_.simplicial_set_embedding(
        None, whole.copy(), 2, 1.0, 1.577, 0.895, 1.0, 5, n_epochs, np.random.default_rng(0).random((rows, 2)),
        np.random.RandomState(0), "euclidean", {}, False, {}, False,
    )  # fmt: skip
    assert (graph.data < graph.data.max() / 500).any()
    indptr, tails = whole.indptr.astype(np.int64), whole.indices.astype(np.int32)
    edges_of_graph = edges.pack_edges(indptr, tails, whole.data, 0, float(whole.data.max()), n_epochs, SEED)
    assert sorted(zip(heads_of_edges(edges_of_graph), edges_of_graph.tails, strict=True)) == sorted(
        zip(umap_edges["head"], umap_edges["tail"], strict=True)
    )
    part = edges.pack_edges(indptr[:91], tails, whole.data, 0, float(whole.data.max()), n_epochs, SEED, rows)
    assert np.array_equal(part.tails, edges_of_graph.tails[: edges_of_graph.indptr[90]])


@pytest.mark.parametrize("rate", [1, 77, FIXED_POINT_UNIT, 65_208, 65_535])
def test_an_edge_is_sampled_as_often_in_late_epochs(rate):
    """Where the sum of all samples before is more than 32 bits hold."""
    for t in (0, 1, 16_465, 16_466, 31_999, 2**31 - 1):
        for phase in (0, 1, 20_000, FIXED_POINT_UNIT - 1):
            expected = (2 * rate * (t + 1) + phase) // FIXED_POINT_UNIT - (2 * rate * t + phase) // FIXED_POINT_UNIT
            assert edges.samples_in_epoch(np.uint16(rate), np.uint16(phase), np.int32(t)) == expected


def test_pack_keys_phases_by_row_and_not_by_shard(graph):
    whole, parts = pack_graph(graph), [pack_graph(graph, 0, 90), pack_graph(graph, 90, ROWS)]
    for field in ("tails", "relative_weights", "sample_phases"):
        joined = np.concatenate([getattr(part, field) for part in parts])
        assert joined.tobytes() == getattr(whole, field).tobytes()


def test_the_usual_epochs():
    assert [edges.default_epochs(rows) for rows in (10, 10_000, 10_001, 10**8)] == [500, 500, 200, 200]
