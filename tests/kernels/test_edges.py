import numpy as np
import pytest
import scipy.sparse as sparse
from graphs import LAYOUT_EPOCHS as EPOCHS
from graphs import LAYOUT_ROWS as ROWS
from graphs import SEED, UNIT, heads, pack, samples
from umap import umap_

from dumap.kernels import edges


def test_an_edge_is_sampled_in_proportion_to_its_weight_and_both_ends_agree(graph):
    packed = pack(graph)
    counts = sum(samples(packed, epoch) for epoch in range(EPOCHS))
    weight = graph.toarray()[heads(packed), packed.tails] / graph.data.max()
    assert np.abs(counts - 2 * weight * EPOCHS).max() < 1 + 1e-2
    assert abs((counts - 2 * weight * EPOCHS).mean()) < 0.05
    for values in (packed.relative_weights, packed.sample_phases):
        both = sparse.csr_matrix(
            (values.astype(np.int64) + 1, packed.tails.astype(np.int64), packed.indptr), shape=(ROWS, ROWS)
        )
        assert (both != both.T).nnz == 0
    assert np.histogram(packed.sample_phases, 4, (0, UNIT))[0].min() > len(packed.sample_phases) / 5


def test_pack_drops_the_edges_that_are_never_sampled(graph):
    kept = graph.data >= graph.data.max() / EPOCHS
    packed = pack(graph)
    assert 0 < len(packed.tails) == kept.sum() < graph.nnz
    assert np.array_equal(packed.tails, graph.indices[kept])
    assert packed.relative_weights.max() == UNIT
    assert (sum(samples(packed, epoch) for epoch in range(EPOCHS)) > 0).all()


@pytest.mark.parametrize("rows", [ROWS, 10_001])
@pytest.mark.parametrize("n_epochs", [1, 2, 10, 11, 60])
def test_pack_drops_the_edges_that_umap_learn_drops(graph, monkeypatch, rows, n_epochs):
    """In 10 epochs or fewer, those that are not sampled in 500, or 200 of many rows."""
    seen, whole = {}, graph.copy()
    whole.resize(rows, rows)
    monkeypatch.setattr(
        umap_, "optimize_layout_euclidean", lambda y, _, head, tail, *__, **___: seen.update(head=head, tail=tail) or y
    )
    umap_.simplicial_set_embedding(
        None, whole.copy(), 2, 1.0, 1.577, 0.895, 1.0, 5, n_epochs, np.random.default_rng(0).random((rows, 2)),
        np.random.RandomState(0), "euclidean", {}, False, {}, False,
    )  # fmt: skip
    assert (graph.data < graph.data.max() / 500).any()
    indptr, tails = whole.indptr.astype(np.int64), whole.indices.astype(np.int32)
    packed = edges.pack(indptr, tails, whole.data, 0, float(whole.data.max()), n_epochs, SEED)
    assert sorted(zip(heads(packed), packed.tails, strict=True)) == sorted(zip(seen["head"], seen["tail"], strict=True))
    part = edges.pack(indptr[:91], tails, whole.data, 0, float(whole.data.max()), n_epochs, SEED, rows)
    assert np.array_equal(part.tails, packed.tails[: packed.indptr[90]])


@pytest.mark.parametrize("rate", [1, 77, UNIT, 65_208, 65_535])
def test_an_edge_is_sampled_as_often_in_late_epochs(rate):
    """Where the sum of all samples before is more than 32 bits hold."""
    for t in (0, 1, 16_465, 16_466, 31_999, 2**31 - 1):
        for phase in (0, 1, 20_000, UNIT - 1):
            wanted = (2 * rate * (t + 1) + phase) // UNIT - (2 * rate * t + phase) // UNIT
            assert edges.samples_in_epoch(np.uint16(rate), np.uint16(phase), np.int32(t)) == wanted


def test_pack_keys_phases_by_row_and_not_by_shard(graph):
    whole, parts = pack(graph), [pack(graph, 0, 90), pack(graph, 90, ROWS)]
    for field in ("tails", "relative_weights", "sample_phases"):
        joined = np.concatenate([getattr(part, field) for part in parts])
        assert joined.tobytes() == getattr(whole, field).tobytes()


def test_the_usual_epochs():
    assert [edges.default_epochs(rows) for rows in (10, 10_000, 10_001, 10**8)] == [500, 500, 200, 200]
