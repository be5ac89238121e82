"""Coarsening: labels spread over connected rows, and the coarse graph is the graph added up by labels."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import stacked
from scipy import sparse

from dumap.artifacts.coarsen import EDGES, LABEL_SOURCES, label_checkpoints
from dumap.artifacts.graph import Graph
from dumap.artifacts.part_names import COARSEN
from dumap.kernels.coarse import WEIGHT_UNIT
from dumap.store import Run


@pytest.fixture(scope="module")
def graph(host_run) -> sparse.csr_matrix:
    """Return the graph of the run as one matrix."""
    return stacked(Graph(Run(host_run.output, read_only=True)))


@pytest.fixture(scope="module")
def labels(host_run) -> np.ndarray:
    """Return the label of each row after the last pass."""
    checkpoints = label_checkpoints(Run(host_run.output, read_only=True))
    return checkpoints.read(checkpoints.latest(), "labels", 0, 5020)


def test_labels_spread_from_their_sources_over_connected_rows(host_run, graph, labels):
    sources = Run(host_run.output, read_only=True).read(COARSEN, LABEL_SOURCES, "rows")
    assert (np.diff(sources) > 0).all()
    np.testing.assert_array_equal(labels[sources], np.arange(len(sources)))
    heads, tails = graph.nonzero()
    inside = labels[heads] == labels[tails]
    same = sparse.csr_matrix((np.ones(inside.sum()), (heads[inside], tails[inside])), shape=graph.shape)
    count, _ = sparse.csgraph.connected_components(same, directed=False)
    assert count == len(np.unique(labels)), "rows of one label are connected among themselves"
    assert host_run.facts("coarsen")["unseeded"] == (labels < 0).sum()


def test_the_coarse_graph_is_the_graph_added_up_by_labels(host_run, graph, labels):
    store = Run(host_run.output, read_only=True)
    pairs, sums, sizes = (store.read(COARSEN, EDGES, name) for name in ("pairs", "sums", "sizes"))
    np.testing.assert_array_equal(sizes, np.bincount(labels[labels >= 0], minlength=len(sizes)))
    assert host_run.facts("coarsen")["coarse_rows"] == np.count_nonzero(sizes)
    rows = np.flatnonzero(labels >= 0)
    members = sparse.csr_matrix((np.ones(len(rows)), (labels[rows], rows)), shape=(len(sizes), len(labels)))
    expected = (members @ graph.astype(np.float64) @ members.T).tocoo()
    coarse = sparse.coo_matrix((sums / WEIGHT_UNIT, (pairs // len(sizes), pairs % len(sizes))), expected.shape)
    assert coarse.nnz == expected.nnz
    assert abs(coarse - expected).max() < 1e-3


def test_other_starts_need_no_coarse_graph(embed, digits_300):
    done = embed(digits_300, {"start.init": "random"})
    assert done.facts("coarsen") == {}
    assert [*Run(done.output, read_only=True).committed(COARSEN)] == []
