"""The loss: UMAP's cross-entropy on a sample of edges and pairs, and the layout that ends where it falls no more."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import mark_slow_except, stack_edges

from dumap.artifacts.graph import Graph
from dumap.artifacts.layout import EpochState, read_loss
from dumap.artifacts.part_names import LAYOUT
from dumap.kernels.layout import _SOFTENING
from dumap.recipe.pipeline import run
from dumap.stages.loss import LOSS_PAIRS, PAIRS_PART, early_stop_epochs
from dumap.store import Run


@pytest.fixture(scope="module")
def sample(host_run):
    """Return the rows and the weights that the loss is measured on: heads, tails and other rows."""
    store = Run(host_run.output, read_only=True)
    return store.read(LAYOUT, PAIRS_PART, "rows").T, store.read(LAYOUT, PAIRS_PART, "weights")


def test_the_sample_holds_edges_of_the_graph_and_random_rows(host_run, sample):
    (heads, tails, others), weights = sample
    matrix = stack_edges(Graph(Run(host_run.output, read_only=True)))
    assert heads.shape == tails.shape == others.shape == weights.shape == (LOSS_PAIRS,)
    np.testing.assert_array_equal(np.asarray(matrix[heads, tails]).ravel(), weights)
    expected = LOSS_PAIRS * np.diff(matrix.indptr) / matrix.nnz  # of each row, in proportion to its edges
    assert np.abs(np.bincount(heads, minlength=5020) - expected).max() < 8 * np.sqrt(expected.max())
    assert np.abs(np.histogram(others, 20, (0, 5020))[0] - LOSS_PAIRS / 20).max() < 5 * np.sqrt(LOSS_PAIRS / 20)


def test_the_loss_is_the_cross_entropy_of_the_sample(host_run, sample):
    """Computed from the memberships in the map, q = 1 / (1 + a d^2b), pair by pair."""
    (heads, tails, others), weights = sample
    facts = host_run.facts("layout")
    store = Run(host_run.output, read_only=True)
    y = EpochState(store, Graph(store), 20).read_shards(0, 2).astype(np.float64)

    def membership(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        distances = np.sqrt(((y[p] - y[q]) ** 2).sum(axis=1) + _SOFTENING)
        return 1 / (1 + facts["a"] * distances ** (2 * facts["b"]))

    attraction = -(weights * np.log(membership(heads, tails))).sum() / weights.sum()
    repulsion = -np.log1p(-membership(heads, others)).mean()
    assert read_loss(store, 20) == pytest.approx(attraction + 5 / 2 * repulsion, rel=1e-6)
    assert facts["loss"][-1] == [20, round(read_loss(store, 20), 4)]


def test_the_loss_is_told_at_each_checkpoint_and_falls(host_run):
    losses = host_run.facts("layout")["loss"]
    assert [epoch for epoch, _ in losses] == [7, 14, 20]
    assert 2 > losses[0][1] > losses[-1][1] > 0.1


@pytest.mark.parametrize(
    ("n_epochs", "every", "expected"),
    [
        (100, 1, [10, 20, 30, 40, 50, 60, 70, 80, 90]),
        (25, 1, [3, 5, 8, 10, 13, 15, 18, 20, 23]),
        (100, 4, [12, 20, 32, 40, 52, 60, 72, 80, 92]),
        (3, 1, [1, 2]),
    ],
)
def test_the_layout_may_stop_after_each_tenth_in_whole_rounds(n_epochs, every, expected):
    def job(least_fall: float) -> SimpleNamespace:
        settings = SimpleNamespace(least_fall=least_fall, exchange_every=every)
        return SimpleNamespace(config=SimpleNamespace(layout=settings), geometry=SimpleNamespace(n_epochs=n_epochs))

    assert early_stop_epochs(job(0.01)) == expected
    assert early_stop_epochs(job(0.0)) == []


@pytest.mark.parametrize("least_fall", mark_slow_except([0.05, 0.9], 0.9))
def test_a_loss_that_has_settled_ends_the_layout(embed, configure, digits, least_fall):
    """In one process, in rounds, and going on from a checkpoint."""
    settings = {"layout.n_epochs": 100, "layout.least_fall": least_fall, "layout.checkpoint_every": 7}
    done = embed(digits[0][:400], settings)
    last, losses = done.facts("layout")["epochs"], dict(done.facts("layout")["loss"])
    check_epochs = [losses[epoch] for epoch in range(10, last + 1, 10)]
    falls = [1 - after / before for before, after in pairwise(check_epochs)]
    assert last % 10 == 0
    assert last < 100
    assert falls[-1] < least_fall
    assert all(fall >= least_fall for fall in falls[:-1])
    rounds = embed(digits[0][:400], {**settings, "layout.mode": "rounds"})
    assert rounds.facts("layout") == {**done.facts("layout"), "mode": "rounds"}
    assert rounds.y.tobytes() == done.y.tobytes()
    store = Run(done.output)
    for stage in ("layout", "embedding", "quality"):
        store.uncommit("done", stage)
    store.uncommit("layout", "end")
    again = {**settings, "output": done.output, "cluster.engine": "local"}
    assert run(configure(done.status["input"]["path"], again))["state"] == "done"
    assert Run(done.output).part_facts("layout", "end")["epoch"] == last
